"""Image sets as condensation and poisoning want them."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments._flags import UsageError
from ntk_privacy import _checks, data
from ntk_privacy.data import augmentation, image_folder, splits
from ntk_privacy.data.image_set import Binary, ImageSet, Statistics

FOLDER = "image_folder"
"""The set that is any folder of pictures: its config has image_size, too."""
_IMAGE_SIZE = 64

# Mean and deviation per channel in DC, DSA and DM; that of CIFAR-10 is the mean
# deviation within an image, a fifth below that of its pixels.
_PUBLISHED = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}


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


def complete(config: Any) -> None:
    """Puts the default of image_size in place of None; for `__post_init__`.

    Args:
      config: a frozen dataclass with dataset, data_dir, download and image_size.

    Raises:
      ValueError: a flag is missing, or does not fit the image set.
    """
    if config.dataset != FOLDER:
        if config.image_size is not None:
            raise ValueError(
                f"image_size={config.image_size} is for dataset={FOLDER!r}: leave it "
                f"out for dataset={config.dataset!r}, whose images have one size."
            )
        return
    if config.data_dir is None or config.download:
        raise ValueError(
            f"dataset={FOLDER!r} is read from data_dir={config.data_dir}, never "
            "downloaded: name the folder that holds train and val."
        )
    if config.image_size is None:
        object.__setattr__(config, "image_size", _IMAGE_SIZE)
    _checks.at_least(1, image_size=config.image_size)


def not_results(config: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns flags that may differ when a run goes on in its folder.

    Args:
      config: has dataset and image_size.
      names: those flags, for sets whose place does not say what is in them.
    """
    if config.dataset == FOLDER:
        return tuple(name for name in names if name != "data_dir")
    # Absent from older folders.
    return (*names, "image_size")


def load_raw(config: Any) -> data.Raw:
    """Returns an image set as its files hold it.

    Args:
      config: has dataset, data_dir and download; with `FOLDER` image_size.

    Raises:
      OSError, ValueError: a file is missing or damaged.
    """
    if config.dataset == FOLDER:
        folder = pathlib.Path(config.data_dir).expanduser()
        return image_folder.load_raw(folder, size=config.image_size)
    return data.load_raw(config.dataset, config.data_dir, config.download)


def whole(config: Any) -> ImageSet:
    """Interim."""
    from ntk_privacy.data import dataset

    binary = {
        name: Binary(*dataset._BINARY[name], (9,) if name == "animal_vehicle" else ())
        for name in dataset._TASKS[config.dataset]
        if name in dataset._BINARY
    }
    published = _PUBLISHED.get(config.dataset)
    return ImageSet.from_raw(
        load_raw(config),
        name=config.dataset,
        binary=binary,
        flips=config.dataset not in ("digits", "mnist"),
        published=published
        and Statistics(*(np.asarray(v, np.float32) for v in published)),
    )


def part(
    config: Any, *, num_train: int | None = None, num_test: int | None = None
) -> ImageSet:
    """Returns an image set, or a random part of it that is the same for every seed.

    Args:
      config: has the flags of the set, and preset; "paper" normalises by the published
        constants rather than by those of the images at hand.
      num_train: training images; None is all.
      num_test: test images; None is all.

    Raises:
      UsageError: more images are asked for than there are, or so few that a class has
        none.
      OSError, ValueError: a file is missing or damaged.
    """
    try:
        images = whole(config).subset(num_train=num_train, num_test=num_test)
    except data.ArgumentError as error:
        raise UsageError(str(error)) from error
    return images.by_published() if config.preset == "paper" else images


def load(
    config: Any,
    *,
    num_train: int | None = None,
    num_test: int | None = None,
    raw: data.Raw | None = None,
    every_class: bool = True,
    judged_on: str = "test",
) -> Images:
    """Returns an image set, or a random part of it that is the same for every seed.

    Args:
      config: of `load_raw`, and has preset; "paper" normalises by the published
        constants rather than by those of the images at hand.
      num_train: training images; None is all.
      num_test: test images; None is all.
      raw: what `load_raw` returned, if it was called.
      every_class: whether training images without one of the classes are of no use.
      judged_on: "validation" puts training images that are left over in the place of
        the test images, as many as there would be: to choose by.

    Raises:
      UsageError: more images are asked for than there are, or so few that a class has
        none.
      OSError, ValueError: a file is missing or damaged.
    """
    raw = load_raw(config) if raw is None else raw
    for name, asked, there in (
        ("training", num_train, len(raw.labels_train)),
        ("test", num_test, len(raw.labels_test)),
    ):
        if asked is not None and asked > there:
            raise UsageError(
                f"{asked} {name} images are more than the {there} of {config.dataset}: "
                f"ask for at most {there}, or none for all."
            )
    there = len(raw.labels_train), len(raw.labels_test)
    validation = judged_on == "validation"
    held = (there[1] if num_test is None else num_test) if validation else 0
    left = there[0] - (there[0] if num_train is None else num_train)
    if held > left:
        raise UsageError(
            f"judged_on='validation' takes {held} images of the {left} training images "
            f"that are left over: use at most {there[0] - held} to train, or fewer to "
            "judge."
        )
    train, chosen, test = splits.split(
        *there, num_train=num_train, num_test=num_test, num_validation=held
    )
    if validation:
        judging, labels = raw.images_train[chosen], raw.labels_train[chosen]
    else:
        judging, labels = raw.images_test[test], raw.labels_test[test]
    seen = np.bincount(raw.labels_train[train], minlength=len(raw.class_names))
    if every_class and not seen.all():
        raise UsageError(
            f"Class {int(np.argmin(seen))} of {len(seen)} has no training images "
            f"among {len(train)}: use more images, or all."
        )
    x, x_test = (
        images.astype(np.float32) / np.float32(raw.max_intensity)
        for images in (raw.images_train[train], judging)
    )
    mean, deviation = (part((0, 1, 2), dtype=np.float64) for part in (x.mean, x.std))
    if config.preset == "paper":
        mean, deviation = _PUBLISHED.get(config.dataset, (mean, deviation))
    return Images(
        x,
        raw.labels_train[train],
        x_test,
        labels,
        np.asarray(mean, np.float32),
        np.asarray(deviation, np.float32),
        len(raw.class_names),
        raw.max_intensity,
        # Digits are no digits when mirrored.
        augmentation.NO_FLIP
        if config.dataset in ("digits", "mnist")
        else augmentation.OPERATIONS,
    )
