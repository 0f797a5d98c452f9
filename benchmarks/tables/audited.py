"""Audits of the networks that `examples` makes."""

from collections.abc import Iterable
from typing import Any

from benchmarks.tables._cells import whole
from benchmarks.tables._marks import Row, Table

_NETWORKS = {
    "flax_mlp": "Flax MLP",
    "torch_mlp": "PyTorch MLP",
    "gradient": "one gradient",
}


def audits(stored: dict[str, Any]) -> Iterable[Row]:
    """What audits say of 16 digits."""
    yield (
        "",
        "recovered",
        "certain",
        "certain on shuffled units",
        "first among 99",
        "area of membership",
        "seconds, with making",
    )
    for row in stored["rows"]:
        yield (
            _NETWORKS[row["network"]],
            f"{row['recovered']} of {row['N']}",
            str(row["certified"]),
            str(row["certified_on_shuffled_units"]),
            f"{row['first']} of {row['N']}",
            f"{row['area']:.3f}",
            whole(row["s_with_making"]),
        )


TABLES = (
    Table(
        "audits",
        ("benchmarks/audit.json",),
        "python -m benchmarks.bench_audit --out=results/benchmarks/audit.json",
        audits,
    ),
)
