"""From what one image gives to a block of the empirical NTK, and from blocks to it.

A *method* is, in the main, a pair: `features(x)`, what a block of images gives, and
`combine(f1, f2)`, a block of the kernel from two of these.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy._linalg import matmul
from ntk_privacy._types import ApplyFn, Params
from ntk_privacy.kernels import arguments, layer_trace

__all__ = [
    "Method",
    "Out",
    "assemble",
    "jacobian",
    "ntk_vector",
    "structured",
    "trainable",
]

_HIGHEST = jax.lax.Precision.HIGHEST


class Out(NamedTuple):
    """num_outputs: c. dtype: of the kernel. trace_outputs: see `empirical.ntk`."""

    num_outputs: int
    dtype: Any
    trace_outputs: bool


class Method(NamedTuple):
    """run: (images) -> R. form: R -> F. combine: (F1, F2) -> block. diagonal: F -> its.

    `run` is what gains from many images at a time.
    """

    run: Callable[[Any], Any]
    form: Callable[[Any], Any]
    combine: Callable[[Any, Any], Array]
    diagonal: Callable[[Any], Array]

    def features(self, x: Array) -> Any:
        """Returns F of a block of images."""
        return self.form(self.run(x))


def _products(
    j1: list[Float[Array, "n c _"]], j2: list[Float[Array, "m c _"]], trace: bool
) -> list[Array]:
    """Returns the sum over leaves of products of Jacobians; nothing if there are none.

    Not by einsum, which copies one side into another layout.
    """
    if not j1:
        return []
    (n, c, _), m = j1[0].shape, len(j2[0])
    rows, columns = (n, m) if trace else (n * c, m * c)
    parts = (
        matmul(a.reshape(rows, -1), b.reshape(columns, -1).T)
        for a, b in zip(j1, j2, strict=True)
    )
    total = functools.reduce(jnp.add, parts)
    return [total if trace else total.reshape(n, c, m, c).transpose(0, 2, 1, 3)]


def _self_product(j: Float[Array, "n c p"], trace_outputs: bool) -> Array:
    subscripts = "ncp,ncp->n" if trace_outputs else "ncp,ndp->ncd"
    return jnp.einsum(subscripts, j, j, precision=_HIGHEST)


def _sum(parts: list[Array]) -> Array:
    return functools.reduce(jnp.add, parts)


def _mean(total: Array, num_outputs: int, trace_outputs: bool) -> Array:
    return total / num_outputs if trace_outputs else total


def trainable(
    apply_fn: ApplyFn, params: Params
) -> tuple[Callable[[list[Array], Array], Array], list[Array]]:
    """Returns the network as a function of the leaves that count, and these.

    Args:
      apply_fn: `(params, images) -> (n, c)`.
      params: any pytree of arrays.
    """
    apply_fn = arguments.real_apply_fn(apply_fn, params)
    leaves, structure = jax.tree.flatten(arguments.real(params))
    chosen = [i for i, leaf in enumerate(leaves) if arguments.is_floating(leaf)]

    def network(own, x):
        full = list(leaves)
        for i, leaf in zip(chosen, own, strict=True):
            full[i] = leaf
        return apply_fn(jax.tree.unflatten(structure, full), x)

    return network, [jnp.asarray(leaves[i]) for i in chosen]


def jacobian(apply_fn: ApplyFn, params: Params, out: Out) -> Method:
    """Returns the method that contracts whole Jacobians, leaf by leaf.

    Args:
      apply_fn: `(params, images) -> outputs`.
      params: of the network.
      out: outputs, dtype and whether to sum over the diagonal of outputs.
    """
    network, own = trainable(apply_fn, params)
    num_outputs, dtype, trace_outputs = out

    def one(own, image):
        return network(own, image[None])[0]

    def form(x):
        # One by one: under vmap a convolution's gradient is a grouped convolution, for
        # which XLA may take memory that grows as the square of the images.
        rows = jax.lax.map(lambda image: jax.jacrev(one)(own, image), x)
        return [row.reshape(len(x), num_outputs, -1).astype(dtype) for row in rows]

    def combine(f1, f2):
        parts = _products(f1, f2, trace_outputs)
        return _mean(_sum(parts), num_outputs, trace_outputs)

    def diagonal(f):
        parts = [_self_product(a, trace_outputs) for a in f]
        return _mean(_sum(parts), num_outputs, trace_outputs)

    return Method(lambda x: x, form, combine, diagonal)


def ntk_vector(apply_fn: ApplyFn, params: Params, out: Out) -> Method:
    """Returns the method of one vjp and one jvp per column: no Jacobian is held.

    Source: Novak et al., ICML 2022 (arXiv:2206.08720), section 3.2.

    Args:
      apply_fn: `(params, images) -> outputs`.
      params: of the network.
      out: outputs, dtype and whether to sum over the diagonal of outputs.
    """
    network, own = trainable(apply_fn, params)
    num_outputs, dtype, trace_outputs = out

    def combine(x1, x2):
        _, push = jax.linearize(lambda own: network(own, x1), own)

        def column(image):
            out, pull = jax.vjp(lambda own: network(own, image[None])[0], own)
            unit = jnp.eye(num_outputs, dtype=out.dtype)
            blocks = jax.vmap(lambda v: push(*pull(v)))(unit)  # (d, n1, c)
            blocks = blocks.astype(dtype)
            if trace_outputs:
                return jnp.einsum("cnc->n", blocks) / num_outputs
            return blocks.transpose(1, 2, 0)

        return jnp.moveaxis(jax.lax.map(column, x2), 0, 1)

    def diagonal(x):
        return jax.vmap(lambda image: combine(image[None], image[None])[0, 0])(x)

    return Method(lambda x: x, lambda f: f, combine, diagonal)


def structured(
    apply_fn: ApplyFn,
    params: Params,
    out: Out,
    image: Any,
    by_gram: tuple[bool, ...],
) -> Method:
    """Returns the method of layer-wise products.

    Args:
      apply_fn: `(params, images) -> (n, c)`.
      params: any pytree.
      out: of the network and of the kernel.
      image: shape and dtype of one image.
      by_gram: per group of `layer_trace`, whether its share is the product of two Gram
        matrices over positions, or that of Jacobians formed from the factors.
    """
    network = layer_trace.trace(apply_fn, params, image)
    num_outputs, dtype, trace_outputs = out

    def run(x):
        return jax.vmap(lambda one: layer_trace.features(network, params, one))(x)

    def form(pieces):
        pieces = jax.tree.map(lambda a: a.astype(dtype), pieces)
        grams, jacobians = [], list(pieces.jacobians)
        zipped = zip(
            network.groups, by_gram, pieces.inputs, pieces.signals, strict=True
        )
        for group, gram, a, b in zipped:
            if gram:
                grams.append((a, b))
                continue
            n, c, positions, k = b.shape
            # One matrix product per image, (d, P) by (P, c k).
            wide = b.transpose(0, 2, 1, 3).reshape(n, positions, c * k)
            leaf = matmul(a.transpose(0, 2, 1), wide).reshape(n, -1, c, k)
            # For the trace any order of entries will do.
            leaf = leaf if trace_outputs else leaf.transpose(0, 2, 1, 3)
            jacobians.append(leaf.reshape(n, c, -1))
            if group.bias is not None:
                jacobians.append(wide.sum(1).reshape(n, c, k))
        return grams, jacobians

    with_bias = [
        group.bias is not None
        for group, gram in zip(network.groups, by_gram, strict=True)
        if gram
    ]

    def combine(f1, f2):
        parts = [
            _gram_product(a1, b1, a2, b2, bias, trace_outputs)
            for (a1, b1), (a2, b2), bias in zip(f1[0], f2[0], with_bias, strict=True)
        ]
        parts += _products(f1[1], f2[1], trace_outputs)
        return _mean(_sum(parts), num_outputs, trace_outputs)

    def diagonal(f):
        parts = [
            _gram_self_product(a, b, bias, trace_outputs)
            for (a, b), bias in zip(f[0], with_bias, strict=True)
        ]
        parts += [_self_product(j, trace_outputs) for j in f[1]]
        return _mean(_sum(parts), num_outputs, trace_outputs)

    return Method(run, form, combine, diagonal)


def _gram_product(a1, b1, a2, b2, has_bias: bool, trace_outputs: bool) -> Array:
    """Inputs a: (n, P, d). Signals b: (n, c, P, k)."""
    (n, p, d), (m, q, _), c = a1.shape, a2.shape, b1.shape[1]
    gram = matmul(a1.reshape(n * p, d), a2.reshape(m * q, d).T)
    if has_bias:
        gram = gram + 1
    if trace_outputs:
        back1, back2 = (
            b.transpose(0, 2, 1, 3).reshape(b.shape[0] * b.shape[2], -1)
            for b in (b1, b2)
        )
        both = (gram * matmul(back1, back2.T)).reshape(n, p, m, q)
        return both.sum((1, 3)) if p * q > 1 else both[:, 0, :, 0]
    gram = gram.reshape(n, 1, p, m, 1, q)
    back = matmul(b1.reshape(n * c * p, -1), b2.reshape(m * c * q, -1).T)
    both = gram * back.reshape(n, c, p, m, c, q)
    return both.sum((2, 5)).transpose(0, 2, 1, 3)


def _gram_self_product(a, b, has_bias: bool, trace_outputs: bool) -> Array:
    gram = matmul(a, a.transpose(0, 2, 1))
    if has_bias:
        gram = gram + 1
    if trace_outputs:
        back = jnp.einsum("ncpk,ncqk->npq", b, b, precision=_HIGHEST)
        return (gram * back).sum((1, 2))
    back = jnp.einsum("ncpk,ndqk->ncdpq", b, b, precision=_HIGHEST)
    return (gram[:, None, None] * back).sum((3, 4))


def assemble(
    method: Method, x1: Array, x2: Array | None, *, block: int, tiles: int
) -> Array:
    """Returns the kernel, block by block.

    Args:
      method: of this module.
      x1: images.
      x2: images; None is x1, and half of the blocks are mirrored.
      block: images of either side whose features are held at a time.
      tiles: for x2 None and features that all fit: blocks per side.
    """
    if x2 is None:
        return _symmetric(method, x1, block, tiles)
    n1, n2 = len(x1), len(x2)
    if max(n1, n2) <= block:
        # In one go: weights are read once, not twice.
        both = method.run(jnp.concatenate([x1, x2]))
        parts = (slice(n1), slice(n1, None))
        f1, f2 = (method.form(jax.tree.map(lambda f, s=s: f[s], both)) for s in parts)
        return method.combine(f1, f2)
    (rows, height), (columns, width) = _starts(n1, block), _starts(n2, block)

    def row(start):
        f1 = method.features(_slice(x1, start, height))
        parts = jax.lax.map(
            lambda s: method.combine(f1, method.features(_slice(x2, s, width))), columns
        )
        return _join(parts.swapaxes(1, 2), n2).swapaxes(0, 1)

    return _join(jax.lax.map(row, rows), n1)


def _symmetric(method: Method, x: Array, block: int, tiles: int) -> Array:
    n = len(x)
    whole = n <= block
    if whole and tiles == 1:
        f = method.features(x)
        return method.combine(f, f)
    starts, size = _starts(n, -(-n // tiles) if whole else block)
    f = method.features(x) if whole else None

    def get(start):
        if f is None:
            return method.features(_slice(x, start, size))
        return jax.tree.map(lambda a: _slice(a, start, size), f)

    i, j = np.triu_indices(len(starts))
    parts = jax.lax.map(
        lambda pair: method.combine(get(pair[0]), get(pair[1])),
        (starts[i], starts[j]),
    )
    mirrored = parts.swapaxes(1, 2)
    if parts.ndim == 5:
        mirrored = mirrored.swapaxes(3, 4)
    out = jnp.zeros((len(starts), len(starts), *parts.shape[1:]), parts.dtype)
    out = out.at[j, i].set(mirrored).at[i, j].set(parts)
    # (tiles, rows, tiles, columns) to (n, tiles, columns) to (n, n).
    out = _join(out.swapaxes(1, 2), n)
    return _join(jnp.moveaxis(out, 0, 2), n).swapaxes(0, 1)


def _starts(n: int, block: int) -> tuple[Array, int]:
    """Returns where equal blocks start, and their size; the last one reaches back."""
    count = -(-n // block)
    size = -(-n // count)
    return jnp.minimum(jnp.arange(count) * size, n - size), size


def _slice(x: Array, start: Array, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size)


def _join(blocks: Array, n: int) -> Array:
    """Returns (n, ...) from (count, size, ...) of `_starts`."""
    count, size = blocks.shape[:2]
    whole = blocks[:-1].reshape(-1, *blocks.shape[2:])
    return jnp.concatenate([whole, blocks[-1, count * size - n :]])
