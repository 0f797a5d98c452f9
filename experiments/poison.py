"""Poisons a training set, condenses it by DM and by robust means, and tests the result.

    python -m experiments.poison --preset=cpu --dataset=cifar10 --attack=direct \
        --methods=dm,rdm --num_seeds=5 --workdir=DIR

Each seed draws a target among the test images, an adversarial class and the training
images of that class that become poison. Each method condenses the clean images too, and
the networks trained on that say what they take every target for: how often the attacker
gets his way without an attack. Writes config.json, results.json, losses.png
and, for each seed, pictures of its poisons and condensed sets to --workdir. Killed and
started again with the same --workdir it goes on with the first seed and method that is
not done.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _condensed, _flags, _image_sets, _poisoning, _students
from experiments._flags import UsageError
from experiments._poisoning import Scene
from experiments._workdir import Workdir, versions
from ntk_privacy import _checks, distillation
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import dm
from ntk_privacy.evaluation import rates
from ntk_privacy.poisoning import direct
from ntk_privacy.reports import loss_plots, plots
from ntk_privacy.resume import Timer

NOT_RESULTS = (
    *("workdir", "progress", "checkpoint_seconds", "data_dir", "download"),
    *("num_seeds", "methods", "control"),
)

DM_METHODS = tuple(method.name for method in dm.METHODS)


def _sizes(preset: str) -> dict[str, Any]:
    """Returns those of a method's preset, and of its students."""
    method = distillation.METHODS["dm"]
    students = _students.Students(**_students.Students.sizes(preset, method))
    found = dataclasses.asdict(method.configured(preset)) | dataclasses.asdict(students)
    del found["evaluate"]
    return found


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **_sizes("paper"),
        # One decision per condensation, 25 in all.
        "num_networks": 1,
        "num_runs": 5,
        "attack_steps": 250,
        "num_restarts": 8,
        "num_clean": 16,
    },
    "cpu": {
        **_sizes("cpu"),
        "num_runs": 1,
        # As many as a bound of 128/255 needs from anywhere within it.
        "attack_steps": 150,
        "num_restarts": 1,
        "num_clean": 4,
    },
}


