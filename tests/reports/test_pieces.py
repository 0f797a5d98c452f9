"""Parts of a run: made once, read back, their seconds added up."""

import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import resume
from ntk_privacy.reports.loops import Loops
from ntk_privacy.reports.pieces import Pieces
from ntk_privacy.reports.workdir import Workdir


def _count(stage):
    def go(state, done, callback):
        callback(1, state, {"loss": 0.5})
        return state

    return stage("count", {"n": jnp.ones(2)}, go, 1).result


def _piece(workdir):
    return Pieces(Loops(workdir, show=False), {"count": "counted"})


@pytest.mark.parametrize("more", [{}, {"told": "a text"}])
def test_a_part_is_made_once_and_read_back_with_its_seconds(tmp_path, more):
    def make(stage):
        return {"n": np.asarray(_count(stage)["n"])} | more

    def never(stage):
        raise AssertionError

    with Workdir(tmp_path, {}) as workdir:
        first = _piece(workdir)
        made = first("part", make)
        assert workdir.path("part.npz").exists() == (not more)
        again = _piece(workdir)
        found = again("part", never)
        np.testing.assert_array_equal(np.asarray(found["n"]), [1, 1])
        np.testing.assert_array_equal(np.asarray(made["n"]), [1, 1])
        assert again.seconds("counted") == first.seconds("counted")
        assert again.seconds("counted")["counted"] > 0
        assert again.seconds("another") == {"another": 0}
        assert not (workdir.checkpoint_folder / "part").exists()


def test_loops_have_timers_by_name_and_go_on_where_they_were(tmp_path):
    with Workdir(tmp_path, {}) as workdir:
        loops = Loops(workdir, "other", show=False)
        _count(loops.stage("train", "a"))
        assert set(loops.seconds()) == {"train", "other", "compile"}
        assert loops.seconds()["other"] == 0 < loops.seconds()["train"]
        assert set(loops.anew().seconds()) == {"compile"}
        again = loops.anew()
        resume.once(again.by_loop(piece="b"), "told", lambda: {"x": np.ones(1)})
        assert (workdir.checkpoint_folder / "b" / "told").is_dir()
        assert set(again.seconds()) == {"told", "compile"}
