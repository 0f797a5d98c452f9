"""The attack's loss: kernel form, parameter form and Jacobians must tell the same."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import _linalg, _tree
from ntk_privacy.kernels import empirical, stationarity, structured
from ntk_privacy.models import MLP
from ntk_privacy.training import linearized

SHAPE = (4, 4, 1)

# Op by op, compiling takes ten times as long.
parameter_form = jax.jit(stationarity.parameter_form, static_argnums=0)
kernel_form = jax.jit(stationarity.kernel_form, static_argnums=0)
normal_equations = jax.jit(stationarity.normal_equations, static_argnums=0)


def _noisy(params, key, size):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    pairs = zip(keys, leaves, strict=True)
    return jax.tree.unflatten(
        tree, [a + size * jax.random.normal(k, a.shape, a.dtype) for k, a in pairs]
    )


def _setup(num_outputs, points, use_bias=True, parametrization="standard"):
    model = MLP((16, 12), num_outputs, use_bias, parametrization)
    params_0 = model.init_params(jax.random.key(0), SHAPE, jnp.float64)
    params_t = jax.jit(_noisy)(params_0, jax.random.key(1), 0.1)
    feats = stationarity.features(params_0, params_t, points)
    images = jax.random.normal(jax.random.key(2), (3, *SHAPE))
    duals = jax.random.normal(jax.random.key(3), (len(points), 3, num_outputs))
    return model, feats, _tree.sub(params_t, params_0), images, duals


def _jacobian(model, feats, images, sharpness):
    """All gradients as rows, over points, then images, then outputs."""

    def apply_fn(p, x):
        return model.apply_fn(p, x, sharpness)

    rows = [
        empirical.jacobian(apply_fn, params, images).reshape(
            len(images) * model.num_outputs, -1
        )
        for params in feats
    ]
    return jnp.concatenate(rows)


def _vector(tree):
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])


CASES = [
    # outputs, points, biases, parametrization, sharpness
    (1, (0.0, 0.3, 1.0), False, "standard", None),
    (10, (0.5,), (True, False, True), "standard", 20.0),
    (3, (1.0,), True, "ntk", 5.0),
]


@pytest.mark.parametrize(("num_outputs", "points"), [(1, (0.0, 1.0)), (3, (0.5,))])
def test_a_layer_left_out_of_the_change_is_left_out_of_every_form(num_outputs, points):
    model, feats, change, images, duals = _setup(num_outputs, points, True, "standard")
    rows = jax.jit(lambda x: _jacobian(model, feats, x, None))(images)
    # The Jacobian's columns run over leaves in the order of `_vector`.
    mask = _vector(
        {
            name: jax.tree.map(lambda a, n=name: jnp.full_like(a, n != "Dense_0"), leaf)
            for name, leaf in change.items()
        }
    )
    assert 0 < mask.sum() < mask.size
    rows = rows * mask[None, :]
    residual = _vector(change) * mask - duals.reshape(-1) @ rows
    part = {name: leaf for name, leaf in change.items() if name != "Dense_0"}
    norm = _tree.squared_norm(part)
    want = residual @ residual
    np.testing.assert_allclose(
        parameter_form(model.apply_fn, feats, part, images, duals),
        want,
        rtol=1e-10,
    )
    np.testing.assert_allclose(
        kernel_form(model, feats, part, images, duals, squared_norm=norm),
        want,
        rtol=1e-10,
    )
    kernel, projection = normal_equations(model, feats, part, images)
    chex.assert_trees_all_close(kernel, rows @ rows.T, rtol=1e-9, atol=1e-10)
    chex.assert_trees_all_close(
        projection, rows @ (_vector(change) * mask), rtol=1e-9, atol=1e-10
    )


def test_gram_has_the_value_and_both_derivatives_of_the_product():
    a, t = jax.random.normal(jax.random.key(0), (2, 4, 7))
    weight = jax.random.normal(jax.random.key(1), (4, 4))
    product = lambda a: a @ a.T  # noqa: E731
    chex.assert_trees_all_close(
        jax.jvp(_linalg.gram, (a,), (t,)), jax.jvp(product, (a,), (t,)), rtol=1e-12
    )
    chex.assert_trees_all_close(
        jax.grad(lambda a: jnp.sum(weight * _linalg.gram(a)))(a),
        jax.grad(lambda a: jnp.sum(weight * product(a)))(a),
        rtol=1e-12,
    )


@pytest.mark.parametrize(
    ("num_outputs", "points", "use_bias", "parametrization", "sharpness"), CASES
)
def test_kernel_and_parameter_form_agree_in_value_and_gradients(
    num_outputs, points, use_bias, parametrization, sharpness
):
    model, feats, change, images, duals = _setup(
        num_outputs, points, use_bias, parametrization
    )
    sharp = None if sharpness is None else jnp.asarray(sharpness)

    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def by_parameters(images, duals):
        return parameter_form(
            model.apply_fn, feats, change, images, duals, sharpness=sharp
        )

    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def by_kernel(images, duals):
        return kernel_form(
            model,
            feats,
            change,
            images,
            duals,
            squared_norm=_tree.squared_norm(change),
            sharpness=sharp,
        )

    want = jax.jit(by_parameters)(images, duals)
    chex.assert_trees_all_close(
        jax.jit(by_kernel)(images, duals), want, rtol=1e-9, atol=1e-10
    )
    # And both are the squared norm of the residual, Jacobian and all.
    rows = jax.jit(lambda x: _jacobian(model, feats, x, sharp))(images)
    residual = _vector(change) - duals.reshape(-1) @ rows
    np.testing.assert_allclose(want[0], residual @ residual, rtol=1e-10)
    kernel, projection = jax.jit(
        lambda x: normal_equations(model, feats, change, x, sharpness=sharp)
    )(images)
    chex.assert_trees_all_close(kernel, rows @ rows.T, rtol=1e-9, atol=1e-10)
    chex.assert_trees_all_close(
        projection, rows @ _vector(change), rtol=1e-9, atol=1e-10
    )


def test_features_lie_on_the_segment_and_its_ends_are_exact():
    params_0 = {"w": jnp.array([1.0, 0.1])}
    params_t = {"w": jnp.array([3.0, 0.3])}
    ends = stationarity.features(params_0, params_t, (0.0, 0.25, 1.0))
    chex.assert_trees_all_equal(ends[0], params_0)
    chex.assert_trees_all_equal(ends[2], params_t)
    chex.assert_trees_all_close(ends[1], {"w": jnp.array([1.5, 0.15])}, rtol=1e-12)


@functools.cache
def _linearized_run(num_outputs=1, width=80):
    model = MLP((width, width), num_outputs)
    # 12 x 12 pixels: wide enough on every side for `factor` to act.
    params_0 = model.init_params(jax.random.key(0), (12, 12, 1), jnp.float64)
    x = jax.random.normal(jax.random.key(1), (4, 12, 12, 1))
    y = jax.random.normal(jax.random.key(2), (4, num_outputs))
    kernel, outputs = jax.jit(
        lambda p: (
            structured.ntk(model, p, x, trace_outputs=False),
            model.apply_fn(p, x),
        )
    )(params_0)
    spectrum = linearized.decompose(kernel, outputs, y)
    duals = linearized.duals(spectrum, linearized.gradient_flow(0.02))
    params_t = jax.jit(
        lambda p, x, duals: linearized.params_at(model.apply_fn, p, x, duals)
    )(params_0, x, duals)
    return model, params_0, params_t, x, duals


@pytest.mark.parametrize("num_outputs", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_loss_is_zero_at_the_truth_of_a_linearized_run_and_best_duals_find_it(
    num_outputs,
):
    model, params_0, params_t, x, duals = _linearized_run(num_outputs)
    change = _tree.sub(params_t, params_0)
    norm = _tree.squared_norm(change)
    feats = stationarity.features(params_0, params_t, (0.0,))
    factored = stationarity.factor(change, tolerance=1e-12)
    assert isinstance(factored["Dense_0"]["kernel"], stationarity.Factored)
    assert isinstance(factored["Dense_1"]["kernel"], stationarity.Factored)
    assert factored["Dense_0"]["kernel"].left.shape == (144, 4)
    chex.assert_trees_all_close(
        factored["Dense_1"]["kernel"].left @ factored["Dense_1"]["kernel"].right,
        change["Dense_1"]["kernel"],
        atol=1e-10 * float(norm) ** 0.5,
    )
    chex.assert_trees_all_equal(
        factored["Dense_2"], change["Dense_2"]
    )  # a vector gains nothing
    loss = parameter_form(model.apply_fn, feats, change, x, duals[None])
    assert loss < 1e-24 * norm
    for step in (change, factored):
        loss = kernel_form(model, feats, step, x, duals[None], squared_norm=norm)
        assert abs(loss) < 1e-12 * norm
        kernel, projection = normal_equations(model, feats, step, x)
        best = stationarity.best_duals(kernel, projection, ridge=0.0)
        chex.assert_trees_all_close(best, duals.reshape(-1), rtol=1e-8)
    # Wrong images leave something unexplained.
    off = parameter_form(model.apply_fn, feats, change, x + 0.1, duals[None])
    assert off > 1e-3 * norm


def test_factored_change_gives_the_same_loss_and_gradient_away_from_the_truth():
    model, params_0, params_t, x, duals = _linearized_run()
    change = _tree.sub(params_t, params_0)
    feats = stationarity.features(params_0, params_t, (0.0, 1.0))
    both = jnp.stack([duals, 0.5 * duals])

    def loss(step, images):
        return kernel_form(
            model,
            feats,
            step,
            images,
            both,
            squared_norm=_tree.squared_norm(change),
            sharpness=jnp.asarray(10.0),
        )

    factored = stationarity.factor(change, tolerance=1e-12)
    grad = jax.jit(jax.value_and_grad(loss, argnums=1))
    chex.assert_trees_all_close(
        grad(factored, x + 0.2), grad(change, x + 0.2), rtol=1e-8, atol=1e-10
    )


def test_factor_leaves_full_rank_small_and_non_matrices_alone():
    change = {
        "full": jax.random.normal(jax.random.key(0), (70, 70)),
        "small": jnp.ones((20, 80)),
        "bias": jnp.ones(100),
    }
    chex.assert_trees_all_equal(stationarity.factor(change, tolerance=1e-10), change)


def test_best_duals_are_the_minimum_and_a_ridge_shrinks_them():
    model, feats, change, images, duals = _setup(2, (0.0, 1.0))
    kernel, projection = normal_equations(model, feats, change, images)

    def loss(duals):
        return kernel_form(
            model,
            feats,
            change,
            images,
            duals.reshape(2, 3, 2),
            squared_norm=_tree.squared_norm(change),
        )

    best = stationarity.best_duals(kernel, projection, ridge=0.0)
    slope = jax.jit(jax.grad(loss))
    scale = jnp.abs(slope(duals.reshape(-1))).max()
    assert jnp.abs(slope(best)).max() < 1e-8 * scale
    held = stationarity.best_duals(kernel, projection, ridge=0.1)
    assert loss(held) > loss(best)
    assert jnp.linalg.norm(held) < jnp.linalg.norm(best)
    # The ridge is relative to the mean diagonal.
    want = np.linalg.solve(
        kernel + 0.1 * np.mean(np.diag(kernel)) * np.eye(12), projection
    )
    chex.assert_trees_all_close(held, want, rtol=1e-9)
