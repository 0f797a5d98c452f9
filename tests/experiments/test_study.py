"""The binary of studies: its list, what it refuses, a study from the command line."""

import pathlib

import pytest

from experiments import _flags, study
from ntk_privacy import hosts
from ntk_privacy.studies import ITEMS, listing, page

ROOT = pathlib.Path(__file__).parents[2]
STORED = ROOT / "results" / "study"


def _call(*arguments):
    return _flags.call(study.main, study.PROGRAM.parse, list(arguments))


def test_every_item_is_a_line_of_the_list(capsys, tmp_path):
    assert _call("--list", f"--workdir={tmp_path}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [tuple(line.split()[:2]) for line in lines] == [
        (item.paper, item.name) for item in ITEMS
    ]
    assert all(line.split()[2:] == ["-", "none", "yet"] for line in lines)


def test_a_study_is_made_listed_and_put_on_a_page(capsys, tmp_path, monkeypatch):
    words = ["--paper=rdm", "--item=lemma4_1", "--scale=smoke", "--noprogress"]
    # Processes that share cells do not wait for one another.
    monkeypatch.setattr(hosts, "join", lambda: pytest.fail("joined"))
    words += ["--nocompilation_cache", "--distributed"]
    assert _call(*words, f"--workdir={tmp_path}") == 0
    told = capsys.readouterr().out
    assert "rdm lemma4_1: " in told
    assert "(12 of 12 cells)" in told
    path = tmp_path / "page.md"
    path.write_text("<!-- results: begin --><!-- results: end -->\n")
    assert _call("--list", f"--workdir={tmp_path}", f"--page={path}") == 0
    listed = capsys.readouterr().out
    assert ["rdm", "lemma4_1", "smoke"] in [x.split()[:3] for x in listed.splitlines()]
    assert "| rdm | lemma4_1 | Where clean" in path.read_text()
    # Another scale has a folder of its own.
    assert (tmp_path / "rdm_lemma4_1_smoke" / "table.md").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--seed=1"], "seed"),
        (["--list", "--distributed"], "--distributed has no effect with --list"),
        (["--list", "--scale=smoke"], "--scale has no effect with --list"),
        (["--list", "--paper=loo"], "--paper has no effect with --list"),
        (["--page=x.md"], "--page has no effect with --nolist"),
        (["--paper=loo", "--item=table9"], "table9"),
        (["--paper=loo", "--item=lemma4_1"], "lemma4_1"),
        (["--paper=loo", "--width=4"], "width"),
        (["--scale=huge"], "huge"),
        (["--item=figure2", "--workdir="], "workdir is empty"),
    ],
)
def test_what_would_be_passed_over_or_is_not_there_is_refused(capsys, flags, told):
    assert _call(*flags) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1


def test_the_docs_page_says_what_is_stored():
    text = (ROOT / "docs" / "studies.md").read_text()
    assert listing.updated(text, listing.summary(ITEMS, STORED)) == text
    for item in ITEMS:
        assert f"`{item.name}`" in text, item.title


@pytest.mark.parametrize("path", sorted(STORED.glob("*/results.json")), ids=str)
def test_what_is_stored_is_whole_and_its_verdict_is_that_of_today(path):
    items = {item.title: item for item in ITEMS}
    told = page.of_folder(path.parent)
    item = items[f"{told['paper']}_{told['item']}"]
    assert path.parent.name == item.folder(told["scale"])
    found = page.results(item, told["scale"], path.parent)
    assert found["num_made"] == found["num_cells"]
    assert found == told
    rows = page.rows_of(
        item, told["scale"], page.stored(item, told["scale"], path.parent)
    )
    assert (path.parent / "table.md").read_text() == page.table(item, rows, found)
    assert (path.parent / "figure.png").exists()
