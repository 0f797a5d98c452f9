"""Compares methods of distillation at one budget: image set, images per class, seconds.

    python -m experiments.compare --dataset=mnist --images_per_class=1 --seconds=120 \
        --workdir=DIR

Every method runs for --seconds, compilation apart and the training of experts included;
networks of the architecture that condensed and of others are then trained on each set,
and on random real images. Writes config.json, results.json, table.md and, per method,
its images as .npz and .png to --workdir. With --attacks=all every set is judged by
attacks of three kinds instead: on networks trained on it, on the training images before
it is made, and on what it shows of them. Started again with the same --workdir it goes
on with the methods that are missing.
"""

import dataclasses
import functools
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import (
    _compare_attacks,
    _flags,
    _image_sets,
    _timed_sets,
)
from experiments._flags import UsageError
from experiments._timed_sets import CONDENSING, KERNEL_METHODS, TimedSet
from experiments._workdir import Workdir, versions
from ntk_privacy import _checks, distillation
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import class_images
from ntk_privacy.evaluation import protocol, rates
from ntk_privacy.evasion import threat_model
from ntk_privacy.models import MLP, convnet
from ntk_privacy.reports import plots

METHODS = ("kip", "rkip", *CONDENSING)
ARCHITECTURES = ("MLP", "ConvNetW32D2", "ConvNetW32ASNN")
# The step of the others breaks it: it has no normalisation.
_RATES = {"MLP": 0.01}
# What none but --attacks=all takes, and what it does not take.
_OF_ATTACKS = (
    *("eps", "num_attacked", "attack_steps", "num_queries", "rate", "num_seeds"),
    *("penalty_weight", "penalty_step"),
)
_NOT_OF_ATTACKS = ("architectures",)


