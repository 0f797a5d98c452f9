"""Attacks that read training images back from weights.

`kkt.reconstruct` searches for images that explain the change of the weights,
`algebraic.reconstruct` decodes them from ReLU gates, `max_margin.reconstruct` needs the
final weights alone. `replay.replay` gives the search features along the training that
recovered images explain.
"""

from ntk_privacy.reconstruction import algebraic, kkt, max_margin, replay

__all__ = ["algebraic", "kkt", "max_margin", "replay"]
