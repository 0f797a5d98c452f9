"""The table of reconstruction attacks: one row a method, the first one recommended.

A record `wants` "auxiliary" where images of the same domain help it, "num_images" where
it reads N otherwise than for the number of candidates, and "logistic" where it is tried
on a network of `training.margin_victim`, "adapter" on one of `training.adapter_victim`,
"recipe" where it must know how the network was trained.
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
