"""Unrolled training: its derivative, what it finds, and what it says of the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy.data import choice
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import (
    evidence,
    unrolled,
    unrolled_search,
    unrolled_verdict,
    victims,
)
from ntk_privacy.training import recipe

NET = MLP((64,))
SHAPE = (3, 3, 1)
LABELS = np.asarray([[1.0], [-1.0], [1.0]], np.float32)
BOUNDS = (-0.5, 0.5)
SETTINGS = unrolled.Settings(
    sharpnesses=(4.0, 16.0, 64.0, 256.0), num_steps=60, memory=20
)
ADAM = optax.adamw(1e-2, weight_decay=1e-3, eps_root=1e-14)


def _images():
    return jax.random.uniform(jax.random.key(3), (3, *SHAPE), jnp.float32, *BOUNDS)


def _training(optimizer, num_steps=60, **others):
    return unrolled.Training(optimizer=optimizer, num_steps=num_steps, **others)


def _before(seed=1):
    params = NET.init_params(jax.random.key(seed), SHAPE)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)


def _by_hand(training, params, x, y):
    """Step by step, each in Python."""
    state = training.optimizer.init(params)

    def mean(p):
        return jnp.mean(recipe.losses(training.loss, NET.apply_fn(p, x), y))

    for _ in range(training.num_steps):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = training.optimizer.update(
                jax.grad(mean)(params), state, params
            )
        params = optax.apply_updates(params, updates)
    return params


@pytest.fixture(scope="module")
def scene():
    """A training, the weights before and after it, and the images."""
    training = _training(optax.sgd(0.1, momentum=0.9))
    before, x = _before(), _images()
    after = unrolled.simulate(NET.apply_fn, training, before, x, jnp.asarray(LABELS))
    return training, before, after, x


def _read(scene, **changes):
    training, before, after, _ = scene
    given = {
        "training": training, "labels": LABELS, "key": jax.random.key(0),
        "image_shape": SHAPE, "bounds": BOUNDS, "settings": SETTINGS, **changes,
    }  # fmt: skip
    return unrolled.reconstruct(NET, before, after, **given)


@pytest.mark.parametrize("num_steps", [3, 7])
def test_blocks_are_the_steps_one_by_one(num_steps):
    training = _training(ADAM, num_steps, block=3)
    y, x = jnp.asarray(LABELS), _images()
    found = unrolled.simulate(NET.apply_fn, training, _before(), x, y)
    slow = _by_hand(training, _before(), x, y)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(slow), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_the_derivative_is_that_of_differences():
    training, x = _training(optax.sgd(0.1), 12, block=5), _images()
    before, x = jax.tree.map(lambda a: a.astype(jnp.float64), (_before(), x))
    y = jnp.asarray(LABELS, jnp.float64)

    def size(x):
        end = unrolled.simulate(NET.apply_fn, training, before, x, y, sharpness=8.0)
        return unrolled.misfit(end, before, jax.tree.map(lambda a: a + 0.1, before))

    way = jax.random.normal(jax.random.key(5), x.shape, jnp.float64)
    slope = float(jnp.sum(jax.grad(size)(x) * way))
    step = 1e-5
    told = float(size(x + step * way) - size(x - step * way)) / (2 * step)
    assert slope == pytest.approx(told, rel=1e-5)


@pytest.mark.slow
def test_images_of_a_small_network_come_back(scene):
    found, x = _read(scene), scene[-1]
    squared = ((np.asarray(x)[:, None] - found.images[None]) ** 2).mean((2, 3, 4))
    assert squared.min(1).max() < 10**-2.5  # 25 dB, all of them
    assert found.verdict.word == "approximate"
    assert found.replay_misses[0] < 0.2
    assert not found.certified.any()
    assert found.kept["weights"].sum() == pytest.approx(3, rel=1e-5)
    assert found.images.min() >= BOUNDS[0]
    assert found.images.max() <= BOUNDS[1]


def test_a_candidate_without_weight_joins_the_heaviest_of_its_label():
    labels = jnp.asarray([[1.0], [1.0], [-1.0], [-1.0], [1.0]])
    weights = jnp.asarray([0.02, 2.0, 0.05, 1.0, 1.93])
    images = jnp.arange(5.0).reshape(5, 1, 1, 1) * jnp.ones((5, 2, 2, 1))
    noise = jnp.full((5, 2, 2, 1), 0.1)
    moved, scales = unrolled_search._parted(images, jnp.log(weights), labels, noise)
    # The third one finds no heavy one of its label.
    at = moved[:, 0, 0, 0]
    np.testing.assert_allclose(at, [1.1, 0.9, 2.0, 3.0, 4.0], atol=1e-12)
    np.testing.assert_allclose(jnp.exp(scales), [1.0, 1.0, 0.05, 1.0, 1.93], rtol=1e-5)


def test_fewer_weights_than_numbers_searched_for_identify_nothing(scene):
    training, _, _, x = scene
    small = MLP((2,))
    before = small.init_params(jax.random.key(1), SHAPE)
    before = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), before)
    after = unrolled.simulate(small.apply_fn, training, before, x, jnp.asarray(LABELS))
    found = unrolled.reconstruct(
        small, before, after, training=training, labels=LABELS, image_shape=SHAPE,
        key=jax.random.key(0), bounds=BOUNDS,
        settings=unrolled.Settings(sharpnesses=(16.0,), num_steps=10),
    )  # fmt: skip
    assert found.verdict.word == "assumptions do not hold"
    assert "30 numbers are searched for, and 23 weights" in found.verdict.reason


def test_a_search_that_is_lost_leaves_its_last_finite_candidates(scene):
    training, before, after, _ = scene
    search = unrolled.prepare(
        NET, before, after, training=training, labels=LABELS, image_shape=SHAPE,
        key=jax.random.key(0), bounds=BOUNDS,
        settings=unrolled.Settings(sharpnesses=(16.0,), num_steps=2),
    )  # fmt: skip
    lost = search.state._replace(scales=search.state.scales * jnp.nan)
    found = unrolled.run(search._replace(state=lost))
    np.testing.assert_array_equal(found.images, search.state.images)
    assert found.nonfinite
    assert np.isnan(found.losses).all()
    assert found.verdict.word == "nothing found"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("wrong", ["initialisation", "weights", "optimizer"])
def test_a_wrong_story_is_nothing(wrong, seed):
    shape, y = (4, 4, 1), np.asarray([[1.0], [-1.0], [1.0], [-1.0]], np.float32)
    x = jax.random.uniform(jax.random.key(100 + seed), (4, *shape), jnp.float32)
    told = training = _training(optax.sgd(0.1, momentum=0.9))

    def drawn(seed):
        params = NET.init_params(jax.random.key(seed), shape)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)

    before = drawn(seed)
    after = unrolled.simulate(NET.apply_fn, training, before, x, jnp.asarray(y))
    if wrong == "initialisation":
        before = drawn(500 + seed)
    elif wrong == "weights":
        after = drawn(700 + seed)
    else:
        told = _training(optax.adam(1e-2, eps_root=1e-14))
    found = unrolled.reconstruct(
        NET, before, after, training=told, labels=y, key=jax.random.key(3),
        image_shape=shape, bounds=(0.0, 1.0), settings=SETTINGS,
    )  # fmt: skip
    assert found.verdict.word == "nothing found"


def test_a_search_that_was_cut_ends_with_the_same_bits(scene):
    kept = {}

    def stop(done, state, metrics):
        del metrics
        kept.update(done=done, state=state)
        return done == 50

    cut = _read(scene, callback=stop)
    assert kept["done"] == 50
    assert len(cut.losses) == 50
    rest = _read(scene, state=kept["state"], first_step=50)
    found = _read(scene)
    np.testing.assert_array_equal(rest.images, found.images)
    losses = np.concatenate([cut.losses, rest.losses])
    np.testing.assert_array_equal(losses, found.losses)


def test_bad_input_is_one_sentence(scene):
    training, before, after, _ = scene
    with pytest.raises(ValueError, match="params_t equals params_0"):
        _read((training, before, before, None))
    with pytest.raises(ValueError, match="starts have shape"):
        _read(scene, starts=np.zeros((3, 2, 2, 1), np.float32))
    with pytest.raises(ValueError, match="diverges"):
        _read((_training(optax.sgd(1e6)), before, after, None))
    with pytest.raises(ValueError, match="in order"):
        _read(scene, bounds=(0.5, -0.5))
    with pytest.raises(ValueError, match="first_step=50 and a state is not given"):
        _read(scene, first_step=50)
    with pytest.raises(ValueError, match="num_labels=0"):
        _read(scene, labels=np.zeros((0, 1), np.float32))
    two = np.eye(3, 2, dtype=np.float32)
    with pytest.raises(ValueError, match="loss=logistic takes one output"):
        _read((_training(ADAM, loss="logistic"), before, after, None), labels=two)
    with pytest.raises(ValueError, match="num_steps=0"):
        _training(ADAM, 0)
    with pytest.raises(ValueError, match="sharpnesses is empty"):
        unrolled.Settings(sharpnesses=())


def test_adam_without_a_derivative_at_zero_is_refused(scene):
    _, before, after, _ = scene
    # No unit opens, so that nothing moves.
    dead = {
        **before,
        "Dense_0": {**before["Dense_0"], "bias": jnp.full(64, -1e3, jnp.float32)},
    }
    with pytest.raises(ValueError, match="eps_root=1e-14"):
        _read((_training(optax.adam(1e-2)), dead, after, None))


def _known(**told):
    params = NET.init_params(jax.random.key(0), (4, 4, 1))
    moved = jax.tree.map(lambda leaf: leaf + 0.01, params)
    given = {"network": NET, "params_0": params, "params_t": moved}
    given |= {"image_shape": (4, 4, 1), "bounds": (0.0, 1.0), "num_steps": 3}
    given |= {"recipe": recipe.Recipe()}
    return evidence.Evidence(**given | told)


def test_labels_are_those_that_are_told_or_balanced():
    one, labels = {"num_images": 3}, np.asarray([[1.0], [1.0], [-1.0], [1.0]])
    np.testing.assert_array_equal(unrolled._labels(_known(labels=labels)), labels)
    balanced = unrolled._labels(_known(labels=labels, **one))
    np.testing.assert_array_equal(balanced, [[-1], [1], [-1]])
    np.testing.assert_array_equal(unrolled._labels(_known(**one)), [[-1], [1], [-1]])


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"recipe": None}, "recipe is not known: unrolled needs it; say how"),
        (
            {"num_steps": None},
            "num_steps is not known: unrolled needs it; say how many",
        ),
        ({}, "num_images is not told: tell it, or the label of every image"),
        ({"num_steps": 0, "num_images": 2}, "The training took no step"),
        (
            {"recipe": recipe.Recipe(batch_size=2), "num_images": 3},
            "batch_size=2: unrolled simulates a training on all images at every step",
        ),
    ],
)
def test_evidence_that_does_not_do_is_refused(told, sentence):
    with pytest.raises(ValueError, match=sentence):
        unrolled.from_evidence(_known(**told), key=jax.random.key(0))


def test_the_training_that_is_simulated_is_that_of_the_recipe():
    told = recipe.Recipe(optimizer="adam", learning_rate=0.01, weight_decay=1e-3)
    known = _known(recipe=told, num_images=2, num_steps=30)
    x = jax.random.uniform(jax.random.key(1), (2, 4, 4, 1), jnp.float32)
    y = jnp.asarray([[-1.0], [1.0]], jnp.float32)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), known.params_0)
    training = unrolled._training(known)
    assert (training.num_steps, training.block) == (30, 5)
    end = unrolled.simulate(NET.apply_fn, training, params, x, y)
    given = {"key": jax.random.key(0), "max_steps": 30}
    trained = recipe.train(NET, params, x, y, told, **given).params
    for one, other in zip(jax.tree.leaves(end), jax.tree.leaves(trained), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_a_batch_of_all_images_is_no_batch():
    digits, _ = choice.TaskImages(num_train=4).load(seed=0)
    for size, kept in ((3, 3), (4, None), (16, None)):
        network = victims.Trained(width=8, dynamics="standard", batch_size=size)
        told = network.before(digits).recipe
        assert told is not None
        assert told.batch_size == kept


@pytest.mark.parametrize(
    ("left", "control", "num_weights", "word"),
    [
        (0.05, 0.9, 1000, "approximate"),
        (0.05, 0.1, 1000, "nothing found"),  # other images leave as little
        (0.2, 0.9, 1000, "nothing found"),
        (np.nan, 0.9, 1000, "nothing found"),
        (0.0, 0.9, 100, "assumptions do not hold"),
    ],
)
def test_a_verdict_needs_both_a_small_rest_and_a_margin(
    left, control, num_weights, word
):
    sizes = {"num_unknowns": 100, "num_weights": num_weights}
    found = unrolled_verdict.judge(left, control, **sizes)
    assert found.word == word
    assert found.reason.endswith(".")
