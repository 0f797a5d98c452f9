"""What is counted as false is false, and the stored counts are of today's families."""

import json
import pathlib

import census
import numpy as np
import pytest

from benchmarks import bench_soundness

ROOT = pathlib.Path(__file__).parents[2]
TRUTH = np.eye(3, 4)
# Two units of each image alone: four tell two of them apart, and three may.
APART = [(np.hstack([np.eye(4) * 9] * 2), np.full(8, -1.0))]
ALIKE = [(np.ones((4, 9)), np.zeros(9))]


def _weighed(row, error, layers, **told):
    rows, errors = np.asarray([row], float), np.asarray([error])
    return census.weigh(rows, np.ones(1, bool), errors, TRUTH, layers=layers, **told)


@pytest.mark.parametrize(("error", "false"), [(0.011, 0), (0.009, 1)])
def test_an_image_beyond_its_stated_error_is_false(error, false):
    found = _weighed([1, 0, 0, 0.01], error, [])
    assert (found.inputs, found.images, found.certified) == (1, 3, 1)
    assert (found.false, found.merged, found.empty) == (false, 0, 0)
    assert found.tightest == pytest.approx(np.inf if false else 1.1)


@pytest.mark.parametrize(
    ("layers", "counts"), [(ALIKE, (0, 1)), ([], (1, 0)), (APART, (1, 0))]
)
def test_a_mean_is_excepted_where_images_share_their_gates(layers, counts):
    found = _weighed([0.5, 0.5, 0, 0], 0.01, layers)
    assert (found.false, found.merged) == counts


def test_what_was_shown_of_an_image_may_be_read():
    shown = np.asarray([[0, 0, 0, 1.0]])
    assert _weighed([0, 0, 0, 1], 0.01, []).false == 1
    assert _weighed([0, 0, 0, 1], 0.01, [], forms=shown).false == 0
    assert _weighed([1, 0, 0, 0.1], 0.01, [], spread=0.1).merged == 1


@pytest.mark.parametrize(("row", "error"), [(np.nan, 0.01), (1, np.nan)])
def test_what_is_no_number_is_false(row, error):
    found = _weighed([row, 0, 0, 0.001], error, [])
    assert (found.certified, found.false, found.tightest) == (1, 1, np.inf)


def test_what_is_not_certified_is_not_judged():
    rows, errors = np.full((2, 4), 9.0), np.zeros(2)
    found = census.weigh(rows, np.zeros(2, bool), errors, TRUTH, layers=[])
    assert (found.certified, found.false, found.empty) == (0, 0, 3)
    total = census.summed([found, _weighed([1, 0, 0, 0.01], 0.011, [])])
    assert (total.inputs, total.images, total.certified) == (2, 6, 1)
    assert total.tightest == pytest.approx(1.1)


def test_none_was_false_with_32_bits():
    path = ROOT / "results" / "benchmarks" / "soundness_32.json"
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == sum(
        len(bench_soundness.families(known))
        for known in bench_soundness.EVIDENCES.values()
    )
    assert {row["false"] for row in rows} == {0}


@pytest.mark.parametrize("evidence", bench_soundness.EVIDENCES)
def test_every_family_was_counted(evidence):
    path = ROOT / "results" / "benchmarks" / "soundness.json"
    rows = json.loads(path.read_text())["rows"]
    stored = {row["family"]: row for row in rows if row["evidence"] == evidence}
    known = bench_soundness.EVIDENCES[evidence]
    wanted = bench_soundness.families(known)
    assert sorted(stored) == sorted(wanted)
    assert len(wanted) > 5
    for family, row in stored.items():
        # A training that diverged is no input.
        most = bench_soundness.size(known, family)
        assert 0.8 * most < row["inputs"] <= most
        assert row["false"] == 0  # as the pages say
