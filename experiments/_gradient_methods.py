"""DC, DSA, MTT and TESLA for `experiments.distill`: presets, start, search."""

import functools
import math
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments._image_sets import Images
from ntk_privacy import curvature
from ntk_privacy.distillation import gradient_matching, tesla, trajectory_matching
from ntk_privacy.models import ConvNet
from ntk_privacy.training import trajectories

# With augmentation for all: the published 1000 epochs of DSA, and of DC on MNIST. On
# other sets the released DC trains for 300 epochs without.
_EVALUATION: Mapping[str, Mapping[str, Any]] = {
    "paper": {"num_networks": 5, "num_epochs": 1000, "train_learning_rate": 0.01},
    # A tenth of the epochs, ten times the step.
    "cpu": {"num_networks": 3, "num_epochs": 100, "train_learning_rate": 0.1},
}


_KNOWN = (1, 10)
# GUARD's length of the step that tells the curvature, in normalised units.
_PENALTY_STEP = 3.0
# Bytes of the products of students, above which they are computed again.
_MUCH = 4 * 10**9


def _short(images_per_class: int) -> int:
    """What two cores finish of the published loops; says so for other images."""
    if images_per_class not in _KNOWN:
        nearest = min(_KNOWN, key=lambda known: abs(known - images_per_class))
        warnings.warn(
            f"images_per_class={images_per_class} has no loops of its own in the cpu "
            f"preset: taking those of {nearest}.",
            stacklevel=2,
        )
    return 1 if images_per_class == 1 else 5


def _presets(num_steps: int, learning_rate: float) -> dict[str, dict[str, Any]]:
    """Returns presets; the numbers are for two cores and many images per class."""
    plain = {"penalty_weight": None, "penalty_step": None}
    return {
        "paper": {
            **plain,
            "width": 128,
            "images_per_class": 10,
            "num_steps": 1000,
            "batch_size": 256,
            "learning_rate": 0.1,
            "outer_steps": lambda each: gradient_matching.loops(each)[0],
            "inner_epochs": lambda each: gradient_matching.loops(each)[1],
            **_EVALUATION["paper"],
        },
        "cpu": {
            **plain,
            "width": 32,
            "images_per_class": 10,
            "num_steps": lambda each: 400 if each == 1 else num_steps,
            "batch_size": 64,
            "learning_rate": lambda each: 0.2 if each == 1 else learning_rate,
            "outer_steps": _short,
            "inner_epochs": _short,
            **_EVALUATION["cpu"],
        },
    }


# Of MTT on CIFAR-10, by images per class: student_steps, max_start_epoch,
# learning_rate, step_size_rate, step_size. Those of 1 and 10 are published for whitened
# images; images here never are. Other image sets take the same, and depth 3.
_MTT_TABLE = {
    1: (50, 2, 100.0, 1e-7, 0.01),
    10: (30, 20, 100.0, 1e-5, 0.001),
    50: (30, 40, 1000.0, 1e-5, 0.001),
}
# TESLA publishes 1 image per class, whose learning rate is halved here: its released
# code loses a factor of 2 from the gradient. Of 10 and 50 MTT's, which has that factor.
_TESLA_TABLE = {**_MTT_TABLE, 1: (50, 5, 500.0, 1e-7, 0.01)}
_COLUMNS = (
    *("student_steps", "max_start_epoch", "learning_rate"),
    *("step_size_rate", "step_size"),
)


def _entry(table: Mapping[int, tuple], column: int, each: int) -> Any:
    nearest = min(table, key=lambda known: abs(known - each))
    if nearest != each:
        warnings.warn(
            f"images_per_class={each} has no published sizes: taking those of "
            f"{nearest}.",
            stacklevel=2,
        )
    return table[nearest][column]


def _trajectory_presets(table: Mapping[int, tuple], num_steps: int) -> dict[str, Any]:
    columns: dict[str, Callable[[int], Any]] = {
        name: functools.partial(_entry, table, column)
        for column, name in enumerate(_COLUMNS)
    }
    return {
        "paper": {
            "width": 128,
            "images_per_class": 10,
            "num_steps": num_steps,
            "batch_size": 256,
            "expert_epochs": 2,
            "expert_learning_rate": 0.01,
            "num_experts": 100,
            "experts": None,
            **columns,
            **_EVALUATION["paper"],
            # The step size that was learnt.
            "train_learning_rate": None,
        },
        "cpu": {
            "width": 32,
            "images_per_class": 10,
            "num_steps": lambda each: 300 if each == 1 else 100,
            "batch_size": 64,
            "expert_epochs": 1,
            "expert_learning_rate": 0.02,
            "num_experts": 3,
            "experts": None,
            "student_steps": 10,
            "max_start_epoch": 2,
            "learning_rate": 100.0,
            "step_size_rate": 1e-4,
            "step_size": 0.05,
            **_EVALUATION["cpu"],
        },
    }


@functools.cache
def _sgd(learning_rate: float) -> optax.GradientTransformation:
    # One object for all calls: compiled programs are looked up by it.
    return optax.sgd(learning_rate, momentum=0.5)


@functools.cache
def regularize(weight: float, step: float) -> Callable[..., Any]:
    """Returns the curvature regulariser; one object, by which programs are looked up.

    Args:
      weight: of the curvature in the loss.
      step: that tells the curvature.
    """
    return functools.partial(curvature.regularize, weight=weight, step=step)


