r"""KIP: distil a dataset so that kernel regression on it predicts the targets.

Source: Nguyen, Chen & Lee, ICLR 2021 (arXiv:2011.00050); Nguyen, Novak, Xiao & Lee,
NeurIPS 2021 (arXiv:2107.13034). RKIP (`rkip`) matches the regressors themselves.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ntk_privacy import _checks, _linalg
from ntk_privacy._linalg import matmul
from ntk_privacy._types import Callback, KernelFn
from ntk_privacy.distillation import rounding, search
from ntk_privacy.distillation.search import Distilled, DistillState
from ntk_privacy.kernels import blockwise, host, regression

__all__ = ["DistillState", "Distilled", "distill", "label_solve", "loss"]


@dataclasses.dataclass(frozen=True)
class _Objective:
    kernel_fn: KernelFn
    diag_reg: float

    def __call__(self, images, labels, rows, constants) -> Float[Array, ""]:
        del constants
        x, y = rows
        k_ss = blockwise.self_kernel(self.kernel_fn, images)
        a = _linalg.solve_ridge(k_ss, labels, diag_reg=self.diag_reg)
        # K_ST rather than K_TS: the few images first makes a faster product on CPU.
        predicted = matmul(a.T, self.kernel_fn(images, x))
        return 0.5 * jnp.mean((y.T - predicted) ** 2)


def loss(
    images: Float[Array, "m ..."],
    labels: Float[Array, "m k"],
    x_target: Float[Array, "n ..."],
    y_target: Float[Array, "n c"],
    *,
    kernel_fn: KernelFn,
    diag_reg: float = 1e-5,
) -> Float[Array, ""]:
    r"""Half the mean squared error on the targets of regression on the synthetic set.

    $$\tfrac12 \mathrm{mean} (y_T - K_{TS} (K_{SS} + \lambda \bar k I)^{-1} y_S)^2$$
    $\lambda$ is `diag_reg`, $\bar k$ the mean diagonal of $K_{SS}$. The mean runs over
    targets and outputs. A singular kernel gives NaN. Computed in float64; where traced,
    in the dtype of the images, whose rounding is then relative to the least eigenvalue.

    Args:
      images: synthetic images.
      labels: theirs, as wide as y_target.
      x_target: images to predict.
      y_target: their targets.
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      diag_reg: ridge relative to the mean diagonal (dimensionless).

    Raises:
      ValueError: lengths or widths differ, or what is given is no finite
        floating-point numbers.
    """
    _checks.same_length(images=images, labels=labels)
    _checks.same_length(x_target=x_target, y_target=y_target)
    pairs = (
        {"images": images, "x_target": x_target},
        {"labels": labels, "y_target": y_target},
    )
    regression.check_data(*pairs, diag_reg=diag_reg)
    _checks.same_width(labels=labels, y_target=y_target)
    if _checks.concrete(images, labels, x_target, y_target):
        k_ss = host.kernel(kernel_fn, images)
        a = host.solve(k_ss, labels, diag_reg=diag_reg)
        error = np.asarray(y_target) - host.kernel(kernel_fn, x_target, images) @ a
        return jnp.asarray(0.5 * np.mean(error**2), y_target.dtype)
    return _Objective(kernel_fn, diag_reg)(images, labels, (x_target, y_target), ())


def label_solve(
    images: Float[Array, "m ..."],
    x_target: Float[Array, "n ..."],
    y_target: Float[Array, "n c"],
    *,
    kernel_fn: KernelFn,
    diag_reg: float = 1e-5,
) -> Float[Array, "m c"]:
    r"""Returns the labels of least `loss` for given images.

    Label Solve: $y_S = (K_{TS} (K_{SS} + \lambda \bar k I)^{-1})^+ y_T$; of fewer
    targets than images these are the shortest of many.

    Args:
      images: synthetic images.
      x_target: images to predict.
      y_target: their targets.
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      diag_reg: ridge relative to the mean diagonal.

    Raises:
      ValueError: lengths differ, or the kernel of `images` is singular.
    """
    _checks.same_length(x_target=x_target, y_target=y_target)
    every = {"images": images, "x_target": x_target}
    regression.check_data(every, {"y_target": y_target}, diag_reg=diag_reg)
    k_ss = host.kernel(kernel_fn, images)
    dtype = jnp.result_type(y_target)
    regression.check_solvable("The kernel of images", k_ss, diag_reg, dtype=dtype)
    k_ts = host.kernel(kernel_fn, x_target, images)
    y = np.asarray(y_target, np.float64)
    if len(x_target) < len(images):
        # Many labels are best; the pseudo-inverse has the shortest, in labels.
        predictor = host.solve(k_ss, k_ts.T, diag_reg=diag_reg).T
        return jnp.asarray(np.linalg.lstsq(predictor, y)[0], dtype)
    duals, *_ = np.linalg.lstsq(k_ts, y)
    # The inverse of the ridged kernel has full rank: undo it after the least squares.
    return jnp.asarray(host.add_ridge(k_ss, diag_reg) @ duals, dtype)


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
    state: DistillState | None = None,
    chunk: int = 500,
    callback: Callback | None = None,
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
      noise_ratio: share of the entries that hold N(0, 1) noise for good (KIP_rho).
      batch_size: targets of a step, drawn without replacement and as many of each
        class; None takes all targets at every step.
      optimizer: default Adam, step size 1e-3 (intensity).
      initial_images: to start from, in place of 0.2 N(0, 1).
      initial_labels: theirs, in place of balanced ones.
      state: of an earlier call with the same arguments, to continue to the bit.
      chunk: steps between calls of `callback`, in one compiled scan.
      callback: `(steps, state, metrics)` after each chunk; `metrics["loss"]` has the
        loss before each of its steps.

    Raises:
      ValueError: lengths differ, a number is out of range, the kernel of the initial
        images is singular, or `state` has other shapes.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.distillation import kip
      >>> from ntk_privacy.kernels import infinite
      >>> x = jax.random.uniform(jax.random.key(0), (8, 4, 4, 1))
      >>> y = jnp.array([[-1.0]] * 4 + [[1.0]] * 4)
      >>> ntk = infinite.mlp(depth=1)
      >>> key = jax.random.key(1)
      >>> sizes = {"images_per_class": 1, "num_steps": 5}
      >>> kip.distill(x, y, kernel_fn=ntk, key=key, **sizes).images.shape
      (2, 4, 4, 1)
    """
    _checks.at_least(0, diag_reg=diag_reg)
    x, y = jnp.asarray(x_target), jnp.asarray(y_target)
    start = search.init(
        x,
        y,
        key=key,
        images_per_class=images_per_class,
        noise_ratio=noise_ratio,
        learn_labels=learn_labels,
        optimizer=optimizer,
        initial_images=initial_images,
        initial_labels=initial_labels,
    )
    regression.check_kernel_fn(kernel_fn, x)
    state = search.resume(state, start)
    rounding.check_start(kernel_fn, state.images, state.labels, diag_reg=diag_reg)
    sizes = ()
    if batch_size is not None:
        order, sizes = search.class_order(y, batch_size)
        x, y = x[order], y[order]
    found = search.minimize(
        _Objective(kernel_fn, diag_reg),
        (x, y),
        (),
        key=key,
        state=state,
        num_steps=num_steps,
        learn_labels=learn_labels,
        optimizer=optimizer,
        batch_size=batch_size,
        class_sizes=sizes,
        chunk=chunk,
        callback=callback,
    )
    rounding.warn_where_lost(kernel_fn, found.images, found.labels, diag_reg=diag_reg)
    return found
