"""The bar shows loss and time left, and stays silent where nobody looks."""

import contextlib

import jax.numpy as jnp

from ntk_privacy import _loop
from ntk_privacy._types import AtMost
from ntk_privacy.reports.progress import Progress


def _step(state, step, data):
    return state + 1, {"loss": 1.0 / (state + 1)}


def test_a_shown_bar_tells_loss_steps_and_time_left(capsys):
    with Progress(10, description="attack", show=True) as progress:
        _loop.run(_step, jnp.zeros(()), num_steps=10, chunk=4, callback=progress)
    text = capsys.readouterr().err
    assert "attack 100%" in text
    assert "10/10" in text
    assert "left, loss 0.1" in text


def test_no_terminal_means_no_output(capsys):
    with Progress(10, description="attack") as progress:
        assert progress(4, None, {"loss": [1.0]}) is None
    assert capsys.readouterr() == ("", "")


def test_a_resumed_run_counts_from_its_first_step(capsys):
    with Progress(10, description="attack", first_step=6, show=True) as progress:
        progress(10, None, {})
    assert "10/10" in capsys.readouterr().err


def test_compiling_is_told_until_the_first_steps_are_done(capsys):
    with Progress(10, description="attack", show=True) as progress:
        assert "compiling" in capsys.readouterr().err
        progress(10, None, {})
    assert "compiling" not in capsys.readouterr().err.split("10/10")[-1]


def test_a_loop_that_converged_has_no_steps_left(capsys):
    with Progress(1000, description="attack", show=True) as progress:
        progress(42, None, {})
    assert "100%" in capsys.readouterr().err.split("\r")[-1]


def test_a_loop_that_ends_by_its_loss_has_no_time_left_until_it_has_ended(capsys):
    with Progress(AtMost(1_000_000), description="train", show=True) as progress:
        progress(420, None, {"loss": [0.5]})
        progress._bar.refresh()
        told = capsys.readouterr().err.split("\r")[-1]
        assert "train 420 steps, at most 1000000, loss 0.5" in told
        assert "left" not in told
    assert "train 100%" in capsys.readouterr().err.split("\r")[-1]


def test_a_loop_that_broke_has(capsys):
    with (
        contextlib.suppress(ValueError),
        Progress(1000, description="attack", show=True) as progress,
    ):
        progress(42, None, {})
        raise ValueError
    assert "42/1000" in capsys.readouterr().err.split("\r")[-1]
