"""What closed units read."""

from collections.abc import Iterable
from typing import Any

from benchmarks.tables._cells import (
    counts,
    listed,
    of_case,
    seconds,
    span,
    two,
    whole,
)
from benchmarks.tables._marks import Row, Table

_TRAINED = {
    "mnist_20": "full batch to 1e-10",
    "mnist_50": "full batch to 1e-10",
    "mnist_100": "full batch to 1e-10",
    "mnist_20_256": "full batch to 1e-10, width 256",
    "mnist_20_4096_flow": "full batch to 1e-10, width 4096",
    "mnist_20_4096": "width 4096, `--schedule=heavy_ball`",
    "mnist_100_4096": "width 4096, `--schedule=heavy_ball`",
    "mnist_200_4096": "width 4096, `--schedule=heavy_ball`",
    "cifar_100_4096": "width 4096, `--schedule=heavy_ball`, CIFAR-10",
    "cifar_50": "full batch to 1e-10, CIFAR-10",
    "batches_20": "batches of 5 with momentum, squares, 1,000 steps",
    "batches_50": "batches of 5 with momentum, squares, 1,000 steps",
    "logistic_20": "batches of 5 with momentum, logistic loss, 1,000 steps",
    "logistic_50": "batches of 5 with momentum, logistic loss, 1,000 steps",
    "decay_20": "batches of 5 with momentum, squares, L2 decay 5e-4, 2,000 steps",
    "decay_50": "batches of 5 with momentum, squares, L2 decay 5e-4, 2,000 steps",
    "deep_20": "four layers, batches of 5",
    "deep_50": "four layers, batches of 5",
    "classes_20": "ten classes, cross-entropy, batches of 5",
    "classes_50": "ten classes, cross-entropy, batches of 5",
    "spear_20": "one gradient (g), six layers of width 200",
    "gradient_50_1000": "one gradient (g), six layers of width 1000",
    "gradient_100_1000": "one gradient (g), six layers of width 1000",
    "gradient_60_512": "one gradient (g), two layers of width 512",
    "gradient_100_1024": "one gradient (g), two layers of width 1024",
    "gradient_200_2048": "one gradient (g), two layers of width 2048",
    "learnt_200_2048": "the same, logits of deviation 1.2, as of a network that has "
    "learnt",
}


def _worst(rows: list[dict[str, Any]]) -> float | None:
    told = [row["largest"] for row in rows if row["largest"] is not None]
    return max(told) if told else None


def _row(label: str, rows: list[dict[str, Any]]) -> Row:
    sizes = [row["N"] for row in rows]
    return (
        label,
        str(sizes[0]),
        str(len(rows)),
        span(row["kernel_distance"] for row in rows),
        counts([row["found"] for row in rows], sizes),
        counts([row["certified"] for row in rows], sizes),
        str(sum(row["false"] for row in rows)),
        f"{_worst(rows):.1e}",
        span((row["s"] for row in rows), seconds),
    )


_HEADER = (
    "trained",
    "N",
    "seeds",
    "kernel distance",
    "found",
    "certified",
    "falsely",
    "largest squared distance",
    "seconds",
)


def trained(stored: dict[str, Any]) -> Iterable[Row]:
    """Networks and gradients, in the order of the labels."""
    cases = {row["case"] for row in stored["rows"]}
    yield _HEADER
    for case, label in _TRAINED.items():
        if case in cases:
            yield _row(label, of_case(stored["rows"], case=case))


