"""Vector-space operations on pytrees."""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

T = TypeVar("T")


def add(a: T, b: T) -> T:
    """Returns a + b."""
    return jax.tree.map(jnp.add, a, b)


def sub(a: T, b: T) -> T:
    """Returns a - b."""
    return jax.tree.map(jnp.subtract, a, b)


def scale(s: float | Float[Array, ""], a: T) -> T:
    """Returns s a, in the dtype of a."""
    return jax.tree.map(lambda leaf: (s * leaf).astype(leaf.dtype), a)


def axpy(s: float | Float[Array, ""], a: T, b: T) -> T:
    """Returns s a + b."""
    return jax.tree.map(lambda u, v: (s * u + v).astype(v.dtype), a, b)


def dot(a: T, b: T) -> Float[Array, ""]:
    """Returns the sum of products over all leaves."""
    parts = jax.tree.map(
        lambda u, v: jnp.vdot(u, v, precision=jax.lax.Precision.HIGHEST), a, b
    )
    return functools.reduce(jnp.add, jax.tree.leaves(parts))


def squared_norm(a: object) -> Float[Array, ""]:
    """Returns the squared L2 norm over all leaves."""
    return dot(a, a)


def size(a: object) -> int:
    """Returns the number of scalars."""
    return sum(leaf.size for leaf in jax.tree.leaves(a))
