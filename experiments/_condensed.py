"""Condensed sets as `experiments.distill` and `experiments.poison` make them.

Methods by name, and runs that go on after a kill, to the bit. A method is an entry of
`METHODS`: its presets say what flags it takes and what they are unless given.
"""

import functools
import pathlib
import shutil
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _gradient_methods, _progress
from experiments._flags import UsageError
from experiments._image_sets import Images
from ntk_privacy.distillation import distribution_matching, robust_mean
from ntk_privacy.distillation.student import step_size_fault
from ntk_privacy.evaluation import protocol
from ntk_privacy.models import ConvNet
from ntk_privacy.resume import Timer

# Steps between checkpoints, at least: one of gradient matching takes minutes at the
# published loops.
_CHUNK = 50
_CHUNKS = dict.fromkeys(("dc", "dsa"), 1) | dict.fromkeys(("mtt", "tesla"), 5)

# Of the DM and RDM-DC papers; and what two cores finish.
DM_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "width": 128,
        "images_per_class": 50,
        "num_steps": 20_000,
        "batch_size": 256,
        "learning_rate": 1.0,
        "num_networks": 5,
        "num_epochs": 1000,
        "train_learning_rate": 0.01,
    },
    "cpu": {
        "width": 32,
        "images_per_class": 10,
        "num_steps": 300,
        # Half the paper's: of fewer images a calibration sees less of the poison.
        "batch_size": 128,
        "learning_rate": 50.0,
        "num_networks": 3,
        "num_epochs": 100,
        # A tenth of the epochs, ten times the step.
        "train_learning_rate": 0.1,
    },
}


class Method(NamedTuple):
    """What `experiments.distill` and `experiments.poison` need of a method.

    presets: flags that it takes and what they are unless given. start: `(config,
    images, x, key)` to the state before the first step, x normalised. condense:
    `(config, images, x, key, state=, chunk=, callback=)` to images, labels, state and
    nonfinite; the state has `steps` and `nonfinite`, the metrics `loss`. loss: what
    that is.
    """

    presets: Mapping[str, Mapping[str, Any]]
    start: Callable[..., Any]
    condense: Callable[..., Any]
    loss: str


@functools.cache
def mean_fn(method: str, rate: float) -> robust_mean.MeanFn:
    """Returns the mean of a method of the DM family.

    Args:
      method: its name.
      rate: share of poison within a class.
    """
    makers: dict[str, Callable[[], robust_mean.MeanFn]] = {
        "dm": lambda: robust_mean.mean,
        "dm_median": lambda: robust_mean.median,
        "rdm": lambda: robust_mean.calibrated(rate=rate),
        "dm_truncated": lambda: robust_mean.truncated(rate=rate),
        "dm_trimmed": lambda: robust_mean.trimmed(rate=rate),
        "dm_entropy": lambda: robust_mean.quantum_entropy(rate=rate),
    }
    return makers[method]()


@functools.cache
def _sgd(learning_rate: float) -> optax.GradientTransformation:
    # One object for all cells: compiled programs are looked up by it.
    return optax.sgd(learning_rate, momentum=0.5)


def model(config: Any, images: Images) -> ConvNet:
    """Returns the network of a config's width."""
    return ConvNet(images.num_classes, config.width)


def _start_dm(config, images, x, key) -> Any:
    return distribution_matching.init(
        x,
        jnp.asarray(images.classes),
        key=key,
        num_classes=images.num_classes,
        images_per_class=config.images_per_class,
        optimizer=_sgd(config.learning_rate),
    )


def _condense_dm(method, config, images, x, key, **loop) -> Any:
    return distribution_matching.distill(
        x,
        jnp.asarray(images.classes),
        model=model(config, images),
        key=key,
        num_classes=images.num_classes,
        images_per_class=config.images_per_class,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        mean_fn=mean_fn(method, (config.rate or 0.0) * images.num_classes),
        operations=images.operations,
        optimizer=_sgd(config.learning_rate),
        **loop,
    )


DM_METHODS = ("dm", "rdm", "dm_truncated", "dm_trimmed", "dm_median", "dm_entropy")
# These drop nothing that depends on a rate.
_WITHOUT_RATE = ("dm", "dm_median")


