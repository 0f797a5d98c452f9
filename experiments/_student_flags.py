"""Flags of `experiments.distill` with methods that match classes, of its networks."""

import dataclasses
from typing import Any

from ntk_privacy.distillation import mtt
from ntk_privacy.evaluation import students
from ntk_privacy.method import Method, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Students(students.Config):
    """Networks trained on the set."""

    evaluate: bool = field(False, "Test accuracy of ConvNets trained on the set.")

    @classmethod
    def sizes(cls, preset: str, method: Method[Any]) -> dict[str, Any]:
        """Returns the values of a preset, given the method whose set it is."""
        learns = issubclass(method.config, mtt.Config)
        published = {"train_learning_rate": None} if learns else {}
        return students.SMALL if preset == "cpu" else published

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        # Where the method has a width, it is read.
        unread = ("num_networks", "num_epochs", "train_learning_rate")
        alone = "a set that is not evaluated"
        return {} if self.evaluate else dict.fromkeys(unread, alone)
