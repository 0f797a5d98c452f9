"""MTT and TESLA as methods: flags, presets, experts, records.

Sources: Cazenavette et al., CVPR 2022 (arXiv:2203.11932); Cui et al., ICML 2023
(arXiv:2211.10586).
"""

import contextlib
import dataclasses
import functools
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from ntk_privacy import _checks, hosts, sharding
from ntk_privacy._types import Params
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import class_images, tesla, trajectory_matching
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.method import Method, field
from ntk_privacy.models import ConvNet
from ntk_privacy.resume import Stage, straight
from ntk_privacy.training import trajectories

__all__ = ["METHODS", "Config", "experts"]

_CHUNK = 5
# Bytes of the products of students, above which they are computed again.
_MUCH = 4 * 10**9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Flags of both.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, distillation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images = data.ImageSet.from_arrays(grey, [0, 1] * 4)
      >>> sizes = {"images_per_class": 1, "width": 1, "num_steps": 1, "batch_size": 2}
      >>> sizes |= {"student_steps": 1, "expert_epochs": 1, "max_start_epoch": 1}
      >>> for name in ("mtt", "tesla"):
      ...     row = distillation.METHODS[name]
      ...     config = row.configured(**sizes, num_experts=1)
      ...     made = row.run(images, config, key=jax.random.key(0))
      ...     print(name, made.images.shape)
      mtt (2, 8, 8, 1)
      tesla (2, 8, 8, 1)
    """

    images_per_class: int = field(10, "Condensed images of each class.")
    width: int = field(128, "Channels of the ConvNet.")
    num_steps: int = field(5000, "Steps of the search.")
    batch_size: int = field(256, "Real images of all classes that an expert sees.")
    learning_rate: float = field(100.0, "Of the images' SGD.")
    student_steps: int = field(30, "Steps on the condensed set that follow an expert.")
    expert_epochs: int = field(
        2, "Epochs of the expert that a student is to catch up with."
    )
    max_start_epoch: int = field(20, "Students start at an epoch below it.")
    step_size: float = field(0.001, "Of the student at first; it is learnt.")
    step_size_rate: float = field(1e-5, "Step at which it is learnt.")
    num_experts: int = field(100, "Networks trained on the real images.")
    expert_learning_rate: float = field(0.01, "Of their training.")
    experts: str | None = field(
        None, "Folder of experts to use, or to make; none is in the workdir."
    )

    def __post_init__(self):
        _checks.at_least(
            1,
            **{
                name: getattr(self, name)
                for name in (
                    *("images_per_class", "width", "num_steps", "batch_size"),
                    *("student_steps", "expert_epochs", "max_start_epoch"),
                    "num_experts",
                )
            },
        )
        _checks.positive(
            learning_rate=self.learning_rate,
            step_size=self.step_size,
            step_size_rate=self.step_size_rate,
            expert_learning_rate=self.expert_learning_rate,
        )


# Of MTT on CIFAR-10, by images per class. Those of 1 and 10 are published for whitened
# images; images here never are. Other image sets take the same, and depth 3.
_COLUMNS = (
    *("student_steps", "max_start_epoch", "learning_rate"),
    *("step_size_rate", "step_size"),
)
_MTT_TABLE = {
    1: (50, 2, 100.0, 1e-7, 0.01),
    10: (30, 20, 100.0, 1e-5, 0.001),
    50: (30, 40, 1000.0, 1e-5, 0.001),
}
# TESLA publishes 1 image per class, whose learning rate is halved here: its released
# code loses a factor of 2 from the gradient. Of 10 and 50 MTT's, which has that factor.
_TESLA_TABLE = {**_MTT_TABLE, 1: (50, 5, 500.0, 1e-7, 0.01)}


def _paper(table: Mapping[int, tuple], num_steps: int, /, **given: Any) -> Config:
    each = given.get("images_per_class", 10)
    nearest = min(table, key=lambda known: abs(known - each))
    sizes = dict(zip(_COLUMNS, table[nearest], strict=True))
    if nearest != each and not set(_COLUMNS) <= set(given):
        warnings.warn(
            f"images_per_class={each} has no published sizes: taking those of "
            f"{nearest}.",
            stacklevel=3,
        )
    return Config(**{"num_steps": num_steps, **sizes, **given})


def _small(**given: Any) -> Config:
    """What two cores finish."""
    sizes: dict[str, Any] = {
        "width": 32,
        "num_steps": 300 if given.get("images_per_class", 10) == 1 else 100,
        "batch_size": 64,
        "expert_epochs": 1,
        "expert_learning_rate": 0.02,
        "num_experts": 3,
        "student_steps": 10,
        "max_start_epoch": 2,
        "learning_rate": 100.0,
        "step_size_rate": 1e-4,
        "step_size": 0.05,
    }
    return Config(**{**sizes, **given})


@functools.cache
def _sgd(learning_rate: float) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, momentum=0.5)


def _record(place: Path, *args: Any, given: bool, **options: Any) -> None:
    """Trains experts; those of a folder that all hosts see on the first one."""
    with hosts.all_fail_together() if given else contextlib.nullcontext():
        if not given or hosts.is_first():
            trajectories.record(place, *args, **options)


def experts(
    images: ImageSet, config: Config, *, key: jax.Array, folder: Path
) -> Params:
    """Returns experts of a folder that was given, else those made in `folder`.

    Args:
      images: whose classes they tell apart.
      config: `experts` is the folder that was given, if any.
      key: of the method.
      folder: to make them in.

    Raises:
      OSError: a file cannot be read.
      ValueError: too few experts, or those of another network.
    """
    model = ConvNet(images.num_classes, config.width)
    x, classes = class_images.arrays(images)
    place = Path(config.experts).expanduser() if config.experts else folder
    # Of the first host: it trains them, and the others may look while it does.
    known = int(hosts.of_first(np.asarray(len(trajectories.recorded(place)))))
    enough = max(1, config.num_experts // 2)
    if config.experts is None or known < config.num_experts:
        try:
            _record(
                place,
                x,
                classes,
                model=model,
                key=jax.random.fold_in(key, 1),
                num_experts=config.num_experts,
                num_epochs=_needed(config),
                learning_rate=config.expert_learning_rate,
                batch_size=config.batch_size,
                operations=images.operations,
                given=config.experts is not None,
            )
        except ValueError as error:
            # Those of another recipe are taken as they are, if they are enough.
            if config.experts is None or known < enough:
                raise
            warnings.warn(f"Taken as they are: {error}", stacklevel=2)
    return _loaded(images, config, place)


def _low_memory(image_shape: tuple[int, ...], num_classes: int, config: Config) -> bool:
    """Whether the products of a student's steps take more than there is room for."""
    pixels = math.prod(image_shape[:2])
    # Of an image: those of the layers there and back, each a quarter of the last one.
    each = 4 * config.width * pixels * 2 * 4 / 3
    count = num_classes * config.images_per_class
    return each * count * config.student_steps > _MUCH


