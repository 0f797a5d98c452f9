"""Sets of `experiments.compare`: made in so many seconds, and kept.

One that is made again in the same seconds is another set: what is judged goes on with
the one that there is.
"""

import math
import pathlib
import shutil
from typing import Any

import jax

from experiments._compare_flags import Budget, configured, method_of
from experiments._groups import Run
from experiments._job import Job
from experiments._program import Asked
from ntk_privacy import resume
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import kept, real, timed
from ntk_privacy.distillation.timed import TimedSet
from ntk_privacy.reports.progress import Progress


def made_or_kept(
    job: Job, name: str, images: ImageSet, key: jax.Array, file: str, *, folder: str
) -> TimedSet:
    """Returns the set of a method, or random images; one on disk is read back.

    Args:
      job: the comparison.
      name: of the method, or "random".
      images: to distil.
      key: of the method, or of random images.
      file: of the set, without its ending.
      folder: of experts, for the methods that train some.
    """
    asked, workdir = job.asked, job.workdir
    if not workdir.path(f"{file}.npz").exists():
        if name == "random":
            each = asked.group(Budget).images_per_class
            one = TimedSet(real.of_classes(images, images_per_class=each, key=key))
        else:
            one = _make(asked, name, images, key, workdir.path(folder) / "experts")
        arrays = kept.arrays(one.made) | {"steps": one.steps, "seconds": one.seconds}
        workdir.write_arrays(f"{file}.npz", **arrays)
    stored = workdir.read_arrays(f"{file}.npz")
    steps, seconds = int(stored["steps"]), float(stored["seconds"])
    return TimedSet(kept.of_arrays(stored), steps, seconds)


def _make(
    asked: Asked[Any],
    name: str,
    images: ImageSet,
    key: jax.Array,
    experts: pathlib.Path,
) -> TimedSet:
    method, timer, seconds = (
        method_of(name),
        resume.Timer(),
        asked.group(Budget).seconds,
    )
    total, show = math.ceil(seconds), asked.group(Run).progress or None
    # Experts of a run that was killed would be free.
    shutil.rmtree(experts, ignore_errors=True)
    with Progress(total, description=f"{method.name}, seconds", show=show) as bar:

        def watch(step, state, metrics):
            del step
            spent = timer.elapsed()
            bar(total if spent >= seconds else int(spent), state, metrics)

        return timed.make(
            *(method, configured(asked, name), images),
            key=key,
            seconds=seconds,
            folder=experts,
            timer=timer,
            watch=watch,
        )
