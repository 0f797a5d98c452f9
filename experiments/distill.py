"""Distils a small training set that hides the images, trains on it, attacks it.

    python -m experiments.distill --method=rkip --dataset=mnist --num_images=500 \
        --num_distilled=20 --evaluate --attack

Writes config.json, results.json, arrays.npz (images, labels) and distilled.png to
--workdir; with --attack also defence.png and attack.npz. Killed at any moment and
started again with the same --workdir, it goes on. --evaluate and --attack may also be
asked for later: what is known is kept.
"""

import dataclasses
import pathlib
from typing import Any, Literal

import jax
import numpy as np

from experiments import _defence, _distillation, _flags, _study, _transfer, _victim
from experiments._timing import Timer
from experiments._workdir import Workdir, versions
from ntk_privacy import _checks
from ntk_privacy.reports import plots


def _field(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Distils a small training set, evaluates training on it, and attacks that."""

    method: Literal["kip", "rkip", "rkip_noise", "rkip_finite", "random", "full"] = (
        _field(
            "rkip",
            "kip matches predictions, rkip regressors, rkip_noise with pixels that "
            "stay noise, rkip_finite attacks a trained network; random and full are "
            "real images, some or all.",
        )
    )
    dataset: Literal["digits", "mnist", "cifar10", "tiny_imagenet"] = _field(
        "digits", "Image set; digits is embedded, the others are read from files."
    )
    task: str | None = _field(
        None, "odd_even, animal_vehicle or all_classes; none is the set's binary task."
    )
    num_images: int = _field(500, "Images to distil, balanced over the classes.")
    num_distilled: int = _field(20, "Distilled images, balanced over the classes.")
    num_steps: int = _field(50_000, "Steps of the search (kip, rkip, rkip_noise).")
    learning_rate: float = _field(1e-3, "Of Adam, in intensity per step.")
    noise_ratio: float | None = _field(
        None,
        "Share of entries that stay noise, for rkip_noise and kip; none is 0.05 and 0.",
    )
    kernel: Literal["ntk", "standard"] = _field(
        "ntk",
        "Parametrisation of the infinite-width kernel: the published one without "
        "biases, or that of the networks, with biases and at their width.",
    )
    diag_reg: float = _field(1e-5, "Ridge relative to the kernel's mean diagonal.")
    learn_labels: bool = _field(False, "Let the labels descend too.")
    batch_size: int | None = _field(
        None, "Targets that a step sees; none is all of them."
    )
    evaluate: bool = _field(
        False,
        "Test accuracy at infinite width and of networks trained on the set, with "
        "linearized and with standard dynamics.",
    )
    num_runs: int = _field(
        1,
        "Networks per dynamics of --evaluate; with --table or --defence, repeats of "
        "everything, one seed each.",
    )
    num_finite_runs: int | None = _field(
        None, "Of the runs, how many train networks; none is all."
    )
    attack: bool = _field(
        False, "Attack a network trained on the set; compare with the original images."
    )
    attack_steps: int | None = _field(
        None, "Steps of the attack's search; none is its own default."
    )
    table: bool = _field(
        False, "Evaluate --methods over --num_runs seeds: the paper's Table 1."
    )
    defence: bool = _field(
        False, "Attack --methods over --num_runs seeds: the paper's defence figures."
    )
    methods: tuple[str, ...] = _field(
        (), "Of --table and --defence, between commas; empty is all that apply."
    )
    width: int = _field(4096, "Units of every hidden layer.")
    depth: int = _field(2, "Hidden layers, of networks and of the kernel.")
    dynamics: Literal["linearized", "standard"] = _field(
        "linearized", "Training of the networks that are attacked."
    )
    stop_loss: float = _field(1e-10, "Mean of (f - y)^2 / 2 at which training ends.")
    max_train_steps: int = _field(5000, "Limit of iterative training.")
    seed: int = _field(0, "Fixes images, initialisation and searches.")
    precision: Literal["float32", "float64"] = _field("float32", "Of everything.")
    data_dir: str | None = _field(
        None, "Folder of the image sets; none: NTK_PRIVACY_DATA, else the cache."
    )
    download: bool = _field(False, "Fetch the image set if it is not there.")
    workdir: str = _field("runs/distill", "Folder of the results.")
    checkpoint_seconds: float = _field(30.0, "Time between checkpoints.")
    progress: bool = _field(True, "Show a progress bar.")

    def __post_init__(self):
        _checks.at_least(
            1,
            num_images=self.num_images,
            num_distilled=self.num_distilled,
            num_steps=self.num_steps,
            num_runs=self.num_runs,
            width=self.width,
            depth=self.depth,
            max_train_steps=self.max_train_steps,
        )
        _checks.at_least(
            0,
            diag_reg=self.diag_reg,
            seed=self.seed,
            checkpoint_seconds=self.checkpoint_seconds,
        )
        _checks.positive(stop_loss=self.stop_loss, learning_rate=self.learning_rate)
        for name, least in (("attack_steps", 1), ("batch_size", 1)):
            if getattr(self, name) is not None:
                _checks.at_least(least, **{name: getattr(self, name)})
        if self.num_finite_runs is not None:
            _checks.in_range(0, self.num_runs, num_finite_runs=self.num_finite_runs)
        if self.noise_ratio is not None:
            _checks.in_range(0, 1, noise_ratio=self.noise_ratio)
            if self.method not in ("kip", "rkip_noise") and not self.is_study:
                raise ValueError(
                    f"noise_ratio={self.noise_ratio} is for rkip_noise and kip: leave "
                    f"it out for method={self.method!r}."
                )
        if self.table and self.defence:
            raise ValueError("table and defence are two studies: ask for one.")
        for name in self.methods:
            _checks.one_of(_distillation.METHODS, methods=name)
        if self.methods and not self.is_study:
            raise ValueError("methods is for --table and --defence: use --method.")
        if self.method == "full" and self.attack:
            raise ValueError(
                "method='full' is no distilled set: attack a network trained on all "
                "images with experiments.reconstruct."
            )

    @property
    def is_study(self) -> bool:
        """Whether several methods or seeds are asked for."""
        return self.table or self.defence


# What may differ when a run goes on in its folder: all but what makes the set and the
# networks. More may be asked of a finished run.
NOT_RESULTS = ("workdir", "progress", "checkpoint_seconds", "data_dir", "download")
STAGES = ("evaluate", "num_runs", "num_finite_runs", "attack")


def run(config: Config) -> dict[str, Any]:
    """Runs one configuration, or a study of them; returns what results.json holds.

    Raises:
      UsageError: the folder belongs to another configuration, or the flags ask for
        what the image set does not have.
      OSError: a file is missing.
      ValueError: a file is damaged, a kernel is singular, or a loss is not finite.
    """
    if config.is_study:
        shared = ("methods", "table", "defence")
        return _study.run(config, run, NOT_RESULTS + STAGES + shared)
    if config.precision == "float64" and not jax.config.jax_enable_x64:
        with jax.enable_x64(True):
            return _run(config)
    return _run(config)


def _is_done(config: Config, workdir: Workdir) -> bool:
    """Whether the results hold all that is asked for."""
    if not workdir.is_done():
        return False
    results = workdir.read_json("results.json")
    if config.attack and "attack" not in results:
        return False
    if not config.evaluate:
        return True
    finite = _transfer.num_finite_runs(config)
    runs = results.get("runs")
    return runs is not None and all(
        len(runs[kind]) >= finite for kind in ("linearized", "standard")
    )


def _run(config: Config) -> dict[str, Any]:
    # Before the folder is touched: images that cannot be had leave nothing behind.
    done = (pathlib.Path(config.workdir) / "results.json").exists()
    loaded = None if done else _load(config)
    with Workdir(config.workdir, config, ignore=NOT_RESULTS + STAGES) as workdir:
        if _is_done(config, workdir):
            return workdir.read_json("results.json")
        earlier = workdir.read_json("results.json") if workdir.is_done() else {}
        told = dataclasses.replace(
            config,
            evaluate=config.evaluate or "accuracy" in earlier,
            attack=config.attack or "attack" in earlier,
        )
        workdir.write_json("config.json", told)
        dataset, key = loaded or _load(config)
        key_distill, key_networks, key_attack = jax.random.split(key, 3)
        distilling, evaluating, attacking = Timer(), Timer(), Timer()
        distilled = _distillation.distill(
            config, workdir, dataset, key_distill, distilling
        )
        noise = _distillation.noise_mask(config, dataset, key_distill)
        nearest = _defence.nearest(dataset, distilled.images, noise)
        if config.method != "full":
            _draw(config, workdir, dataset, distilled, nearest)
        losses = distilled.losses
        results: dict[str, Any] = {
            "method": config.method,
            "dataset": config.dataset,
            "task": config.task,
            "num_images": config.num_images,
            "num_distilled": len(distilled.images),
            "noise_ratio": _distillation.noise_ratio(config),
            "width": config.width,
            "seed": config.seed,
            "loss": float(losses[-1]) if len(losses) else None,
            "nonfinite": False,
            "nearest": nearest,
        }
        entries = ("accuracy", "accuracy_released_label_fault", "runs", "attack")
        results |= {name: earlier[name] for name in entries if name in earlier}
        seconds = {"evaluate": None, "attack": None, **earlier.get("seconds", {})}
        seconds |= {"distill": distilling.run, "compile": distilling.compile}
        if config.evaluate:
            results |= _transfer.evaluate(
                config, workdir, dataset, distilled, key_networks, evaluating
            )
            seconds["evaluate"] = evaluating.run
        if config.attack:
            results["attack"] = _defence.attack(
                config, workdir, dataset, distilled, key_attack, attacking
            )
            seconds["attack"] = attacking.run
        seconds["compile"] += evaluating.compile + attacking.compile
        results |= {"seconds": seconds, "versions": versions()}
        results["device"] = results["versions"].pop("device")
        # Last: its presence says that the run is whole.
        workdir.write_json("results.json", results)
        return workdir.read_json("results.json")


def _load(config: Config) -> tuple[Any, jax.Array]:
    dataset, key = _victim.load(config)
    if config.method != "full":
        _distillation.images_per_class(config, dataset)
    return dataset, key


def _draw(config, workdir, dataset, distilled, nearest) -> None:
    labels = distilled.labels
    notes = [
        f"{label[0]:+.2g}" if len(label) == 1 else f"class {int(label.argmax())}"
        for label in labels
    ]
    plots.pictures(
        distilled.images,
        workdir.path("distilled.png"),
        mean=dataset.mean,
        notes=notes,
        title=f"{config.method}: {config.num_images} images of {config.dataset} "
        f"distilled to {len(labels)}, labels below",
    )
    plots.gallery(
        dataset.x_train[np.asarray(nearest["index"])],
        distilled.images,
        workdir.path("nearest.png"),
        mean=dataset.mean,
        distances=nearest["distances"],
        psnr=nearest["psnr"],
        title="Nearest training images above the distilled ones",
    )


def summary(results: dict[str, Any]) -> str:
    """Returns a short table for the terminal."""
    rows = []
    if results["loss"] is not None:
        rows.append(("loss", f"{results['loss']:.3g}"))
    for kind in ("infinite", "linearized", "standard"):
        mean = results.get("accuracy", {}).get(kind)
        if mean is not None:
            spread = results["accuracy"][f"{kind}_deviation"]
            told = f"{100 * mean:.2f}% +- {100 * spread:.2f}"
            rows.append((f"test accuracy, {kind}", told))
    nearest = results["nearest"]
    count = f"{nearest['num_copies']} of {results['num_distilled']}"
    rows.append(("copies of training images (PSNR >= 25 dB)", count))
    for name in _defence.ATTACKS if "attack" in results else ():
        told = results["attack"][name]
        rows.append((f"original images recovered, {name}", f"{told['num_recovered']}"))
    spent = [f"{name} {s:.1f}" for name, s in results["seconds"].items() if s]
    rows.append(("seconds", ", ".join(spent)))
    size = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{size}}  {value}" for name, value in rows)


def main(config: Config) -> None:
    """Runs and prints the summary."""
    results = run(config)
    if config.is_study:
        print(results["markdown"])
        return
    print(summary(results))
    print(f"distilled.png and results.json are in {config.workdir}")


if __name__ == "__main__":
    _flags.run(main, Config)
