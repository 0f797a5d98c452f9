"""What a synthetic set is worth: networks trained on it from scratch, then tested.

Source: the evaluation of DC, DSA and DM (Zhao & Bilen, released code); attack success
as in the RDM-DC paper: one decision per trained network.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks, _class_checks
from ntk_privacy._types import Callback
from ntk_privacy.data import augmentation
from ntk_privacy.evaluation import rates
from ntk_privacy.models import fitting
from ntk_privacy.models.convnet import Classifier
from ntk_privacy.training import classification

__all__ = [
    "Evaluated",
    "attack_success",
    "evaluate",
    "init",
]


class Evaluated(NamedTuple):
    """accuracy: of each network on the test images, in [0, 1]. target_classes: what
    each network takes each target for, (k, t). state: of the networks.
    """  # noqa: D205

    accuracy: Float[np.ndarray, " k"]
    target_classes: Int[np.ndarray, "k t"]
    state: classification.ClassifierState


def init(
    images: Float[Array, "m h w d"],
    *,
    model: Classifier,
    key: Array,
    num_networks: int = 5,
) -> classification.ClassifierState:
    """Returns the state before the first step of `evaluate` with these arguments.

    Args:
      images: the synthetic set.
      model: of every network.
      key: typed key.
      num_networks: trained from scratch.

    Raises:
      ValueError: key is no typed key.
    """
    _checks.typed_key(key=key)
    keys = jax.random.split(key, num_networks)
    return classification.init(images, model=model, keys=keys)


def evaluate(
    images: Float[Array, "m h w d"],
    labels: Int[Array, " m"],
    x_test: Float[Array, "n h w d"],
    class_test: Int[Array, " n"],
    *,
    model: Classifier,
    key: Array,
    num_networks: int = 5,
    num_epochs: int = 1000,
    targets: Float[Array, "t h w d"] | None = None,
    operations: tuple[str, ...] = augmentation.OPERATIONS,
    learning_rate: float = 0.01,
    batch_size: int = 256,
    parallel: bool | None = None,
    regularize: Callable[..., Any] | None = None,
    chunk: int = 100,
    state: classification.ClassifierState | None = None,
    callback: Callback | None = None,
) -> Evaluated:
    """Trains fresh networks on a synthetic set and tests them after the last epoch.

    SGD with momentum 0.9 and weight decay 5e-4 over `num_epochs` + 1 epochs (the
    published loop is inclusive); after that of index `num_epochs` // 2 + 1 the step is
    a tenth and momentum starts anew.

    Args:
      images: the synthetic set, normalised.
      labels: the class of each.
      x_test: test images, normalised alike.
      class_test: theirs.
      model: of every network.
      key: typed key.
      num_networks: trained from scratch.
      num_epochs: 1000 with augmentation, 300 without in the papers.
      targets: images to classify besides, such as that of an attack.
      operations: of `data.augmentation`, in training alone.
      learning_rate: of SGD.
      batch_size: images of a step.
      parallel: see `training.classification.train`.
      regularize: see there; a transform of the loss.
      chunk: steps between calls of `callback`.
      state: of `callback`, to continue from.
      callback: `(steps, state, metrics)` after each chunk.

    Raises:
      ValueError: images or classes are none, a class has no output, lengths or sizes
        differ, or a number is out of range.
    """
    _checks.typed_key(key=key)
    _class_checks.labelled(model, images, labels, names=("images", "labels"))
    _class_checks.labelled(model, x_test, class_test, names=("x_test", "class_test"))
    if targets is not None and len(targets):
        _class_checks.images(targets=targets)
        _check_size(model, images, targets, "targets")
    _check_size(model, images, x_test, "x_test")
    _checks.at_least(1, num_networks=num_networks)
    state = classification.train(
        images,
        labels,
        model=model,
        keys=jax.random.split(key, num_networks),
        num_epochs=num_epochs + 1,
        drop_after=num_epochs // 2 + 1,
        learning_rate=learning_rate,
        batch_size=batch_size,
        operations=operations,
        parallel=parallel,
        regularize=regularize,
        chunk=chunk,
        state=state,
        callback=callback,
    )
    found = classification.predict(state.params, x_test, model=model)
    accuracy = np.mean(found == np.asarray(class_test)[None], axis=1)
    if targets is None or len(targets) == 0:
        seen = np.zeros((num_networks, 0), np.int32)
    else:
        seen = classification.predict(state.params, targets, model=model)
    return Evaluated(accuracy, seen, state)


def _check_size(model: Classifier, images: Any, x: Any, name: str) -> None:
    """Told before hours of training: a network for some images takes others."""
    params = jax.eval_shape(
        lambda: model.init_params(jax.random.key(0), images.shape[1:], x.dtype)
    )
    fitting.check_call(
        model.apply_fn,
        params,
        image_shape=x.shape[1:],
        name=f"{name}: a network for images of shape {images.shape[1:]}",
        dtype=x.dtype,
    )


def attack_success(
    target_classes: Int[np.ndarray, " runs"], adversarial_class: int
) -> rates.Rate:
    """Returns the share of runs that take the target for the adversarial class.

    Args:
      target_classes: the decision of each run, one network each.
      adversarial_class: what the attacker wants.
    """
    return rates.mean_and_deviation(np.asarray(target_classes) == adversarial_class)
