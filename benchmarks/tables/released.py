"""Heads, adapters, and trained weights alone."""

from collections.abc import Iterable
from typing import Any

from benchmarks.tables._cells import counts, listed, of_case, one, span, two, whole
from benchmarks.tables._marks import Row, Table


def heads(stored: dict[str, Any]) -> Iterable[Row]:
    """Embeddings read from heads."""
    yield (
        "head",
        "embeddings",
        "found within 1e-6",
        "worst squared distance",
        "certified",
        "falsely",
        "seconds",
    )
    rows = [r for r in stored["rows"] if "session" not in r]
    for kind in ("one gradient", "trained"):
        for layers in (1, 2):
            mine = of_case(rows, what=f"{kind}, {layers} hidden, after ReLU")
            sizes = [row["N"] for row in mine]
            yield (
                f"{kind}, {layers} hidden layer{'s' * (layers > 1)}",
                str(sizes[0]),
                counts([row["found"] for row in mine], sizes),
                two(max(row["worst"] for row in mine)),
                counts([row["certified"] for row in mine], sizes),
                str(sum(row["false"] for row in mine)),
                listed((row["s"] for row in mine), whole),
            )


_TRUNKS = {
    "trunk, 8 channels, stride 1, 8192 features": "one convolution of 8 channels, "
    "stride 1, ReLU: 8,192 features",
    "trunk, 16 channels, pooled, 4096 features": "one convolution of 16 channels, "
    "ReLU, average pooling: 4,096 features",
    "trunk, 3 blocks, 768 features": "three blocks with instance normalisation: 768 "
    "features",
    "lenet images, features": "LeNet-shaped, 5 images, from the features alone",
    "lenet images, features and kernels": "the same, with the kernels' gradient",
}


def trunks(stored: dict[str, Any]) -> Iterable[Row]:
    """Images through a trunk."""
    yield (
        "trunk of 32 x 32 x 3 images",
        "PSNR, median and least, dB",
        "largest misfit",
        "only one nearby",
        "worst squared distance",
        "seconds",
    )
    for what, label in _TRUNKS.items():
        (row,) = of_case(stored["rows"], what=what)
        yield (
            label,
            f"{row['psnr_median']:.1f}, {row['psnr_least']:.1f}",
            one(row["misfit_largest"]),
            str(row["only"]),
            two(row["worst"]) if "worst" in row else "",
            whole(row["s"]),
        )


_ADAPTERS = (
    ("10 images, 30 steps", "10 images, r = 16, width 1024, 30 steps"),
    ("10 images, 100 steps", "100 steps"),
    ("10 images, 500 steps", "500 steps (loss below 1e-3)"),
    ("20 images, 100 steps", "20 images, r = 32, width 2048, 100 steps"),
    ("10 images, one gradient", "one gradient after 100 steps, 10 images"),
    ("50 images, one gradient", "the same, 50 images, r = 64, width 2048"),
)


def adapters(stored: dict[str, Any]) -> Iterable[Row]:
    """Images of LoRA factors."""
    yield (
        "what is shared",
        "way of $A$",
        "N read",
        "returned",
        "certified",
        "falsely",
        "largest error",
    )
    for case, label in _ADAPTERS:
        rows = of_case(stored["rows"], case=case)
        yield (
            label,
            span(row["way_of_A"] for row in rows),
            listed(row["N_read"] for row in rows),
            listed(row["returned"] for row in rows),
            listed(row["certified"] for row in rows),
            str(sum(row["false"] for row in rows)),
            span(row["worst_error"] for row in rows),
        )


def law(stored: dict[str, Any]) -> Iterable[Row]:
    """Whether images are determined, over the border of the law."""
    yield (
        "$k - (m + r - N)$",
        "cross-entropy: determined",
        "found",
        "certified",
        "squares: determined",
        "found",
        "certified",
    )
    rows = [r for r in stored["rows"] if r["case"].startswith("law")]
    for less in sorted({row["k_less_border"] for row in rows}):
        cells = []
        for loss in ("cross_entropy", "squares"):
            mine = of_case(rows, case=f"law, {loss}", k_less_border=less)
            draws = sum(row["draws"] for row in mine)
            cells.append(f"{sum(row['determined'] for row in mine)} of {draws}")
            cells += [str(sum(row[n] for row in mine)) for n in ("found", "certified")]
        yield str(less), *cells


_STARTS = (
    ("digits", "digits, 64 pixels, width 1024"),
    ("mnist", "MNIST, 784 pixels, width 4096"),
    ("cifar10", "CIFAR-10, 3,072 values, width 2048"),
    ("cifar10_wide", "CIFAR-10, width 8192"),
)


def known_start(stored: dict[str, Any]) -> Iterable[Row]:
    """What trained weights alone tell."""
    yield (
        "network",
        "N",
        "verdict",
        "cosine that is stated",
        "true, to the span of the images",
        "to their mean",
        "to the nearest one",
    )
    for case, label in _STARTS:
        for size in sorted({r["N"] for r in of_case(stored["rows"], case=case)}):
            rows = of_case(stored["rows"], case=case, N=size)
            figures = (
                ", ".join(f"{row[name]:.2f}" for row in rows)
                for name in ("stated", "span", "mean", "nearest")
            )
            words = dict.fromkeys(row["word"] for row in rows)
            yield label, str(size), "; ".join(words), *figures


_ADAPTER = ("benchmarks/adapter.json",)
_HEADS = ("benchmarks/heads.json",)
_HEADS_COMMAND = "python -m benchmarks.bench_heads --out=results/benchmarks/heads.json"
TABLES = (
    Table("heads", _HEADS, _HEADS_COMMAND, heads),
    Table("trunks", _HEADS, _HEADS_COMMAND, trunks),
    Table("adapters", _ADAPTER, "python -m benchmarks.bench_adapter", adapters),
    Table("adapter_law", _ADAPTER, "python -m benchmarks.bench_adapter", law),
    Table(
        "known_start",
        ("benchmarks/known_start.json",),
        "python -m benchmarks.bench_known_start",
        known_start,
    ),
)
