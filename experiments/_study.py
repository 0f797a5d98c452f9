"""Many runs of `experiments.distill`: the paper's Table 1, and its defence figures.

Each cell, a method and a seed, is a run of its own in a folder below --workdir, so a
killed study goes on where it stood, and a table and the defence figures may share a
folder. Table and figures are redrawn after each cell.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import _defence, _image_sets, _transfer
from experiments._flags import UsageError
from experiments._groups import NOT_RESULTS, Run
from experiments._networks import STAGES, Images, Networks, check, load
from experiments._program import Asked, Program
from experiments._students import Students
from experiments._workdir import Workdir
from ntk_privacy import _checks, distillation
from ntk_privacy.distillation import kernel_methods
from ntk_privacy.evaluation import rates
from ntk_privacy.method import field
from ntk_privacy.reports import plots

_TABLE = ("full", "kip", "rkip", "rkip_noise", "rkip_finite", "random")
# Real images are what an undefended network is trained on.
_DEFENCE = ("random", "kip", "rkip", "rkip_noise", "rkip_finite")


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


METHODS = tuple(dict.fromkeys((*_TABLE, *_DEFENCE)))


def cells(config: Config, program: Program) -> list[Asked[Any]]:
    """Returns what each cell asks for, the methods of a seed together.

    Args:
      config: of the study.
      program: of a cell.
    """
    finite = _transfer.num_finite_runs(config)
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


def run(
    config: Config,
    program: Program,
    run_cell: Callable[[Asked[Any]], dict[str, Any]],
) -> dict[str, Any]:
    """Runs every cell and returns the tables, which are also in results.json.

    A cell that cannot be run is an `error` in the table, not the end of the study.

    Args:
      config: of the study.
      program: of a cell.
      run_cell: runs what a cell asks for.

    Raises:
      UsageError: the flags do not fit the image set, or a folder is another's.
      OSError: a file is missing.
      ValueError: a file is damaged, or no cell could be run.
    """
    _check(config, program)
    name = "table" if config.table else "defence"
    with opened(config) as workdir:
        # What each study in the folder was asked for last.
        studies = workdir.read_json("config.json").get("studies", {})
        options = ("num_runs", "num_finite_runs", "methods", "evaluate")
        studies[name] = {option: getattr(config, option) for option in options}
        told = {**dataclasses.asdict(config), "studies": studies}
        workdir.write_json("config.json", told)
        found: dict[str, list[dict[str, Any]]] = {}
        report: dict[str, Any] = {}
        for cell in cells(config, program):
            try:
                results = run_cell(cell)
            except UsageError:
                raise
            except (ValueError, FloatingPointError) as error:
                results = {"error": str(error)}
            told = {"seed": cell.group(Run).seed, **results}
            found.setdefault(cell.method.name, []).append(told)
            report = _table(found) if config.table else _attacks(found)
            workdir.write_json(f"{name}.json", report["rows"])
            workdir.write_text(f"{name}.md", report["markdown"])
            if config.defence:
                _draw(config, found, workdir)
        if not any(_sound(runs) for runs in found.values()):
            raise ValueError(
                f"No cell of the study could be run, see {workdir.path(f'{name}.md')}; "
                f"the first: {next(iter(found.values()))[0]['error']}"
            )
        # Last: whoever reads it finds the rest.
        workdir.write_json("results.json", report)
        return report


def opened(config: Config) -> Workdir:
    """Returns the folder of a study, which an earlier version may have begun.

    Args:
      config: of the study.

    Raises:
      UsageError: another run has it.
    """
    # One folder may hold both studies, of any methods.
    shared = ("methods", "table", "defence", "studies")
    return Workdir(
        config.workdir,
        config,
        ignore=_image_sets.not_results(config, (*NOT_RESULTS, *STAGES, *shared)),
        # Of when studies had the flags of all methods.
        foreign=_flags_of_methods(),
    )


def _flags_of_methods() -> set[str]:
    kinds = [method.config for method in distillation.METHODS.values()]
    names = {entry.name for kind in kinds for entry in dataclasses.fields(kind)}
    students = {entry.name for entry in dataclasses.fields(Students)}
    return names | students | {"method", "preset", "num_test"}


def _check(config: Config, program: Program) -> None:
    """Loads the images once, before any folder is made, if any cell needs them."""
    fresh = [
        cell
        for cell in cells(config, program)
        if not (pathlib.Path(cell.group(Run).workdir) / "results.json").exists()
    ]
    if fresh:
        images, _ = load(fresh[0])
        for cell in {cell.method.name: cell for cell in fresh}.values():
            check(cell, images)


def _failures(found) -> list[str]:
    """Returns the lines below a table that tell which cells failed, and why."""
    told = [
        f"- {method}, seed {run['seed']}: {' '.join(run['error'].split())}"
        for method, runs in found.items()
        for run in runs
        if "error" in run
    ]
    return ["", "Failed:", "", *told] if told else []


def _sound(runs) -> list[dict[str, Any]]:
    return [told for told in runs if "error" not in told]


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{rates.in_percent(values, digits=2)} ({len(values)})"


def _table(found) -> dict[str, Any]:
    """Accuracies of every method over its seeds, in per cent."""
    kinds = ("infinite", "standard", "linearized")
    scores = ["accuracy"]
    if any(
        "accuracy_released_label_fault" in t for runs in found.values() for t in runs
    ):
        scores.append("accuracy_released_label_fault")
    rows, lines = [], []
    for score in scores:
        if score != "accuracy":
            lines += [
                "",
                "Test labels as in the released code (trucks as animals):",
                "",
            ]
        lines += [
            "| method | infinite width | standard | linearized |",
            "| --- | --- | --- | --- |",
        ]
        for method, runs in found.items():
            row: dict[str, Any] = {"method": method, "score": score}
            for kind in kinds:
                values = [
                    told[score][kind]
                    for told in _sound(runs)
                    if told[score][kind] is not None
                ]
                rate = rates.mean_and_deviation(values) if values else (None, None)
                row[kind], row[f"{kind}_deviation"] = rate
                row[f"{kind}_values"] = values
            row["errors"] = [told["error"] for told in runs if "error" in told]
            rows.append(row)
            told = " | ".join(_cell(row[f"{kind}_values"]) for kind in kinds)
            lines.append(f"| {method} | {told} |")
    lines += ["", "Test accuracy in per cent, mean +- sample deviation (runs)."]
    lines += _failures(found)
    return {"rows": rows, "markdown": "\n".join(lines) + "\n"}


def _attacks(found) -> dict[str, Any]:
    """Images found by every attack, per method, summed over its seeds."""
    rows = []
    lines = [
        "| trained on | attack | originals found | best PSNR | distilled found | "
        "copies in the set |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method, runs in found.items():
        for name in _defence.ATTACKS:
            sound = _sound(runs)
            told = [run["attack"][name] for run in sound]
            row = {
                "method": method,
                "attack": name,
                "num_recovered": [t["num_recovered"] for t in told],
                "best_psnr": [float(t["best_psnr"]) for t in told],
                "verdicts": [t["verdict"]["word"] for t in told if "verdict" in t],
                "num_distilled_recovered": [t["num_distilled_recovered"] for t in told],
                "num_copies": [run["nearest"]["num_copies"] for run in sound],
                "num_distilled": [run["num_distilled"] for run in sound],
                "errors": [run["error"] for run in runs if "error" in run],
            }
            rows.append(row)
            if not told:
                lines.append(f"| {method} | {name} | - | - | - | - |")
                continue
            of = sum(row["num_distilled"])
            lines.append(
                f"| {method} | {name} | {sum(row['num_recovered'])} | "
                f"{max(row['best_psnr']):.1f} dB | "
                f"{sum(row['num_distilled_recovered'])} of {of} | "
                f"{sum(row['num_copies'])} of {of} |"
            )
    lines += ["", "Found means a PSNR of at least 25 dB; sums over the seeds."]
    lines += _failures(found)
    return {"rows": rows, "markdown": "\n".join(lines) + "\n"}


def _draw(config: Any, found, workdir: Workdir) -> None:
    """Draws one figure per attack: the first seed's curve of every method."""
    first = {method: _sound(runs)[0] for method, runs in found.items() if _sound(runs)}
    for name in _defence.ATTACKS if first else ():
        plots.curve(
            {
                f"trained on {method}": np.asarray(
                    told["attack"][name]["squared_distances"], float
                )
                for method, told in first.items()
            },
            workdir.path(f"defence_{name}.png"),
            image_shape=_image_sets.image_shape(config),
            title=f"Original images against what the {name} attack finds",
        )
