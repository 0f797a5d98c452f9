"""Flags of `experiments.distill` with sre2l and cda, beside those of the method."""

import dataclasses
from typing import Any, Literal

from ntk_privacy.data.choice import Tested
from ntk_privacy.evaluation import soft_students
from ntk_privacy.method import Method, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Tested):
    """Images."""

    judged_on: Literal["test", "validation"] = field(
        "test",
        "Images to judge by; validation is training images that are left over, to "
        "choose flags by.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Students(soft_students.Config):
    """A network trained on the set."""

    evaluate: bool = field(
        False, "Test accuracy, clean and under attacks, and the top eigenvalue."
    )
    baseline: str | None = field(
        None, "Folder of an evaluated run, whose eigenvalues are drawn beside."
    )

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        unread = ("attacks", "attack_steps", "num_queries")
        alone = "a set that is not evaluated"
        return {} if self.evaluate else dict.fromkeys(unread, alone)


def defaults(method: Method[Any], preset: str) -> dict[str, Any]:
    """Returns what flags are unless given."""
    del method
    given = {"dataset": "cifar10", "workdir": "runs/sre2l", "checkpoint_seconds": 60.0}
    small = soft_students.SMALL | {"num_train": 2000, "num_test": 200}
    return given | (small if preset == "cpu" else {})
