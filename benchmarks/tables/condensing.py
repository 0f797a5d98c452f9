"""Condensed sets: at equal seconds, by preset, under poisoning, under attack."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.tables._cells import listed, percent, whole
from benchmarks.tables._marks import Row, Table

_ARCHITECTURES = ("ConvNetW32", "MLP", "ConvNetW32D2", "ConvNetW32ASNN")


def compared(stored: dict[str, Any]) -> Iterable[Row]:
    """Every method with the same seconds, trained on by several networks."""
    first, *others = _ARCHITECTURES
    yield "method", "steps", f"{first} (condenses)", *others
    for name, row in stored["rows"].items():
        cells = (
            percent(np.mean(values), np.std(values, ddof=1))
            for values in (row["accuracy"][a] for a in _ARCHITECTURES)
        )
        label = "random real images" if name == "random" else f"`{name}`"
        yield label, str(row["steps"]), *cells


def judged(stored: dict[str, Any]) -> Iterable[Row]:
    """Sets under all three kinds of attack."""
    yield (
        "method",
        "accuracy",
        "attacked images, clean",
        "PGD",
        "AutoAttack",
        "poisoning succeeds",
        "without attack",
        "set recovers",
    )
    for row in stored["table"]:
        of = row["num_decisions"]
        name = row["method"]
        yield (
            "random real images" if name == "random" else f"`{name}`",
            percent(row["accuracy"], row["accuracy_std"]),
            *(
                whole(100 * row[part])
                for part in ("accuracy_attacked", "pgd", "autoattack")
            ),
            *(
                f"{round(of * row[part])} of {of}"
                for part in ("attack_success", "success_without_attack")
            ),
            whole(100 * row["recovered"]),
        )


_SETS = ("mnist_1", "mnist_10", "cifar10_1", "cifar10_10")
_METHODS = ("dc", "dsa", "mtt", "tesla")


def presets(*stored: dict[str, Any]) -> Iterable[Row]:
    """What `--preset=cpu` reaches."""
    runs = iter(stored)
    found = {(m, s): next(runs) for m in _METHODS for s in _SETS}
    yield (
        "method",
        "MNIST, 1 per class",
        "MNIST, 10",
        "CIFAR-10, 1",
        "CIFAR-10, 10",
        "copies of training images in the set, in this order",
    )

    def score(row: dict[str, Any], part: str) -> str:
        return percent(row[part]["convnet"], row[part]["convnet_deviation"])

    same = (score(found["dc", s], "accuracy_random") for s in _SETS)
    yield "random real images", *same, ""
    for method in _METHODS:
        rows = [found[method, s] for s in _SETS]
        copies = (str(row.get("nearest", {}).get("num_copies", "-")) for row in rows)
        yield (
            f"`{method}`",
            *(score(row, "accuracy") for row in rows),
            ", ".join(copies),
        )


_WEIGHTS = ("none", "0.1", "1", "10")


def penalised(*stored: dict[str, Any]) -> Iterable[Row]:
    """DC with a regularised loss."""
    yield "weight", "accuracy", "attacked network, clean", "PGD100", "then APGD-T"
    for weight, made, attacked in zip(
        _WEIGHTS, stored[: len(_WEIGHTS)], stored[len(_WEIGHTS) :], strict=True
    ):
        score = made["accuracy"]
        shares = (attacked["accuracy"][n] for n in ("clean", "pgd100", "apgd_t"))
        yield (
            weight,
            percent(score["convnet"], score["convnet_deviation"]),
            *(percent(share) for share in shares),
        )


_POISONS = ("direct", "direct_entropy", "direct_means", "dm_128")


def poisoned(*stored: dict[str, Any]) -> Iterable[Row]:
    """Condensed sets of poisoned images."""
    yield (
        "attack",
        "method",
        "seeds",
        "accuracy %",
        "attack success %",
        "without attack",
        "poison dropped",
        "deviation",
    )
    for name, file in zip(_POISONS, stored, strict=True):
        attack = "dm, 128/255" if name == "dm_128" else "direct"
        for row in file["table"]:
            of = row["num_decisions"]
            hits = round(of * row["attack_success"])
            dropped = row["poison_dropped"]
            deviation = row.get("deviation")
            seeds = {r["seed"] for r in file["runs"] if r["method"] == row["method"]}
            yield (
                attack,
                f"`{row['method']}`",
                listed(sorted(seeds)),
                percent(row["accuracy"], row["accuracy_std"]),
                f"{percent(row['attack_success'])} ({hits} of {of})",
                f"{round(of * row['success_without_attack'])} of {of}",
                "" if dropped is None else f"{100 * dropped:.0f}%",
                "" if deviation is None else f"{deviation:.3f}",
            )


def robust(*stored: dict[str, Any]) -> Iterable[Row]:
    """SRe2L, plain and regularised by curvature, on two seeds."""
    yield (
        "regularizer",
        "clean",
        "PGD100",
        "MIM",
        "student's top eigenvalue, seed by seed",
        "squeezed network's",
    )
    for name, rows in (("none", stored[:2]), ("curvature", stored[2:])):
        cells = []
        for part in ("clean", "pgd100", "mim"):
            values = [row["accuracy"][part] for row in rows]
            cells.append(percent(np.mean(values), np.std(values, ddof=1)))
        values = (
            ", ".join(f"{r['top_hessian_eigenvalue'][p]:.2f}" for r in rows)
            for p in ("student", "squeezed")
        )
        yield f"`{name}`", *cells, *values


_DC = "condense/dc_digits_1_weight_"
TABLES = (
    Table(
        "compare_seconds",
        ("compare/mnist_1/results.json",),
        "python -m experiments.compare --dataset=mnist --images_per_class=1 "
        "--seconds=120",
        compared,
    ),
    Table(
        "compare_attacks",
        ("compare/attacks_cifar10/results.json",),
        "python -m experiments.compare --judge=attacks --dataset=cifar10 "
        "--images_per_class=10 --methods=dm,rdm,rdm_curvature,rkip_noise",
        judged,
    ),
    Table(
        "condense_presets",
        tuple(f"condense/{m}_{s}/results.json" for m in _METHODS for s in _SETS),
        "for method in dc dsa mtt tesla; do for dataset in mnist cifar10; do "
        "for count in 1 10; do python -m experiments.distill --method=$method "
        "--preset=cpu --dataset=$dataset --images_per_class=$count --evaluate "
        "--workdir=runs/${method}_${dataset}_$count; done; done; done",
        presets,
    ),
    Table(
        "condense_penalised",
        (
            *(f"{_DC}{weight}/results.json" for weight in _WEIGHTS),
            *(f"{_DC}{weight}/evade/results.json" for weight in _WEIGHTS),
        ),
        'for weight in "" --penalty_weight=0.1 --penalty_weight=1 --penalty_weight=10; '
        "do python -m experiments.distill --method=dc --dataset=digits "
        "--images_per_class=1 --num_steps=200 $weight --evaluate "
        "--workdir=runs/dc$weight; python -m experiments.evade "
        "--model=runs/dc$weight/model --dataset=digits --eps=0.05 "
        "--attacks=pgd100,apgd_t --num_attacked=360; done",
        penalised,
    ),
    Table(
        "poison",
        tuple(f"poison/{name}/results.json" for name in _POISONS),
        'for flags in "--attack=direct --methods=dm,rdm --num_seeds=5" '
        '"--attack=direct --methods=dm_entropy --num_seeds=5" '
        '"--attack=direct --methods=dm_truncated,dm_trimmed,dm_median --num_seeds=2" '
        '"--attack=dm --bound=128 --methods=dm,rdm --num_seeds=5"; '
        "do python -m experiments.poison --preset=cpu --dataset=cifar10 $flags; done",
        poisoned,
    ),
    Table(
        "robust",
        tuple(
            f"robust/{name}_{seed}/results.json"
            for name in ("none", "curvature")
            for seed in (0, 1)
        ),
        "for regularizer in none curvature; do for seed in 0 1; do "
        "python -m experiments.distill --method=sre2l --regularizer=$regularizer "
        "--preset=cpu --dataset=cifar10 --num_train=2000 --num_test=400 "
        "--images_per_class=10 --evaluate --attacks=pgd100,mim --seed=$seed; "
        "done; done",
        robust,
    ),
)
