"""Certificates beside the truth; what two hosts leave beside one."""

from collections.abc import Iterable
from typing import Any

from benchmarks.tables._cells import of_case, one
from benchmarks.tables._marks import Row, Table

_EVIDENCES = {
    "closed_units": "weights or one gradient: closed units",
    "clients": "what clients send: closed units",
    "narrow": "weights, PyTorch's initial ones, 64 to 256 units: closed units",
    "decoding": "weights: decoding",
    "class_rows": "one gradient of many images: class by class",
    "heads": "a head: embeddings",
    "adapters": "a low-rank adapter, or one gradient of it",
}


def _least(rows: list[dict[str, Any]]) -> str:
    told = [row["tightest"] for row in rows if row["tightest"] is not None]
    return f"{min(told):.2f}" if told else "none"


def sound(stored: dict[str, Any]) -> Iterable[Row]:
    """What is certified of damaged inputs, and what of that is false."""
    yield (
        "evidence",
        "families",
        "inputs",
        "images",
        "certified",
        "false",
        "excepted",
        "least stated over true error of those that held",
    )
    for evidence, label in _EVIDENCES.items():
        rows = of_case(stored["rows"], evidence=evidence)
        names = ("inputs", "images", "certified", "false", "merged")
        sums = [sum(row[name] for row in rows) for name in names]
        yield label, str(len(rows)), *(f"{s:,}" for s in sums), _least(rows)


def narrow(stored: dict[str, Any]) -> Iterable[Row]:
    """Small networks, by loss and width."""
    yield "loss, width of the first layer", "networks", "images", "certified", "false"
    for row in of_case(stored["rows"], evidence="narrow"):
        yield (
            row["family"].removeprefix("PyTorch's weights, "),
            *(str(row[name]) for name in ("inputs", "images", "certified", "false")),
        )


def hosts(stored: dict[str, Any]) -> Iterable[Row]:
    """How far two hosts and one are apart."""
    yield "job", "arrays", "that differ", "largest difference", "of"
    for row in stored["rows"]:
        array = f"`{row['array'].rpartition(':')[2]}`" if row["differ"] else ""
        yield (
            row["job"],
            str(row["arrays"]),
            str(row["differ"]),
            one(row["largest"]),
            array,
        )


_BENCH = "python -m benchmarks.bench_"
_SOUND = f"{_BENCH}soundness --out=results/benchmarks/soundness.json"
TABLES = (
    Table("soundness", ("benchmarks/soundness.json",), _SOUND, sound),
    Table("narrow", ("benchmarks/soundness.json",), _SOUND, narrow),
    Table(
        "hosts",
        ("benchmarks/hosts.json",),
        f"{_BENCH}hosts --out=results/benchmarks/hosts.json",
        hosts,
    ),
)
