"""What attacks take: images in the box with one class each, or a sentence."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np

from ntk_privacy import _checks
from ntk_privacy.evasion.threat_model import ThreatModel

__all__ = ["asking", "check", "check_classes", "check_logits"]

# What asks a traced array for its values.
_CONCRETE = (
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.ConcretizationTypeError,
)
_STATE = (flax.errors.ModifyScopeVariableError, flax.errors.TraceContextError)
MODES = "use_running_average=True, deterministic=True or train=False; nnx: model.eval()"
"""How evaluation mode is spelt."""


def check(x: Any, y: Any, threat_model: ThreatModel) -> np.ndarray:
    """Returns the labels as NumPy has them; the model is not looked at.

    Args:
      x: images, an array of NumPy or JAX.
      y: labels.
      threat_model: with the box.

    Raises:
      ValueError: no images, images that are no numbers of floating point, not finite,
        or outside the box, labels that are not one whole number per image.
    """
    if not isinstance(threat_model, ThreatModel):
        raise ValueError(  # noqa: TRY004  every fault of the input is one
            f"threat_model={threat_model!r} is none: give ThreatModel('linf', 8 / 255) "
            "or such."
        )
    labels = np.asarray(y)
    if not x.size or x.ndim != 4:
        raise ValueError(
            f"x has shape {x.shape}: give at least one image, as (n, height, width, "
            "channels)."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x has dtype {x.dtype}: convert it to float32 or float64, in units of "
            f"the box [{threat_model.low}, {threat_model.high}]."
        )
    whole = np.issubdtype(labels.dtype, np.integer)
    if labels.ndim != 1 or not whole:
        one_hot = labels.ndim == 2 and labels.shape[1] > 1
        remedy = "y.argmax(1) of one-hot rows" if one_hot else "y.astype(int)"
        raise ValueError(
            f"y is {labels.dtype} of shape {labels.shape}: give one class per image, "
            f"integers of shape ({len(x)},), such as {remedy}."
        )
    _checks.same_length(x=x, y=labels)
    xp = np if isinstance(x, np.ndarray) else jnp
    finite = np.asarray(xp.isfinite(x).all(axis=(1, 2, 3)))
    box = f"outside the box [{threat_model.low}, {threat_model.high}]"
    if not finite.all():
        raise ValueError(
            f"x has NaN or infinite values in {int((~finite).sum())} rows, first in "
            f"row {int((~finite).argmax())}, which is {box}: repair or remove those "
            "rows."
        )
    # In the dtype of the images: a bound may not be a number there.
    limits = threat_model.limits(x.dtype)
    least, most = float(x.min()), float(x.max())
    if least < float(limits.low) or most > float(limits.high):
        raise ValueError(
            f"x spans [{least:.6g}, {most:.6g}], {box}: scale the images to it, and "
            "normalise inside the model."
        )
    return labels


@contextlib.contextmanager
def asking(shape: Sequence[int]) -> Iterator[None]:
    """Tells in one sentence why a model does not read images, in place of its own.

    Args:
      shape: of the images that it is given.

    Raises:
      ValueError: it is no function of JAX, asks for random numbers, updates its state,
        or fails on images of that shape.
    """
    try:
        yield
    except _CONCRETE as error:
        raise ValueError(
            "logits_fn turns its images into NumPy or PyTorch arrays, or into Python "
            "numbers: make it one of jax.numpy, which attacks can differentiate."
        ) from error
    except (flax.errors.InvalidRngError, *_STATE) as error:
        asks = isinstance(error, flax.errors.InvalidRngError)
        told = (
            "asks for random numbers, as dropout does"
            if asks
            else "updates its state, as batch norm in training mode does"
        )
        raise ValueError(
            f"logits_fn {told}: put the model into evaluation mode ({MODES})."
        ) from error
    except (TypeError, ValueError, AttributeError, flax.errors.FlaxError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"logits_fn does not take images of shape {tuple(shape)} ({told}): give "
            "the images that it was made for, (n, height, width, channels)."
        ) from error


def check_logits(logits: Any, num_images: int) -> int:
    """Returns the number of classes.

    Args:
      logits: what the model returned, or its shape and dtype.
      num_images: that it was given.

    Raises:
      ValueError: no matrix of a row per image and at least two columns, or no numbers
        of floating point.
    """
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != num_images or shape[1] < 2:
        raise ValueError(
            f"logits_fn returned {shape or type(logits).__name__}: return an array "
            f"({num_images}, classes) with at least two classes."
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"logits_fn returned {logits.dtype}: return floating-point logits."
        )
    return int(shape[1])


def check_classes(labels: np.ndarray, num_classes: int) -> None:
    """Raises ValueError unless every label is a class of the model.

    Args:
      labels: whole numbers, one at least.
      num_classes: of the model.

    Raises:
      ValueError: a label is below 0, or not below `num_classes`.
    """
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"y spans [{labels.min()}, {labels.max()}] but the model has {num_classes} "
            f"classes: labels must lie in [0, {num_classes - 1}]."
        )
