"""A kernel in blocks: bounded memory, and rows over devices.

No function here holds more than `block_size` squared entries of the kernel per device
at a time, but for those that it returns.
"""

import inspect
import math
import pathlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from ntk_privacy import _checks, _loop, _programs, hosts, sharding
from ntk_privacy._linalg import matmul
from ntk_privacy._types import Callback, KernelFn

__all__ = ["diagonal", "evaluate", "product", "self_kernel", "self_product"]
__all__ += ["size_within", "split", "stream"]


def self_kernel(
    kernel_fn: KernelFn, x: Float[Array, "n ..."]
) -> Float[Array, "n n ..."]:
    """Returns the kernel of images with themselves.

    Leaves `x2` out where `kernel_fn` allows that: such kernels have an exact diagonal.

    Args:
      kernel_fn: `(x1, x2)` or `(x1, x2=None)`.
      x: images.
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
) -> Float[Array, "p n2"]:
    """Returns the kernel, its rows over the devices of `mesh`.

    No device can hold a share of rows that do not divide: with a mesh the last row is
    repeated until all devices have as many, and p may be above n1.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      x1: images of the rows.
      x2: images of the columns.
      block_size: images on either side of a block.
      mesh: of `sharding.row_mesh`; None is one device, where p is n1.

    Raises:
      ValueError: block_size is below 1.

    Example:
      >>> import jax
      >>> from ntk_privacy.kernels import blockwise, infinite
      >>> x = jax.random.uniform(jax.random.key(0), (5, 4, 4, 1))
      >>> blockwise.evaluate(infinite.mlp(depth=1), x, x, block_size=2).shape
      (5, 5)
    """
    _checks.at_least(1, block_size=block_size)
    rows, n1 = split(x1, block_size, mesh)
    columns, n2 = split(x2, block_size, None)
    columns = sharding.replicate(columns, mesh)
    out = _evaluate(kernel_fn, mesh, rows, columns)
    shared = mesh is not None and mesh.size > 1
    return out[:, :n2] if shared else out[:n1, :n2]


def product(
    kernel_fn: KernelFn,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."],
    v: Float[Array, "n2 c"],
    *,
    block_size: int = 1000,
    mesh: Mesh | None = None,
) -> Float[Array, "n1 c"]:
    """Returns K(x1, x2) v without ever holding K; whole on every device of `mesh`.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      x1: images of the rows.
      x2: images of the columns.
      v: one row per image of x2.
      block_size: images on either side of a block.
      mesh: of `sharding.row_mesh`; None is one device.

    Raises:
      ValueError: block_size is below 1, or x2 and v differ in length.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.kernels import blockwise, infinite
      >>> x = jax.random.uniform(jax.random.key(0), (5, 4, 4, 1))
      >>> ntk = infinite.mlp(depth=1)
      >>> blockwise.product(ntk, x, x, jnp.ones((5, 2)), block_size=2).shape
      (5, 2)
    """
    _checks.at_least(1, block_size=block_size)
    _checks.same_length(x2=x2, v=v)
    rows, n1 = split(x1, block_size, mesh)
    columns, _ = split(x2, block_size, None)
    columns = sharding.replicate(columns, mesh)
    v = sharding.replicate(v, mesh)
    out = _product(kernel_fn, mesh, False, rows, columns, v)
    return sharding.gather(out, mesh)[:n1]


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
    if devices > 1:
        # As small as they can be: fewer rows to fill up.
        size = -(-n // count)
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


@_programs.jit(num_static=2)
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
    return _product(kernel_fn, mesh, True, rows, columns, v)


@_programs.jit(num_static=3)
def _product(kernel_fn, mesh, same, rows, columns, v):
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


@_programs.jit(num_static=1)
def _diagonal(kernel_fn, blocks):
    return jax.lax.map(
        lambda b: jnp.diagonal(self_kernel(kernel_fn, b)), blocks
    ).reshape(-1)


def size_within(kernel_fn: KernelFn, x: Float[Array, "n ..."], budget: int) -> int:
    """Returns how many images on either side of a block fit into `budget` bytes.

    Asked of the compiled program: arguments, block and working memory.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      x: images; no block is larger than all of them.
      budget: bytes.

    Raises:
      ValueError: not even one image by one fits.
    """
    size = min(len(x), max(math.isqrt(budget // (4 * x.dtype.itemsize)), 1))
    while True:
        block = jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)
        memory: Any = jax.jit(kernel_fn).lower(block, block).compile().memory_analysis()
        needed = (
            memory.temp_size_in_bytes
            + memory.argument_size_in_bytes
            + memory.output_size_in_bytes
        )
        if needed <= budget:
            return size
        if size == 1:
            raise ValueError(
                f"budget={budget / 2**20:.3g} MiB is smaller than one block of one "
                f"image by one, {needed / 2**20:.3g} MiB: give at least that."
            )
        # A little less than memory in proportion to entries would say.
        size = max(min(int(0.9 * size * math.sqrt(budget / needed)), size - 1), 1)


def stream(
    kernel_fn: KernelFn,
    x1: Float[Array | np.ndarray, "n1 ..."],
    x2: Float[Array | np.ndarray, "n2 ..."] | None,
    path: str | pathlib.Path,
    *,
    block_size: int = 1000,
    mesh: Mesh | None = None,
    callback: Callback | None = None,
) -> np.memmap:
    """Writes a kernel that need not fit in memory to a .npy file, block by block.

    Called again with the same arguments it goes on after the last whole block, which
    `PATH.done.npy` tells; the first block is then computed anew, to see that the kernel
    is the same. Over several hosts every process calls it; the path is the first one's,
    which writes, and all of them must see it.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      x1: images of the rows; a NumPy memory map is read block by block.
      x2: images of the columns; None is x1, and half of the blocks are mirrored.
      path: the .npy file.
      block_size: images on either side of a block.
      mesh: of `sharding.row_mesh`: the rows of a block over its devices.
      callback: called after each block with the number of blocks done, the file so far
        and {"num_blocks": of all}; what it raises ends the run, resumably, and so does
        True, on all hosts alike.

    Returns:
      The file, read-only, mapped into memory.

    Raises:
      ValueError: the file belongs to other images, another kernel or block size; or,
        on all hosts, another host stopped.
    """
    _checks.at_least(1, block_size=block_size)
    path = hosts.path_of_first(pathlib.Path(path))
    other = x1 if x2 is None else x2
    compute, dtype = _block_program(kernel_fn, x1, x2, block_size, mesh)
    counts = [-(-len(x) // block_size) for x in (x1, other)]
    pairs = [
        pair for pair in np.ndindex(*counts) if x2 is not None or pair[0] <= pair[1]
    ]
    about = [block_size, len(x1), len(other), x2 is None, _checksum(x1)]
    about = np.asarray([*about, 0 if x2 is None else _checksum(x2)], np.int64)
    out, done = None, np.zeros(len(about) + len(pairs), np.int64)
    with hosts.all_fail_together():
        if jax.process_index() == 0:
            out, done = _open(path, (len(x1), len(other)), dtype, about, len(pairs))
    flags = done[len(about) :]
    started = hosts.of_first(flags)
    flags[:] = started
    if started.any():
        again = compute(0, 0)
        with hosts.all_fail_together():
            stored = None if out is None else out[_places(0, 0, block_size)]
            _check_same(path, again, stored)
    for index, (i, j) in enumerate(pairs):
        if started[index]:
            continue
        block = compute(i, j)
        with hosts.all_fail_together():
            if out is not None:
                # Mapped anew, so that what was written does not stay in memory.
                out = np.lib.format.open_memmap(path, mode="r+")
                out[_places(i, j, block_size)] = block
                if x2 is None and i != j:
                    out[_places(j, i, block_size)] = block.T
                out.flush()  # the numbers before the word that they are there
            flags[index] = 1
            if isinstance(done, np.memmap):
                done.flush()
            told = {"num_blocks": len(pairs)}
            stop = _loop.asks_to_stop(callback, int(flags.sum()), out, told)
        if stop:
            break
    hosts.of_first(flags)  # nobody reads before all is written
    return np.lib.format.open_memmap(path, mode="r")


def _check_same(path: pathlib.Path, again: np.ndarray, stored) -> None:
    if stored is None:
        return
    # Another number of devices or threads may round otherwise; a NaN is no equal.
    rounding = 1e3 * np.finfo(again.dtype).eps * np.abs(again).max()
    if not np.abs(again - stored).max() <= rounding:
        raise ValueError(
            f"{path} holds another kernel of these images: give another path, or "
            "delete it to start afresh."
        )


def _places(i: int, j: int, size: int) -> tuple[slice, slice]:
    return slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size)


def _block_program(kernel_fn, x1, x2, size, mesh):
    """Returns (i, j) -> block on the host, and its dtype; one program for all."""
    same, x2 = x2 is None, x1 if x2 is None else x2
    devices = 1 if mesh is None else mesh.size
    heights = -(-min(size, len(x1)) // devices) * devices
    program = jax.jit(_over_rows(kernel_fn, mesh, 1, 1))

    def images(x, i, height):
        block = jnp.asarray(x[i * size : (i + 1) * size])
        spare = jnp.broadcast_to(block[-1:], (height - len(block), *block.shape[1:]))
        return jnp.concatenate([block, spare]), len(block)

    def compute(i, j):
        rows, n1 = images(x1, i, heights)
        columns, n2 = images(x2, j, min(size, len(x2)))
        block = program(
            sharding.shard_rows(rows, mesh), sharding.replicate(columns, mesh)
        )
        block = np.array(sharding.on_host(block))[:n1, :n2]
        if same and i == j:
            np.fill_diagonal(block, np.asarray(diagonal(kernel_fn, rows))[:n1])
        if not np.isfinite(block).all():
            first = i * size + int(np.argmin(np.isfinite(block).all(axis=1)))
            raise ValueError(
                f"The kernel of image {first} of x1 with images {j * size} to "
                f"{j * size + n2 - 1} of {'x1' if same else 'x2'} has values that are "
                "NaN or infinite: leave such images out."
            )
        return block

    shapes = [jax.eval_shape(lambda x=x: jnp.asarray(x[:1])) for x in (x1, x2)]
    return compute, jax.eval_shape(kernel_fn, *shapes).dtype


def _checksum(x) -> int:
    parts = (np.ascontiguousarray(x[i : i + 4096]) for i in range(0, len(x), 4096))
    code = 0
    for part in parts:
        # numpy's stub has buffers from Python 3.12 on
        code = zlib.crc32(part, code)  # pyright: ignore[reportArgumentType]
    return code


def _open(path: pathlib.Path, shape, dtype, about, num_blocks: int):
    """Returns the kernel and the list of blocks done, both mapped into memory."""
    opened = np.lib.format.open_memmap
    beside = path.with_name(f"{path.name}.done.npy")
    if path.exists() and not beside.exists():
        raise ValueError(
            f"{path} exists but {beside.name} does not, so it is no kernel under way: "
            "give another path, or delete it."
        )
    if not beside.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        opened(path, "w+", dtype, shape).flush()
        done = opened(beside, "w+", np.int64, (len(about) + num_blocks,))
        done[: len(about)] = about
        done.flush()
        return opened(path, "r+"), done
    done = opened(beside, "r+")
    same = len(done) == len(about) + num_blocks
    if not (same and np.array_equal(done[: len(about)], about) and path.exists()):
        raise ValueError(
            f"{path} belongs to other images or another block_size: give the same, "
            f"another path, or delete it and {beside.name}."
        )
    out = opened(path, "r+")
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(
            f"{path} holds {out.dtype} numbers of shape {out.shape}, not {dtype} of "
            f"{shape}: give another path, or delete it and {beside.name}."
        )
    return out, done
