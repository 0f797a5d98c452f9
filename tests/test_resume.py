"""One loop for all methods: resumed from any step it ends with the same bits."""

import itertools
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import _loop, _versions, resume


def _step(state, number, data):
    key = jax.random.fold_in(jax.random.key(0), number)
    new = 0.9 * state + data * jax.random.normal(key, state.shape, state.dtype)
    return new, {"loss": jnp.sum(new**2)}


def _go(num_steps, state, done, callback):
    data = jnp.float32(0.3)
    return _loop.run(
        _step,
        state,
        data,
        num_steps=num_steps,
        first_step=done,
        chunk=4,
        callback=callback,
    )[0]


def _run(stage, name="search", num_steps=20):
    start = jnp.arange(3, dtype=jnp.float32)
    return stage(name, start, lambda *loop: _go(num_steps, *loop), num_steps)


class _Killed(Exception):
    pass


def _killing(step):
    def callback(done, state, metrics):
        if done >= step:
            raise _Killed

    return callback


@pytest.mark.parametrize("killed_at", [4, 8, 12, 16, 20])
def test_killed_at_any_chunk_it_ends_with_the_same_bits(killed_at, tmp_path):
    whole = _run(resume.straight)
    options = {"seconds": 0.0, "timer": resume.Timer()}
    with pytest.raises(_Killed):
        _run(resume.resumed(tmp_path, stop=_killing(killed_at), **options))
    again = _run(resume.resumed(tmp_path, **options))
    np.testing.assert_array_equal(again.result, whole.result)
    np.testing.assert_array_equal(again.losses, whole.losses)


def test_what_numpy_holds_goes_on_to_the_bit_without_float64_in_jax(tmp_path):
    def go(state, done, callback):
        for step in range(done + 1, 5):
            state = {"seconds": state["seconds"] + 0.1}
            callback(step, state, {})
        return state

    def run(**options):
        stage = resume.resumed(tmp_path, timer=resume.Timer(), seconds=0.0, **options)
        return stage("search", {"seconds": np.zeros(3)}, go, 4).result["seconds"]

    with _versions.enable_x64(False):
        for step in (1, 2, 3):
            with pytest.raises(_Killed):
                run(stop=_killing(step))
        found = run()
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, 0.1 + 0.1 + 0.1 + np.full(3, 0.1))


def test_what_has_ended_is_not_run_again(tmp_path):
    timer = resume.Timer()
    first = _run(resume.resumed(tmp_path, timer=timer, seconds=1e9))
    seen = []
    stage = resume.resumed(
        tmp_path, timer=timer, stop=lambda step, *_: seen.append(step)
    )
    again = _run(stage)
    assert seen == []
    np.testing.assert_array_equal(again.result, first.result)
    np.testing.assert_array_equal(again.losses, first.losses)


def test_true_from_the_callback_stops_and_the_next_start_goes_on(tmp_path):
    timer = resume.Timer()
    stopping = resume.resumed(
        tmp_path, timer=timer, stop=lambda step, *_: step >= 8, seconds=1e9
    )
    part = _run(stopping)
    assert np.isfinite(part.losses[:8]).all()
    assert np.isnan(part.losses[8:]).all()
    whole = _run(resume.straight)
    rest = _run(resume.resumed(tmp_path, timer=timer))
    np.testing.assert_array_equal(rest.result, whole.result)
    np.testing.assert_array_equal(rest.losses, whole.losses)


def test_a_lost_state_is_not_saved(tmp_path):
    def go(state, done, callback):
        for step, loss in ((done + 1, 1.0), (done + 2, np.nan)):
            callback(step, state + step, {"loss": np.asarray([loss])})
        return state

    seen = []

    def watched(state, done, callback):
        seen.append((done, float(state)))
        return go(state, done, callback)

    stage = resume.resumed(tmp_path, timer=resume.Timer(), seconds=0.0)
    start = jnp.float32(5)
    stage("search", start, watched, 4)
    stage("search", start, watched, 4)
    # The second start is from step 1, whose loss was finite.
    assert seen == [(0, 5.0), (1, 6.0)]


