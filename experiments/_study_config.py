"""Studies of `experiments.distill`: their flags, and the cells that they ask for."""

import dataclasses
import pathlib
from typing import Any

from experiments._groups import Run
from experiments._network_flags import Networks
from experiments._program import Asked
from ntk_privacy import _checks
from ntk_privacy.distillation import kernel_methods
from ntk_privacy.method import Method, by_name, field
from ntk_privacy.reports import studies

_OF = {
    "table": ("full", "kip", "rkip", "rkip_noise", "rkip_finite", "random"),
    # Real images are what an undefended network is trained on.
    "defence": ("random", "kip", "rkip", "rkip_noise", "rkip_finite"),
}


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
            _checks.one_of(_OF["table"], methods=name)
        noisy = not self.methods or "rkip_noise" in self.methods
        if self.noise_ratio is not None and not noisy:
            raise ValueError(
                f"noise_ratio={self.noise_ratio} is for rkip_noise, which is not among "
                f"methods={','.join(self.methods)}: leave it out, or add rkip_noise."
            )


METHODS = by_name(
    Method(
        name="table",
        about="evaluates several methods over --num_runs seeds: the paper's Table 1.",
        config=Config,
        presets={"paper": Config},
        run=studies.accuracies,
    ),
    Method(
        name="defence",
        about="attacks several methods over --num_runs seeds: the paper's defence "
        "figures.",
        config=Config,
        presets={"paper": Config},
        run=studies.attacks,
    ),
)
"""Studies: each makes a report of what its cells found."""


def cells(study: Asked[Config]) -> list[Asked[Any]]:
    """Returns what each cell asks for, the methods of a seed together."""
    flags, run, name = study.group(Networks), study.group(Run), study.method.name
    given = {
        k: v for k, v in study.flat().items() if k != "noise_ratio" or v is not None
    }
    found = []
    for nth in range(flags.num_runs):
        for method in study.config.methods or _OF[name]:
            seed = run.seed + nth
            own = {
                "evaluate": name == "table" or flags.evaluate,
                "attack": name == "defence",
                "num_runs": 1,
                "num_finite_runs": int(nth < flags.num_trained),
                "seed": seed,
                "workdir": str(pathlib.Path(run.workdir) / f"{method}_{seed}"),
            }
            names = study.program.names(method) - (
                {"noise_ratio"} if method == "kip" else set()
            )
            cell = {k: v for k, v in {**given, **own}.items() if k in names}
            found.append(study.program.asked(method, **cell))
    return found