def _dm_presets(method: str) -> dict[str, dict[str, Any]]:
    rate = {} if method in _WITHOUT_RATE else {"rate": 0.01}
    return {name: {**flags, **rate} for name, flags in DM_PRESETS.items()}


METHODS: dict[str, Method] = {
    name: Method(
        _dm_presets(name),
        _start_dm,
        functools.partial(_condense_dm, name),
        "squared feature distance",
    )
    for name in DM_METHODS
}
METHODS |= {name: Method(*entry) for name, entry in _gradient_methods.ENTRIES.items()}


def resolved(config: Any, flags: tuple[str, ...]) -> dict[str, Any]:
    """Returns the flags of a config's method that were not given, from its preset.

    Args:
      config: has method, preset and `flags`, None where not given.
      flags: all that methods of condensation take.

    Raises:
      ValueError: a flag is given that the method does not take.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        given = _resolved(config, flags)
    # Several flags may tell the same.
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        warnings.warn(text, stacklevel=2)
    return given


def _resolved(config: Any, flags: tuple[str, ...]) -> dict[str, Any]:
    known = METHODS[config.method].presets[config.preset or "cpu"]
    for name in flags:
        if getattr(config, name) is not None and name not in known:
            raise ValueError(
                f"method={config.method!r} takes no {name}: leave "
                f"{name}={getattr(config, name)} out."
            )
    given = {"preset": config.preset or "cpu"}
    each = config.images_per_class or known["images_per_class"]
    for name, value in known.items():
        if getattr(config, name) is None:
            given[name] = value(each) if callable(value) else value
    return given


def check(config: Any, methods: tuple[str, ...], images: Images) -> None:
    """Refuses flags that the image set cannot serve, before a folder is touched.

    Args:
      config: has rate and batch_size.
      methods: names of `METHODS`.
      images: to condense.

    Raises:
      UsageError: the rate is too high, or a batch larger than a class or too small.
    """
    sizes = np.bincount(images.classes, minlength=images.num_classes)
    # Experts of trajectory matching see batches of all classes.
    by_class = methods[0] not in _gradient_methods.WITH_EXPERTS
    if by_class and config.batch_size > sizes.min():
        raise UsageError(
            f"batch_size={config.batch_size} is more than the {sizes.min()} training "
            f"images of class {int(np.argmin(sizes))}: use at most {sizes.min()}."
        )
    each = config.images_per_class
    starts = methods[0] in _gradient_methods.START_REAL
    if (starts or getattr(config, "evaluate", False)) and each > sizes.min():
        use = (
            f"where {methods[0]} starts" if starts else "what --evaluate compares with"
        )
        raise UsageError(
            f"images_per_class={each} is more than the {sizes.min()} training images "
            f"of class {int(np.argmin(sizes))}, which are {use}: use fewer."
        )
    in_class = (config.rate or 0.0) * images.num_classes
    if not 0 <= in_class < 1 / 3:
        raise UsageError(
            f"rate={config.rate} of all images is {in_class:g} of one class, which "
            f"must lie in [0, 1/3): use a rate below {1 / 3 / images.num_classes:.4f}."
        )
    shape = jax.ShapeDtypeStruct((config.batch_size, 1), jnp.float32)
    for name in set(methods) & set(DM_METHODS):
        try:
            jax.eval_shape(mean_fn(name, in_class), shape)
        except ValueError as error:
            raise UsageError(f"batch_size={config.batch_size}: {error}") from error


def check_experts(config: Any, images: Images, key: jax.Array) -> None:
    """Refuses experts of a folder that was given, before one of results is made.

    Those that are missing there are trained.

    Args:
      config: has method and, of some methods, experts.
      images: to condense.
      key: of the condensation.

    Raises:
      OSError: a file cannot be read.
      ValueError: too few experts, or those of another network.
    """
    if config.method in _gradient_methods.WITH_EXPERTS and config.experts is not None:
        x = images.normalised(images.x)
        _gradient_methods.experts(config, images, x, key)


class Condensed(NamedTuple):
    """images: normalised. labels: classes. losses: of every step. step_size: to train
    on them with, where it was learnt.
    """  # noqa: D205

    images: np.ndarray
    labels: np.ndarray
    losses: np.ndarray
    step_size: np.ndarray | None = None


def condense(
    method: str,
    config: Any,
    images: Images,
    x: jax.Array,
    key: jax.Array,
    *,
    folder: pathlib.Path,
    timer: Timer,
    description: str,
) -> Condensed:
    """Condenses, from the last checkpoint in a folder.

    Args:
      method: of `METHODS`.
      config: has the flags of the method, checkpoint_seconds and progress.
      images: its classes.
      x: normalised training images, poisoned or not.
      key: typed key.
      folder: of the checkpoints.
      timer: of the condensation.
      description: for the progress bar.

    Raises:
      ValueError: the loss is not finite, or a checkpoint is damaged.
    """
    entry = METHODS[method]

    def go(state, done, callback):
        del done  # the state knows
        return entry.condense(
            config,
            images,
            x,
            key,
            state=state,
            chunk=_CHUNKS.get(method, _CHUNK),
            callback=callback,
        )

    stage = _progress.stage(config, folder.parent, timer, description=description)
    start = entry.start(config, images, x, key)
    ran = stage(folder.name, start, go, config.num_steps)
    out = ran.result
    if bool(out.nonfinite):
        also = ""
        if method in _gradient_methods.WITH_EXPERTS:
            also = f" or step_size={config.step_size}"
        raise ValueError(
            f"The loss of {method} is not finite after {int(out.state.steps)} steps: "
            f"lower learning_rate={config.learning_rate}{also}, in another --workdir."
        )
    learnt = getattr(out.state, "step_size", None)
    return Condensed(
        np.asarray(out.images),
        np.asarray(out.labels),
        ran.losses.astype(np.float32),
        None if learnt is None else np.asarray(learnt),
    )


def evaluate(
    images: Images,
    condensed: Any,
    config: Any,
    key: jax.Array,
    *,
    folder: pathlib.Path,
    timer: Timer,
    targets: jax.Array | None = None,
    network: Any = None,
) -> protocol.Evaluated:
    """Trains networks on a set and tests them, from the last checkpoint in a folder.

    Args:
      images: to test on.
      condensed: has images and labels.
      config: has width, num_networks, num_epochs, train_learning_rate and
        checkpoint_seconds.
      key: typed key.
      folder: of the checkpoints.
      timer: of the evaluation.
      targets: normalised images to classify besides.
      network: of another architecture than the one that condensed.

    Raises:
      ValueError: a checkpoint is damaged.
    """
    rate = config.train_learning_rate
    if rate is None:
        learnt = getattr(condensed, "step_size", None)
        rate = 0.01 if learnt is None else float(learnt)
        if learnt is not None and (fault := step_size_fault(rate, config.step_size)):
            raise ValueError(f"{fault} (--step_size_rate, in another --workdir.)")
    options: dict[str, Any] = {
        "model": network or model(config, images),
        "key": key,
        "num_networks": config.num_networks,
        "learning_rate": rate,
        "operations": images.operations,
        "targets": targets,
    }
    fixed = (jnp.asarray(condensed.images), jnp.asarray(condensed.labels))
    fixed += (images.normalised(images.x_test), jnp.asarray(images.class_test))
    start = protocol.init(
        fixed[0], model=options["model"], key=key, num_networks=config.num_networks
    )

    def go(state, done, callback):
        del done  # the state knows
        return protocol.evaluate(
            *fixed,
            num_epochs=config.num_epochs,
            state=state,
            callback=callback,
            chunk=_CHUNK,
            **options,
        )

    size = min(256, len(fixed[0]))
    num_steps = (config.num_epochs + 1) * -(-len(fixed[0]) // size)
    stage = _progress.stage(config, folder.parent, timer, description="train")
    return stage(folder.name, start, go, num_steps).result


def remove(folder: pathlib.Path) -> None:
    """Removes checkpoints whose result is kept elsewhere."""
    shutil.rmtree(folder, ignore_errors=True)
