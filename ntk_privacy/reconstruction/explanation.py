r"""What the images that an attack returns explain, and what chance explains.

With $2N$ free images and multipliers a search fits part of anything. So the share of
$\|\Delta\|^2$ that images and their best duals account for is never told alone:

* `predicted`: each layer's part from duals fitted to the other layers (as in cross
  validation). Gradients of the right images need the same duals in every layer;
  candidates bent to fit one layer say nothing of the next, and the share falls below 0.
* `chance`: what as many random images of the same span and norms explain.
* `possible_share`: no images whatever explain more. A change of a layer by m images
  has at most rank m (m times outputs and points behind the first), while noise, weight
  decay, sign-like optimizers and foreign initial weights have full rank.
* `outside`: share of the images' squared norm that lies out of the bounds.

The kernel form of `kernels.stationarity` serves MLPs; for any other network rows of
$JJ^\top$ come one at a time, so nothing but one gradient is of the parameters' size.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from ntk_privacy import _linalg, _tree
from ntk_privacy._types import ApplyFn, Params
from ntk_privacy.kernels import stationarity
from ntk_privacy.models.mlp import MLP

__all__ = [
    "MOST_ROWS",
    "Explained",
    "Part",
    "explain",
    "is_finite",
    "measure",
    "outside",
    "parts",
    "possible_share",
    "random_like",
]

MOST_ROWS = 3000
"""Of J J^T, that is points times images times outputs; beyond, the strongest images."""

_MOST_LAYERS, _LARGEST_SIDE = 6, 2100  # of groups; of a matrix to diagonalise


class Explained(NamedTuple):
    """Shares of the squared norm of the change, at most 1.

    Attributes:
      explained: by the images with their best duals.
      predicted: layer by layer, with duals from the other layers; may be negative.
      chance: explained by as many random images of the same span and norms.
      possible: the most that so many images could explain; 1 where it is not asked,
        since they explain nearly all, or the network is no MLP.
      first_possible: the same of the first layer alone.
      outside: share of the images' squared norm that lies beyond the bounds.
      contributions: what is lost without one image, (m,); 0 where it was left out.
    """

    explained: float
    predicted: float
    chance: float
    possible: float
    first_possible: float
    outside: float
    contributions: Float[np.ndarray, " m"]


class Part(NamedTuple):
    """J J^T and J change of one layer, and the squared norm of its change."""

    kernel: Float[np.ndarray, "r r"]
    projection: Float[np.ndarray, " r"]
    squared_norm: float


def parts(
    network: MLP | ApplyFn,
    features: Sequence[Params],
    change: Params,
    images: Float[Array, "m ..."],
    *,
    num_outputs: int = 1,
) -> dict[str, Part]:
    """Returns the normal equations of the duals, layer by layer, in float64.

    Rows run over points, then images, then outputs.

    Args:
      network: an `MLP`, or any `apply_fn`, whose layers are taken in at most six
        groups.
      features: parameters at which gradients are taken.
      change: what is to be explained.
      images: candidates.
      num_outputs: of an `apply_fn`.
    """
    if isinstance(network, MLP):
        made = _mlp_parts(network, tuple(features), change, images)
    else:
        made = _any_parts(network, features, change, images, num_outputs)
    return {
        name: Part(
            np.asarray(kernel, np.float64),
            np.asarray(projection, np.float64),
            float(squared_norm),
        )
        for name, (kernel, projection, squared_norm) in made.items()
    }


@functools.partial(jax.jit, static_argnums=0)
def _mlp_parts(network, features, change, images):
    return {
        name: (
            *stationarity.normal_equations(network, features, {name: leaf}, images),
            _tree.squared_norm(leaf),
        )
        for name, leaf in change.items()
    }


def _groups(change: Params) -> dict[str, list[bool]]:
    """Splits the leaves of a change by layer, into at most six groups."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(change)]
    names = [jax.tree_util.keystr(path[:-1] or path) for path in paths]
    different = list(dict.fromkeys(names))
    share = -(-len(different) // _MOST_LAYERS)
    groups = [different[i : i + share] for i in range(0, len(different), share)]
    return {group[0]: [name in group for name in names] for group in groups}


def _only(tree: Params, kept: list[bool]) -> Params:
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(
        structure,
        [
            leaf if keep else jnp.zeros_like(leaf)
            for leaf, keep in zip(leaves, kept, strict=True)
        ],
    )


@_linalg.full_precision
def _any_parts(apply_fn, features, change, images, num_outputs):
    """Rows of J J^T for any network, from one gradient at a time."""
    m, groups = images.shape[0], _groups(change)

    def along(direction):
        """J times a direction, at all points."""

        def at(params):
            return jax.jvp(lambda p: apply_fn(p, images), (params,), (direction,))[1]

        return jnp.concatenate([at(params).reshape(-1) for params in features])

    def row(params, i):
        unit = jax.nn.one_hot(i, m * num_outputs, dtype=images.dtype)
        outputs, back = jax.vjp(lambda p: apply_fn(p, images), params)
        (gradient,) = back(unit.astype(outputs.dtype).reshape(m, num_outputs))
        return {name: along(_only(gradient, kept)) for name, kept in groups.items()}

    @jax.jit
    def all_of_them(change):
        kernels = [
            jax.lax.map(lambda i, p=params: row(p, i), jnp.arange(m * num_outputs))
            for params in features
        ]
        return {
            name: (
                jnp.concatenate([kernel[name] for kernel in kernels]),
                along(_only(change, kept)),
                _tree.squared_norm(_only(change, kept)),
            )
            for name, kept in groups.items()
        }

    return all_of_them(change)


def explain(
    kernel: Float[np.ndarray, "r r"], projection: Float[np.ndarray, " r"], *, eps: float
) -> Float[np.ndarray, " r"]:
    """Returns the duals of least residual.

    Args:
      kernel: J J^T.
      projection: J change.
      eps: of the precision that both were computed in; the ridge is as small as its
        rounding allows.
    """
    try:
        return scipy.linalg.solve(_lifted(kernel, eps), projection, assume_a="pos")
    except np.linalg.LinAlgError:
        return np.linalg.lstsq(_lifted(kernel, eps), projection, rcond=1e-6)[0]


def _lifted(kernel: np.ndarray, eps: float) -> np.ndarray:
    ridge = 10 * eps * max(float(np.trace(kernel)), 1e-300)
    return kernel + ridge * np.eye(len(kernel))


def is_finite(found: dict[str, Part]) -> bool:
    """Whether no layer's part holds a NaN or an infinity.

    Args:
      found: parts by layer.
    """
    arrays = [a for part in found.values() for a in part]
    return all(bool(np.isfinite(a).all()) for a in arrays)


def _share(part: Part, duals: np.ndarray) -> float:
    """Part of a squared norm that duals explain: 2 a p - a K a."""
    return float(2 * duals @ part.projection - duals @ part.kernel @ duals)


def _sum(found: Iterable[Part]) -> Part:
    kernels, projections, norms = zip(*found, strict=True)
    return Part(
        np.asarray(sum(kernels)), np.asarray(sum(projections)), float(sum(norms))
    )


def _predicted(found: dict[str, Part], whole: Part, eps: float) -> float:
    if len(found) < 2:
        return float("nan")
    total = 0.0
    for part in found.values():
        others = whole.kernel - part.kernel, whole.projection - part.projection
        total += _share(part, explain(*others, eps=eps))
    return total / whole.squared_norm


def _contributions(whole: Part, duals: np.ndarray, shape, eps: float) -> np.ndarray:
    """What the explained share loses when one image goes and the others make up."""
    inverse = np.linalg.pinv(_lifted(whole.kernel, eps), hermitian=True)
    rows = np.arange(len(duals)).reshape(shape)
    lost = []
    for i in range(shape[1]):
        own = rows[:, i].reshape(-1)
        block = np.linalg.pinv(inverse[np.ix_(own, own)], hermitian=True)
        lost.append(duals[own] @ block @ duals[own])
    return np.asarray(lost) / whole.squared_norm


def possible_share(
    change: Params, num_images: int, num_rows: int
) -> tuple[float, float]:
    """Returns the most that images could explain of an MLP's change, and of its first.

    Layers of more than 2,100 units on both sides count in full.

    Args:
      change: of an MLP, `Dense_0` to the last.
      num_images: candidates m: the rank that the first layer's change can have.
      num_rows: points times m times outputs: that of the others.
    """
    shares = []
    for i in range(len(change)):
        layer = change[f"Dense_{i}"]
        kernel = np.asarray(layer["kernel"], np.float64)
        if "bias" in layer:
            kernel = np.concatenate([kernel, np.asarray(layer["bias"])[None]])
        rank, side = (num_rows if i else num_images), min(kernel.shape)
        total = float(np.sum(kernel**2))
        if rank >= side or side > _LARGEST_SIDE or not total:
            shares.append((total, total))
            continue
        gram = kernel @ kernel.T if len(kernel) == side else kernel.T @ kernel
        values = np.linalg.eigvalsh(gram)
        shares.append((float(np.maximum(values[-rank:], 0).sum()), total))
    possible, totals = map(sum, zip(*shares, strict=True))
    return min(possible / totals, 1.0), min(shares[0][0] / (shares[0][1] or 1.0), 1.0)


def outside(images: Float[np.ndarray, "m h w d"], bounds: tuple[Any, Any]) -> float:
    """Returns the share of the images' squared norm that lies beyond the bounds.

    Args:
      images: in the units of `bounds`.
      bounds: smallest and largest intensity, scalar or per channel.
    """
    low, high = (np.asarray(bound, np.float64) for bound in bounds)
    beyond = images - np.clip(images, low, high)
    return float(np.sum(beyond**2) / max(np.sum(np.square(images)), 1e-300))


def random_like(images: Float[np.ndarray, "m ..."]) -> Float[np.ndarray, "m ..."]:
    """Returns as many random images of the same span and norms; the same every time.

    Args:
      images: one row each, of any shape.
    """
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    mixed = np.random.default_rng(0).standard_normal((len(flat), len(flat))) @ flat
    norms = np.linalg.norm(flat, axis=1) / np.maximum(
        np.linalg.norm(mixed, axis=1), 1e-300
    )
    return (mixed * norms[:, None]).reshape(np.shape(images))


def measure(
    network: MLP | ApplyFn,
    features: Sequence[Params],
    change: Params,
    images: Float[Array | np.ndarray, "m h w d"],
    duals: Float[Array | np.ndarray, "q m c"],
    *,
    bounds: tuple[Any, Any],
) -> Explained | None:
    """Measures what images explain of a change of parameters.

    None where the images are too large for their gradients to be finite.

    Args:
      network: an `MLP`, or any `apply_fn`.
      features: parameters at which gradients are taken, q of them.
      change: params_t - params_0, every layer of it.
      images: what an attack found; finite.
      duals: theirs, which tell the strongest images where there are too many.
      bounds: that the attack was given.
    """
    q, m, c = duals.shape
    dtype = jax.tree.leaves(change)[0].dtype
    eps = float(jnp.finfo(dtype).eps)
    host = np.asarray(images, np.float64)
    kept = np.arange(m)
    if q * m * c > MOST_ROWS:
        strength = np.linalg.norm(np.asarray(duals, np.float64), axis=(0, 2))
        strength = strength * np.linalg.norm(host.reshape(m, -1), axis=1)
        kept = np.sort(
            np.argsort(-strength, kind="stable")[: MOST_ROWS // (q * c) or 1]
        )

    def found_by(pictures):
        found = parts(
            network, features, change, jnp.asarray(pictures, dtype), num_outputs=c
        )
        if not is_finite(found):
            return None
        whole = _sum(found.values())
        return found, whole, explain(whole.kernel, whole.projection, eps=eps)

    by_images, by_random = found_by(host[kept]), found_by(random_like(host[kept]))
    if by_images is None or by_random is None:
        return None
    found, whole, best = by_images
    _, by_chance, chance = by_random
    contributions = np.zeros(m)
    contributions[kept] = _contributions(whole, best, (q, len(kept), c), eps)
    explained = min(_share(whole, best) / whole.squared_norm, 1.0)
    possible = first = 1.0
    if isinstance(network, MLP) and explained < 0.95:
        possible, first = possible_share(change, m, q * m * c)
    return Explained(
        explained=explained,
        predicted=min(_predicted(found, whole, eps), 1.0),
        chance=min(_share(by_chance, chance) / whole.squared_norm, 1.0),
        possible=possible,
        first_possible=first,
        outside=outside(host, bounds),
        contributions=contributions,
    )