def _field(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Poisons a training set, condenses it, trains on that and asks about a target."""

    preset: Literal["paper", "cpu"] = _field(
        "cpu",
        "Sizes that are none below: of the paper, with its normalisation, or for two "
        "cores.",
    )
    dataset: str = _image_sets.dataset_field("cifar10")
    image_size: int | None = _image_sets.size_field()
    attack: Literal["none", "direct", "dm", "gradient"] = _field(
        "direct",
        "The target itself, poisons that match its feature in random networks (dm), or "
        "its gradient in clean ones.",
    )
    methods: tuple[str, ...] = _field(
        ("dm", "rdm"), "Of " + ", ".join(DM_METHODS) + "."
    )
    num_seeds: int = _field(5, "Targets, one per seed.")
    control: bool = _field(
        True, "Condense the clean images, too: the attack's success without an attack."
    )
    rate: float = _field(0.01, "Poison, as a share of the training set.")
    bound: int = _field(
        64,
        "Largest change of an intensity by dm and gradient, /255; rounded down to the "
        "grid of digits.",
    )
    num_runs: int | None = _field(None, "Condensations per seed and method.")
    width: int | None = _field(None, "Channels of the ConvNet.")
    images_per_class: int | None = _field(None, "Condensed images of each class.")
    num_steps: int | None = _field(None, "Steps of the condensation.")
    batch_size: int | None = _field(None, "Real images of each class and step.")
    learning_rate: float | None = _field(None, "Of the condensed images.")
    num_networks: int | None = _field(
        None, "Networks trained on each condensed set; each decides about the target."
    )
    num_epochs: int | None = _field(None, "Of training on them.")
    train_learning_rate: float | None = _field(None, "Of training on them.")
    attack_steps: int | None = _field(None, "Steps per restart of dm and gradient.")
    num_restarts: int | None = _field(None, "Restarts of dm and gradient.")
    num_clean: int | None = _field(None, "Clean networks of gradient.")
    num_train: int | None = _field(None, "Training images; none is all.")
    num_test: int | None = _field(None, "Test images; none is all.")
    first_seed: int = _field(0, "The first seed.")
    data_dir: str | None = _field(
        None, "Folder of the image sets; none: NTK_PRIVACY_DATA, else the cache."
    )
    download: bool = _field(False, "Fetch the image set if it is not there.")
    fingerprint: str | None = _image_sets.fingerprint_field()
    workdir: str = _field("runs/poison", "Folder of the results.")
    checkpoint_seconds: float = _field(30.0, "Time between checkpoints.")
    progress: bool = _field(True, "Show a progress bar.")

    def __post_init__(self):
        _image_sets.complete(self)
        for name in self.methods:
            _checks.one_of(DM_METHODS, methods=name)
            if self.methods.count(name) > 1:
                raise ValueError(f"methods names {name} twice: name it once.")
        _checks.at_least(1, num_seeds=self.num_seeds, num_methods=len(self.methods))
        _checks.at_least(
            0, first_seed=self.first_seed, checkpoint_seconds=self.checkpoint_seconds
        )
        _checks.in_range(1, 255, bound=self.bound)
        for name in PRESETS["cpu"]:
            if getattr(self, name) is None:
                object.__setattr__(self, name, PRESETS[self.preset][name])
            _checks.positive(**{name: getattr(self, name)})
        for name in ("num_train", "num_test"):
            if getattr(self, name) is not None:
                _checks.at_least(1, **{name: getattr(self, name)})

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        unread = {
            "none": ("bound", "attack_steps", "num_restarts", "num_clean"),
            "direct": ("bound", "attack_steps", "num_restarts", "num_clean"),
            "dm": ("num_clean",),
            "gradient": (),
        }[self.attack]
        return dict.fromkeys(unread, f"--attack={self.attack}")


def _cell(
    config: Config,
    workdir: Workdir,
    images: ImageSet,
    scene: Scene,
    poisoned: ImageSet,
    method: str,
    seed: int,
    run: int,
) -> dict[str, Any]:
    """Condenses once and trains on the result; a finished cell is read back."""
    name = f"{seed}_{method}_{run}"
    if workdir.path(f"cell_{name}.json").exists():
        return workdir.read_json(f"cell_{name}.json")
    folder = workdir.checkpoint_folder / f"cell_{name}"
    key = jax.random.fold_in(scene.key, 100 + run)
    condensing, evaluating = Timer(), Timer()
    condensed = _condensed.condense(
        method,
        _condensed.configured(distillation.METHODS[method], config.preset, config),
        poisoned,
        key,
        flags=config,
        folder=folder,
        timer=condensing,
        description=f"seed {seed}, {method}",
    )
    found = _condensed.evaluate(
        images,
        condensed,
        config,
        jax.random.fold_in(key, 1),
        folder=folder / "evaluate",
        timer=evaluating,
        targets=jnp.asarray(images.normalised(images.x_test[scene.target][None])),
    )
    if run == 0:
        each = config.images_per_class or 1
        plots.pictures(
            condensed.images * images.normal.deviation,
            workdir.path(f"condensed_{seed}_{method}.png"),
            mean=images.normal.mean,
            notes=[f"{i // each}" for i in range(len(condensed.images))],
            title=f"{method}, poisoned by {config.attack}",
        )
    told = {
        "seed": seed,
        "method": method,
        "run": run,
        "class": scene.target_class,
        "adversarial_class": scene.adversarial_class,
        "accuracies": found.accuracy,
        "target_classes": found.target_classes[:, 0],
        "losses": condensed.losses[:: _stride(len(condensed.losses))],
        "seconds": {
            "condense": condensing.run,
            "evaluate": evaluating.run,
            "compile": condensing.compile + evaluating.compile,
        },
    }
    workdir.write_json(f"cell_{name}.json", told)
    _condensed.remove(folder)
    return workdir.read_json(f"cell_{name}.json")


def _control(
    config: Config, workdir: Workdir, images: ImageSet, method: str, run: int
) -> np.ndarray:
    """Returns what networks of clean condensed images take every test image for.

    They serve all targets. The draws are those of the first seed, so that poison is all
    that its own cell differs by. What is on disk is read back.
    """
    name = f"control_{method}_{run}"
    if not workdir.path(f"{name}.npz").exists():
        folder = workdir.checkpoint_folder / name
        key = jax.random.fold_in(jax.random.key(config.first_seed), 100 + run)
        condensed = _condensed.condense(
            method,
            _condensed.configured(distillation.METHODS[method], config.preset, config),
            images,
            key,
            flags=config,
            folder=folder,
            timer=Timer(),
            description=f"no attack, {method}",
        )
        found = _condensed.evaluate(
            images,
            condensed,
            config,
            jax.random.fold_in(key, 1),
            folder=folder / "evaluate",
            timer=Timer(),
            targets=jnp.asarray(images.normalised(images.x_test)),
        )
        workdir.write_arrays(f"{name}.npz", classes=found.target_classes)
        _condensed.remove(folder)
    return workdir.read_arrays(f"{name}.npz")["classes"]


def _seed(
    config: Config, workdir: Workdir, images: ImageSet, seed: int, scene: Scene
) -> list[dict[str, Any]]:
    """Returns one entry per method and run of a seed; what is on disk is kept."""
    poisons = workdir.read_arrays(f"poisons_{seed}.npz")["poisons"]
    clean = jnp.asarray(images.x_train)
    poisoned = images.replaced(direct.replace(clean, jnp.asarray(poisons), scene.where))
    entries = []
    for method in config.methods:
        kept = _poisoning.deviation(config, poisoned, scene, method)
        for run in range(config.num_runs or 0):
            cell = (
                _cell(config, workdir, images, scene, poisoned, method, seed, run)
                | kept
            )
            if config.control and config.attack != "none":
                classes = _control(config, workdir, images, method, run)
                told = classes[:, scene.target].tolist()
                cell["target_classes_without_attack"] = told
            entries.append(cell)
    return entries


def _craft(
    config: Config, workdir: Workdir, images: ImageSet, seed: int, scene: Scene
) -> dict[str, float]:
    """Writes the poisons of a seed; returns the seconds since the last start of that.

    Done once: what is on disk is kept.
    """
    name = f"poisons_{seed}.json"
    if not workdir.path(name).exists():
        folder = workdir.checkpoint_folder / f"poisons_{seed}"
        timer = Timer()
        with timer():
            poisons = _poisoning.poisons(config, images, scene, folder=folder)
        workdir.write_arrays(f"poisons_{seed}.npz", poisons=poisons, where=scene.where)
        _draw(config, workdir, images, scene, poisons, seed)
        seconds = {"craft": timer.run, "compile": timer.compile}
        workdir.write_json(name, {"seconds": seconds})
        _condensed.remove(folder)
    return workdir.read_json(name)["seconds"]


def _draw(config, workdir, images, scene, poisons, seed) -> None:
    """The target, poisons, and below them what they were."""
    shown = min(9, len(poisons))
    target = images.x_test[scene.target][None]
    clean = images.x_train[scene.where][:shown]
    plots.pictures(
        np.concatenate([target, poisons[:shown], target, clean]) - images.normal.mean,
        workdir.path(f"poisons_{seed}.png"),
        mean=images.normal.mean,
        notes=["target", *["poison"] * shown, "target", *["clean"] * shown],
        columns=shown + 1,
        title=f"{config.attack}: class {scene.target_class} to be taken for "
        f"{scene.adversarial_class}",
    )


def _hits(entries: list[dict[str, Any]], name: str) -> list[bool]:
    """Returns the decisions for the attacker, of all networks that were asked."""
    return [
        found == entry["adversarial_class"]
        for entry in entries
        for found in entry.get(name, ())
    ]


def _row(config: Config, method: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    mine = [entry for entry in entries if entry["method"] == method]
    accuracy = rates.mean_and_deviation(
        np.array([value for entry in mine for value in entry["accuracies"]])
    )
    hits = _hits(mine, "target_classes")
    success = rates.mean_and_deviation(hits)
    without = _hits(mine, "target_classes_without_attack")
    return {
        "method": method,
        "attack": config.attack,
        "accuracy": accuracy.mean,
        "accuracy_std": accuracy.deviation,
        "attack_success": success.mean,
        "attack_success_std": success.deviation,
        "num_decisions": len(hits),
        "success_without_attack": float(np.mean(without)) if without else None,
        **{
            name: None
            if mine[0][name] is None
            else float(np.mean([entry[name] for entry in mine]))
            for name in (
                *("poison_dropped", "clean_dropped"),
                *("deviation_of_mean", "deviation"),
            )
        },
    }


def _draw_losses(
    workdir: Workdir, entries: list[dict[str, Any]], num_steps: int
) -> None:
    """The loss of every method at the first seed, its first condensation."""
    first = min(entry["seed"] for entry in entries)
    loss_plots.losses(
        {
            entry["method"]: np.asarray(entry["losses"], np.float64)
            for entry in entries
            if (entry["seed"], entry["run"]) == (first, 0)
        },
        workdir.path("losses.png"),
        title=f"Condensation of poisoned images, seed {first}",
        every=_stride(num_steps),
    )


def _stride(num_steps: int) -> int:
    """Returns how many steps stand between the losses that are kept."""
    return max(1, num_steps // 100)


def run(config: Config) -> dict[str, Any]:
    """Runs all seeds and methods; returns what results.json holds.

    Raises:
      UsageError: the folder belongs to another configuration, or a flag does not fit
        the image set.
      OSError: a file is missing.
      ValueError: a file is damaged, or a loss is not finite.
    """
    images = _image_sets.part(
        config, num_train=config.num_train, num_test=config.num_test
    )
    for name in config.methods:
        method = distillation.METHODS[name]
        own = _condensed.configured(method, config.preset, config)
        try:
            method.check(images, own)
        except ValueError as error:
            raise UsageError(str(error)) from error
    if config.attack in ("dm", "gradient"):
        _poisoning.bound_in_steps(config, images)
    # All before the folder is touched: a seed that cannot be is told at once.
    seeds = range(config.first_seed, config.first_seed + config.num_seeds)
    scenes = {seed: _poisoning.scene(config, images, seed) for seed in seeds}
    ignore = _image_sets.not_results(config, NOT_RESULTS)
    with Workdir(config.workdir, config, ignore=ignore) as workdir:
        workdir.write_json("config.json", config)
        entries, spent = [], []
        for seed, scene in scenes.items():
            spent.append(_craft(config, workdir, images, seed, scene))
            entries += _seed(config, workdir, images, seed, scene)
        _draw_losses(workdir, entries, int(config.num_steps or 0))
        spent += [entry["seconds"] for entry in entries]
        results = {
            "dataset": config.dataset,
            "attack": config.attack,
            "preset": config.preset,
            "table": [_row(config, method, entries) for method in config.methods],
            "runs": entries,
            "seconds": {
                name: sum(part.get(name, 0) for part in spent)
                for name in ("craft", "condense", "evaluate", "compile")
            },
            "versions": versions(),
        }
        workdir.write_json("results.json", results)
        return workdir.read_json("results.json")


def main(config: Config) -> None:
    """Runs and prints the table."""
    table = run(config)["table"]
    print("method        accuracy %      attack success %  without attack %")
    for row in table:
        rate = rates.Rate(row["accuracy"], row["accuracy_std"]).scaled(100)
        success = rates.Rate(row["attack_success"], row["attack_success_std"])
        without = row["success_without_attack"]
        told = "-" if without is None else f"{100 * without:.2f}"
        print(
            f"{row['method']:<13} {format(rate, '.2f'):<15} "
            f"{format(success.scaled(100), '.2f'):<17} {told}"
        )


if __name__ == "__main__":
    _flags.run(main, Config)
