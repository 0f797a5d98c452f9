"""Speed and memory: kernels, steps, whole commands."""

from collections.abc import Iterable
from typing import Any

from benchmarks.tables._cells import of_case, ratio, whole
from benchmarks.tables._cells import one as one_digit
from benchmarks.tables._marks import Row, Table


def _case(stored: dict[str, Any], case: str) -> dict[str, Any]:
    (row,) = of_case(stored["rows"], case=case)
    return row


def against(
    algebraic: dict[str, Any],
    kkt: dict[str, Any],
    infinite: dict[str, Any],
    empirical: dict[str, Any],
    alone: dict[str, Any],
    distill: dict[str, Any],
) -> Iterable[Row]:
    """Ratios of medians, each pair in one run."""
    yield "what", "against", "times faster", "our memory, theirs"
    row = _case(algebraic, "mnist_20_1024")
    yield (
        "exact decoding, 20 images, width 1024",
        "the published search, 80,000 steps",
        ratio(row["published_s_of_80000_steps"] / row["s"]),
        "",
    )
    row = _case(kkt, "step, width 1024, 40 candidates: default")
    yield (
        "a KKT step, width 1024, 40 candidates",
        "the published step, a residual as large as the parameters",
        ratio(row["times_faster_than_published"]),
        "",
    )
    yield (
        "the same",
        "such a residual without the first layer, as our default",
        ratio(row["times_faster_than_same_equations_parameter_sized"]),
        "",
    )
    for case, label in (
        ("FC, 2 hidden, (2000, 784) x (500, 784)", "infinite FC kernel, value"),
        ("FC, gradient in x1, (500, 784)^2", "its gradient"),
        ("Conv3 + flatten, (100, 32, 32, 3)^2", "infinite Conv3 with flatten"),
        ("Conv3 + global pooling, 4 x 4", "infinite Conv3 with global pooling"),
    ):
        row = _case(infinite, case)
        yield label, "neural-tangents", ratio(row["times_faster"]), _memory(row)
    row = _case(empirical, "mlp1024")
    label, best = "empirical NTK, MLP 1024, 200 x 200", "the best of neural-tangents' 4"
    yield label, best, ratio(row["times_faster"]), _memory(row)
    row = _case(alone, "mlp4096")
    yield (
        "empirical NTK, MLP 4096, 40 x 40",
        "the same",
        ratio(row["times_faster"]),
        f"{row['ours_alone_peak_GB']:.2f}, {row['nt_alone_peak_GB']:.2f} GB, whole "
        "processes",
    )
    row = _case(empirical, "convnet64")
    label = "empirical NTK, ConvNet 64, 10 outputs, 20 x 20"
    yield label, "the same", ratio(row["times_faster"]), _memory(row)
    for name, label in (("rkip", "an RKIP"), ("kip", "a KIP")):
        for case, other in (
            ("as published", "the published loss on a neural-tangents kernel"),
            ("in our loss", "our loss on a neural-tangents kernel"),
        ):
            row = _case(distill, f"{name} step: neural-tangents {case}")
            yield f"{label} step, 500 to 20", other, ratio(row["speedup"]), ""


def _memory(row: dict[str, Any]) -> str:
    sides = (row["ours_temp_MiB"], row["nt_temp_MiB"])
    return (
        ", ".join(f"{size:.2f}" if size < 1 else whole(size) for size in sides) + " MiB"
    )


_SIDES = {
    "curvature": ("`curvature`", "1"),
    "curvature, half of the batch": ("`curvature`", "1/2"),
    "loss_difference": ("`loss_difference`", "1"),
    "loss_difference, half of the batch": ("`loss_difference`", "1/2"),
    "gradient": ("`gradient`", "1"),
    "PGD-10": ("`adversarial`, PGD of 10 steps", "1"),
    "curvature, a quarter of the batch": ("`curvature`", "1/4"),
    "loss_difference, a quarter of the batch": ("`loss_difference`", "1/4"),
    "PGD-10, a quarter of the batch": ("`adversarial`, PGD of 10 steps", "1/4"),
}


def curvature(*stored: dict[str, Any]) -> Iterable[Row]:
    """A step of squeezing, beside the plain one of the same run."""
    yield "loss", "share of the batch", "times plain", "peak memory, GB"
    rows = [row for file in stored for row in file["rows"]]
    for side, (label, share) in _SIDES.items():
        (row,) = of_case(rows, side=side)
        ratio = row["cpu_over_plain"]
        yield label, share, f"{ratio:.3g}", f"{row['peak_memory_gb']:.1f}"


