"""Exact decoding, and the search."""

from collections.abc import Iterable
from typing import Any

from benchmarks.tables._cells import of_case, seconds, two
from benchmarks.tables._marks import Row, Table

_CASES = {
    "mnist_20_1024": ("MNIST odd/even", 20, 1024),
    "mnist_20_1024_early": ("the same, stopped early at a loss of 1e-2", 20, 1024),
    "cifar10_20_1024": ("CIFAR-10 animal/vehicle", 20, 1024),
    "cifar10_20_4096": ("CIFAR-10 animal/vehicle", 20, 4096),
    "mnist_100_4096": ("MNIST odd/even", 100, 4096),
    "mnist_200_4096": ("MNIST odd/even", 200, 4096),
    "cifar10_200_4096": ("CIFAR-10 animal/vehicle", 200, 4096),
    "mnist_500_4096": ("MNIST odd/even", 500, 4096),
    "mnist_10way_50_4096": ("MNIST, ten classes", 50, 4096),
}


def exact(stored: dict[str, Any]) -> Iterable[Row]:
    """Decoded images of linearized networks."""
    yield (
        "images",
        "N",
        "width",
        "N as read",
        "exact",
        "certified",
        "largest squared distance",
        "seconds",
    )
    for case, (label, size, width) in _CASES.items():
        (row,) = of_case(stored["rows"], case=case)
        yield (
            label,
            str(size),
            str(width),
            str(row["estimated_N"]),
            str(row["exact"]),
            str(row["certified"]),
            f"{row['largest']:.1e}",
            two(row["s"]),
        )


_SEARCHES = (
    ("mnist_linearized_1024_kkt", "`--dataset=mnist --width=1024`"),
    ("mnist_standard_1024_kkt", "`--dataset=mnist --width=1024 --dynamics=standard`"),
    ("cifar10_linearized_1024_kkt", "`--dataset=cifar10 --width=1024`"),
    (
        "mnist_standard_1024_auto",
        "`--dataset=mnist --width=1024 --dynamics=standard --method=auto`",
    ),
    (
        "digits_4096_auto",
        "`--dataset=digits --width=4096 --method=auto` (`make reconstruct`)",
    ),
)


def searched(*stored: dict[str, Any]) -> Iterable[Row]:
    """Runs of `experiments.reconstruct`."""
    yield (
        "flags",
        "recovered",
        "median squared distance",
        "largest",
        "verdict",
        "seconds: train, attack",
    )
    for (_, label), found in zip(_SEARCHES, stored, strict=True):
        distances = sorted(found["squared_distances"])
        middle = len(distances) // 2
        spent = found["seconds"]
        yield (
            label,
            f"{found['num_recovered']} of {found['num_images']}",
            two((distances[middle] + distances[-middle - 1]) / 2),
            two(distances[-1]),
            found["verdict"]["word"],
            f"{seconds(spent['train'])}, {seconds(spent['attack'])}",
        )


TABLES = (
    Table(
        "algebraic",
        ("benchmarks/algebraic.json",),
        "python -m benchmarks.bench_algebraic --out=results/benchmarks/algebraic.json",
        exact,
    ),
    Table(
        "search",
        tuple(f"reconstruct/{name}/results.json" for name, _ in _SEARCHES),
        'for flags in "--dataset=mnist --width=1024 --method=kkt" '
        '"--dataset=mnist --width=1024 --dynamics=standard --method=kkt" '
        '"--dataset=cifar10 --width=1024 --method=kkt" '
        '"--dataset=mnist --width=1024 --dynamics=standard --method=auto" '
        '"--dataset=digits --width=4096 --method=auto"; '
        "do python -m experiments.reconstruct --num_train=20 $flags; done",
        searched,
    ),
)
