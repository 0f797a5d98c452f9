"""Validation: each failure is one sentence with value, range and remedy."""

import difflib
import re
from collections.abc import Sequence, Sized
from typing import Any

import jax
import jax.core
import numpy as np

# beartype takes `float` at its word: an int flag or a NumPy scalar is none.
Number = float | int | np.number

# Names of what is counted: half a step or image is none.
_COUNTED = re.compile(
    r"num_\w+|\w*(steps|epochs|batch_size|block_size|per_class)"
    r"|chunk|width|depth|levels|size|jitter"
)


def number(**values: Any) -> None:
    """Raises ValueError unless every value is one real number; text is none."""
    for name, value in values.items():
        array = np.asarray(value)
        real = jax.numpy.issubdtype(array.dtype, np.number) or array.dtype == bool
        if array.ndim or not real or array.dtype.kind == "c":
            raise ValueError(f"{name}={value!r} must be one number.")


def concrete(*arrays: Any) -> bool:
    """Whether arrays can be looked at: none is traced, nor is what is made of them."""
    # Within jit, a constant's own functions are traced, too.
    made = jax.numpy.zeros(())
    return not any(isinstance(a, jax.core.Tracer) for a in (*arrays, made))


def typed_key(**keys: Any) -> None:
    """Raises ValueError unless every value is a key of `jax.random`, such as key(0)."""
    for name, key in keys.items():
        words = 0 if _is_key(name, key) else 1
        if np.ndim(key) != words:
            raise ValueError(
                f"{name} has shape {np.shape(key)}: give one key, such as {name}[0]."
            )


def key_array(**keys: Any) -> None:
    """Raises ValueError unless every value is an array of keys, (k,), one at least."""
    for name, key in keys.items():
        shape = np.shape(key) if _is_key(name, key) else np.shape(key)[:-1]
        if len(shape) != 1 or not shape[0]:
            raise ValueError(
                f"{name} has shape {np.shape(key)}: give one key per network in an "
                "array, such as jax.random.split(jax.random.key(0), 1)."
            )


def key_data(**keys: Any) -> Any:
    """Returns the numbers of keys, from which `jax.random.wrap_key_data` makes them.

    Args:
      **keys: one key or array of keys, by its name.

    Raises:
      ValueError: no key, or one of another implementation than JAX's default.
    """
    ((name, key),) = keys.items()
    _is_key(name, key)
    data = jax.random.key_data(key)
    usual = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    if data.shape[-1:] != usual.shape:
        raise ValueError(
            f"{name}={key!r} is not of JAX's default implementation: give "
            "jax.random.key(0) without impl, or set jax_default_prng_impl."
        )
    return data


def _is_key(name: str, key: Any) -> bool:
    """Returns whether a key is typed; keys of old are numbers.

    Raises:
      ValueError: it is no key.
    """
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jax.numpy.issubdtype(dtype, jax.dtypes.prng_key)
    # Keys of old are arrays, (2,), which JAX still takes.
    if not typed and dtype != np.uint32:
        raise ValueError(
            f"{name}={key!r} is no key: give one such as jax.random.key(0)."
        )
    return typed


def positive(**values: Number) -> None:
    """Raises ValueError unless every value is a finite number above 0."""
    for name, value in values.items():
        number(**{name: value})
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value} must be above 0.")


def at_least(minimum: Number, **values: Number) -> None:
    """Raises ValueError unless every value is finite and at least `minimum`.

    What is a count by its name, such as num_steps or batch_size, must be whole as well.
    """
    for name, value in values.items():
        number(**{name: value})
        # True is a flag that stands in a count's place.
        whole = np.asarray(value).dtype.kind in "iu"
        if _COUNTED.fullmatch(name) and not whole:
            raise ValueError(
                f"{name}={value} must be a whole number, at least {minimum}."
            )
        if not (np.isfinite(value) and value >= minimum):
            raise ValueError(f"{name}={value} must be at least {minimum}.")


def in_range(low: Number, high: Number, **values: Number) -> None:
    """Raises ValueError unless every value lies in [low, high]."""
    for name, value in values.items():
        number(**{name: value})
        if not low <= value <= high:
            raise ValueError(f"{name}={value} must lie in [{low}, {high}].")


def one_of(options: Any, **values: Any) -> None:
    """Raises ValueError unless every value is among `options`."""
    for name, value in values.items():
        if value not in options:
            raise ValueError(f"{name}={value!r} is {unknown(value, options)}")


