"""Closed forms against the iterations they replace."""

import functools
import inspect

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy import _tree
from ntk_privacy.kernels import structured
from ntk_privacy.models import MLP
from ntk_privacy.training import linearized


@functools.cache
def _setup(num_outputs=1, n=4):
    model = MLP((16, 16), num_outputs)
    params_0 = model.init_params(jax.random.key(0), (4, 4, 1), jnp.float64)
    x = jax.random.normal(jax.random.key(1), (n, 4, 4, 1))
    y = jax.random.normal(jax.random.key(2), (n, num_outputs))
    kernel = structured.ntk(model, params_0, x, trace_outputs=False)
    outputs = model.apply_fn(params_0, x)
    spectrum = linearized.decompose(kernel, outputs, y)
    square = kernel.transpose(0, 2, 1, 3).reshape(y.size, y.size)
    return model, params_0, x, y, spectrum, np.asarray(square), np.asarray(outputs)


def _all_of(model, params_0, x, y, spectrum, gain):
    """Predictions, duals and parameters that the closed form gives."""
    duals = linearized.duals(spectrum, gain)
    params = linearized.params_at(model.apply_fn, params_0, x, duals)
    return y - linearized.residuals(spectrum, gain), duals, params


@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_are_those_of_optax_sgd_on_the_linearized_model(num_outputs, momentum):
    model, params_0, x, y, spectrum, _, _ = _setup(num_outputs)
    rate = 0.3 / float(spectrum.eigenvalues[-1])
    # optax's trace holds the sum of gradients, so it is the recursion of heavy ball.
    optimizer = optax.sgd(rate, momentum=momentum or None)

    def loss(params):
        out = linearized.apply_linearized(model.apply_fn, params_0, params, x)
        return 0.5 * jnp.sum((out - y) ** 2)

    @jax.jit
    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    carry, done = (params_0, optimizer.init(params_0)), 0
    closed = jax.jit(
        lambda k: _all_of(
            model,
            params_0,
            x,
            y,
            spectrum,
            linearized.gradient_descent(k, learning_rate=rate, momentum=momentum),
        )
    )
    for steps in (0, 1, 2, 7, 400):
        carry, _ = jax.lax.scan(step, carry, length=steps - done)
        done = steps
        predictions, duals, params = closed(steps)
        out = linearized.apply_linearized(model.apply_fn, params_0, carry[0], x)
        chex.assert_trees_all_close(predictions, out, rtol=1e-5, atol=1e-9)
        chex.assert_trees_all_close(
            _tree.sub(params, params_0),
            _tree.sub(carry[0], params_0),
            rtol=1e-5,
            atol=1e-10,
        )
        if steps == 0:
            assert not duals.any()
        gain = linearized.gradient_descent(steps, learning_rate=rate, momentum=momentum)
        np.testing.assert_allclose(
            linearized.loss_at(spectrum, gain), loss(carry[0]) / y.size, rtol=1e-5
        )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps", [0, 1, 5, 10_000, 1_000_000])
