"""The named image sets, one row each; and images by name, file or folder.

A set more is a row of `SETS`, and, if it may be downloaded, one of `fetch.REGISTRY`.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from ntk_privacy.data import (
    cifar10,
    digits,
    draws,
    fetch,
    image_folder,
    mnist,
    npz_file,
    places,
    tasks,
    tiny_imagenet,
)
from ntk_privacy.data.dataset import Dataset
from ntk_privacy.data.image_set import ImageSet, Statistics
from ntk_privacy.data.raw import Raw, data_root
from ntk_privacy.data.tasks import Binary


class Set(NamedTuple):
    """A named image set.

    Attributes:
        load_raw: `(root) -> Raw`: reads its files, which lie in the folder or below.
        image_shape: Height, width and channels.
        binary: Its tasks of two superclasses, by name; the first is the default.
        flips: Whether an image mirrored is still one of its class.
        published: Mean and deviation that papers normalise by, if any.
        kin: See `ImageSet`.

    Example:
        >>> from ntk_privacy import data
        >>> row = data.SETS["digits"]
        >>> row.image_shape, row.tasks, row.flips
        ((8, 8, 1), ('odd_even', 'all_classes'), False)
    """

    load_raw: Callable[[Path], Raw]
    image_shape: tuple[int, int, int]
    binary: Mapping[str, Binary] = {}
    flips: bool = True
    published: Statistics | None = None
    kin: str = "cifar10"

    @property
    def tasks(self) -> tuple[str, ...]:
        """What can be learnt; the first is the default."""
        return (*self.binary, tasks.ALL_CLASSES)


def _statistics(mean: tuple[float, ...], deviation: tuple[float, ...]) -> Statistics:
    return Statistics(np.asarray(mean, np.float32), np.asarray(deviation, np.float32))


_ODD_EVEN = {"odd_even": Binary("even", "odd", (1, 3, 5, 7, 9))}

# Mean and deviation are those of DC, DSA and DM; that of CIFAR-10 is the mean deviation
# within an image, a fifth below that of its pixels.
SETS: dict[str, Set] = {
    "digits": Set(lambda _: digits.load_raw(), (8, 8, 1), _ODD_EVEN, flips=False),
    "mnist": Set(
        mnist.load_raw,
        (28, 28, 1),
        _ODD_EVEN,
        flips=False,
        published=_statistics((0.1307,), (0.3081,)),
    ),
    "cifar10": Set(
        cifar10.load_raw,
        (32, 32, 3),
        # Released code scores trucks as animals.
        {"animal_vehicle": Binary("animal", "vehicle", (0, 1, 8, 9), (9,))},
        published=_statistics((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ),
    "tiny_imagenet": Set(tiny_imagenet.load_raw, (64, 64, 3), kin="tiny_imagenet"),
}
"""The image sets that have a name."""

# Folders of pictures are laid out as ImageNet's.
_FOLDER_KIN = "imagenet"


def load_raw(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> Raw:
    """Reads a named image set as its files hold it.

    Args:
        name: `digits`, `mnist`, `cifar10` or `tiny_imagenet`.
        data_dir: The folder with the files, or with the set's own folder; else the
            environment variable `NTK_PRIVACY_DATA`, else `~/.cache/ntk_privacy`.
        download: Whether to fetch the files if they are not there.

    Raises:
        FileNotFoundError: The files are not there and `download` is false.
        ConnectionError: The download failed.
        FileExistsError: A download would replace an incomplete folder.
        ValueError: The name is unknown, or a file is corrupt or has another hash than
            published.
    """
    if name not in SETS:
        raise places.unknown(tuple(SETS), name=name)
    root = data_root(data_dir)
    try:
        return SETS[name].load_raw(root)
    except FileNotFoundError:
        if not download or name not in fetch.REGISTRY:
            raise
    fetch.fetch(name, root)
    return SETS[name].load_raw(root)


def load_set(
    name: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    size: int | None = None,
) -> ImageSet:
    """Returns an image set, whole: a named one, or one's own images.

    >>> from ntk_privacy import data
    >>> data.load_set("digits").x_train.shape
    (1437, 8, 8, 1)

    Args:
        name: Of `SETS`; or the path of an .npz file (see `npz_file.load_set`) or of a
            folder with a folder of pictures per class (see `image_folder.load_raw`). A
            folder whose name is a set's is written with its place, `./digits`.
        data_dir: See `load_raw`; for named sets.
        download: See `load_raw`; for named sets.
        size: Pixels a side, for folders; None for the pictures' own if they are squares
            of one size up to 64, else 64.

    Raises:
        FileNotFoundError: The files are not there.
        ConnectionError, FileExistsError: See `load_raw`.
        ValueError: The name is unknown, or a file is damaged or not what it should be.
    """
    place = places.place_of(name, tuple(SETS))
    if place is None:
        assert isinstance(name, str)
        about = SETS[name]
        return ImageSet.from_raw(
            load_raw(name, data_dir, download),
            name=name,
            binary=about.binary,
            flips=about.flips,
            published=about.published,
            kin=about.kin,
        )
    if places.is_npz(place):
        return npz_file.load_set(place)
    raw = image_folder.load_raw(place, size=size)
    return ImageSet.from_raw(
        raw,
        name=places.title(place),
        binary=tasks.two_classes(raw.class_names),
        flips=raw.images_train.shape[-1] > 1,
        kin=_FOLDER_KIN,
    )


class Foretold(NamedTuple):
    """What is known of an image set before its files are read.

    Attributes:
        kin: See `ImageSet`.
        side: Height in pixels; None where the files say.
    """

    kin: str
    side: int | None


def foretold(name: str | os.PathLike[str], *, size: int | None = None) -> Foretold:
    """Returns what is known of an image set without a look at its files.

    >>> from ntk_privacy import data
    >>> data.foretold("tiny_imagenet")
    Foretold(kin='tiny_imagenet', side=64)

    Args:
        name: See `load_set`.
        size: See `load_set`.

    Raises:
        ValueError: The name is unknown.
    """
    place = places.place_of(name, tuple(SETS))
    if place is None:
        about = SETS[str(name)]
        return Foretold(about.kin, about.image_shape[0])
    return Foretold(ImageSet.kin if places.is_npz(place) else _FOLDER_KIN, size)


def load(
    name: str | os.PathLike[str],
    *,
    task: str | None = None,
    num_train: int | None = None,
    num_test: int | None = None,
    key: jax.Array | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    released_label_fault: bool = False,
    size: int | None = None,
) -> Dataset:
    """Loads an image set for regression on its labels.

    Subsets, labels and mean follow the released code of Loo et al.
    (arXiv:2302.01428): N/2 images of the superclass -1, then N/2 of +1, drawn
    uniformly without replacement; with `all_classes` N/C of each class in turn.

    Args:
        name: `digits` (8x8x1, offline), `mnist` (28x28x1), `cifar10` (32x32x3) or
            `tiny_imagenet` (64x64x3); or one's own images, see `load_set`.
        task: `odd_even` (even -1, odd +1; digits and MNIST), `animal_vehicle` (animal
            -1, vehicle +1; CIFAR-10), `two_classes` (the first -1, the second +1; one's
            own images of two classes), or `all_classes` (one-hot less 1/C; every set).
            The first that fits the set if None.
        num_train: Number of training images, a multiple of the number of
            (super)classes; None for the whole set in file order.
        num_test: Number of test images, a uniform subset in file order; None for all.
        key: Fixes both subsets; needed if either number is given. The test subset does
            not depend on `num_train`, nor the training subset on `num_test`.
        data_dir: See `load_raw`.
        download: See `load_raw`.
        released_label_fault: Score trucks as animals in the test labels, as the
            released code of the paper does; only to compare with its Table 1.
        size: See `load_set`.

    Returns:
        The chosen images and targets, float32 NumPy arrays.

    Raises:
        FileNotFoundError: The files are not there and `download` is false.
        ConnectionError, FileExistsError: See `load_raw`.
        ArgumentError: An argument does not fit the set.
        ValueError: A file is corrupt.

    Example:
        >>> import jax
        >>> from ntk_privacy import data
        >>> digits = data.load("digits", num_train=10, key=jax.random.key(0))
        >>> digits.x_train.shape, digits.y_train.ravel().tolist()[4:6]
        ((10, 8, 8, 1), [-1.0, 1.0])
    """
    part = chosen(
        name,
        task=task,
        num_train=num_train,
        num_test=num_test,
        key=key,
        data_dir=data_dir,
        download=download,
        released_label_fault=released_label_fault,
        size=size,
    )
    return part.regression(task, released_label_fault=released_label_fault)


def chosen(
    name: str | os.PathLike[str],
    *,
    task: str | None = None,
    num_train: int | None = None,
    num_test: int | None = None,
    key: jax.Array | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    released_label_fault: bool = False,
    size: int | None = None,
) -> ImageSet:
    """Returns the images that `load` makes regression of; its arguments and errors.

    Args: those of `load`.

    Raises:
        FileNotFoundError, ConnectionError, FileExistsError, ValueError: See `load`.

    Example:
        >>> import jax
        >>> from ntk_privacy.data import sets
        >>> part = sets.chosen("digits", num_train=10, key=jax.random.key(0))
        >>> part.x_train.shape, part.class_names[3]
        ((10, 8, 8, 1), '3')
    """
    # What is known before the files are read is told before.
    if isinstance(name, str) and name in SETS:
        about = SETS[name]
        known = tasks.checked(name, task, about.tasks)
        if released_label_fault:
            tasks.released_fault(name, known, about.binary)
    if num_train is not None or num_test is not None:
        draws.check_key(key)
    found = load_set(name, data_dir=data_dir, download=download, size=size)
    return found.balanced(task, num_train=num_train, num_test=num_test, key=key)
