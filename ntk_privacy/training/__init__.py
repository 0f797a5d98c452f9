"""Training: in closed form for linearized networks, full batch for the others."""

from ntk_privacy.training import linearized, logistic, subspace, train

__all__ = ["linearized", "logistic", "subspace", "train"]
