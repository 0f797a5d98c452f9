"""The image set that flags name, as condensation, poisoning and evasion want it.

Every binary has the fields dataset, image_size, data_dir, download and fingerprint.
"""

import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments._flags import UsageError
from ntk_privacy import _checks, data
from ntk_privacy.data import ImageSet, image_folder, places

FOLDER = "image_folder"
"""The set that is the folder of pictures at data_dir: so it was called at first."""


class Images(NamedTuple):
    """Intensities in [0, 1], classes, and what normalises each channel."""

    x: np.ndarray
    classes: np.ndarray
    x_test: np.ndarray
    class_test: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    num_classes: int
    levels: int
    operations: tuple[str, ...]

    def normalised(self, images: Any) -> jax.Array:
        """Returns images less the mean, over the deviation."""
        return jnp.asarray((np.asarray(images) - self.mean) / self.deviation)


def _field(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


def dataset_field(default: str) -> Any:
    """Returns the field of a config that names the image set."""
    return _field(
        default,
        "Image set: " + ", ".join(data.SETS) + " (digits is embedded, the others are "
        "read from files); or the path of an .npz file with images and labels, or of "
        "a folder with train/CLASS/* and val/CLASS/* (or test), or CLASS/*.",
    )


def size_field() -> Any:
    """Returns the field that says how large pictures of a folder become."""
    return _field(
        None,
        "Pixels a side that pictures of a folder are cropped and resized to; none is "
        "their own, if they are squares of one size up to 64, else 64.",
    )


def fingerprint_field() -> Any:
    """Returns the field that holds what one's own images are."""
    return _field(
        None, "Of one's own images, which must be these; none: it is filled in."
    )


def complete(config: Any) -> None:
    """Checks what names the image set, and fills in the rest; for `__post_init__`.

    Args:
      config: a frozen dataclass with dataset, data_dir, download, image_size and
        fingerprint.

    Raises:
      ValueError: the set is unknown, or a flag is missing or does not fit it.
    """
    if config.dataset == FOLDER:
        _complete_folder(config)
        return
    place = places.place_of(config.dataset, tuple(data.SETS), told="dataset")
    if config.image_size is not None:
        if place is None or places.is_npz(place):
            raise ValueError(
                f"image_size={config.image_size} is for dataset={FOLDER!r} and the "
                f"path of a folder: leave it out for dataset={config.dataset!r}, whose "
                "images have one size."
            )
        _checks.at_least(1, image_size=config.image_size)
    if place is None:
        if config.fingerprint is not None:
            raise ValueError(
                f"fingerprint={config.fingerprint!r} is for one's own images: leave it "
                f"out for dataset={config.dataset!r}."
            )
        return
    if config.data_dir is not None or config.download:
        raise ValueError(
            f"data_dir={config.data_dir} and download={config.download} are for named "
            f"sets: leave them out for dataset={config.dataset!r}, which is a path."
        )
    if config.fingerprint is None:
        object.__setattr__(config, "fingerprint", places.fingerprint(place))


def _complete_folder(config: Any) -> None:
    if config.data_dir is None or config.download:
        raise ValueError(
            f"dataset={FOLDER!r} is read from data_dir={config.data_dir}, never "
            "downloaded: name the folder that holds train and val."
        )
    if config.image_size is None:
        object.__setattr__(config, "image_size", image_folder.SIZE)
    else:
        _checks.at_least(1, image_size=config.image_size)


def not_results(config: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns flags that may differ when a run goes on in its folder.

    Args:
      config: of `complete`.
      names: those flags, for sets whose place does not say what is in them.
    """
    if config.dataset == FOLDER:
        kept = tuple(name for name in names if name != "data_dir")
        return (*kept, "fingerprint")
    if config.dataset in data.SETS:
        # Absent from older folders.
        return (*names, "image_size", "fingerprint")
    if config.fingerprint is None:
        # The images are gone: what was made of them may still be looked at.
        return (*names, "fingerprint")
    # Wherever they lie, they are the same.
    return (*names, "dataset")


def is_folder(config: Any) -> bool:
    """Returns whether the images are a folder of pictures."""
    if config.dataset == FOLDER:
        return True
    place = places.place_of(config.dataset, tuple(data.SETS))
    return place is not None and not places.is_npz(place)


def source(config: Any) -> dict[str, Any]:
    """Returns what `data.load_set` and `data.load` are told of the place.

    Args:
      config: of `complete`.

    Raises:
      UsageError: other images lie there than the fingerprint says.
    """
    if config.dataset == FOLDER:
        return {"name": pathlib.Path(config.data_dir), "size": config.image_size}
    if config.dataset in data.SETS:
        return {
            "name": config.dataset,
            "data_dir": config.data_dir,
            "download": config.download,
        }
    place = places.place_of(config.dataset, tuple(data.SETS), told="dataset")
    assert place is not None  # `complete` has told it from a set
    found = places.fingerprint(place)
    if found is not None and found != config.fingerprint:
        raise UsageError(
            f"dataset={config.dataset} holds images of fingerprint {found}, not "
            f"{config.fingerprint}: give those, or leave --fingerprint out."
        )
    return {"name": place, "size": config.image_size}


def read(config: Any) -> ImageSet:
    """Returns the whole image set.

    Args:
      config: of `complete`.

    Raises:
      UsageError: other images lie there than the fingerprint says.
      OSError, ValueError: a file is missing or damaged.
    """
    return data.load_set(**source(config))


def image_shape(config: Any) -> tuple[int, int, int]:
    """Returns height, width and channels; reads images that have no name.

    Args:
      config: of `complete`.
    """
    if config.dataset in data.SETS:
        return data.SETS[config.dataset].image_shape
    return _own_shape(**source(config))


@functools.lru_cache(maxsize=1)
def _own_shape(**place: Any) -> tuple[int, int, int]:
    return data.load_set(**place).image_shape


def part(
    config: Any,
    *,
    num_train: int | None = None,
    num_test: int | None = None,
    whole: ImageSet | None = None,
    every_class: bool = True,
    judged_on: Any = "test",
    published: bool | None = None,
) -> ImageSet:
    """Returns an image set, or a random part of it that is the same for every seed.

    Args:
      config: of `read`; has preset unless `published` is given.
      num_train: training images; None is all.
      num_test: test images; None is all.
      whole: what `read` returned, if it was called.
      every_class: see `ImageSet.subset`.
      judged_on: see `ImageSet.subset`.
      published: whether to normalise by the published constants rather than by those of
        the images at hand; None: with preset "paper".

    Raises:
      UsageError: more images are asked for than there are, or so few that a class has
        none.
      OSError, ValueError: a file is missing or damaged.
    """
    whole = read(config) if whole is None else whole
    try:
        images = whole.subset(
            num_train=num_train,
            num_test=num_test,
            judged_on=judged_on,
            every_class=every_class,
        )
    except data.ArgumentError as error:
        raise UsageError(str(error)) from error
    if published is None:
        published = config.preset == "paper"
    return images.by_published() if published else images


def load(config: Any, **chosen: Any) -> Images:
    """Returns what `part` does, normalised in one way.

    Args:
      config: of `part`.
      **chosen: of `part`.
    """
    images = part(config, **chosen)
    return Images(
        images.x_train,
        images.class_train,
        images.x_test,
        images.class_test,
        *images.normal,
        images.num_classes,
        images.levels,
        images.operations,
    )
