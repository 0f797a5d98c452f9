r"""Images of a known family from an adapter, by training on guesses until it comes out.

Who knows how an adapter was trained can train it on any images. With $x_i = o + V u_i$
in a family of k unknowns, Levenberg and Marquardt's iteration moves the $u_i$ until
that training ends at the released factors. It runs in the images' own coordinates: A is
needed where images are alone, $Y = X^\top A_0$, and these numbers are unknowns too
where the start of A is not known.

**Which images are determined.** B_T, of m units by rank r, has the rank N: it holds
N (m + r - N) numbers, and $A_T^\top x_i$ holds the N r that Y takes. So N images of k
unknowns each are determined only if $k \le m + r - N$; under softmax cross-entropy the
rows of B_T sum to zero, which costs one number an image: $k < m + r - N$. From N = r on
B_T has full rank, r m numbers for all: $N k \le r m$, or $r (m - 1)$.

The law has been published for the head of a network, with the unknown start of A, in
the repository and notes of an unreviewed study of exact inversion of adapters; the
derivation for other losses, N > r and the code are this project's own.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ntk_privacy import _checks, _linalg, _versions
from ntk_privacy.models.adapter import Adapter
from ntk_privacy.reconstruction import unit_verdict
from ntk_privacy.reconstruction.verdict import Verdict, told_bound

__all__ = ["Schedule", "Within", "budget", "trained", "within"]

_RANK = 1e-11  # of the largest singular value: below it a direction is not determined
_REACHED = 1e-10  # relative miss of the factors in float64
_ROUNDED = 1e3  # roundoffs of stored factors that a training may miss them by
_MARGIN = 10.0  # standard deviations of an image's error that are stated
_SUMS = 1e-6  # of B: rows that sum to less sum to zero
_FIRST, _LEAST, _MOST = 1e-3, 1e-15, 1e12  # damping


class Schedule(NamedTuple):
    """How an adapter was trained: gradient descent on all images at once.

    Attributes:
      num_steps: of the training.
      learning_rate: of A, B and the bias.
      momentum: heavy ball.
    """

    num_steps: int
    learning_rate: float
    momentum: float = 0.0


class Within(NamedTuple):
    """What was found in the family.

    Attributes:
      images: (N, d).
      coordinates: (N, k) in the family.
      hidden: what else was fitted, such as labels; None without.
      miss: relative distance between the factors that training on them leaves and the
        released ones.
      condition: least over largest singular value of the equations at the images.
      errors: bound on the relative error of each image; inf where there is none.
      certified: errors that are sure.
      verdict: of the whole.
    """

    images: Float[np.ndarray, "n d"]
    coordinates: Float[np.ndarray, "n k"]
    hidden: np.ndarray | None
    miss: float
    condition: float
    errors: Float[np.ndarray, " n"]
    certified: Bool[np.ndarray, " n"]
    verdict: Verdict


def budget(adapter: Adapter, num_images: int) -> float:
    """Returns the most unknowns that each of so many images may have.

    It is m + r - N, one less where the rows of B sum to zero, as under softmax
    cross-entropy; and r m / N, or r (m - 1) / N, from N = r on. The start of A is not
    known.

    Args:
      adapter: the factors.
      num_images: N.

    Raises:
      ValueError: num_images is below 1.
    """
    _checks.at_least(1, num_images=num_images)
    r, m = np.shape(adapter.b_t)
    b = np.asarray(adapter.b_t, np.float64)
    total = np.linalg.norm(b)
    sums = np.linalg.norm(b.sum(1)) / max(total, 1e-300)
    free = m - 1 if sums < max(_SUMS, _ROUNDED * adapter.roundoff) else m
    least = min(r, free)
    each = free + r - num_images if num_images <= least else r * free / num_images
    return float(each)


@_linalg.full_precision
def within(
    adapter: Adapter,
    loss: Callable[..., Array],
    basis: Float[Array | np.ndarray, "..."],
    starts: Float[Array | np.ndarray, "..."],
    schedule: Schedule,
    *,
    kernel: Float[Array | np.ndarray, "..."],
    bias: Float[Array | np.ndarray, "..."] | None = None,
    offset: Float[Array | np.ndarray, "..."] | None = None,
    hidden: Float[Array | np.ndarray, "..."] | None = None,
    max_iterations: int = 60,
) -> Within:
    """Returns the images of a family that training takes to the released factors.

    Certified are images of a training that misses the factors by no more than rounding,
    if there are more equations than unknowns and these have full rank.

    Args:
      adapter: the factors. Without a_0 its numbers at the images are unknowns too.
      loss: of what the layer gives, (N, m), to a scalar; with `hidden` as its second
        argument if that is given. A function that is jitted.
      basis: V, (d, k): the family is `offset + V u`.
      starts: (N, k), images to begin from; the search is local.
      schedule: of the training.
      kernel: of the frozen layer.
      bias: of the layer before training; None is zero.
      offset: of the family; None is zero.
      hidden: other unknowns of the loss to begin from, such as labels.
      max_iterations: of the search.

    Raises:
      ValueError: shapes that do not fit, entries that are not finite, or a number out
        of range.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.models.adapter import Adapter
      >>> from ntk_privacy.reconstruction import adapter_replay
      >>> rng = np.random.default_rng(0)
      >>> x, w, a, v = (rng.normal(size=s) for s in ((2, 9), (9, 6), (9, 4), (9, 3)))
      >>> targets = rng.normal(size=(2, 6))
      >>> loss = lambda z: ((z - targets) ** 2).sum() / 2
      >>> u = rng.normal(size=(2, 3))
      >>> plan = adapter_replay.Schedule(num_steps=5, learning_rate=0.01)
      >>> made = adapter_replay.trained(u @ v.T, a, loss, plan, kernel=w)
      >>> found = adapter_replay.within(
      ...     made, loss, v, u + 0.01, plan, kernel=w
      ... )
      >>> found.verdict.word, bool(np.abs(found.coordinates - u).max() < 1e-8)
      ('exact', True)
    """
    n, k = _checked(adapter, basis, starts, schedule, kernel, bias, offset)
    _checks.at_least(1, max_iterations=max_iterations)
    with _versions.enable_x64(True):
        problem = _problem(adapter, basis, kernel, bias, offset)
        unknown = {"u": jnp.asarray(starts, jnp.float64)}
        if hidden is not None:
            _checks.finite(hidden=hidden)
            unknown["hidden"] = jnp.asarray(hidden, jnp.float64)
        if adapter.a_0 is None:
            # Trained A is the nearest thing to its start.
            at = problem["offset"][None] + unknown["u"] @ problem["basis"].T
            unknown["y"] = at @ problem["a_t"]
        with_bias = adapter.bias_t is not None
        solved = _solve(
            loss, schedule.num_steps, with_bias, max_iterations, unknown, problem,
            (schedule.learning_rate, schedule.momentum, adapter.scale),
        )  # fmt: skip
        solved = jax.tree.map(np.asarray, solved)
    return _judged(adapter, np.asarray(basis, np.float64), offset, solved, n, k)


@_linalg.full_precision
def trained(
    images: Float[Array | np.ndarray, "n d"],
    a_0: Float[Array | np.ndarray, "d r"],
    loss: Callable[..., Array],
    schedule: Schedule,
    *,
    kernel: Float[Array | np.ndarray, "d m"],
    bias: Float[Array | np.ndarray, " m"] | None = None,
    scale: float = 1.0,
    trains_bias: bool = False,
) -> Adapter:
    """Returns the adapter that images leave, trained in float64 from a B of zero.

    Args:
      images: flat, as they enter the layer.
      a_0: A before training.
      loss: of what the layer gives, (n, m), to a scalar.
      schedule: of the training.
      kernel: of the frozen layer.
      bias: of the layer before training; None is zero.
      scale: of the product.
      trains_bias: the bias is trained too.
    """
    with _versions.enable_x64(True):
        x, a, w = (jnp.asarray(leaf, jnp.float64) for leaf in (images, a_0, kernel))
        b = jnp.zeros(w.shape[1]) if bias is None else jnp.asarray(bias, jnp.float64)
        rates = (schedule.learning_rate, schedule.momentum, scale)
        start = jnp.zeros((a.shape[1], w.shape[1]))
        turns, b_t, moved = _trained(
            loss, schedule.num_steps, trains_bias, x, a, w, b, start, rates
        )
        leaves = np.asarray(a + x.T @ turns), np.asarray(b_t), np.asarray(b + moved)
    return Adapter(
        a_t=leaves[0], b_t=leaves[1], a_0=np.asarray(a_0, np.float64),
        bias_t=leaves[2] if trains_bias else None, scale=scale,
    )  # fmt: skip


def _checked(adapter, basis, starts, schedule, kernel, bias, offset):
    """Numbers of images and of unknowns, where all shapes fit."""
    d, m = adapter.shape
    _checks.at_least(1, num_steps=schedule.num_steps)
    _checks.positive(learning_rate=schedule.learning_rate)
    _checks.in_range(0, 1, momentum=schedule.momentum)
    k = np.shape(basis)[-1] if np.ndim(basis) == 2 else 0
    n = np.shape(starts)[0] if np.ndim(starts) == 2 else 0
    shapes = {
        "basis": (basis, (d, max(k, 1))),
        "starts": (starts, (max(n, 1), max(k, 1))),
        "kernel": (kernel, (d, m)),
        "bias": (bias, (m,)),
        "offset": (offset, (d,)),
    }
    for name, (leaf, shape) in shapes.items():
        if leaf is None:
            continue
        if np.shape(leaf) != shape:
            raise ValueError(
                f"{name} has shape {np.shape(leaf)}, the adapter of {d} inputs and "
                f"{m} units and a family of {k} unknowns ask for {shape}."
            )
        _checks.finite(**{name: leaf})
    if not np.any(adapter.moved_b):
        raise ValueError(
            "The factor b_t did not move from its start: the adapter was not trained, "
            "and holds nothing of the images."
        )
    return n, k


def _problem(adapter, basis, kernel, bias, offset) -> dict[str, Any]:
    """What the equations are made of, in float64."""
    d, m = adapter.shape
    v = np.asarray(basis, np.float64)
    o = np.zeros(d) if offset is None else np.asarray(offset, np.float64)
    b = np.zeros(m) if bias is None else np.asarray(bias, np.float64)
    b_0 = np.zeros_like(adapter.moved_b) if adapter.b_0 is None else adapter.b_0
    made = {
        "basis": v, "offset": o, "kernel": kernel, "bias": b, "b_0": b_0,
        "a_t": adapter.a_t, "b_t": adapter.b_t,
        "bias_t": b if adapter.bias_t is None else adapter.bias_t,
    }  # fmt: skip
    if adapter.a_0 is not None:
        inside = np.linalg.qr(np.concatenate([v, o[:, None]], axis=1))[0]
        made |= {"a_0": adapter.a_0, "inside": inside}
        made |= {"moved": inside.T @ adapter.moved_a}
    return {name: jnp.asarray(leaf, jnp.float64) for name, leaf in made.items()}


def _descended(loss, num_steps, with_bias, first, gram, y, start, rates):
    """Trains in the images' coordinates: A = A_0 + X^T P; returns P, B and the bias."""
    rate, momentum, scale = rates

    def step(carry, _):
        now, pace = carry
        p, b, c = now
        seen = y + gram @ p
        signals = jax.grad(loss)(first + scale * seen @ b + c[None])
        moved = (scale * signals @ b.T, scale * seen.T @ signals)
        moved += (signals.sum(0) if with_bias else jnp.zeros_like(c),)
        pace = jax.tree.map(lambda v, g: momentum * v + g, pace, moved)
        return (jax.tree.map(lambda a, v: a - rate * v, now, pace), pace), None

    begin = (jnp.zeros_like(y), start, jnp.zeros(start.shape[1], start.dtype))
    still = jax.tree.map(jnp.zeros_like, begin)
    return jax.lax.scan(step, (begin, still), None, length=num_steps)[0][0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _trained(loss, num_steps, with_bias, x, a, w, b, start, rates):
    first, gram = x @ w + b[None], x @ x.T
    return _descended(loss, num_steps, with_bias, first, gram, x @ a, start, rates)


def _misses(loss, num_steps, with_bias, unknown, problem, rates):
    """How training on guesses misses the factors, each over its size."""
    given = (unknown["hidden"],) if "hidden" in unknown else ()
    x = problem["offset"][None] + unknown["u"] @ problem["basis"].T
    gram = x @ x.T
    y = unknown["y"] if "y" in unknown else x @ problem["a_0"]
    p, b, c = _descended(
        lambda z: loss(z, *given), num_steps, with_bias,
        x @ problem["kernel"] + problem["bias"][None], gram, y, problem["b_0"], rates,
    )  # fmt: skip
    parts = [(b - problem["b_t"], problem["b_t"])]
    if "y" in unknown:
        ends = x @ problem["a_t"]
        parts.append((y + gram @ p - ends, jax.lax.stop_gradient(ends)))
    else:
        inside = (x @ problem["inside"]).T @ p
        parts.append((inside - problem["moved"], problem["a_t"]))
    if with_bias:
        moved = problem["bias_t"] - problem["bias"]
        parts.append((c - moved, moved))
    return jnp.concatenate([(a / jnp.linalg.norm(s)).ravel() for a, s in parts])


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _solve(loss, num_steps, with_bias, most, start, problem, rates):
    """Levenberg-Marquardt, each unknown over the size of its column."""
    flat, shaped = jax.flatten_util.ravel_pytree(start)

    def misses(theta):
        return _misses(loss, num_steps, with_bias, shaped(theta), problem, rates)

    def linear(theta):
        rest, push = jax.linearize(misses, theta)
        return rest, jax.vmap(push)(jnp.eye(len(theta))).T

    def go_on(carry):
        _, rest, _, damping, i, moved = carry
        far = jnp.sum(rest**2) > 1e-31
        return (i < most) & (damping < _MOST) & far & (moved > 1e-16)

    def step(carry):
        theta, rest, jacobian, damping, i, _ = carry
        sizes = jnp.maximum(jnp.linalg.norm(jacobian, axis=0), 1e-300)
        rows = jnp.concatenate(
            [jacobian / sizes[None], jnp.sqrt(damping) * jnp.eye(len(theta))]
        )
        q, upper = jnp.linalg.qr(rows)
        right = -q[: len(rest)].T @ rest
        way = jax.scipy.linalg.solve_triangular(upper, right) / sizes
        tried = misses(theta + way)
        better = jnp.sum(tried**2) < jnp.sum(rest**2)
        theta = jnp.where(better, theta + way, theta)
        rest, jacobian = jax.lax.cond(better, linear, lambda _: (rest, jacobian), theta)
        damping = jnp.where(better, jnp.maximum(damping / 9, _LEAST), damping * 4)
        moved = jnp.linalg.norm(way) / jnp.linalg.norm(theta)
        return theta, rest, jacobian, damping, i + 1, moved

    rest, jacobian = linear(flat)
    begin = (flat, rest, jacobian, jnp.asarray(_FIRST), 0, jnp.asarray(1.0))
    theta, rest, jacobian, _, count, _ = jax.lax.while_loop(go_on, step, begin)
    return shaped(theta), rest, jacobian, count


def _judged(adapter, basis, offset, solved, n, k) -> Within:
    unknown, rest, jacobian, count = solved
    u = unknown["u"]
    images = u @ basis.T + (0 if offset is None else np.asarray(offset))
    miss = float(np.linalg.norm(rest))
    if adapter.a_0 is not None:
        inside = np.linalg.qr(
            np.concatenate([basis, (images[0] - basis @ u[0])[:, None]], axis=1)
        )[0]
        moved = adapter.moved_a
        outside = np.linalg.norm(moved - inside @ (inside.T @ moved))
        miss += float(outside / np.linalg.norm(adapter.a_at(1.0)))
    finite = bool(np.isfinite(jacobian).all() and np.isfinite(miss))
    sizes = np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300) if finite else 1.0
    values, right = np.zeros(1), None
    if finite:
        _, values, right = np.linalg.svd(jacobian / sizes, full_matrices=False)
    condition = float(values[-1] / max(values[0], 1e-300))
    if len(rest) < jacobian.shape[1]:
        condition = 0.0
    errors = np.full(n, np.inf)
    if right is not None and condition > _RANK:
        spread = max(miss, adapter.roundoff) / np.sqrt(
            max(len(rest) - jacobian.shape[1], 1)
        )
        cov = (right.T / values**2) @ right / np.outer(sizes, sizes)
        # Unknowns lie in the order of their names: hidden, u, y.
        first = unknown["hidden"].size if "hidden" in unknown else 0
        for i in range(n):
            part = slice(first + i * k, first + (i + 1) * k)
            trace = np.trace(basis.T @ basis @ cov[part, part])
            size = max(np.linalg.norm(images[i]), 1e-300)
            errors[i] = _MARGIN * spread * np.sqrt(max(trace, 0.0)) / size
    return _said(adapter, unknown, images, miss, condition, errors, int(count))


