"""The set and the networks of a run of sre2l or cda: made once, then read back."""

from typing import NamedTuple

import jax
import numpy as np

from experiments import _run
from experiments._groups import Data, Run
from experiments._program import Asked
from experiments._workdir import Workdir
from ntk_privacy.data import ImageSet
from ntk_privacy.distillation import squeezed
from ntk_privacy.distillation.squeezed import Config
from ntk_privacy.evaluation import soft_students
from ntk_privacy.evaluation.soft_students import Network
from ntk_privacy.models import ResNet18, saved
from ntk_privacy.reports import plots
from ntk_privacy.resume import Ran, Timer

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


def make(
    asked: Asked[Config], workdir: Workdir, images: ImageSet, timers: dict[str, Timer]
) -> Made:
    """Distils and trains the student; keeps both networks and the set.

    Args:
      asked: the method and its config.
      workdir: of the run.
      images: to distil.
      timers: of `LOOPS`.

    Raises:
      ValueError: a loss is not finite.
    """
    config, run, folder = asked.config, asked.group(Run), workdir.checkpoint_folder

    def stage(name, start, go, num_steps) -> Ran:
        return _run.stage(run, folder, timers[name])(name, start, go, num_steps)

    key, normal = jax.random.key(run.seed), images.normal._asdict()
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
    _draw(asked, workdir, images, made)
    return made


def _draw(asked: Asked[Config], workdir: Workdir, images: ImageSet, made: Made) -> None:
    each, dataset = asked.config.images_per_class, asked.group(Data).dataset
    mean, deviation = images.normal
    plots.pictures(
        made.images * deviation,
        workdir.path("distilled.png"),
        mean=mean,
        notes=[f"class {label}" for label in made.labels],
        columns=min(each, 10) if each > 1 else 5,
        title=f"{asked.method.name}, regularizer {asked.config.regularizer}: "
        f"{len(images.x_train)} images of {dataset} condensed to {each} of each class",
    )
