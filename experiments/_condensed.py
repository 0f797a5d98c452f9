"""Sets of classes for several binaries: distilled, and networks trained on them."""

import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _progress
from experiments._made import lost
from ntk_privacy import distillation
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation.student import step_size_fault
from ntk_privacy.evaluation import protocol
from ntk_privacy.method import Method
from ntk_privacy.models import ConvNet
from ntk_privacy.resume import Timer

_CHUNK = 50


class Condensed(NamedTuple):
    """images: normalised. labels: classes. losses: of every step. step_size: to train
    on them with, where it was learnt.
    """  # noqa: D205

    images: np.ndarray
    labels: np.ndarray
    losses: np.ndarray
    step_size: np.ndarray | None = None


def model(config: Any, images: ImageSet) -> ConvNet:
    """Returns the network of a config's width."""
    return ConvNet(images.num_classes, config.width)


def configured(method: Method[Any], preset: str, flags: Any) -> Any:
    """Returns a method's config from another program's flags of the same names.

    Args:
      method: of distillation.
      preset: of what those flags leave open.
      flags: None, or the lack of it, is open.
    """
    names = method.configured(preset).__dataclass_fields__
    given = {name: getattr(flags, name, None) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    return method.configured(preset, **given)


def condense(
    method: str,
    config: Any,
    images: ImageSet,
    key: jax.Array,
    *,
    flags: Any,
    folder: pathlib.Path,
    timer: Timer,
    description: str,
) -> Condensed:
    """Condenses, from the last checkpoint in a folder.

    Args:
      method: of `distillation.METHODS`.
      config: of the method.
      images: to condense, poisoned or not.
      key: typed key.
      flags: have checkpoint_seconds and progress.
      folder: of the checkpoints.
      timer: of the condensation.
      description: for the progress bar.

    Raises:
      ValueError: the loss is not finite, or a checkpoint is damaged.
    """
    stage = _progress.stage(flags, folder, timer, description=description)
    made = distillation.METHODS[method].run(images, config, key=key, stage=stage)
    if bool(made.nonfinite):
        raise ValueError(lost(method, config, int(made.state.steps)))
    size = made.step_size
    return Condensed(
        np.asarray(made.images),
        np.asarray(made.labels),
        made.losses,
        None if size is None else np.asarray(made.state.step_size),
    )


def evaluate(
    images: ImageSet,
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
    fixed += (
        jnp.asarray(images.normalised(images.x_test)),
        jnp.asarray(images.class_test),
    )
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