def by_class(many: dict[str, Any], largest: dict[str, Any]) -> Iterable[Row]:
    """One gradient, decoded class by class."""
    yield (
        "batch, width",
        "draws",
        "exact",
        "all certified, read again",
        "largest squared distance",
        "peak memory, GB",
        "seconds, quiet",
        "busy, read again",
    )
    found = [
        *of_case(many["rows"], session="class_rows"),
        *(dict(row, session="class_rows") for row in largest["rows"]),
    ]
    for case in ("gradient_100_1024", "gradient_200_2048", "gradient_500_4096"):
        rows = [r for r in found if r["case"] == case and "seed" in r]
        again = [
            r
            for r in many["rows"]
            if r["case"] == case and r.get("session") == "mended" and "seed" in r
        ]
        certified = sum(r["certified"] == r["N"] for r in again)
        yield (
            f"{rows[0]['N']}, {rows[0]['width']}",
            str(len(rows)),
            str(sum(r["found"] == r["N"] and r["largest"] < 1e-6 for r in rows)),
            f"{certified} of {len(again)}"
            if again
            else f"not run again ({rows[0]['certified']} images, before)",
            f"{_worst(rows):.1e}",
            f"{_peak(found, case):.1f}",
            span((r["s"] for r in rows), seconds),
            span((r["s"] for r in again), seconds) if again else "",
        )


def _peak(rows: list[dict[str, Any]], case: str) -> float:
    return next(r["peak_gb"] for r in rows if r["case"] == case and "peak_gb" in r)


_CHANGED = {
    "cosine": "cosine schedule of steps",
    "nesterov": "Nesterov momentum",
    "clipping": "gradients clipped to norm 1",
    "dropout": "dropout of half the units after the first ReLU",
    "label_noise": "noise on labels, each epoch anew",
    "flips": "mirrored at random: each form is an image, 40 in all",
    "residual": "residual blocks",
    "layer_norm_after": "layer normalisation after the ReLU and in all layers above",
    "attention": "self-attention over 16 tokens of the layer's output",
    "convolution": "a convolution of the layer's output",
    "six_layers": "six hidden layers (c)",
    "fine_tuning": "fine-tuning of a network that 1,000 other images trained (c)",
    "features": "a head on 512 frozen features (c)",
    "gradient": "one gradient, in float32 (c)",
    "gradient_float16": "the same, in float16 (c)",
    "gradient_bfloat16": "the same, in bfloat16 (c)",
    "float16": "both ends stored in float16 (c)",
    "bfloat16": "both ends stored in bfloat16 (c)",
    "gelu_100": "GELU, 100 times as steep",
    "gelu_30": "GELU, 30 times as steep",
    "gelu_10": "GELU, 10 times as steep",
    "gelu": "GELU",
    "silu_100": "SiLU, 100 times as steep",
    "silu_30": "SiLU, 30 times as steep",
    "silu_10": "SiLU, 10 times as steep",
    "silu": "SiLU",
    "leaky": "leaky ReLU of slope 0.01",
    "adam": "Adam",
    "adamw": "AdamW",
    "augmentation": "images shifted by up to 2 pixels",
    "batch_norm_before": "batch normalisation before the first ReLU",
    "layer_norm_before": "layer normalisation before the first ReLU",
}


def changed(stored: dict[str, Any]) -> Iterable[Row]:
    """One thing changed a row."""
    yield (
        "changed",
        "found",
        "certified",
        "falsely",
        "verdict",
        "kernel distance",
        "largest squared distance",
    )
    for case, label in _CHANGED.items():
        rows = of_case(stored["rows"], case=case)
        sizes = [row["N"] for row in rows]
        certified = counts([row["certified"] for row in rows], sizes)
        returned = [r["largest"] for r in rows if r["largest"] is not None]
        yield (
            label,
            counts([row["found"] for row in rows], sizes),
            certified,
            str(sum(row["false"] for row in rows)),
            "; ".join(dict.fromkeys(row["word"] for row in rows)),
            span(row["kernel_distance"] for row in rows),
            two(max(returned)) if returned else "nothing returned",
        )


_OPTIMISERS = {
    "momentum": "SGD with momentum",
    "momentum, 50 images": "the same",
    "plain steps": "SGD",
    "L2 decay 5e-4": "SGD with momentum and L2 decay of 5e-4",
    "AdamW": "AdamW",
}


