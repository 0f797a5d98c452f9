"""A kernel in blocks: bounded memory, and rows over devices.

No function here holds more than `block_size` squared entries of the kernel per device
at a time, but for those that it returns.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from ntk_privacy import _checks, sharding
from ntk_privacy._linalg import matmul
from ntk_privacy._types import KernelFn

__all__ = [
    "diagonal",
    "evaluate",
    "product",
    "self_kernel",
    "self_product",
    "split",
]


def self_kernel(
    kernel_fn: KernelFn, x: Float[Array, "n ..."]
) -> Float[Array, "n n ..."]:
    """Returns the kernel of images with themselves.

    Leaves `x2` out where `kernel_fn` allows that: such kernels have an exact diagonal.
    """
    try:
        second = list(inspect.signature(kernel_fn).parameters.values())[1]
    except (IndexError, TypeError, ValueError):
        return kernel_fn(x, x)
    optional = second.default is not inspect.Parameter.empty
    return kernel_fn(x) if optional else kernel_fn(x, x)


def evaluate(
    kernel_fn: KernelFn,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."],
    *,
    block_size: int = 1000,
    mesh: Mesh | None = None,
) -> Float[Array, "n1 n2"]:
    """Returns the kernel, its rows over the devices of `mesh`.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      x1: images of the rows.
      x2: images of the columns.
      block_size: images on either side of a block.
      mesh: of `sharding.row_mesh`; None is one device.
    """
    _checks.at_least(1, block_size=block_size)
    rows, n1 = split(x1, block_size, mesh)
    columns, n2 = split(x2, block_size, None)
    columns = sharding.replicate(columns, mesh)
    return _evaluate(kernel_fn, mesh, rows, columns)[:n1, :n2]


def product(
    kernel_fn: KernelFn,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."],
    v: Float[Array, "n2 c"],
    *,
    block_size: int = 1000,
    mesh: Mesh | None = None,
) -> Float[Array, "n1 c"]:
    """Returns K(x1, x2) v without ever holding K.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      x1: images of the rows.
      x2: images of the columns.
      v: one row per image of x2.
      block_size: images on either side of a block.
      mesh: of `sharding.row_mesh`; None is one device.
    """
    _checks.at_least(1, block_size=block_size)
    _checks.same_length(x2=x2, v=v)
    rows, n1 = split(x1, block_size, mesh)
    columns, _ = split(x2, block_size, None)
    columns = sharding.replicate(columns, mesh)
    v = sharding.replicate(v, mesh)
    return _product(kernel_fn, mesh, rows, columns, v)[:n1]


def diagonal(
    kernel_fn: KernelFn, x: Float[Array, "n ..."], *, block_size: int = 16
) -> Float[Array, " n"]:
    """Returns K(x_i, x_i) for every image.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      x: images.
      block_size: images in a block; only the diagonal of a block is used.
    """
    blocks, n = split(x, block_size, None)
    return _diagonal(kernel_fn, blocks)[:n]


def split(
    x: Float[Array, "n ..."], block_size: int, mesh: Mesh | None
) -> tuple[Float[Array, "blocks size ..."], int]:
    """Returns blocks of rows over the devices of `mesh`, and the number of rows.

    Args:
      x: the last row is repeated until it fills a block on each device.
      block_size: upper bound of the size of a block.
      mesh: of `sharding.row_mesh`; None is one device.
    """
    n, devices = len(x), 1 if mesh is None else mesh.size
    size = min(block_size, -(-n // devices))
    count = -(-n // (size * devices)) * devices
    spare = count * size - n
    padded = jnp.concatenate([x, jnp.broadcast_to(x[-1:], (spare, *x.shape[1:]))])
    return sharding.shard_rows(padded.reshape(count, size, *x.shape[1:]), mesh), n


def _over_rows(fn, mesh: Mesh | None, over: int, whole: int):
    """Returns fn with its first `over` arguments and its result over devices."""
    if mesh is None:
        return fn
    own, all_of_it = PartitionSpec(sharding.ROWS), PartitionSpec()
    return jax.shard_map(
        fn,
        mesh=mesh,
        in_specs=(*[own] * over, *[all_of_it] * whole),
        out_specs=own,
        check_vma=False,
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(kernel_fn, mesh, rows, columns):
    def fn(rows, columns):
        def row(block):
            parts = jax.lax.map(lambda other: kernel_fn(block, other), columns)
            return jnp.moveaxis(parts, 0, 1).reshape(block.shape[0], -1)

        return jax.lax.map(row, rows)

    out = _over_rows(fn, mesh, 1, 1)(rows, columns)
    return out.reshape(-1, out.shape[-1])


def self_product(
    kernel_fn: KernelFn,
    mesh: Mesh | None,
    rows: Float[Array, "blocks size ..."],
    columns: Float[Array, "blocks size ..."],
    v: Float[Array, "p c"],
) -> Float[Array, "p c"]:
    """Returns the product of the kernel of images with themselves, rows over devices.

    Blocks on the diagonal are those of `self_kernel`.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      mesh: that `rows` are over.
      rows: blocks of images, of `split`.
      columns: the same blocks, whole on every device.
      v: one row per image, zero for those that `split` repeats.
    """
    return _product(kernel_fn, mesh, rows, columns, v, True)


@functools.partial(jax.jit, static_argnums=(0, 1, 5))
def _product(kernel_fn, mesh, rows, columns, v, same=False):
    count, size = columns.shape[:2]
    spare = jnp.zeros((count * size - v.shape[0], v.shape[1]), v.dtype)
    v = jnp.concatenate([v, spare]).reshape(count, size, -1)

    def entries(i, block, j, other):
        if not same:
            return kernel_fn(block, other)
        return jax.lax.cond(
            i == j,
            lambda: self_kernel(kernel_fn, block),
            lambda: kernel_fn(block, other),
        )

    def fn(rows, i, columns, v):
        def row(own):
            i, block = own

            def add(total, part):
                return total + matmul(entries(i, block, *part[:2]), part[2]), None

            start = jnp.zeros((block.shape[0], v.shape[-1]), v.dtype)
            parts = (jnp.arange(count), columns, v)
            return jax.lax.scan(add, start, parts)[0]

        return jax.lax.map(row, (i, rows))

    indices = jnp.arange(rows.shape[0])
    out = _over_rows(fn, mesh, 2, 2)(rows, indices, columns, v)
    return out.reshape(-1, v.shape[-1])


@functools.partial(jax.jit, static_argnums=0)
def _diagonal(kernel_fn, blocks):
    return jax.lax.map(
        lambda b: jnp.diagonal(self_kernel(kernel_fn, b)), blocks
    ).reshape(-1)
