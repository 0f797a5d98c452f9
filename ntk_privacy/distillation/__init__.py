"""Distillation: few synthetic images that train a network as many real ones do.

`METHODS` has a record of each method: `METHODS["dm"].run(images, config, key=key)`.
"""

from ntk_privacy import _public
from ntk_privacy.distillation import (
    cda,
    dc,
    distribution_matching,
    dm,
    gradient_matching,
    kernel_classes,
    kernel_methods,
    kip,
    mtt,
    real,
    rkip,
    rkip_finite,
    robust_mean,
    squeezed,
    sre2l,
    tesla,
    trajectory_matching,
)
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.method import by_name

METHODS = by_name(
    *kernel_methods.METHODS,
    rkip_finite.METHOD,
    *real.METHODS,
    *dm.METHODS,
    *dc.METHODS,
    *mtt.METHODS,
    *squeezed.METHODS,
)

__all__ = [
    "METHODS",
    "Distilled",
    "cda",
    "distribution_matching",
    "gradient_matching",
    "kernel_classes",
    "kip",
    "rkip",
    "robust_mean",
    "squeezed",
    "sre2l",
    "tesla",
    "trajectory_matching",
]

__dir__ = _public.names(__name__)