def cold(stored: dict[str, Any]) -> Iterable[Row]:
    """Whole commands."""
    yield "command", "no cache", "first, cache empty", "second"
    for row in stored["rows"]:
        spent = (f"{row[f's_{name}']:.1f}" for name in ("without", "first", "second"))
        yield row["what"], *spent


def streamed(stored: dict[str, Any]) -> Iterable[Row]:
    """A streamed kernel's time per row."""
    yield "kernel", "rows x columns", "microseconds a row", "peak memory, GB"
    for row in stored["rows"]:
        yield (
            f"`{row['case']}`",
            f"{row['rows']:,} x {row['columns']:,}",
            f"{row['us_per_row']:.0f}",
            f"{row['peak_GB']:.2f}",
        )


def steps(*stored: dict[str, Any]) -> Iterable[Row]:
    """Steps of DC, MTT and DM beside eager PyTorch."""
    yield "step", "threads", "ours, seconds", "PyTorch, seconds", "times faster"
    condensation, one, two_threads = (
        {row["side"]: row for row in file["rows"]} for file in stored
    )
    for name, label in (("DC", "DC, 10 x 256 real images"), ("MTT", "MTT, 50 steps")):
        ours, theirs = condensation[name], condensation[f"PyTorch, {name}"]
        yield (
            label,
            str(ours["threads"]),
            f"{ours['run']:.1f}",
            f"{theirs['run']:.1f}",
            f"{theirs['run_over_ours']:.2f}",
        )
    for file in (two_threads, one):
        for other in ("PyTorch, DM", "PyTorch, DM, channels last"):
            ours, theirs = file["DM"], file[other]
            yield (
                f"DM{other.removeprefix('PyTorch, DM')}",
                str(ours["threads"]),
                f"{ours['run']:.1f}",
                f"{theirs['run']:.1f}",
                f"{theirs['run_over_dm']:.2f}",
            )


def limits(stored: dict[str, Any]) -> Iterable[Row]:
    """How near programs come to their matrix products alone."""
    yield "program", "ms", "its products alone, ms", "products / program"
    for row in stored["rows"]:
        yield (
            row["case"],
            f"{row['ms']:.1f}",
            f"{row['products_ms']:.1f}",
            f"{row['of_products']:.2f}",
        )


_SHARED = {
    "dm": "DM",
    "rdm": "RDM-DC",
    "dc": "DC",
    "mtt": "MTT",
    "mtt_batches": "MTT, batches of 6",
    "rkip": "RKIP",
    "rkip_batches": "RKIP, batches of 9",
    "poison_dm": "poison by features",
    "poison_gradient": "poison by gradients",
    "kkt": "KKT, 200 candidates",
}


def shared(stored: dict[str, Any]) -> Iterable[Row]:
    """Bytes of a device alone, and of each of eight."""
    yield "search", "one device", "each of eight", "difference"
    for row in stored["rows"]:
        yield (
            _SHARED[row["search"]],
            f"{row['bytes_one']:,}",
            f"{row['bytes_each']:,}",
            one_digit(row["gap"]),
        )


def _files(*names: str) -> tuple[str, ...]:
    return tuple(f"benchmarks/{name}.json" for name in names)


_BENCH = "python -m benchmarks.bench_"
TABLES = (
    Table(
        "speed",
        _files(
            *("algebraic", "kkt", "infinite", "empirical", "empirical_mlp4096"),
            "distill",
        ),
        "for name in algebraic kkt infinite empirical distill; do "
        "python -m benchmarks.bench_$name --out=results/benchmarks/$name.json; done; "
        f"{_BENCH}empirical --case=mlp4096 "
        "--out=results/benchmarks/empirical_mlp4096.json",
        against,
    ),
    Table(
        "curvature_steps",
        _files("curvature", "curvature_quarter"),
        f"{_BENCH}curvature --batch=32; {_BENCH}curvature --batch=32 --share=0.25",
        curvature,
    ),
    Table("cold", _files("cold"), f"{_BENCH}cold --repeats=3", cold),
    Table("kernel_rows", _files("kernel_rows"), f"{_BENCH}kernel_rows", streamed),
    Table("limits", _files("limits"), f"{_BENCH}limits", limits),
    Table("shared_memory", _files("shared_memory"), f"{_BENCH}shared_memory", shared),
    Table(
        "condensing_steps",
        _files("condensation", "dm", "dm_two_threads"),
        f"{_BENCH}condensation; {_BENCH}dm",
        steps,
    ),
)
