r"""How far images and duals are from explaining a change of parameters.

$$L = \Big\| \theta_t - \theta_0 - \sum_q \sum_{j,c} a_{q,j}^c
\nabla_\theta f^c_{\theta(s_q)}(x_j) \Big\|^2, \quad
\theta(s) = \theta_0 + s (\theta_t - \theta_0)$$

It is the loss of the KKT attack (Loo et al., ICLR 2024, arXiv:2302.01428, Eq. 7) and of
finite-width RKIP. $s = 1$ is the published choice ("final"), $s = 0$ Eq. 7 as printed;
the midpoint is nearer to the truth for networks trained with standard dynamics. Several
points have separate duals.

The parameter form builds the residual. The kernel form never does:
$\|\Delta\|^2 - 2\, a \cdot (J \Delta) + a^T (J J^T) a$, with $J \Delta$ from products
of the layers with $\Delta$ and $a^T J J^T a$ from per-layer Gram products of size
$q m$.

A layer that `change` does not name is left out of the residual: there are far more
equations than unknowns, and the first layer's are the ones that need the signals' way
back through the whole network.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _linalg, _tree
from ntk_privacy._linalg import matmul
from ntk_privacy._types import Params
from ntk_privacy.kernels import arguments, structured
from ntk_privacy.models import fitting
from ntk_privacy.models.mlp import MLP

__all__ = [
    "Factored",
    "best_duals",
    "factor",
    "features",
    "kernel_form",
    "normal_equations",
    "parameter_form",
]


class Factored(NamedTuple):
    """A matrix of low rank as left @ right."""

    left: Float[Array, "d r"]
    right: Float[Array, "r k"]


def features(
    params_0: Params, params_t: Params, points: Sequence[float]
) -> tuple[Params, ...]:
    """Returns theta_0 + s (theta_t - theta_0) for every s of `points`.

    Args:
      params_0: parameters before training.
      params_t: after it.
      points: s, in [0, 1].
    """

    def between(s, a, b):
        if not jnp.issubdtype(jnp.asarray(a).dtype, jnp.inexact):
            return b  # a counter or a random key, which no gradient is taken of
        return (1 - s) * a + s * b if 0 < s < 1 else (b if s else a)

    def at(s):
        return jax.tree.map(lambda a, b: between(s, a, b), params_0, params_t)

    return tuple(at(float(s)) for s in points)


def factor(change: Params, *, tolerance: float) -> Params:
    """Replaces kernels of low rank by their two factors, to speed up `kernel_form`.

    A change of weights has at most rank n under linearized dynamics: each of n images
    adds one outer product. A kernel whose rank is not well below its size stays.

    Args:
      change: parameters of an MLP after training minus before.
      tolerance: relative Frobenius norm that may be dropped.
    """

    def one(leaf):
        if np.ndim(leaf) != 2 or min(leaf.shape) < 64:
            return leaf
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf  # factors are real
        limit = min(leaf.shape) // 3
        found = _linalg.range_basis(leaf, tolerance=tolerance, max_rank=limit)
        if found is None:
            return leaf
        left = found.basis
        right = left.T @ np.asarray(leaf, np.float64)
        return Factored(jnp.asarray(left, leaf.dtype), jnp.asarray(right, leaf.dtype))

    return jax.tree.map(one, change)


def parameter_form(
    apply_fn,
    features: Sequence[Params],
    change: Params,
    images: Float[Array, "m ..."],
    duals: Float[Array, "q m c"],
    *,
    sharpness: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Returns the squared norm of the parameter-sized residual, for any network.

    Args:
      apply_fn: `(params, images)`, or `(params, images, sharpness)` if that is given.
      features: parameters at which the gradients are taken, from `features`; complex
        ones count as their real and imaginary parts, integers and keys do not.
      change: params_t - params_0; layers left out do not count.
      images: candidates.
      duals: true multipliers, one set per point.
      sharpness: of the smoothed ReLU.
    """
    extra = () if sharpness is None else (sharpness,)
    residual = _real_floats(change, images.dtype)
    for params, a in zip(features, duals, strict=True):
        grads = _gradient(
            lambda p, x, a=a: jnp.sum(a * apply_fn(p, x, *extra)), params, images
        )
        if isinstance(change, dict):
            grads = {name: grads[name] for name in change}
        residual = _tree.sub(residual, _real_floats(grads, images.dtype))
    return _tree.squared_norm(residual)


def _check(model, features, change, images) -> None:
    """Refuses what does not belong together; shapes alone, so free under `jit`."""
    if not features:
        raise ValueError("features is empty: give parameters of one point at least.")
    for i, params in enumerate(features):
        fitting.check_mlp(
            model, params, image_shape=images.shape[1:], name=f"features[{i}]"
        )
    unknown = sorted(set(change) - set(features[0]))
    if unknown:
        raise ValueError(
            f"change names {unknown}, which the network has not: give layers of "
            f"{sorted(features[0])}."
        )
    for name, layer in change.items():
        for kind, leaf in layer.items():
            shape = features[0][name][kind].shape
            if isinstance(leaf, Factored):
                found = (leaf.left.shape[0], leaf.right.shape[1])
            else:
                found = np.shape(leaf)
            if found != shape:
                raise ValueError(
                    f"change[{name!r}][{kind!r}] has shape {found}, the network "
                    f"{shape}: give params_t - params_0 of this network."
                )


def _real_floats(tree: Params, dtype) -> list[Array]:
    """Returns the leaves that are differentiated; see `arguments`."""
    leaves = jax.tree.leaves(arguments.real(arguments.parameters(tree, dtype)))
    return [leaf for leaf in leaves if arguments.is_floating(leaf)]


