"""The victim of the max-margin attack: its initialisation and its descent."""

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from ntk_privacy.models import MLP
from ntk_privacy.training import logistic

SHAPE = (3, 3, 1)


def _setup(n=6, width=8):
    model = logistic.network(width)
    params = logistic.init_params(
        model, jax.random.key(0), SHAPE, init_scale=0.5, dtype=jnp.float64
    )
    x = jax.random.normal(jax.random.key(1), (n, *SHAPE))
    return model, params, x, np.arange(n) % 2


def test_initial_parameters_follow_the_published_rule():
    model = logistic.network(200)
    params = logistic.init_params(model, jax.random.key(0), (8, 8, 1))
    assert [sorted(params[f"Dense_{i}"]) for i in range(3)] == [
        ["bias", "kernel"],
        ["kernel"],
        ["kernel"],
    ]
    first = params["Dense_0"]
    for leaf in jax.tree.leaves(first):
        assert np.std(leaf) == pytest.approx(1e-4, rel=0.15)
    # Weights and bias are separate draws.
    assert not np.isin(first["bias"], first["kernel"]).any()
    for i in (1, 2):
        kernel = np.asarray(params[f"Dense_{i}"]["kernel"])
        assert np.abs(kernel).max() <= 200**-0.5
        assert np.std(kernel) == pytest.approx((3 * 200) ** -0.5, rel=0.1)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        params, model.init_params(jax.random.key(0), (8, 8, 1))
    )


def test_the_network_is_homogeneous_of_degree_three_in_its_parameters():
    model, params, x, _ = _setup()
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    chex.assert_trees_all_close(
        model.apply_fn(doubled, x), 8 * model.apply_fn(params, x), rtol=1e-12
    )


def test_epochs_are_plain_gradient_descent_on_binary_cross_entropy():
    model, params, x, y = _setup()
    got = logistic.train(model, params, x, y, learning_rate=0.1, max_epochs=5)

    @jax.jit
    @jax.value_and_grad
    def loss(p):
        logits = model.apply_fn(p, x)[:, 0]
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, y.astype(float)))

    for _ in range(5):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, loss(params)[1])
    chex.assert_trees_all_close(got.params, params, rtol=1e-12)
    assert got.loss == pytest.approx(float(loss(params)[0]), rel=1e-12)
    assert (got.epochs, got.converged) == (5, False)


def test_labels_zero_and_minus_one_are_the_same_class():
    model, params, x, y = _setup()
    one = logistic.train(model, params, x, y, max_epochs=5)
    column = (2.0 * y - 1)[:, None]
    chex.assert_trees_all_equal(
        one, logistic.train(model, params, x, column, max_epochs=5)
    )


def test_a_resumed_training_ends_with_the_same_bits():
    model, params, x, y = _setup()
    whole = logistic.train(model, params, x, y, max_epochs=30, chunk=10)
    seen = []
    half = logistic.train(
        model,
        params,
        x,
        y,
        max_epochs=20,
        chunk=10,
        callback=lambda done, state, metrics: seen.append((done, state)),
    )
    assert [done for done, _ in seen] == [10, 20]
    again = logistic.train(
        model, params, x, y, max_epochs=30, chunk=10, state=seen[0][1]
    )
    chex.assert_trees_all_equal(again, whole)
    assert half.loss > whole.loss


def test_training_stops_at_the_first_parameters_below_the_stop_loss():
    model, params, x, y = _setup()
    run = logistic.train(
        model, params, x, y, learning_rate=0.1, stop_loss=0.5, max_epochs=10_000
    )
    assert run.converged
    assert run.loss < 0.5
    before = logistic.train(
        model, params, x, y, learning_rate=0.1, max_epochs=run.epochs - 1
    )
    assert before.loss >= 0.5


def test_preprocess_subtracts_the_mean_of_every_pixel():
    images = np.random.default_rng(0).uniform(size=(5, *SHAPE)).astype(np.float32)
    centred, mean = logistic.preprocess(images)
    assert centred.dtype == mean.dtype == np.float32
    np.testing.assert_allclose(centred.mean(0), 0, atol=1e-7)
    np.testing.assert_allclose(centred + mean[None], images, atol=1e-7)
    # A mean per channel that is already gone makes no difference.
    np.testing.assert_allclose(
        logistic.preprocess(images - np.float32(0.3))[0], centred, atol=1e-6
    )


def test_bad_input_is_told_in_a_sentence(monkeypatch):
    model, params, x, y = _setup()
    with pytest.raises(ValueError, match="holds 0, 1, 2: use labels"):
        logistic.train(model, params, x, np.asarray([0, 1, 2, 0, 1, 2]))
    with pytest.raises(ValueError, match="one label per image"):
        logistic.train(model, params, x, np.ones((6, 2)))
    with pytest.raises(ValueError, match="x_train has 6 rows, y_train has 5"):
        logistic.train(model, params, x, y[:5])
    with pytest.raises(ValueError, match="NaN or infinite values in 1 rows"):
        logistic.train(model, params, x.at[0, 0, 0, 0].set(jnp.nan), y)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="x_train has dtype uint8: convert"):
        logistic.train(model, params, np.asarray(x).astype(np.uint8), y)
    # In bytes the mean would wrap around.
    with pytest.raises(ValueError, match="images has dtype uint8: convert"):
        logistic.preprocess(np.full((2, 4, 4, 1), 200, np.uint8))
    with pytest.raises(ValueError, match=r"learning_rate=0\.0 must be above 0"):
        logistic.train(model, params, x, y, learning_rate=0.0)
    with pytest.raises(ValueError, match="lower learning_rate"):
        logistic.train(model, params, x, y, learning_rate=1e150, max_epochs=20)
    with pytest.raises(ValueError, match="num_outputs=3"):
        logistic.train(MLP((8, 8), 3), params, x, y)
    with pytest.raises(ValueError, match=r"init_scale=0\.0 must be above 0"):
        logistic.init_params(model, jax.random.key(0), SHAPE, init_scale=0.0)