def pytorch(stored: dict[str, Any]) -> Iterable[Row]:
    """Checkpoints of PyTorch, and nothing else."""
    yield (
        "trained by",
        "N",
        "seed, as guessed",
        "correlation, and of the next seed",
        "found",
        "certified",
        "largest squared distance",
        "seconds of the seed, of reading",
    )
    for case, label in _OPTIMISERS.items():
        (row,) = of_case(stored["rows"], case=case)
        yield (
            label,
            str(row["N"]),
            f"{row['seed']}, {row['guessed']}",
            f"{row['correlation']:.2f}, {row['runner_up']:.3f}",
            counts([row["found"]], [row["N"]]),
            counts([row["certified"]], [row["N"]]),
            two(row["largest"]) if row["largest"] is not None else f'"{row["word"]}"',
            f"{seconds(row['seed_s'])}, {seconds(row['s'])}",
        )


def inversion(stored: dict[str, Any]) -> Iterable[Row]:
    """One gradient, by closed units and by optimisation."""
    yield "attack", "N", "recovered", "least PSNR, dB", "mean PSNR, dB", "seconds"
    sizes = sorted({row["N"] for row in stored["rows"]})
    for method in ("closed units", "optimisation"):
        for size in sizes:
            every = of_case(stored["rows"], method=method, N=size)

            def best(name, every=every):
                """Of the weights of total variation, the best one, seed by seed."""
                seeds = sorted({row["seed"] for row in every})
                return [max(r[name] for r in of_case(every, seed=s)) for s in seeds]

            yield (
                method if size == sizes[0] else "the same",
                str(size),
                listed(best("recovered")),
                span(best("psnr_least"), whole),
                span(best("psnr_mean"), whole),
                span((row["s"] for row in every), whole),
            )


def identified(stored: dict[str, Any]) -> Iterable[Row]:
    """Certified images among 99 others of their class."""
    yield (
        "evidence",
        "images",
        "certified",
        "own image first of 100",
        "certified of another set, its own image first",
        "certified with wrong weights",
    )
    for row in stored["rows"]:
        yield (
            f"{row['kind']}, {row['dataset']}, width {row['width']}",
            str(row["n"]),
            str(row["certified"]),
            str(row["first_of_100"]),
            f"{row['other_set_certified']}, {row['other_set_first_of_100']}",
            str(row["wrong_weights_certified"]),
        )


_BENCH = "python -m benchmarks."
TABLES = (
    Table(
        "closed_units",
        ("benchmarks/closed_units.json",),
        f"{_BENCH}bench_closed_units --out=results/benchmarks/closed_units.json",
        trained,
    ),
    Table(
        "closed_units_rivals",
        ("benchmarks/closed_units_rivals.json",),
        f"{_BENCH}bench_closed_units --rows=spear_20,batches_20,batches_50,logistic_20,"
        "logistic_50,decay_20,deep_20,classes_20,classes_50,gradient_50_1000,"
        "gradient_100_1000,mnist_20_256 --seeds=0,1,2",
        trained,
    ),
    Table(
        "closed_units_general",
        ("benchmarks/closed_units_general.json",),
        f"{_BENCH}bench_closed_units_general",
        changed,
    ),
    Table(
        "gradient_by_class",
        ("benchmarks/gradient_by_class.json", "benchmarks/gradient_by_class_500.json"),
        f"{_BENCH}bench_gradient_inversion "
        "--success=gradient_100_1024,gradient_200_2048 --draws=20; "
        f"{_BENCH}bench_gradient_inversion --success=gradient_500_4096 --draws=1",
        by_class,
    ),
    Table("pytorch", ("benchmarks/pytorch.json",), f"{_BENCH}bench_pytorch", pytorch),
    Table(
        "gradient_inversion",
        ("benchmarks/gradient_inversion.json",),
        f"{_BENCH}bench_gradient_inversion",
        inversion,
    ),
    Table(
        "identification",
        ("benchmarks/identification.json",),
        f"{_BENCH}bench_identification --seeds=0",
        identified,
    ),
)
