r"""Where a network uses its parameters, read from its jaxpr.

A Dense or Conv layer is an equation `dot_general` or `conv_general_dilated` with a
parameter leaf as one operand: a *site*. Its output is, for one image, a sum over
positions p (pixels, tokens; one position in a plain Dense layer), and

$$\partial f^c / \partial W = \sum_p a_p \otimes b_p^c,$$

with the layer's input patches a and the signal b that comes back to its output, found
by adding zeros there and differentiating by them (Novak et al., ICML 2022,
arXiv:2206.08720, call such rules structured derivatives). A leaf that is used in any
other way (biases, scales, tables) has its Jacobian formed. Any function that JAX can
trace will do: no layer has to be known by name.
"""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy._types import ApplyFn, Params
from ntk_privacy.kernels import arguments
from ntk_privacy.kernels.equations import Equation, Name, bind, flatten, flops, read

__all__ = ["Group", "Network", "Pieces", "features", "trace"]

_SHAPE_ONLY = {"reshape", "broadcast_in_dim", "squeeze", "expand_dims", "copy"}


class _Site(NamedTuple):
    """equation: of the product. leaf_operand: 0 or 1. output: where zeros are added."""

    equation: int
    leaf_operand: int
    output: int


class Group(NamedTuple):
    """A leaf used by Dense or Conv layers only, with the bias added to its output.

    leaf, bias: index among the floating leaves; bias None if there is none.
    positions: P. fan_in: d, entries of a patch. fan_out: k.
    """

    leaf: int
    bias: int | None
    sites: tuple[_Site, ...]
    positions: int
    fan_in: int
    fan_out: int


class Network(NamedTuple):
    """What `features` needs and costs are counted from, all for one image.

    leaf_names: of the floating leaves. others: leaves whose Jacobian is formed.
    num_outputs: c. flops: of one forward pass. activations: numbers it makes.
    largest: numbers in the largest array of it.
    """

    equations: list[Equation]
    constants: dict[int, Any]
    leaves: list[int]
    fixed: dict[int, int]
    image: int
    output: Name
    groups: tuple[Group, ...]
    others: tuple[int, ...]
    leaf_names: tuple[str, ...]
    leaf_sizes: tuple[int, ...]
    num_outputs: int
    flops: float
    activations: int
    largest: int


class Pieces(NamedTuple):
    """Of each image. inputs, signals: per group. jacobians: per leaf of `others`."""

    inputs: list[Float[Array, "P d"]]
    signals: list[Float[Array, "c P k"]]
    jacobians: list[Float[Array, "c p"]]


def trace(apply_fn: ApplyFn, params: Params, image: Any) -> Network:
    """Returns the uses of all parameters.

    Args:
      apply_fn: `(params, images) -> (n, c)`.
      params: any pytree of arrays or their shapes; see `arguments`.
      image: one image, or its shape and dtype.
    """
    params = arguments.parameters(params, image.dtype)
    apply_fn = arguments.real_apply_fn(apply_fn, params)
    params = arguments.real(params)
    closed = jax.make_jaxpr(lambda p, x: apply_fn(p, x[None])[0])(params, image)
    count = itertools.count()
    flat = jax.tree_util.tree_leaves_with_path(params)
    names = [next(count) for _ in range(len(flat) + 1)]
    equations, constants = [], {}
    (output,) = flatten(closed, names, count, equations, constants)
    floating = [i for i, (_, leaf) in enumerate(flat) if arguments.is_floating(leaf)]
    leaves = [names[i] for i in floating]
    groups = _find_groups(equations, leaves, output)
    sizes = [math.prod(s) for e in equations for s in e.output_shapes] or [1]
    grouped = {g.leaf for g in groups} | {g.bias for g in groups}
    return Network(
        equations=equations,
        constants=constants,
        leaves=leaves,
        fixed={names[i]: i for i in range(len(flat)) if i not in floating},
        image=names[-1],
        output=output,
        groups=tuple(groups),
        others=tuple(i for i in range(len(leaves)) if i not in grouped),
        leaf_names=tuple(jax.tree_util.keystr(flat[i][0]) for i in floating),
        leaf_sizes=tuple(math.prod(flat[i][1].shape) for i in floating),
        num_outputs=closed.out_avals[0].shape[0],
        flops=flops(closed.jaxpr),
        activations=sum(sizes),
        largest=max(sizes),
    )


