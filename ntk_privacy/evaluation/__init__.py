"""Measures of what was read back, how far the kernel moved, and what attacks break.

`JUDGES` has a record of each judge of a distilled set, see `judges`.
"""

from ntk_privacy.evaluation import copies as copies
from ntk_privacy.evaluation import defence as defence
from ntk_privacy.evaluation import judges as judges
from ntk_privacy.evaluation import kernel_distance as kernel_distance
from ntk_privacy.evaluation import max_margin_ranking as max_margin_ranking
from ntk_privacy.evaluation import named_attacks as named_attacks
from ntk_privacy.evaluation import protocol as protocol
from ntk_privacy.evaluation import rates as rates
from ntk_privacy.evaluation import reconstruction_curve as reconstruction_curve
from ntk_privacy.evaluation import robust_accuracy as robust_accuracy
from ntk_privacy.evaluation import set_attacks as set_attacks
from ntk_privacy.evaluation import students as students
from ntk_privacy.evaluation import transfer as transfer
from ntk_privacy.evaluation.judges import JUDGES as JUDGES
from ntk_privacy.evaluation.judges import Judged as Judged
from ntk_privacy.evaluation.reconstruction_curve import Evaluation as Evaluation
from ntk_privacy.evaluation.reconstruction_curve import Matching as Matching
from ntk_privacy.evaluation.reconstruction_curve import evaluate as evaluate
from ntk_privacy.evaluation.reconstruction_curve import match as match

__all__ = [
    "JUDGES",
    "Evaluation",
    "Judged",
    "Matching",
    "copies",
    "defence",
    "evaluate",
    "judges",
    "kernel_distance",
    "match",
    "max_margin_ranking",
    "named_attacks",
    "protocol",
    "rates",
    "reconstruction_curve",
    "robust_accuracy",
    "set_attacks",
    "students",
    "transfer",
]