def test_seconds_of_earlier_starts_are_counted(tmp_path):
    earlier = resume.Timer()
    earlier.run = 100.0
    stage = resume.resumed(tmp_path, timer=earlier, seconds=0.0, stop=_killing(12))
    with pytest.raises(_Killed):
        _run(stage)
    later = resume.Timer()
    _run(resume.resumed(tmp_path, timer=later))
    assert later.run > 100


def test_the_bar_sees_every_chunk_and_is_closed(tmp_path):
    seen = []

    class Bar:
        def __init__(self, *told):
            seen.append(told)

        def __call__(self, step, state, metrics):
            seen.append(step)

        def close(self):
            seen.append("closed")

    timer = resume.Timer()
    _run(resume.resumed(tmp_path, timer=timer, bar=Bar))
    assert seen == [("search", 20, 0), 4, 8, 12, 16, 20, "closed"]


def test_another_loop_under_the_same_name_is_refused(tmp_path):
    timer = resume.Timer()
    _run(resume.resumed(tmp_path, timer=timer))
    with pytest.raises(ValueError, match="cannot be restored"):
        _run(resume.resumed(tmp_path, timer=timer), num_steps=24)


def test_every_waits_its_seconds():
    clock = itertools.count(0, 4).__next__
    every = resume.Every(10.0, lambda: float(clock()))
    assert [every() for _ in range(7)] == [
        *(False, False, True),
        *(False, False, True, False),
    ]


def test_what_is_made_in_one_piece_is_made_once(tmp_path):
    """Its shapes are known by then alone, empty ones and texts among them."""
    made = {
        "empty": np.zeros((0, 3)),
        "text": np.asarray("gate\u00f6ffnet"),
        "count": np.asarray(7),
        "gates": np.eye(3, dtype=bool),
    }
    calls, timer = [], resume.Timer()

    def make():
        calls.append(1)
        return made

    killing = resume.resumed(tmp_path, timer=timer, seconds=0.0, stop=_killing(1))
    with pytest.raises(_Killed):
        resume.once(killing, "piece", make)
    stage = resume.resumed(tmp_path, timer=timer)
    for _ in range(2):
        again = resume.once(stage, "piece", make)
        assert list(again) == list(made)
        for name, array in made.items():
            assert again[name].dtype == array.dtype
            np.testing.assert_array_equal(again[name], array)
    assert len(calls) == 2  # once before the kill, once after it
    resume.once(resume.straight, "piece", make)
    assert len(calls) == 3


def test_the_time_of_what_is_not_stored_counts(tmp_path):
    timer = resume.Timer()
    stage = resume.resumed(tmp_path, timer=timer)
    assert resume.timed(stage, "path", lambda: time.sleep(0.05) or "made") == "made"
    assert timer.run >= 0.05
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lost", [{"loss": np.asarray([1.0, np.nan])}, {}])
def test_a_loss_that_is_lost_ends_the_loop_with_its_name(lost):
    """A metric says so, or the state."""

    def go(state, done, callback):
        callback(1, {"x": np.zeros(1)}, {})
        callback(3, types.SimpleNamespace(nonfinite=not lost), lost)
        raise AssertionError("it went on")

    told = "The loss of search is not finite after 3 steps: use less."
    with pytest.raises(ValueError, match=told):
        resume.finite(resume.straight, "use less.")("search", None, go, 5)


def test_timers_share_one_listener_and_hear_while_they_run(monkeypatch):
    def compile_anew(size):
        jax.jit(lambda x: x * size)(jnp.ones(size))

    timer, late = resume.Timer(), resume.Timer()
    with timer():
        compile_anew(3)
    heard = timer.compile
    assert heard > 0
    monkeypatch.setattr(
        jax.monitoring, "register_event_duration_secs_listener", pytest.fail
    )
    for _ in range(3):
        with resume.Timer()():
            pass
    with late():
        compile_anew(5)
    assert late.compile > 0
    assert timer.compile == heard
