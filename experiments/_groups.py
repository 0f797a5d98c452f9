"""Groups of flags that binaries share: images, and the run."""

import dataclasses
import pathlib
from typing import Any

import jax

from experiments import _flags
from ntk_privacy import _checks, data
from ntk_privacy.data import Foretold, ImageSet, choice
from ntk_privacy.method import field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Images."""

    dataset: str = field(
        "digits",
        "Image set: " + ", ".join(data.SETS) + " (digits is embedded, the others are "
        "read from files); or the path of an .npz file with images and labels, or of "
        "a folder with train/CLASS/* and val/CLASS/* (or test), or CLASS/*.",
    )
    image_size: int | None = field(
        None,
        "Pixels a side that pictures of a folder are cropped and resized to; none is "
        "their own, if they are squares of one size up to 64, else 64.",
    )
    data_dir: str | None = field(
        None, "Folder of the image sets; none: NTK_PRIVACY_DATA, else the cache."
    )
    download: bool = field(False, "Fetch the image set if it is not there.")
    fingerprint: str | None = field(
        None, "Of one's own images, which must be these; none: it is filled in."
    )

    def __post_init__(self):
        for name, value in choice.filled_in(self).items():
            object.__setattr__(self, name, value)

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

    def foretold(self) -> Foretold:
        """Returns what is known of the images before they are read."""
        named = self.dataset != choice.FOLDER
        place = self.dataset if named else pathlib.Path(self.data_dir or "")
        return data.foretold(place, size=self.image_size)

    def source(self) -> dict[str, Any]:
        """Returns the place, or raises UsageError if other images lie there now."""
        with _flags.usage(data.ArgumentError):
            return choice.source(self)

    def read(self) -> ImageSet:
        """Returns the whole image set."""
        return data.load_set(**self.source())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Source):
    """Images."""

    num_train: int | None = field(
        None,
        "Training images, balanced over the classes of a task if there is one; none is "
        "all.",
        former=("num_images",),
    )

    def __post_init__(self):
        super().__post_init__()
        if self.num_train is not None:
            _checks.at_least(1, num_train=self.num_train)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tested(Data):
    """Images."""

    num_test: int | None = field(None, "Test images; none is all of them.")

    def __post_init__(self):
        super().__post_init__()
        if self.num_test is not None:
            _checks.at_least(1, num_test=self.num_test)

    def part(self, *, published: bool, **chosen: Any) -> ImageSet:
        """Returns a random part of the images that is the same for every seed."""
        whole, chosen["num_train"] = self.read(), self.num_train
        with _flags.usage(data.ArgumentError):
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
        key = jax.random.fold_in(jax.random.key(0), seed)
        key_data, key_init = jax.random.split(key)
        place, sizes = self.source(), {"num_train": self.num_train, "task": self.task}
        with _flags.usage(data.ArgumentError):
            return data.load(**place, **sizes, key=key_data), key_init


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
