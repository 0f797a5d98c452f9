"""Validation of what classifiers are trained on and tested with: images and classes.

JAX gathers outside of an array without a word, so a class number that the network has
no output for would train and be scored as if nothing were wrong.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_privacy import _checks


def num_outputs(model: Any, image_shape: tuple[int, ...]) -> int:
    """Returns how many classes a network tells apart.

    Args:
      model: has `num_outputs`, or else is asked for the shape of its logits.
      image_shape: (height, width, depth) in pixels.
    """
    told = getattr(model, "num_outputs", None)
    if isinstance(told, int | np.integer):
        return int(told)

    def logits():
        params = model.init_params(jax.random.key(0), tuple(image_shape), jnp.float32)
        x = jnp.zeros((1, *image_shape), jnp.float32)
        if hasattr(model, "apply_fn"):
            return model.apply_fn(params, x)
        return model.eval_fn(params, model.init_stats(jnp.float32), x)

    return jax.eval_shape(logits).shape[1]


def images(**arrays: Any) -> None:
    """Raises ValueError unless each is images: (n, h, w, c), floating and finite."""
    for name, array in arrays.items():
        shape, dtype = np.shape(array), getattr(array, "dtype", None)
        if len(shape) != 4 or not all(shape):
            raise ValueError(
                f"{name} has shape {shape}: give at least one image, as (n, height, "
                "width, channels)."
            )
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{name} has dtype {dtype or type(array).__name__}: convert it to "
                "float32 or float64, in the units that the network takes (bytes: over "
                "255, less the mean, over the deviation)."
            )
        # On the device first: only a fault is looked for on the host.
        if not bool(jnp.isfinite(array).all()):
            _checks.finite_data(**{name: array})


def numbers(**labels: Any) -> None:
    """Raises ValueError unless each holds class numbers: integers from 0, one a row."""
    for name, values in labels.items():
        array = np.asarray(values)
        told = f"{name} is {array.dtype} of shape {array.shape}"
        if array.ndim == 2 and array.shape[1] > 1:
            raise ValueError(
                f"{told}, rows rather than class numbers: give the place of the "
                f"largest, {name}.argmax(axis=1)."
            )
        if array.ndim != 1 or not array.size:
            raise ValueError(
                f"{told}: give one class number per image, shape (n,), n at least 1."
            )
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"{told}: give class numbers as integers from 0, such as "
                f"{name}.astype('int32')."
            )
        if array.min() < 0:
            raise ValueError(
                f"{name} lies in [{array.min()}, {array.max()}], but classes are "
                "numbered from 0: number them anew, and leave out images without one."
            )


def classes(outputs: int, **labels: Any) -> None:
    """Raises ValueError unless each label is a class that a network has an output for.

    Args:
      outputs: of the network.
      **labels: class numbers, by name.
    """
    numbers(**labels)
    for name, values in labels.items():
        array = np.asarray(values)
        if array.max() >= outputs:
            most = int(array.max())
            raise ValueError(
                f"{name} lies in [{array.min()}, {most}], but the network has "
                f"{outputs} outputs, for classes 0 to {outputs - 1}: build it with "
                f"num_outputs={most + 1}, or number the classes without gaps from 0."
            )


def one_class(outputs: int, **values: Any) -> None:
    """Raises ValueError unless each is one class number below `outputs`."""
    for name, value in values.items():
        whole = np.ndim(value) == 0 and np.issubdtype(
            np.asarray(value).dtype, np.integer
        )
        if not whole or not 0 <= int(value) < outputs:
            raise ValueError(
                f"{name}={value} must be a whole number in [0, {outputs - 1}]: the "
                f"network has {outputs} outputs."
            )


def labelled(model: Any, x: Any, y: Any, *, names: tuple[str, str]) -> None:
    """Raises ValueError unless images and classes fit each other and a network.

    Args:
      model: the network.
      x: images.
      y: the class of each.
      names: of both, for messages.
    """
    images(**{names[0]: x})
    numbers(**{names[1]: y})
    _checks.same_length(**{names[0]: x, names[1]: y})
    classes(num_outputs(model, np.shape(x)[1:]), **{names[1]: y})
