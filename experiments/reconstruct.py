"""Trains a network on real images and reads them back from its weights.

    python -m experiments.reconstruct --dataset=mnist --num_images=20 --width=1024

Writes config.json, results.json, arrays.npz, curve.png and gallery.png to --workdir.
Killed at any moment and started again with the same --workdir, it goes on.
"""

import dataclasses
import pathlib
import textwrap
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import (
    _attacks,
    _flags,
    _image_sets,
    _max_margin,
    _sweep,
    _victim,
    _warned,
)
from experiments._workdir import Workdir, versions
from ntk_privacy import _checks, data
from ntk_privacy.evaluation import reconstruction_curve
from ntk_privacy.reconstruction import METHODS
from ntk_privacy.reports import plots
from ntk_privacy.resume import Timer
from ntk_privacy.training import logistic, train


def _field(default: Any, text: str, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, **more})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Trains a network on real images and reconstructs them from its weights."""

    dataset: str = _image_sets.dataset_field("digits")
    image_size: int | None = _image_sets.size_field()
    task: str | None = _field(
        None,
        "odd_even, animal_vehicle, two_classes or all_classes; none is the set's "
        "binary task, if it has one.",
    )
    num_images: int = _field(20, "Training images N, balanced over the classes.")
    width: int = _field(4096, "Units of every hidden layer.")
    depth: int = _field(2, "Hidden layers.")
    parametrization: Literal["standard", "ntk"] = _field(
        "standard", "Of the network: Flax's default, or the NTK parametrisation."
    )
    dynamics: Literal["linearized", "standard"] = _field(
        "linearized", "Training of the first-order Taylor model, or of the network."
    )
    schedule: Literal["flow", "paper"] = _field(
        "flow",
        "Gradient flow (standard: heavy ball close to it), or the published step size.",
    )
    stop_loss: float = _field(1e-10, "Mean of (f - y)^2 / 2 at which training ends.")
    early_stop_loss: float | None = _field(
        None, "Attack the parameters at this larger loss instead."
    )
    max_train_steps: int = _field(1_000_000, "Limit of iterative training.")
    method: str = _field(
        "auto",
        "The attack: decode the gates exactly (algebraic), search (kkt), or decode, "
        "then search for the rest and polish (auto); max_margin is Haim et al.'s, on "
        "a network of its own training.",
        choices=METHODS,
    )
    auxiliary: Literal["none", "test_images"] = _field(
        "none", "Images of the same domain that the decoding may start from."
    )
    preset: Literal["fast", "paper"] = _field(
        "fast", "Settings of the search: ours, or the published ones."
    )
    points: str | None = _field(
        None,
        "Where features are taken: final, init, midpoint, both, three, or numbers in "
        "[0, 1] between commas; none is the preset's choice.",
    )
    known_num_images: int | None = _field(
        None,
        "Told to the attacker: the number of training images; none: it is read from "
        "the weights (algebraic, auto) or is N (the searches).",
    )
    num_candidates: int | None = _field(None, "Images searched for; none is 2 N.")
    num_steps: int | None = _field(None, "Steps of the search; none is the preset's.")
    learning_rate: float | None = _field(
        None, "Step size of the images (intensity); none is the preset's."
    )
    replays: int = _field(
        2,
        "Times that auto replays the training on what it found and polishes along its "
        "path, under standard dynamics.",
    )
    sweep: Literal["full", "cpu", "smoke"] | None = _field(
        None,
        "Limits study over images, widths, dynamics, sets and tasks: all of it, what "
        "two cores finish in an hour, or a taste of it on digits.",
    )
    seed: int = _field(0, "Fixes images, initialisation and search.")
    precision: Literal["float32", "float64"] = _field("float32", "Of everything.")
    data_dir: str | None = _field(
        None, "Folder of the image sets; none: NTK_PRIVACY_DATA, else the cache."
    )
    download: bool = _field(False, "Fetch the image set if it is not there.")
    fingerprint: str | None = _image_sets.fingerprint_field()
    workdir: str = _field("runs/reconstruct", "Folder of the results.")
    checkpoint_seconds: float = _field(30.0, "Time between checkpoints.")
    progress: bool = _field(True, "Show a progress bar.")

    def __post_init__(self):
        _image_sets.complete(self)
        _checks.at_least(
            1,
            num_images=self.num_images,
            width=self.width,
            depth=self.depth,
            max_train_steps=self.max_train_steps,
        )
        if self.method == "algebraic" and (
            self.depth < 2 or self.parametrization != "standard"
        ):
            raise ValueError(
                f"depth={self.depth}, parametrization={self.parametrization!r}: "
                "method='algebraic' takes two or more hidden layers in the standard "
                "parametrisation; use --method=kkt."
            )
        _checks.positive(stop_loss=self.stop_loss)
        _checks.at_least(0, seed=self.seed, checkpoint_seconds=self.checkpoint_seconds)
        for name in ("known_num_images", "num_candidates", "num_steps"):
            if getattr(self, name) is not None:
                _checks.at_least(1, **{name: getattr(self, name)})
        if self.early_stop_loss is not None:
            _checks.positive(early_stop_loss=self.early_stop_loss)
            if self.early_stop_loss <= self.stop_loss:
                raise ValueError(
                    f"early_stop_loss={self.early_stop_loss} must be above "
                    f"stop_loss={self.stop_loss}: it ends training earlier."
                )
        _checks.one_of(METHODS, method=self.method)
        _attacks.method_config(self)
        if self.method == "max_margin":
            about = data.SETS.get(self.dataset)
            if self.task == "all_classes" or (about and not about.binary):
                raise ValueError(_NOT_BINARY)
            if self.depth != 2 or self.parametrization != "standard":
                raise ValueError(
                    "method='max_margin' has a network of its own: leave --depth and "
                    "--parametrization out."
                )

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        if self.sweep is not None:
            return dict.fromkeys(_sweep.AXES, f"--sweep={self.sweep}")
        why = f"--method={self.method}"
        out = dict.fromkeys(_unread(self.method), why)
        linearized = self.dynamics == "linearized" and self.method != "max_margin"
        if linearized and self.schedule == "flow":
            out["max_train_steps"] = "the closed form of --dynamics=linearized"
        if linearized:
            out["replays"] = out.get("replays", "--dynamics=linearized")
        if self.early_stop_loss is not None:
            out["stop_loss"] = "--early_stop_loss"
        if self.num_candidates is not None and self.method in ("kkt", "max_margin"):
            out["known_num_images"] = "--num_candidates"
        return out


_NOT_BINARY = (
    "method='max_margin' takes two classes: use a binary task, or --method=auto."
)

# Flags of the network that the max-margin attack trains otherwise.
_NOT_MARGIN = ("dynamics", "schedule", "stop_loss", "depth", "parametrization")


def _unread(name: str) -> set[str]:
    """Returns the flags that a method does not read."""
    fields = {
        method: {entry.name for entry in dataclasses.fields(row.config)}
        for method, row in METHODS.items()
    }
    out = set().union(*fields.values()) - fields[name]
    if len(METHODS[name].presets) == 1:
        out.add("preset")
    if name not in ("auto", "algebraic"):
        out.add("auxiliary")
    return out | set(_NOT_MARGIN if name == "max_margin" else ())


# What may differ when a run goes on in its folder.
NOT_RESULTS = ("workdir", "progress", "checkpoint_seconds", "data_dir", "download")


def run(config: Config) -> dict[str, Any]:
    """Runs one configuration, or a sweep of them; returns what results.json holds.

    Raises:
      UsageError: the folder belongs to another configuration, or the flags ask for
        what the image set does not have.
      OSError: a file is missing.
      ValueError: a file is damaged, or training or attack cannot go on.
    """
    if config.sweep is not None:
        ignore = _image_sets.not_results(config, NOT_RESULTS)
        return _sweep.run(config, run, ignore)
    double = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]  # set at run time
    if config.precision == "float64" and not double:
        with jax.enable_x64(True):
            return _run(config)
    return _run(config)


def _run(config: Config) -> dict[str, Any]:
    # Before the folder is touched: images that cannot be had leave nothing behind.
    done = (pathlib.Path(config.workdir) / "results.json").exists()
    loaded = None if done else _load(config)
    ignore = _image_sets.not_results(config, NOT_RESULTS)
    with Workdir(config.workdir, config, ignore=ignore) as workdir:
        if workdir.is_done():
            return workdir.read_json("results.json")
        dataset, key_init = loaded or _load(config)
        training, attacking = Timer(), Timer()
        is_max_margin = config.method == "max_margin"
        victim = _victim.make(config, workdir, dataset, key_init, training)
        judged = _victim.figures(config, dataset, victim)
        with _warned.recorded() as told:
            attacked = _attacks.run(config, workdir, dataset, victim, attacking)
        images = attacked.images
        extra, more = _attacks.entries(attacked), _attacks.arrays(config, attacked)
        if is_max_margin:
            ranked = _max_margin.rank(workdir, dataset, images)
            extra, more = extra | ranked[0], more | ranked[1]
            # The network takes images less their mean image.
            images = images + logistic.preprocess(dataset.x_train)[1]
        evaluation = reconstruction_curve.evaluate(
            dataset.x_train, images, mean=dataset.mean
        )
        train_order = evaluation.train_index
        matched = images[evaluation.reconstruction_index]
        plots.curve(
            {f"{config.method}, {config.dynamics}": evaluation.squared_distances},
            workdir.path("curve.png"),
            image_shape=dataset.x_train.shape[1:],
        )
        plots.gallery(
            dataset.x_train[train_order],
            matched,
            workdir.path("gallery.png"),
            mean=dataset.mean,
            distances=evaluation.distances,
            psnr=evaluation.psnr,
        )
        arrays = {
            "images": dataset.x_train,
            "labels": dataset.y_train,
            "mean": dataset.mean,
            "reconstructions": images,
            "duals": attacked.duals,
            "losses": attacked.losses,
            "train_index": train_order,
            "reconstruction_index": evaluation.reconstruction_index,
        }
        arrays.update(more)
        if victim.duals is not None:
            arrays["true_duals"] = victim.duals
        workdir.write_arrays("arrays.npz", **arrays)
        results = {
            "verdict": attacked.verdict,
            "warnings": told,
            "method": config.method,
            "dataset": config.dataset,
            # Max-margin networks are trained by cross-entropy, all parameters moving.
            "dynamics": "standard" if is_max_margin else config.dynamics,
            "width": config.width,
            "num_images": config.num_images,
            "seed": config.seed,
            "train_loss": victim.loss,
            "train_steps": victim.steps,
            "converged": _converged(config, victim.loss, dataset.y_train),
            **judged,
            "num_recovered": evaluation.num_recovered,
            "mean_error": evaluation.mean_error,
            "mean_squared_error": evaluation.mean_squared_error,
            "squared_distances": evaluation.squared_distances,
            "distances": evaluation.distances,
            "psnr": evaluation.psnr,
            "ssim": evaluation.ssim,
            "attack_loss": float(attacked.losses[-1]) if len(attacked.losses) else None,
            **extra,
            "seconds": {
                "train": training.run,
                "compile": training.compile + attacking.compile,
                "attack": attacking.run,
            },
            "versions": versions(),
        }
        results["device"] = results["versions"].pop("device")
        # Last: its presence says that the run is whole.
        workdir.write_json("results.json", results)
        return workdir.read_json("results.json")


def _load(config: Config) -> tuple[data.Dataset, jax.Array]:
    dataset, key_init = _victim.load(config)
    if config.method == "max_margin" and dataset.y_train.shape[1] > 1:
        raise _flags.UsageError(_NOT_BINARY)
    return dataset, key_init


def _converged(config: Config, loss: float, y_train: np.ndarray) -> bool | None:
    """Whether training reached the loss it was asked for; None: there was none.

    However the parameters were found, `loss` is that of the outputs at them.
    """
    if config.method == "max_margin":
        return None
    asked = config.early_stop_loss or config.stop_loss
    return train.reached(loss, asked, jnp.asarray(y_train, config.precision))


def summary(results: dict[str, Any]) -> str:
    """Returns a short table for the terminal."""
    squared = np.asarray(results["squared_distances"], float)
    # Runs of earlier versions have none.
    verdict = results.get("verdict") or {"word": "none was given", "reason": ""}
    seconds = results["seconds"]
    n = results["num_images"]
    short = " (not reached what was asked)" if results.get("converged") is False else ""
    rows = [
        ("verdict", verdict["word"]),
        ("images recovered (PSNR >= 25 dB)", f"{results['num_recovered']} of {n}"),
        *_decoding_rows(results),
        *_ranking_rows(results),
        *_distance_rows(squared, results["ssim"]),
        ("training loss", f"{results['train_loss']:.2g}{short}"),
        ("test accuracy of the network", f"{100 * results['test_accuracy']:.1f}%"),
        ("kernel distance", f"{float(results['kernel_distance']):.2g}"),
        (
            "seconds: train, compile, attack",
            ", ".join(f"{seconds[k]:.1f}" for k in ("train", "compile", "attack")),
        ),
    ]
    if results.get("nonfinite"):
        rows.insert(0, ("search lost", "its loss became NaN: lower --learning_rate"))
    size = max(len(name) for name, _ in rows)
    lines = [f"{name:<{size}}  {value}" for name, value in rows]
    # In full, below the table: it is why the word was chosen.
    told = [verdict["reason"], *(f"warning: {w}" for w in results.get("warnings", ()))]
    return "\n".join(
        lines + [part for text in told for part in textwrap.wrap(text, 79)]
    )


def _distance_rows(squared: np.ndarray, ssim: list[Any]) -> list[tuple[str, str]]:
    if not len(squared):
        return [("images found", "0")]
    return [
        ("median squared distance", f"{np.median(squared):.3g}"),
        ("largest squared distance", f"{squared.max():.3g}"),
        ("mean SSIM", f"{np.mean(np.asarray(ssim, float)):.3f}"),
    ]


def _decoding_rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    if "num_certified" not in results:
        return []
    estimate = results["estimated_num_images"]
    told = "unknown" if estimate is None else f"{estimate}"
    return [
        ("size of the training set, as read from the weights", told),
        ("images certified", str(results["num_certified"])),
    ]


def _ranking_rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    if "ranking" not in results:
        return []
    ranking = results["ranking"]
    return [
        (
            "mean SSIM of the best 10 (of unseen images)",
            f"{ranking['mean_ssim_best_10']:.3f} "
            f"({ranking['mean_ssim_best_10_of_unseen_images']:.3f})",
        )
    ]


def main(config: Config) -> None:
    """Runs and prints the summary."""
    results = run(config)
    if config.sweep is not None:
        print(f"table.json and the figures are in {config.workdir}")
        return
    print(summary(results))
    print(f"curve.png, gallery.png and results.json are in {config.workdir}")


if __name__ == "__main__":
    _flags.run(main, Config)
