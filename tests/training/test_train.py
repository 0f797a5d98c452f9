"""Full-batch training against a plain loop, its stop rule, snapshots and resuming."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy.kernels import structured
from ntk_privacy.models import MLP
from ntk_privacy.training import train


@functools.cache
def _setup(num_outputs=1, dtype=jnp.float64):
    model = MLP((16, 16), num_outputs)
    params = model.init_params(jax.random.key(0), (4, 4, 1), dtype)
    x = jax.random.normal(jax.random.key(1), (4, 4, 4, 1), dtype)
    y = jax.random.normal(jax.random.key(2), (4, num_outputs), dtype)
    return model, params, x, y


def _optimizer(model, params, x, y):
    kernel = structured.ntk(model, params, x, trace_outputs=False)
    square = kernel.transpose(0, 2, 1, 3).reshape(y.size, y.size)
    largest = float(jnp.linalg.eigvalsh(square)[-1])
    return train.stable_optimizer(largest, y.size)


def _plain_loop(model, params, x, y, optimizer, stop_loss, max_steps):
    """Every parameter and loss on the way, one Python step at a time."""

    @jax.jit
    def loss_fn(p):
        return 0.5 * jnp.mean((model.apply_fn(p, x) - y) ** 2)

    @jax.jit
    def step(p, s):
        updates, s = optimizer.update(jax.grad(loss_fn)(p), s, p)
        return optax.apply_updates(p, updates), s

    state = optimizer.init(params)
    path, losses = [params], [float(loss_fn(params))]
    while losses[-1] >= stop_loss and len(path) <= max_steps:
        params, state = step(params, state)
        path.append(params)
        losses.append(float(loss_fn(params)))
    return path, losses


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_training_is_a_plain_loop_with_its_stop_and_its_snapshots(num_outputs):
    model, params, x, y = _setup(num_outputs)
    optimizer = _optimizer(model, params, x, y)
    path, losses = _plain_loop(model, params, x, y, optimizer, 1e-3, 5000)
    levels = [1e9, 0.5 * losses[0], 1e-2, 1e-9]
    seen = []
    trained = train.full_batch(
        model.apply_fn,
        params,
        x,
        y,
        optimizer=optimizer,
        stop_loss=1e-3,
        snapshot_losses=levels,
        chunk=7,
        callback=lambda step, state, metrics: seen.append((step, metrics["loss"])),
    )
    assert trained.converged
    assert trained.steps == len(path) - 1
    chex.assert_trees_all_close(trained.params, path[-1], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(trained.loss, losses[-1], rtol=1e-9)
    for level, snapshot in zip(levels[:3], trained.snapshots[:3], strict=True):
        first = next(i for i, loss in enumerate(losses) if loss < level)
        chex.assert_trees_all_close(snapshot, path[first], rtol=1e-9, atol=1e-12)
    assert trained.snapshots[3] is None
    # Losses after each step; the last stays once training has stopped.
    told = np.concatenate([loss for _, loss in seen])
    np.testing.assert_allclose(told[: trained.steps], losses[1:], rtol=1e-9)
    assert (told[trained.steps :] == trained.loss).all()
    assert [step for step, _ in seen] == list(range(7, seen[-1][0] + 1, 7))


def test_without_reaching_the_loss_it_says_so_and_a_later_call_goes_on():
    model, params, x, y = _setup()
    optimizer = _optimizer(model, params, x, y)
    common = {"optimizer": optimizer, "snapshot_losses": (0.3, 0.01), "chunk": 10}
    whole = train.full_batch(model.apply_fn, params, x, y, max_steps=60, **common)
    assert not whole.converged
    assert whole.steps == 60
    for cut in (10, 40):
        half = train.full_batch(model.apply_fn, params, x, y, max_steps=cut, **common)
        # What a checkpoint makes of it: arrays on the host.
        state = jax.tree.map(np.asarray, half.state)
        rest = train.full_batch(
            model.apply_fn, params, x, y, max_steps=60, state=state, **common
        )
        chex.assert_trees_all_equal(rest.state, whole.state)  # to the bit
        assert rest.steps == 60


def test_a_finished_state_stays_as_it_is():
    model, params, x, y = _setup()
    optimizer = _optimizer(model, params, x, y)
    common = {"optimizer": optimizer, "stop_loss": 0.2, "chunk": 10}
    done = train.full_batch(model.apply_fn, params, x, y, **common)
    assert done.steps % 10  # it stopped inside a chunk
    again = train.full_batch(model.apply_fn, params, x, y, state=done.state, **common)
    chex.assert_trees_all_equal(again.state, done.state)
    good = train.full_batch(
        model.apply_fn, params, x, y, optimizer=optimizer, stop_loss=1e9
    )
    assert (good.steps, good.converged) == (0, True)
    chex.assert_trees_all_equal(good.params, params)


def test_divergence_is_an_error_that_names_the_step():
    model, params, x, y = _setup()
    with pytest.raises(
        ValueError, match=r"loss became (inf|nan) after \d+ steps: lower the learning"
    ):
        train.full_batch(
            model.apply_fn, params, x, y, optimizer=optax.sgd(1e3), max_steps=200
        )


def _first_step(optimizer, gradient=1.0):
    params = jnp.ones(1)
    updates, state = optimizer.update(
        jnp.full(1, gradient), optimizer.init(params), params
    )
    second, _ = optimizer.update(jnp.zeros(1), state, params)
    return float(updates[0]), float(second[0] / updates[0])


def test_published_step_is_n_times_2e_7_with_momentum():
    first, ratio = _first_step(train.paper_optimizer(200))
    # The released code's rate for 200 images.
    np.testing.assert_allclose(first, -4e-5, rtol=1e-6)
    np.testing.assert_allclose(ratio, 0.9, rtol=1e-6)


def test_stable_step_is_two_hundredths_of_the_largest_eigenvalue_on_the_sum():
    first, ratio = _first_step(train.stable_optimizer(50.0, 20))
    np.testing.assert_allclose(first, -0.02 * 20 / 50, rtol=1e-6)
    np.testing.assert_allclose(ratio, 0.9, rtol=1e-6)


def test_float32_stays_float32():
    model, params, x, y = _setup(dtype=jnp.float32)
    trained = train.full_batch(
        model.apply_fn, params, x, y, optimizer=train.paper_optimizer(4), max_steps=3
    )
    chex.assert_type(jax.tree.leaves(trained.params), [jnp.float32] * 6)


def test_bad_arguments_are_refused_before_anything_runs():
    model, params, x, y = _setup()

    def call(x=x, y=y, **changes):
        optimizer = train.paper_optimizer(4)
        return train.full_batch(
            model.apply_fn, params, x, y, **{"optimizer": optimizer, **changes}
        )

    with pytest.raises(ValueError, match=r"stop_loss=0.0 must be above 0"):
        call(stop_loss=0.0)
    # Not the learning rate is to blame.
    with pytest.raises(ValueError, match="NaN or infinite values in 1 rows"):
        call(x=x.at[2].set(jnp.nan))
    with pytest.raises(ValueError, match="y_train has NaN or infinite"):
        call(y=y.at[0].set(jnp.inf))
    with pytest.raises(ValueError, match=r"snapshot_loss=-1.0 must be above 0"):
        call(snapshot_losses=[-1.0])
    with pytest.raises(ValueError, match=r"y_train has shape \(4, 2\), the outputs"):
        call(y=jnp.ones((4, 2)))
    with pytest.raises(ValueError, match=r"chunk=0 must be at least 1"):
        call(chunk=0)
    with pytest.raises(ValueError, match=r"num_images=0 must be at least 1"):
        train.paper_optimizer(0)
    with pytest.raises(ValueError, match=r"lambda_max=nan must be above 0"):
        train.stable_optimizer(float("nan"), 4)


def test_a_loss_is_reached_up_to_rounding_and_no_further():
    y = jnp.ones((4, 1), jnp.float32)
    assert train.reached(1.0e-10, 1e-10, y)
    assert train.reached(1.6e-10, 1e-10, y)
    assert not train.reached(2e-10, 1e-10, y)
    assert not train.reached(1.6e-10, 1e-10, y.astype(jnp.float64))
    assert train.reached(0.1336, 0.1336, y)
    assert not train.reached(0.154, 0.1336, y)
    assert not train.reached(float("nan"), 0.1, y)
