"""What an audit is given, as a few values that a command line can hold."""

import dataclasses
import pathlib
from typing import Any

from ntk_privacy import _checks
from ntk_privacy.auditing import cases, units
from ntk_privacy.data import places
from ntk_privacy.method import field

__all__ = ["PATHS", "Given", "case"]

PATHS = (
    *("before", "after", "gradient", "adapter", "adapter_before"),
    *("images", "unseen", "distilled", "recipe"),
)
"""Fields that name files or folders."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """What is given; attributes: see the help of each field.

    Raises:
      ValueError: a value that is out of range, or of another form.

    Example:
      >>> from ntk_privacy.auditing import inputs
      >>> inputs.Given(after="after.npz", seeds="0:1000").seed_range()
      (0, 1000)
    """

    before: str | None = field(
        None,
        "Weights before training (of a gradient, those at which it was taken; of an "
        "adapter, those of the frozen network): a file of arrays by names of layers.",
    )
    after: str | None = field(None, "Weights after training.")
    gradient: str | None = field(None, "A gradient that is shared, with --before.")
    adapter: str | None = field(None, "A trained adapter (LoRA), with --before.")
    adapter_before: str | None = field(None, "The same adapter before training.")
    adapter_scale: float | None = field(
        None, "Of the adapter's product, lora_alpha / r; none: as its file tells, or 1."
    )
    seeds: str | None = field(
        None, "Seeds of the weights before training to try, such as 0:100000."
    )
    network: str = field(
        "mlp", "mlp, whose shape the weights tell; or module:function, of your own."
    )
    images: str | None = field(
        None,
        "The private images, to compare with: a folder, or an .npz file with an array "
        "images.",
    )
    unseen: str | None = field(
        None, "Images that were not trained on, for membership and decoys."
    )
    distilled: str | None = field(
        None, "A set that is to be published instead, to compare with --images."
    )
    image_shape: tuple[int, int, int] | None = field(
        None, "Height, width and channels; none: those of --images."
    )
    bounds: tuple[float, float] | None = field(
        None, "What the network takes for black and for white; none: 0,1."
    )
    num_images: int | None = field(
        None, "Training images, if known; none: as the weights show."
    )
    recipe: str | None = field(
        None,
        "What is known of the training, a .json or .toml file with keys such as loss, "
        "optimizer, num_images and weight_decay.",
    )
    fingerprint: str | None = field(
        None, "Of all files that are given, which must be these; none: it is filled in."
    )

    def __post_init__(self):
        self.seed_range()
        if self.image_shape is not None:
            for size in self.image_shape:
                _checks.at_least(1, image_shape=size)
        if self.bounds is not None:
            units.told_by_bounds(self.bounds, 1)
        if self.num_images is not None:
            _checks.at_least(1, num_images=self.num_images)
        there = [getattr(self, name) for name in PATHS]
        marks = [places.fingerprint(pathlib.Path(p)) if p else None for p in there]
        found = ",".join(mark or "-" for mark in marks)
        if self.fingerprint is not None and self.fingerprint != found and any(marks):
            raise ValueError(
                f"fingerprint={self.fingerprint} is of other files than are given, "
                f"{found}: give those, or leave fingerprint out."
            )
        if self.fingerprint is None and any(marks):
            object.__setattr__(self, "fingerprint", found)

    def seed_range(self) -> tuple[int, int] | None:
        """Returns the first seed to try and the end, or None.

        Raises:
          ValueError: they are no two numbers with a colon between.
        """
        if self.seeds is None:
            return None
        first, _, end = self.seeds.partition(":")
        if not (first.isdecimal() and end.isdecimal() and int(first) < int(end)):
            raise ValueError(
                f"seeds={self.seeds!r} must be the first and, above it, the end, such "
                "as 0:100000."
            )
        return int(first), int(end)

    def not_results(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Returns flags that may differ when a run goes on in its folder.

        Args:
          names: those flags, of other inputs: files may lie elsewhere.
        """
        return names if self.fingerprint is None else (*names, *PATHS)


def case(given: Given) -> cases.Case:
    """Reads what is given.

    Args:
      given: names of files.

    Raises:
      ValueError, FileNotFoundError: see `auditing.audit`.
    """
    told: dict[str, Any] = {
        name: value
        for name, value in vars(given).items()
        if value is not None and name not in ("seeds", "fingerprint", "network")
    }
    if given.network != "mlp":
        told["network"] = given.network
    return cases.case(seeds=given.seed_range(), **told)