def _said(adapter, unknown, images, miss, condition, errors, count) -> Within:
    n, k = unknown["u"].shape
    hidden = unknown.get("hidden")
    more = 0.0 if hidden is None else hidden.size / n
    most = budget(adapter, n)
    reached = miss <= max(_REACHED, _ROUNDED * adapter.roundoff)
    known = adapter.a_0 is not None
    counted = f"{k + more:.3g} unknowns an image of {most:.3g} that B tells"
    if known:
        counted += ", and A's start is known"
    certified = np.zeros(n, bool)
    if not reached:
        word = "nothing found"
        reason = (
            f"No training on images of the family was found that ends at the factors: "
            f"the best misses them by {miss:.2g} of their size after {count} steps of "
            "the search; begin elsewhere, or the family, the training or the factors "
            "are others."
        )
    elif condition <= _RANK:
        word = "approximate"
        reason = (
            f"The factors do not determine the images ({counted}): others than these "
            "leave the same ones."
        )
    elif not known and k + more + 1 > most:
        word = "approximate"
        reason = (
            f"The images are isolated, with as many equations as unknowns ({counted}): "
            "others may leave the same factors."
        )
    else:
        certified = errors <= unit_verdict.TOLERANCE
        word = "exact" if certified.any() else "approximate"
        reason = (
            f"Training on {int(certified.sum())} of {n} images ends at the factors "
            f"to {miss:.1g}, with errors of at most "
            f"{told_bound(float(errors[certified].max(initial=0.0)))} ({counted})."
        )
    if not certified.any():
        errors = np.full(n, np.inf)
    verdict = Verdict(word, reason, num_certified=int(certified.sum()))
    errors = np.where(certified, errors, np.inf)
    return Within(
        images, unknown["u"], hidden, miss, condition, errors, certified, verdict
    )
