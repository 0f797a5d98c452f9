"""Images that a few values choose: a named set or one's own, and how many of them."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

from ntk_privacy import _checks
from ntk_privacy.data import draws, image_folder, places
from ntk_privacy.data.dataset import ArgumentError, Dataset
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.data.sets import SETS, Foretold, chosen, foretold, load_set
from ntk_privacy.method import field

__all__ = ["FOLDER", "Choice", "Data", "TaskImages", "Tested"]

FOLDER = "image_folder"
"""The set that is the folder of pictures at data_dir: so it was called at first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Images.

    Attributes:
        dataset: Name of a set, or a path.
        image_size: Pixels a side that pictures of a folder become; None for their own.
        data_dir: Folder of the named sets, or of the pictures of `FOLDER`.
        download: Whether to fetch a named set.
        fingerprint: Of one's own images, which must be these; None to fill it in.

    Raises:
        ValueError: The set is unknown, or a value is missing or does not fit it.

    Example:
        >>> from ntk_privacy.data import choice
        >>> digits = choice.Choice(dataset="digits")
        >>> digits.image_shape(), len(digits.read().x_test)
        ((8, 8, 1), 360)
    """

    dataset: str = field(
        "digits",
        "Image set: " + ", ".join(SETS) + " (digits is embedded, the others are "
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
        for name, value in _filled_in(self).items():
            object.__setattr__(self, name, value)
        counts = {k: n for k, n in vars(self).items() if k.startswith("num_")}
        _checks.at_least(1, **{k: n for k, n in counts.items() if n is not None})

    def foretold(self) -> Foretold:
        """Returns what is known of the images before they are read."""
        named = self.dataset != FOLDER
        place = self.dataset if named else Path(self.data_dir or "")
        return foretold(place, size=self.image_size)

    def source(self) -> dict[str, Any]:
        """Returns what `load_set` and `load` are told of the place.

        Raises:
            ArgumentError: Other images lie there than the fingerprint says.
        """
        if self.dataset == FOLDER:
            return {"name": Path(self.data_dir or ""), "size": self.image_size}
        place = _place(self)
        if place is None:
            told = {"data_dir": self.data_dir, "download": self.download}
            return {"name": self.dataset, **told}
        found = places.fingerprint(place)
        if found is not None and found != self.fingerprint:
            raise ArgumentError(
                f"dataset={self.dataset} holds images of fingerprint {found}, not "
                f"{self.fingerprint}: give those, or leave fingerprint out."
            )
        return {"name": place, "size": self.image_size}

    def read(self) -> ImageSet:
        """Returns the whole image set; see `source` and `load_set`."""
        return load_set(**self.source())

    def image_shape(self) -> tuple[int, int, int]:
        """Returns height, width and channels; reads images that have no name."""
        if self.dataset in SETS:
            return SETS[self.dataset].image_shape
        return _own_shape(**self.source())

    def not_results(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Returns flags that may differ when a run goes on in its folder.

        Args:
            names: Those flags, for sets whose place does not say what is in them.
        """
        if self.dataset == FOLDER:
            return (*(n for n in names if n != "data_dir"), "fingerprint")
        if self.dataset in SETS:
            # Absent from older folders.
            return (*names, "image_size", "fingerprint")
        # Of images that are gone, what was made of them may still be looked at; others
        # are the same wherever they lie.
        gone = self.fingerprint is None
        return (*names, "fingerprint" if gone else "dataset")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Choice):
    """Images."""

    num_train: int | None = field(
        None,
        "Training images, balanced over the classes of a task if there is one; none is "
        "all.",
        former=("num_images",),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tested(Data):
    """Images.

    Example:
        >>> from ntk_privacy.data import choice
        >>> chosen = choice.Tested(dataset="digits", num_train=300, num_test=50)
        >>> len(chosen.part(published=False).x_test)
        50
    """

    num_test: int | None = field(None, "Test images; none is all of them.")

    def part(self, *, published: bool, **chosen: Any) -> ImageSet:
        """Returns a random part of the images that is the same for every seed.

        Args:
            published: Whether to normalise by the constants of published code.
            **chosen: Further arguments of `ImageSet.subset`.

        Raises:
            ArgumentError: There are not so many, or see `source`.
        """
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

    def load(self, seed: int) -> tuple[Dataset, jax.Array]:
        """Returns the images of a seed, and the key of a network's weights.

        Raises:
            ArgumentError: They do not split so, or see `source`.
        """
        images, key_init = self.chosen(seed)
        return images.regression(self.task), key_init

    def chosen(self, seed: int) -> tuple[ImageSet, jax.Array]:
        """Returns the images as a set, which knows its classes, and that key.

        Raises:
            ArgumentError: See `load`.
        """
        key_data, key_init = draws.keys(seed)
        place, sizes = self.source(), {"num_train": self.num_train, "task": self.task}
        return chosen(**place, **sizes, key=key_data), key_init


def _place(choice: Choice) -> Path | None:
    return places.place_of(choice.dataset, tuple(SETS), told="dataset")


def _filled_in(choice: Choice) -> dict[str, Any]:
    """Returns what a choice leaves open, by name."""
    name = choice.dataset
    if name == FOLDER:
        return _folder_filled_in(choice)
    place = _place(choice)
    if choice.image_size is not None:
        if place is None or places.is_npz(place):
            raise ValueError(
                f"image_size={choice.image_size} is for dataset={FOLDER!r} and the "
                f"path of a folder: leave it out for dataset={name!r}, whose images "
                "have one size."
            )
        _checks.at_least(1, image_size=choice.image_size)
    if place is None:
        if choice.fingerprint is not None:
            raise ValueError(
                f"fingerprint={choice.fingerprint!r} is for one's own images: leave it "
                f"out for dataset={name!r}."
            )
        return {}
    if choice.data_dir is not None or choice.download:
        raise ValueError(
            f"data_dir={choice.data_dir} and download={choice.download} are for named "
            f"sets: leave them out for dataset={name!r}, which is a path."
        )
    known = choice.fingerprint is not None
    return {} if known else {"fingerprint": places.fingerprint(place)}


def _folder_filled_in(choice: Choice) -> dict[str, Any]:
    if choice.data_dir is None or choice.download:
        raise ValueError(
            f"dataset={FOLDER!r} is read from data_dir={choice.data_dir}, never "
            "downloaded: name the folder that holds train and val."
        )
    if choice.image_size is None:
        return {"image_size": image_folder.SIZE}
    _checks.at_least(1, image_size=choice.image_size)
    return {}


@functools.lru_cache(maxsize=1)
def _own_shape(**place: Any) -> tuple[int, int, int]:
    return load_set(**place).image_shape
