"""The image set that flags name, as condensation, poisoning and evasion want it.

Every binary has the fields dataset, image_size, data_dir, download and fingerprint.
"""

import pathlib
from typing import Any

from experiments import _flags
from ntk_privacy import data
from ntk_privacy.data import ImageSet, choice
from ntk_privacy.data.choice import Choice, image_shape
from ntk_privacy.method import field

__all__ = [
    "at_most",
    "complete",
    "dataset_field",
    "fingerprint_field",
    "foretold",
    "image_shape",
    "not_results",
    "part",
    "read",
    "size_field",
    "source",
]


def dataset_field(default: str) -> Any:
    """Returns the field of a config that names the image set."""
    return field(
        default,
        "Image set: " + ", ".join(data.SETS) + " (digits is embedded, the others are "
        "read from files); or the path of an .npz file with images and labels, or of "
        "a folder with train/CLASS/* and val/CLASS/* (or test), or CLASS/*.",
    )


def size_field() -> Any:
    """Returns the field that says how large pictures of a folder become."""
    return field(
        None,
        "Pixels a side that pictures of a folder are cropped and resized to; none is "
        "their own, if they are squares of one size up to 64, else 64.",
    )


def fingerprint_field() -> Any:
    """Returns the field that holds what one's own images are."""
    return field(
        None, "Of one's own images, which must be these; none: it is filled in."
    )


def complete(config: Choice) -> None:
    """Checks what names the image set, and fills in the rest; for `__post_init__`.

    Args:
      config: a frozen dataclass with dataset, data_dir, download, image_size and
        fingerprint.

    Raises:
      ValueError: the set is unknown, or a flag is missing or does not fit it.
    """
    for name, value in choice.filled_in(config).items():
        object.__setattr__(config, name, value)


def not_results(config: Choice, names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns flags that may differ when a run goes on in its folder.

    Args:
      config: of `complete`.
      names: those flags, for sets whose place does not say what is in them.
    """
    if config.dataset == choice.FOLDER:
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


def foretold(config: Choice) -> data.Foretold:
    """Returns what is known of the images before they are read.

    Args:
      config: of `complete`.
    """
    named = config.dataset != choice.FOLDER
    place = config.dataset if named else pathlib.Path(config.data_dir or "")
    return data.foretold(place, size=config.image_size)


def source(config: Choice) -> dict[str, Any]:
    """Returns what `data.load_set` and `data.load` are told of the place.

    Args:
      config: of `complete`.

    Raises:
      UsageError: other images lie there than the fingerprint says.
    """
    with _flags.usage(data.ArgumentError):
        return choice.source(config)


def read(config: Choice) -> ImageSet:
    """Returns the whole image set.

    Args:
      config: of `complete`.

    Raises:
      UsageError: other images lie there than the fingerprint says.
      OSError, ValueError: a file is missing or damaged.
    """
    return data.load_set(**source(config))


def at_most(
    config: Choice,
    *,
    num_train: int | None,
    num_test: int | None,
    every_class: bool,
) -> ImageSet:
    """Returns a part with as many images as are asked for, or all that there are.

    Args:
      config: of `read`.
      num_train: training images; None is all.
      num_test: test images; None is all.
      every_class: see `ImageSet.subset`.

    Raises:
      ArgumentError: see `ImageSet.subset`.
      OSError, ValueError: a file is missing or damaged.
    """
    whole = read(config)
    pairs = (num_train, whole.class_train), (num_test, whole.class_test)
    train, test = (None if n is None else min(n, len(has)) for n, has in pairs)
    return whole.subset(num_train=train, num_test=test, every_class=every_class)


def part(
    config: Choice,
    *,
    published: bool,
    num_train: int | None = None,
    num_test: int | None = None,
    **chosen: Any,
) -> ImageSet:
    """Returns an image set, or a random part of it that is the same for every seed.

    Args:
      config: of `read`.
      published: whether to normalise by the published constants rather than by those of
        the images at hand.
      num_train: training images; None is all.
      num_test: test images; None is all.
      **chosen: see `ImageSet.subset`.

    Raises:
      UsageError: more images are asked for than there are, or so few that a class has
        none.
      OSError, ValueError: a file is missing or damaged.
    """
    whole = read(config)
    with _flags.usage(data.ArgumentError):
        images = whole.subset(num_train=num_train, num_test=num_test, **chosen)
    return images.by_published() if published else images
