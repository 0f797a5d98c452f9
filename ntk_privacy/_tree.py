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


def largest(a: object) -> Float[Array, ""]:
    """Returns the largest size of a number in any leaf; NaN if one is NaN."""
    parts = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(a)]
    return functools.reduce(jnp.maximum, parts)


def cosine(a: T, b: T) -> Float[Array, ""]:
    """Returns the cosine of the angle between a and b; 0 where either is zero.

    Scaled before it is squared: squares leave float32 below 1e-19 and beyond 1e19. Its
    gradient is zero, not NaN, where a is zero.
    """

    def unit(tree):
        most = jax.lax.stop_gradient(largest(tree))
        most = jnp.where(most == 0, 1, most)
        # XLA would take the scale out of the products, and square what is small.
        tree = jax.lax.optimization_barrier(
            jax.tree.map(lambda leaf: leaf / most, tree)
        )
        squared = squared_norm(tree)
        none = squared == 0  # NaN is some
        root = jnp.sqrt(jnp.where(none, 1, squared))
        return jax.tree.map(lambda leaf: leaf / root, tree)

    return dot(unit(a), unit(b))


def size(a: object) -> int:
    """Returns the number of scalars."""
    return sum(leaf.size for leaf in jax.tree.leaves(a))


def single(a: T) -> T:
    """Returns the leaves as arrays; floats of 16 bits in float32."""

    def one(leaf):
        leaf = jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4:
            return leaf.astype(jnp.float32)
        return leaf

    return jax.tree.map(one, a)