def _field(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Compares methods of distillation at one budget."""

    dataset: str = _image_sets.dataset_field("mnist")
    image_size: int | None = _image_sets.size_field()
    methods: tuple[str, ...] = _field(
        METHODS,
        "Between commas: " + ", ".join((*METHODS, "rkip_noise")) + "; with "
        "--attacks=all also with _curvature behind the name.",
    )
    images_per_class: int = _field(1, "Distilled images of each class.")
    seconds: float = _field(120.0, "Time of each method, compilation apart.")
    architectures: tuple[str, ...] = _field(
        ARCHITECTURES,
        "To train besides the ConvNet that condenses: MLP, or names of ConvNets with "
        "D and W and a number, AS, AR, AL, ASwish, NN, BN, LN, IN, GN, NP, MP, AP.",
    )
    width: int | None = _field(
        None, "Channels of the ConvNet that condenses; none is the preset's."
    )
    preset: Literal["paper", "cpu"] = _field(
        "cpu", "Of every method, but for the number of its steps."
    )
    num_targets: int = _field(
        1000, "Images that kip and rkip see, of which a kernel is made."
    )
    num_networks: int = _field(3, "Trained per architecture and set.")
    num_images: int | None = _field(None, "Training images; none: all.")
    num_test: int | None = _field(None, "Test images; none is all.")
    attacks: Literal["none", "all"] = _field(
        "none",
        "Judge the sets by evasion, poisoning and reconstruction, rather than by "
        "architectures.",
    )
    eps: str = _field("1/255", "Bound of the evasion, l_inf; number or fraction.")
    num_attacked: int = _field(100, "Test images to attack, at most.")
    attack_steps: int | None = _field(None, "Of the evasion; none is each one's own.")
    num_queries: int = _field(5000, "Of Square, a part of AutoAttack.")
    rate: float = _field(0.01, "Poison, as a share of the training set.")
    num_seeds: int = _field(1, "Of the attacks: sets, networks and targets.")
    penalty_weight: float = _field(10.0, "Of the curvature in the loss.")
    penalty_step: float = _field(3.0, "That tells the curvature, normalised units.")
    seed: int = _field(
        0, "Fixes everything but the time; the first one of the attacks."
    )
    data_dir: str | None = _field(
        None, "Folder of the image sets; none: NTK_PRIVACY_DATA, else the cache."
    )
    download: bool = _field(False, "Fetch the image set if missing.")
    fingerprint: str | None = _image_sets.fingerprint_field()
    workdir: str = _field("runs/compare", "Folder of the results.")
    progress: bool = _field(True, "Show a progress bar.")

    def __post_init__(self):
        _image_sets.complete(self)
        self._check_attacks()
        known = (*KERNEL_METHODS, *_timed_sets.matching_classes())
        if self.attacks == "all":
            known += tuple(name + _compare_attacks.SUFFIX for name in known)
        for name in self.methods:
            _checks.one_of(known, methods=name)
        if not self.methods or not self.architectures:
            raise ValueError("methods and architectures must name one each, at least.")
        _checks.positive(seconds=self.seconds)
        _checks.at_least(0, seed=self.seed)
        _checks.at_least(
            1,
            images_per_class=self.images_per_class,
            num_targets=self.num_targets,
            num_networks=self.num_networks,
        )
        for name in ("num_images", "num_test", "width"):
            if getattr(self, name) is not None:
                _checks.at_least(1, **{name: getattr(self, name)})
        for name in self.architectures:
            network(name, 10)

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        unread = _OF_ATTACKS if self.attacks == "none" else _NOT_OF_ATTACKS
        out = dict.fromkeys(unread, f"--attacks={self.attacks}")
        names = [name.removesuffix(_compare_attacks.SUFFIX) for name in self.methods]
        if not any(name in KERNEL_METHODS for name in names):
            out["num_targets"] = "--methods that make no kernel"
        return out

    def _check_attacks(self) -> None:
        """Refuses numbers out of range, and flags that would have no effect."""
        unused = _OF_ATTACKS if self.attacks == "none" else _NOT_OF_ATTACKS
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in unused and value != field.default:
                raise ValueError(
                    f"{field.name}={value} has no effect with "
                    f"attacks={self.attacks!r}: leave it out."
                )
        threat_model.of_text(self.eps)
        _checks.at_least(
            1,
            num_attacked=self.num_attacked,
            num_queries=self.num_queries,
            num_seeds=self.num_seeds,
            attack_steps=1 if self.attack_steps is None else self.attack_steps,
        )
        _checks.positive(
            rate=self.rate,
            penalty_weight=self.penalty_weight,
            penalty_step=self.penalty_step,
        )


@functools.cache
def network(name: str, num_classes: int) -> Any:
    """Returns an architecture by its name.

    Args:
      name: MLP, or that of a ConvNet.
      num_classes: outputs.

    Raises:
      ValueError: an unknown name.
    """
    if name == "MLP":
        return MLP((128, 128), num_classes)
    return convnet.named(name, num_outputs=num_classes)


def _accuracies(
    config, images: ImageSet, made: TimedSet, key, names
) -> dict[str, list[float]]:
    """Accuracy of each network of each architecture trained on a set."""
    found = {}
    for name in names:
        out = protocol.evaluate(
            jnp.asarray(made.images),
            jnp.asarray(made.labels, jnp.int32),
            jnp.asarray(images.normalised(images.x_test)),
            jnp.asarray(images.class_test),
            model=network(name, images.num_classes),
            key=key,
            num_networks=config.num_networks,
            num_epochs=_compare_attacks.NUM_EPOCHS,
            operations=images.operations,
            learning_rate=_RATES.get(name, _compare_attacks.LEARNING_RATE),
        )
        found[name] = [float(value) for value in out.accuracy]
    return found


def run(config: Config) -> dict[str, Any]:
    """Runs a comparison; returns what results.json holds.

    Raises:
      UsageError: the folder belongs to another configuration, or the flags ask for
        what the image set does not have.
      OSError: a file is missing.
      ValueError: a file is damaged, or a loss is not finite.
    """
    images = _image_sets.part(
        config, num_train=config.num_images, num_test=config.num_test
    )
    sizes = class_images.sizes(images)
    each = config.num_targets // images.num_classes
    if config.images_per_class > sizes.min():
        raise UsageError(
            f"images_per_class={config.images_per_class} is more than the "
            f"{sizes.min()} training images of class {int(np.argmin(sizes))}: use "
            "fewer."
        )
    methods = [n.removesuffix(_compare_attacks.SUFFIX) for n in config.methods]
    by_kernel = any(name in KERNEL_METHODS for name in methods)
    if by_kernel and not config.images_per_class <= each <= sizes.min():
        raise UsageError(
            f"num_targets={config.num_targets} is {each} of each class: use "
            f"{config.images_per_class * images.num_classes} to "
            f"{sizes.min() * images.num_classes}."
        )
    for method in methods:
        if method not in KERNEL_METHODS:
            flags = _timed_sets.flags_of(method, config, rate=config.rate)
            try:
                distillation.METHODS[method].check(images, flags)
            except ValueError as error:
                raise UsageError(
                    f"num_images={config.num_images}: {method}: {error}"
                ) from error
    ignore = ("workdir", "progress", "methods", "data_dir", "download")
    ignore = _image_sets.not_results(config, ignore)
    if config.attacks == "all":
        return _compare_attacks.run(config, images, ignore=ignore)
    with Workdir(config.workdir, config, ignore=ignore) as workdir:
        return _run(config, workdir, images)


def _run(config: Config, workdir: Workdir, images: ImageSet) -> dict[str, Any]:
    key_condense, key_networks, key_random = jax.random.split(
        jax.random.key(config.seed), 3
    )
    width = config.width or _timed_sets.flags_of("dc", config).width
    own = f"ConvNetW{width}"
    names = (own, *(name for name in config.architectures if name != own))
    rows: dict[str, Any] = {}
    for method in ("random", *config.methods):
        about = f"{method}.json"
        if workdir.path(about).exists():
            rows[method] = workdir.read_json(about)
            continue
        begin = time.perf_counter()
        if method == "random":
            made = _timed_sets.random(config, images, key_random)
        else:
            folder = workdir.path(method)
            made = _timed_sets.make(method, config, images, key_condense, folder=folder)
        rows[method] = {
            "steps": made.steps,
            "seconds": made.seconds,
            "accuracy": _accuracies(config, images, made, key_networks, names),
            "seconds_in_all": time.perf_counter() - begin,
        }
        workdir.write_arrays(f"{method}.npz", images=made.images, labels=made.labels)
        plots.pictures(
            made.images * images.normal.deviation,
            workdir.path(f"{method}.png"),
            mean=images.normal.mean,
            notes=[f"class {label}" for label in made.labels],
            columns=10,
            title=f"{method}: {len(images.x_train)} images of {config.dataset} in "
            f"{made.seconds:.0f} s",
        )
        workdir.write_json(about, rows[method])
    results: dict[str, Any] = {
        "dataset": config.dataset,
        "images_per_class": config.images_per_class,
        "seconds": config.seconds,
        "architectures": list(names),
        "rows": rows,
        "versions": versions(),
    }
    results["device"] = results["versions"].pop("device")
    results["markdown"] = markdown(results)
    workdir.write_text("table.md", results["markdown"] + "\n")
    workdir.write_json("results.json", results)
    return workdir.read_json("results.json")


def markdown(results: dict[str, Any]) -> str:
    """Returns the table: a row per method, a column per architecture, in per cent.

    Args:
      results: of `run`.
    """
    names = results["architectures"]
    head = ["method", "steps", "seconds", f"{names[0]} (condenses)", *names[1:]]
    lines = [head, ["---"] * len(head)]
    for method, row in results["rows"].items():
        cells = [method, str(row["steps"]), f"{row['seconds']:.0f}"]
        for name in names:
            cells.append(rates.in_percent(row["accuracy"][name]))
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main(config: Config) -> None:
    """Runs and prints the table."""
    print(run(config)["markdown"])
    print(f"table.md and results.json are in {config.workdir}")


if __name__ == "__main__":
    _flags.run(main, Config)