def _check(name: str, images: ImageSet, config: Config) -> None:
    class_images.check_start(images, config.images_per_class, f"where {name} starts")
    if config.experts is None:
        return
    known = len(trajectories.recorded(Path(config.experts).expanduser()))
    if known >= max(1, config.num_experts // 2):
        _loaded(images, config, Path(config.experts).expanduser())


def _needed(config: Config) -> int:
    # No later epoch is looked at, and the step is constant: none is trained.
    return config.max_start_epoch - 1 + config.expert_epochs


def _loaded(images: ImageSet, config: Config, place: Path) -> Any:
    return trajectories.load(
        place,
        model=ConvNet(images.num_classes, config.width),
        image_shape=images.image_shape,
        num_epochs=_needed(config),
        at_least=max(1, config.num_experts // 2),
    ).params


def _run(
    name: str,
    images: ImageSet,
    config: Config,
    *,
    key: jax.Array,
    stage: Stage = straight,
    chunk: int = _CHUNK,
    folder: Path | None = None,
) -> Distilled:
    if folder is None and config.experts is None:
        with tempfile.TemporaryDirectory() as made:
            return _run(
                name, images, config, key=key, stage=stage, chunk=chunk,
                folder=Path(made),
            )  # fmt: skip
    x, classes = class_images.arrays(images)
    shared = {
        "key": key,
        "num_classes": images.num_classes,
        "images_per_class": config.images_per_class,
        "step_size": config.step_size,
        "optimizer": _sgd(config.learning_rate),
        "step_size_optimizer": _sgd(config.step_size_rate),
    }
    distill: Callable[..., Distilled] = tesla.distill  # it keeps nothing
    if name == "mtt":
        distill = functools.partial(
            trajectory_matching.distill,
            low_memory=_low_memory(images.image_shape, images.num_classes, config),
        )

    def go(state, done, callback):
        del done  # the state knows
        return distill(
            x,
            classes,
            experts=experts(images, config, key=key, folder=Path(folder or ".")),
            model=ConvNet(images.num_classes, config.width),
            num_steps=config.num_steps,
            student_steps=config.student_steps,
            expert_epochs=config.expert_epochs,
            max_start_epoch=config.max_start_epoch,
            operations=images.operations,
            state=state,
            chunk=chunk,
            callback=callback,
            mesh=sharding.all_devices(),
            **shared,
        )

    start = trajectory_matching.init(x, classes, **shared)
    ran = stage("distill", start, go, config.num_steps)
    return ran.result._replace(losses=ran.losses.astype(np.float32))


METHODS = tuple(
    Method(
        name=name,
        about=about,
        config=Config,
        presets={"cpu": _small, "paper": functools.partial(_paper, table, steps)},
        run=functools.partial(_run, name),
        check=functools.partial(_check, name),
        loss="squared distance over the expert's",
    )
    for name, about, table, steps in (
        (
            "mtt",
            "matches trajectories of networks in training (CVPR 2022).",
            _MTT_TABLE,
            5000,
        ),
        (
            "tesla",
            "is MTT in memory that does not grow with a student's steps (ICML 2023).",
            _TESLA_TABLE,
            10_000,
        ),
    )
)
