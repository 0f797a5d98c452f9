"""Compares methods of distillation at one budget: image set, images per class, seconds.

    python -m experiments.compare --dataset=mnist --images_per_class=1 --seconds=120 \
        --workdir=DIR

Every method runs for --seconds, compilation apart and the training of experts included;
networks of the architecture that condensed and of others are then trained on each set,
and on random real images. Writes config.json, results.json, table.md and, per method,
its images as .npz and .png to --workdir. Started again with the same --workdir it goes
on with the methods that are missing.
"""

import dataclasses
import functools
import time
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _condensed, _distill_config, _flags, _image_sets
from experiments._flags import UsageError
from experiments._image_sets import Images
from experiments._progress import Progress
from experiments._timing import Timer
from experiments._workdir import Workdir, versions
from ntk_privacy import _checks, kip, rkip
from ntk_privacy.condensation import distribution_matching
from ntk_privacy.evaluation import protocol
from ntk_privacy.kernels import infinite
from ntk_privacy.models import MLP, convnet
from ntk_privacy.reports import plots

KERNEL_METHODS = ("kip", "rkip")
METHODS = (*KERNEL_METHODS, "dm", "rdm", "dc", "dsa", "mtt", "tesla")
_CHUNK = 5
# Of evaluation; a tenth of the paper's epochs, ten times the step.
_NUM_EPOCHS, _LEARNING_RATE = 100, 0.1


