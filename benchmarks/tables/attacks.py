"""Evasion, beside the same attacks in PyTorch."""

from collections.abc import Iterable
from typing import Any

from benchmarks.tables._cells import whole
from benchmarks.tables._marks import Row, Table

_CELLS = (
    ("convnet 2/255", "ConvNet, 2/255"),
    ("convnet_robust 2/255", "robust ConvNet, 2/255"),
    ("convnet_robust 8/255", "the same, 8/255"),
    ("resnet18 2/255", "ResNet18, 2/255"),
    ("resnet18_robust 2/255", "robust ResNet18, 2/255"),
    ("resnet18_robust 8/255", "the same, 8/255"),
)
_ATTACKS = (
    *("pgd", "mim", "apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square"),
    "ensemble",
)


def parity(stored: dict[str, Any]) -> Iterable[Row]:
    """Robust accuracy, ours / theirs."""
    yield "attack", *(label for _, label in _CELLS)
    for attack in _ATTACKS:
        rows = (stored["parity"][f"{cell} {attack}"] for cell, _ in _CELLS)
        yield attack, *(f"{row['ours']:g} / {row['theirs']:g}" for row in rows)


_TIMED = (
    *("autoattack", "apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square"),
    *("pgd", "mim", "cw"),
)


def speed(stored: dict[str, Any]) -> Iterable[Row]:
    """Seconds, ours and theirs."""
    yield "attack", "ours", "torchattacks", "times faster", "our compilation"
    for attack in _TIMED:
        row = stored["speed"][f"convnet_robust 8/255 {attack}"]
        yield (
            attack,
            f"{row['ours']:.1f}",
            f"{row['theirs']:.1f}",
            f"{row['times_faster']:.2f}",
            whole(row["compile"]),
        )


def robust(stored: dict[str, Any]) -> Iterable[Row]:
    """What is left of a robust ConvNet."""
    yield "attack", "read rightly, %"
    for name, share in stored["accuracy"].items():
        label = {"clean": "none", "ensemble": "all within eps"}.get(name, name)
        yield label, f"{100 * share:.1f}"


_COMMAND = "python -m benchmarks.bench_evasion --out=results/benchmarks/evasion.json"
TABLES = (
    Table("evasion_parity", ("benchmarks/evasion.json",), _COMMAND, parity),
    Table("evasion_speed", ("benchmarks/evasion.json",), _COMMAND, speed),
    Table(
        "evasion_robust",
        ("evade/cifar10_robust/results.json",),
        "python -m experiments.evade --train=adversarial --dataset=cifar10 --eps=4/255 "
        "--num_attacked=200",
        robust,
    ),
)
