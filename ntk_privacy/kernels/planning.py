"""Which way to the empirical NTK is cheapest: counted from shapes, nothing compiled."""

import math
from typing import Any, Literal, NamedTuple

import jax

from ntk_privacy import _checks, _platform, _programs
from ntk_privacy._types import ApplyFn, Params
from ntk_privacy.kernels import layer_trace

__all__ = ["DEFAULT_BUDGET", "METHODS", "Plan", "choose", "network_shapes"]

METHODS = ("jacobian", "ntk_vector", "structured")
DEFAULT_BUDGET = 2**30
"""Bytes of working memory when none are given."""

MethodName = Literal["jacobian", "ntk_vector", "structured"]
_TILE = 128  # images: smaller products waste more than mirroring saves


class Plan(NamedTuple):
    """How a kernel will be computed; `str` of it says so in words.

    method: one of METHODS. flops: multiplications and additions of all of it. bytes:
    bound of the working memory, the kernel itself, in blocks
    and whole, apart. block_size: images of either
    side at a time. tiles: blocks per side of a symmetric kernel that fits. by_gram: for
    "structured", per Dense or Conv kernel in `leaf_names`, whether by Gram matrices.
    others: flops of the methods not taken; infinite if one image exceeds the budget.
    """

    method: MethodName
    flops: float
    bytes: int
    block_size: int
    tiles: int
    by_gram: tuple[bool, ...]
    leaf_names: tuple[str, ...]
    others: dict[str, float]

    def __str__(self) -> str:
        """Returns one sentence per decision."""
        told = [
            f"{self.method}: {self.flops:.3g} FLOPs, at most {self.bytes:.3g} bytes, "
            f"blocks of {self.block_size} images"
        ]
        for name, gram in zip(self.leaf_names, self.by_gram, strict=False):
            way = "Gram matrices" if gram else "Jacobian from factors"
            told.append(f"  {name}: {way}")
        told += [
            f"  not {name}: "
            + (f"{flops:.3g} FLOPs" if math.isfinite(flops) else "exceeds the budget")
            for name, flops in self.others.items()
        ]
        return "\n".join(told)


class _Costs(NamedTuple):
    """flops, at most: per image of either side, and per pair. numbers: held per image,
    in passing per image, and per pair in passing; fixed: whatever the block; copied:
    per image of one side, where blocks are taken in a loop.
    """  # noqa: D205

    per_image: float
    per_pair: float
    held: int
    passing: int
    pair: int
    fixed: int = 0
    by_gram: tuple[bool, ...] = ()
    copied: int = 0


_NETWORKS = _programs.Memo()


def network_shapes(apply_fn: ApplyFn, params: Params, image: Any) -> Any:
    """Returns `layer_trace.trace` without the program; remembered where possible.

    Args:
      apply_fn: `(params, images) -> outputs`.
      params: of the network, or their shapes and dtypes.
      image: shape and dtype of one.
    """
    leaves, structure = jax.tree.flatten(params)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    # Networks may compute in one way here and in another there.
    where = _platform.name()
    key = (apply_fn, structure, shapes, image.shape, image.dtype, where)

    def make():
        structs = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        tree = jax.tree.unflatten(structure, structs)
        network = layer_trace.trace(apply_fn, tree, image)
        return network._replace(equations=[], constants={})

    return _NETWORKS.get(key, make) if _programs.hashable(key) else make()


def choose(
    apply_fn: ApplyFn,
    params: Params,
    x1: Any,
    x2: Any,
    *,
    trace_outputs: bool,
    method: str,
    memory_budget: int | None,
) -> Plan:
    """Returns the method of fewest FLOPs within the budget.

    Args: those of `empirical.plan`.

    Raises:
      ValueError: an unknown method, or a budget below one block of one image by one.
    """
    _checks.one_of(("auto", *METHODS), method=method)
    # By type: text that says no would count as true.
    _checks.one_of((True, False), trace_outputs=trace_outputs)
    budget = DEFAULT_BUDGET if memory_budget is None else memory_budget
    _checks.at_least(1, memory_budget=budget)
    image = jax.ShapeDtypeStruct(x1.shape[1:], x1.dtype)
    network = network_shapes(apply_fn, params, image)
    n1, n2 = len(x1), None if x2 is None else len(x2)
    itemsize = jax.numpy.dtype(x1.dtype).itemsize
    names = METHODS if method == "auto" else (method,)
    found, needed = {}, {}
    for name in names:
        for costs in _costs(network, name, trace_outputs, n1, n2):
            size = _block_size(costs, n1, n2, budget / itemsize, name)
            needed[name] = itemsize * _numbers(costs, 1, 1)
            if size is not None:
                found[name] = (_flops(costs, n1, n2, size), size, costs)
                break
    if not found:
        least = min(needed.values())
        smallest = min(needed, key=needed.__getitem__)
        raise ValueError(
            f"memory_budget={budget} bytes is smaller than one block of one image by "
            f"one, {least} bytes with method={smallest!r}: give at "
            "least that, or a smaller network."
        )
    best = min(found, key=lambda name: found[name][0])
    flops, size, costs = found[best]
    tiles = _tiles(n1, best) if n2 is None and n1 <= size else 1
    return Plan(
        method=best,
        flops=flops,
        bytes=int(itemsize * _held(costs, n1, n2, size, tiles)),
        block_size=size,
        tiles=tiles,
        by_gram=costs.by_gram,
        leaf_names=tuple(network.leaf_names[g.leaf] for g in network.groups),
        others={
            name: found[name][0] if name in found else math.inf
            for name in names
            if name != best
        },
    )


