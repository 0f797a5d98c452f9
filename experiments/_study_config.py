"""The flags of a study of `experiments.distill`, and the cells that they ask for."""

import dataclasses
import pathlib
from typing import Any

from experiments import _flags
from experiments._groups import Run
from experiments._network_flags import Images, Networks
from experiments._program import Asked, Program
from ntk_privacy import _checks
from ntk_privacy.distillation import kernel_methods
from ntk_privacy.method import field

_TABLE = ("full", "kip", "rkip", "rkip_noise", "rkip_finite", "random")
# Real images are what an undefended network is trained on.
_DEFENCE = ("random", "kip", "rkip", "rkip_noise", "rkip_finite")
METHODS = tuple(dict.fromkeys((*_TABLE, *_DEFENCE)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Images, Run, Networks, kernel_methods.Config):
    """Runs several methods over several seeds: Table 1, or the defence figures."""

    table: bool = field(
        False, "Evaluate --methods over --num_runs seeds: the paper's Table 1."
    )
    defence: bool = field(
        False, "Attack --methods over --num_runs seeds: the paper's defence figures."
    )
    methods: tuple[str, ...] = field(
        (), "Of --table and --defence, between commas; empty is all that apply."
    )
    num_runs: int = field(1, "Repeats of everything, one seed each.")
    noise_ratio: float | None = field(
        None, "Share of entries that stay noise, of rkip_noise; none is 0.05."
    )
    workdir: str = field("runs/study", "Folder of the results.")

    def __post_init__(self):
        for part in (Images, Run, Networks, kernel_methods.Config):
            part.__post_init__(self)
        _flags.check_seeds(self.seed, num_runs=self.num_runs)
        if self.table == self.defence:
            raise ValueError(
                "table and defence are two studies: ask for one."
                if self.table
                else "methods is for --table and --defence: use --method."
            )
        if self.table and self.attack:
            raise ValueError(
                "attack is no part of --table: ask for --defence, which may have the "
                "same workdir."
            )
        for name in self.methods:
            _checks.one_of(METHODS, methods=name)
            if self.methods.count(name) > 1:
                raise ValueError(f"methods names {name} twice: name it once.")
        if self.defence and "full" in self.methods:
            raise ValueError(
                "methods has full, which is no distilled set for --defence to attack: "
                "leave it out, or use experiments.reconstruct."
            )
        noisy = not self.methods or "rkip_noise" in self.methods
        if self.noise_ratio is not None and not noisy:
            raise ValueError(
                f"noise_ratio={self.noise_ratio} is for rkip_noise, which is not among "
                f"methods={','.join(self.methods)}: leave it out, or add rkip_noise."
            )

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        finite = not self.methods or "rkip_finite" in self.methods
        if self.table and not finite:
            return dict.fromkeys(("attack_steps", "dynamics"), "--table")
        return {}


def cells(config: Config, program: Program) -> list[Asked[Any]]:
    """Returns what each cell asks for, the methods of a seed together."""
    finite = config.num_trained
    methods = config.methods or (_TABLE if config.table else _DEFENCE)
    given = {e.name: getattr(config, e.name) for e in dataclasses.fields(config)}
    if config.noise_ratio is None:
        del given["noise_ratio"]
    found = []
    for run in range(config.num_runs):
        for method in methods:
            names = program.names(method)
            seed = config.seed + run
            own = {
                "evaluate": config.table or config.evaluate,
                "attack": config.defence,
                "num_runs": 1,
                "num_finite_runs": int(run < finite),
                "seed": seed,
                "workdir": str(pathlib.Path(config.workdir) / f"{method}_{seed}"),
            }
            flags = {k: v for k, v in {**given, **own}.items() if k in names}
            if method == "kip":
                flags.pop("noise_ratio", None)
            found.append(program.asked(method, **flags))
    return found