@functools.cache
def real_loss(model: ConvNet, weight: float, step: float) -> Callable[..., Any]:
    """Returns the loss of real images whose gradient is matched, regularised.

    Args:
      model: the network.
      weight: of `regularize`.
      step: of `regularize`.
    """

    def losses(params, images, labels):
        logits = model.apply_fn(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    flat = regularize(weight, step)(losses)
    return lambda params, images, labels: jnp.mean(flat(params, images, labels))


def _start(initial: str, config: Any, images: Images, x, key) -> Any:
    return gradient_matching.init(
        x,
        jnp.asarray(images.classes),
        key=key,
        num_classes=images.num_classes,
        images_per_class=config.images_per_class,
        initial=initial,
        optimizer=_sgd(config.learning_rate),
    )


def _condense(initial: str, config: Any, images: Images, x, key, **loop) -> Any:
    model = ConvNet(images.num_classes, config.width)
    if config.penalty_weight is not None:
        step = config.penalty_step or _PENALTY_STEP
        loop["real_loss"] = real_loss(model, config.penalty_weight, step)
    return gradient_matching.distill(
        x,
        jnp.asarray(images.classes),
        model=model,
        key=key,
        num_classes=images.num_classes,
        images_per_class=config.images_per_class,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        outer_steps=config.outer_steps,
        inner_epochs=config.inner_epochs,
        operations=images.operations if initial == "real" else (),
        initial=initial,
        optimizer=_sgd(config.learning_rate),
        **loop,
    )


ENTRIES = {
    name: (
        presets,
        functools.partial(_start, initial),
        functools.partial(_condense, initial),
        "distance of gradients, by layer",
    )
    for name, initial, presets in (
        # From noise there is more way to go than from real images.
        ("dc", "noise", _presets(num_steps=240, learning_rate=2.0)),
        ("dsa", "real", _presets(num_steps=60, learning_rate=0.5)),
    )
}


def _start_trajectory(config: Any, images: Images, x, key) -> Any:
    return trajectory_matching.init(
        x,
        jnp.asarray(images.classes),
        key=key,
        num_classes=images.num_classes,
        images_per_class=config.images_per_class,
        step_size=config.step_size,
        optimizer=_sgd(config.learning_rate),
        step_size_optimizer=_sgd(config.step_size_rate),
    )


def experts(config: Any, images: Images, x: jax.Array, key: jax.Array) -> Any:
    """Returns experts of a folder that was given, else those made in the workdir.

    Args:
      config: has their flags.
      images: whose classes they tell apart.
      x: normalised training images.
      key: of the condensation.

    Raises:
      ValueError: too few experts, or those of another network.
    """
    model = ConvNet(images.num_classes, config.width)
    # No later epoch is looked at, and the step is constant: none is trained.
    needed = config.max_start_epoch - 1 + config.expert_epochs
    given = config.experts and pathlib.Path(config.experts).expanduser()
    folder = given or pathlib.Path(config.workdir) / "experts"
    known, enough = len(trajectories.recorded(folder)), max(1, config.num_experts // 2)
    if config.experts is None or known < config.num_experts:
        try:
            trajectories.record(
                folder,
                x,
                jnp.asarray(images.classes),
                model=model,
                key=jax.random.fold_in(key, 1),
                num_experts=config.num_experts,
                num_epochs=needed,
                learning_rate=config.expert_learning_rate,
                batch_size=config.batch_size,
                operations=images.operations,
            )
        except ValueError as error:
            # Those of another recipe are taken as they are, if they are enough.
            if config.experts is None or known < enough:
                raise
            warnings.warn(f"Taken as they are: {error}", stacklevel=2)
    return trajectories.load(
        folder,
        model=model,
        image_shape=x.shape[1:],
        num_epochs=needed,
        at_least=enough,
    ).params


def _low_memory(config: Any, images: Images, image_shape: tuple[int, ...]) -> bool:
    """Whether the products of a student's steps take more than there is room for."""
    pixels = math.prod(image_shape[:2])
    # Of an image: those of the layers there and back, each a quarter of the last one.
    each = 4 * config.width * pixels * 2 * 4 / 3
    count = images.num_classes * config.images_per_class
    return each * count * config.student_steps > _MUCH


def _condense_trajectory(distill: Any, config: Any, images: Images, x, key, **loop):
    # TESLA keeps nothing.
    mtt = distill is trajectory_matching.distill
    lean = {"low_memory": _low_memory(config, images, x.shape[1:])} if mtt else {}
    return distill(
        x,
        jnp.asarray(images.classes),
        experts=experts(config, images, x, key),
        model=ConvNet(images.num_classes, config.width),
        key=key,
        num_classes=images.num_classes,
        images_per_class=config.images_per_class,
        num_steps=config.num_steps,
        student_steps=config.student_steps,
        expert_epochs=config.expert_epochs,
        max_start_epoch=config.max_start_epoch,
        step_size=config.step_size,
        operations=images.operations,
        optimizer=_sgd(config.learning_rate),
        step_size_optimizer=_sgd(config.step_size_rate),
        **lean,
        **loop,
    )


ENTRIES |= {
    name: (
        _trajectory_presets(table, num_steps),
        _start_trajectory,
        functools.partial(_condense_trajectory, module.distill),
        "squared distance over the expert's",
    )
    for name, module, table, num_steps in (
        ("mtt", trajectory_matching, _MTT_TABLE, 5000),
        ("tesla", tesla, _TESLA_TABLE, 10_000),
    )
}
# Their first images are real ones.
START_REAL = ("dsa", "mtt", "tesla")
WITH_EXPERTS = ("mtt", "tesla")
