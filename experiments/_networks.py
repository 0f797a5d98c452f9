"""`experiments.distill`, methods of a task: networks trained on the set, attacked."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from experiments import _defence, _image_sets, _made, _transfer
from experiments._flags import UsageError
from experiments._groups import Data, Run
from experiments._program import Asked
from experiments._workdir import Workdir
from ntk_privacy import _checks
from ntk_privacy.data import ArgumentError
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import kernel_methods
from ntk_privacy.distillation.regressed import targets
from ntk_privacy.evaluation import rates
from ntk_privacy.method import field
from ntk_privacy.reports import plots
from ntk_privacy.resume import Timer

STAGES = ("evaluate", "num_runs", "num_finite_runs", "attack")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Data):
    """Images."""

    num_images: int | None = field(
        500, "Images to distil, balanced over the classes of the task."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """Networks trained on the set."""

    evaluate: bool = field(
        False,
        "Test accuracy at infinite width and of networks trained on the set, with "
        "linearized and with standard dynamics.",
    )
    num_runs: int = field(1, "Networks per dynamics of --evaluate.")
    num_finite_runs: int | None = field(
        None, "Of the runs, how many train networks; none is all."
    )
    attack: bool = field(
        False, "Attack a network trained on the set; compare with the original images."
    )
    attack_steps: int | None = field(
        None, "Steps of the attack's search; none is its own default."
    )
    kernel: Literal["ntk", "standard"] = field(
        "ntk",
        "Parametrisation of the infinite-width kernel: the published one without "
        "biases, or that of the networks, with biases and at their width.",
    )
    diag_reg: float = field(1e-5, "Ridge relative to the kernel's mean diagonal.")
    width: int = field(4096, "Units of every hidden layer.")
    depth: int = field(2, "Hidden layers, of networks and of the kernel.")
    dynamics: Literal["linearized", "standard"] = field(
        "linearized", "Training of the networks that are attacked."
    )
    stop_loss: float = field(1e-10, "Mean of (f - y)^2 / 2 at which training ends.")
    max_train_steps: int = field(5000, "Limit of iterative training.")

    def __post_init__(self):
        _checks.at_least(
            1,
            num_runs=self.num_runs,
            width=self.width,
            depth=self.depth,
            max_train_steps=self.max_train_steps,
            attack_steps=1 if self.attack_steps is None else self.attack_steps,
        )
        _checks.positive(stop_loss=self.stop_loss)
        _checks.at_least(0, diag_reg=self.diag_reg)
        if self.num_finite_runs is not None:
            _checks.in_range(0, self.num_runs, num_finite_runs=self.num_finite_runs)


def passed_over(asked: Asked[Any]) -> dict[str, str]:
    """Returns flags that are not read, each with the choice that makes it so.

    Args:
      asked: of a method of a task.
    """
    flags, name = asked.group(Networks), asked.method.name
    has = {entry.name for entry in dataclasses.fields(asked.config)}
    out = {}
    if "kernel" not in has and not flags.evaluate:
        out["kernel"] = f"--method={name}"
    if not flags.evaluate:
        alone = "a set that is not evaluated"
        out |= dict.fromkeys(("num_runs", "num_finite_runs"), alone)
    attacked = flags.attack or name == "rkip_finite"
    if not attacked:
        out["attack_steps"] = "no attack"
        out["dynamics"] = "no network that is attacked"
    if not (attacked or flags.evaluate):
        out["stop_loss"] = "no network that is trained"
        if flags.kernel != "standard":
            out["width"] = "no network and --kernel=ntk"
    if not flags.evaluate and not (attacked and flags.dynamics == "standard"):
        out["max_train_steps"] = "no network that is trained step by step"
    return out


class Loaded(NamedTuple):
    """Images, and keys of the method, of networks and of attacks."""

    images: ImageSet
    keys: jax.Array


def load(asked: Asked[Any]) -> Loaded:
    """Returns the images that are asked for.

    Args:
      asked: of a method of a task.

    Raises:
      UsageError: a flag does not fit the image set.
      OSError, ValueError: a file is missing or damaged.
    """
    key_data, key_init = jax.random.split(
        jax.random.fold_in(jax.random.key(0), asked.group(Run).seed)
    )
    data = asked.group(Data)
    try:
        images = _image_sets.read(data).balanced(
            asked.config.task, num_train=data.num_images, key=key_data
        )
        check(asked, images)
    except ArgumentError as error:
        raise UsageError(str(error).replace("num_train", "num_images")) from error
    return Loaded(images, jax.random.split(key_init, 3))


def check(asked: Asked[Any], images: ImageSet) -> None:
    """Refuses flags that do not fit the images, before anything is made.

    Args:
      asked: of a method of a task.
      images: to distil.

    Raises:
      UsageError: a flag does not fit.
    """
    try:
        images.regression(asked.config.task)
        asked.method.check(images, asked.config)
    except ValueError as error:
        raise UsageError(str(error)) from error


def is_done(asked: Asked[Any], workdir: Workdir) -> bool:
    """Whether the results hold all that is asked for.

    Args:
      asked: of a method of a task.
      workdir: of the run.
    """
    if not (workdir.is_done() and workdir.path("arrays.npz").exists()):
        return False
    flags, results = asked.group(Networks), workdir.read_json("results.json")
    if flags.attack and "attack" not in results:
        return False
    if not flags.evaluate:
        return True
    finite = _transfer.num_finite_runs(flags)
    runs = results.get("runs")
    return runs is not None and all(
        len(runs[kind]) >= finite for kind in ("linearized", "standard")
    )


def with_earlier(
    asked: Asked[Any], earlier: dict[str, Any], stored: dict[str, Any]
) -> Asked[Any]:
    """Returns the flags with the stages of earlier starts, which the results keep.

    Args:
      asked: of this start.
      earlier: results.json.
      stored: config.json.
    """
    flags = asked.group(Networks)
    told = asked.replaced(attack=flags.attack or "attack" in earlier)
    if "accuracy" not in earlier:
        return told
    runs, finite = stored["num_runs"], stored["num_finite_runs"]
    finite = runs if finite is None else finite
    if flags.evaluate:
        runs = max(runs, flags.num_runs)
        finite = max(finite, _transfer.num_finite_runs(flags))
    return told.replaced(
        evaluate=True,
        num_runs=runs,
        num_finite_runs=None if finite == runs else finite,
    )


def judged(
    asked: Asked[Any],
    workdir: Workdir,
    loaded: Loaded,
    earlier: dict[str, Any],
    distilling: Timer,
) -> dict[str, Any]:
    """Makes the set, trains on it and attacks; returns what results.json holds.

    Args:
      asked: of a method of a task.
      workdir: of the run.
      loaded: of `load`.
      earlier: results.json of an earlier start.
      distilling: of the method.
    """
    images, (key_distill, key_networks, key_attack) = loaded
    config: Any = asked.namespace()
    dataset = images.regression(config.task)
    made = _made.make(
        asked, workdir, images, key_distill, distilling, mean=dataset.mean
    )
    nearest = _defence.nearest(dataset, made.images, noise_mask(loaded, asked.config))
    if config.method != "full":
        _draw(config, workdir, dataset, made, nearest)
    evaluating, attacking = Timer(), Timer()
    results: dict[str, Any] = {
        "method": config.method,
        "dataset": config.dataset,
        "task": config.task,
        "num_images": config.num_images,
        "num_distilled": len(made.images),
        "noise_ratio": getattr(asked.config, "noise_ratio", 0.0),
        "width": config.width,
        "seed": config.seed,
        "loss": float(made.losses[-1]) if len(made.losses) else None,
        "nonfinite": False,
        "nearest": nearest,
    }
    entries = ("accuracy", "accuracy_released_label_fault", "runs", "attack")
    results |= {name: earlier[name] for name in entries if name in earlier}
    seconds = {"evaluate": None, "attack": None, **earlier.get("seconds", {})}
    seconds |= {"distill": distilling.run, "compile": distilling.compile}
    if config.evaluate:
        results |= _transfer.evaluate(
            config, workdir, dataset, made, key_networks, evaluating
        )
        seconds["evaluate"] = evaluating.run
    if config.attack:
        results["attack"] = _defence.attack(
            config, workdir, dataset, made, key_attack, attacking
        )
        seconds["attack"] = attacking.run
    seconds["compile"] += evaluating.compile + attacking.compile
    return results | {"seconds": seconds}


def noise_mask(loaded: Loaded, config: Any) -> np.ndarray | None:
    """Returns the entries that are noise for good; None without any.

    Args:
      loaded: of `load`.
      config: of the method.
    """
    if not getattr(config, "noise_ratio", 0.0):
        return None
    x, y = targets(loaded.images, config)
    return np.asarray(kernel_methods.start(x, y, config, loaded.keys[0]).noise)


def _draw(config, workdir, dataset, made, nearest) -> None:
    labels = made.labels
    notes = [
        f"{label[0]:+.2g}" if len(label) == 1 else f"class {int(label.argmax())}"
        for label in labels
    ]
    plots.pictures(
        made.images,
        workdir.path("distilled.png"),
        mean=dataset.mean,
        notes=notes,
        title=f"{config.method}: {config.num_images} images of {config.dataset} "
        f"distilled to {len(labels)}, labels below",
    )
    alike = dataset.x_train[np.asarray(nearest["psnr_index"])]
    plots.gallery(
        alike,
        made.images,
        workdir.path("nearest.png"),
        mean=dataset.mean,
        distances=np.sqrt(np.sum((alike - made.images) ** 2, axis=(1, 2, 3))),
        psnr=nearest["psnr"],
        title="Training images of the greatest PSNR above the distilled ones",
    )


def rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the lines of a short table for the terminal.

    Args:
      results: of the run.
    """
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
    return rows
