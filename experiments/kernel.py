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

from experiments import _flags, _kernels, _run
from experiments._groups import Run, TaskImages
from experiments._program import Asked, Program
from ntk_privacy import _checks
from ntk_privacy.kernels.named import BUDGET, KERNELS
from ntk_privacy.method import Method, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(TaskImages):
    """Images."""

    num_train: int = field(
        100, "Images N, balanced over the classes.", former=("num_images",)
    )


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
    """Blocks of the kernel."""

    stream: bool = field(
        False, "Write the kernel block by block to kernel.npy instead of arrays.npz."
    )
    budget: float = field(
        BUDGET, "Working memory of a block, MiB, of --stream and of networks."
    )

    def __post_init__(self):
        _checks.positive(budget=self.budget)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelRun(Run):
    """The run."""

    workdir: str = field("runs/kernel", "Folder of the results.")
    precision: Literal["float32", "float64"] = field("float32", "Of everything.")


def _groups(method: Method[Any]) -> tuple[type, ...]:
    trained = (Training,) if "training" in method.wants else ()
    return (Images, *trained, Blocks, KernelRun)


def _passed_over(asked: Asked[Any]) -> dict[str, str]:
    if asked.group(Blocks).stream or "training" in asked.method.wants:
        return {}
    return {"budget": f"--kernel={asked.method.name} in one piece, without --stream"}


def _check(asked: Asked[Any]) -> None:
    if asked.group(Blocks).stream and _kernels.is_trained(asked):
        raise ValueError(
            "stream=true keeps no kernel in memory to compare with: add --notrain."
        )


PROGRAM = Program(
    about="Computes a kernel on real images, and its spectrum.",
    methods=KERNELS,
    groups=_groups,
    default="infinite_mlp",
    passed_over=_passed_over,
    check=_check,
    flag="kernel",
)


def run(asked: Asked[Any]) -> dict[str, Any]:
    """Runs one configuration; returns what results.json holds.

    Raises:
      UsageError: the folder belongs to another configuration, or the flags ask for
        what the image set does not have.
      OSError: a file is missing.
      ValueError: a file is damaged, or training cannot go on.
    """
    with _run.precision(asked.group(KernelRun).precision):
        return _run.resumed(asked, _kernels.load, _kernels.work)


def summary(results: dict[str, Any]) -> str:
    """Returns a short table for the terminal."""
    rows = [
        ("largest eigenvalue", f"{results['largest_eigenvalue']:.4g}"),
        ("smallest eigenvalue", f"{results['smallest_eigenvalue']:.4g}"),
        ("condition number", f"{float(results['condition_number']):.4g}"),
        ("effective rank", f"{results['effective_rank']:.4g}"),
        ("alignment with the targets", f"{results['target_alignment']:.4g}"),
    ]
    if "kernel_distance" in results:
        short = "" if results["converged"] else " (not reached what was asked)"
        rows += [
            ("training steps", str(results["train_steps"])),
            ("training loss", f"{results['train_loss']:.3g}{short}"),
            ("kernel distance after training", f"{results['kernel_distance']:.4g}"),
        ]
    spent = [f"{results['seconds'][k]:.1f}" for k in ("compile", "kernel", "train")]
    return _run.table([*rows, ("seconds: compile, kernel, train", ", ".join(spent))])


def main(asked: Asked[Any]) -> None:
    """Runs and prints the summary."""
    print(summary(run(asked)))
    workdir = asked.group(Run).workdir
    print(f"kernel.png, spectrum.png and results.json are in {workdir}")


if __name__ == "__main__":
    _flags.run(main, PROGRAM)
