"""Measures of what was read back, and of how far the kernel moved."""

from ntk_privacy.evaluation.reconstruction_curve import Evaluation as Evaluation
from ntk_privacy.evaluation.reconstruction_curve import Matching as Matching
from ntk_privacy.evaluation.reconstruction_curve import evaluate as evaluate
from ntk_privacy.evaluation.reconstruction_curve import match as match

__all__ = ["Evaluation", "Matching", "evaluate", "match"]
