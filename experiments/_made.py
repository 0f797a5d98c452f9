"""The set of a run of `experiments.distill`: made once, then read back."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from ntk_privacy.data.choice import Data
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.reports import summaries

from . import _run
from ._job import Job
from ._kinds import Results
from ._program import Asked


class Loaded(NamedTuple):
    """Images; keys of the method, of networks, and of what they are set against."""

    images: ImageSet
    keys: jax.Array


def figures(job: Job, made: Distilled, nearest: Mapping[str, Any]) -> Results:
    """Returns what results.json says of every set; nearest: of the judge of copies."""
    return {
        "method": job.asked.method.name,
        "dataset": job.asked.group(Data).dataset,
        "num_distilled": len(made.images),
        "width": job.asked.flat()["width"],
        "seed": job.seed,
        "nonfinite": False,
        "nearest": nearest,
    }


def told(asked: Asked[Any], results: Results) -> str:
    """Returns a text for the terminal."""
    return _run.placed(asked, summaries.distillation(results), "distilled.png")