def features(network: Network, params: Params, image: Float[Array, "..."]) -> Pieces:
    """Returns the factors of one image's gradient; `vmap` it over images.

    Args:
      network: of `trace`.
      params: of the network.
      image: one, without an axis of images.
    """
    params = arguments.parameters(params, image.dtype)
    flat = jax.tree.leaves(arguments.real(params))
    own = [leaf for leaf in flat if arguments.is_floating(leaf)]
    env: dict[int, Any] = dict(network.constants)
    env |= {name: flat[i] for name, i in network.fixed.items()}
    env[network.image] = image
    sites = [site for group in network.groups for site in group.sites]
    # A sum with a bias has the shape and dtype of the product itself.
    zeros = {
        s.output: jnp.zeros(e.output_shapes[0], e.output_dtype)
        for s in sites
        for e in [network.equations[s.equation]]
    }

    def run(zeros, others):
        values = dict(env)
        values |= dict(zip(network.leaves, own, strict=True))
        values |= {network.leaves[i]: v for i, v in others.items()}
        for e in network.equations:
            outs = bind(e, [read(values, name) for name in e.inputs])
            for name, out in zip(e.outputs, outs, strict=True):
                values[name] = out + zeros[name] if name in zeros else out
        inputs = [_patches(network.equations[s.equation], s, values) for s in sites]
        return read(values, network.output), inputs

    others = {i: own[i] for i in network.others}
    out, pull, inputs = jax.vjp(run, zeros, others, has_aux=True)
    back, jacobians = jax.vmap(pull)(jnp.eye(network.num_outputs, dtype=out.dtype))
    by_site = dict(zip(sites, inputs, strict=True))
    c = network.num_outputs
    return Pieces(
        [jnp.concatenate([by_site[s] for s in g.sites]) for g in network.groups],
        [
            jnp.concatenate(
                [
                    jax.vmap(lambda b, s=s: _signal(network, s, b))(back[s.output])
                    for s in g.sites
                ],
                axis=1,
            )
            for g in network.groups
        ],
        [jacobians[i].reshape(c, -1) for i in network.others],
    )


def _find_groups(equations, leaves, output) -> list[Group]:
    uses: dict[int, list[tuple[int, int]]] = {}
    for i, e in enumerate(equations):
        for operand, name in enumerate(e.inputs):
            if isinstance(name, int):
                uses.setdefault(name, []).append((i, operand))
    uses.setdefault(output, []).append((-1, 0))
    index = {name: i for i, name in enumerate(leaves)}
    groups = []
    for leaf, name in enumerate(leaves):
        own = uses.get(name, [])
        kinds = {_orientation(equations[i], operand) for i, operand in own if i >= 0}
        if len(kinds) != 1 or None in kinds or any(i < 0 for i, _ in own):
            continue
        if len({i for i, _ in own}) < len(own):  # a product of the leaf with itself
            continue
        sites = [_Site(i, operand, equations[i].outputs[0]) for i, operand in own]
        bias = None
        if len(sites) == 1:
            bias, added = _find_bias(equations, uses, index, sites[0])
            sites = [sites[0]._replace(output=added)]
        shapes = [_sizes(equations[s.equation], s.leaf_operand) for s in sites]
        groups.append(
            Group(
                leaf,
                bias,
                tuple(sites),
                sum(p for p, _, _ in shapes),
                shapes[0][1],
                shapes[0][2],
            )
        )
    return groups


def _orientation(e: Equation, operand: int) -> Any:
    """Returns how the leaf is laid out in a product; None if the use is no site."""
    if e.primitive.name == "dot_general":
        contracted, batch = e.params["dimension_numbers"]
        return None if batch[0] else ("dot", tuple(sorted(contracted[operand])))
    if e.primitive.name == "conv_general_dilated" and operand == 1:
        p = e.params
        if p["feature_group_count"] == p["batch_group_count"] == 1:
            return ("conv", tuple(p["dimension_numbers"].rhs_spec))
    return None


