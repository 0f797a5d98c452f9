"""Image sets as arrays: labels for regression, balanced subsets, subtracted mean."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int32, UInt8

from ntk_privacy import _checks
from ntk_privacy.data import cifar10, digits, fetch, mnist, tiny_imagenet
from ntk_privacy.data.raw import Raw, data_root

_LOADERS: Mapping[str, Callable[[Path], Raw]] = {
    "digits": lambda _: digits.load_raw(),
    "mnist": mnist.load_raw,
    "cifar10": cifar10.load_raw,
    "tiny_imagenet": tiny_imagenet.load_raw,
}
NAMES = tuple(_LOADERS)
"""The image sets that `load` knows."""

# task -> (name of the -1 superclass, of the +1 superclass, classes that are +1)
_BINARY = {
    "odd_even": ("even", "odd", (1, 3, 5, 7, 9)),
    "animal_vehicle": ("animal", "vehicle", (0, 1, 8, 9)),
}
_TASKS = {
    "digits": ("odd_even", "all_classes"),
    "mnist": ("odd_even", "all_classes"),
    "cifar10": ("animal_vehicle", "all_classes"),
    "tiny_imagenet": ("all_classes",),
}
_TRUCK = 9


class ArgumentError(ValueError):
    """What was asked does not fit the image set: its files are not at fault."""


class Dataset(NamedTuple):
    """Training and test images with regression targets.

    Intensities are in [0, 1] less `mean`, which belongs to the chosen training images
    alone and is subtracted from the test images too; there is no division by a
    standard deviation (Loo et al., arXiv:2302.01428, released code).

    Attributes:
        x_train: Training images, (n, h, w, c), intensity less mean.
        y_train: Targets, (n, k): -1 or +1 with k = 1, or one-hot less 1/k.
        class_train: The set's own class of each training image, (n,).
        x_test: Test images, (m, h, w, c).
        y_test: Targets of the test images, (m, k).
        class_test: Class of each test image, (m,).
        mean: Mean intensity of the training images per channel, (c,).
    """

    x_train: Float32[np.ndarray, "n h w c"]
    y_train: Float32[np.ndarray, "n k"]
    class_train: Int32[np.ndarray, " n"]
    x_test: Float32[np.ndarray, "m h w c"]
    y_test: Float32[np.ndarray, "m k"]
    class_test: Int32[np.ndarray, " m"]
    mean: Float32[np.ndarray, " c"]

    @property
    def bounds(self) -> tuple[Float32[np.ndarray, " c"], Float32[np.ndarray, " c"]]:
        """What intensities 0 and 1 are after the mean is subtracted, per channel."""
        return -self.mean, np.float32(1) - self.mean


def load_raw(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> Raw:
    """Reads an image set as its files hold it.

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
    _checks.one_of(NAMES, name=name)
    root = data_root(data_dir)
    try:
        return _LOADERS[name](root)
    except FileNotFoundError:
        if not download:
            raise
    fetch.fetch(name, root)
    return _LOADERS[name](root)


def load(
    name: str,
    *,
    task: str | None = None,
    num_train: int | None = None,
    num_test: int | None = None,
    key: jax.Array | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    released_label_fault: bool = False,
) -> Dataset:
    """Loads an image set for regression on its labels.

    Subsets, labels and mean follow the released code of Loo et al.
    (arXiv:2302.01428): N/2 images of the superclass -1, then N/2 of +1, drawn
    uniformly without replacement; with `all_classes` N/C of each class in turn.

    Args:
        name: `digits` (8x8x1, offline), `mnist` (28x28x1), `cifar10` (32x32x3) or
            `tiny_imagenet` (64x64x3).
        task: `odd_even` (even -1, odd +1; digits and MNIST), `animal_vehicle` (animal
            -1, vehicle +1; CIFAR-10), or `all_classes` (one-hot less 1/C; every set).
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

    Returns:
        The chosen images and targets, float32 NumPy arrays.

    Raises:
        FileNotFoundError: The files are not there and `download` is false.
        ConnectionError, FileExistsError: See `load_raw`.
        ArgumentError: An argument does not fit the set.
        ValueError: A file is corrupt.
    """
    _checks.one_of(NAMES, name=name)
    task = _TASKS[name][0] if task is None else task
    if task not in _TASKS[name]:
        raise ArgumentError(
            f"task={task!r} does not exist for {name}: use one of "
            f"{', '.join(_TASKS[name])}."
        )
    if released_label_fault and task != "animal_vehicle":
        raise ArgumentError(
            f"released_label_fault=True does not fit {name} with task={task!r}: the "
            "fault is one of cifar10 with animal_vehicle."
        )
    for argument, count in (("num_train", num_train), ("num_test", num_test)):
        if count is None:
            continue
        if not isinstance(count, int | np.integer):
            raise ArgumentError(f"{argument}={count!r} must be a whole number.")
        _check_key(key)
    raw = load_raw(name, data_dir, download)
    num_classes = len(raw.class_names)
    key_train, key_test = (None, None) if key is None else jax.random.split(key)
    train = _choose_train(name, task, raw, num_train, key_train)
    test = _choose_test(name, raw, num_test, key_test)
    class_train, class_test = raw.labels_train[train], raw.labels_test[test]
    y_test = _targets(class_test, task, num_classes)
    if released_label_fault:
        y_test[class_test == _TRUCK] = -1.0
    x_train = _intensity(raw.images_train[train], raw.max_intensity)
    mean = x_train.mean(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)
    return Dataset(
        x_train=x_train - mean,
        y_train=_targets(class_train, task, num_classes),
        class_train=class_train,
        x_test=_intensity(raw.images_test[test], raw.max_intensity) - mean,
        y_test=y_test,
        class_test=class_test,
        mean=mean,
    )