def _field(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Compares methods of distillation at one budget."""

    dataset: Literal["digits", "mnist", "cifar10", "tiny_imagenet"] = _field(
        "mnist", "Image set; digits is embedded."
    )
    methods: tuple[str, ...] = _field(
        METHODS, "Between commas: " + ", ".join(METHODS) + "."
    )
    images_per_class: int = _field(1, "Distilled images of each class.")
    seconds: float = _field(120.0, "Time of each method, compilation apart.")
    architectures: tuple[str, ...] = _field(
        ("MLP", "ConvNetW32D2", "ConvNetW32ASNN"),
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
    seed: int = _field(0, "Fixes everything but the time.")
    data_dir: str | None = _field(
        None, "Folder of the image sets; none: NTK_PRIVACY_DATA, else the cache."
    )
    download: bool = _field(False, "Fetch the image set if missing.")
    workdir: str = _field("runs/compare", "Folder of the results.")
    progress: bool = _field(True, "Show a progress bar.")

    def __post_init__(self):
        for name in self.methods:
            _checks.one_of(METHODS, methods=name)
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
        for name in self.architectures:
            network(name, 10)


class _Set(NamedTuple):
    images: np.ndarray
    labels: np.ndarray
    steps: int
    seconds: float


class _TimeOver(Exception):
    """Ends a search from within its callback; the argument is the state."""


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


def _condense_by_kernel(module, config, images: Images, x, key, **loop) -> Any:
    """KIP and RKIP in the same normalised pixels, with the labels fixed."""
    each = config.num_targets // images.num_classes
    rows = [
        np.flatnonzero(images.classes == c)[:each] for c in range(images.num_classes)
    ]
    chosen = np.concatenate(rows)
    eye = np.eye(images.num_classes, dtype=np.float32) - 1 / images.num_classes
    return module.distill(
        x[chosen],
        jnp.asarray(eye[images.classes[chosen]], jnp.float32),
        kernel_fn=_kernel(),
        key=key,
        images_per_class=config.images_per_class,
        optimizer=_adam(),
        **loop,
    )


@functools.cache
def _kernel():
    return infinite.mlp(depth=2)


@functools.cache
def _adam():
    # In deviations rather than intensities, of which they are a third.
    return optax.adam(1e-2)


def _condense(method: str, config: Config, images: Images, x, key, folder) -> _Set:
    """Runs a method until its time is over."""
    timer, last = Timer(), {}

    def callback(step, state, metrics):
        bar(step, state, metrics)
        jax.block_until_ready(state.images)
        last["state"] = state
        if timer.elapsed() >= config.seconds or bool(state.nonfinite):
            raise _TimeOver

    loop: dict[str, Any] = {"chunk": _CHUNK, "callback": callback}
    limit = 10**8
    with (
        timer(),
        Progress(limit, description=method, show=config.progress or None) as bar,
    ):
        try:
            if method in KERNEL_METHODS:
                module = {"kip": kip, "rkip": rkip}[method]
                loop["num_steps"] = limit
                _condense_by_kernel(module, config, images, x, key, **loop)
            else:
                flags = _flags_of(method, config, folder, limit)
                entry = _condensed.METHODS[method]
                entry.condense(flags, images, x, key, **loop)
        except _TimeOver:
            pass
    state = last["state"]
    if bool(state.nonfinite):
        raise ValueError(
            f"The loss of {method} is not finite after {int(state.steps)} steps."
        )
    labels = np.asarray(state.labels)
    labels = labels.argmax(1) if labels.ndim == 2 else labels
    return _Set(np.asarray(state.images), labels, int(state.steps), timer.run)


def _flags_of(method: str, config: Config, folder, limit: int) -> Any:
    return _distill_config.Config(
        method=method,
        dataset=config.dataset,
        preset=config.preset,
        images_per_class=config.images_per_class,
        width=config.width,
        num_steps=limit,
        seed=config.seed,
        workdir=str(folder),
    )


def _accuracies(config, images: Images, made, key, names) -> dict[str, list[float]]:
    """Accuracy of each network of each architecture trained on a set."""
    found = {}
    for name in names:
        out = protocol.evaluate(
            jnp.asarray(made.images),
            jnp.asarray(made.labels, jnp.int32),
            images.normalised(images.x_test),
            jnp.asarray(images.class_test),
            model=network(name, images.num_classes),
            key=key,
            num_networks=config.num_networks,
            num_epochs=_NUM_EPOCHS,
            operations=images.operations,
            learning_rate=_LEARNING_RATE,
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
    images = _image_sets.load(
        config, num_train=config.num_images, num_test=config.num_test
    )
    sizes = np.bincount(images.classes, minlength=images.num_classes)
    each = config.num_targets // images.num_classes
    if not config.images_per_class <= each <= sizes.min():
        raise UsageError(
            f"num_targets={config.num_targets} is {each} of each class: use from "
            f"{config.images_per_class} to {sizes.min()} for each."
        )
    for method in config.methods:
        if method not in KERNEL_METHODS:
            flags = _flags_of(method, config, "runs", 1)
            _condensed.check(flags, (method,), images)
    ignore = ("workdir", "progress", "methods", "data_dir", "download")
    with Workdir(config.workdir, config, ignore=ignore) as workdir:
        return _run(config, workdir, images)


def _run(config: Config, workdir: Workdir, images: Images) -> dict[str, Any]:
    key_condense, key_networks, key_random = jax.random.split(
        jax.random.key(config.seed), 3
    )
    x = images.normalised(images.x)
    width = config.width or _flags_of("dc", config, "runs", 1).width
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
            made: Any = distribution_matching.init(
                x,
                jnp.asarray(images.classes),
                key=key_random,
                num_classes=images.num_classes,
                images_per_class=config.images_per_class,
                initial="real",
            )
            steps, seconds = 0, 0.0
        else:
            folder = workdir.path(method)
            made = _condense(method, config, images, x, key_condense, folder)
            steps, seconds = made.steps, made.seconds
        rows[method] = {
            "steps": steps,
            "seconds": seconds,
            "accuracy": _accuracies(config, images, made, key_networks, names),
            "seconds_in_all": time.perf_counter() - begin,
        }
        workdir.write_arrays(f"{method}.npz", images=made.images, labels=made.labels)
        plots.pictures(
            np.asarray(made.images) * images.deviation,
            workdir.path(f"{method}.png"),
            mean=images.mean,
            notes=[f"class {label}" for label in np.asarray(made.labels)],
            columns=10,
            title=f"{method}: {len(images.x)} images of {config.dataset} in "
            f"{seconds:.0f} s",
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
            rate = protocol.mean_and_deviation(np.asarray(row["accuracy"][name]))
            cells.append(f"{100 * rate.mean:.1f} +- {100 * rate.deviation:.1f}")
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main(config: Config) -> None:
    """Runs and prints the table."""
    print(run(config)["markdown"])
    print(f"table.md and results.json are in {config.workdir}")


if __name__ == "__main__":
    _flags.run(main, Config)
