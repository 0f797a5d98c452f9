"""Distillation by kernels: accuracy, and what an attacker finds."""

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.tables._cells import listed, percent
from benchmarks.tables._marks import Row, Table

# Loo et al., Table 1: infinite width, standard, linearized.
_PUBLISHED = {
    "full": "93.2 / 92.9 / 92.9",
    "kip": "91.5 / 57.4 / 55.6",
    "rkip": "91.4 / 89.6 / 90.0",
    "rkip_noise": "89.7 / 86.9 / 86.9",
    "rkip_finite": "87.3 / 88.5 / 86.2",
    "random": "74.1 / 73.5 / 73.5",
}
_KINDS = ("infinite", "standard", "linearized")
_TABLES = tuple(
    f"distill/mnist_{name}/table.json"
    for name in (
        *("full", "full_finite", "table", "rkip_finite"),
        *("standard_kernel", "label_solve"),
    )
)
_ORDER = (
    ("full", 0, "all 500 images"),
    ("kip", 2, "`kip`"),
    ("rkip", 2, "`rkip`"),
    ("rkip_noise", 2, "`rkip_noise` (5%)"),
    ("rkip_finite", 3, "`rkip_finite`"),
    ("random", 2, "`random`: 20 real images"),
    ("rkip", 4, "`rkip --kernel=standard`"),
    ("rkip_noise", 5, "`rkip_noise --label_solve`"),
)


def _rows(stored: Any) -> list[dict[str, Any]]:
    return stored["rows"] if isinstance(stored, Mapping) else stored


def _named(stored: Any, method: str, score: str = "accuracy") -> dict[str, Any]:
    (row,) = (r for r in _rows(stored) if r["method"] == method and r["score"] == score)
    return row


def _score(row: dict[str, Any], kind: str) -> str:
    values = row[f"{kind}_values"]
    if not values:
        return ""
    return percent(row[kind], row[f"{kind}_deviation"], len(values))


def accuracy(*stored: Any) -> Iterable[Row]:
    """Test accuracy of what is trained on each set."""
    yield "method", "infinite width", "standard", "linearized", "published"
    for method, place, label in _ORDER:
        row = _named(stored[place], method)
        # Networks of finite width on all images are a run of their own.
        finite = _named(stored[1], method) if place == 0 else row
        cells = (_score(row if kind == "infinite" else finite, kind) for kind in _KINDS)
        yield label, *cells, _PUBLISHED[method] if place < 4 else ""


_CIFAR = (
    ("full", 0, "all 500 images", "75.4"),
    ("rkip", 1, "`rkip`", "74.7"),
    ("random", 0, "`random`", "70.8"),
)


def cifar(*stored: Any) -> Iterable[Row]:
    """Animals against vehicles, at infinite width."""
    yield (
        "method",
        "right labels",
        "trucks scored as animals, as in the released code",
        "published",
    )
    for method, place, label, published in _CIFAR:
        scores = (
            _score(_named(stored[place], method, score), "infinite")
            for score in ("accuracy", "accuracy_released_label_fault")
        )
        yield label, *scores, published


_DEFENDED = (
    ("random", 0, "20 real images"),
    ("kip", 0, "`kip`"),
    ("rkip", 0, "`rkip`"),
    ("rkip_noise", 0, "`rkip_noise`"),
    ("rkip_noise", 1, "`rkip_noise --label_solve`"),
)


def defence(*stored: Any) -> Iterable[Row]:
    """What an attacker finds of networks that were trained on a set."""
    yield (
        "trained on",
        "originals found by search",
        "by exact decoding",
        "distilled images decoded",
        "copies in the set",
    )
    for method, place, label in _DEFENDED:
        found = {r["attack"]: r for r in _rows(stored[place]) if r["method"] == method}
        exact = found["auto"]
        yield (
            label,
            listed(found["kkt"]["num_recovered"]),
            listed(exact["num_recovered"]),
            ", ".join(
                f"{read} of {whole}"
                for read, whole in zip(
                    exact["num_distilled_recovered"],
                    exact["num_distilled"],
                    strict=True,
                )
            ),
            listed(exact["num_copies"]),
        )


TABLES = (
    Table(
        "distill_accuracy",
        _TABLES,
        "python -m experiments.distill --table --num_runs=7 --dataset=mnist",
        accuracy,
    ),
    Table(
        "distill_cifar10",
        ("distill/cifar10_full/table.json", "distill/cifar10_table/table.json"),
        "python -m experiments.distill --table --num_runs=7 --dataset=cifar10",
        cifar,
    ),
    Table(
        "distill_defence",
        (
            "distill/mnist_table/defence.json",
            "distill/mnist_label_solve/defence.json",
        ),
        "python -m experiments.distill --defence --dataset=mnist",
        defence,
    ),
)
