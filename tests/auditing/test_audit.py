"""Audits of networks that were trained as people train them, and of unrelated ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_privacy
from ntk_privacy import auditing
from ntk_privacy.auditing import attack, cases, comparison, controls, given_images
from ntk_privacy.auditing.attack import Attacked
from ntk_privacy.data import load_set
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import unit_verdict
from ntk_privacy.reconstruction.result import uncertain
from ntk_privacy.reconstruction.verdict import Verdict

SHAPE, N = (8, 8, 1), 6
NET = MLP((384, 64), num_outputs=2)
DIGITS = load_set("digits")
X, UNSEEN = DIGITS.x_train[:N], DIGITS.x_train[100:220]


def _trained(images, *, optimizer=None, steps=150, seed=0):
    params = before = NET.init_params(jax.random.key(seed), SHAPE)
    optimizer = optimizer or optax.sgd(0.1)
    y = jnp.arange(N) % 2

    def loss(params):
        logits = NET.apply_fn(params, jnp.asarray(images, jnp.float32))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        start = params, optimizer.init(params)
        return jax.lax.scan(step, start, length=steps)[0][0]

    return before, train(params), jax.grad(loss)(before)


@pytest.fixture(scope="module")
def trained():
    return _trained(X)


@pytest.fixture(scope="module")
def audited(trained):
    before, after, _ = trained
    return ntk_privacy.audit(after, before=before, images=X, unseen=UNSEEN)


def test_every_image_of_ordinary_training_is_certain(audited):
    assert audited.verdict.sentence == (
        f"{N} of {N} training images can be computed from these weights; {N} are "
        "certain."
    )
    assert (audited.num_recovered, audited.num_certified) == (N, N)
    assert audited.estimated_num_images == N
    assert audited.pairs.psnr.min() > 60
    assert audited.settings["evidence"] == "weights before and after"


def test_controls_find_nothing(audited):
    assert audited.controls.wrong_weights == 0
    assert audited.controls.shuffled_recovered == 0
    identified = audited.controls.identified
    assert identified.num_decoys == 99
    assert identified.ranks.tolist() == [1] * N
    assert np.allclose(identified.p_values, 0.01)


def test_members_are_told_from_others(audited):
    assert audited.membership.area > 0.95
    assert audited.membership.rates[1].true_positives is None


def test_results_are_one_line_and_pictures_in_notebooks(audited):
    assert repr(audited) == f"<audit: {audited.verdict.sentence}>"
    assert repr(audited.reconstruction) == (
        f"<{N} images of {N} that the weights show, {N} certified: exact>"
    )
    for one in (audited, audited.reconstruction):
        html = one._repr_html_()
        assert html.count("<img") == N
        assert html.count('src="data:image/png;base64,') == N
    assert audited.verdict.sentence in audited._repr_html_()


def test_the_same_without_images_counts_certificates(trained):
    before, after, _ = trained
    found = ntk_privacy.audit(after, before=before, image_shape=SHAPE)
    assert found.num_recovered is None
    assert found.num_certified == N
    assert found.pairs is None
    assert found.membership is None
    assert "with certainty" in found.verdict.sentence


def test_a_gradient_is_read_alike(trained):
    before, _, gradient = trained
    found = ntk_privacy.audit(gradient=gradient, before=before, images=X)
    assert (found.num_recovered, found.num_certified) == (N, N)
    assert "from this gradient" in found.verdict.sentence
    assert found.controls.wrong_weights == 0


@pytest.mark.parametrize("told", [False, True])
def test_units_of_normalised_images_are_found_or_told(told):
    mean, deviation = 0.3, 0.25
    before, after, _ = _trained((X - mean) / deviation)
    bounds = (-mean / deviation, (1 - mean) / deviation) if told else None
    found = ntk_privacy.audit(
        after, before=before, images=X, unseen=UNSEEN, bounds=bounds
    )
    assert found.num_recovered == N
    assert any("in other units" in note for note in found.notes) != told
    # Membership is asked in the network's units.
    assert found.membership.area > 0.95


def test_other_private_images_are_not_claimed(trained):
    before, after, _ = trained
    found = ntk_privacy.audit(after, before=before, images=UNSEEN[:10])
    assert found.num_recovered < 10
    assert found.num_certified == N
    recovered = found.pairs.psnr >= 25
    assert found.num_recovered == np.sum(recovered)


@pytest.mark.parametrize("seed", range(10))
def test_of_unrelated_weights_no_image_is_claimed(seed):
    first, second = (
        jax.tree.map(
            lambda leaf, s=s: (
                leaf
                + 0.05 * jax.random.normal(jax.random.key(s), leaf.shape, leaf.dtype)
            ),
            NET.init_params(jax.random.key(s), SHAPE),
        )
        for s in (2 * seed + 1, 2 * seed + 2)
    )
    found = ntk_privacy.audit(second, before=first, images=X)
    assert (found.num_recovered, found.num_certified) == (0, 0)
    assert "nothing found by these attacks" in found.verdict.sentence
    assert found.verdict.contradicted


def test_another_optimizer_is_seen_and_nothing_claimed():
    with jax.numpy_dtype_promotion("standard"):  # as optax counts its steps
        before, after, _ = _trained(X, optimizer=optax.adam(1e-3))
    found = ntk_privacy.audit(after, before=before, images=X, minutes=0.01)
    assert found.num_certified == 0
    assert found.verdict.word != "certain"


def test_copies_of_a_distilled_set_are_counted():
    made = np.concatenate([X[:2] * 0.99, np.zeros((3, *SHAPE))])
    found = ntk_privacy.audit(distilled=made, images=X)
    assert found.nearest.num_copies == 2
    assert found.verdict.sentence == (
        "2 of 5 distilled images are copies of private images."
    )
    assert found.num_recovered is None
    # Of the three that are alike the network is trained on one; two are private ones.
    assert (found.decoded.own, found.decoded.originals) == (3, 2)
    assert any("3 of its 5 images come back" in text for text in found.verdict.rests_on)


def test_shuffled_units_keep_every_unit_with_its_bias():
    params = NET.init_params(jax.random.key(3), SHAPE)
    layer = params["Dense_0"]
    layer = {**layer, "bias": layer["kernel"].sum(axis=0)}
    other = controls.shuffled_units({"Dense_0": layer}, key=jax.random.key(0))
    kernel, bias = other["Dense_0"]["kernel"], other["Dense_0"]["bias"]
    assert np.allclose(kernel.sum(axis=0), bias, atol=1e-5)
    assert not np.allclose(kernel, layer["kernel"])
    assert np.allclose(np.sort(bias), np.sort(layer["bias"]))


def test_nothing_reconstructed_comes_last_among_decoys():
    given = given_images.read(X, name="images")
    found = controls.among_decoys(given, np.zeros((0, *SHAPE)))
    assert np.allclose(found.p_values, 1)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "There is nothing to audit"),
        ({"images": X}, "There is nothing to audit"),
        ({"distilled": X}, "give images too"),
        ({"before": {}}, "before alone shows nothing"),
        ({"after": {}, "before": {}, "seeds": (0, 9)}, "give one of them"),
        ({"after": {}, "seeds": (9, 3)}, "seeds=9:3 must be"),
        ({"after": {}, "image_shape": (8, 8)}, "height, width, channels"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(given, told):
    with pytest.raises(ValueError, match=told):
        auditing.case(**given)


def test_faulty_weights_are_refused(trained):
    before, after, _ = trained
    with pytest.raises(ValueError, match="equal"):
        ntk_privacy.audit(after, before=after, image_shape=SHAPE)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, after)
    with pytest.raises(ValueError, match=r"NaN|finite"):
        ntk_privacy.audit(broken, before=before, image_shape=SHAPE)
    with pytest.raises(ValueError, match="minutes"):
        ntk_privacy.audit(after, before=before, image_shape=SHAPE, minutes=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flax", "torch"])
def test_the_weights_before_are_found_by_their_seed(kind):
    from ntk_privacy.reconstruction.initialisation import TorchLinear

    params = NET.init_params(jax.random.key(77), SHAPE)
    if kind == "torch":
        sizes = {k: v["kernel"].shape for k, v in params.items()}
        drawn = TorchLinear(sizes)(77)
        params = {
            k: {
                "kernel": jnp.asarray(drawn[f"{k}.weight"].T),
                "bias": jnp.asarray(drawn[f"{k}.bias"]),
            }
            for k in params
        }
    y = jnp.arange(N) % 2
    x = jnp.asarray(X, jnp.float32)

    def loss(p):
        logits = NET.apply_fn(p, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    after, step = params, jax.jit(jax.grad(loss))
    for _ in range(150):
        after = jax.tree.map(lambda a, g: a - 0.1 * g, after, step(after))
    found = ntk_privacy.audit(after, seeds=(0, 500), images=X)
    assert found.settings["seed"] == 77
    assert found.num_certified == N


def test_units_are_found_of_estimates_too(audited, trained):
    """What is no certificate is not called nothing for the units it is in."""
    before, after, _ = trained
    case = auditing.case(after, before=before, images=X)
    found = audited.reconstruction._replace(
        images=(X[::-1] - 0.3) / 0.25,
        verdict=Verdict("approximate", "By a search."),
        **uncertain(N),
    )
    notes = []
    attacked = Attacked(found, case.evidence, (), ())
    told = comparison.compared(case, attacked, notes)
    assert told.counts.recovered == N
    assert told.counts.certain == told.counts.certified == 0
    assert len(notes) == 1
    other = attacked._replace(found=found._replace(images=UNSEEN[:N] * 3.0 - 1))
    assert comparison.compared(case, other, notes).counts.recovered == 0


def test_what_was_trained_on_is_not_unseen():
    x = np.random.default_rng(0).random((3, 8, 8, 1)).astype(np.float32)
    with pytest.raises(ValueError, match="unseen images are all among images"):
        cases.case(distilled=x, images=x, unseen=x)
    more = np.concatenate([x[:1], 1 - x])
    found = cases.case(distilled=x, images=x, unseen=more)
    assert len(found.unseen.images) == 3
    assert "1 of the unseen images is among images" in found.notes[0]


def test_decoys_are_of_a_class_only_where_classes_have_the_same_names():
    x = np.random.default_rng(0).random((100, 2, 2, 1))
    one = given_images.GivenImages(x[:1], np.zeros(1, np.int32), "", ("cat",))
    for name, told in (("cat", "of its class"), ("dog", "unseen images")):
        zeros = np.zeros(100, np.int32)
        other = given_images.GivenImages(x, zeros, "", (name,))
        found = controls.among_decoys(one, x[:1], other)
        assert found.decoys.endswith(told)


def test_estimates_outlive_a_worse_search():
    def made(word, explained):
        nothing = unit_verdict.nothing((2, 2, 1), Verdict(word, "", explained))
        return nothing._replace(images=np.zeros((1, 2, 2, 1)))

    units = made("approximate", 0.99)
    for word, share in (("assumptions do not hold", 1.0), ("approximate", 0.5)):
        assert attack._better(units, made(word, share)) is units
    search = made("approximate", 0.995)
    assert attack._better(units, search) is search
    assert attack._better(None, search) is search
