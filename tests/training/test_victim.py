"""The network under attack: trained as asked, resumed to the bit, refused in words."""

import jax
import numpy as np
import pytest

from ntk_privacy import resume
from ntk_privacy.evaluation import trained_network
from ntk_privacy.training import margin_victim, victim

KEY = jax.random.key(3)
X = np.asarray(jax.random.normal(jax.random.key(0), (6, 2, 3, 1)), np.float32)
Y = np.where(np.arange(6) % 2, 1.0, -1.0).astype(np.float32)[:, None]

KINDS = {
    "linearized": (victim.train, {"stop_loss": 1e-6}, "victim"),
    "standard": (
        victim.train,
        {"dynamics": "standard", "stop_loss": 1e-3},
        "train_coordinates",
    ),
    "max_margin": (margin_victim.train, {"max_steps": 1500}, "train"),
}


@pytest.fixture(params=KINDS, scope="module")
def case(request):
    """What trains it, where its checkpoints are, and the whole."""
    train, options, folder = KINDS[request.param]

    def run(stage=resume.straight):
        return train(X, Y, key=KEY, width=16, stage=stage, **options)

    return request.param, run, folder, run()


class _Killed(Exception):
    pass


def _kill(*_):
    raise _Killed


def test_it_is_trained_as_asked(case):
    kind, _, _, found = case
    assert found.dynamics == ("linearized" if kind == "linearized" else "standard")
    assert found.image_shape == (2, 3, 1)
    outputs = np.asarray(victim.outputs(found, X))
    if kind == "max_margin":
        assert (found.steps, found.reached) == (1500, None)
        # It takes images less their mean image, and its first kernel is no reference.
        inner = found.model.apply_fn(found.params_t, jax.numpy.asarray(X - X.mean(0)))
        np.testing.assert_allclose(outputs, inner, rtol=1e-3)
        assert np.isnan(trained_network.kernel_moved(found, jax.numpy.asarray(X)))
        return
    assert found.reached is True
    np.testing.assert_allclose(found.loss, 0.5 * np.mean((outputs - Y) ** 2), rtol=0.1)
    assert trained_network.test_accuracy(found, X, Y) == 1.0
    assert trained_network.test_accuracy(found, X, -Y) == 0.0
    moved = trained_network.kernel_moved(found, jax.numpy.asarray(X))
    if kind == "linearized":
        np.testing.assert_allclose(found.loss, 1e-6, rtol=0.05)
        assert (found.steps, moved) == (None, 0.0)
        assert found.duals.shape == Y.shape
    else:
        assert 0 < found.loss < 1e-3
        assert found.steps > 0
        assert found.duals is None
        assert 0 < moved < 1


def test_killed_and_started_again_it_ends_with_the_same_bits(case, tmp_path):
    _, run, folder, whole = case
    options = {"timer": resume.Timer(), "seconds": 0.0}
    with pytest.raises(_Killed):
        run(resume.resumed(tmp_path, stop=_kill, **options))
    again = run(resume.resumed(tmp_path, **options))
    assert [path.name for path in tmp_path.iterdir()] == [folder]
    jax.tree.map(np.testing.assert_array_equal, again.params_t, whole.params_t)
    assert (again.loss, again.steps) == (whole.loss, whole.steps)


def test_what_is_trained_is_not_trained_again(case, tmp_path, monkeypatch):
    kind, run, _, whole = case
    timer = resume.Timer()
    run(resume.resumed(tmp_path, timer=timer))
    for name in ("_linearized", "_paced"):
        monkeypatch.setattr(victim, name, _kill)
    again = run(resume.resumed(tmp_path, timer=timer, stop=_kill))
    jax.tree.map(np.testing.assert_array_equal, again.params_t, whole.params_t)
    assert again.steps == whole.steps, kind


def test_it_stops_when_asked():
    part = victim.train(
        X,
        Y,
        key=KEY,
        width=16,
        dynamics="standard",
        stage=resume.watched(lambda *_: True),
    )
    assert (part.steps, part.reached) == (20, False)


def test_a_closed_form_that_falls_short_is_told(monkeypatch):
    monkeypatch.setattr(victim.linearized, "time_at_loss", lambda *_: 0.1)
    short = victim.train(X, Y, key=KEY, width=16)
    assert (short.loss > 1e-3, short.reached) == (True, False)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"width": 0}, "width=0 must be at least 1"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"stop_loss": 0.0}, "stop_loss=0.0 must be above 0"),
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
        ({"x_train": X * np.nan}, "x_train has NaN or infinite values in 6 rows"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(changes, told):
    given = {"x_train": X, "y_train": Y, "key": KEY, "width": 16, **changes}
    with pytest.raises(ValueError, match=told):
        victim.train(given.pop("x_train"), given.pop("y_train"), **given)


def test_a_heavy_ball_ends_where_the_flow_does_in_fewer_steps():
    flow, ball = (
        victim.train(
            X, Y, key=KEY, width=64, dynamics="standard", schedule=s, stop_loss=1e-6
        )
        for s in ("flow", "heavy_ball")
    )
    assert flow.reached
    assert ball.reached
    assert ball.steps * 4 < flow.steps
    ends = [
        np.asarray(
            victim.train(
                X, Y, key=KEY, width=64, schedule=s, stop_loss=1e-9
            ).params_t["Dense_0"]["kernel"]
        )
        for s in ("flow", "heavy_ball")
    ]  # fmt: skip
    start = np.asarray(flow.params_0["Dense_0"]["kernel"])
    away = np.linalg.norm(ends[1] - ends[0]) / np.linalg.norm(ends[0] - start)
    assert 0 < away < 1e-3
