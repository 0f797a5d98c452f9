"""Distils a small training set that hides the images, trains on it, attacks it.

    python -m experiments.distill --method=rkip --dataset=mnist --num_train=500 \
        --num_distilled=20 --evaluate --attack

    python -m experiments.distill --method=rdm --dataset=cifar10 --evaluate

    python -m experiments.distill --method=sre2l --regularizer=curvature --evaluate

Each method has flags of its own: --method=dc --help lists them.

Writes config.json, results.json, arrays.npz (images, labels) and distilled.png to
--workdir; with --attack also defence.png and attack.npz; with methods that match
classes losses.png. Killed at any moment and started again with the same --workdir, it
goes on. --evaluate and --attack may also be asked for later: what is known is kept.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments import (
    _flags,
    _network_flags,
    _networks,
    _run,
    _soft_students,
    _students,
    _study,
    _study_config,
)
from experiments._groups import Run
from experiments._kinds import Kind
from experiments._program import Asked, Program
from ntk_privacy import distillation
from ntk_privacy.distillation import squeezed
from ntk_privacy.distillation.regressed import TaskConfig
from ntk_privacy.method import Method, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class _DistillRun(Run):
    """The run."""

    workdir: str = field("runs/distill", "Folder of the results.")


def _kind(method: Method[Any]) -> Kind:
    """Returns what is done with the sets of a method, by what their labels are."""
    if issubclass(method.config, squeezed.Config):
        return _soft_students.KIND
    regressed = issubclass(method.config, TaskConfig)
    return _networks.KIND if regressed else _students.KIND


def _groups(method: Method[Any]) -> tuple[type, ...]:
    groups = _kind(method).groups
    own = any(issubclass(group, Run) for group in groups)
    return groups if own else (*groups, _DistillRun)


def _fits(asked: Asked[Any]) -> None:
    if asked.method.name == "full" and asked.group(_network_flags.Networks).attack:
        raise ValueError(
            "method='full' is no distilled set: attack a network trained on all "
            "images with experiments.reconstruct."
        )


PROGRAM = Program(
    about="Distils a small training set, trains on it, and attacks that.",
    methods=distillation.METHODS,
    groups=_groups,
    default="rkip",
    passed_over=lambda asked: _kind(asked.method).passed_over(asked),
    check=_fits,
    beside={"--table": _study_config.Config, "--defence": _study_config.Config},
)


Flags = Asked[Any] | _study_config.Config


def asked(**flat: Any) -> Flags:
    """Returns what flags ask for, given from Python; see `Program.asked`."""
    if flat.get("table") or flat.get("defence"):
        known = _flags.entries(_study_config.Config)
        return _study_config.Config(**_flags.of_today(known, flat))
    return PROGRAM.asked(**flat)


def run(asked: Flags) -> dict[str, Any]:
    """Runs one configuration, or a study of them; returns what results.json holds.

    Raises:
      UsageError: the folder belongs to another configuration, or the flags ask for
        what the image set does not have.
      OSError: a file is missing.
      ValueError: a file is damaged, a kernel is singular, or a loss is not finite.
    """
    if isinstance(asked, _study_config.Config):
        return _study.run(asked, PROGRAM, run)
    kind, files = _kind(asked.method), ("arrays.npz",)
    whole = {"files": files, "whole": kind.is_done, "look": kind.again}
    with _run.precision(getattr(asked.config, "precision", None)):
        return _run.resumed(asked, kind.load, kind.work, later=later(asked), **whole)


def later(asked: Asked[Any]) -> set[str]:
    """Returns the flags that may differ when a run goes on in its folder."""
    kind = _kind(asked.method)
    read = {"eps"} if getattr(asked.config, "eps_is_read", False) else set()
    return {*kind.stages, *kind.sizes} - read


def summary(results: dict[str, Any]) -> str:
    """Returns a short table for the terminal."""
    rows = _kind(PROGRAM.methods[results["method"]]).rows(results)
    spent = [f"{name} {s:.1f}" for name, s in results["seconds"].items() if s]
    return _run.table([*rows, ("seconds", ", ".join(spent))])


def main(asked: Flags) -> None:
    """Runs and prints the summary."""
    results = run(asked)
    if isinstance(asked, _study_config.Config):
        print(results["markdown"])
        return
    print(summary(results))
    print(f"distilled.png and results.json are in {asked.group(Run).workdir}")


class _Flags:
    """Reads a command line: studies have a config of their own."""

    def parse(self, arguments: Sequence[str]) -> Flags:
        """Raises UsageError where flags are at fault."""
        studies = ("--table", "--defence", "--methods")
        if any(argument.partition("=")[0] in studies for argument in arguments):
            return _flags.parse(_study_config.Config, arguments)
        return PROGRAM.parse(arguments)


FLAGS = _Flags()

if __name__ == "__main__":
    _flags.run(main, FLAGS)
