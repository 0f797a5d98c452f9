"""The table of reconstruction attacks: one row a method, the first one recommended.

A record `wants` "auxiliary" where images of the same domain help it, "num_images" where
it reads N otherwise than for the number of candidates, and "logistic" where it is tried
on a network of `training.margin_victim`, "adapter" on one of `training.adapter_victim`,
"recipe" where it must know how the network was trained.

Example:
  >>> import jax
  >>> from ntk_privacy import data, reconstruction
  >>> from ntk_privacy.training import adapter_victim
  >>> key = jax.random.key(0)
  >>> digits = data.load("digits", num_train=4, key=key)
  >>> victim = adapter_victim.train(
  ...     digits.x_train, digits.y_train, width=256, rank=16, key=key
  ... )
  >>> known = reconstruction.evidence.of(victim)
  >>> row = reconstruction.METHODS["adapter"]
  >>> len(row.run(known, row.configured(), key=key).images)
  4
"""

from ntk_privacy.method import by_name
from ntk_privacy.reconstruction import (
    adapter,
    algebraic,
    auto,
    closed_units,
    kkt,
    max_margin,
    unrolled,
)

__all__ = ["METHODS"]

METHODS = by_name(
    auto.METHOD,
    algebraic.METHOD,
    closed_units.METHOD,
    kkt.METHOD,
    max_margin.METHOD,
    adapter.METHOD,
    unrolled.METHOD,
)
