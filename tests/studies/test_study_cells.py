"""Cells of a study: each made once, resumed, taken over from the dead, read back."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from toy_study import TOY, Point, logged

from ntk_privacy.data import ArgumentError
from ntk_privacy.reports import files
from ntk_privacy.studies import Grid, listing, make, page

ROOT = pathlib.Path(__file__).parents[2]
CPU = TOY.grids["cpu"].cells()


def _start(folder, log, pause=0.0, hang=0):
    words = [sys.executable, str(pathlib.Path(__file__).with_name("toy_study.py"))]
    given = [str(folder), str(log), str(pause), str(hang)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*words, *given], cwd=ROOT, env=env)


def _lines(log):
    return (
        [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    )


def _until(what):
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def test_a_study_is_written_judged_and_read_back(tmp_path):
    made = []
    found = make(TOY, "smoke", tmp_path, told=made.append)
    assert len(made) == found["num_made"] == found["num_cells"] == 4
    assert found["verdict"] == "agrees"
    assert [part["holds"] for part in found["parts"]] == [True, True]
    assert all(row["figures"]["steps"] == 3 for row in found["rows"])
    told = (tmp_path / "table.md").read_text()
    assert "| it grows | 1 | 1 to 1 | above 0 | yes |" in told
    assert "| 2 | " in told
    assert (tmp_path / "figure.png").exists()
    # results.json is enough: nothing is made again.
    shutil.rmtree(tmp_path / page.WORK)
    again = make(TOY, "smoke", tmp_path, told=made.append)
    assert len(made) == 4
    assert again == found


def test_draws_share_their_key_and_points_do_not_differ_in_it(tmp_path):
    rows = make(TOY, "smoke", tmp_path)["rows"]
    noise = {
        (row["config"]["size"], row["draw"]): row["figures"]["list"][1] for row in rows
    }
    assert noise[1, 0] == noise[2, 0] != noise[1, 1] == noise[2, 1]


def test_two_processes_make_each_cell_once(tmp_path):
    folder, log = tmp_path / "study", tmp_path / "log"
    both = [_start(folder, log, 0.05) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    made = _lines(log)
    assert len({(size, draw) for size, draw, _ in made}) == len(made) == len(CPU)
    assert len({process for *_, process in made}) == 2
    assert files.read_json(folder / "results.json")["num_made"] == len(CPU)


def test_the_claim_of_a_dead_process_is_taken_over(tmp_path):
    folder, log = tmp_path / "study", tmp_path / "log"
    other = _start(folder, log, hang=1)
    try:
        _until(lambda: _lines(log))
        results = []
        item = logged(log)
        thread = threading.Thread(
            target=lambda: results.append(make(item, "cpu", folder, wait=0.05))
        )
        thread.start()
        # All but the one that the other holds.
        _until(lambda: len(_lines(log)) == len(CPU))
        time.sleep(0.2)
        assert thread.is_alive()
        other.kill()
        thread.join(60)
    finally:
        other.kill()
        other.wait()
    assert not thread.is_alive()
    assert results[0]["num_made"] == len(CPU)
    twice = [line[:2] for line in _lines(log)]
    assert sorted(size_draw for size_draw in twice if twice.count(size_draw) > 1) == [
        ["1", "0"],
        ["1", "0"],
    ]


def test_a_cell_that_was_interrupted_goes_on_where_it_stood(tmp_path):
    seen = []

    def interrupted(config, *, key, stage):
        def go(state, done, callback):
            seen.append(done)
            for step in range(done + 1, 4):
                state = np.asarray(state + 1)
                callback(step, state, {})
                if step == 2 and len(seen) == 1:
                    raise KeyboardInterrupt
            return state

        stage("count", np.zeros((), np.int64), go, 3)
        return {"value": 1.0 * config.size, "steps": 3}

    item = dataclasses.replace(TOY, run=interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(item, "smoke", tmp_path, checkpoint_seconds=0.0)
    found = make(item, "smoke", tmp_path, checkpoint_seconds=0.0)
    assert seen[:2] == [0, 2]
    assert found["num_made"] == 4


def test_a_cell_that_fails_is_told_and_tried_again(tmp_path):
    broken = [True]

    def run(config, *, key, stage):
        if config.size == 2 and broken[0]:
            raise ValueError("no such size.")
        return {**TOY.run(config, key=key, stage=stage)}

    item = dataclasses.replace(TOY, run=run)
    found = make(item, "smoke", tmp_path)
    assert (found["num_made"], found["verdict"]) == (2, "none yet")
    assert [row["error"] for row in found["failed"]] == ["no such size."] * 2
    assert "no such size" in (tmp_path / "table.md").read_text()
    broken[0] = False
    found = make(item, "smoke", tmp_path)
    assert (found["num_made"], found["failed"]) == (4, [])


def test_figures_that_are_not_finite_are_a_failure(tmp_path):
    item = dataclasses.replace(
        TOY, run=lambda config, *, key, stage: {"value": float("nan")}
    )
    found = make(item, "paper", tmp_path)
    assert [row["error"] for row in found["failed"]] == ["value is not finite."] * 2


def test_a_folder_of_another_scale_is_refused(tmp_path):
    make(TOY, "smoke", tmp_path)
    with pytest.raises(ArgumentError, match="belongs to toy figure1 smoke, not to toy"):
        make(TOY, "cpu", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match="is a file"):
        make(TOY, "cpu", tmp_path / "file")


def test_a_cell_of_another_config_is_refused(tmp_path):
    make(TOY, "smoke", tmp_path)
    path = page.place(tmp_path, TOY.grids["smoke"].cells()[0]) / "results.json"
    files.write_json(path, {**files.read_json(path), "draw": 5})
    (tmp_path / "results.json").unlink()
    with pytest.raises(ValueError, match="made by other code; delete it"):
        make(TOY, "smoke", tmp_path)


def test_a_grid_that_has_grown_keeps_what_is_made(tmp_path):
    make(TOY, "smoke", tmp_path)
    more = Grid((*TOY.grids["smoke"].configs, Point(size=3)), 2)
    made = []
    item = dataclasses.replace(TOY, grids={**TOY.grids, "smoke": more})
    assert make(item, "smoke", tmp_path, told=made.append)["num_made"] == 6
    assert len(made) == 2


def test_the_list_judges_anew_and_tells_what_is_missing(tmp_path):
    assert listing.listed([TOY], tmp_path) == [("toy", "figure1", "-", "none yet", "")]
    make(TOY, "smoke", tmp_path / "toy_figure1")
    (line,) = listing.listed([TOY], tmp_path)
    assert line == ("toy", "figure1", "smoke", "agrees", "4 of 4")
    opposite = dataclasses.replace(
        TOY, judge=lambda rows: [TOY.judge(rows)[1]._replace(bound=0.0)]
    )
    assert listing.listed([opposite], tmp_path)[0][3] == "refuted"
    path = tmp_path / "toy_figure1" / "results.json"
    told = files.read_json(path)
    files.write_json(path, {**told, "rows": told["rows"][:3]})
    shutil.rmtree(path.parent / page.WORK)
    assert listing.listed([TOY], tmp_path)[0][3:] == ("none yet", "3 of 4")
    assert (
        "| toy | figure1 | It grows. | smoke | 3 of 4 | none yet |"
        in listing.summary([TOY], tmp_path)
    )


def test_a_page_keeps_all_but_its_table():
    text = "Before.\n<!-- results: begin -->\nold\n<!-- results: end -->\nAfter.\n"
    new = listing.updated(text, "new")
    assert new == text.replace("old", "new")
    with pytest.raises(ValueError, match="put them in it once"):
        listing.updated("nothing", "new")