def _sizes(e: Equation, operand: int) -> tuple[int, int, int]:
    """Returns positions, fan_in and fan_out."""
    leaf = e.input_shapes[operand]
    if e.primitive.name == "dot_general":
        contracted = e.params["dimension_numbers"][0][operand]
        fan_in = math.prod(leaf[i] for i in contracted)
    else:
        fan_in = math.prod(leaf) // leaf[e.params["dimension_numbers"].rhs_spec[0]]
    fan_out = math.prod(leaf) // fan_in
    return math.prod(e.output_shapes[0]) // fan_out, fan_in, fan_out


def _find_bias(equations, uses, index, site) -> tuple[int | None, int]:
    """Returns the leaf added to a site's output, if any, and the name of the sum."""
    nothing = None, site.output
    own = uses.get(site.output, [])
    if len(own) != 1 or own[0][0] < 0:
        return nothing
    addition = equations[own[0][0]]
    if addition.primitive.name not in ("add", "add_any"):
        return nothing
    name, chain = addition.inputs[1 - own[0][1]], []
    makers = {out: e for e in equations for out in e.outputs}
    while isinstance(name, int) and name not in index:
        maker = makers.get(name)
        if maker is None or maker.primitive.name not in _SHAPE_ONLY:
            return nothing
        if len(uses[name]) != 1 or len(maker.inputs) != 1:
            return nothing
        chain.append(maker)
        name = maker.inputs[0]
    if not isinstance(name, int) or len(uses[name]) != 1:
        return nothing
    e = equations[site.equation]
    _, _, k = _sizes(e, site.leaf_operand)
    shape = chain[-1].input_shapes[0] if chain else addition.output_shapes[0]
    if math.prod(shape) != k:
        return nothing
    # One value per output channel, the same everywhere? Numbers tell most surely.
    with jax.ensure_compile_time_eval():
        probe = jnp.arange(k, dtype=jnp.int32).reshape(shape)
        for maker in reversed(chain):
            (probe,) = bind(maker, [probe])
        told = np.asarray(_as_signal(e, site.leaf_operand, probe))
    if not np.array_equal(told, np.broadcast_to(np.arange(k), told.shape)):
        return nothing
    return index[name], addition.outputs[0]


def _signal(network: Network, site: _Site, signal: Array) -> Float[Array, "P k"]:
    return _as_signal(network.equations[site.equation], site.leaf_operand, signal)


def _as_signal(e: Equation, operand: int, signal: Array) -> Array:
    """Returns (P, k) from the layout of an equation's output."""
    _, _, k = _sizes(e, operand)
    if e.primitive.name == "dot_general":
        if operand == 0:  # the leaf's dimensions come first
            return signal.reshape(k, -1).T
        return signal.reshape(-1, k)
    spec = e.params["dimension_numbers"].out_spec
    return signal.transpose(spec[0], *spec[2:], spec[1]).reshape(-1, k)


def _patches(e: Equation, site: _Site, values: dict[int, Any]) -> Array:
    """Returns (P, d): what each position of the output is made of."""
    x = read(values, e.inputs[1 - site.leaf_operand])
    _, d, _ = _sizes(e, site.leaf_operand)
    if e.primitive.name == "dot_general":
        contracted, _ = e.params["dimension_numbers"]
        # In the order of the leaf's dimensions, so that all sites of a leaf agree.
        order = contracted[site.leaf_operand]
        pairs = zip(order, contracted[1 - site.leaf_operand], strict=True)
        last = [own for _, own in sorted(pairs)]
        first = [i for i in range(x.ndim) if i not in last]
        return x.transpose(*first, *last).reshape(-1, d)
    numbers = e.params["dimension_numbers"]
    spec = numbers.lhs_spec
    x = x.transpose(spec[0], *spec[2:], spec[1])
    padding = zip(e.params["padding"], e.params["lhs_dilation"], strict=True)
    config = [(low, high, dilation - 1) for (low, high), dilation in padding]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    out = [e.output_shapes[0][i] for i in numbers.out_spec[2:]]
    window = [e.input_shapes[1][i] for i in numbers.rhs_spec[2:]]
    strides, steps = e.params["window_strides"], e.params["rhs_dilation"]
    parts = []
    for place in itertools.product(*map(range, window)):
        starts = [i * step for i, step in zip(place, steps, strict=True)]
        slices = [
            slice(start, start + (n - 1) * stride + 1, stride)
            for start, n, stride in zip(starts, out, strides, strict=True)
        ]
        parts.append(x[(slice(None), *slices)])
    return jnp.concatenate(parts, axis=-1).reshape(-1, d)
