"""Distils a small training set that hides the images, trains on it, attacks it.

    python -m experiments.distill --method=rkip --dataset=mnist --num_images=500 \
        --num_distilled=20 --evaluate --attack

    python -m experiments.distill --method=rdm --dataset=cifar10 --evaluate

    python -m experiments.distill --method=sre2l --regularizer=curvature --evaluate

sre2l and cda have flags of their own: --method=sre2l --help lists them.

Writes config.json, results.json, arrays.npz (images, labels) and distilled.png to
--workdir; with --attack also defence.png and attack.npz; with dm and its kind
losses.png. Killed at any moment and started again with the same --workdir, it goes on.
--evaluate and --attack may also be asked for later: what is known is kept.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments import (
    _condense_run,
    _condensed,
    _defence,
    _distillation,
    _flags,
    _image_sets,
    _sre2l,
    _sre2l_config,
    _study,
    _transfer,
    _victim,
)
from experiments._distill_config import Config as Config
from experiments._workdir import Workdir, versions
from ntk_privacy.evaluation import rates
from ntk_privacy.reports import plots
from ntk_privacy.resume import Timer

# What may differ when a run goes on in its folder: all but what makes the set and the
# networks. More may be asked of a finished run.
NOT_RESULTS = ("workdir", "progress", "checkpoint_seconds", "data_dir", "download")
STAGES = ("evaluate", "num_runs", "num_finite_runs", "attack")


def run(config: Config | _sre2l_config.Config) -> dict[str, Any]:
    """Runs one configuration, or a study of them; returns what results.json holds.

    Raises:
      UsageError: the folder belongs to another configuration, or the flags ask for
        what the image set does not have.
      OSError: a file is missing.
      ValueError: a file is damaged, a kernel is singular, or a loss is not finite.
    """
    if isinstance(config, _sre2l_config.Config):
        return _sre2l.run(config)
    if config.method in _condensed.METHODS:
        return _condense_run.run(config, _ignore(config))
    if config.is_study:
        shared = ("methods", "table", "defence")
        return _study.run(config, run, _victim.load, ignore=_ignore(config) + shared)
    if config.precision == "float64" and not jax.config.jax_enable_x64:
        with jax.enable_x64(True):
            return _run(config)
    return _run(config)


def _ignore(config: Config) -> tuple[str, ...]:
    return _image_sets.not_results(config, NOT_RESULTS + STAGES)


def _is_done(config: Config, workdir: Workdir) -> bool:
    """Whether the results hold all that is asked for."""
    if not (workdir.is_done() and workdir.path("arrays.npz").exists()):
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
    with Workdir(config.workdir, config, ignore=_ignore(config)) as workdir:
        if _is_done(config, workdir):
            return workdir.read_json("results.json")
        earlier = workdir.read_json("results.json") if workdir.is_done() else {}
        stored = workdir.read_json("config.json")
        workdir.write_json("config.json", _asked_for(config, earlier, stored))
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


def _asked_for(
    config: Config, earlier: dict[str, Any], stored: dict[str, Any]
) -> Config:
    """Returns the config with the stages of earlier starts, which the results keep."""
    told = dataclasses.replace(config, attack=config.attack or "attack" in earlier)
    if "accuracy" not in earlier:
        return told
    runs, finite = stored["num_runs"], stored["num_finite_runs"]
    finite = runs if finite is None else finite
    if config.evaluate:
        runs = max(runs, config.num_runs)
        finite = max(finite, _transfer.num_finite_runs(config))
    return dataclasses.replace(
        told,
        evaluate=True,
        num_runs=runs,
        num_finite_runs=None if finite == runs else finite,
    )


def _load(config: Config) -> tuple[Any, jax.Array]:
    dataset, key = _victim.load(config)
    _distillation.check(config, dataset)
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
    alike = dataset.x_train[np.asarray(nearest["psnr_index"])]
    plots.gallery(
        alike,
        distilled.images,
        workdir.path("nearest.png"),
        mean=dataset.mean,
        distances=np.sqrt(np.sum((alike - distilled.images) ** 2, axis=(1, 2, 3))),
        psnr=nearest["psnr"],
        title="Training images of the greatest PSNR above the distilled ones",
    )


def summary(results: dict[str, Any]) -> str:
    """Returns a short table for the terminal."""
    rows = []
    if results["loss"] is not None:
        rows.append(("loss", f"{results['loss']:.3g}"))
    for kind in ("infinite", "linearized", "standard"):
        mean = results.get("accuracy", {}).get(kind)
        if mean is not None:
            runs = [told["accuracy"] for told in results["runs"][kind]]
            told = rates.in_percent(runs, digits=2)
            rows.append((f"test accuracy, {kind}", f"{told}%"))
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


def main(config: Config | _sre2l_config.Config) -> None:
    """Runs and prints the summary."""
    if isinstance(config, _sre2l_config.Config):
        _sre2l.main(config)
        return
    results = run(config)
    if config.is_study:
        print(results["markdown"])
        return
    is_condensed = config.method in _condensed.METHODS
    print((_condense_run.summary if is_condensed else summary)(results))
    print(f"distilled.png and results.json are in {config.workdir}")


def config_class(arguments: Sequence[str]) -> type[Any]:
    """Returns the config of a command line: methods in stages have their own.

    Args:
      arguments: without the program's name.
    """
    for i, argument in enumerate(arguments):
        name, _, value = argument.lstrip("-").partition("=")
        following = "".join(arguments[i + 1 : i + 2])
        if name == "method" and (value or following) in _sre2l_config.METHODS:
            return _sre2l_config.Config
    return Config


if __name__ == "__main__":
    _flags.run(main, config_class(sys.argv[1:]))
