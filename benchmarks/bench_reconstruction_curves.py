"""Reconstruction curves of the search (KKT) and of closed units, on the same networks.

    python -m benchmarks.bench_reconstruction_curves --seeds=0 \
        --out=results/benchmarks/reconstruction_curves.json --picture=curves.png

Needs NTK_PRIVACY_DATA. Squared distances of all training images to what was read, in
the matching and the order of Loo et al., ICLR 2024 (arXiv:2302.01428), figures 2 to 5:
over widths, numbers of images, linearized and standard training, two and ten classes;
and their mean against the distance of the kernels before and after training. Runs that
the file has are not made again.
"""

import itertools
import pathlib
import time
from typing import Any

import jax
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from benchmarks import _measure
from ntk_privacy import data, reconstruction
from ntk_privacy.evaluation import evaluate, trained_network
from ntk_privacy.reconstruction import evidence
from ntk_privacy.reports import canvas
from ntk_privacy.training import victim

_SETS = {
    "MNIST, odd or even": ("mnist", "odd_even"),
    "CIFAR-10, animal or vehicle": ("cifar10", "animal_vehicle"),
    "MNIST, ten classes": ("mnist", "all_classes"),
}
_METHODS = ("closed_units", "kkt")
_WIDTHS, _COUNTS, _DYNAMICS = (256, 1024), (20, 50), ("linearized", "standard")

ROWS: dict[str, list[dict[str, Any]]] = {
    name: [
        {"set": name, "width": width, "N": n, "dynamics": dynamics}
        for n, width, dynamics in itertools.product(_COUNTS, _WIDTHS, _DYNAMICS)
    ]
    for name in _SETS
}


def run(row: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Trains one network, attacks it by both, and compares with the truth."""
    name, task = _SETS[row["set"]]
    dataset = data.load(name, task=task, num_train=row["N"], key=jax.random.key(seed))
    made = victim.train(
        dataset.x_train,
        dataset.y_train,
        key=jax.random.key(1000 + seed),
        width=row["width"],
        dynamics=row["dynamics"],
        schedule="heavy_ball" if row["dynamics"] == "standard" else "flow",
    )
    moved = trained_network.kernel_moved(made, jax.numpy.asarray(dataset.x_train))
    # The search is told N, closed units read it from the weights.
    told = {"closed_units": None, "kkt": row["N"]}
    rows = []
    for method in _METHODS:
        attack = reconstruction.METHODS[method]
        start = time.perf_counter()
        known = evidence.told(made, dataset, num_images=told[method])
        found = attack.run(known, attack.configured(), key=jax.random.key(7))
        seconds = time.perf_counter() - start
        seen = evaluate(dataset.x_train, found.images, mean=dataset.mean)
        whole = len(seen.squared_distances) == row["N"]
        rows.append(
            {
                **row,
                "seed": seed,
                "method": method,
                "word": found.verdict.word,
                "kernel_distance": float(moved),
                "recovered": seen.num_recovered,
                "median": float(np.median(seen.squared_distances)) if whole else None,
                "s_with_compile": seconds,
                "curve": [float(f"{v:.4g}") for v in seen.squared_distances],
            }
        )  # fmt: skip
    return rows


def picture(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws curves, a panel for every set and width, and error over kernel distance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with canvas.figure(path, size=(12, 9), font=10) as made:
        axes = made.subplots(len(_SETS), len(_WIDTHS) + 1)
        hues = dict(zip((20, 50), canvas.COLOURS, strict=False))
        lines = {"closed_units": "-", "kkt": "--"}
        names = {"closed_units": "closed units", "kkt": "search (KKT)"}
        for line, name in zip(axes, _SETS, strict=True):
            mine = [row for row in rows if row["set"] == name]
            for ax, width in zip(line, _WIDTHS, strict=False):
                for row in mine:
                    if row["width"] != width:
                        continue
                    curve = np.maximum(row["curve"], 1e-12)
                    share = (np.arange(len(curve)) + 1) / row["N"]
                    faint = row["dynamics"] == "linearized"
                    ax.plot(
                        share, curve, lines[row["method"]], color=hues[row["N"]],
                        alpha=0.35 if faint else 1.0, lw=1.5,
                    )  # fmt: skip
                ax.set(yscale="log", title=f"{name}, width {width}", xlim=(0, 1))
                ax.set_ylim(1e-12, 1e3)
            ax = line[-1]
            for method, marker in (("closed_units", "o"), ("kkt", "x")):
                seen = [row for row in mine if row["method"] == method]
                seen = [row for row in seen if row["dynamics"] == "standard"]
                # Nothing found stands at the top.
                means = [float(np.mean(row["curve"] or [np.inf])) for row in seen]
                ax.plot(
                    [row["kernel_distance"] for row in seen],
                    np.clip(means, 1e-12, 900), marker, label=names[method],
                )  # fmt: skip
            ax.set(
                yscale="log", xscale="log", title="mean of the curve", xlim=(5e-4, 0.1)
            )
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.set_ylim(1e-12, 1e3)
            ax.legend(fontsize=8)
            ax.grid()
            line[0].set_ylabel("squared distance")
        for ax in axes[-1][:-1]:
            ax.set_xlabel("share of the training images")
        axes[-1][-1].set_xlabel("kernel distance (standard training)")
        handles = [
            Line2D([], [], color="k", ls=lines[m], label=names[m]) for m in _METHODS
        ]
        handles += [Line2D([], [], color=h, label=f"N = {n}") for n, h in hues.items()]
        handles += [Line2D([], [], color="k", alpha=0.35, label="linearized training")]
        axes[0][0].legend(handles=handles, fontsize=8, loc="center")


def main() -> None:
    options = _measure.arguments(seeds="0", picture="")
    made = [] if options.out is None else _measure.read(options.out)
    for seed, name in itertools.product(options.seeds.split(","), _SETS):
        for row in ROWS[name]:
            key = {**row, "seed": int(seed)}
            if any(key.items() <= old.items() for old in made):
                continue
            new = run(row, int(seed))
            shown = [{k: v for k, v in r.items() if k != "curve"} for r in new]
            _measure.report("", shown, None)
            made += new
            if options.out is not None:
                _measure.write("reconstruction_curves", made, options.out)
    if options.picture:
        picture(made, pathlib.Path(options.picture))


if __name__ == "__main__":
    main()
