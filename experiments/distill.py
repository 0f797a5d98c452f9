"""Distils a small training set that hides the images, trains on it, attacks it.

    python -m experiments.distill --method=rkip --dataset=mnist --num_images=500 \
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
    _networks,
    _run,
    _soft_students,
    _students,
    _study,
)
from experiments._groups import Run
from experiments._program import Asked, Program
from experiments._workdir import Workdir
from ntk_privacy import distillation
from ntk_privacy.distillation import squeezed
from ntk_privacy.distillation.regressed import TaskConfig
from ntk_privacy.method import Method, field
from ntk_privacy.resume import Timer


@dataclasses.dataclass(frozen=True, kw_only=True)
class _DistillRun(Run):
    """The run."""

    workdir: str = field("runs/distill", "Folder of the results.")


def _judge(method: Method[Any]) -> Any:
    """Returns what trains on the sets of a method, by what their labels are."""
    if issubclass(method.config, squeezed.Config):
        return _soft_students
    return _networks if issubclass(method.config, TaskConfig) else _students


def _groups(method: Method[Any]) -> tuple[type, ...]:
    if _judge(method) is _networks:
        return (_networks.Images, _networks.Networks, _DistillRun)
    if _judge(method) is _soft_students:
        return _soft_students.GROUPS
    return (_students.Images, _students.Students, _DistillRun)


def _passed_over(asked: Asked[Any]) -> dict[str, str]:
    if _judge(asked.method) is _networks:
        return _networks.passed_over(asked)
    return {}


def _fits(asked: Asked[Any]) -> None:
    if asked.method.name == "full" and asked.group(_networks.Networks).attack:
        raise ValueError(
            "method='full' is no distilled set: attack a network trained on all "
            "images with experiments.reconstruct."
        )


PROGRAM = Program(
    about="Distils a small training set, trains on it, and attacks that.",
    methods=distillation.METHODS,
    groups=_groups,
    default="rkip",
    passed_over=_passed_over,
    check=_fits,
    beside={"--table": _study.Config, "--defence": _study.Config},
)


def asked(**flat: Any) -> Asked[Any] | _study.Config:
    """Returns what flags ask for, given from Python.

    Args:
      **flat: flags by name.

    Raises:
      ValueError: a name or value that is refused.
    """
    if flat.get("table") or flat.get("defence"):
        return _study.Config(**flat)
    return PROGRAM.asked(**flat)


def run(asked: Asked[Any] | _study.Config) -> dict[str, Any]:
    """Runs one configuration, or a study of them; returns what results.json holds.

    Raises:
      UsageError: the folder belongs to another configuration, or the flags ask for
        what the image set does not have.
      OSError: a file is missing.
      ValueError: a file is damaged, a kernel is singular, or a loss is not finite.
    """
    if isinstance(asked, _study.Config):
        return _study.run(asked, PROGRAM, run)
    with _run.precision(getattr(asked.config, "precision", None)):
        return _judged(asked, _judge(asked.method))


def opened(asked: Asked[Any]) -> Workdir:
    """Returns the folder of a run, which an earlier version may have begun.

    Args:
      asked: of the run.

    Raises:
      UsageError: another run has it.
    """
    later = set(_judge(asked.method).STAGES)
    if getattr(asked.config, "eps_is_read", False):
        later.discard("eps")
    return _run.opened(PROGRAM, asked, later)


def _judged(asked: Asked[Any], judge: Any) -> dict[str, Any]:
    # Before the folder is touched: images that cannot be had leave nothing behind.
    loaded = None if _run.is_whole(asked.group(Run).workdir) else judge.load(asked)
    with opened(asked) as workdir:
        if judge.is_done(asked, workdir):
            return workdir.read_json("results.json")
        earlier = workdir.read_json("results.json") if workdir.is_done() else {}
        asked = judge.with_earlier(asked, earlier, workdir.read_json("config.json"))
        workdir.write_json("config.json", asked.flat())
        results = judge.judged(
            asked, workdir, loaded or judge.load(asked), earlier, Timer()
        )
        return _run.finished(workdir, results)


def summary(results: dict[str, Any]) -> str:
    """Returns a short table for the terminal.

    Args:
      results: of `run`.
    """
    rows = _judge(PROGRAM.methods[results["method"]]).rows(results)
    spent = [f"{name} {s:.1f}" for name, s in results["seconds"].items() if s]
    rows.append(("seconds", ", ".join(spent)))
    return _run.table(rows)


def main(asked: Asked[Any] | _study.Config) -> None:
    """Runs and prints the summary."""
    results = run(asked)
    if isinstance(asked, _study.Config):
        print(results["markdown"])
        return
    print(summary(results))
    print(f"distilled.png and results.json are in {asked.group(Run).workdir}")


class _Flags:
    """Reads a command line: studies have a config of their own."""

    def parse(self, arguments: Sequence[str]) -> Asked[Any] | _study.Config:
        """Raises UsageError where flags are at fault."""
        studies = ("--table", "--defence", "--methods")
        if any(argument.partition("=")[0] in studies for argument in arguments):
            return _flags.parse(_study.Config, arguments)
        return PROGRAM.parse(arguments)


FLAGS = _Flags()

if __name__ == "__main__":
    _flags.run(main, FLAGS)
