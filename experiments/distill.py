"""Distils a small training set that hides the images, trains on it, attacks it.

    python -m experiments.distill --method=rkip --dataset=mnist --num_train=500 \
        --num_distilled=20 --evaluate --attack

    python -m experiments.distill --method=rdm --dataset=cifar10 --evaluate

    python -m experiments.distill --method=sre2l --regularizer=curvature --evaluate

Each method has flags of its own: --method=dc --help lists them. --table and --defence
are studies of several methods.

Writes config.json, results.json, arrays.npz (images, labels) and distilled.png to
--workdir; with --attack also defence.png and attack.npz; with methods that match
classes losses.png. Killed at any moment and started again with the same --workdir, it
goes on. --evaluate and --attack may also be asked for later: what is known is kept.
"""

import collections
from typing import Any

from ntk_privacy import distillation
from ntk_privacy.distillation import squeezed
from ntk_privacy.distillation.regressed import TaskConfig
from ntk_privacy.method import Method
from ntk_privacy.reports import studies

from . import (
    _flags,
    _networks,
    _run,
    _soft_students,
    _students,
    _study,
)
from ._kinds import Kind
from ._program import Program


def _kind(method: Method[Any]) -> Kind:
    """Returns what is done with the sets of a method, by what their labels are."""
    if issubclass(method.config, studies.Config):
        return _study.KIND
    if issubclass(method.config, squeezed.Config):
        return _soft_students.KIND
    regressed = issubclass(method.config, TaskConfig)
    return _networks.KIND if regressed else _students.KIND


PROGRAM = Program(
    about="Distils a small training set, trains on it, and attacks that.",
    methods=collections.ChainMap(studies.METHODS, distillation.METHODS),
    kind=_kind,
    default="rkip",
    former={("table", True): "table", ("defence", True): "defence"},
)
run, main = _run.run, _run.main

if __name__ == "__main__":
    _flags.run(main, PROGRAM.parse)
