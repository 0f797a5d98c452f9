r"""Training of the first-order Taylor model, in closed form.

For $f_{lin}(x) = f_0(x) + \langle \theta - \theta_0, \nabla f_0(x)\rangle$ and the loss
$\tfrac12 \sum (y - f)^2$, every first-order method moves inside the row space of the
Jacobian, $\theta - \theta_0 = J^T \alpha$, and acts on each eigenvalue of
$K_0 = J J^T = V \Lambda V^T$ alone: $\alpha = V s(\Lambda) V^T (y - f_0)$ with a scalar
gain $s(\lambda)$. One eigendecomposition replaces all iterations.

Where $\lambda = 0$ (an image twice, more outputs than parameters) nothing that training
does shows: the labels keep their part there for good, and the duals, which steps
would let grow without effect on a parameter, are 0 there: the shortest of those that
give these parameters.

Source: Loo et al., ICLR 2024 (arXiv:2302.01428), section 3; Lee et al., NeurIPS 2019.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks, _linalg, _tree
from ntk_privacy._linalg import matmul
from ntk_privacy._types import ApplyFn, Params

__all__ = [
    "Gain",
    "Spectrum",
    "apply_linearized",
    "decompose",
    "duals",
    "gradient_descent",
    "gradient_flow",
    "loss_at",
    "params_at",
    "residuals",
    "steps_at_loss",
    "time_at_loss",
]

Gain = Callable[[Float[Array, " m"]], Float[Array, " m"]]
"""Scalar gain s(lambda): the duals in the eigenbasis per unit of initial residual."""

# Of eigenvalues, in roundings of the largest entry times sqrt(m): more outputs than
# parameters leave up to 0.04 in float32, digits without duplicates start at 8000.
_NULL = 4.0


class Spectrum(NamedTuple):
    """Eigendecomposition of K_0 over all n c outputs, and the initial residual.

    eigenvalues: ascending; those that rounding of the kernel could have made are 0.
    eigenvectors: columns. coefficients: of y - f_0 in the eigenbasis. num_outputs: c.
    """

    eigenvalues: Float[Array, " m"]
    eigenvectors: Float[Array, "m m"]
    coefficients: Float[Array, " m"]
    num_outputs: int


def decompose(
    kernel: Float[Array, "n n c c"],
    fx_train_0: Float[Array, "n c"],
    y_train: Float[Array, "n c"],
) -> Spectrum:
    """Decomposes the full kernel of the training images.

    On the host in float64; where traced, in the dtype of the kernel. Eigenvalues below
    4 sqrt(m) roundings of the largest entry count as 0; where traced, those below 4 m
    roundings of the largest eigenvalue too, which `eigh` itself could have made.

    Args:
      kernel: NTK with all output blocks (`trace_outputs=False`).
      fx_train_0: outputs at initialisation.
      y_train: targets.

    Raises:
      ValueError: labels do not have one row per image and one column per output, the
        kernel not all blocks of such outputs, or something is not finite (unless
        traced).

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.training import linearized
      >>> kernel = jnp.eye(2)[:, :, None, None]
      >>> spectrum = linearized.decompose(kernel, jnp.zeros((2, 1)), jnp.ones((2, 1)))
      >>> print(spectrum.eigenvalues)
      [1. 1.]
    """
    n, c = fx_train_0.shape
    if y_train.shape != (n, c):
        raise ValueError(
            f"y_train has shape {y_train.shape}, the outputs have {(n, c)}: give one "
            "row per image and one column per output."
        )
    if jnp.shape(kernel) != (n, n, c, c) or not n:
        raise ValueError(
            f"kernel has shape {jnp.shape(kernel)}, expected {(n, n, c, c)} of at "
            "least one image: take it with trace_outputs=False."
        )
    _checks.floating(kernel=jnp.asarray(kernel))
    if not _checks.concrete(kernel, fx_train_0, y_train):
        return _traced(kernel, y_train - fx_train_0)
    dtype = kernel.dtype
    square = np.asarray(kernel, np.float64).transpose(0, 2, 1, 3).reshape(n * c, n * c)
    if not np.isfinite(square).all():
        raise ValueError(
            "kernel has NaN or infinite entries: look at the images and parameters it "
            "was made of."
        )
    _checks.finite_data(fx_train_0=fx_train_0, y_train=y_train)
    values, vectors = np.linalg.eigh(0.5 * (square + square.T))
    scale = np.finfo(dtype).eps * np.sqrt(n * c) * np.diag(square).max()
    values[values <= _NULL * scale] = 0
    change = np.asarray(y_train, np.float64) - np.asarray(fx_train_0, np.float64)
    coefficients = vectors.T @ change.reshape(-1)
    return Spectrum(
        jnp.asarray(values, dtype),
        jnp.asarray(vectors, dtype),
        jnp.asarray(coefficients, dtype),
        c,
    )


def _traced(kernel: Float[Array, "n n c c"], change: Float[Array, "n c"]) -> Spectrum:
    n, c = change.shape
    square = kernel.transpose(0, 2, 1, 3).reshape(n * c, n * c)
    values, vectors = jnp.linalg.eigh(0.5 * (square + square.T))
    entry = (n * c) ** 0.5 * jnp.max(jnp.diagonal(square))
    scale = jnp.maximum(entry, n * c * jnp.max(jnp.abs(values)))
    null = values <= _NULL * jnp.finfo(kernel.dtype).eps * scale
    coefficients = matmul(vectors.T, change.reshape(-1, 1))[:, 0]
    return Spectrum(jnp.where(null, 0, values), vectors, coefficients, c)


def gradient_flow(time: float | Float[Array, ""]) -> Gain:
    """Returns the gain of gradient flow on the summed loss at `time`.

    Args:
      time: in units of 1 / eigenvalue; `jnp.inf` is convergence.

    Raises:
      ValueError: a time below 0, or none.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.training import linearized
      >>> gain = linearized.gradient_flow(jnp.inf)
      >>> print(gain(jnp.array([2.0, 4.0])))  # 1 / eigenvalue at convergence
      [0.5  0.25]
    """
    if _checks.concrete(time) and not np.asarray(time) >= 0:
        raise ValueError(f"time={time} must be at least 0; inf is convergence.")

    def gain(eigenvalues):
        t = jnp.asarray(time, eigenvalues.dtype)
        moves = eigenvalues > 0
        safe = jnp.where(moves, eigenvalues, 1)
        # At t = inf and eigenvalue 0 there is no product; the gain is t, as before.
        exponent = jnp.where(jnp.isinf(t), jnp.inf, safe * t)
        return jnp.where(moves, -jnp.expm1(-exponent) / safe, t)

    return gain


def _check_rates(learning_rate: float, momentum: float) -> None:
    _checks.positive(learning_rate=learning_rate)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum} must lie in [0, 1): use 0.9, or 0.")


def gradient_descent(
    steps: int | Array, *, learning_rate: float, momentum: float = 0.0
) -> Gain:
    r"""Returns the gain of gradient descent, with heavy-ball momentum if asked.

    Per eigenvalue the dual $a$ and its velocity $u$ follow the affine recursion
    $u \leftarrow \beta u + \eta (1 - \lambda a)$, $a \leftarrow a + u$ from zero. Its
    k-th power is taken by repeated squaring: about 20 products for 10^6 steps.

    Args:
      steps: number of steps, below 2^31.
      learning_rate: on the summed loss; a rate for the mean loss is divided by n c.
      momentum: beta, in [0, 1).

    Raises:
      ValueError: a rate that is not positive, a momentum out of range, or steps that
        are no whole number from 0 to 2^31 - 1.
    """
    _check_rates(learning_rate, momentum)
    if _checks.concrete(steps):
        count = np.asarray(steps).item()
        _checks.at_least(0, steps=count)
        _checks.in_range(0, 2**31 - 1, steps=count)

    def gain(eigenvalues):
        dtype = eigenvalues.dtype
        eta, beta = jnp.asarray(learning_rate, dtype), jnp.asarray(momentum, dtype)
        el = eta * eigenvalues
        ones = jnp.ones_like(el)
        # Less the identity: a small step would be rounded off beside the 1.
        step = (
            jnp.stack(
                [
                    jnp.stack([-el, beta * ones], -1),
                    jnp.stack([-el, (beta - 1) * ones], -1),
                ],
                axis=-2,
            ),
            jnp.stack([eta * ones, eta * ones], -1),
        )
        _, offset = _repeated(step, jnp.asarray(steps, jnp.int32))
        return offset[:, 0]

    return gain


@jax.jit
def _repeated(step: tuple[Array, Array], count: Int[Array, ""]) -> tuple[Array, Array]:
    """Returns an affine map applied `count` times, as `_after` gives it."""
    nothing = jax.tree.map(jnp.zeros_like, step)

    def body(i, carry):
        power, total = carry
        taken = _after(power, total)
        odd = (count >> i) & 1 == 1
        total = jax.tree.map(lambda a, b: jnp.where(odd, a, b), taken, total)
        return _after(power, power), total

    return jax.lax.fori_loop(0, 31, body, (step, nothing))[1]


def _after(g: tuple[Array, Array], f: tuple[Array, Array]) -> tuple[Array, Array]:
    """The affine map g after f: matrices less the identity, offsets."""
    (mg, bg), (mf, bf) = g, f
    return mg + mf + matmul(mg, mf), matmul(mg, bf[..., None])[..., 0] + bf + bg


def _gains(spectrum: Spectrum, gain: Gain) -> tuple[Array, Array]:
    """Returns the gains, 0 in null directions, and the share of the residual left."""
    values = spectrum.eigenvalues
    moves = values > 0
    gains = jnp.where(moves, gain(jnp.where(moves, values, 1)), 0)
    return gains, 1 - values * gains


def residuals(spectrum: Spectrum, gain: Gain) -> Float[Array, "n c"]:
    """Returns y - f on the training images after training with `gain`.

    Args:
      spectrum: of `decompose`.
      gain: of the training.
    """
    _, left = _gains(spectrum, gain)
    flat = matmul(spectrum.eigenvectors, (left * spectrum.coefficients)[:, None])
    return flat.reshape(-1, spectrum.num_outputs)


def duals(spectrum: Spectrum, gain: Gain) -> Float[Array, "n c"]:
    """Returns alpha, with theta - theta_0 = sum_i,c alpha_i^c grad f_0^c(x_i).

    The shortest such alpha: where the kernel is singular others do the same.

    Args:
      spectrum: of `decompose`.
      gain: of the training, such as `gradient_flow(time)`.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.training import linearized
      >>> kernel = jnp.eye(2)[:, :, None, None]
      >>> spectrum = linearized.decompose(kernel, jnp.zeros((2, 1)), jnp.ones((2, 1)))
      >>> print(linearized.duals(spectrum, linearized.gradient_flow(jnp.inf)).T)
      [[1. 1.]]
    """
    gains, _ = _gains(spectrum, gain)
    flat = matmul(spectrum.eigenvectors, (gains * spectrum.coefficients)[:, None])
    return flat.reshape(-1, spectrum.num_outputs)


def loss_at(spectrum: Spectrum, gain: Gain) -> Float[Array, ""]:
    """Returns the mean over images and outputs of (y - f)^2 / 2.

    Args:
      spectrum: of `decompose`.
      gain: of the training.
    """
    _, left = _gains(spectrum, gain)
    return 0.5 * jnp.mean((left * spectrum.coefficients) ** 2)


def time_at_loss(spectrum: Spectrum, loss: float) -> Float[Array, ""]:
    """Returns the gradient-flow time at which the mean loss has fallen to `loss`.

    0 if it starts below; inf if a null direction of the kernel keeps it above, and
    `loss_at(spectrum, gradient_flow(jnp.inf))` is where it ends. By bisection in log
    time.

    Args:
      spectrum: from `decompose`.
      loss: mean of (y - f)^2 / 2, above 0.

    Raises:
      ValueError: loss not above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.training import linearized
      >>> kernel = jnp.eye(2)[:, :, None, None]
      >>> spectrum = linearized.decompose(kernel, jnp.zeros((2, 1)), jnp.ones((2, 1)))
      >>> bool(linearized.time_at_loss(spectrum, 0.5) == 0)  # where it starts
      True
    """
    _checks.positive(loss=loss)
    dtype = spectrum.eigenvalues.dtype
    largest = jnp.max(spectrum.eigenvalues)
    scale = jnp.where(largest > 0, largest, 1)

    def above(log_t):
        decay = jnp.exp(-2 * spectrum.eigenvalues / scale * jnp.exp(log_t))
        return 0.5 * jnp.mean(decay * spectrum.coefficients**2) > loss

    low, high = jnp.asarray(-40.0, dtype), jnp.asarray(60.0, dtype)

    def body(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        up = above(middle)
        return jnp.where(up, middle, low), jnp.where(up, high, middle)

    _, end = jax.lax.fori_loop(0, 100, body, (low, high))
    time = jnp.where(above(low), jnp.exp(end) / scale, 0.0)
    return jnp.where(above(high), jnp.inf, time)


def steps_at_loss(
    spectrum: Spectrum,
    loss: float,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    max_steps: int = 1_000_000,
) -> int | Int[Array, ""]:
    """Returns the first step of gradient descent with a mean loss below `loss`.

    Counts the steps of the scalar recursions, some microseconds each: with momentum the
    loss oscillates, so no bisection finds the first one. `max_steps` if none is, at
    once where null directions of the kernel keep the loss above. An array if traced.

    Args:
      spectrum: from `decompose`.
      loss: mean of (y - f)^2 / 2, above 0.
      learning_rate: on the summed loss.
      momentum: beta, in [0, 1).
      max_steps: where to stop.

    Raises:
      ValueError: a number out of range.
    """
    _checks.positive(loss=loss)
    _checks.at_least(1, max_steps=max_steps)
    _check_rates(learning_rate, momentum)
    dtype = spectrum.eigenvalues.dtype
    numbers = (jnp.asarray(v, dtype) for v in (loss, learning_rate, momentum))
    reached = loss_at(spectrum, gradient_flow(jnp.inf)) < loss
    found = _first_step_below(
        spectrum.eigenvalues,
        spectrum.coefficients,
        *numbers,
        jnp.asarray(max_steps, jnp.int32),
        reached,
    )
    return int(found) if _checks.concrete(found) else found


@jax.jit
def _first_step_below(
    values, coefficients, loss, learning_rate, momentum, max_steps, reached
):
    def above(carry):
        steps, left, _ = carry
        # A NaN counts as above: it never falls below.
        return (steps < max_steps) & ~(0.5 * jnp.mean(left**2) < loss)

    def step(carry):
        steps, left, velocity = carry
        velocity = momentum * velocity + learning_rate * values * left
        return steps + 1, left - velocity, velocity

    steps = jnp.where(reached, jnp.zeros_like(max_steps), max_steps)
    start = (steps, coefficients, jnp.zeros_like(coefficients))
    return jax.lax.while_loop(above, step, start)[0]


@_linalg.full_precision
def params_at(
    apply_fn: ApplyFn,
    params_0: Params,
    x_train: Float[Array, "n ..."],
    duals: Float[Array, "n c"],
) -> Params:
    """Returns theta_0 + J^T duals, by one reverse-mode derivative.

    Args:
      apply_fn: the network.
      params_0: parameters at initialisation.
      x_train: training images.
      duals: from `duals`.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.training import linearized
      >>> def apply_fn(params, x):
      ...     return x.reshape(len(x), -1) @ params
      >>> x = jnp.ones((1, 2, 1, 1))
      >>> params_0, duals = jnp.zeros((2, 1)), jnp.ones((1, 1))
      >>> print(linearized.params_at(apply_fn, params_0, x, duals).T)
      [[1. 1.]]
    """
    _, pullback = jax.vjp(lambda p: apply_fn(p, x_train), params_0)
    return _tree.add(params_0, pullback(duals)[0])


@_linalg.full_precision
def apply_linearized(
    apply_fn: ApplyFn,
    params_0: Params,
    params: Params,
    x: Float[Array, "n ..."],
) -> Float[Array, "n c"]:
    """Returns f_0(x) + <theta - theta_0, grad f_0(x)>, by one forward derivative.

    Args:
      apply_fn: `(params, images) -> outputs`.
      params_0: theta_0, at which it is linearized.
      params: theta.
      x: images.
    """
    f0, change = jax.jvp(
        lambda p: apply_fn(p, x), (params_0,), (_tree.sub(params, params_0),)
    )
    return f0 + change