def _check_key(key: Any) -> None:
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jax.numpy.issubdtype(dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"key={key!r} is no typed key, which num_train and num_test need: give "
            "key=jax.random.key(0)."
        )


def _intensity(
    images: UInt8[np.ndarray, "n h w c"], max_intensity: int
) -> Float32[np.ndarray, "n h w c"]:
    return images.astype(np.float32) / np.float32(max_intensity)


def _superclasses(
    labels: Int32[np.ndarray, " n"], task: str, names: tuple[str, ...]
) -> tuple[Int32[np.ndarray, " n"], tuple[str, ...]]:
    """Returns the index of each image's (super)class, and the superclasses' names."""
    if task == "all_classes":
        return labels, names
    minus, plus, positive = _BINARY[task]
    return np.isin(labels, positive).astype(np.int32), (minus, plus)


def _targets(
    labels: Int32[np.ndarray, " n"], task: str, num_classes: int
) -> Float32[np.ndarray, "n k"]:
    if task == "all_classes":
        one_hot = np.eye(num_classes, dtype=np.float32)[labels]
        return one_hot - np.float32(1 / num_classes)
    positive = np.isin(labels, _BINARY[task][2])
    return np.where(positive, 1.0, -1.0).astype(np.float32)[:, None]


def _choose_train(
    name: str, task: str, raw: Raw, num_train: int | None, key: jax.Array | None
) -> Int32[np.ndarray, " n"]:
    groups, names = _superclasses(raw.labels_train, task, raw.class_names)
    if num_train is None:
        return np.arange(len(groups), dtype=np.int32)
    assert key is not None  # load has checked it
    if num_train < 1 or num_train % len(names):
        raise ArgumentError(
            f"num_train={num_train} does not split evenly into the {len(names)} "
            f"classes of {task}: use a positive multiple of {len(names)}."
        )
    each = num_train // len(names)
    counts = np.bincount(groups, minlength=len(names))
    scarcest = int(np.argmin(counts))
    if each > counts[scarcest]:
        have = counts[scarcest]
        raise ArgumentError(
            f"num_train={num_train} needs {each} images of {names[scarcest]}, but the "
            f"{name} files hold {have}, {len(groups)} training images in all: use at "
            f"most {have * len(names)}."
        )
    order = _shuffled(key, len(groups))
    chosen = [order[groups[order] == index][:each] for index in range(len(names))]
    return np.concatenate(chosen)


def _choose_test(
    name: str, raw: Raw, num_test: int | None, key: jax.Array | None
) -> Int32[np.ndarray, " m"]:
    available = len(raw.labels_test)
    if num_test is None:
        return np.arange(available, dtype=np.int32)
    assert key is not None  # load has checked it
    if not 1 <= num_test <= available:
        raise ArgumentError(
            f"num_test={num_test} must lie in [1, {available}]: the {name} files hold "
            f"{available} test images."
        )
    return np.sort(_shuffled(key, available)[:num_test])


def _shuffled(key: jax.Array, count: int) -> Int32[np.ndarray, " n"]:
    """Returns `range(count)` in an order that is uniform given the key."""
    # One draw for all classes: jax.random.permutation compiles anew for each size.
    priority = np.asarray(jax.random.bits(key, (count,), "uint32"))
    return np.argsort(priority, kind="stable").astype(np.int32)
