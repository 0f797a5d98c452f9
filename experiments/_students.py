"""`experiments.distill` with methods that match classes: ConvNets trained on the set.

Their accuracy stands beside that of as many random real images; the first of them is
kept in model/.
"""

import dataclasses
import shutil
from typing import Any

import jax
import numpy as np

from ntk_privacy import resume
from ntk_privacy.data.choice import Tested
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import class_images, mtt, real, student
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.evaluation import JUDGES, copies, rates, students
from ntk_privacy.method import Method, field
from ntk_privacy.models import ConvNet, saved
from ntk_privacy.reports import loss_plots, made_set, sets

from . import _flags, _made
from ._groups import Run
from ._job import Job
from ._kinds import Kind, Results
from ._made import Loaded
from ._program import Asked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Students(students.Config):
    """Networks trained on the set."""

    evaluate: bool = field(False, "Test accuracy of ConvNets trained on the set.")

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        # Where the method has a width, it is read.
        unread = ("num_networks", "num_epochs", "train_learning_rate")
        alone = "a set that is not evaluated"
        return {} if self.evaluate else dict.fromkeys(unread, alone)


def _defaults(method: Method[Any], preset: str) -> dict[str, Any]:
    learns = issubclass(method.config, mtt.Config)
    published = {"train_learning_rate": None} if learns else {}
    sizes = students.SMALL if preset == "cpu" else published
    return {"workdir": "runs/distill"} | sizes


def _load(asked: Asked[Any]) -> Loaded:
    images = asked.group(Tested).part(published=asked.preset == "paper")
    with _flags.usage():
        asked.method.check(images, asked.config)
        if asked.group(Students).evaluate:
            each, what = asked.config.images_per_class, "what --evaluate compares with"
            class_images.check_start(images, each, what)
    return Loaded(images, jax.random.split(jax.random.key(asked.group(Run).seed), 3))


def _work(job: Job, loaded: Loaded) -> Results:
    (images, (key_method, key_networks, key_random)), asked = loaded, job.asked
    flags, each = asked.group(Students), asked.config.images_per_class
    normal = images.normal._asdict()
    made = made_set.made_or_read(
        *(asked.method, asked.config, images),
        key=key_method,
        loops=job,
        called="condense",
        **normal,
    )
    dataset, path = asked.group(Tested).dataset, job.workdir.path("distilled.png")
    sets.draw_classes(images, made, path, called=asked.method.name, dataset=dataset)
    loss_plots.losses(
        {asked.method.name: np.asarray(made.losses)},
        job.workdir.path("losses.png"),
        title=f"{asked.method.name} on {dataset}",
        kind=asked.method.loss,
    )
    shown = JUDGES["copies"].run(images, made, copies.Config(), key=key_networks)
    results = _made.figures(job, made, shown.figures) | {
        "preset": asked.preset,
        "num_images": len(images.x_train),
        "loss": float(np.mean(made.losses[-50:])),
    }
    fault = None
    if made.step_size is not None:
        fault = student.step_size_fault(made.step_size, asked.config.step_size)
        results |= {"step_size": made.step_size, "step_size_fault": fault}
    if flags.evaluate and (not fault or flags.train_learning_rate):
        others = real.of_classes(images, images_per_class=each, key=key_random)
        both = {"condensed": made, "random": others}
        results["runs"] = {
            name: _accuracies(job, images, one, key_networks, name)
            for name, one in both.items()
        }
        for entry, name in (("accuracy", "condensed"), ("accuracy_random", "random")):
            rate = rates.mean_and_deviation(results["runs"][name])
            results[entry] = {"convnet": rate.mean, "convnet_deviation": rate.deviation}
    return results | {"seconds": job.seconds()}


def _accuracies(
    job: Job, images: ImageSet, made: Distilled, key: jax.Array, name: str
) -> list[float]:
    """Accuracy of each network trained on a set; what is known is read back."""
    flags, dataset = job.asked.group(Students), job.asked.group(Tested).dataset
    stage = job.stage(name, name, description="train")

    def train() -> dict[str, np.ndarray]:
        found = JUDGES["students"].run(images, made, flags, key=key, stage=stage)
        accuracy = found.figures["accuracy"]
        if name == "condensed":  # for `experiments.evade`
            about = {"dataset": dataset, "accuracy": accuracy[0]}
            saved.save(
                job.workdir.path("model"),
                ConvNet(images.num_classes, flags.width),
                jax.tree.map(lambda leaf: leaf[0], found.made),
                image_shape=images.image_shape,
                **images.normal._asdict(),
                about=about | {"trained_on": job.asked.method.name},
            )
        return {"accuracy": np.asarray(accuracy)}

    known = resume.once(stage, "told", train)["accuracy"].tolist()
    done = job.workdir.checkpoint_folder / name / "students"
    shutil.rmtree(done, ignore_errors=True)
    return known


KIND = Kind(
    groups=(Tested, Students, Run),
    defaults=_defaults,
    stages={"evaluate": "accuracy"},
    later=lambda _: ("evaluate",),
    load=_load,
    work=_work,
    timers=("condense", "condensed", "random"),
    told=_made.told,
    files=("arrays.npz",),
)
