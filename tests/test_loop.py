"""Chunks, pauses and callbacks change no bit of the result."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import _loop

DATA = jnp.linspace(0.1, 0.9, 7, dtype=jnp.float32)


def _step(state, step, data):
    """Randomness by step, so that a wrong step number shows."""
    noise = jax.random.normal(jax.random.fold_in(state["key"], step), (7,), jnp.float32)
    x = jnp.sin(state["x"] * 3) + data + jnp.float32(0.01) * noise
    return {"key": state["key"], "x": x}, {"loss": jnp.sum(x * x), "step": step}


def _start():
    return {"key": jax.random.key(3), "x": jnp.zeros(7, jnp.float32)}


def _same_bits(a, b):
    chex.assert_trees_all_equal_dtypes(a["x"], b["x"])
    np.testing.assert_array_equal(
        np.asarray(a["x"]).view(np.uint32), np.asarray(b["x"]).view(np.uint32)
    )


def _slow(num_steps):
    state = _start()
    for i in range(num_steps):
        state, _ = jax.jit(_step)(state, jnp.int32(i), DATA)
    return state


@pytest.mark.parametrize("chunk", [1, 7, 20, 23, 100])
def test_chunks_give_the_bits_of_one_step_after_another(chunk):
    state, done = _loop.run(_step, _start(), DATA, num_steps=23, chunk=chunk)
    assert done == 23
    _same_bits(state, _slow(23))


@pytest.mark.parametrize("pause", [5, 10, 20])
def test_a_resumed_run_ends_with_the_same_bits(pause):
    whole, _ = _loop.run(_step, _start(), DATA, num_steps=23, chunk=5)
    first, done = _loop.run(_step, _start(), DATA, num_steps=pause, chunk=5)
    assert done == pause
    state, done = _loop.run(_step, first, DATA, num_steps=23, first_step=pause, chunk=5)
    assert done == 23
    _same_bits(state, whole)


def test_a_run_resumed_off_the_border_returns_to_the_borders():
    seen = []
    _loop.run(
        _step, _start(), DATA, num_steps=17, first_step=3, chunk=5,
        callback=lambda done, _, metrics: seen.append((done, metrics["step"].tolist())),
    )  # fmt: skip
    assert seen == [
        (5, [3, 4]),
        (10, [5, 6, 7, 8, 9]),
        (15, [10, 11, 12, 13, 14]),
        (17, [15, 16]),
    ]


def test_the_callback_sees_state_and_stacked_metrics():
    seen = []
    state, _ = _loop.run(
        _step, _start(), DATA, num_steps=6, chunk=4,
        callback=lambda done, state, metrics: seen.append((done, state, metrics)),
    )  # fmt: skip
    assert [done for done, _, _ in seen] == [4, 6]
    assert [m["loss"].shape for _, _, m in seen] == [(4,), (2,)]
    _same_bits(seen[-1][1], state)
    x = state["x"]
    np.testing.assert_allclose(seen[-1][2]["loss"][-1], jnp.sum(x * x), rtol=1e-6)


def test_a_true_callback_stops_the_loop():
    state, done = _loop.run(
        _step, _start(), DATA, num_steps=1000, chunk=5,
        callback=lambda done, state, metrics: done >= 10,
    )  # fmt: skip
    assert done == 10
    _same_bits(state, _slow(10))


def test_the_step_is_traced_once_for_all_chunks_and_runs():
    traces = []

    def step(state, step, data):
        traces.append(1)
        return state + data, {}

    for _ in range(2):
        _loop.run(step, jnp.zeros(()), jnp.ones(()), num_steps=40, chunk=10)
    assert len(traces) == 1
    _loop.run(step, jnp.zeros(()), jnp.zeros(()), num_steps=45, chunk=10)
    assert len(traces) == 2  # the rest of 5 steps is another program


def test_no_step_left_returns_the_state_as_it_is():
    start = _start()
    state, done = _loop.run(_step, start, DATA, num_steps=5, first_step=5)
    assert (state, done) == (start, 5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_steps": 5, "chunk": 0}, "chunk=0 must be at least 1"),
        ({"num_steps": -1}, "num_steps=-1 must be at least 0"),
        (
            {"num_steps": 5, "first_step": 6},
            "first_step=6 is above num_steps=5: ask for more",
        ),
    ],
)
def test_bad_step_counts_are_one_clear_line(kwargs, message):
    with pytest.raises(ValueError, match=message):
        _loop.run(_step, _start(), DATA, **kwargs)
