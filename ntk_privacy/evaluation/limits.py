"""The limits study of reconstruction: over images, widths, dynamics, sets and tasks.

Example:
  >>> from ntk_privacy.evaluation import limits
  >>> cell = limits.STUDIES["smoke"].cells()[0]
  >>> cell.name()
  'digits_binary_n4_w64_linearized_converged'
  >>> cell.row({"error": "too many"})["error"]
  'too many'
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["STUDIES", "Cell", "Study"]

_TOLD = (
    *("num_recovered", "num_certified", "estimated_num_images", "mean_error"),
    *("kernel_distance", "train_loss", "seconds", "verdict", "warnings"),
    "squared_distances",
)


class Cell(NamedTuple):
    """One run: a point on every axis."""

    dataset: str
    task: str | None
    num_train: int
    width: int
    dynamics: str
    early_stop_loss: float | None

    def name(self) -> str:
        """Returns the name of its folder."""
        stop = "early" if self.early_stop_loss else "converged"
        shape = (f"n{self.num_train}", f"w{self.width}")
        return "_".join(
            (self.dataset, self.task or "binary", *shape, self.dynamics, stop)
        )

    def cost(self) -> tuple[int, str]:
        """Returns what cells are sorted by."""
        # Ten outputs make every candidate ten rows.
        rows = 10 if self.task == "all_classes" else 1
        return (self.num_train * self.width**2 * rows**2, self.dynamics)

    def row(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a row of the table: the point, and what was found there.

        Args:
          results: of an attack, see `read_back`; or an error alone.
        """
        found = {name: results.get(name) for name in _TOLD}
        place = {"num_images": self.num_train, "task": self.task or "binary"}
        place = self._asdict() | place
        del place["num_train"]
        return {**place, **(results if "error" in results else found)}


class Study(NamedTuple):
    """Values on the axes of `Cell`, in order, and most images by a value on them."""

    axes: tuple[tuple[Any, ...], ...]
    most: Mapping[str, int]

    def cells(self) -> list[Cell]:
        """Returns every cell within the limits, cheapest first."""
        grid = (Cell(*point) for point in itertools.product(*self.axes))
        within = (
            cell
            for cell in grid
            if all(cell.num_train <= self.most.get(str(v), 10**9) for v in cell)
        )
        return sorted(within, key=Cell.cost)


_DYNAMICS = ("linearized", "standard")
_REAL = (("mnist", "cifar10"), (None, "all_classes"))
_STOPS = (None, 1e-2)

# The more a step costs, the fewer the images: see `Cell.cost`; and networks whose
# features move are trained and searched step by step.
STUDIES: dict[str, Study] = {
    "full": Study(
        (*_REAL, (20, 50, 100, 200, 500), (256, 1024, 4096), _DYNAMICS, _STOPS),
        {"all_classes": 500, "standard": 500},
    ),
    "cpu": Study(
        (*_REAL, (20, 50, 100), (256, 1024), _DYNAMICS, _STOPS),
        {"all_classes": 20, "standard": 50},
    ),
    "smoke": Study(
        (("digits",), (None,), (4, 8), (64, 128), _DYNAMICS, (None,)),
        {"all_classes": 8, "standard": 8},
    ),
}
"""The whole of it, what two cores finish in an hour, and a taste of it on digits."""
