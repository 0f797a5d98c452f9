"""Computes a kernel on real images: saved, drawn, and followed through training.

    python -m experiments.kernel --kernel=infinite_mlp --dataset=mnist \
        --num_images=500 --workdir=runs/kernel

Each kernel has flags of its own: --kernel=empirical_mlp --help lists them.

Writes config.json, results.json, arrays.npz, kernel.png and spectrum.png to --workdir,
and distance.png for a network that is trained. With --stream the kernel goes to
kernel.npy, block by block, and need not fit in memory. Killed at any moment and started
again with the same --workdir, it goes on.
"""

from typing import Any

from experiments import _flags, _kernel_flags, _kernels, _run
from experiments._groups import Run
from experiments._program import Asked, Program
from ntk_privacy.kernels.named import KERNELS

PROGRAM = Program(
    about="Computes a kernel on real images, and its spectrum.",
    methods=KERNELS,
    groups=_kernel_flags.groups,
    default="infinite_mlp",
    passed_over=_kernel_flags.passed_over,
    check=_kernel_flags.check,
    flag="kernel",
)


def run(asked: Asked[Any]) -> dict[str, Any]:
    """Runs one configuration; returns what results.json holds.

    Args:
      asked: of `PROGRAM`.

    Raises:
      UsageError: the folder belongs to another configuration, or the flags ask for
        what the image set does not have.
      OSError: a file is missing.
      ValueError: a file is damaged, or training cannot go on.
    """
    # Before the folder is touched: images that cannot be had leave nothing behind.
    with _run.precision(asked.group(_kernel_flags.KernelRun).precision):
        whole = _run.is_whole(asked.group(Run).workdir)
        loaded = None if whole else _kernels.load(asked)
        return _run.resumed(
            PROGRAM,
            asked,
            lambda workdir: _kernels.work(
                asked, workdir, loaded or _kernels.load(asked)
            ),
        )


def summary(results: dict[str, Any]) -> str:
    """Returns a short table for the terminal.

    Args:
      results: of `run`.
    """
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
    rows.append(("seconds: compile, kernel, train", ", ".join(spent)))
    return _run.table(rows)


def main(asked: Asked[Any]) -> None:
    """Runs and prints the summary."""
    print(summary(run(asked)))
    workdir = asked.group(Run).workdir
    print(f"kernel.png, spectrum.png and results.json are in {workdir}")


if __name__ == "__main__":
    _flags.run(main, PROGRAM)
