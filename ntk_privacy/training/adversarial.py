"""Adversarial training: the loss of attacked images, PGD's or TRADES'.

Attacks are made in pixel space, on the network in evaluation mode. The code released
with GUARD clamps normalised images to [0, 1] instead, which destroys them, and attacks
in training mode, which moves the running statistics.

Source: Madry et al., ICLR 2018 (arXiv:1706.06083); Zhang et al., ICML 2019 (TRADES,
arXiv:1901.08573).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_privacy import _checks
from ntk_privacy.training.squeeze import cross_entropies

__all__ = ["PGD", "TRADES", "attacked"]

_START = 1e-3


def attacked(
    loss_fn: Any,
    x: Float[Array, "n h w d"],
    start: Float[Array, "n h w d"],
    *,
    mean: Float[Array, " d"],
    deviation: Float[Array, " d"],
    eps: _checks.Number,
    step: _checks.Number,
    num_steps: int,
) -> Float[Array, "n h w d"]:
    """Returns normalised images that ascend a loss by signs, within the ball and box.

    Args:
      loss_fn: of normalised images, to a scalar; a constant for gradients.
      x: normalised images.
      start: where the ascent begins, normalised.
      mean: of each channel's intensity.
      deviation: of each channel's intensity.
      eps: radius of the l_inf ball, in intensity.
      step: length of a step, in intensity.
      num_steps: steps.
    """
    at = (None, None, None)

    def normalised(pixels):
        return (pixels - mean[at]) / deviation[at]

    def pixels_of(images):
        return images * deviation[at] + mean[at]

    # What augmentation shifts in has intensity 0 to 1 too: it is the mean's.
    centre = pixels_of(jax.lax.stop_gradient(x))
    low = jnp.clip(centre - jnp.asarray(eps, x.dtype), 0, 1)
    high = jnp.clip(centre + jnp.asarray(eps, x.dtype), 0, 1)

    def ascend(pixels, _):
        gradient = jax.grad(lambda p: loss_fn(normalised(p)))(pixels)
        moved = pixels + jnp.asarray(step, x.dtype) * jnp.sign(gradient)
        return jnp.clip(moved, low, high), None

    first = jnp.clip(pixels_of(jax.lax.stop_gradient(start)), low, high)
    found, _ = jax.lax.scan(ascend, first, None, length=num_steps)
    return jax.lax.stop_gradient(normalised(found))


@dataclasses.dataclass(frozen=True)
class _Adversarial:
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    eps: _checks.Number = 1 / 255
    step: _checks.Number | None = None
    num_steps: int = 10

    def __post_init__(self):
        if not 0 < self.eps <= 1:
            told = f"such as eps={self.eps:g}/255" if self.eps > 1 else "above 0"
            raise ValueError(
                f"eps={self.eps} must lie in (0, 1], for intensities do: give a share "
                f"of them, {told}."
            )
        _checks.at_least(1, num_steps=self.num_steps)
        if self.step is not None:
            _checks.positive(step=self.step)
        _checks.same_length(mean=self.mean, deviation=self.deviation)
        for centre, value in zip(self.mean, self.deviation, strict=True):
            _checks.in_range(0, 1, mean=centre)
            _checks.positive(deviation=value)

    def _attack(self, loss_fn, x, start):
        if len(self.mean) != x.shape[-1]:
            raise ValueError(
                f"mean has {len(self.mean)} entries for images of {x.shape[-1]} "
                "channels: give one of each per channel."
            )
        return attacked(
            loss_fn,
            x,
            start,
            mean=jnp.asarray(self.mean, x.dtype),
            deviation=jnp.asarray(self.deviation, x.dtype),
            eps=self.eps,
            step=2.5 * self.eps / self.num_steps if self.step is None else self.step,
            num_steps=self.num_steps,
        )


@dataclasses.dataclass(frozen=True)
class PGD(_Adversarial):
    """Cross-entropy of attacked images alone: a `squeeze.BatchLoss`.

    Attributes:
      mean: of each channel, which normalised the images.
      deviation: of each channel, likewise.
      eps: radius of the l_inf ball, in intensity.
      step: of the attack, in intensity; 2.5 eps over the number of steps if None.
      num_steps: of the attack, from a random point of the ball.
      share: of the batch that is attacked, its first images, which are random; the
        others stay clean. The counterpart of `squeeze.Regularized.share`.

    Raises:
      ValueError: a number is out of range.
    """

    share: _checks.Number = 1.0

    def __post_init__(self):
        super().__post_init__()
        _checks.positive(share=self.share)
        _checks.in_range(0, 1, share=self.share)

    def __call__(self, model, params, stats, x, labels, key):
        """See `squeeze.BatchLoss`."""
        seen = max(1, round(self.share * len(x)))
        few = x[:seen]

        def loss(images):
            return jnp.sum(
                cross_entropies(model.eval_fn(params, stats, images), labels[:seen])
            )

        scale = jnp.asarray(self.eps, x.dtype) / jnp.asarray(self.deviation, x.dtype)
        noise = jax.random.uniform(key, few.shape, x.dtype, -1, 1)
        moved = self._attack(loss, few, few + noise * scale[None, None, None])
        images = jnp.concatenate([moved, x[seen:]])
        logits, after = model.train_fn(params, stats, images)
        return jnp.mean(cross_entropies(logits, labels)), after


@dataclasses.dataclass(frozen=True)
class TRADES(_Adversarial):
    """Cross-entropy of clean images plus beta times the divergence of attacked ones.

    As in the paper of TRADES; the baseline that GUARD released has the cross-entropy of
    the attacked images, and the divergence the other way round.

    Attributes:
      mean, deviation, eps, step, num_steps: as those of `PGD`; the attack starts
        within 0.001 standard normal deviations of the image, in intensity.
      beta: weight of KL(clean || attacked); 6 in the paper.

    Raises:
      ValueError: a number is out of range.
    """

    beta: _checks.Number = 6.0

    def __post_init__(self):
        super().__post_init__()
        _checks.positive(beta=self.beta)

    def __call__(self, model, params, stats, x, labels, key):
        """See `squeeze.BatchLoss`."""
        clean = jax.nn.softmax(model.eval_fn(params, stats, x))

        def divergence(images):
            told = jax.nn.log_softmax(model.eval_fn(params, stats, images))
            return -jnp.sum(jax.lax.stop_gradient(clean) * told)

        scale = _START / jnp.asarray(self.deviation, x.dtype)
        noise = jax.random.normal(key, x.shape, x.dtype)
        images = self._attack(divergence, x, x + noise * scale[None, None, None])
        # One batch for both: the running statistics are those of both.
        logits, after = model.train_fn(params, stats, jnp.concatenate([x, images]))
        natural, moved = jnp.split(jax.nn.log_softmax(logits), 2)
        apart = jnp.sum(jnp.exp(natural) * (natural - moved), axis=1)
        each = cross_entropies(natural, labels) + self.beta * apart
        return jnp.mean(each), after
