"""`experiments.distill` with a method that matches real data in random networks.

What a run leaves is as for the methods with kernels, but the accuracy is that of
ConvNets trained on the set, beside that of as many random real images; the first of
them is kept in model/.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _condensed, _defence, _image_sets
from experiments._condensed import Condensed
from experiments._image_sets import Images
from experiments._workdir import Workdir, versions
from ntk_privacy.distillation import distribution_matching, student
from ntk_privacy.evaluation import rates
from ntk_privacy.models import ConvNet, saved
from ntk_privacy.reports import loss_plots, plots
from ntk_privacy.resume import Timer

_STAGES = ("condensed", "random")


def run(config: Any, ignore: tuple[str, ...]) -> dict[str, Any]:
    """Runs one configuration; returns what results.json holds.

    Args:
      config: of `experiments.distill`, its method one of `_condensed.METHODS`.
      ignore: flags that may differ when a run goes on in its folder.

    Raises:
      UsageError: the folder belongs to another configuration, or a flag does not fit
        the image set.
      OSError: a file is missing.
      ValueError: a file is damaged, or the loss is not finite.
    """
    # Before the folder is touched: images that cannot be had leave nothing behind.
    there = (pathlib.Path(config.workdir) / "results.json").exists()
    images = None if there else _load(config)
    begun = (pathlib.Path(config.workdir) / "config.json").exists()
    if images is not None and not begun:
        _condensed.check_experts(config, images, _keys(config)[0])
    with Workdir(config.workdir, config, ignore=ignore) as workdir:
        if workdir.is_done():
            known = workdir.read_json("results.json")
            there = workdir.path("arrays.npz").exists()
            if there and ("accuracy" in known or not config.evaluate):
                return known
            evaluate = config.evaluate or "accuracy" in known
            config = dataclasses.replace(config, evaluate=evaluate)
        workdir.write_json("config.json", config)
        images = images or _load(config)
        return _run(config, workdir, images)


def _load(config) -> Images:
    images = _image_sets.load(
        config, num_train=config.num_images, num_test=config.num_test
    )
    _condensed.check(config, (config.method,), images)
    return images


def _keys(config) -> jax.Array:
    return jax.random.split(jax.random.key(config.seed), 3)


def _run(config, workdir: Workdir, images: Images) -> dict[str, Any]:
    key_condense, key_networks, key_random = _keys(config)
    timers = {name: Timer() for name in ("condense", *_STAGES)}
    x = images.normalised(images.x)
    condensed = _condense(config, workdir, images, x, key_condense, timers["condense"])
    each = config.images_per_class
    plots.pictures(
        condensed.images * images.deviation,
        workdir.path("distilled.png"),
        mean=images.mean,
        notes=[f"class {label}" for label in condensed.labels],
        columns=min(each, 10) if each > 1 else 5,
        title=f"{config.method}: {len(images.x)} images of {config.dataset} condensed "
        f"to {each} of each class",
    )
    loss_plots.losses(
        {config.method: condensed.losses},
        workdir.path("losses.png"),
        title=f"{config.method} on {config.dataset}",
        kind=_condensed.METHODS[config.method].loss,
    )
    results: dict[str, Any] = {
        "method": config.method,
        "dataset": config.dataset,
        "preset": config.preset,
        "num_images": len(images.x),
        "num_distilled": len(condensed.images),
        "width": config.width,
        "seed": config.seed,
        "loss": float(np.mean(condensed.losses[-50:])),
        "nonfinite": False,
        **_told_of_step_size(config, condensed),
        # Does the set show training images?
        "nearest": _defence.nearest(
            _defence.Real(images.x - images.mean, images.mean),
            condensed.images * images.deviation,
            None,
        ),
    }
    usable = not results.get("step_size_fault") or config.train_learning_rate
    if config.evaluate and usable:
        real = distribution_matching.init(
            x,
            jnp.asarray(images.classes),
            key=key_random,
            num_classes=images.num_classes,
            images_per_class=each,
            initial="real",
        )
        sets = {"condensed": condensed, "random": real}
        found = {
            name: _accuracies(
                config, workdir, images, sets[name], key_networks, name, timers[name]
            )
            for name in _STAGES
        }
        for entry, name in (("accuracy", "condensed"), ("accuracy_random", "random")):
            rate = rates.mean_and_deviation(found[name])
            results[entry] = {"convnet": rate.mean, "convnet_deviation": rate.deviation}
        results["runs"] = found
    seconds = {name: timer.run for name, timer in timers.items()}
    seconds["compile"] = sum(timer.compile for timer in timers.values())
    results |= {"seconds": seconds, "versions": versions()}
    results["device"] = results["versions"].pop("device")
    # Last: its presence says that the run is whole.
    workdir.write_json("results.json", results)
    return workdir.read_json("results.json")


def _told_of_step_size(config, condensed: Condensed) -> dict[str, Any]:
    """Returns the step size that was learnt, and what is wrong with it, if any."""
    if condensed.step_size is None:
        return {}
    size = float(condensed.step_size)
    return {
        "step_size": size,
        "step_size_fault": student.step_size_fault(size, config.step_size),
    }


def _condense(config, workdir, images, x, key, timer) -> Condensed:
    about = workdir.checkpoint_folder / "distilled.json"
    name = str(about.relative_to(workdir.folder))
    # Both: a set that was deleted, because it was damaged, is made again.
    if about.exists() and workdir.path("arrays.npz").exists():
        told, stored = workdir.read_json(name), workdir.read_arrays("arrays.npz")
        timer.run, timer.compile = told["seconds"]
        return Condensed(*(stored.get(name) for name in Condensed._fields))
    made = _condensed.condense(
        config.method,
        config,
        images,
        x,
        key,
        folder=workdir.checkpoint_folder / "distill",
        timer=timer,
        description=config.method,
    )
    arrays = {k: v for k, v in made._asdict().items() if v is not None}
    workdir.write_arrays(
        "arrays.npz", mean=images.mean, deviation=images.deviation, **arrays
    )
    about.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json(name, {"seconds": [timer.run, timer.compile]})
    return made


def _accuracies(config, workdir, images, made, key, name, timer) -> list[float]:
    """Accuracy of each network trained on a set; what is known is read back."""
    about = workdir.checkpoint_folder / f"accuracy_{name}.json"
    path = str(about.relative_to(workdir.folder))
    if about.exists():
        told = workdir.read_json(path)
        timer.run, timer.compile = told["seconds"]
        return told["accuracy"]
    folder = workdir.checkpoint_folder / f"evaluate_{name}"
    found = _condensed.evaluate(images, made, config, key, folder=folder, timer=timer)
    if name == "condensed":
        _keep_first(config, workdir, images, found)
    told = {"accuracy": found.accuracy, "seconds": [timer.run, timer.compile]}
    workdir.write_json(path, told)
    _condensed.remove(folder)
    return workdir.read_json(path)["accuracy"]


def _keep_first(config, workdir, images, found) -> None:
    """Saves the first network in model/, for `experiments.evade`."""
    model = _condensed.model(config, images)
    if not isinstance(model, ConvNet):
        return
    first = jax.tree.map(lambda leaf: leaf[0], found.state.params)
    saved.save(
        workdir.path("model"),
        model,
        first,
        image_shape=images.x.shape[1:],
        mean=images.mean,
        deviation=images.deviation,
        about={
            "dataset": config.dataset,
            "trained_on": config.method,
            "accuracy": float(found.accuracy[0]),
        },
    )


def summary(results: dict[str, Any]) -> str:
    """Returns a short table for the terminal."""
    rows = [("loss, mean of the last 50 steps", f"{results['loss']:.3g}")]
    for entry, told in (
        ("accuracy", "test accuracy"),
        ("accuracy_random", "test accuracy, random real images"),
    ):
        if entry in results:
            name = "condensed" if entry == "accuracy" else "random"
            value = rates.in_percent(results["runs"][name], digits=2)
            rows.append((told, f"{value}%"))
    if results.get("step_size_fault"):
        rows.append(("step size", results["step_size_fault"]))
    if "nearest" in results:
        count = f"{results['nearest']['num_copies']} of {results['num_distilled']}"
        rows.append(("copies of training images (PSNR >= 25 dB)", count))
    spent = [f"{name} {s:.1f}" for name, s in results["seconds"].items() if s]
    rows.append(("seconds", ", ".join(spent)))
    size = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{size}}  {value}" for name, value in rows)
