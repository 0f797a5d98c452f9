"""Several outputs: exact images, duals and gates, or nothing is certified."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from ntk_privacy.kernels import structured
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import algebraic, gated_rows, low_rank, sparse_rows
from ntk_privacy.training import linearized

SHAPE = (5, 5, 1)


def _trained(num_images=6, width=128, num_outputs=3, loss=1e-6):
    keys = jax.random.split(jax.random.key(0), 3)
    x = 0.5 * jax.random.normal(keys[0], (num_images, *SHAPE))
    classes = jnp.arange(num_images) % num_outputs
    y = jax.nn.one_hot(classes, num_outputs) - 1.0 / num_outputs
    model = MLP((width, width), num_outputs)
    params_0 = model.init_params(keys[1], SHAPE, jnp.float64)
    kernel = structured.ntk(model, params_0, x, trace_outputs=False)
    spectrum = linearized.decompose(kernel, model.apply_fn(params_0, x), y)
    time = linearized.time_at_loss(spectrum, loss)
    duals = linearized.duals(spectrum, linearized.gradient_flow(time))
    params_t = linearized.params_at(model.apply_fn, params_0, x, duals)
    return model, params_0, params_t, x, duals


def _decode(params_0, params_t, **options):
    return algebraic.reconstruct(
        params_0, params_t, key=jax.random.key(3), image_shape=SHAPE, **options
    )


@pytest.fixture(scope="module")
def victim():
    return _trained()


def test_images_duals_and_gates_are_exact(victim):
    model, params_0, params_t, x, duals = victim
    found = _decode(params_0, params_t)
    assert found.estimated_num_images == len(x)
    assert bool(found.certified.all())
    distance = jnp.sum((x[:, None] - found.images[None]) ** 2, axis=(2, 3, 4))
    order = np.asarray(distance.argmin(1))
    assert sorted(order) == list(range(len(x)))
    chex.assert_trees_all_close(found.images[order], x, atol=1e-8)
    chex.assert_trees_all_close(found.duals[order], duals, rtol=1e-6)
    trace = structured.forward(model, params_0, x)
    chex.assert_trees_all_close(found.activations[order], trace.inputs[1], atol=1e-8)
    np.testing.assert_array_equal(found.gates[order], trace.slopes[1] > 0)


def test_early_stopping_changes_nothing(victim):
    _, params_0, params_t, x, _ = _trained(loss=1e-2)
    found = _decode(params_0, params_t)
    distance = jnp.sum((x[:, None] - found.images[None]) ** 2, axis=(2, 3, 4))
    assert float(distance.min(1).max()) < 1e-12


@pytest.mark.parametrize("layer", ["Dense_0", "Dense_1"])
def test_nothing_false_is_certified_when_weights_are_corrupted(victim, layer):
    _, params_0, params_t, x, _ = victim
    change = params_t[layer]["kernel"] - params_0[layer]["kernel"]
    noise = jax.random.normal(jax.random.key(5), change.shape) * jnp.std(change)
    broken = {
        **params_t,
        layer: {**params_t[layer], "kernel": params_t[layer]["kernel"] + noise},
    }
    try:
        found = _decode(params_0, broken, num_images=len(x))
    except ValueError:
        return  # refused: the messages are tested with one output
    distance = jnp.sum((x[:, None] - found.images[None]) ** 2, axis=(2, 3, 4))
    wrong = np.asarray(distance.min(0)) > 1e-2
    assert not np.any(np.asarray(found.certified) & wrong)


def test_too_few_units_name_the_other_attack():
    _, params_0, params_t, x, _ = _trained(num_images=6, width=30)
    with pytest.raises(ValueError, match=r"kkt\.reconstruct"):
        _decode(params_0, params_t, num_images=len(x))


def _one_step(seed, classes, width, dtype=jnp.float32, multiple=None):
    """One cross-entropy step on digits of these classes, from known weights.

    The last digit may be a multiple of the first.
    """
    digits = load_digits()
    rng = np.random.default_rng(seed)
    chosen = [rng.choice(np.flatnonzero(digits.target == c)) for c in classes]
    x = jnp.asarray(digits.images[chosen][..., None] / 16.0, dtype)
    if multiple:
        x = jnp.concatenate([x[:-1], multiple * x[:1]])
    model = MLP((width, width), 10)
    params_0 = model.init_params(jax.random.key(seed), (8, 8, 1), dtype)

    def loss(params):
        return -jnp.mean(
            jax.nn.log_softmax(model.apply_fn(params, x))[
                jnp.arange(len(x)), jnp.asarray(classes)
            ]
        )

    gradient = jax.grad(loss)(params_0)
    params_t = jax.tree.map(lambda p, g: p - 0.1 * g, params_0, gradient)
    return params_0, params_t, x


@pytest.mark.parametrize("seed", [0, 4])
def test_sums_of_rows_and_images_that_close_few_units_are_told(seed):
    params_0, params_t, x = _one_step(seed, [0, 1, 2, 3, 4, 5, 7], 256)
    found = algebraic.reconstruct(
        params_0, params_t, key=jax.random.key(3), image_shape=(8, 8, 1)
    )
    assert bool(found.certified.all())
    distance = jnp.sum((x[:, None] - found.images[None]) ** 2, axis=(2, 3, 4))
    assert sorted(np.asarray(distance.argmin(1))) == list(range(7))
    assert float(distance.min(1).max()) < 1e-6


def _sparse(rank, columns):
    """Rows that vanish on half of the columns, and a basis of their span."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((rank, columns)) * (rng.random((rank, columns)) < 0.5)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    # Turned at random: no row is a vector of the basis.
    turn = rng.standard_normal((rank, rank))
    return rows, np.linalg.qr(rows.T @ turn)[0].T