def test_duals_are_those_of_the_scalar_recursion(momentum, steps):
    values = np.asarray([0.0, 1e-3, 0.03, 1.0])
    a = velocity = np.zeros(4)
    for _ in range(min(steps, 10_000)):
        velocity = momentum * velocity + 0.1 * (1 - values * a)
        a = a + velocity
    if steps == 1_000_000:
        # All have converged but the null direction, whose dual grows.
        a = np.asarray([1e5 / (1 - momentum), 1e3, 1 / 0.03, 1.0])
    gain = linearized.gradient_descent(steps, learning_rate=0.1, momentum=momentum)
    np.testing.assert_allclose(gain(jnp.asarray(values)), a, rtol=2e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_tiny_steps_are_not_rounded_off_in_float32(momentum):
    # 1 - 3e-8 is 1 in float32.
    values = np.asarray([3e-3, 0.1, 7.0])
    gain = linearized.gradient_descent(1_000_000, learning_rate=1e-5, momentum=momentum)
    got = gain(jnp.asarray(values, jnp.float32))
    chex.assert_type(got, jnp.float32)
    np.testing.assert_allclose(got, gain(jnp.asarray(values)), rtol=1e-4)


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_flow_is_the_matrix_exponential_and_the_limit_of_small_steps(num_outputs):
    model, params_0, x, y, spectrum, square, f0 = _setup(num_outputs)
    time = 2.0 / float(spectrum.eigenvalues[-1])
    predictions, duals, params = _all_of(
        model, params_0, x, y, spectrum, linearized.gradient_flow(time)
    )
    decay = np.asarray(jax.scipy.linalg.expm(jnp.asarray(-square * time)))
    left = decay @ (np.asarray(y) - f0).reshape(-1)
    chex.assert_trees_all_close((y - predictions).reshape(-1), left, rtol=1e-8)
    want = np.linalg.solve(square, (np.asarray(y) - f0).reshape(-1) - left)
    chex.assert_trees_all_close(duals.reshape(-1), want, rtol=1e-8)
    # The parameters give these predictions.
    out = linearized.apply_linearized(model.apply_fn, params_0, params, x)
    chex.assert_trees_all_close(out, predictions, rtol=1e-8, atol=1e-10)
    small = linearized.gradient_descent(200_000, learning_rate=time / 200_000)
    chex.assert_trees_all_close(linearized.duals(spectrum, small), duals, rtol=1e-4)


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_convergence_solves_the_kernel_system_and_fits_the_labels(num_outputs):
    model, params_0, x, y, spectrum, square, f0 = _setup(num_outputs)
    want = np.linalg.solve(square, (np.asarray(y) - f0).reshape(-1))
    for gain in (
        linearized.gradient_flow(jnp.inf),
        linearized.gradient_flow(1e12),
        linearized.gradient_descent(
            2**31 - 1,
            learning_rate=0.5 / float(spectrum.eigenvalues[-1]),
            momentum=0.5,
        ),
    ):
        predictions, duals, params = _all_of(model, params_0, x, y, spectrum, gain)
        chex.assert_trees_all_close(duals.reshape(-1), want, rtol=1e-7)
        chex.assert_trees_all_close(predictions, y, atol=1e-9)
        out = linearized.apply_linearized(model.apply_fn, params_0, params, x)
        chex.assert_trees_all_close(out, y, atol=1e-9)
    start = linearized.gradient_flow(0.0)
    assert not linearized.duals(spectrum, start).any()
    chex.assert_trees_all_close(linearized.residuals(spectrum, start), y - f0)


def test_a_null_direction_stays_finite_at_convergence():
    spectrum = linearized.Spectrum(
        jnp.asarray([0.0, 1e-30, 1.0]), jnp.eye(3), jnp.asarray([0.0, 0.0, 2.0]), 1
    )
    duals = linearized.duals(spectrum, linearized.gradient_flow(jnp.inf))
    chex.assert_trees_all_close(duals, jnp.asarray([[0.0], [0.0], [2.0]]))


def _singular(kind):
    """Images, labels and a network whose kernel of them is singular."""
    x = jax.random.normal(jax.random.key(3), (6, 4, 4, 1))
    y = jnp.asarray([-1.0, 1.0, 1.0, -1.0, 1.0, -1.0])[:, None]
    if kind == "an image twice":
        return x.at[5].set(x[1]), y, MLP((32, 32))
    if kind == "two black images":
        return x.at[1].set(0.0).at[4].set(0.0), y, MLP((32, 32), use_bias=False)
    if kind == "a multiple":
        return x.at[5].set(2 * x[1]), y, MLP((32, 32), use_bias=False)
    return jnp.concatenate([x[..., :1, :]] * 3), jnp.concatenate([y] * 3), MLP((1,))


@pytest.mark.optimized
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "kind", ["an image twice", "two black images", "a multiple", "few parameters"]
)
def test_a_singular_kernel_ends_at_the_least_squares_fit(kind, dtype):
    x, y, model = _singular(kind)
    params_0 = model.init_params(jax.random.key(0), x.shape[1:], jnp.float64)
    flat, unravel = jax.flatten_util.ravel_pytree(params_0)
    f0 = model.apply_fn(params_0, x)
    jacobian = jax.jacobian(lambda v: model.apply_fn(unravel(v), x)[:, 0])(flat)
    # The obvious twin: of all that fit best, the parameters nearest to the start.
    shift = np.linalg.lstsq(jacobian, (y - f0)[:, 0], rcond=1e-10)[0]
    want = float(0.5 * np.mean((jacobian @ shift - (y - f0)[:, 0]) ** 2))
    assert want > 1e-3

    x, y = x.astype(dtype), y.astype(dtype)
    params_0 = jax.tree.map(lambda a: a.astype(dtype), params_0)
    kernel = structured.ntk(model, params_0, x, trace_outputs=False)
    spectrum = linearized.decompose(kernel, model.apply_fn(params_0, x), y)
    assert int((spectrum.eigenvalues == 0).sum()) == len(x) - np.linalg.matrix_rank(
        jacobian
    )
    assert jnp.isinf(linearized.time_at_loss(spectrum, want / 1.01))
    assert jnp.isfinite(linearized.time_at_loss(spectrum, want * 1.01))
    # Without going through them: they would take hours.
    rate = 0.5 / float(spectrum.eigenvalues[-1])
    never = linearized.steps_at_loss(
        spectrum, want / 1.01, learning_rate=rate, max_steps=2**31 - 1
    )
    assert never == 2**31 - 1
    tight = {"float32": 1e-3, "float64": 1e-8}[dtype]
    gains = (
        linearized.gradient_flow(jnp.inf),
        linearized.gradient_flow(1e20),
        linearized.gradient_descent(2**31 - 1, learning_rate=rate),
        linearized.gradient_descent(2**31 - 1, learning_rate=rate, momentum=0.9),
    )

    def end(gain):
        predictions, duals, params = _all_of(model, params_0, x, y, spectrum, gain)
        # What the parameters do, not what the closed form says of them.
        out = linearized.apply_linearized(model.apply_fn, params_0, params, x)
        moved, _ = jax.flatten_util.ravel_pytree(_tree.sub(params, params_0))
        return linearized.loss_at(spectrum, gain), predictions, duals, out, moved

    size = np.linalg.norm(shift)
    shortest = np.linalg.lstsq(jacobian.T, shift, rcond=1e-10)[0]
    for loss, predictions, duals, out, moved in jax.jit(
        lambda: [end(gain) for gain in gains]
    )():
        np.testing.assert_allclose(loss, want, rtol=tight)
        error = 0.5 * np.mean((np.asarray(out) - np.asarray(y)) ** 2)
        np.testing.assert_allclose(error, want, rtol=tight)
        np.testing.assert_allclose(predictions, out, atol=tight)
        np.testing.assert_allclose(moved, shift, atol=tight * size)
        np.testing.assert_allclose(
            duals[:, 0], shortest, atol=tight * np.linalg.norm(shortest)
        )


