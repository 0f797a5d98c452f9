"""`experiments.distill` with methods that match classes: ConvNets trained on the set.

Their accuracy stands beside that of as many random real images; the first of them is
kept in model/.
"""

import shutil
from typing import Any

import jax
import numpy as np

from experiments import _flags, _kinds, _made, _run
from experiments._groups import Run, Tested
from experiments._kinds import Kind, Loaded
from experiments._program import Asked
from experiments._student_flags import Students
from experiments._workdir import Workdir
from ntk_privacy import resume
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import class_images, real, student
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.evaluation import JUDGES, copies, rates
from ntk_privacy.models import ConvNet, saved
from ntk_privacy.reports import loss_plots, sets
from ntk_privacy.resume import Timer


def _load(asked: Asked[Any]) -> Loaded:
    images = asked.group(Tested).part(published=asked.preset == "paper")
    with _flags.usage():
        asked.method.check(images, asked.config)
        if asked.group(Students).evaluate:
            each, what = asked.config.images_per_class, "what --evaluate compares with"
            class_images.check_start(images, each, what)
    return Loaded(images, jax.random.split(jax.random.key(asked.group(Run).seed), 3))


def _judged(
    asked: Asked[Any], workdir: Workdir, loaded: Loaded, earlier: dict[str, Any]
) -> dict[str, Any]:
    del earlier
    images, (key_method, key_networks, key_random) = loaded
    flags, each = asked.group(Students), asked.config.images_per_class
    timers = {name: Timer() for name in ("condense", "condensed", "random")}
    args, normal = (key_method, timers["condense"]), images.normal._asdict()
    made = _made.make(asked, workdir, images, *args, **normal)
    _draw(asked, workdir, images, made)
    shown = JUDGES["copies"].run(images, made, copies.Config(), key=key_networks)
    results = _kinds.figures(asked, made, shown.figures) | {
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
            name: _accuracies(
                asked, workdir, images, one, key_networks, name, timers[name]
            )
            for name, one in both.items()
        }
        for entry, name in (("accuracy", "condensed"), ("accuracy_random", "random")):
            rate = rates.mean_and_deviation(results["runs"][name])
            results[entry] = {"convnet": rate.mean, "convnet_deviation": rate.deviation}
    seconds = {name: timer.run for name, timer in timers.items()}
    seconds["compile"] = sum(timer.compile for timer in timers.values())
    return results | {"seconds": seconds}


def _draw(
    asked: Asked[Any], workdir: Workdir, images: ImageSet, made: Distilled
) -> None:
    each, name = asked.config.images_per_class, asked.method.name
    dataset, path = asked.group(Tested).dataset, workdir.path("distilled.png")
    of = f"{len(images.x_train)} images of {dataset}"
    told = f"{name}: {of} condensed to {each} of each class"
    sets.draw(images, made, path, columns=min(each, 10) if each > 1 else 5, title=told)
    losses, path = {name: np.asarray(made.losses)}, workdir.path("losses.png")
    told = f"{name} on {dataset}"
    loss_plots.losses(losses, path, title=told, kind=asked.method.loss)


def _accuracies(
    asked: Asked[Any],
    workdir: Workdir,
    images: ImageSet,
    made: Distilled,
    key: jax.Array,
    name: str,
    timer: Timer,
) -> list[float]:
    """Accuracy of each network trained on a set; what is known is read back."""
    flags, folder = asked.group(Students), workdir.checkpoint_folder / name
    stage = _run.stage(asked.group(Run), folder, timer, description="train")

    def train() -> dict[str, np.ndarray]:
        found = JUDGES["students"].run(images, made, flags, key=key, stage=stage)
        accuracy = found.figures["accuracy"]
        if name == "condensed":  # for `experiments.evade`
            about = {"dataset": asked.group(Tested).dataset, "accuracy": accuracy[0]}
            saved.save(
                workdir.path("model"),
                ConvNet(images.num_classes, flags.width),
                jax.tree.map(lambda leaf: leaf[0], found.made),
                image_shape=images.image_shape,
                **images.normal._asdict(),
                about=about | {"trained_on": asked.method.name},
            )
        return {"accuracy": np.asarray(accuracy)}

    known = resume.once(stage, "told", train)["accuracy"].tolist()
    shutil.rmtree(folder / "students", ignore_errors=True)
    return known


def _rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("loss, mean of the last 50 steps", f"{results['loss']:.3g}")]
    for entry, name, told in (
        ("accuracy", "condensed", "test accuracy"),
        ("accuracy_random", "random", "test accuracy, random real images"),
    ):
        if entry in results:
            value = rates.in_percent(results["runs"][name], digits=2)
            rows.append((told, f"{value}%"))
    if results.get("step_size_fault"):
        rows.append(("step size", results["step_size_fault"]))
    copied = [_kinds.told_of_copies(results)] if "nearest" in results else []
    return rows + copied


KIND = Kind(
    groups=(Tested, Students),
    stages={"evaluate": "accuracy"},
    load=_load,
    judged=_judged,
    rows=_rows,
)
