"""Curvature of the loss at the data: a regulariser of any loss, and its measure."""

from ntk_privacy import _public
from ntk_privacy.curvature.hessian import TopEigenvalues as TopEigenvalues
from ntk_privacy.curvature.hessian import measure as measure
from ntk_privacy.curvature.hessian import top_eigenvalues as top_eigenvalues
from ntk_privacy.curvature.regularizer import MODES as MODES
from ntk_privacy.curvature.regularizer import penalty as penalty
from ntk_privacy.curvature.regularizer import regularize as regularize

__all__ = [
    "MODES",
    "TopEigenvalues",
    "measure",
    "penalty",
    "regularize",
    "top_eigenvalues",
]

__dir__ = _public.names(__name__)
