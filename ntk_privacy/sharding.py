"""Rows of arrays over devices: a mesh of one axis; identity on one device.

Across hosts call `jax.distributed.initialize` first and give every process the same
arrays: `jax.devices()` are then the devices of all hosts.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

__all__ = [
    "ROWS",
    "all_devices",
    "gather",
    "home",
    "on_host",
    "placed",
    "replicate",
    "row_mesh",
    "shard_rows",
    "share",
    "spread",
    "whole",
]

T = TypeVar("T")

ROWS = "rows"
"""The name of the mesh axis."""


def row_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh over `devices`, all there are when absent."""
    chosen = jax.devices() if devices is None else devices
    return Mesh(np.asarray(chosen), (ROWS,))


def all_devices() -> Mesh | None:
    """Returns a mesh over all devices of all hosts; None where there is but one."""
    return row_mesh() if jax.device_count() > 1 else None


def shard_rows(x: Array, mesh: Mesh | None) -> Array:
    """Returns x with equal shares of its rows on each device of `mesh`.

    Args:
      x: the number of rows is a multiple of the number of devices.
      mesh: of `row_mesh`; None leaves x where it is.
    """
    if mesh is None:
        return x
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(ROWS)))


def replicate(x: Array, mesh: Mesh | None) -> Array:
    """Returns x, whole on each device of `mesh`; None leaves x where it is."""
    if mesh is None:
        return x
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec()))


def placed(tree: T, mesh: Mesh | None) -> T:
    """Returns arrays whole on each device of `mesh`, but those that it shares already.

    Args:
      tree: pytree of arrays.
      mesh: of `row_mesh`; None leaves them where they are.
    """
    if mesh is None:
        return tree
    devices = set(mesh.devices.flat)

    def put(leaf: Any) -> Any:
        there = isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices
        return leaf if there else replicate(leaf, mesh)

    return jax.tree.map(put, tree)


def home(tree: T, mesh: Mesh | None) -> T:
    """Returns arrays whole on the device that each host computes on by itself.

    Args:
      tree: pytree of arrays that devices of `mesh` hold.
      mesh: None leaves them where they are.
    """
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf: jnp.asarray(on_host(leaf)), tree)


def share(x: Array, mesh: Mesh | None) -> Array:
    """Returns x as `shard_rows` does, rows that do not divide filled up with zeros."""
    spare = 0 if mesh is None else -len(x) % mesh.size
    if spare:
        x = jnp.pad(x, ((0, spare), *[(0, 0)] * (x.ndim - 1)))
    return shard_rows(x, mesh)


def gather(x: Array, mesh: Mesh | None) -> Array:
    """Returns an array that devices of `mesh` share, whole on each of them."""
    if mesh is None:
        return x
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda x: x, out_shardings=whole)(x)


def on_host(x: Array | np.ndarray) -> np.ndarray:
    """Returns a whole array to every host; all hosts have to ask."""
    if isinstance(x, jax.Array) and not (
        x.is_fully_addressable or x.is_fully_replicated
    ):
        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def whole(tree: T, mesh: Mesh | None) -> T:
    """Returns arrays of a program, whole on each device of `mesh`.

    Args:
      tree: pytree, traced.
      mesh: of `row_mesh`; None leaves them to the compiler.
    """
    if mesh is None:
        return tree
    target = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, target), tree
    )


def spread(x: Array, mesh: Mesh | None, *, axis: int = 0) -> Array:
    """Returns an array of a program, shared by the devices of `mesh` along an axis.

    Args:
      x: traced; its length need not be a multiple of the number of devices.
      mesh: of `row_mesh`; None leaves x to the compiler.
      axis: along which each device has its part.
    """
    if mesh is None:
        return x
    spec = PartitionSpec(*[None] * axis, ROWS)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
