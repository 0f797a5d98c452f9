"""The momentum iterative method: ascent along the sum of normalised gradients.

Source: Dong et al., CVPR 2018 (arXiv:1710.06081); defaults of GUARD's evaluation
(arXiv:2403.10045), which divides by the l_1 norm of the whole batch's gradient.
"""

from jaxtyping import Array, Float, Int

from ntk_privacy import _checks
from ntk_privacy.evasion import pgd, settings
from ntk_privacy.evasion.task import LogitsFn, carry_out
from ntk_privacy.evasion.threat_model import Adversarial, ThreatModel

__all__ = ["METHODS", "attack"]


def attack(
    logits_fn: LogitsFn,
    x: Float[Array, "n h w c"],
    y: Int[Array, " m"],
    *,
    key: Array,
    threat_model: ThreatModel,
    num_steps: int = 20,
    step: _checks.Number | None = None,
    decay: _checks.Number = 1.0,
    over: str = "sample",
) -> Adversarial:
    """Ascends the cross-entropy from x with momentum; returns the last iterate.

    Args:
      logits_fn: see `task.LogitsFn`.
      x: images in the box.
      y: labels.
      key: typed key, for a random model only.
      threat_model: what the attacker may do.
      num_steps: steps.
      step: length of a step in the norm; eps if None.
      decay: of the sum of gradients.
      over: whether a gradient is divided by its own l_1 norm, or by that of the whole
        batch, as in GUARD's code, where images then depend on one another.

    Raises:
      ValueError: see `task.prepare`; or a setting out of range.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.evasion import ThreatModel, mim
      >>> def logits_fn(x):
      ...     bright = x.mean((1, 2, 3))
      ...     return jnp.stack([bright, 0.5 - bright, bright - 0.5], 1) * 9
      >>> x, y = jnp.full((2, 4, 4, 1), 0.2), jnp.ones(2, int)
      >>> budget = ThreatModel("linf", 0.1)
      >>> key = jax.random.key(0)
      >>> mim.attack(logits_fn, x, y, key=key, threat_model=budget).success.tolist()
      [True, True]
    """
    _checks.at_least(1, num_steps=num_steps)
    _checks.one_of(("sample", "batch"), over=over)
    pgd.bounded(threat_model)
    step = threat_model.eps if step is None else step
    _checks.at_least(0, step=step, decay=decay)
    pgd.moves(step, threat_model)
    return carry_out(
        pgd.run,
        logits_fn,
        x,
        y,
        key=key,
        threat_model=threat_model,
        step=step,
        decay=decay,
        num_steps=num_steps,
        start=False,
        remember=True,
        over=over,
    )


METHODS = (
    settings.named(
        "mim",
        "20 steps of eps with momentum 1, from the image itself",
        attack,
        settings.Steps,
        numbers={"num_steps": 20},
    ),
)
