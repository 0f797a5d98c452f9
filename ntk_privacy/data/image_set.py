"""One image set: what it holds, and what is made of it for training.

Named sets, arrays, files and folders all become an `ImageSet`, so that whoever takes
one takes any.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int32

from ntk_privacy.data import augmentation, draws, splits, tasks
from ntk_privacy.data.dataset import ArgumentError, Dataset
from ntk_privacy.data.given_arrays import checked_images, checked_labels
from ntk_privacy.data.raw import Raw
from ntk_privacy.data.tasks import Binary


class Statistics(NamedTuple):
    """What normalises images: per channel, of intensities in [0, 1].

    Attributes:
        mean: Mean intensity, (c,).
        deviation: Standard deviation, (c,).
    """

    mean: Float32[np.ndarray, " c"]
    deviation: Float32[np.ndarray, " c"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet:
    """Training and test images with their classes; pixels stay as they were given.

    >>> import numpy as np
    >>> from ntk_privacy import data
    >>> images = np.linspace(0, 1, 8 * 4 * 4).reshape(8, 4, 4)
    >>> mine = data.ImageSet.from_arrays(images, [0, 1] * 4, class_names=["cat", "dog"])
    >>> mine.x_train.shape, mine.x_test.shape, mine.tasks
    ((6, 4, 4, 1), (2, 4, 4, 1), ('two_classes', 'all_classes'))
    >>> mine.regression().y_train[:2].tolist()
    [[-1.0], [1.0]]

    Attributes:
        name: For messages and titles.
        images_train: Training images, (n, h, w, c): bytes, of which `levels` is
            intensity 1, or float32 intensities in [0, 1].
        class_train: Class of each training image, (n,), in [0, len(class_names)).
        images_test: Test images, (m, h, w, c), alike.
        class_test: Class of each test image, (m,).
        class_names: One name per class.
        levels: Steps of intensity from black to white: 255, or 16 for `digits`.
        binary: The set's tasks of two superclasses, by name.
        flips: Whether an image mirrored is still one of its class.
        published: Mean and deviation that papers normalise by, if any.
        kin: The set whose published recipes suit this one: "cifar10", "tiny_imagenet"
            or "imagenet".
        normaliser: What `normalised` goes by; None for those of the training images.
    """

    name: str
    images_train: np.ndarray
    class_train: np.ndarray
    images_test: np.ndarray
    class_test: np.ndarray
    class_names: tuple[str, ...]
    levels: int = 255
    binary: Mapping[str, Binary] = dataclasses.field(default_factory=dict)
    flips: bool = True
    published: Statistics | None = None
    kin: str = "cifar10"
    normaliser: Statistics | None = None

    @classmethod
    def from_raw(cls, raw: Raw, *, name: str, **about: Any) -> "ImageSet":
        """Returns a set as its files hold it.

        Args:
            raw: Of a loader.
            name: Of the set.
            **about: See the attributes binary, flips, published and kin.
        """
        return cls(
            name=name,
            images_train=raw.images_train,
            class_train=raw.labels_train,
            images_test=raw.images_test,
            class_test=raw.labels_test,
            class_names=tuple(raw.class_names),
            levels=raw.max_intensity,
            **about,
        )

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        labels: Any,
        images_test: Any = None,
        labels_test: Any = None,
        *,
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
        levels: int | None = None,
        binary: Mapping[str, Binary] | None = None,
        flips: bool | None = None,
    ) -> "ImageSet":
        """Returns a set of one's own arrays.

        Args:
            images: Training images, (n, h, w) or (n, h, w, c), c of 1 or 3: unsigned
                bytes, or floating-point intensities in [0, 1].
            labels: Their classes, whole numbers from 0 without gaps, (n,) or (n, 1).
            images_test: Test images, alike; None to hold out a fifth of each class,
                always the same: see `splits.hold_out`.
            labels_test: Their classes.
            class_names: One per class; None for the numbers.
            name: For messages and titles.
            levels: The byte that is intensity 1; None for 255.
            binary: Tasks of two superclasses; None for none, but that two classes are
                the task `two_classes`: -1 and +1.
            flips: Whether to augment by mirroring; None for images in colour alone, for
                digits, letters and scans are others when mirrored.

        Raises:
            ValueError: An array is of another kind, shape or range, a class lacks
                images, or numbers differ.
        """
        if (images_test is None) != (labels_test is None):
            lacks = "labels_test" if labels_test is None else "images_test"
            raise ValueError(
                f"{lacks} is missing: give both, or neither to have a fifth of the "
                "images held out."
            )
        x = checked_images(levels, images=images)
        classes = checked_labels(len(x), labels=labels)
        names = _names(classes, class_names)
        if images_test is None:
            train, test = splits.hold_out(classes)
            x_test, class_test = x[test], classes[test]
            x, classes = x[train], classes[train]
        else:
            x_test = checked_images(levels, images_test=images_test)
            class_test = checked_labels(
                len(x_test), num_classes=len(names), labels_test=labels_test
            )
            _check_alike(x, x_test)
        if binary is None:
            binary = tasks.two_classes(names)
        return cls(
            name=name,
            images_train=x,
            class_train=classes,
            images_test=x_test,
            class_test=class_test,
            class_names=names,
            levels=255 if levels is None else levels,
            binary=binary,
            flips=x.shape[-1] > 1 if flips is None else flips,
        )

    @functools.cached_property
    def x_train(self) -> Float32[np.ndarray, "n h w c"]:
        """Intensities of the training images, in [0, 1]."""
        return self._intensity(self.images_train)

    @functools.cached_property
    def x_test(self) -> Float32[np.ndarray, "m h w c"]:
        """Intensities of the test images, in [0, 1]."""
        return self._intensity(self.images_test)

    @functools.cached_property
    def statistics(self) -> Statistics:
        """Mean and deviation of the training images, per channel."""
        x = self.x_train
        found = (part((0, 1, 2), dtype=np.float64) for part in (x.mean, x.std))
        return Statistics(*(np.asarray(value, np.float32) for value in found))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        _, height, width, channels = self.images_train.shape
        return height, width, channels

    @property
    def side(self) -> int:
        """Height in pixels."""
        return self.image_shape[0]

    @property
    def num_classes(self) -> int:
        """How many classes there are, whether or not all have images."""
        return len(self.class_names)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What can be learnt; the first is the default."""
        return (*self.binary, tasks.ALL_CLASSES)

    @property
    def operations(self) -> tuple[str, ...]:
        """Augmentations that leave an image in its class."""
        return augmentation.OPERATIONS if self.flips else augmentation.NO_FLIP

    def normalised(self, images: Any) -> Float32[np.ndarray, "..."]:
        """Returns images less a mean, over a deviation: see `normal`.

        Args:
            images: Intensities in [0, 1], (..., c).
        """
        return (np.asarray(images) - self.normal.mean) / self.normal.deviation

    @property
    def normal(self) -> Statistics:
        """What normalises: the training images' statistics, or those that are set."""
        return self.statistics if self.normaliser is None else self.normaliser

    def by_published(self) -> "ImageSet":
        """Returns the set normalised by the papers' numbers, where there are any."""
        return dataclasses.replace(self, normaliser=self.published)

    def replaced(self, x_train: Any) -> "ImageSet":
        """Returns the set with other training images, normalised as it was.

        Args:
            x_train: Intensities in [0, 1], as many and of the same shape.
        """
        return dataclasses.replace(
            self,
            images_train=np.asarray(x_train, np.float32),
            normaliser=self.normal,
        )

    def centred(self, images: Any) -> Float32[np.ndarray, "..."]:
        """Returns images, intensities in [0, 1], less the training images' mean."""
        return np.asarray(images) - self.statistics.mean

    def targets(
        self, classes: Int32[np.ndarray, " n"], task: str | None = None
    ) -> Float32[np.ndarray, "n k"]:
        """Returns -1 or +1 with k = 1, or one-hot less 1/k.

        Args:
            classes: Of the images.
            task: Of `tasks`; None for the first.

        Raises:
            ArgumentError: The set has no such task.
        """
        binary = self.binary.get(self._task(task))
        return tasks.targets(classes, num_classes=self.num_classes, binary=binary)

    def regression(
        self, task: str | None = None, *, released_label_fault: bool = False
    ) -> Dataset:
        """Returns all images less their mean, with targets.

        Args:
            task: Of `tasks`; None for the first.
            released_label_fault: See `data.load`.

        Raises:
            ArgumentError: The set has no such task, or the task no such fault.
        """
        task = self._task(task)
        y_test = self.targets(self.class_test, task)
        if released_label_fault:
            fault = tasks.released_fault(self.name, task, self.binary)
            y_test[np.isin(self.class_test, fault)] = -1.0
        return Dataset(
            x_train=self.centred(self.x_train),
            y_train=self.targets(self.class_train, task),
            class_train=self.class_train,
            x_test=self.centred(self.x_test),
            y_test=y_test,
            class_test=self.class_test,
            mean=self.statistics.mean,
        )

    def rows(self, train: Any, test: Any) -> "ImageSet":
        """Returns the set with these rows of its training and its test images."""
        return dataclasses.replace(
            self,
            images_train=self.images_train[train],
            class_train=self.class_train[train],
            images_test=self.images_test[test],
            class_test=self.class_test[test],
        )

    def balanced(
        self,
        task: str | None = None,
        *,
        num_train: int | None = None,
        num_test: int | None = None,
        key: jax.Array | None = None,
    ) -> "ImageSet":
        """Returns as many training images of each (super)class, as `data.load` draws.

        Args:
            task: Of `tasks`; None for the first.
            num_train: Training images, a multiple of the number of (super)classes, in
                order of those; None for all in their order.
            num_test: Test images, drawn uniformly, in their order; None for all.
            key: Fixes both; needed if either number is given.

        Raises:
            ArgumentError: The set has no such task, or too few images.
            ValueError: The key is missing.
        """
        if num_train is None and num_test is None:
            return self
        draws.check_key(key)
        assert key is not None
        task = self._task(task)
        groups, names = self.class_train, self.class_names
        if task in self.binary:
            told = self.binary[task]
            groups = told.is_plus(groups).astype(np.int32)
            names = (told.minus, told.plus)
        key_train, key_test = jax.random.split(key)
        train = test = slice(None)
        if num_train is not None:
            about = {"names": names, "task": task, "source": self.name}
            train = draws.balanced(groups, num_train, key_train, **about)
        if num_test is not None:
            there = len(self.class_test)
            test = draws.uniform(there, num_test, key_test, source=self.name)
        return self.rows(train, test)

    def subset(
        self,
        *,
        num_train: int | None = None,
        num_test: int | None = None,
        judged_on: Literal["test", "validation"] = "test",
        every_class: bool = True,
    ) -> "ImageSet":
        """Returns a random part that is always the same: see `splits.split`.

        Args:
            num_train: Training images; None is all.
            num_test: Test images; None is all.
            judged_on: "validation" puts training images that are left over in the place
                of the test images, as many as there would be: to choose by.
            every_class: Whether training images without one of the classes are of no
                use.

        Raises:
            ArgumentError: More images are asked for than there are, or so few that a
                class has none.
        """
        there = len(self.class_train), len(self.class_test)
        for kind, asked, has in (
            ("training", num_train, there[0]),
            ("test", num_test, there[1]),
        ):
            if asked is not None and asked > has:
                raise ArgumentError(
                    f"{asked} {kind} images are more than the {has} of {self.name}: "
                    f"ask for at most {has}, or none for all."
                )
        validation = judged_on == "validation"
        held = (there[1] if num_test is None else num_test) if validation else 0
        left = there[0] - (there[0] if num_train is None else num_train)
        if held > left:
            raise ArgumentError(
                f"judged_on='validation' takes {held} images of the {left} training "
                f"images that are left over: use at most {there[0] - held} to train, "
                "or fewer to judge."
            )
        chosen = splits.split(
            *there, num_train=num_train, num_test=num_test, num_validation=held
        )
        seen = np.bincount(self.class_train[chosen.train], minlength=self.num_classes)
        if every_class and not seen.all():
            raise ArgumentError(
                f"Class {int(np.argmin(seen))} of {len(seen)} has no training images "
                f"among {len(chosen.train)}: use more images, or all."
            )
        if not validation:
            return self.rows(chosen.train, chosen.test)
        judging = dataclasses.replace(
            self, images_test=self.images_train, class_test=self.class_train
        )
        return judging.rows(chosen.train, chosen.validation)

    def _intensity(self, images: np.ndarray) -> Float32[np.ndarray, "n h w c"]:
        if images.dtype == np.float32:
            return images
        return images.astype(np.float32) / np.float32(self.levels)

    def _task(self, task: str | None) -> str:
        return tasks.checked(self.name, task, self.tasks)


def _names(
    classes: Int32[np.ndarray, " n"], given: Sequence[str] | None
) -> tuple[str, ...]:
    """Returns the classes' names; refuses classes without images."""
    count = int(classes.max()) + 1
    names = tuple(map(str, range(count) if given is None else given))
    if count > len(names):
        raise ValueError(
            f"labels go up to {count - 1}, but class_names has {len(names)}: name each "
            "class."
        )
    if len(names) < 2:
        raise ValueError("labels has one class: give images of two at least.")
    seen = np.bincount(classes, minlength=len(names))
    if not seen.all():
        lacks = int(np.argmin(seen))
        raise ValueError(
            f"labels lacks class {lacks} ({names[lacks]}) of {len(names)}: number the "
            "classes that have training images from 0 without gaps."
        )
    return names


def _check_alike(x: np.ndarray, x_test: np.ndarray) -> None:
    for told, a, b in (
        ("shape", x.shape[1:], x_test.shape[1:]),
        ("dtype", x.dtype, x_test.dtype),
    ):
        if a != b:
            raise ValueError(
                f"images has {told} {a} but images_test {b}: give both alike."
            )
