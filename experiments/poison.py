"""Poisons a training set, condenses it by DM and by robust means, and tests the result.

    python -m experiments.poison --preset=cpu --dataset=cifar10 --attack=direct \
        --methods=dm,rdm --num_seeds=5 --workdir=DIR

Each seed draws a target among the test images, an adversarial class and the training
images of that class that become poison. Writes config.json, results.json, and for each
seed poisons.png and the condensed sets to --workdir. Killed and started again with the
same --workdir it goes on with the first seed and method that is not done.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _flags
from experiments._flags import UsageError
from experiments._progress import Progress
from experiments._timing import Timer
from experiments._workdir import Workdir, versions
from ntk_privacy import _checks, data
from ntk_privacy.condensation import distribution_matching, robust_mean
from ntk_privacy.data import augmentation
from ntk_privacy.evaluation import protocol
from ntk_privacy.models import ConvNet
from ntk_privacy.poisoning import direct, gradient_matching
from ntk_privacy.poisoning import distribution_matching as dm_poisoning
from ntk_privacy.reports import plots
from ntk_privacy.training import classification

METHODS = ("dm", "rdm", "dm_truncated", "dm_trimmed", "dm_median", "dm_entropy")
NOT_RESULTS = ("workdir", "progress", "data_dir", "download", "num_seeds", "methods")

# Of the RDM-DC paper; and what two cores finish.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "width": 128,
        "images_per_class": 50,
        "num_steps": 20_000,
        "batch_size": 256,
        "learning_rate": 1.0,
        "num_epochs": 1000,
        "num_runs": 5,
        "attack_steps": 250,
        "num_restarts": 8,
        "num_clean": 16,
    },
    "cpu": {
        "width": 32,
        "images_per_class": 10,
        "num_steps": 150,
        "batch_size": 64,
        "learning_rate": 10.0,
        "num_epochs": 100,
        "num_runs": 1,
        "attack_steps": 40,
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
        "cpu", "Sizes that are none below: of the paper, or for two cores."
    )
    dataset: Literal["digits", "mnist", "cifar10"] = _field("cifar10", "Image set.")
    attack: Literal["none", "direct", "dm", "gradient"] = _field(
        "direct",
        "The target itself, poisons that match its feature in random networks (dm), or "
        "its gradient in clean ones.",
    )
    methods: tuple[str, ...] = _field(("dm", "rdm"), "Of " + ", ".join(METHODS) + ".")
    num_seeds: int = _field(5, "Targets, one per seed.")
    rate: float = _field(0.01, "Poison, as a share of the training set.")
    bound: int = _field(64, "Largest change of an intensity by dm and gradient, /255.")
    num_runs: int | None = _field(None, "Condensations per seed and method.")
    width: int | None = _field(None, "Channels of the ConvNet.")
    images_per_class: int | None = _field(None, "Condensed images of each class.")
    num_steps: int | None = _field(None, "Steps of the condensation.")
    batch_size: int | None = _field(None, "Real images of each class and step.")
    learning_rate: float | None = _field(None, "Of the condensed images.")
    num_epochs: int | None = _field(None, "Of training on them.")
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
    workdir: str = _field("runs/poison", "Folder of the results.")
    progress: bool = _field(True, "Show a progress bar.")

    def __post_init__(self):
        for name in self.methods:
            _checks.one_of(METHODS, methods=name)
        _checks.at_least(1, num_seeds=self.num_seeds, num_methods=len(self.methods))
        _checks.at_least(0, first_seed=self.first_seed)
        _checks.in_range(1, 255, bound=self.bound)
        for name in PRESETS["cpu"]:
            if getattr(self, name) is None:
                object.__setattr__(self, name, PRESETS[self.preset][name])
            _checks.positive(**{name: getattr(self, name)})
        for name in ("num_train", "num_test"):
            if getattr(self, name) is not None:
                _checks.at_least(1, **{name: getattr(self, name)})


class Images(NamedTuple):
    """Intensities in [0, 1], classes, and what normalises each channel."""

    x: np.ndarray
    classes: np.ndarray
    x_test: np.ndarray
    class_test: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    num_classes: int
    levels: int

    def normalised(self, images: Any) -> jax.Array:
        """Returns images less the mean, over the deviation."""
        return jnp.asarray((np.asarray(images) - self.mean) / self.deviation)


def _load(config: Config) -> Images:
    raw = data.load_raw(config.dataset, config.data_dir, config.download)
    order = np.random.default_rng(0)
    train = np.sort(order.permutation(len(raw.labels_train))[: config.num_train])
    test = np.sort(order.permutation(len(raw.labels_test))[: config.num_test])
    x, x_test = (
        images.astype(np.float32) / np.float32(raw.max_intensity)
        for images in (raw.images_train[train], raw.images_test[test])
    )
    mean = x.mean((0, 1, 2), dtype=np.float64).astype(np.float32)
    deviation = x.std((0, 1, 2), dtype=np.float64).astype(np.float32)
    return Images(
        x,
        raw.labels_train[train],
        x_test,
        raw.labels_test[test],
        mean,
        deviation,
        len(raw.class_names),
        raw.max_intensity,
    )


class Scene(NamedTuple):
    """What a seed fixes: target (a test image), classes, poisoned rows, key."""

    target: int
    target_class: int
    adversarial_class: int
    where: np.ndarray
    key: jax.Array


def _scene(config: Config, images: Images, seed: int) -> Scene:
    key = jax.random.key(seed)
    draw = np.random.default_rng(seed)
    target = int(draw.integers(len(images.x_test)))
    target_class = int(images.class_test[target])
    others = [c for c in range(images.num_classes) if c != target_class]
    adversarial = int(draw.choice(others))
    count = max(1, round(config.rate * len(images.x)))
    members = int(np.sum(images.classes == adversarial))
    if count > members:
        raise UsageError(
            f"rate={config.rate} asks for {count} poisons, class {adversarial} has "
            f"{members} images: use a rate of at most {members / len(images.x):.4f}."
        )
    where = direct.choose(
        jnp.asarray(images.classes),
        key=jax.random.fold_in(key, 1),
        adversarial_class=adversarial,
        target_class=target_class,
        num_poisons=count,
    )
    return Scene(target, target_class, adversarial, where, key)


def _model(config: Config, images: Images) -> ConvNet:
    return ConvNet(images.num_classes, int(config.width or 0))


def _operations(config: Config) -> tuple[str, ...]:
    whole = config.dataset == "cifar10"
    return augmentation.OPERATIONS if whole else augmentation.NO_FLIP


def _poisons(config: Config, images: Images, scene: Scene) -> np.ndarray:
    """Returns what stands in the poisoned rows, in [0, 1]."""
    clean = jnp.asarray(images.x[scene.where])
    target = jnp.asarray(images.x_test[scene.target])
    if config.attack == "none":
        return np.asarray(clean)
    if config.attack == "direct":
        return np.asarray(direct.poison(target, num_poisons=len(clean)))
    parts = dm_poisoning.Target(
        target, jnp.asarray(images.mean), jnp.asarray(images.deviation)
    )
    model, operations = _model(config, images), _operations(config)
    options: dict[str, Any] = {
        "model": model,
        "operations": operations,
        "key": jax.random.fold_in(scene.key, 2),
        # In whole steps of the grid, which is coarser for digits.
        "bound": max(1, round(config.bound * images.levels / 255)) / images.levels,
        "step": 1 / images.levels,
        "levels": images.levels,
        "num_steps": config.attack_steps,
        "num_restarts": config.num_restarts,
    }
    if config.attack == "dm":
        return np.asarray(dm_poisoning.poison(clean, parts, **options).images)
    networks = classification.staggered(
        images.normalised(images.x),
        jnp.asarray(images.classes),
        model=model,
        key=jax.random.fold_in(scene.key, 3),
        num_networks=int(config.num_clean or 0),
        operations=operations,
    )
    ensemble = gradient_matching.prepare(
        networks, parts, model=model, adversarial_class=scene.adversarial_class
    )
    return np.asarray(gradient_matching.poison(clean, ensemble, **options).images)


@functools.cache
def _mean_fn(method: str, rate: float) -> robust_mean.MeanFn:
    return {
        "dm": lambda: robust_mean.mean,
        "dm_median": lambda: robust_mean.median,
        "rdm": lambda: robust_mean.calibrated(rate=rate),
        "dm_truncated": lambda: robust_mean.truncated(rate=rate),
        "dm_trimmed": lambda: robust_mean.trimmed(rate=rate),
        "dm_entropy": lambda: robust_mean.quantum_entropy(rate=rate),
    }[method]()


@functools.cache
def _sgd(learning_rate: float) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, momentum=0.5)


def _cell(config, images, scene, x, method, run, timer, bar) -> tuple[dict, np.ndarray]:
    """Condenses once and trains once; returns figures and condensed images."""
    model, operations = _model(config, images), _operations(config)
    key = jax.random.fold_in(scene.key, 100 + run)
    with timer():
        out = distribution_matching.distill(
            x,
            jnp.asarray(images.classes),
            model=model,
            key=key,
            num_classes=images.num_classes,
            images_per_class=config.images_per_class,
            num_steps=config.num_steps,
            batch_size=config.batch_size,
            mean_fn=_mean_fn(
                method, robust_mean.class_level(config.rate, images.num_classes)
            ),
            operations=operations,
            optimizer=_sgd(config.learning_rate),
            chunk=50,
            callback=bar,
        )
        if bool(out.nonfinite):
            raise ValueError(
                f"The loss of {method} is not finite after {int(out.state.steps)} "
                "steps: lower --learning_rate."
            )
        found = protocol.evaluate(
            out.images,
            out.labels,
            images.normalised(images.x_test),
            jnp.asarray(images.class_test),
            model=model,
            key=jax.random.fold_in(key, 1),
            num_networks=1,
            num_epochs=config.num_epochs,
            operations=operations,
            targets=images.normalised(images.x_test[scene.target][None]),
        )
    figures = {
        "accuracy": float(found.accuracy[0]),
        "target_class": int(found.target_classes[0, 0]),
        "losses": np.asarray(out.losses)[:: max(1, len(out.losses) // 100)],
    }
    return figures, np.asarray(out.images) * images.deviation


def _seed(config, workdir, images, seed, timer) -> list[dict[str, Any]]:
    """Returns one entry per method and run of a seed; what is on disk is kept."""
    scene = _scene(config, images, seed)
    name = f"poisons_{seed}.npz"
    if workdir.path(name).exists():
        poisons = workdir.read_arrays(name)["poisons"]
    else:
        with timer():
            poisons = _poisons(config, images, scene)
        workdir.write_arrays(name, poisons=poisons, where=scene.where)
        shown = min(9, len(poisons))
        target = images.x_test[scene.target][None]
        clean = images.x[scene.where][:shown]
        plots.pictures(
            np.concatenate([target, poisons[:shown], target, clean]) - images.mean,
            workdir.path(f"poisons_{seed}.png"),
            mean=images.mean,
            notes=["target", *["poison"] * shown, "target", *["clean"] * shown],
            title=f"{config.attack}: poisons above what they were",
            columns=shown + 1,
        )
    mixed = direct.replace(jnp.asarray(images.x), jnp.asarray(poisons), scene.where)
    x, entries = images.normalised(mixed), []
    for method in config.methods:
        for run in range(int(config.num_runs or 0)):
            cell = f"cell_{seed}_{method}_{run}.json"
            if not workdir.path(cell).exists():
                told = f"seed {seed}, {method}"
                show = config.progress or None
                with Progress(config.num_steps or 0, description=told, show=show) as b:
                    figures, condensed = _cell(
                        config, images, scene, x, method, run, timer, b
                    )
                if run == 0:
                    per_class = config.images_per_class or 1
                    plots.pictures(
                        condensed,
                        workdir.path(f"condensed_{seed}_{method}.png"),
                        mean=images.mean,
                        notes=[f"{i // per_class}" for i in range(len(condensed))],
                        title=f"{method}, poisoned by {config.attack}",
                    )
                workdir.write_json(
                    cell,
                    figures
                    | {
                        "seed": seed,
                        "method": method,
                        "run": run,
                        "class": scene.target_class,
                        "adversarial_class": scene.adversarial_class,
                    },
                )
            entries.append(workdir.read_json(cell))
    return entries


def _row(config: Config, method: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    mine = [entry for entry in entries if entry["method"] == method]
    accuracy = protocol.mean_and_deviation(np.array([e["accuracy"] for e in mine]))
    hits = [e["target_class"] == e["adversarial_class"] for e in mine]
    success = protocol.mean_and_deviation(np.array(hits))
    return {
        "method": method,
        "attack": config.attack,
        "accuracy": accuracy.mean,
        "accuracy_std": accuracy.deviation,
        "attack_success": success.mean,
        "attack_success_std": success.deviation,
        "num_decisions": len(mine),
    }


def run(config: Config) -> dict[str, Any]:
    """Runs all seeds and methods; returns what results.json holds.

    Raises:
      UsageError: the folder belongs to another configuration, or the rate is too high.
      OSError: a file is missing.
      ValueError: a file is damaged, or a loss is not finite.
    """
    images = _load(config)
    # Before the folder is touched.
    robust_mean.class_level(config.rate, images.num_classes)
    with Workdir(config.workdir, config, ignore=NOT_RESULTS) as workdir:
        workdir.write_json("config.json", config)
        timer, entries = Timer(), []
        for seed in range(config.first_seed, config.first_seed + config.num_seeds):
            entries += _seed(config, workdir, images, seed, timer)
        results = {
            "dataset": config.dataset,
            "attack": config.attack,
            "preset": config.preset,
            "table": [_row(config, method, entries) for method in config.methods],
            "runs": entries,
            "seconds": {"run": timer.run, "compile": timer.compile},
            "versions": versions(),
        }
        workdir.write_json("results.json", results)
        return workdir.read_json("results.json")


def main(config: Config) -> None:
    """Runs and prints the table."""
    print("method        accuracy %      attack success %")
    for row in run(config)["table"]:
        accuracy = f"{100 * row['accuracy']:.2f} +- {100 * row['accuracy_std']:.2f}"
        success = 100 * row["attack_success"], 100 * row["attack_success_std"]
        print(
            f"{row['method']:<13} {accuracy:<15} {success[0]:.2f} +- {success[1]:.2f}"
        )


if __name__ == "__main__":
    _flags.run(main, Config)
