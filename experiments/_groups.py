"""Groups of flags that binaries share: images, and the run."""

import dataclasses
from typing import Any

import jax

from ntk_privacy import _checks, data
from ntk_privacy.data import ImageSet, choice
from ntk_privacy.method import field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(choice.Choice):
    """Images."""

    def __post_init__(self):
        super().__post_init__()
        counts = {k: n for k, n in vars(self).items() if k.startswith("num_")}
        _checks.at_least(1, **{k: n for k, n in counts.items() if n is not None})

    def not_results(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Returns flags that may differ when a run goes on in its folder.

        Args:
          names: those flags, for sets whose place does not say what is in them.
        """
        if self.dataset == choice.FOLDER:
            return (*(n for n in names if n != "data_dir"), "fingerprint")
        if self.dataset in data.SETS:
            # Absent from older folders.
            return (*names, "image_size", "fingerprint")
        # Of images that are gone, what was made of them may still be looked at; others
        # are the same wherever they lie.
        gone = self.fingerprint is None
        return (*names, "fingerprint" if gone else "dataset")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Source):
    """Images."""

    num_train: int | None = field(
        None,
        "Training images, balanced over the classes of a task if there is one; none is "
        "all.",
        former=("num_images",),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tested(Data):
    """Images."""

    num_test: int | None = field(None, "Test images; none is all of them.")

    def part(self, *, published: bool, **chosen: Any) -> ImageSet:
        """Returns a random part of the images that is the same for every seed."""
        whole, chosen["num_train"] = self.read(), self.num_train
        images = whole.subset(num_test=self.num_test, **chosen)
        return images.by_published() if published else images


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskImages(Data):
    """Images."""

    task: str | None = field(
        None,
        "odd_even, animal_vehicle, two_classes or all_classes; none is the set's "
        "binary task, if it has one.",
    )
    num_train: int = field(
        20, "Training images N, balanced over the classes.", former=("num_images",)
    )

    def load(self, seed: int) -> tuple[data.Dataset, jax.Array]:
        """Returns the images, and the key of a network's weights."""
        key_data, key_init = keys(seed)
        place, sizes = self.source(), {"num_train": self.num_train, "task": self.task}
        return data.load(**place, **sizes, key=key_data), key_init


def keys(seed: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the keys of a run's images, and of a network's weights."""
    key = jax.random.fold_in(jax.random.key(0), seed)
    key_data, key_init = jax.random.split(key)
    return key_data, key_init


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The run."""

    workdir: str = field("runs", "Folder of the results.")
    checkpoint_seconds: float = field(30.0, "Time between checkpoints.")
    progress: bool = field(True, "Show a progress bar.")
    seed: int = field(
        0, "Fixes images, initialisation and searches.", former=("first_seed",)
    )

    def __post_init__(self):
        _checks.at_least(0, checkpoint_seconds=self.checkpoint_seconds, seed=self.seed)


NOT_RESULTS = ("workdir", "progress", "checkpoint_seconds", "data_dir", "download")
"""What may differ when a run goes on in its folder."""
