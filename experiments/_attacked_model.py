"""The model that `experiments.evade` attacks: saved, made by a function, or trained."""

import importlib
import inspect
import pathlib
from typing import Any, NamedTuple

from experiments import _robust_training
from experiments._flags import UsageError
from experiments._image_sets import Images
from experiments._workdir import Workdir
from ntk_privacy.evaluation import attacked_batches
from ntk_privacy.models import saved
from ntk_privacy.resume import Timer


class Model(NamedTuple):
    """logits_fn: of images in [0, 1]. about: for results.json."""

    logits_fn: Any
    about: dict[str, Any]


def find(name: str, images: Images) -> Model:
    """Returns the model of `--model`.

    Args:
      name: a folder, its parent, or "module:function".
      images: whose shape and classes are given to a function that takes
        `image_shape` or `num_classes`.

    Raises:
      UsageError: there is no such folder, module or function, or it returns no
        function.
      ValueError: a file is damaged.
    """
    for folder in (pathlib.Path(name), pathlib.Path(name) / "model"):
        if saved.is_saved(folder):
            return _loaded(folder)
    module_name, colon, function_name = name.partition(":")
    if not colon or not all(map(str.isidentifier, module_name.split("."))):
        raise UsageError(
            f"model={name!r} holds no model.json: give a folder that models.saved.save "
            "wrote, or module:function."
        )
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UsageError(
            f"model={name!r} cannot be imported ({error}): give module:function with "
            "the module on the path."
        ) from error
    if not callable(function):
        raise UsageError(
            f"model={name!r} is {type(function).__name__}: name a function that "
            "returns a logits_fn."
        )
    known = {"image_shape": images.x_test.shape[1:], "num_classes": images.num_classes}
    taken = inspect.signature(function).parameters
    asked = [
        k
        for k, v in taken.items()
        if k not in known
        and v.default is v.empty
        and v.kind not in (v.VAR_POSITIONAL, v.VAR_KEYWORD)
    ]
    if asked:
        raise UsageError(
            f"model={name!r} needs {', '.join(asked)}: name a function that needs no "
            "more than image_shape and num_classes."
        )
    logits_fn = function(**{k: v for k, v in known.items() if k in taken})
    if not callable(logits_fn):
        raise UsageError(
            f"model={name!r} returned {type(logits_fn).__name__}: return a function of "
            "images in [0, 1] that returns logits."
        )
    return Model(logits_fn, {"function": name})


def _loaded(folder: pathlib.Path) -> Model:
    network = saved.load(folder)
    about = {"folder": str(folder), "network": type(network.model).__name__}
    return Model(network.logits_fn, about | network.about)


def trained(
    config: Any,
    workdir: Workdir,
    images: Images,
    class_names: tuple[str, ...],
    timer: Timer,
) -> Model:
    """Trains the network of `--train`; what is in the folder's model/ is read back."""
    folder = workdir.path("model")
    if not saved.is_saved(folder):
        _robust_training.train(
            config,
            images,
            config.threat_model,
            folder=folder,
            checkpoints=workdir.checkpoint_folder / "train",
            timer=timer,
            class_names=class_names,
        )
    model = _loaded(folder)
    timer.run, timer.compile = map(float, model.about.pop("seconds"))
    return model


def check(model: Model, images: Images, batch_size: int) -> int:
    """Returns the number of classes; refuses a model that does not fit the images.

    Raises:
      UsageError: it takes images of another shape, has fewer classes, is no function
        of JAX, or returns no logits.
    """
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
        raise UsageError(told) from error
    if classes < images.num_classes:
        raise UsageError(
            f"the model has {classes} classes but the image set {images.num_classes}: "
            "give the dataset that it was trained on."
        )
    return classes
