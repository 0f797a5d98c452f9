r"""Images whose embeddings are the ones that were read from a head.

The trunk is known. A trunk that loses information sends many images to one embedding,
so what `invert` finds is one of them, chosen by a prior, and certified by nothing: it
tells how far the embedding of what it returns is from what was read, no more.

Where a trunk is piecewise linear and keeps all (features at least as many as pixels,
such as a convolution of stride 1), `solve` goes on by Newton's steps, each a least
squares problem on the units that are active, until the embedding agrees to rounding;
and where the Jacobian there has full rank no other image nearby has that embedding.

A network trained end to end tells more. Its convolution kernels have a gradient of
their own, $\sum_i J_\theta(x_i)^\top \delta_i$, whose $\delta_i$ the head has told
(`heads.Embeddings.backward`): further equations on all images together
(`kernel_equations`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from ntk_privacy import _checks, _loop
from ntk_privacy._types import Params

__all__ = ["Equations", "Inverted", "invert", "kernel_equations", "solve"]

EmbedFn = Callable[[Any], Any]

_WEIGHTS = (3.0, 1.0, 0.3, 0.1, 0.01)  # of the prior, over that of the misfit
_AGREES = 1.5  # times the smallest misfit: what a smoother image may cost
_FULL = 1e-3  # least over largest singular value of a Jacobian that hides no direction
_GAINS = 0.9  # of the squared misfit: a Newton step that is worth another one
_IDLE = 3  # steps that are not
_ROUNDED = 1e-4  # relative misfit of an embedding that agrees


class Equations(NamedTuple):
    """What a set of images must fulfil together.

    Attributes:
      fn: (n, height, width, depth) -> values, a pytree.
      values: that they must have.
      weight: of their squared relative misfit, over that of all embeddings.
    """

    fn: Callable[[Any], Any]
    values: Any
    weight: float = 1.0


class Inverted(NamedTuple):
    """Images found from their embeddings. None of them is certified.

    Attributes:
      images: (n, height, width, depth), one an embedding.
      misfits: distance between the embedding of each and the one that was read, over
        that of the latter from the mean of all: 0 agrees, 1 tells nothing.
      weights: of the prior, that each image was found with; 0 where it was solved.
      is_only: the embedding agrees to rounding and its Jacobian has full rank: images
        close to this one have other embeddings. All False by `invert`.
    """

    images: Float[np.ndarray, "n h w d"]
    misfits: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]
    is_only: Bool[np.ndarray, " n"]


def kernel_equations(
    embed_fn: Callable[[Params, Any], Any],
    params: Params,
    backward: Float[Array | np.ndarray, "n length"],
    gradient: Params,
    *,
    weight: float = 1.0,
) -> Equations:
    """Returns the equations that the gradient of a trunk's parameters makes.

    Args:
      embed_fn: (trunk's parameters, images) -> embeddings.
      params: of the trunk, at which the gradient was taken.
      backward: what the head sends back to each embedding, in the order of the images
        to be found: `heads.Embeddings.backward`.
      gradient: of the trunk's parameters, of the scale of the head's.
      weight: see `Equations`.

    Raises:
      ValueError: structures differ.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from ntk_privacy.reconstruction import through_trunk
      >>> def embed(w, x):
      ...     return x.reshape(len(x), -1) @ w
      >>> x, sent = jax.random.normal(jax.random.key(0), (3, 2, 2, 1)), jnp.ones((3, 5))
      >>> w = jnp.ones((4, 5))
      >>> gradient = jax.grad(lambda w: jnp.sum(sent * embed(w, x)))(w)
      >>> told = through_trunk.kernel_equations(embed, w, sent, gradient)
      >>> bool(jnp.allclose(told.fn(x), told.values))
      True
    """
    _checks.same_structure("params", params, "gradient", gradient)
    _checks.at_least(0, weight=weight)
    signals = jnp.asarray(backward, jnp.float32)

    def fn(images):
        _, pull = jax.vjp(lambda p: embed_fn(p, images), params)
        return pull(signals)[0]

    return Equations(fn, gradient, weight)


def _relative(value, target):
    """Squared distance of two pytrees over the squared norm of the second, by leaf."""
    pairs = zip(jax.tree.leaves(value), jax.tree.leaves(target), strict=True)
    parts = [
        jnp.sum((a - b) ** 2) / jnp.maximum(jnp.sum(b**2), 1e-30) for a, b in pairs
    ]
    return sum(parts) / len(parts)


def _roughness(images: Float[Array, "n h w d"]) -> Float[Array, " n"]:
    """Total variation per pixel, rounded off where neighbours are equal."""
    down = jnp.diff(images, axis=1, append=images[:, -1:])
    right = jnp.diff(images, axis=2, append=images[:, :, -1:])
    return jnp.mean(jnp.sqrt(down**2 + right**2 + 1e-6), axis=(1, 2, 3))


def _misfits(embed_fn: EmbedFn, images, embeddings, scales) -> Float[Array, " n"]:
    """Squared relative misfit of every embedding."""
    made = embed_fn(images).reshape(embeddings.shape)
    return jnp.sum((made - embeddings) ** 2, axis=1) / scales


def _scales(embeddings: Float[np.ndarray, "n length"]) -> Float[np.ndarray, " n"]:
    """Squared distances from the mean; squared norms where there is one alone."""
    centred = embeddings - embeddings.mean(0)
    squares = np.sum((centred if len(embeddings) > 1 else embeddings) ** 2, axis=1)
    return np.maximum(squares, 1e-12 * max(float(np.sum(embeddings**2)), 1e-12))


@functools.lru_cache(maxsize=16)
def _step(embed_fn: EmbedFn, fn, num_steps: int, rate: float):
    """One step of all restarts together, and the optimizer."""
    optimizer = optax.scale_by_adam()

    def loss(images, weight, data):
        embeddings, scales, low, high, values, factor = data
        misfits = _misfits(embed_fn, images, embeddings, scales)
        rough = _roughness(images / (high - low)[0])
        total = jnp.sum(misfits + weight * rough)
        if fn is not None:
            total = total + len(images) * factor * _relative(fn(images), values)
        return total

    def step(state, i, data):
        images, weights, opt = state
        values, grads = jax.vmap(jax.value_and_grad(loss), (0, 0, None))(
            images, weights, data
        )
        low, high = data[2:4]
        # Steps are in shares of the range of each channel.
        updates, opt = optimizer.update(grads, opt)
        pace = rate * (0.5 + 0.5 * jnp.cos(jnp.pi * i.astype(images.dtype) / num_steps))
        images = jnp.clip(
            images - pace * jnp.asarray(updates) * (high - low), low, high
        )
        return (images, weights, opt), {"loss": values}

    return step, optimizer


def invert(
    embed_fn: EmbedFn,
    embeddings: Float[Array | np.ndarray, "n length"],
    *,
    key: Array,
    image_shape: tuple[int, int, int],
    bounds: tuple[Any, Any],
    equations: Equations | None = None,
    weights: tuple[float, ...] = _WEIGHTS,
    num_steps: int = 1000,
    learning_rate: float = 0.1,
    batch_size: int = 20,
    callback: Callable[[int, Any, dict[str, Any]], bool | None] | None = None,
) -> Inverted:
    """Searches for smooth images that have these embeddings; it certifies none.

    A restart for every weight of the prior, total variation, runs beside the others.
    Of each image the smoothest is returned whose misfit is at most half above the
    smallest: nothing else is known to the attacker. Many images may share an embedding.

    Args:
      embed_fn: (n, height, width, depth) -> (n, length), of one image apart from the
        others, differentiable: the trunk at the weights that the head was fed by. Give
        one function for all calls: another one is compiled anew.
      embeddings: as they were read.
      key: typed key of the starts.
      image_shape: (height, width, depth) in pixels.
      bounds: smallest and largest intensity, scalar or per channel.
      equations: on all images together, in their order.
      weights: of the prior; one restart each.
      num_steps: of Adam.
      learning_rate: at its start, in shares of the bounds.
      batch_size: embeddings that are searched for at once; all where there are
        equations.
      callback: see `_loop.run`.

    Raises:
      ValueError: embeddings that are not finite or of another length than the trunk's,
        or a number out of range.

    Example:
      >>> import jax
      >>> from ntk_privacy.reconstruction import through_trunk
      >>> key = jax.random.key(0)
      >>> images = jax.random.uniform(key, (2, 4, 4, 1))
      >>> def halves(x):
      ...     return x.reshape(len(x), 8, 2).mean(2)
      >>> found = through_trunk.invert(
      ...     halves, halves(images), key=key, image_shape=(4, 4, 1), bounds=(0.0, 1.0)
      ... )
      >>> bool((found.misfits < 0.1).all()), bool(found.is_only.any())
      (True, False)
    """
    _checks.typed_key(key=key)
    _checks.at_least(1, num_steps=num_steps, batch_size=batch_size)
    _checks.positive(learning_rate=learning_rate)
    target, low, high = _checked(embed_fn, embeddings, image_shape, bounds)
    if not weights:
        raise ValueError("weights is empty: give a weight of the prior, such as 0.01.")
    for weight in weights:
        _checks.at_least(0, weights=weight)
    n, k = len(target), len(weights)
    scales = _scales(target)
    size = n if equations is not None else min(batch_size, n)
    fn = None if equations is None else equations.fn
    step, optimizer = _step(embed_fn, fn, int(num_steps), float(learning_rate))
    values, factor = (None, 0.0) if equations is None else equations[1:]
    images, misfits = np.zeros((k, n, *image_shape), np.float32), np.zeros((k, n))
    for first in range(0, n, size):
        # The last chunk overlaps the one before: one shape, one program.
        begin = min(first, n - size)
        part = slice(begin, begin + size)
        data = (target[part], scales[part], low, high, values, factor)
        data = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), data)
        draw = jax.random.uniform(
            jax.random.fold_in(key, first), (k, size, *image_shape), jnp.float32,
            minval=0.45,
            maxval=0.55,
        )  # fmt: skip
        start = low + (high - low) * draw
        state = (start, jnp.asarray(weights, jnp.float32), optimizer.init(start))
        state, _ = _loop.run(step, state, data, num_steps=num_steps, callback=callback)
        images[:, part] = state[0]
        for j, each in enumerate(state[0]):
            misfits[j, part] = _jitted_misfits(embed_fn, each, *data[:2])
    best = _smoothest(misfits, np.asarray(weights))
    rows = np.arange(n)
    return Inverted(
        images=images[best, rows],
        misfits=np.sqrt(misfits[best, rows]),
        weights=np.asarray(weights, np.float64)[best],
        is_only=np.zeros(n, bool),
    )


_jitted_misfits = jax.jit(_misfits, static_argnums=0)


def _smoothest(misfits, weights) -> np.ndarray:
    """The largest weight whose misfit is near the smallest, per image."""
    near = np.sqrt(misfits) <= _AGREES * np.sqrt(misfits.min(0))
    return np.where(near, weights[:, None], -1.0).argmax(0)


def _checked(embed_fn, embeddings, image_shape, bounds):
    """Embeddings in float32 and the bounds, or one sentence that says what is wrong."""
    target = np.asarray(embeddings, np.float32)
    if target.ndim != 2 or not target.size:
        raise ValueError(
            f"embeddings have shape {target.shape}: give one row per image, at least "
            "one."
        )
    _checks.finite(embeddings=target)
    if len(image_shape) != 3:
        raise ValueError(
            f"image_shape={tuple(image_shape)} has {len(image_shape)} numbers: give "
            "(height, width, depth) in pixels."
        )
    for size in image_shape:
        _checks.at_least(1, image_shape=size)
    example = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    made = jax.eval_shape(embed_fn, example).shape
    if len(made) < 2 or made[0] != 2 or np.prod(made[1:]) != target.shape[1]:
        raise ValueError(
            f"embed_fn maps 2 images of {tuple(image_shape)} to shape {made}, but the "
            f"embeddings have length {target.shape[1]}: give the trunk that fed this "
            "head, one row per image."
        )
    low, high = (
        jnp.broadcast_to(jnp.asarray(each, jnp.float32), (1, 1, *image_shape))
        for each in bounds
    )
    if not bool(jnp.all(low < high)):
        raise ValueError(
            f"bounds={bounds} must be the smallest intensity and a larger one."
        )
    return target, low, high


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _newton(embed_fn, images, embeddings, num_steps, num_solves):
    """Least squares on the active set, repeated, of every image for itself."""

    def one(x, target):
        def embed(x):
            return embed_fn(x[None]).reshape(-1)

        def step(state):
            x, best, least, idle, i = state
            made, push = jax.linearize(embed, x)
            pull = jax.linear_transpose(push, x)
            damping = 1e-7 * jnp.vdot(push(x), push(x)) / (jnp.vdot(x, x) + 1e-12)
            move, _ = jax.scipy.sparse.linalg.cg(
                lambda v: pull(push(v))[0] + damping * v,
                pull(target - made)[0],
                maxiter=num_solves,
                tol=1e-7,
            )
            # Half a step where a whole one crosses too many borders.
            tried = jnp.stack([x + s * move for s in (1.0, 0.5, 0.25)])
            misfits = jax.vmap(lambda t: jnp.sum((embed(t) - target) ** 2))(tried)
            pick = jnp.argmin(misfits)
            least_now, x = misfits[pick], tried[pick]
            best = jnp.where(least_now < least, x, best)
            idle = jnp.where(least_now < _GAINS * least, 0, idle + 1)
            return x, best, jnp.minimum(least_now, least), idle, i + 1

        def goes_on(state):
            _, _, least, idle, i = state
            settled = least < 1e-14 * jnp.sum(target**2)
            return (i < num_steps) & (idle < _IDLE) & ~settled

        first = jnp.sum((embed(x) - target) ** 2)
        zero = jnp.asarray(0, jnp.int32)
        return jax.lax.while_loop(goes_on, step, (x, x, first, zero, zero))[1]

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(lambda pair: one(*pair), (images, embeddings))


def solve(
    embed_fn: EmbedFn,
    embeddings: Float[Array | np.ndarray, "n length"],
    start: Inverted,
    *,
    bounds: tuple[Any, Any],
    num_steps: int = 20,
    num_solves: int = 300,
) -> Inverted:
    """Moves images until their embeddings agree to rounding, where algebra can.

    Each Newton step is least squares on the pieces where a trunk of convolutions and
    ReLUs is linear; three or four pieces settle it where a unit's kept value tells that
    it is active. Where the trunk has fewer features than pixels no embedding tells an
    image, and what was found stands as it is.

    Args:
      embed_fn: see `invert`.
      embeddings: that were inverted.
      start: by `invert`.
      bounds: see `invert`; the algebra does not need them, and does not clip to them.
      num_steps: Newton steps.
      num_solves: of conjugate gradients, each.

    Returns:
      Images that agree to within 1e-4, with their misfits, and `is_only` where the
      Jacobian's condition is below 1,000; the others as they were.

    Raises:
      ValueError: see `invert`.
    """
    _checks.at_least(1, num_steps=num_steps, num_solves=num_solves)
    shape = start.images.shape[1:]
    target, _, _ = _checked(embed_fn, embeddings, shape, bounds)
    _checks.same_length(embeddings=target, images=start.images)
    if target.shape[1] < np.prod(shape):
        return start
    solved = _newton(
        embed_fn, jnp.asarray(start.images), jnp.asarray(target), num_steps, num_solves
    )
    made = np.sqrt(_jitted_misfits(embed_fn, solved, target, _scales(target)))
    # Short of agreement a step moves mostly where no feature sees it.
    better = (made < start.misfits) & (made < _ROUNDED)
    images = np.where(better[:, None, None, None], solved, start.images)
    misfits = np.where(better, made, start.misfits)
    only = [
        bool(agrees) and _full_rank(embed_fn, image)
        for image, agrees in zip(images, misfits < _ROUNDED, strict=True)
    ]
    weights = np.where(better, 0.0, start.weights)
    return Inverted(images, misfits, weights, np.asarray(only, bool))


def _full_rank(embed_fn: EmbedFn, image: Float[np.ndarray, "h w d"]) -> bool:
    gram = np.asarray(_gram(embed_fn, jnp.asarray(image)), np.float64)
    squares = np.linalg.eigvalsh(gram)
    # The Gram matrix of float32 is rounded at a tenth of this.
    return bool(squares[0] > _FULL**2 * squares[-1])


@functools.partial(jax.jit, static_argnums=0)
def _gram(embed_fn, image):
    with jax.default_matmul_precision("highest"):
        jacobian = jax.jacfwd(lambda x: embed_fn(x[None]).reshape(-1))(image)
        flat = jacobian.reshape(-1, image.size)
        return flat.T @ flat
