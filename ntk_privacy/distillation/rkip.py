r"""RKIP: distil a dataset by matching kernel regressors in RKHS norm.

KIP (`kip`) matches predictions on the targets; RKIP matches the regressors themselves,
which is what a reconstruction attack does at infinite width (Theorem 1).

Source: Loo et al., ICLR 2024, arXiv:2302.01428.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ntk_privacy import _checks, _linalg
from ntk_privacy._linalg import matmul
from ntk_privacy._types import Callback, KernelFn
from ntk_privacy.distillation import coincident_targets, rounding, search
from ntk_privacy.distillation.search import Distilled, DistillState
from ntk_privacy.distillation.target_duals import (
    NotConvergedError,
    TargetDuals,
    check_targets,
    target_duals,
)
from ntk_privacy.kernels import blockwise, host, regression

__all__ = [
    "DistillState",
    "Distilled",
    "NotConvergedError",
    "TargetDuals",
    "Terms",
    "distill",
    "distill_finite",
    "label_solve",
    "loss",
    "target_duals",
    "terms",
]


class Terms(NamedTuple):
    """The two halves of the loss, by Theorem 2.

    label_matching: KIP's squared error, in the norm of the inverse target kernel.
    variance: of S given T: the energy of the distilled regressor off the targets' span.
    """

    label_matching: Float[Array, ""]
    variance: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class _Objective:
    """Rows are images and duals of the targets; the constant is their energy."""

    kernel_fn: KernelFn
    diag_reg: float

    def __call__(self, images, labels, rows, constants) -> Float[Array, ""]:
        x, target = rows
        k_ss = blockwise.self_kernel(self.kernel_fn, images)
        a = _linalg.solve_ridge(k_ss, labels, diag_reg=self.diag_reg)
        # K_ST rather than K_TS: the few images first makes a faster product on CPU.
        cross = matmul(self.kernel_fn(images, x), target)
        # K a is y less the ridge's part: the product would cancel, with large duals.
        explained = labels - _linalg.ridge(k_ss, self.diag_reg) * a
        return 0.5 * (jnp.sum(a * (explained - 2 * cross)) + constants)


def _dense(k: Array, y: Array, diag_reg: float) -> TargetDuals:
    a = _linalg.solve_ridge(k, y, diag_reg=diag_reg)
    return TargetDuals(a, jnp.sum(a * (y - _linalg.ridge(k, diag_reg) * a)))


def _rounding(k: Array, a: Array) -> Array:
    """What rounding of the diagonal alone makes of the energy of duals `a`."""
    return jnp.finfo(k.dtype).eps * jnp.sum(jnp.diagonal(k)[:, None] * a * a)


def _targets(kernel_fn, k: Array, x: Array, y: Array, diag_reg: float) -> TargetDuals:
    """Duals of concrete targets, in float64 where rounding would be 1% of the energy.

    So it is where copies contradict each other: their duals are as large as 1 / ridge.
    """
    found = _dense(k, y, diag_reg)
    if _rounding(k, found.duals) <= 0.01 * jnp.abs(found.energy):
        return found
    wide = host.kernel(kernel_fn, x)
    a = host.solve(wide, y, diag_reg=diag_reg)
    energy = _energy(wide, a, y, diag_reg)
    return TargetDuals(jnp.asarray(a, y.dtype), jnp.asarray(energy, y.dtype))


def _energy(k: np.ndarray, a: np.ndarray, y: Array, diag_reg: float) -> np.floating:
    # a K a by what a solves: K a itself would cancel.
    ridge = diag_reg * np.trace(k) / len(k)
    return np.sum(a * (np.asarray(y, np.float64) - ridge * a))


class _Hosted(NamedTuple):
    """Kernels, duals and energies in float64: S the images, T the targets."""

    k_ss: np.ndarray
    k_ts: np.ndarray
    k_tt: np.ndarray
    a_s: np.ndarray
    a_t: np.ndarray
    energy_s: np.floating
    energy_t: np.floating


def _hosted(kernel_fn, images, labels, x_target, y_target, diag_reg) -> _Hosted:
    k_ss, k_tt = host.kernel(kernel_fn, images), host.kernel(kernel_fn, x_target)
    a_s = host.solve(k_ss, labels, diag_reg=diag_reg)
    a_t = host.solve(k_tt, y_target, diag_reg=diag_reg)
    energies = (
        _energy(k, a, y, diag_reg)
        for k, a, y in ((k_ss, a_s, labels), (k_tt, a_t, y_target))
    )
    k_ts = host.kernel(kernel_fn, x_target, images)
    return _Hosted(k_ss, k_ts, k_tt, a_s, a_t, *energies)


def _check(images, labels, x_target, y_target, diag_reg) -> None:
    _checks.same_length(images=images, labels=labels)
    _checks.same_length(x_target=x_target, y_target=y_target)
    pairs = (
        {"images": images, "x_target": x_target},
        {"labels": labels, "y_target": y_target},
    )
    regression.check_data(*pairs, diag_reg=diag_reg)
    _checks.same_width(labels=labels, y_target=y_target)


def loss(
    images: Float[Array, "m ..."],
    labels: Float[Array, "m k"],
    x_target: Float[Array, "n ..."],
    y_target: Float[Array, "n c"],
    *,
    kernel_fn: KernelFn,
    diag_reg: float = 1e-5,
) -> Float[Array, ""]:
    r"""Half the squared RKHS distance between two kernel regressors, over all outputs.

    $$\tfrac12 \mathrm{tr}(\alpha_S^\top K_{SS} \alpha_S
      - 2 \alpha_T^\top K_{TS} \alpha_S + \alpha_T^\top K_{TT} \alpha_T),
      \quad \alpha = (K + \lambda \bar k I)^{-1} y$$
    $\lambda$ is `diag_reg`, $\bar k$ the mean diagonal of $K$. A singular kernel gives
    NaN. Computed in float64; where traced, in the dtype of the images, whose rounding
    then counts by the squares of the duals: NaN where that is a tenth of the energies,
    as it is in float32 at 1e-5 where copies contradict each other.

    Args:
      images: synthetic images.
      labels: theirs, as wide as y_target.
      x_target: images to distil.
      y_target: their targets.
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      diag_reg: ridge relative to the mean diagonal (dimensionless).

    Raises:
      ValueError: lengths or widths differ, or what is given is no finite
        floating-point numbers.
    """
    _check(images, labels, x_target, y_target, diag_reg)
    if _checks.concrete(images, labels, x_target, y_target):
        h = _hosted(kernel_fn, images, labels, x_target, y_target, diag_reg)
        across = np.sum(h.a_t * (h.k_ts @ h.a_s))
        # A norm: what is below 0 is rounding. (NaN stays.)
        half = np.maximum(0.5 * (h.energy_s + h.energy_t) - across, 0)
        return jnp.asarray(half, y_target.dtype)
    k_tt, k_ss = (blockwise.self_kernel(kernel_fn, x) for x in (x_target, images))
    target, own = _dense(k_tt, y_target, diag_reg), _dense(k_ss, labels, diag_reg)
    rows = (x_target, target.duals)
    half = _Objective(kernel_fn, diag_reg)(images, labels, rows, target.energy)
    # Energies are squared norms: more rounding than that is no number.
    lost = _rounding(k_tt, target.duals) + _rounding(k_ss, own.duals)
    told = lost <= 0.1 * (jnp.abs(target.energy) + jnp.abs(own.energy))
    return jnp.where(jax.lax.stop_gradient(told), half, jnp.nan)


def terms(
    images: Float[Array, "m ..."],
    labels: Float[Array, "m k"],
    x_target: Float[Array, "n ..."],
    y_target: Float[Array, "n c"],
    *,
    kernel_fn: KernelFn,
    diag_reg: float = 1e-5,
) -> Terms:
    r"""Splits `loss` by Theorem 2, in float64 unless traced; the two add up to it.

    $$\tfrac12 \| K_{TT} \alpha_T - K_{TS} \alpha_S \|^2_{K_{TT}^+}, \quad
      \tfrac12 \mathrm{tr}\, \alpha_S^\top (K_{SS} - K_{ST} K_{TT}^+ K_{TS}) \alpha_S$$
    With no ridge $K_{TT} \alpha_T$ is $y_T$, as in the paper; in this form the identity
    holds with any ridge, and for duplicate targets too. Where traced, in the dtype of
    the images: eigenvalues of $K_{TT}$ within its rounding count as 0.

    Args:
      images: synthetic images.
      labels: theirs, as wide as y_target.
      x_target: images to distil.
      y_target: their targets.
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      diag_reg: ridge relative to the mean diagonal (dimensionless).

    Raises:
      ValueError: lengths or widths differ, or what is given is no finite
        floating-point numbers.
    """
    _check(images, labels, x_target, y_target, diag_reg)
    if not _checks.concrete(images, labels, x_target, y_target):
        return _traced_terms(kernel_fn, images, labels, x_target, y_target, diag_reg)
    h = _hosted(kernel_fn, images, labels, x_target, y_target, diag_reg)
    predicted = h.k_ts @ h.a_s
    values, vectors = np.linalg.eigh(h.k_tt)
    floor = len(h.k_tt) * np.finfo(np.float64).eps * values[-1]
    inverse = np.where(values > floor, 1 / np.maximum(values, floor), 0)[:, None]
    error = vectors.T @ (h.k_tt @ h.a_t - predicted)
    inside = vectors.T @ predicted
    variance = np.maximum(h.energy_s - np.sum(inverse * inside**2), 0)
    parts = (0.5 * np.sum(inverse * error**2), 0.5 * variance)
    return Terms(*(jnp.asarray(v, y_target.dtype) for v in parts))


def _traced_terms(kernel_fn, images, labels, x_target, y_target, diag_reg) -> Terms:
    """As `terms`, of arrays that a transformation of JAX traces."""
    k_tt, k_ss = (blockwise.self_kernel(kernel_fn, x) for x in (x_target, images))
    target, own = _dense(k_tt, y_target, diag_reg), _dense(k_ss, labels, diag_reg)
    predicted = matmul(kernel_fn(x_target, images), own.duals)
    fitted = y_target - _linalg.ridge(k_tt, diag_reg) * target.duals
    values, vectors = jnp.linalg.eigh(k_tt)
    floor = len(k_tt) * jnp.finfo(k_tt.dtype).eps * values[-1]
    kept = values > floor
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)[:, None]
    error = matmul(vectors.T, fitted - predicted)
    inside = matmul(vectors.T, predicted)
    variance = jnp.maximum(own.energy - jnp.sum(inverse * inside**2), 0)
    return Terms(0.5 * jnp.sum(inverse * error**2), 0.5 * variance)


def label_solve(
    images: Float[Array, "m ..."],
    x_target: Float[Array, "n ..."],
    y_target: Float[Array, "n c"],
    *,
    kernel_fn: KernelFn,
    diag_reg: float = 1e-5,
    target: TargetDuals | None = None,
) -> Float[Array, "m c"]:
    r"""Returns the labels of least `loss` for given images.

    The regressor on S nearest to that on T is its projection on the span of S:
    $\alpha_S = K_{SS}^{-1} K_{ST} \alpha_T$, and
    $y_S = (K_{SS} + \lambda \bar k I) \alpha_S$.

    Args:
      images: synthetic images.
      x_target: images to distil.
      y_target: their targets.
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      diag_reg: ridge relative to the mean diagonal.
      target: of `target_duals`, if known.

    Raises:
      ValueError: lengths differ, or a kernel is singular.
    """
    _checks.same_length(x_target=x_target, y_target=y_target)
    every = {"images": images, "x_target": x_target}
    regression.check_data(every, {"y_target": y_target}, diag_reg=diag_reg)
    k_ss = host.kernel(kernel_fn, images)
    # The projection is that of the kernel itself: the ridge is no remedy here.
    dtype = jnp.result_type(images)
    regression.check_solvable(
        "The kernel of images", k_ss, 0.0, ridge_helps=False, dtype=dtype
    )
    if target is None:
        a_t = regression.duals(kernel_fn, x_target, y_target, diag_reg=diag_reg)
    else:
        check_targets(target, x_target, y_target, diag_reg=diag_reg)
        a_t = target.duals
    along = host.kernel(kernel_fn, x_target, images).T @ np.asarray(a_t, np.float64)
    labels = host.add_ridge(k_ss, diag_reg) @ host.solve(k_ss, along)
    return jnp.asarray(labels, a_t.dtype)


def distill(
    x_target: Float[Array | np.ndarray, "n ..."],
    y_target: Float[Array | np.ndarray, "n c"],
    *,
    kernel_fn: KernelFn,
    key: Array,
    images_per_class: int = 10,
    num_steps: int = 50_000,
    diag_reg: float = 1e-5,
    learn_labels: bool = False,
    noise_ratio: float = 0.0,
    batch_size: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
    initial_images: Float[Array, "m ..."] | None = None,
    initial_labels: Float[Array, "m k"] | None = None,
    target: TargetDuals | None = None,
    state: DistillState | None = None,
    chunk: int = 500,
    callback: Callback | None = None,
    mesh: Mesh | None = None,
) -> Distilled:
    """Minimises `loss` over synthetic images, and over their labels if asked.

    Args:
      x_target: images as `data.load` gives them (intensity in [0, 1] less the mean).
      y_target: one column per output; +-1 if binary, else centred one-hot.
      kernel_fn: `(x1, x2) -> (n1, n2)`, such as `kernels.infinite.mlp(depth=2)`; x2
        may be optional, and is then left out where both sides are equal.
      key: typed key (`jax.random.key`); fixes the initial images and all later draws.
      images_per_class: synthetic images of each class, two for a single output.
      num_steps: optimizer steps in all, counting those already in `state`.
      diag_reg: ridge relative to the mean diagonal of K (dimensionless), at least 0.
      learn_labels: whether labels descend too.
      noise_ratio: share of the entries that hold N(0, 1) noise for good; the paper's
        "RKIP 5% noise" is 0.05.
      batch_size: targets that the cross term sees in a step, drawn without replacement
        and as many of each class, weighted to be unbiased; None is all targets.
      optimizer: default Adam, step size 1e-3 (intensity).
      initial_images: to start from, in place of 0.2 N(0, 1).
      initial_labels: theirs, in place of balanced ones.
      target: of `target_duals`, for more targets than a dense kernel has room for.
      state: of an earlier call with the same arguments, to continue to the bit.
      chunk: steps between calls of `callback`, in one compiled scan.
      callback: `(steps, state, metrics)` after each chunk; `metrics["loss"]` has the
        loss before each of its steps.
      mesh: of `sharding.row_mesh`, whose devices share the targets of every step.

    Raises:
      ValueError: lengths differ, a number is out of range or not finite, a kernel is
        singular, `state` has other shapes, or `target` is of other images.

    Example:
      >>> import jax, ntk_privacy
      >>> digits = ntk_privacy.data.load("digits", num_train=8, key=jax.random.key(0))
      >>> ntk = ntk_privacy.kernels.infinite.mlp(depth=1)
      >>> sizes = {"key": jax.random.key(1), "images_per_class": 1, "num_steps": 2}
      >>> data = (digits.x_train, digits.y_train)
      >>> ntk_privacy.rkip.distill(*data, kernel_fn=ntk, **sizes).images.shape
      (2, 8, 8, 1)
    """
    _checks.at_least(0, diag_reg=diag_reg)
    x, y = jnp.asarray(x_target), jnp.asarray(y_target)
    start = search.init(
        x, y, key=key, images_per_class=images_per_class, noise_ratio=noise_ratio,
        learn_labels=learn_labels, optimizer=optimizer,
        initial_images=initial_images, initial_labels=initial_labels,
    )  # fmt: skip
    regression.check_kernel_fn(kernel_fn, x)
    state = search.resume(state, start)
    rounding.check_start(kernel_fn, state.images, state.labels, diag_reg=diag_reg)
    if target is None:
        k_tt = blockwise.self_kernel(kernel_fn, x)
        error = 0.0
        if regression.may_blur(k_tt, diag_reg):
            error = coincident_targets.kernel_error(kernel_fn, x)
        name = "The kernel of x_target"
        regression.check_solvable(name, k_tt, diag_reg, error=error)
        target = _targets(kernel_fn, k_tt, x, y, diag_reg)
    else:
        check_targets(target, x, y, diag_reg=diag_reg)
    a_t, sizes = target.duals, ()
    if batch_size is not None:
        order, sizes = search.class_order(y, batch_size)
        # One row stands for all that its class has beyond the batch.
        weights = np.repeat(sizes, sizes) * len(sizes) / batch_size
        x, a_t = x[order], a_t[order] * jnp.asarray(weights, a_t.dtype)[:, None]
    found = search.minimize(
        _Objective(kernel_fn, diag_reg),
        (x, a_t),
        target.energy,
        key=key,
        state=state,
        num_steps=num_steps,
        learn_labels=learn_labels,
        optimizer=optimizer,
        batch_size=batch_size,
        class_sizes=sizes,
        chunk=chunk,
        callback=callback,
        mesh=mesh,
    )
    rounding.warn_where_lost(kernel_fn, found.images, found.labels, diag_reg=diag_reg)
    return found


def distill_finite(
    attack: Callable[..., Any],
    *,
    kernel_fn: Callable[..., Array],
    num_images: int = 20,
) -> Distilled:
    r"""RKIP-finite: distils from a trained network, by attacking it.

    A network trained on T is attacked with fewer candidates than T has images: at
    infinite width its loss is that of RKIP (Theorem 1). The labels are what the
    candidates' share of the change of parameters adds to the outputs on them,
    $y_R = \Theta_{RR} \alpha$ (all outputs, true multipliers; the released code leaves
    out the factor 1/m, which no sign depends on).

    Args:
      attack: `(num_images=m)` -> a result with images, true multipliers `duals`
        (m, c) or (1, m, c), losses, state and nonfinite, such as
        `functools.partial(reconstruction.kkt.reconstruct, ...)` with one point.
      kernel_fn: `(x1, x2)` -> the empirical NTK of the trained network at the point
        that was attacked: (m, m) for one output, else (m, m, c, c).
      num_images: m, below the number of images behind the network.

    Raises:
      ValueError: num_images below 1, or duals at several points.
    """
    _checks.at_least(1, num_images=num_images)
    found = attack(num_images=num_images)
    duals = found.duals[None] if found.duals.ndim == 2 else found.duals
    if len(duals) != 1:
        raise ValueError(
            f"attack has duals at {len(duals)} points: attack a single one, such as "
            'points="final".'
        )
    k = blockwise.self_kernel(kernel_fn, found.images)
    if k.ndim == 2:
        if duals.shape[-1] != 1:
            raise ValueError(
                f"kernel_fn has the trace over outputs for {duals.shape[-1]} of them: "
                "give all blocks (trace_outputs=False)."
            )
        k = k[:, :, None, None]
    m, c = duals.shape[1:]
    square = k.transpose(0, 2, 1, 3).reshape(m * c, m * c)
    labels = matmul(square, duals.reshape(m * c, 1)).reshape(m, c)
    return Distilled(
        images=found.images, labels=labels, losses=found.losses, state=found.state,
        nonfinite=jnp.asarray(found.nonfinite),
    )  # fmt: skip
