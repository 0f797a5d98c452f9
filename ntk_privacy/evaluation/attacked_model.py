"""The model under attack: saved, made by a function of one's own, or trained here.

`MODELS` has a record of each way, `run(images, config, *, key, threat_model, stage)`,
which returns what has a `logits_fn` of images in [0, 1]: the first is `find`, by a
name; the others train a ConvNet, see `evasion.robust_training`.
"""

import dataclasses
import importlib
import inspect
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from ntk_privacy.data import ArgumentError
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.evaluation import attacked_batches
from ntk_privacy.evasion import ThreatModel, robust_training
from ntk_privacy.method import Method, by_name, field
from ntk_privacy.models import saved
from ntk_privacy.resume import Stage, Timer, straight

__all__ = ["MODELS", "Config", "Model", "check", "find", "read", "trained"]


class Model(NamedTuple):
    """A model under attack.

    Attributes:
      logits_fn: of images in [0, 1].
      about: for results.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.evaluation import attacked_model
      >>> means = attacked_model.Model(lambda x: x.mean((1, 2)), {"network": "means"})
      >>> means.logits_fn(jnp.zeros((3, 4, 4, 2))).shape
      (3, 2)
    """

    logits_fn: Any
    about: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Flags of a model that there is.

    Example:
      >>> import jax, tempfile
      >>> import numpy as np
      >>> from ntk_privacy import data, models
      >>> from ntk_privacy.evaluation.attacked_model import MODELS
      >>> grey = np.linspace(0, 1, 32).reshape(8, 2, 2)
      >>> images = data.ImageSet.from_arrays(grey, [0, 1] * 4)
      >>> net, folder = models.MLP((4,), num_outputs=2), tempfile.mkdtemp()
      >>> params = net.init_params(jax.random.key(0), (2, 2, 1))
      >>> models.saved.save(folder, net, params, image_shape=(2, 2, 1))
      >>> row = MODELS["none"]
      >>> found = row.run(images, row.configured(model=folder), key=jax.random.key(0))
      >>> found.logits_fn(jax.numpy.zeros((3, 2, 2, 1))).shape
      (3, 2)
    """

    model: str | None = field(
        None,
        "A folder with a saved network, or module:function that returns a logits_fn: "
        "images in [0, 1] to logits.",
    )


def find(name: str, images: ImageSet) -> Model:
    """Returns a model by its name.

    Args:
      name: a folder, its parent, or "module:function".
      images: whose shape and classes are given to a function that takes
        `image_shape` or `num_classes`.

    Raises:
      ArgumentError: there is no such folder, module or function, or it returns no
        function.
      ValueError: a file is damaged.
    """
    for folder in (pathlib.Path(name), pathlib.Path(name) / "model"):
        if saved.is_saved(folder):
            return read(folder)
    module_name, colon, function_name = name.partition(":")
    if not colon or not all(map(str.isidentifier, module_name.split("."))):
        raise ArgumentError(
            f"model={name!r} holds no model.json: give a folder that models.saved.save "
            "wrote, or module:function."
        )
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ArgumentError(
            f"model={name!r} cannot be imported ({error}): give module:function with "
            "the module on the path."
        ) from error
    if not callable(function):
        raise ArgumentError(
            f"model={name!r} is {type(function).__name__}: name a function that "
            "returns a logits_fn."
        )
    known = {"image_shape": images.image_shape, "num_classes": images.num_classes}
    taken = inspect.signature(function).parameters
    asked = [
        k
        for k, v in taken.items()
        if k not in known
        and v.default is v.empty
        and v.kind not in (v.VAR_POSITIONAL, v.VAR_KEYWORD)
    ]
    if asked:
        raise ArgumentError(
            f"model={name!r} needs {', '.join(asked)}: name a function that needs no "
            "more than image_shape and num_classes."
        )
    logits_fn = function(**{k: v for k, v in known.items() if k in taken})
    if not callable(logits_fn):
        raise ArgumentError(
            f"model={name!r} returned {type(logits_fn).__name__}: return a function of "
            "images in [0, 1] that returns logits."
        )
    return Model(logits_fn, {"function": name})


def read(folder: pathlib.Path) -> Model:
    """Returns the network of a folder.

    Args:
      folder: of `models.saved.save`.

    Raises:
      ValueError: a file is damaged.
    """
    network = saved.load(folder)
    about = {"folder": str(folder), "network": type(network.model).__name__}
    return Model(network.logits_fn, about | network.about)


def trained(
    method: Method[Any],
    images: ImageSet,
    config: robust_training.Config,
    folder: pathlib.Path,
    *,
    seed: int,
    threat_model: ThreatModel,
    about: Mapping[str, Any],
    stage: Stage = straight,
    timer: Timer,
) -> Model:
    """Trains a network and keeps it in a folder; one that is there is read back.

    Args:
      method: of `evasion.robust_training.METHODS`.
      images: to train on.
      config: of the training.
      folder: of the network.
      seed: of the training.
      threat_model: of adversarial images.
      about: to note in the folder.
      stage: runs the training.
      timer: its seconds, which the folder knows.

    Raises:
      ValueError: the loss is not finite, or a file is damaged.
    """
    if not saved.is_saved(folder):
        made = method.run(
            images,
            config,
            key=jax.random.key(seed),
            threat_model=threat_model,
            stage=stage,
        )
        noted = {
            **about,
            "train": method.name,
            "num_train": len(images.x_train),
            "num_epochs": config.num_epochs,
            "seed": seed,
            "seconds": [timer.run, timer.compile],
        }
        saved.save(
            folder,
            **made._asdict(),
            image_shape=images.image_shape,
            class_names=images.class_names,
            about=noted,
        )
    model = read(folder)
    timer.run, timer.compile = map(float, model.about.pop("seconds"))
    return model


def check(model: Model | None, images: ImageSet, batch_size: int) -> int:
    """Returns the number of classes; refuses a model that does not fit the images.

    Args:
      model: of `find`; None is one that will be trained on them.
      images: to attack.
      batch_size: of the attacks.

    Raises:
      ArgumentError: it takes images of another shape, has fewer classes, is no function
        of JAX, or returns no logits.
    """
    if model is None:
        return images.num_classes
    shape = (min(batch_size, len(images.x_test)), *images.x_test.shape[1:])
    try:
        classes = attacked_batches.num_classes_of(model.logits_fn, shape)
    except ValueError as error:
        told = str(error).replace("logits_fn", "the model", 1)
        # Who names a data set has no images to give.
        told = told.replace(
            "the images that it was made for, (n, height, width, channels).",
            "the dataset that it was trained on.",
        )
        raise ArgumentError(told) from error
    if classes < images.num_classes:
        raise ArgumentError(
            f"the model has {classes} classes but the image set {images.num_classes}: "
            "give the dataset that it was trained on."
        )
    return classes


def _named(images: ImageSet, config: Config, **options: Any) -> Model:
    del options
    _is_named(images, config)
    return find(config.model or "", images)


def _is_named(images: ImageSet | None, config: Config) -> None:
    del images
    if config.model is None:
        raise ArgumentError(
            "model=None: give a model, or train one, as plain or adversarial."
        )


MODELS = by_name(
    Method(
        name="none",
        about="attacks a model that there is.",
        config=Config,
        presets={"cpu": Config},
        run=_named,
        check=_is_named,
    ),
    *robust_training.METHODS.values(),
)