def unknown(value: Any, options: Any) -> str:
    """Returns what to say of a value that is not among `options`.

    Args:
      value: that there is not.
      options: that there are.
    """
    known = [str(option) for option in options]
    near = difflib.get_close_matches(str(value), known, n=1)
    told = f", did you mean {near[0]}? Use" if near else ": use"
    return f"unknown{told} one of {', '.join(known)}."


def named(**values: Sequence[str]) -> None:
    """Raises ValueError unless every value has names, none of them twice."""
    for name, entries in values.items():
        if not entries:
            raise ValueError(f"{name} is empty: name one at least.")
        for entry in entries:
            if list(entries).count(entry) > 1:
                raise ValueError(f"{name} names {entry} twice: name it once.")


def same_length(**arrays: Sized) -> None:
    """Raises ValueError unless all arrays have the same number of rows."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {n} rows" for name, n in lengths.items())
        raise ValueError(f"Lengths differ: {told}; give one row per image to each.")


def same_width(**arrays: Any) -> None:
    """Raises ValueError unless all arrays have the same number of columns."""
    widths = {name: array.shape[1] for name, array in arrays.items()}
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{name} has {n} columns" for name, n in widths.items())
        raise ValueError(f"Widths differ: {told}; give one column per output to each.")


def finite(**trees: Any) -> None:
    """Raises ValueError if any leaf of any tree holds a NaN or an infinity."""
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            bad = int(np.sum(~np.isfinite(np.asarray(leaf))))
            if bad:
                where = name + jax.tree_util.keystr(path)
                raise ValueError(
                    f"{where} has {bad} values that are NaN or infinite: "
                    "lower the step size that produced it, or use an earlier snapshot."
                )


def finite_data(**arrays: Any) -> None:
    """Raises ValueError if an array of images or targets holds NaN or infinity."""
    for name, array in arrays.items():
        flat = np.asarray(array)
        bad = ~np.isfinite(flat.reshape(len(flat), -1)).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{name} has NaN or infinite values in {int(bad.sum())} rows, first in "
                f"row {int(bad.argmax())}: repair or remove those rows."
            )


def floating(**arrays: Any) -> None:
    """Raises ValueError unless every array holds floating-point numbers."""
    for name, array in arrays.items():
        if not jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
            raise ValueError(
                f"{name} has dtype {array.dtype}: convert it to float32 or float64."
            )


def solvable_dtype(**arrays: Any) -> None:
    """Raises ValueError if an array has too few bits for linear systems."""
    for name, array in arrays.items():
        if array.dtype.itemsize < 4:
            raise ValueError(
                f"{name} has dtype {array.dtype}, in which no kernel can be solved: "
                "convert it to float32 or float64."
            )


def full_precision(**trees: Any) -> None:
    """Raises ValueError if a leaf of any tree has fewer than 32 bits a number."""
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            dtype = np.asarray(leaf).dtype if np.isscalar(leaf) else leaf.dtype
            if jax.numpy.issubdtype(dtype, jax.numpy.floating) and dtype.itemsize < 4:
                raise ValueError(
                    f"{name}{jax.tree_util.keystr(path)} is {dtype}, in which squares "
                    "of small numbers are 0: convert all leaves to float32 first, such "
                    "as jax.tree.map(jnp.float32, params); what rounding to "
                    f"{dtype} took is lost."
                )


def same_structure(name_a: str, a: Any, name_b: str, b: Any) -> None:
    """Raises ValueError unless two pytrees agree in structure and leaf shapes."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        raise ValueError(
            f"{name_a} and {name_b} differ in structure: give the parameters of one "
            "architecture before and after training."
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
    for (path, leaf_a), leaf_b in pairs:
        if np.shape(leaf_a) != np.shape(leaf_b):
            where = jax.tree_util.keystr(path)
            raise ValueError(
                f"{name_a}{where} has shape {np.shape(leaf_a)} but {name_b}{where} has "
                f"{np.shape(leaf_b)}: give the parameters of one architecture before "
                "and after training."
            )


def differ(name_a: str, a: Any, name_b: str, b: Any) -> None:
    """Raises ValueError if two pytrees of one structure are equal everywhere."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    if all(np.array_equal(np.asarray(u), np.asarray(v)) for u, v in pairs):
        raise ValueError(
            f"{name_a} and {name_b} are equal: nothing was learnt, so nothing can be "
            "read back; give the parameters before and after training."
        )