def test_directions_that_never_move_have_no_dual_while_the_others_train():
    spectrum = linearized.Spectrum(
        jnp.asarray([0.0, 0.5]), jnp.eye(2), jnp.asarray([3.0, 2.0]), 1
    )
    for gain in (
        linearized.gradient_flow(2.0),
        linearized.gradient_descent(1_000_000, learning_rate=2e-6),
    ):
        duals = linearized.duals(spectrum, gain)
        np.testing.assert_allclose(
            duals[:, 0], [0.0, 4 * (1 - np.exp(-1.0))], rtol=1e-5
        )
        left = linearized.residuals(spectrum, gain)[:, 0]
        np.testing.assert_allclose(left, [3.0, 2 * np.exp(-1.0)], rtol=1e-5)


def test_a_kernel_of_zeros_trains_nothing_and_nan_is_told():
    y = jnp.ones((3, 1))
    zero = jnp.zeros((3, 3, 1, 1))
    spectrum = linearized.decompose(zero, 0 * y, y)
    for time in (1.0, jnp.inf):
        gain = linearized.gradient_flow(time)
        assert not linearized.duals(spectrum, gain).any()
        assert linearized.loss_at(spectrum, gain) == 0.5
    assert jnp.isinf(linearized.time_at_loss(spectrum, 0.4))
    assert linearized.time_at_loss(spectrum, 0.6) == 0
    with pytest.raises(ValueError, match="kernel has NaN or infinite entries"):
        linearized.decompose(zero.at[0, 1].set(jnp.nan), 0 * y, y)
    with pytest.raises(ValueError, match="y_train has NaN"):
        linearized.decompose(zero, 0 * y, y.at[1].set(jnp.nan))
    bare = inspect.unwrap(linearized.decompose)
    for kernel, rows in ((zero[:, :, 0, 0], y), (zero, y[:2]), (zero[:0, :0], y[:0])):
        with pytest.raises(ValueError, match=r"kernel has shape .*trace_outputs=False"):
            bare(kernel, 0 * rows, rows)
    with pytest.raises(ValueError, match="kernel has dtype int"):
        bare(zero.astype(int), 0 * y, y)


