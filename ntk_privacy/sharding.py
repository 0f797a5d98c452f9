"""Rows of arrays over devices: a mesh of one axis; identity on one device.

Across hosts call `jax.distributed.initialize` first and give every process the same
arrays: `jax.devices()` are then the devices of all hosts.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

__all__ = ["ROWS", "replicate", "row_mesh", "shard_rows"]

ROWS = "rows"
"""The name of the mesh axis."""


def row_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh over `devices`, all there are when absent."""
    chosen = jax.devices() if devices is None else devices
    return Mesh(np.asarray(chosen), (ROWS,))


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