@pytest.mark.parametrize("parts", [(0, 1), (0, 1, 2)])
def test_a_mixture_is_taken_apart(parts):
    rows, basis = _sparse(7, 256)
    mixture = np.sum(
        rows[list(parts)] * np.array([[0.7], [0.6], [0.5]])[: len(parts)], 0
    )
    # It vanishes on a unit by chance as well.
    small = 1e-4 / 16
    mixture[np.argmin(np.where(mixture == 0.0, np.inf, np.abs(mixture)))] = 0.0
    space = sparse_rows._shared_space(mixture, basis, small)
    assert len(space) == len(parts)
    apart = sparse_rows.sparsest(space @ basis, small)
    likeness = np.abs(apart @ rows[list(parts)].T)
    np.testing.assert_allclose(likeness.max(0), 1.0, atol=1e-9)
    assert len(sparse_rows._shared_space(rows[0], basis, small)) == 1


def test_the_parts_of_a_mixture_are_finished_and_it_is_dropped():
    rows, basis = _sparse(7, 256)
    mixture = 0.7 * rows[3] + 0.6 * rows[5]
    place = int(np.sum(mixture == 0.0)) - 2
    found = sparse_rows.finish(mixture / np.linalg.norm(mixture), basis, place, 1e-4)
    pool = sparse_rows.merge(sparse_rows.empty(256), found, 7, 1e-3)
    likeness = np.abs(pool.rows @ rows[[3, 5]].T)
    np.testing.assert_allclose(likeness.max(0), 1.0, atol=1e-9)
    assert len(pool.rows) == 2


def test_a_mixture_that_its_activations_contradict_is_replaced():
    rows, _ = _sparse(5, 256)
    rng = np.random.default_rng(1)
    sources = np.concatenate([np.abs(rng.standard_normal((5, 40))), np.ones((5, 1))], 1)
    left, values, right = np.linalg.svd(sources.T @ rows, full_matrices=False)
    factors = low_rank.Factors(
        jnp.asarray(left[:, :5]), values, jnp.asarray(right[:5]), 1e6
    )

    def gates_of(activations, lasts):
        unit = np.asarray(activations) / np.maximum(np.asarray(lasts)[:, None], 1e-9)
        nearest = np.argmin(
            np.linalg.norm(unit[:, None] - sources[None, :, :-1], axis=2), axis=1
        )
        return rows[nearest] != 0

    wrong = rows.copy()
    wrong[2] = 0.95 * rows[2] + 0.3 * rows[4]
    wrong /= np.linalg.norm(wrong, axis=1, keepdims=True)
    pool = sparse_rows.Pool(wrong, np.zeros(5), np.sum(wrong == 0, 1).astype(float))
    mended, shares = gated_rows._contradicted(pool, factors, gates_of, 60, 1e-4)
    assert np.max(shares) < 1e-6
    np.testing.assert_allclose(np.abs(np.sum(mended.rows * rows, 1)), 1.0, atol=1e-9)


def test_multiples_with_other_labels_are_not_certified():
    """Two multiples of one image keep two directions; no weights tell their scales."""
    params_0, params_t, x = _one_step(1, (3, 1, 4, 8), 256, multiple=1.5)
    found = algebraic.reconstruct(
        params_0, params_t, key=jax.random.key(3), image_shape=(8, 8, 1)
    )
    assert found.estimated_num_images == 4
    assert int(found.certified.sum()) == 2
    assert "2 not certified: they share every gate" in found.verdict.reason
    for image in found.images[found.certified]:
        apart = jnp.linalg.norm((x[1:3] - image[None]).reshape(2, -1), axis=1)
        assert apart.min() < 1e-3 * jnp.linalg.norm(image)


def test_one_image_is_read():
    params_0, params_t, x = _one_step(0, (5,), 128)
    found = algebraic.reconstruct(
        params_0, params_t, key=jax.random.key(3), image_shape=(8, 8, 1)
    )
    assert found.verdict.word == "exact"
    chex.assert_trees_all_close(found.images, x, atol=1e-3)