def test_apply_linearized_is_taylor_to_first_order():
    model, params_0, x, *_ = _setup(2)
    way = jax.tree.map(
        lambda a: jax.random.normal(jax.random.key(5), a.shape), params_0
    )

    def gap(h):
        moved = _tree.axpy(h, way, params_0)
        line = linearized.apply_linearized(model.apply_fn, params_0, moved, x)
        return float(jnp.abs(model.apply_fn(moved, x) - line).max()), line

    assert gap(0.0)[0] == 0
    assert gap(1e-4)[0] < 0.02 * gap(1e-3)[0]  # second order
    f0, one, two = (gap(h)[1] for h in (0.0, 1.0, 2.0))
    chex.assert_trees_all_close(two - f0, 2 * (one - f0), rtol=1e-10)


def test_time_at_loss_is_hit():
    *_, spectrum, _, _ = _setup()
    for level in (1e-2, 1e-6, 1e-10):
        time = linearized.time_at_loss(spectrum, level)
        loss = linearized.loss_at(spectrum, linearized.gradient_flow(time))
        np.testing.assert_allclose(loss, level, rtol=1e-4)
    start = float(linearized.loss_at(spectrum, linearized.gradient_flow(0.0)))
    assert linearized.time_at_loss(spectrum, 1.01 * start) == 0
    stuck = spectrum._replace(eigenvalues=spectrum.eigenvalues.at[0].set(0.0))
    assert jnp.isinf(linearized.time_at_loss(stuck, 1e-12))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("level", [0.3, 1e-2, 1e-8])
def test_steps_at_loss_is_the_first_step_below(momentum, level):
    # With momentum the fast directions oscillate: the loss is not monotone.
    spectrum = linearized.Spectrum(
        jnp.asarray([0.05, 0.3, 1.0]), jnp.eye(3), jnp.asarray([0.1, 0.2, 3.0]), 1
    )
    values, left = np.asarray(spectrum.eigenvalues), np.asarray(spectrum.coefficients)
    velocity, first = np.zeros(3), 0
    residual = left.copy()
    while 0.5 * np.mean(residual**2) >= level:
        velocity = momentum * velocity + 0.5 * values * residual
        residual, first = residual - velocity, first + 1
    found = linearized.steps_at_loss(
        spectrum, level, learning_rate=0.5, momentum=momentum
    )
    assert found == first
    capped = linearized.steps_at_loss(
        spectrum, level, learning_rate=0.5, momentum=momentum, max_steps=2
    )
    assert capped == min(first, 2)


def test_steps_at_loss_is_zero_below_from_the_start():
    *_, spectrum, _, _ = _setup()
    assert linearized.steps_at_loss(spectrum, 1e9, learning_rate=1e-6) == 0


def test_bad_numbers_are_refused():
    *_, spectrum, square, _ = _setup()
    for momentum in (-0.1, 1.0, 1.5):
        with pytest.raises(ValueError, match=f"momentum={momentum} must"):
            linearized.gradient_descent(3, learning_rate=0.1, momentum=momentum)
    with pytest.raises(ValueError, match=r"learning_rate=0.0 must be above 0"):
        linearized.gradient_descent(3, learning_rate=0.0)
    descent = inspect.unwrap(linearized.gradient_descent)
    for steps in (-3, 2.7, 2**31):
        with pytest.raises(ValueError, match=rf"steps={steps} must"):
            descent(steps, learning_rate=0.1)
    for time in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"time={time} must be at least 0"):
            linearized.gradient_flow(time)
    with pytest.raises(ValueError, match=r"loss=0.0 must be above 0"):
        linearized.time_at_loss(spectrum, 0.0)
    with pytest.raises(ValueError, match=r"loss=-1.0 must be above 0"):
        linearized.steps_at_loss(spectrum, -1.0, learning_rate=0.1)
    # Outside tests nobody checks the shapes of the signature.
    bare = inspect.unwrap(linearized.decompose)
    with pytest.raises(ValueError, match=r"y_train has shape \(4, 2\), the outputs"):
        bare(square[:, :, None, None], jnp.zeros((4, 1)), jnp.zeros((4, 2)))


