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
    """Returns a mesh over `devices`, all there are when absent.

    Args:
      devices: that share the rows.

    Example:
      >>> import jax
      >>> from ntk_privacy import sharding
      >>> sharding.row_mesh(jax.devices()[:1]).shape[sharding.ROWS]
      1
    """
    chosen = jax.devices() if devices is None else devices
    return Mesh(np.asarray(chosen), (ROWS,))


def all_devices() -> Mesh | None:
    """Returns a mesh over all devices of all hosts; None where there is but one.

    Example:
      >>> import jax
      >>> from ntk_privacy import sharding
      >>> (sharding.all_devices() is None) == (jax.device_count() == 1)
      True
    """
    return row_mesh() if jax.device_count() > 1 else None


def shard_rows(x: Array, mesh: Mesh | None) -> Array:
    """Returns x with equal shares of its rows on each device of `mesh`.

    Args:
      x: the number of rows is a multiple of the number of devices.
      mesh: of `row_mesh`; None leaves x where it is.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from ntk_privacy import sharding
      >>> mesh = sharding.row_mesh()
      >>> x = sharding.shard_rows(jnp.ones((3 * mesh.size, 2)), mesh)
      >>> x.addressable_shards[0].data.shape
      (3, 2)
    """
    if mesh is None:
        return x
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(ROWS)))


def replicate(x: Array, mesh: Mesh | None) -> Array:
    """Returns x, whole on each device of `mesh`; None leaves x where it is.

    Args:
      x: array, the same on every host.
      mesh: of `row_mesh`.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy import sharding
      >>> x = sharding.replicate(jnp.ones((3, 2)), sharding.row_mesh())
      >>> x.addressable_shards[0].data.shape
      (3, 2)
    """
    if mesh is None:
        return x
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec()))


def placed(tree: T, mesh: Mesh | None) -> T:
    """Returns arrays whole on each device of `mesh`, but those that it shares already.

    Args:
      tree: pytree of arrays.
      mesh: of `row_mesh`; None leaves them where they are.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy import sharding
      >>> mesh = sharding.row_mesh()
      >>> rows = sharding.shard_rows(jnp.ones((3 * mesh.size, 2)), mesh)
      >>> tree = sharding.placed({"bias": jnp.zeros(5), "rows": rows}, mesh)
      >>> {name: x.addressable_shards[0].data.shape for name, x in tree.items()}
      {'bias': (5,), 'rows': (3, 2)}
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

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy import sharding
      >>> mesh = sharding.row_mesh()
      >>> rows = sharding.shard_rows(jnp.ones((mesh.size, 2)), mesh)
      >>> len(sharding.home(rows, mesh).sharding.device_set)
      1
    """
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf: jnp.asarray(on_host(leaf)), tree)


def share(x: Array, mesh: Mesh | None) -> Array:
    """Returns x as `shard_rows` does, rows that do not divide filled up with zeros.

    Args:
      x: one row per image.
      mesh: of `row_mesh`; None is one device.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy import sharding
      >>> mesh = sharding.row_mesh()
      >>> x = sharding.share(jnp.ones((mesh.size + 1, 2)), mesh)
      >>> len(x) % mesh.size, float(x.sum()) == 2 * (mesh.size + 1)
      (0, True)
    """
    spare = 0 if mesh is None else -len(x) % mesh.size
    if spare:
        x = jnp.pad(x, ((0, spare), *[(0, 0)] * (x.ndim - 1)))
    return shard_rows(x, mesh)


def gather(x: Array, mesh: Mesh | None) -> Array:
    """Returns an array that devices of `mesh` share, whole on each of them.

    Args:
      x: array, of any sharding.
      mesh: of `row_mesh`; None returns x.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy import sharding
      >>> mesh = sharding.row_mesh()
      >>> rows = sharding.shard_rows(jnp.ones((mesh.size, 2)), mesh)
      >>> sharding.gather(rows, mesh).is_fully_replicated
      True
    """
    if mesh is None:
        return x
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda x: x, out_shardings=whole)(x)


def on_host(x: Array | np.ndarray) -> np.ndarray:
    """Returns a whole array to every host; all hosts have to ask.

    Args:
      x: array, shared or not.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy import sharding
      >>> mesh = sharding.row_mesh()
      >>> rows = sharding.shard_rows(jnp.ones((mesh.size, 2)), mesh)
      >>> bool(sharding.on_host(rows).sum() == 2 * mesh.size)
      True
    """
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

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from ntk_privacy import sharding
      >>> mesh = sharding.row_mesh()
      >>> rows = sharding.shard_rows(jnp.ones((mesh.size, 2)), mesh)
      >>> jax.jit(lambda x: sharding.whole(2 * x, mesh))(rows).is_fully_replicated
      True
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

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from ntk_privacy import sharding
      >>> mesh = sharding.row_mesh()
      >>> x = jnp.ones((2, 3 * mesh.size))
      >>> x = jax.jit(lambda x: sharding.spread(2 * x, mesh, axis=1))(x)
      >>> x.addressable_shards[0].data.shape
      (2, 3)
    """
    if mesh is None:
        return x
    spec = PartitionSpec(*[None] * axis, ROWS)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
