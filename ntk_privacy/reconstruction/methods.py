"""The table of reconstruction attacks: one row a method, the first one recommended."""

from ntk_privacy.method import by_name
from ntk_privacy.reconstruction import algebraic, auto, kkt, max_margin

__all__ = ["METHODS"]

METHODS = by_name(auto.METHOD, algebraic.METHOD, kkt.METHOD, max_margin.METHOD)
