"""Tells how much of the training images can be read back from what is to be published.

    python -m experiments.audit --before=before.safetensors --after=after.safetensors \
        --images=images.npz --image_shape=8,8,1 --workdir=runs/audit

Prints the verdict first. Writes config.json, results.json, arrays.npz, report.md and
report.html, one page with its pictures, to --workdir.
"""

import shlex
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntk_privacy.auditing import METHODS, Case, inputs
from ntk_privacy.auditing.inputs import Given
from ntk_privacy.reports import audit_page

from . import _flags, _run
from ._groups import Run
from ._job import Job
from ._kinds import Kind, Results
from ._program import Asked, Program


def _load(asked: Asked[Any]) -> Case:
    return inputs.case(asked.group(Given))


def _command(asked: Asked[Any]) -> str:
    """Returns what makes the same again."""
    usual = {**vars(METHODS["auto"].configured()), **vars(Given()), **vars(Run())}
    words = ["python", "-m", "experiments.audit"]
    for name, value in asked.flat().items():
        if name in usual and value != usual[name] and name != "fingerprint":
            told = _flags.shown(value)
            is_flag = isinstance(value, bool)
            words.append(
                f"--{'' if value else 'no'}{name}" if is_flag else f"--{name}={told}"
            )
    return shlex.join(words)


def _work(job: Job, case: Case) -> Results:
    method, config = job.asked.method, job.asked.config
    key = jax.random.key(job.seed)
    with _run.recorded() as warned:
        found = method.run(case, config, key=key, stage=job.stage("attack"))
    folder = Path(job.workdir.folder)
    told = {"command": _command(job.asked), "versions": _run.versions()}
    audit_page.write(found, folder, **told)
    images = found.images if found.images is not None else np.zeros((0, 1, 1, 1))
    job.workdir.write_arrays("arrays.npz", reconstructions=images)
    figures = audit_page.figures(found)
    return {**figures, "warnings": warned, "seconds": job.seconds()}


def _told(asked: Asked[Any], results: Results) -> str:
    notes = [f"note: {note}" for note in results["notes"]]
    text = "\n".join([results["verdict"], *results["rests_on"], *notes])
    return _run.placed(asked, text, "report.html, report.md")


KIND = Kind(
    groups=(Given, Run),
    defaults=lambda *_: {"workdir": "runs/audit"},
    load=_load,
    work=_work,
    told=_told,
    files=("report.html", "report.md"),
)
PROGRAM = Program(
    about="Tells how much of the training images can be read back from what is to be "
    "published, and writes a page about it.",
    methods=METHODS,
    kind=lambda _: KIND,
    default="auto",
)
run, main = _run.run, _run.main

if __name__ == "__main__":
    _flags.run(main, PROGRAM.parse)
