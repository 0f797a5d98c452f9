"""An image set that a few values choose: a name, or the place of one's own images."""

import functools
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ntk_privacy import _checks
from ntk_privacy.data import image_folder, places
from ntk_privacy.data.dataset import ArgumentError
from ntk_privacy.data.sets import SETS, load_set

__all__ = ["FOLDER", "Choice", "filled_in", "image_shape", "source"]

FOLDER = "image_folder"
"""The set that is the folder of pictures at data_dir: so it was called at first."""


@runtime_checkable
class Choice(Protocol):
    """What chooses a set.

    Attributes:
        dataset: Name of a set, or a path.
        image_size: Pixels a side that pictures of a folder become; None for their own.
        data_dir: Folder of the named sets, or of the pictures of `FOLDER`.
        download: Whether to fetch a named set.
        fingerprint: Of one's own images, which must be these; None to fill it in.
    """

    @property
    def dataset(self) -> str: ...  # noqa: D102
    @property
    def image_size(self) -> int | None: ...  # noqa: D102
    @property
    def data_dir(self) -> str | None: ...  # noqa: D102
    @property
    def download(self) -> bool: ...  # noqa: D102
    @property
    def fingerprint(self) -> str | None: ...  # noqa: D102


def _place(choice: Choice) -> Path | None:
    return places.place_of(choice.dataset, tuple(SETS), told="dataset")


def filled_in(choice: Choice) -> dict[str, Any]:
    """Returns what a choice leaves open, by name.

    Args:
        choice: Of a set.

    Raises:
        ValueError: The set is unknown, or a value is missing or does not fit it.
    """
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


def source(choice: Choice) -> dict[str, Any]:
    """Returns what `load_set` and `load` are told of the place.

    Args:
        choice: Filled in.

    Raises:
        ArgumentError: Other images lie there than the fingerprint says.
    """
    if choice.dataset == FOLDER:
        return {"name": Path(choice.data_dir or ""), "size": choice.image_size}
    place = _place(choice)
    if place is None:
        told = {"data_dir": choice.data_dir, "download": choice.download}
        return {"name": choice.dataset, **told}
    found = places.fingerprint(place)
    if found is not None and found != choice.fingerprint:
        raise ArgumentError(
            f"dataset={choice.dataset} holds images of fingerprint {found}, not "
            f"{choice.fingerprint}: give those, or leave fingerprint out."
        )
    return {"name": place, "size": choice.image_size}


def image_shape(choice: Choice) -> tuple[int, int, int]:
    """Returns height, width and channels; reads images that have no name.

    Args:
        choice: Filled in.
    """
    if choice.dataset in SETS:
        return SETS[choice.dataset].image_shape
    return _own_shape(**source(choice))


@functools.lru_cache(maxsize=1)
def _own_shape(**place: Any) -> tuple[int, int, int]:
    return load_set(**place).image_shape