def test_float32_stays_float32():
    model = MLP((16,))
    params_0 = model.init_params(jax.random.key(0), (4, 4, 1))
    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 1), jnp.float32)
    kernel = structured.ntk(model, params_0, x, trace_outputs=False)
    spectrum = linearized.decompose(
        kernel, model.apply_fn(params_0, x), jnp.ones((3, 1), jnp.float32)
    )
    time = linearized.time_at_loss(spectrum, 1e-8)
    for gain in (
        linearized.gradient_flow(time),
        linearized.gradient_flow(jnp.inf),
        linearized.gradient_descent(100, learning_rate=1e-3, momentum=0.9),
    ):
        duals = linearized.duals(spectrum, gain)
        params = linearized.params_at(model.apply_fn, params_0, x, duals)
        chex.assert_type([duals, *jax.tree.leaves(params)], [jnp.float32] * 5)


def _traced_setup(dtype):
    """An image twice with other labels: its kernel is singular."""
    model, params_0, x, y, *_ = _setup(2)
    x = jnp.concatenate([x, x[:1]]).astype(dtype)
    y = jnp.concatenate([y, -y[:1]]).astype(dtype)
    params_0 = jax.tree.map(lambda a: a.astype(dtype), params_0)
    kernel = structured.ntk(model, params_0, x, trace_outputs=False)
    return model, params_0, x, y, kernel, model.apply_fn(params_0, x)


@pytest.mark.optimized
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_may_be_traced(dtype):
    model, params_0, x, y, kernel, fx = _traced_setup(dtype)
    tight = {"float32": 2e-3, "float64": 1e-8}[dtype]

    def everything(kernel, fx, y):
        spectrum = linearized.decompose(kernel, fx, y)
        time = linearized.time_at_loss(spectrum, level)
        steps = linearized.steps_at_loss(spectrum, level, learning_rate=rate)
        stuck = linearized.steps_at_loss(
            spectrum, 1e-6, learning_rate=rate, max_steps=2**31 - 1
        )
        out = [spectrum.eigenvalues, *(jnp.asarray(n, int) for n in (steps, stuck))]
        for gain in (
            linearized.gradient_flow(jnp.inf),
            linearized.gradient_flow(time),
            linearized.gradient_descent(40, learning_rate=rate, momentum=0.9),
        ):
            duals = linearized.duals(spectrum, gain)
            params = linearized.params_at(model.apply_fn, params_0, x, duals)
            out += [
                duals,
                linearized.residuals(spectrum, gain),
                linearized.loss_at(spectrum, gain),
                linearized.apply_linearized(model.apply_fn, params_0, params, x),
            ]
        return out

    known = linearized.decompose(kernel, fx, y)
    rate = 0.1 / float(known.eigenvalues[-1])
    start, end = (
        float(linearized.loss_at(known, linearized.gradient_flow(t)))
        for t in (0.0, jnp.inf)
    )
    assert end > 1e-3
    level = 0.5 * (start + end)
    want = everything(kernel, fx, y)
    assert isinstance(linearized.decompose(kernel, fx, y).num_outputs, int)
    assert (want[0] == 0).sum() == 2
    assert 1 < want[1] < 10_000
    assert want[2] == 2**31 - 1
    ours = jax.jit(everything)(kernel, fx, y)
    assert (ours[0] == 0).sum() == 2
    for a, b in zip(ours, want, strict=True):
        assert a.dtype == b.dtype
        size = float(jnp.abs(b).max())
        slack = 1 if a.dtype == int else tight * size
        np.testing.assert_allclose(a, b, atol=slack)


@pytest.mark.optimized
def test_decompositions_may_be_batched_and_differentiated():
    *_, y, kernel, fx = _traced_setup("float64")

    def loss(fx, y):
        spectrum = linearized.decompose(kernel, fx, y)
        return linearized.loss_at(spectrum, linearized.gradient_flow(0.1))

    many = jnp.stack([y, 2 * y, y - 1])
    batched = jax.vmap(loss, in_axes=(None, 0))(fx, many)
    np.testing.assert_allclose(batched, [loss(fx, one) for one in many], rtol=1e-9)
    way = jax.random.normal(jax.random.key(3), y.shape)
    slope = jnp.sum(way * jax.grad(loss, argnums=1)(fx, y))
    h = 1e-3  # the loss is quadratic in y: a central difference is exact
    rise = (loss(fx, y + h * way) - loss(fx, y - h * way)) / (2 * h)
    np.testing.assert_allclose(slope, rise, rtol=1e-8)
