"""`experiments.distill` with methods that match classes: ConvNets trained on the set.

Their accuracy stands beside that of as many random real images; the first of them is
kept in model/.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import _condensed, _defence, _image_sets, _made
from experiments._flags import UsageError
from experiments._groups import Data, Run
from experiments._made import Made
from experiments._program import Asked
from experiments._workdir import Workdir
from ntk_privacy import _checks
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import class_images, distribution_matching, mtt, student
from ntk_privacy.evaluation import rates
from ntk_privacy.method import Method, field
from ntk_privacy.models import ConvNet, saved
from ntk_privacy.reports import loss_plots, plots
from ntk_privacy.resume import Timer

STAGES = ("evaluate",)
_SETS = ("condensed", "random")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Data):
    """Images."""

    num_test: int | None = field(None, "Test images; none is all of them.")

    def __post_init__(self):
        super().__post_init__()
        if self.num_test is not None:
            _checks.at_least(1, num_test=self.num_test)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Students:
    """Networks trained on the set."""

    evaluate: bool = field(False, "Test accuracy of ConvNets trained on the set.")
    width: int = field(128, "Channels of the ConvNet.")
    num_networks: int = field(5, "ConvNets that --evaluate trains on the set.")
    num_epochs: int = field(1000, "Of their training.")
    train_learning_rate: float | None = field(
        0.01, "Of their training; none is the step size that was learnt."
    )

    def __post_init__(self):
        _checks.at_least(
            1,
            width=self.width,
            num_networks=self.num_networks,
            num_epochs=self.num_epochs,
        )
        if self.train_learning_rate is not None:
            _checks.positive(train_learning_rate=self.train_learning_rate)

    @classmethod
    def sizes(cls, preset: str, method: Method[Any]) -> dict[str, Any]:
        """Returns the values of a preset.

        Args:
          preset: its name.
          method: whose set it is.
        """
        if preset == "cpu":
            # A tenth of the epochs, ten times the step.
            sizes = {"num_networks": 3, "num_epochs": 100, "train_learning_rate": 0.1}
            return {"width": 32, **sizes}
        learns = issubclass(method.config, mtt.Config)
        return {"train_learning_rate": None} if learns else {}

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        # Where the method has a width, it is read.
        unread = ("num_networks", "num_epochs", "train_learning_rate")
        alone = "a set that is not evaluated"
        return {} if self.evaluate else dict.fromkeys(unread, alone)


class Loaded(NamedTuple):
    """Images, and keys of the method, of networks and of random images."""

    images: ImageSet
    keys: jax.Array


def load(asked: Asked[Any]) -> Loaded:
    """Returns the images that are asked for.

    Args:
      asked: of a method that matches classes.

    Raises:
      UsageError: a flag does not fit the image set.
      OSError, ValueError: a file is missing or damaged.
    """
    data = asked.group(Images)
    images = _image_sets.part(
        asked.namespace(), num_train=data.num_images, num_test=data.num_test
    )
    try:
        asked.method.check(images, asked.config)
        if asked.group(Students).evaluate:
            each, what = asked.config.images_per_class, "what --evaluate compares with"
            class_images.check_start(images, each, what)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Loaded(images, jax.random.split(jax.random.key(asked.group(Run).seed), 3))


def is_done(asked: Asked[Any], workdir: Workdir) -> bool:
    """Whether the results hold all that is asked for.

    Args:
      asked: of a method that matches classes.
      workdir: of the run.
    """
    if not (workdir.is_done() and workdir.path("arrays.npz").exists()):
        return False
    known = workdir.read_json("results.json")
    return "accuracy" in known or not asked.group(Students).evaluate


def with_earlier(
    asked: Asked[Any], earlier: dict[str, Any], stored: dict[str, Any]
) -> Asked[Any]:
    """Returns the flags with the stages of earlier starts, which the results keep.

    Args:
      asked: of this start.
      earlier: results.json.
      stored: config.json.
    """
    del stored
    evaluate = asked.group(Students).evaluate or "accuracy" in earlier
    return asked.replaced(evaluate=evaluate)


def judged(
    asked: Asked[Any],
    workdir: Workdir,
    loaded: Loaded,
    earlier: dict[str, Any],
    distilling: Timer,
) -> dict[str, Any]:
    """Makes the set and trains on it; returns what results.json holds.

    Args:
      asked: of a method that matches classes.
      workdir: of the run.
      loaded: of `load`.
      earlier: results.json of an earlier start.
      distilling: of the method.
    """
    del earlier
    images, (key_condense, key_networks, key_random) = loaded
    config: Any = asked.namespace()
    normal, timers = images.normal, {name: Timer() for name in _SETS}
    made = _made.make(
        asked, workdir, images, key_condense, distilling, **normal._asdict()
    )
    _draw(asked, workdir, images, made)
    results: dict[str, Any] = {
        "method": config.method,
        "dataset": config.dataset,
        "preset": config.preset,
        "num_images": len(images.x_train),
        "num_distilled": len(made.images),
        "width": config.width,
        "seed": config.seed,
        "loss": float(np.mean(made.losses[-50:])),
        "nonfinite": False,
        **_told_of_step_size(config, made),
        # Does the set show training images?
        "nearest": _defence.nearest(
            _defence.Real(images.x_train - normal.mean, normal.mean),
            made.images * normal.deviation,
            None,
        ),
    }
    usable = not results.get("step_size_fault") or config.train_learning_rate
    if config.evaluate and usable:
        x, classes = class_images.arrays(images)
        real = distribution_matching.init(
            x,
            classes,
            key=key_random,
            num_classes=images.num_classes,
            images_per_class=config.images_per_class,
            initial="real",
        )
        sets = {"condensed": made, "random": real}
        found = {
            name: _accuracies(
                config, workdir, images, sets[name], key_networks, name, timers[name]
            )
            for name in _SETS
        }
        for entry, name in (("accuracy", "condensed"), ("accuracy_random", "random")):
            rate = rates.mean_and_deviation(found[name])
            results[entry] = {"convnet": rate.mean, "convnet_deviation": rate.deviation}
        results["runs"] = found
    timers = {"condense": distilling, **timers}
    seconds = {name: timer.run for name, timer in timers.items()}
    seconds["compile"] = sum(timer.compile for timer in timers.values())
    return results | {"seconds": seconds}


def _draw(asked, workdir, images, made) -> None:
    config = asked.namespace()
    each, normal = config.images_per_class, images.normal
    plots.pictures(
        made.images * normal.deviation,
        workdir.path("distilled.png"),
        mean=normal.mean,
        notes=[f"class {label}" for label in made.labels],
        columns=min(each, 10) if each > 1 else 5,
        title=f"{config.method}: {len(images.x_train)} images of {config.dataset} "
        f"condensed to {each} of each class",
    )
    loss_plots.losses(
        {config.method: made.losses},
        workdir.path("losses.png"),
        title=f"{config.method} on {config.dataset}",
        kind=asked.method.loss,
    )


def _told_of_step_size(config, made: Made) -> dict[str, Any]:
    """Returns the step size that was learnt, and what is wrong with it, if any."""
    if made.step_size is None:
        return {}
    size = float(made.step_size)
    return {
        "step_size": size,
        "step_size_fault": student.step_size_fault(size, config.step_size),
    }


def _accuracies(config, workdir, images, made, key, name, timer) -> list[float]:
    """Accuracy of each network trained on a set; what is known is read back."""
    about = workdir.checkpoint_folder / f"accuracy_{name}.json"
    path = str(about.relative_to(workdir.folder))
    if about.exists():
        told = workdir.read_json(path)
        timer.run, timer.compile = told["seconds"]
        return told["accuracy"]
    folder = workdir.checkpoint_folder / f"evaluate_{name}"
    found = _condensed.evaluate(images, made, config, key, folder=folder, timer=timer)
    if name == "condensed":
        _keep_first(config, workdir, images, found)
    told = {"accuracy": found.accuracy, "seconds": [timer.run, timer.compile]}
    workdir.write_json(path, told)
    _condensed.remove(folder)
    return workdir.read_json(path)["accuracy"]


def _keep_first(config, workdir, images, found) -> None:
    """Saves the first network in model/, for `experiments.evade`."""
    model = _condensed.model(config, images)
    if not isinstance(model, ConvNet):
        return
    saved.save(
        workdir.path("model"),
        model,
        jax.tree.map(lambda leaf: leaf[0], found.state.params),
        image_shape=images.image_shape,
        **images.normal._asdict(),
        about={
            "dataset": config.dataset,
            "trained_on": config.method,
            "accuracy": float(found.accuracy[0]),
        },
    )


def rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the lines of a short table for the terminal.

    Args:
      results: of the run.
    """
    rows = [("loss, mean of the last 50 steps", f"{results['loss']:.3g}")]
    for entry, told in (
        ("accuracy", "test accuracy"),
        ("accuracy_random", "test accuracy, random real images"),
    ):
        if entry in results:
            name = "condensed" if entry == "accuracy" else "random"
            value = rates.in_percent(results["runs"][name], digits=2)
            rows.append((told, f"{value}%"))
    if results.get("step_size_fault"):
        rows.append(("step size", results["step_size_fault"]))
    if "nearest" in results:
        count = f"{results['nearest']['num_copies']} of {results['num_distilled']}"
        rows.append(("copies of training images (PSNR >= 25 dB)", count))
    return rows
