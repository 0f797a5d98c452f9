"""Measures of what was read back, how far the kernel moved, and what attacks break.

`JUDGES` has a record of each judge of a distilled set, see `judges`.
"""

from ntk_privacy import _public
from ntk_privacy.evaluation import attacked_model as attacked_model
from ntk_privacy.evaluation import attacked_set as attacked_set
from ntk_privacy.evaluation import copies as copies
from ntk_privacy.evaluation import defence as defence
from ntk_privacy.evaluation import identification as identification
from ntk_privacy.evaluation import judges as judges
from ntk_privacy.evaluation import kernel_distance as kernel_distance
from ntk_privacy.evaluation import kernel_movement as kernel_movement
from ntk_privacy.evaluation import max_margin_ranking as max_margin_ranking
from ntk_privacy.evaluation import named_attacks as named_attacks
from ntk_privacy.evaluation import poisoned_means as poisoned_means
from ntk_privacy.evaluation import poisoned_sets as poisoned_sets
from ntk_privacy.evaluation import poisoned_table as poisoned_table
from ntk_privacy.evaluation import protocol as protocol
from ntk_privacy.evaluation import rates as rates
from ntk_privacy.evaluation import read_back as read_back
from ntk_privacy.evaluation import reconstruction_curve as reconstruction_curve
from ntk_privacy.evaluation import robust_accuracy as robust_accuracy
from ntk_privacy.evaluation import set_attacks as set_attacks
from ntk_privacy.evaluation import soft_students as soft_students
from ntk_privacy.evaluation import spectrum as spectrum
from ntk_privacy.evaluation import students as students
from ntk_privacy.evaluation import trained_network as trained_network
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
    "attacked_model",
    "attacked_set",
    "copies",
    "defence",
    "evaluate",
    "identification",
    "judges",
    "kernel_distance",
    "kernel_movement",
    "match",
    "max_margin_ranking",
    "named_attacks",
    "poisoned_means",
    "poisoned_sets",
    "poisoned_table",
    "protocol",
    "rates",
    "read_back",
    "reconstruction_curve",
    "robust_accuracy",
    "set_attacks",
    "soft_students",
    "spectrum",
    "students",
    "trained_network",
    "transfer",
]

__dir__ = _public.names(__name__)