def _costs(network, method, trace_outputs, n1, n2) -> list[_Costs]:
    """Returns what a method costs; the fastest first, then the smallest."""
    c, p, forward = network.num_outputs, sum(network.leaf_sizes), network.flops
    blocks = c if trace_outputs else c * c
    kernel = 1 if trace_outputs else c * c
    # Kept for the backward passes, and alive at once in all of them.
    passing = network.activations + 3 * c * network.largest
    if method == "jacobian":  # images one by one
        every = forward * (1 + 2 * c)
        # The products of all leaves are made before one pass adds them; one image's
        # gradients stand beside those of its block.
        pair = len(network.leaf_sizes) * kernel
        per_pair, fixed = 2.0 * blocks * p, passing + 2 * c * p
        return [_Costs(every, per_pair, c * p, 0, pair, fixed, (), c * p)]
    if method == "ntk_vector":
        backward = forward * (1 + 2 * c)
        pair, fixed = 2 * c * network.largest + c * c, (c + 1) * p
        # Tangents of a product have two terms.
        return [
            _Costs(backward, 2.0 * c * forward, 0, passing, 0, fixed)._replace(
                passing=passing + pair
            )
        ]
    images = n1 + (n2 or 0)
    pairs = n1 * (n2 or n1 / 2)
    ways, smallest = [], []
    for g in network.groups:
        gram, formed = _group_costs(g, c, trace_outputs, passing=0)
        total = [w.per_image * images + w.per_pair * pairs for w in (gram, formed)]
        ways.append((total[0] <= total[1], gram, formed))
        smallest.append((gram.held + gram.pair <= formed.held, gram, formed))
    base = _Costs(
        forward * (1 + c),
        2.0 * blocks * sum(network.leaf_sizes[i] for i in network.others),
        c * sum(network.leaf_sizes[i] for i in network.others),
        passing,
        len(network.others) * kernel,
    )
    options = []
    for chosen in (ways, smallest):
        total, widest = base, 0
        for by_gram, gram, formed in chosen:
            own = gram if by_gram else formed
            total = _Costs(
                total.per_image + own.per_image,
                total.per_pair + own.per_pair,
                total.held + own.held,
                total.passing + own.passing,
                # Two matrices of every group before one pass adds them,
                total.pair + 2 * kernel,
                0,
                (*total.by_gram, by_gram),
            )
            widest = max(widest, own.pair)
        # and positions by positions in one group after another.
        options.append(total._replace(pair=total.pair + widest))
    return options


def _group_costs(g, c, trace_outputs, passing) -> tuple[_Costs, _Costs]:
    p, d, k = g.positions, g.fan_in, g.fan_out
    both = 1 if trace_outputs else c * c
    back = 2.0 * p * p * k * (c if trace_outputs else c * c)
    factors = p * d + c * p * k
    gram = _Costs(
        # Elementwise work is as slow as some ten times as many products.
        0.0,
        2.0 * p * p * d + back + 10.0 * p * p * both,
        factors,
        passing,
        3 * p * p * both,
    )
    leaf = d * k + (k if g.bias is not None else 0)
    formed = _Costs(
        2.0 * c * p * d * k,
        2.0 * leaf * (c if trace_outputs else c * c),
        c * leaf,
        factors + c * leaf,
        both,
    )
    return gram, formed


def _numbers(costs: _Costs, rows: int, columns: int, looped: bool = True) -> int:
    """Returns the most numbers alive in a block."""
    return (
        (rows + columns) * costs.held
        + max(rows, columns) * (costs.passing + costs.copied * looped)
        + rows * columns * costs.pair
        + costs.fixed
    )


def _held(costs, n1, n2, size, tiles) -> int:
    if max(n1, n2 or 0) > size:
        return _numbers(costs, min(size, n1), min(size, n2 or n1))
    if n2 is None:
        tile = -(-n1 // tiles)
        whole = n1 * (costs.held + costs.passing) + tile**2 * costs.pair + costs.fixed
        return whole + (tiles > 1) * tile * (2 * costs.held + costs.copied)
    return _numbers(costs, n1, n2, looped=False)


def _block_size(costs, n1, n2, budget, method) -> int | None:
    longest = max(n1, n2 or 0)
    tiles = _tiles(n1, method) if n2 is None else 1
    if _held(costs, n1, n2, longest, tiles) <= budget:
        return longest
    if _numbers(costs, 1, 1) > budget:
        return None
    low, high = 1, longest
    while high - low > 1:
        middle = (low + high) // 2
        rows, columns = min(middle, n1), min(middle, n2 or n1)
        if _numbers(costs, rows, columns) <= budget:
            low = middle
        else:
            high = middle
    return low


def _tiles(n: int, method: str) -> int:
    smallest = 4 if method == "ntk_vector" else _TILE
    return min(max(n // smallest, 1), 8)


def _flops(costs: _Costs, n1: int, n2: int | None, size: int) -> float:
    if n2 is None:
        blocks = -(-n1 // size)
        # Beyond one block, both sides of each pair are made anew.
        images = n1 if blocks == 1 else n1 * (blocks + 1)
        return images * costs.per_image + n1 * (n1 + size) / 2 * costs.per_pair
    rounds = -(-n1 // size)
    columns = n2 if max(n1, n2) <= size else n2 * rounds
    return (n1 + columns) * costs.per_image + n1 * n2 * costs.per_pair
