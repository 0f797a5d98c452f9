"""Computes a kernel on real images: saved, drawn, and followed through training.

    python -m experiments.kernel --kernel=infinite_mlp --dataset=mnist \
        --num_train=500 --workdir=runs/kernel

Each kernel has flags of its own: --kernel=empirical_mlp --help lists them.

Writes config.json, results.json, arrays.npz, kernel.png and spectrum.png to --workdir,
and distance.png for a network that is trained. With --stream the kernel goes to
kernel.npy, block by block, and need not fit in memory. Killed at any moment and started
again with the same --workdir, it goes on.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ntk_privacy import _checks
from ntk_privacy.data.choice import TaskImages
from ntk_privacy.evaluation import kernel_study
from ntk_privacy.kernels import blockwise, named
from ntk_privacy.kernels.named import BUDGET, KERNELS
from ntk_privacy.method import Method, field
from ntk_privacy.reports import kernel_plots, summaries

from . import _flags, _run
from ._groups import Run
from ._job import Job
from ._kinds import Kind, Results
from ._program import Asked, Program

Loaded = tuple[named.Kernel, jax.Array, jax.Array, np.ndarray, tuple[str, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Training of the network."""

    train: bool = field(
        True, "Train the network, and measure how far its kernel moves."
    )
    stop_loss: float = field(1e-3, "Mean of (f - y)^2 / 2 at which training ends.")
    max_train_steps: int = field(2000, "Limit of training.")

    def __post_init__(self):
        _checks.at_least(1, max_train_steps=self.max_train_steps)
        _checks.positive(stop_loss=self.stop_loss)

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        names = ("stop_loss", "max_train_steps")
        return {} if self.train else dict.fromkeys(names, "--notrain")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """The kernel in memory."""

    stream: bool = field(
        False, "Write the kernel block by block to kernel.npy instead of arrays.npz."
    )
    budget: float = field(
        BUDGET, "Working memory of a block, MiB, of --stream and of networks."
    )

    precision: Literal["float32", "float64"] = field("float32", "Of everything.")

    def __post_init__(self):
        _checks.positive(budget=self.budget)


def _passed_over(asked: Asked[Any]) -> dict[str, str]:
    if asked.group(Blocks).stream or "training" in asked.method.wants:
        return {}
    return {"budget": f"--kernel={asked.method.name} in one piece, without --stream"}


def _check(asked: Asked[Any]) -> None:
    if asked.group(Blocks).stream and asked.flat().get("train"):
        raise ValueError(
            "stream=true keeps no kernel in memory to compare with: add --notrain."
        )


def _load(asked: Asked[Any]) -> Loaded:
    """Returns kernel, images, targets, classes and names, before all else."""
    choice = asked.group(TaskImages)
    images, key = choice.chosen(asked.group(Run).seed)
    dataset = images.regression(choice.task)
    flags = asked.group(Blocks)
    dtype = jnp.dtype(flags.precision)
    x, y = jnp.asarray(dataset.x_train, dtype), jnp.asarray(dataset.y_train, dtype)
    with _flags.usage():
        try:
            problem = named.Problem(x, y.shape[1])
            kernel = asked.method.run(problem, asked.config, key=key)
        except ImportError as error:
            raise ValueError(f"kernel={asked.method.name}: {error}") from error
        if flags.stream:
            blockwise.size_within(kernel.fn, x[:1], named.bytes_of(flags.budget))
    return kernel, x, y, dataset.class_train, images.class_names


def _work(job: Job, loaded: Loaded) -> Results:
    name, flags, workdir = job.asked.method.name, job.asked.flat(), job.workdir
    kernel, x, y, classes, class_names = loaded
    training = ("train", "stop_loss", "max_train_steps")
    found = kernel_study.study(
        kernel, x, y, classes, called=name,
        path=workdir.path("kernel.npy") if flags["stream"] else None,
        budget=flags["budget"], stage=job.by_loop({"blocks": "kernel"}),
        **{flag: flags[flag] for flag in training if flag in flags},
    )  # fmt: skip
    shown = {"called": f"{name}, {flags['dataset']}", "class_names": class_names}
    kernel_plots.study(found, workdir.folder, **shown)
    workdir.write_arrays("arrays.npz", **found.arrays)
    told = {"kernel": name, "dataset": flags["dataset"], "num_images": len(x)}
    return told | {"seed": job.seed, **found.figures, "seconds": job.seconds()}


def _kind(method: Method[Any]) -> Kind:
    trained = (Training,) if "training" in method.wants else ()
    return Kind(
        groups=(TaskImages, *trained, Blocks, Run),
        defaults=lambda *_: {"num_train": 100, "workdir": "runs/kernel"},
        passed_over=_passed_over,
        check=_check,
        load=_load,
        work=_work,
        timers=("kernel", "train"),
        told=lambda asked, results: _run.placed(
            asked, summaries.kernel(results), "kernel.png, spectrum.png"
        ),
    )


PROGRAM = Program(
    about="Computes a kernel on real images, and its spectrum.",
    methods=KERNELS,
    kind=_kind,
    default="infinite_mlp",
    flag="kernel",
)
run, main = _run.run, _run.main

if __name__ == "__main__":
    _flags.run(main, PROGRAM.parse)
