"""What is learnt from an image set: its classes, or two superclasses of them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from ntk_privacy.data.dataset import ArgumentError

ALL_CLASSES = "all_classes"
"""The task that every set has: one output a class."""


class Binary(NamedTuple):
    """A task of two superclasses, and one output.

    Attributes:
        minus: Name of the superclass with target -1.
        plus: Name of that with target +1.
        positive: Classes that are +1; all others are -1.
        released_fault: Classes that released code scores as -1 in the test labels.
    """

    minus: str
    plus: str
    positive: tuple[int, ...]
    released_fault: tuple[int, ...] = ()

    def is_plus(self, classes: Int32[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Returns whether each class belongs to the superclass +1."""
        return np.isin(classes, self.positive)


def targets(
    classes: Int32[np.ndarray, " n"], *, num_classes: int, binary: Binary | None
) -> Float32[np.ndarray, "n k"]:
    """Returns -1 or +1 with k = 1, or one-hot less 1/k.

    Args:
        classes: Of the images.
        num_classes: Of the set.
        binary: The task; None for all classes.
    """
    if binary is None:
        one_hot = np.eye(num_classes, dtype=np.float32)[classes]
        return one_hot - np.float32(1 / num_classes)
    return np.where(binary.is_plus(classes), 1.0, -1.0).astype(np.float32)[:, None]


def two_classes(class_names: Sequence[str]) -> dict[str, Binary]:
    """Returns the task of a set of two classes, -1 and +1; none for more.

    Args:
        class_names: One per class, in label order.

    Example:
        >>> from ntk_privacy.data import tasks
        >>> tasks.two_classes(("cat", "dog"))["two_classes"].positive
        (1,)
    """
    if len(class_names) != 2:
        return {}
    return {"two_classes": Binary(class_names[0], class_names[1], (1,))}


def checked(name: str, task: str | None, tasks: Sequence[str]) -> str:
    """Returns the task, the first if None; an ArgumentError if the set lacks it.

    Args:
        name: The set's, for the message.
        task: What was asked for, if anything.
        tasks: Those of the set, the default first.

    Raises:
        ArgumentError: The set has no such task.
    """
    task = tasks[0] if task is None else task
    if task not in tasks:
        raise ArgumentError(
            f"task={task!r} does not exist for {name}: use one of {', '.join(tasks)}."
        )
    return task


def released_fault(
    name: str, task: str, binary: Mapping[str, Binary]
) -> tuple[int, ...]:
    """Returns the classes that released code scores wrongly in the test labels.

    Args:
        name: The set's, for the message.
        task: What is learnt.
        binary: The set's tasks of two superclasses, by name.

    Raises:
        ArgumentError: There are none in this task.
    """
    if task not in binary or not binary[task].released_fault:
        raise ArgumentError(
            f"released_label_fault=True does not fit {name} with task={task!r}: the "
            "fault is one of cifar10 with animal_vehicle."
        )
    return binary[task].released_fault
