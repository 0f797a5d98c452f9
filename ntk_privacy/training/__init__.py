"""Training: in closed form for linearized networks, full batch for the others."""

from ntk_privacy.training import linearized, logistic, train

__all__ = ["linearized", "logistic", "train"]
