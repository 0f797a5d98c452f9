"""Tables of many runs: the paper's Table 1, and its defence figures.

Source: Loo et al., ICLR 2024 (arXiv:2302.01428). A run is a row of figures; one that
failed has an `error` instead.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ntk_privacy import _checks
from ntk_privacy.distillation import kernel_methods
from ntk_privacy.evaluation import defence, rates, transfer
from ntk_privacy.method import Method, by_name, field
from ntk_privacy.reports import tables

__all__ = [
    "APPLICABLE",
    "METHODS",
    "Config",
    "Report",
    "accuracies",
    "attacks",
    "sound",
]

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""By method: the figures of each seed."""

_FAULTY = "accuracy_released_label_fault"
_HEADS = {
    "accuracy": [],
    _FAULTY: ["", "Test labels as in the released code (trucks as animals):", ""],
}


APPLICABLE = {
    "table": ("full", "kip", "rkip", "rkip_noise", "rkip_finite", "random"),
    # Real images are what an undefended network is trained on.
    "defence": ("random", "kip", "rkip", "rkip_noise", "rkip_finite"),
}
"""By study: the methods that it may be of, in order of its table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(kernel_methods.Config):
    """Several methods over several seeds."""

    methods: tuple[str, ...] = field(
        (), "Of the study, between commas; empty is all that apply."
    )
    noise_ratio: float | None = field(
        None, "Share of entries that stay noise, of rkip_noise; none is 0.05."
    )

    def __post_init__(self):
        super().__post_init__()
        if self.methods:
            _checks.named(methods=self.methods)
        for name in self.methods:
            _checks.one_of(APPLICABLE["table"], methods=name)
        noisy = not self.methods or "rkip_noise" in self.methods
        if self.noise_ratio is not None and not noisy:
            raise ValueError(
                f"noise_ratio={self.noise_ratio} is for rkip_noise, which is not among "
                f"methods={','.join(self.methods)}: leave it out, or add rkip_noise."
            )


class Report(NamedTuple):
    """rows: figures for a file. markdown: the same to be read."""

    rows: list[dict[str, Any]]
    markdown: str


def sound(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the runs that did not fail.

    Args:
      runs: of one method.

    Example:
      >>> from ntk_privacy.reports import studies
      >>> len(studies.sound([{"seed": 0}, {"seed": 1, "error": "NaN"}]))
      1
    """
    return [told for told in runs if "error" not in told]


def _errors(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [told["error"] for told in runs if "error" in told]


def _failures(found: Runs) -> list[str]:
    """Returns the lines below a table that tell which runs failed, and why."""
    told = [
        f"- {method}, seed {run['seed']}: {' '.join(run['error'].split())}"
        for method, runs in found.items()
        for run in runs
        if "error" in run
    ]
    return ["", "Failed:", "", *told] if told else []


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{rates.in_percent(values, digits=2)} ({len(values)})"


def accuracies(found: Runs) -> Report:
    """Returns accuracies of every method over its seeds, in per cent.

    Args:
      found: figures of `evaluation.transfer`.

    Example:
      >>> from ntk_privacy.reports import studies
      >>> told = {"infinite": 0.5, "standard": None, "linearized": 0.25}
      >>> print(studies.accuracies({"kip": [{"accuracy": told}]}).markdown)
      | method | infinite width | standard | linearized |
      | --- | --- | --- | --- |
      | kip | 50.00 (1) | - | 25.00 (1) |
      <BLANKLINE>
      Test accuracy in per cent, mean +- sample deviation (runs).
      <BLANKLINE>
    """
    rows, lines = [], []
    scores = [s for s in _HEADS if any(s in t for runs in found.values() for t in runs)]
    for score in scores or ["accuracy"]:
        cells = []
        for method, runs in found.items():
            row: dict[str, Any] = {"method": method, "score": score}
            for kind in transfer.KINDS:
                values = [told[score][kind] for told in sound(runs)]
                values = [value for value in values if value is not None]
                rate = rates.mean_and_deviation(values) if values else (None, None)
                row[kind], row[f"{kind}_deviation"] = rate
                row[f"{kind}_values"] = values
            row["errors"] = _errors(runs)
            rows.append(row)
            told = [_cell(row[f"{kind}_values"]) for kind in transfer.KINDS]
            cells.append([method, *told])
        head = ["method", "infinite width", "standard", "linearized"]
        lines += [*_HEADS[score], tables.markdown(head, cells)]
    lines += ["", "Test accuracy in per cent, mean +- sample deviation (runs)."]
    return Report(rows, "\n".join([*lines, *_failures(found)]) + "\n")


def attacks(found: Runs) -> Report:
    """Returns what every attack found, per method, summed over its seeds.

    Args:
      found: figures of `evaluation.defence` as `attack`, of `evaluation.copies` as
        `nearest`, and num_distilled.
    """
    rows, cells = [], []
    for method, runs in found.items():
        for name in defence.ATTACKS:
            told = [run["attack"][name] for run in sound(runs)]
            row = {
                "method": method,
                "attack": name,
                "num_recovered": [t["num_recovered"] for t in told],
                "best_psnr": [float(t["best_psnr"]) for t in told],
                "verdicts": [t["verdict"]["word"] for t in told if "verdict" in t],
                "num_distilled_recovered": [t["num_distilled_recovered"] for t in told],
                "num_copies": [run["nearest"]["num_copies"] for run in sound(runs)],
                "num_distilled": [run["num_distilled"] for run in sound(runs)],
                "errors": _errors(runs),
            }
            rows.append(row)
            of, figures = sum(row["num_distilled"]), ["-"] * 4
            if told:
                figures = [
                    str(sum(row["num_recovered"])),
                    f"{max(row['best_psnr']):.1f} dB",
                    f"{sum(row['num_distilled_recovered'])} of {of}",
                    f"{sum(row['num_copies'])} of {of}",
                ]
            cells.append([method, name, *figures])
    head = ["trained on", "attack", "originals found", "best PSNR", "distilled found"]
    lines = [tables.markdown([*head, "copies in the set"], cells)]
    lines += ["", "Found means a PSNR of at least 25 dB; sums over the seeds."]
    return Report(rows, "\n".join([*lines, *_failures(found)]) + "\n")


METHODS = by_name(
    Method(
        name="table",
        about="evaluates several methods over --num_runs seeds: the paper's Table 1.",
        config=Config,
        presets={"paper": Config},
        run=accuracies,
    ),
    Method(
        name="defence",
        about="attacks several methods over --num_runs seeds: the paper's defence "
        "figures.",
        config=Config,
        presets={"paper": Config},
        run=attacks,
    ),
)
"""Studies: each makes a report of what its cells found."""