def _gradient(total_fn, params: Params, images: Array) -> Params:
    """Returns the gradient as a tree of the parameters, fixed leaves as they are."""
    params = arguments.parameters(params, images.dtype)
    total_fn = arguments.real_apply_fn(total_fn, params)
    leaves, structure = jax.tree.flatten(arguments.real(params))
    chosen = [i for i, leaf in enumerate(leaves) if arguments.is_floating(leaf)]

    def put(own):
        full = list(leaves)
        for i, leaf in zip(chosen, own, strict=True):
            full[i] = leaf
        return jax.tree.unflatten(structure, full)

    own = [leaves[i] for i in chosen]
    return put(jax.grad(lambda own: total_fn(put(own), images))(own))


def _product(a, kernel):
    if isinstance(kernel, Factored):
        return matmul(matmul(a, kernel.left), kernel.right)
    return matmul(a, kernel)


def kernel_form(
    model: MLP,
    features: Sequence[Params],
    change: Params,
    images: Float[Array, "m ..."],
    duals: Float[Array, "q m c"],
    *,
    squared_norm: Float[Array, ""],
    sharpness: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Returns the same loss for an MLP without anything of the parameters' size.

    Args:
      model: the MLP.
      features: parameters at which the gradients are taken, from `features`.
      change: params_t - params_0, or `factor` of it; layers left out do not count.
      images: candidates.
      duals: true multipliers, one set per point.
      squared_norm: of the change: a constant of the attack.
      sharpness: of the smoothed ReLU.
    """
    _check(model, features, change, images)
    traces, signals = [], []
    for params, a in zip(features, duals, strict=True):
        trace = structured.forward(model, params, images, sharpness)
        traces.append(trace.inputs)
        # Duals enter as cotangents: the Gram products need no output axis.
        signals.append(structured.backward(model, params, trace.slopes, a))
    linear = jnp.zeros((), squared_norm.dtype)
    quadratic = jnp.zeros((), squared_norm.dtype)
    for i, (inputs, backs) in enumerate(
        zip(zip(*traces, strict=True), zip(*signals, strict=True), strict=True)
    ):
        if (step := change.get(f"Dense_{i}")) is None:
            continue
        if i == 0:
            # The images are the first layer's input at every point: sum the signals.
            a, b = inputs[0], sum(backs[1:], backs[0])
        else:
            a, b = jnp.concatenate(inputs), jnp.concatenate(backs)
        moved = _product(a, step["kernel"])
        gram = _linalg.gram(a)
        if "bias" in step:
            moved = moved + step["bias"][None, :]
            gram = gram + 1
        linear += jnp.sum(moved * b)
        quadratic += jnp.sum(gram * _linalg.gram(b))
    return squared_norm - 2 * linear + quadratic


def normal_equations(
    model: MLP,
    features: Sequence[Params],
    change: Params,
    images: Float[Array, "m ..."],
    *,
    sharpness: Float[Array, ""] | None = None,
) -> tuple[Float[Array, "qmc qmc"], Float[Array, " qmc"]]:
    """Returns J J^T and J change: the loss is quadratic in the duals with these.

    Rows run over points, then images, then outputs, as `duals.reshape(-1)`.

    Args:
      model: the MLP.
      features: parameters at which the gradients are taken, from `features`.
      change: params_t - params_0, or `factor` of it; layers left out do not count.
      images: candidates.
      sharpness: of the smoothed ReLU.

    Raises:
      ValueError: no layer in `change`, or parameters or images that do not fit the MLP.
    """
    _check(model, features, change, images)
    m, c = len(images), model.num_outputs
    traces, signals = [], []
    for params in features:
        trace = structured.forward(model, params, images, sharpness)
        units = jnp.eye(c, dtype=trace.outputs.dtype)[None, :, :]
        units = jnp.broadcast_to(units, (m, c, c)).reshape(m * c, c)
        # One row per image and output; with a single output nothing is repeated.
        slopes = [jnp.repeat(slope, c, axis=0) for slope in trace.slopes]
        traces.append(trace.inputs)
        signals.append(structured.backward(model, params, slopes, units))
    kernel = projection = None
    for i, (inputs, backs) in enumerate(
        zip(zip(*traces, strict=True), zip(*signals, strict=True), strict=True)
    ):
        if (step := change.get(f"Dense_{i}")) is None:
            continue
        a, b = jnp.concatenate(inputs), jnp.concatenate(backs)
        moved = _product(a, step["kernel"])
        gram = _linalg.gram(a)
        if "bias" in step:
            moved = moved + step["bias"][None, :]
            gram = gram + 1
        gram = jnp.repeat(jnp.repeat(gram, c, axis=0), c, axis=1)
        part = gram * _linalg.gram(b)
        along = jnp.sum(jnp.repeat(moved, c, axis=0) * b, axis=1)
        kernel = part if kernel is None else kernel + part
        projection = along if projection is None else projection + along
    if kernel is None or projection is None:
        raise ValueError("change is empty: give one layer at least.")
    return kernel, projection


def best_duals(
    kernel: Float[Array, "qmc qmc"], projection: Float[Array, " qmc"], *, ridge: float
) -> Float[Array, " qmc"]:
    """Returns the duals of least loss for fixed images.

    Args:
      kernel: from `normal_equations`.
      projection: from `normal_equations`.
      ridge: relative to the mean diagonal; candidates that coincide need one.
    """
    return _linalg.solve_ridge(kernel, projection[:, None], diag_reg=ridge)[:, 0]
