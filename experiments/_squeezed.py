"""The set and the networks of a run of sre2l or cda: made once, then read back."""

from typing import NamedTuple

import jax
import numpy as np

from experiments import _made
from experiments._job import Job
from experiments._program import Asked
from experiments._workdir import Workdir
from ntk_privacy.data import ImageSet
from ntk_privacy.distillation import squeezed
from ntk_privacy.distillation.squeezed import Config
from ntk_privacy.evaluation import soft_students
from ntk_privacy.evaluation.soft_students import Network
from ntk_privacy.models import ResNet18, saved

LOOPS = ("squeeze", "recover", "relabel", "post_train")
# Where experiments.evade looks for a model, and where the other network lies.
_FOLDERS = {"student": "", "squeezed": "squeezed"}


class Made(NamedTuple):
    """images: normalised. labels: their classes. model: of both networks."""

    images: np.ndarray
    labels: np.ndarray
    model: ResNet18
    student: Network
    squeezed: Network


def kept(asked: Asked[Config], workdir: Workdir, images: ImageSet) -> Made | None:
    """Returns what a run that is whole has left; None where files are gone."""
    folders = {name: workdir.path(place) for name, place in _FOLDERS.items()}
    there = all(saved.is_saved(folder) for folder in folders.values())
    if not (there and workdir.path("arrays.npz").exists()):
        return None
    arrays = workdir.read_arrays("arrays.npz")
    stored = {name: saved.load(folder) for name, folder in folders.items()}
    networks = {name: Network(s.params, s.stats) for name, s in stored.items()}
    model = squeezed.network(images, asked.config)
    return Made(arrays["images"], arrays["labels"], model, **networks)


def make(job: Job, images: ImageSet) -> Made:
    """Distils and trains the student; keeps both networks and the set.

    Args:
      job: the run.
      images: to distil.

    Raises:
      ValueError: a loss is not finite.
    """
    asked, workdir, stage = job.asked, job.workdir, job.by_loop()
    config = asked.config
    key, normal = jax.random.key(job.seed), images.normal._asdict()
    found = asked.method.run(images, config, key=key, stage=stage)
    model = squeezed.network(images, config)
    student = soft_students.train(
        found.images,
        found.state.soft_labels,
        model=model,
        key=squeezed.keys(key).post_train,
        num_epochs=config.num_epochs,
        temperature=config.temperature,
        stage=stage,
    )
    losses = found.state.losses | {"post_train": student.losses}
    arrays = np.asarray(found.images), np.asarray(found.labels)
    teacher = Network(found.state.params, found.state.stats)
    made = Made(*arrays, model, student, teacher)
    workdir.write_arrays(
        "arrays.npz",
        images=made.images,
        labels=made.labels,
        **normal,
        **{f"losses_{name}": values for name, values in losses.items()},
    )
    for name, place in _FOLDERS.items():
        network = getattr(made, name)
        saved.save(
            workdir.path(place),
            model,
            network.params,
            stats=network.stats,
            image_shape=images.image_shape,
            **normal,
        )
    told = f"{asked.method.name}, regularizer {config.regularizer}"
    _made.draw(job, images, found, told)
    return made
