"""Searches through a whole training."""

from collections.abc import Iterable
from typing import Any

from benchmarks.tables._cells import two, whole
from benchmarks.tables._marks import Row, Table

_CASES = {
    "momentum": "SGD with momentum, rate 0.02",
    "momentum, plain": "the same, without smoothed ReLUs",
    "adamw": "AdamW, rate 1e-3, decay 1e-4",
    "adamw, plain": "the same, without smoothed ReLUs",
}


def unrolled(stored: dict[str, Any]) -> Iterable[Row]:
    """What comes back by unrolled training."""
    yield (
        "trained",
        "seed",
        "recovered",
        "median PSNR, dB",
        "least",
        "left of the squared change",
        "verdict",
        "steps",
        "seconds with compilation",
    )
    for row in stored["rows"]:
        yield (
            _CASES[row["case"]],
            str(row["seed"]),
            f"{row['recovered']} of {row['N']}",
            f"{row['median_psnr']:.1f}",
            f"{row['least_psnr']:.1f}",
            two(row["left"]),
            row["word"],
            str(row["steps"]),
            whole(row["s_with_compile"]),
        )


TABLES = (
    Table(
        "unrolled",
        ("benchmarks/unrolled.json",),
        "python -m benchmarks.bench_unrolled --rows=momentum --seeds=0,1 --plain=0 "
        "--out=results/benchmarks/unrolled.json",
        unrolled,
    ),
)
