r"""What a client of federated learning shares: averaged, clipped, noised, compressed.

Everything here takes and returns pytrees of the parameters' structure, is pure, and can
be jitted. Losses are `loss_fn(params, images, labels)`, means over a batch.

- FedAvg (McMahan et al., 2017, arXiv:1602.05629): `client_update`.
- DP-SGD (Abadi et al., 2016, arXiv:1607.00133): `clipped_mean_gradient`; its privacy is
  `gaussian_mechanism.epsilon`.
- Compression: `top_k` (Aji and Heafield, 2017, arXiv:1704.05021), and `quantise`, to
  nearest, or at random and without bias (Alistarh et al., 2017, arXiv:1610.02132).
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ntk_privacy import _checks, _tree
from ntk_privacy._types import Params

__all__ = ["LossFn", "client_update", "clipped_mean_gradient", "quantise", "top_k"]

LossFn = Callable[[Params, Array, Array], Float[Array, ""]]
"""`(params, images, labels) -> loss`: the mean over the batch."""

T = TypeVar("T")


def client_update(
    loss_fn: LossFn,
    params: T,
    batches: tuple[Float[Array, "steps b ..."], Shaped[Array, "k b ..."]],
    *,
    step_size: float | Float[Array, ""],
) -> T:
    r"""Returns $\theta_0 - \theta_T$ after one step of SGD on each batch.

    It is what a server subtracts, and what one gradient times the step size is for one
    batch. It is a difference of weights, and rounded as coarsely as they are.

    Args:
      loss_fn: mean loss of a batch.
      params: that the client starts from.
      batches: images and labels, one batch a step.
      step_size: of every step.

    Raises:
      ValueError: images and labels of another number of batches.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.training import shared_update
      >>> def loss_fn(w, x, y):
      ...     return jnp.mean((x @ w - y) ** 2) / 2
      >>> x, y = jnp.ones((3, 1, 1)), jnp.ones((3, 1))
      >>> sent = shared_update.client_update(
      ...     loss_fn, jnp.zeros(1), (x, y), step_size=0.5
      ... )
      >>> print(sent)  # three times half of the way to 1
      [-0.875]
    """
    _checks.same_length(images=batches[0], labels=batches[1])

    def step(now, batch):
        return _tree.axpy(-step_size, jax.grad(loss_fn)(now, *batch), now), None

    return _tree.sub(params, jax.lax.scan(step, params, batches)[0])


def clipped_mean_gradient(
    loss_fn: LossFn,
    params: T,
    images: Float[Array, "n ..."],
    labels: Shaped[Array, "m ..."],
    *,
    clip_norm: float | Float[Array, ""],
    noise_multiplier: float | Float[Array, ""],
    key: Array,
) -> T:
    """Returns the gradient of DP-SGD.

    Each image's gradient is scaled down to a norm of `clip_norm` at most, over all
    leaves; their sum takes Gaussian noise of standard deviation
    `noise_multiplier * clip_norm` in every entry, and is divided by their number.

    Args:
      loss_fn: mean loss of a batch; here of one image at a time.
      params: at which the gradient is taken.
      images: of the batch.
      labels: one an image.
      clip_norm: C; infinity clips nothing, and takes no noise.
      noise_multiplier: sigma; 0 adds none.
      key: typed key of the noise.

    Raises:
      ValueError: another number of labels than images, or numbers out of range.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.training import shared_update
      >>> def loss_fn(w, x, y):
      ...     return jnp.mean((x @ w - y) ** 2) / 2
      >>> sent = shared_update.clipped_mean_gradient(
      ...     loss_fn, jnp.zeros(1), jnp.ones((2, 1)), jnp.array([0.5, 8.0]),
      ...     clip_norm=1.0, noise_multiplier=0.0, key=jax.random.key(0),
      ... )
      >>> print(sent)  # of -0.5 and -8
      [-0.75]
    """
    _checks.same_length(images=images, labels=labels)
    _checks.typed_key(key=key)
    if _checks.concrete(clip_norm, noise_multiplier):
        _checks.at_least(0, noise_multiplier=float(noise_multiplier))
        if not clip_norm > 0:
            raise ValueError(f"clip_norm={clip_norm} must be above 0.")
        if not jnp.isfinite(clip_norm) and noise_multiplier > 0:
            raise ValueError(
                f"clip_norm={clip_norm} with noise_multiplier={noise_multiplier}: "
                "noise is so many norms; clip to a finite one, or add none."
            )

    def add(total, example):
        one = jax.grad(loss_fn)(params, *(part[None] for part in example))
        size = jnp.sqrt(_tree.squared_norm(one))
        share = jnp.where(size > clip_norm, clip_norm / size, 1.0)
        return _tree.axpy(share, one, total), None

    zero = jax.tree.map(jnp.zeros_like, params)
    total = jax.lax.scan(add, zero, (images, labels))[0]
    # An infinite norm times 0 is no number.
    deviation = jnp.where(noise_multiplier > 0, noise_multiplier * clip_norm, 0.0)
    noise = _normal(key, total)
    return _tree.scale(1 / len(images), _tree.axpy(deviation, noise, total))


def _keys(key: Array, tree: T) -> T:
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, list(jax.random.split(key, len(leaves))))


def _normal(key: Array, tree: T) -> T:
    return jax.tree.map(
        lambda k, leaf: jax.random.normal(k, leaf.shape, leaf.dtype),
        _keys(key, tree),
        tree,
    )


def top_k(update: T, *, share: float) -> T:
    """Returns the largest entries of every leaf, by size, and 0 for all others.

    Args:
      update: to compress.
      share: of the entries of each leaf that are kept, at least one.

    Raises:
      ValueError: a share that is none.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.training import shared_update
      >>> print(shared_update.top_k(jnp.array([1.0, -3.0, 2.0, 0.5]), share=0.5))
      [ 0. -3.  2.  0.]
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must lie in (0, 1].")

    def one(leaf):
        flat = leaf.reshape(-1)
        count = max(1, round(share * flat.size))
        kept = jax.lax.top_k(jnp.abs(flat), count)[1]
        return jnp.zeros_like(flat).at[kept].set(flat[kept]).reshape(leaf.shape)

    return jax.tree.map(one, update)


def quantise(update: T, *, bits: int, key: Array | None = None) -> T:
    r"""Returns every leaf on a grid of $2^{bits} - 1$ values, symmetric around 0.

    The step is the leaf's largest size over $2^{bits - 1} - 1$.

    Args:
      update: to compress.
      bits: of a number, from 2 to 16.
      key: typed key; with it numbers go up or down at random, so that their mean is
        right, without it to the nearest value.

    Raises:
      ValueError: bits out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.training import shared_update
      >>> print(shared_update.quantise(jnp.array([1.0, -0.2, 0.6]), bits=2))
      [ 1. -0.  1.]
    """
    _checks.in_range(2, 16, bits=bits)
    most = 2 ** (bits - 1) - 1

    def one(leaf, k):
        step = jnp.max(jnp.abs(leaf)) / most
        scaled = leaf / jnp.where(step > 0, step, 1)
        if k is None:
            return jnp.round(scaled) * step
        up = jax.random.uniform(k, leaf.shape, leaf.dtype)
        # The largest is whole but for rounding, which may take it beyond the grid.
        return jnp.clip(jnp.floor(scaled + up), -most, most) * step

    if key is None:
        return jax.tree.map(lambda leaf: one(leaf, None), update)
    _checks.typed_key(key=key)
    return jax.tree.map(one, update, _keys(key, update))
