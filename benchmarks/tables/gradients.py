"""How far closed units go, and what clients do to a gradient."""

from collections.abc import Iterable
from typing import Any

from benchmarks.tables._cells import counts, listed, of_case, one, span, two
from benchmarks.tables._marks import Row, Table

_GRADIENT = {"set": "mnist", "width": 256, "depth": 2, "steps": 0}


def _reach(rows: list[dict[str, Any]], **wanted: Any) -> tuple[str, str]:
    """The largest N all of whose images came back, seed by seed; pairs that flipped."""
    found = of_case(rows, **wanted)
    largest, flips = [], []
    for seed in sorted({row["seed"] for row in found}):
        every = [r for r in found if r["seed"] == seed and r["all"]]
        fewest = min(r["N"] for r in found if r["seed"] == seed)
        largest.append(str(max(r["N"] for r in every)) if every else f"below {fewest}")
        flips += [r["flips"] for r in every if r["N"] == max(r["N"] for r in every)]
    share = span(flips, lambda v: f"{100 * v:.0f}") + "%" if any(flips) else ""
    return listed(largest), share


def reach(stored: dict[str, Any]) -> Iterable[Row]:
    """The largest N of a grid, by what is attacked."""
    units = [r for r in stored["rows"] if r.get("attack") != "classes"]
    classes = [r for r in stored["rows"] if r.get("attack") == "classes"]
    yield "what is attacked", "varied", "largest N, seed by seed", "pairs flipped"
    gradient = "one gradient of ten classes, MNIST"
    trained = "trained by 1,000 steps on batches of 5, MNIST"
    for width in (64, 128, 256, 512):
        told = _reach(units, **{**_GRADIENT, "width": width})
        yield gradient, f"two hidden layers of width {width}", *told
    for width in (64, 128, 256, 512):
        told = _reach(classes, **{**_GRADIENT, "width": width})
        yield f"{gradient}, decoded class by class", f"width {width}", *told
    for depth in (1, 2, 4, 6):
        told = _reach(units, **{**_GRADIENT, "depth": depth})
        layers = f"{depth} hidden layer{'s' * (depth > 1)}"
        yield gradient, f"{layers} of width 256", *told
    told = _reach(units, **{**_GRADIENT, "set": "cifar10"})
    yield "one gradient, CIFAR-10", "width 256", *told
    for side in (8, 12, 16, 28):
        told = _reach(units, **{**_GRADIENT, "set": f"smooth_{side}"})
        yield "one gradient, synthetic images", f"{side} x {side} numbers", *told
    for width in (128, 256, 512):
        chosen = {"set": "mnist", "width": width, "steps": 1000, "rate": 0.003}
        yield trained, f"width {width}, rate 0.003", *_reach(units, **chosen)
    for rate in (0.0003, 0.001, 0.01, 0.02):
        chosen = {"set": "mnist", "width": 256, "steps": 1000, "rate": rate}
        yield trained, f"width 256, rate {rate}", *_reach(units, **chosen)


_TREATED = {
    "dtype float32": "float32",
    "dtype float16": "float16",
    "dtype bfloat16": "bfloat16",
    "steps 1": "FedAvg, 1 step on all images, rate 0.02",
    "steps 5": "FedAvg, 5 steps on all images",
    "steps 20": "FedAvg, 20 steps on all images",
    "steps 5, batches of 4": "FedAvg, 5 steps on batches of 4",
    "steps 20, batches of 4": "FedAvg, 20 steps on batches of 4",
    "steps 100, batches of 4": "FedAvg, 100 steps on batches of 4",
    "clipped whole": "the whole clipped to a hundredth",
    "clipped each, 1": "each clipped to the median norm",
    "clipped each, 0.1": "each clipped to a tenth of it",
    "top 0.9": "the largest 90% sent",
    "top 0.75": "the largest 75% sent",
    "top 0.5": "the largest 50% sent",
    "top 0.2": "the largest 20% sent",
    "top 0.1": "the largest 10% sent",
    "top 0.05": "the largest 5% sent",
    "top 0.01": "the largest 1% sent",
    "bits 16": "16 bits",
    "bits 12": "12 bits",
    "bits 8": "8 bits",
    "bits 8, at random": "8 bits, rounded at random",
    "bits 4": "4 bits",
}


def _row(label: str, rows: list[dict[str, Any]]) -> Row:
    sizes = [row["N"] for row in rows]
    seen = [r["largest"] for r in rows if r["recognised"] == r["N"]]
    return (
        label,
        counts([row["found"] for row in rows], sizes),
        counts([row["recognised"] for row in rows], sizes),
        counts([row["certified"] for row in rows], sizes),
        one(max(seen)) if seen else "",
    )


def _treated(size: int, cases: dict[str, str], first: str):
    def rows(stored: dict[str, Any]) -> Iterable[Row]:
        yield (
            first,
            "recovered",
            "recognisable",
            "certified",
            "largest squared distance, where all are recognisable",
        )
        for case, label in cases.items():
            yield _row(label, of_case(stored["rows"], case=case, N=size))

    return rows


def larger(stored: dict[str, Any]) -> Iterable[Row]:
    """16 bits, of larger batches."""
    yield (
        "sent as",
        "batch",
        "recovered",
        "recognisable",
        "certified",
        "largest, as above",
    )
    for name in ("float32", "float16", "bfloat16"):
        for size in (40, 60, 80, 100):
            rows = of_case(stored["rows"], case=f"dtype {name}", N=size)
            label, *cells = _row(name, rows)
            yield label, str(size), *cells


def private(stored: dict[str, Any]) -> Iterable[Row]:
    """Noise, and what it would guarantee."""
    yield (
        "noise multiplier",
        "epsilon of one release, delta = 1e-5",
        "recovered of 8",
        "of 20",
        "recognisable of 8",
        "of 20",
        "certified of 8",
        "of 20",
    )
    noised = [r for r in stored["rows"] if r["case"].startswith("noise")]
    for multiplier in sorted({row["noise_multiplier"] for row in noised}):
        mine = of_case(noised, noise_multiplier=multiplier)
        cells = []
        for name in ("found", "recognised", "certified"):
            for size in (8, 20):
                rows = of_case(mine, N=size)
                cells.append(counts([r[name] for r in rows], [size] * len(rows)))
        yield one(multiplier), two(mine[0]["epsilon"]), *cells


_COMMAND = (
    "python -m benchmarks.bench_shared_updates "
    "--out=results/benchmarks/shared_updates.json --picture=docs/shared_updates.png"
)
_FILES = ("benchmarks/shared_updates.json",)
TABLES = (
    Table(
        "closed_units_reach",
        ("benchmarks/closed_units_reach.json",),
        "python -m benchmarks.bench_closed_units_reach",
        reach,
    ),
    Table(
        "shared_20",
        _FILES,
        _COMMAND,
        _treated(20, _TREATED, "a batch of 20, width 512"),
    ),
    Table(
        "shared_8", _FILES, _COMMAND, _treated(8, _TREATED, "a batch of 8, width 512")
    ),
    Table("shared_larger", _FILES, _COMMAND, larger),
    Table("shared_private", _FILES, _COMMAND, private),
)
