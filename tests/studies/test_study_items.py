"""Every item: a sound record, judged for and against, and run at the scale smoke."""

import dataclasses

import numpy as np
import pytest

from ntk_privacy import data, distillation, poisoning, reconstruction
from ntk_privacy.studies import ITEMS, Grid, listing, make, of_parts
from ntk_privacy.studies.item import Row

# Of a method for which they have no meaning.
MISSING = {"poison_dropped", "norm_term", "variance_term"}
QUICK = {"loo_outliers", "rdm_table5", "rdm_lemma4_1"}


def _title(item):
    return item.title


@pytest.mark.parametrize("item", ITEMS, ids=_title)
def test_an_item_is_sound(item):
    assert item.paper in ("loo", "rdm", "guard")
    assert item.claim.endswith(".")
    assert item.about.endswith(".")
    assert set(item.grids) == {"smoke", "cpu", "paper"}
    for scale, grid in item.grids.items():
        names = [cell.name() for cell in grid.cells()]
        assert len(set(names)) == len(names) > 1
        # Names of files, with an ending, on any file system.
        assert max(map(len, names)) <= 245, max(names, key=len)
        assert grid.num_draws >= (2 if scale == "smoke" else 3)
        assert len({type(config) for config in grid.configs}) == 1


@pytest.mark.parametrize("item", ITEMS, ids=_title)
def test_what_its_points_name_is_there(item):
    tables = {"attack": {**poisoning.METHODS, **reconstruction.METHODS}}
    tables |= {"method": distillation.METHODS, "dataset": data.SETS}
    for grid in item.grids.values():
        for config in grid.configs:
            for name, table in tables.items():
                assert getattr(config, name, None) in {None, *table}


def test_titles_are_apart():
    titles = [item.title for item in ITEMS]
    assert len(set(titles)) == len(titles)


def _made_up(item, level):
    """Rows of the scale cpu whose figures are `level(config)`, with a little noise."""
    rng = np.random.default_rng(0)
    grid = item.grids["cpu"]
    return [
        Row(cell.config, cell.draw, level(cell.config, 1 + 0.01 * rng.normal()))
        for cell in grid.cells()
    ]


def _curve(config, noise, *, sign):
    hard = config.num_images * (2 if config.dynamics == "standard" else 1)
    error = (hard / config.width / 10) ** sign * noise
    if config.task is not None:
        error *= 0.5**sign
    if sign < 0 and config.stop_loss > 1e-3:
        error += 100
    moved = config.num_images / config.width
    return {"relative_error": error, "kernel_distance": moved}


def _accuracy(config, noise, *, sign):
    level = {"full": 5, "rkip": 4, "rkip_noise": 3, "rkip_finite": 3, "random": 2}
    value = 50 + sign * 10 * level.get(config.method, 1) + noise
    infinite = 50 + sign * (20 if config.method != "random" else 0) + noise
    return {"standard": value, "linearized": value, "infinite": infinite}


def _best(config, noise, *, sign):
    is_real = config.method == "random"
    return {"auto_best_psnr": noise * (40 if is_real is (sign > 0) else 15)}


def _poison(config, noise, *, sign):
    fails = config.attack == "none" or config.method == "rdm"
    succeeds = fails is (sign < 0)
    return {"hits": 3 * succeeds, "trials": 3, "success": 1.0 * succeeds}


def _mixture(config, noise, *, sign):
    share = 0.1 if sign > 0 else 3.0
    moved = {"before": 1.0, "after": (0.01 if sign > 0 else 2.0) * noise}
    return {"miss": share * noise, "left": share * noise, **moved}


def _robust(config, noise, *, sign):
    value = 30 + sign * 5 * (config.penalty_weight > 0) + noise
    return {"accuracy": value, "pgd": value, "autoattack": value}


def _ranks(config, noise, *, sign):
    return {"dual": -0.8 * sign * noise, "left_out": -0.7 * sign * noise}


LEVELS = {
    "loo_theorem1": _curve,
    "loo_outliers": _ranks,
    **dict.fromkeys([f"loo_figure{number}" for number in (2, 3, 4, 5)], _curve),
    **dict.fromkeys(("loo_table1", "loo_figure6"), _accuracy),
    "loo_figure8": _best,
    "rdm_lemma4_1": _mixture,
    "guard_table5": _robust,
}


@pytest.mark.parametrize("item", ITEMS, ids=_title)
@pytest.mark.parametrize(("sign", "word"), [(1, "agrees"), (-1, "refuted")])
def test_made_up_figures_are_judged_for_and_against(item, sign, word):
    level = LEVELS.get(item.title, _poison)
    rows = _made_up(item, lambda config, noise: level(config, noise, sign=sign))
    parts = item.judge(rows)
    assert of_parts(parts) == word, [(part.told, part.holds) for part in parts]


@pytest.mark.parametrize(
    "item", [item for item in ITEMS if item.title in QUICK], ids=_title
)
def test_two_cells_of_it_are_made(item, tmp_path):
    first = item.grids["smoke"].configs
    grid = Grid(tuple(dict.fromkeys((first[0], first[-1]))), 1)
    grids = {**item.grids, "smoke": grid}
    # What is judged needs the whole grid.
    short = dataclasses.replace(item, grids=grids, judge=lambda rows: ())
    found = make(short, "smoke", tmp_path / item.title, show=False)
    assert found["failed"] == []
    assert found["num_made"] == len(grid.configs)
    for row in found["rows"]:
        assert set(item.columns) - set(row["figures"]) <= MISSING
    _is_written(item, tmp_path / item.title)


@pytest.mark.slow
@pytest.mark.parametrize("item", ITEMS, ids=_title)
def test_a_taste_of_it_is_made_whole_and_judged(item, tmp_path):
    found = make(item, "smoke", tmp_path / item.title, show=False)
    assert found["failed"] == []
    assert found["num_made"] == found["num_cells"]
    assert found["verdict"] in ("agrees", "undecided", "differs", "refuted")
    assert listing.listed([item], tmp_path)[0][2:4] == ("smoke", found["verdict"])
    _is_written(item, tmp_path / item.title)


def _is_written(item, folder):
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert f"# {item.paper}, {item.name}: " in (folder / "table.md").read_text()
