"""How the KKT attack searches: our defaults and the published settings."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from ntk_privacy import _checks

__all__ = [
    "FAST",
    "PAPER",
    "POINTS",
    "POLISH",
    "REPLAYED",
    "STANDARD",
    "Settings",
    "parse_points",
]

POINTS = {
    "final": (1.0,),
    "init": (0.0,),
    "midpoint": (0.5,),
    "both": (0.0, 1.0),
    "three": (0.0, 0.5, 1.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How the attack searches.

    Attributes:
      num_steps: Adam steps.
      learning_rate: of the images, in intensity per pixel and step.
      dual_learning_rate: of the duals, which are held as m c times the multipliers.
      init_scale: standard deviation of the initial pixels, in intensity.
      box_weight: of the penalty for pixels outside the range.
      decay: of both rates: "cosine" to zero, or "constant".
      anneal: of the softplus sharpness: "geometric" from `start_sharpness` to
        `max_sharpness` in the first 60% of the run; "paper": min(10 + 10^(i/20000),
        200) at step i.
      max_sharpness: where annealing ends.
      duals: "solve" for the best ones at every step (kernel form), "adam" as
        published, or "auto": solve where there are at most 2048 of them.
      ridge: of that solve, relative to the mean diagonal of the kernel.
      form: "kernel" (MLPs) or "parameter" (any network, also smoothed ones).
      project: search in the column space of the first layer's change (MLPs).
      first_layer: count the residual of the first layer too. The projection has used
        its directions already; without it a step costs half (MLPs; it always counts in
        networks of one hidden layer).
    """

    num_steps: int = 4000
    learning_rate: float = 0.02
    dual_learning_rate: float = 0.02
    init_scale: float = 0.2
    box_weight: float = 0.1
    decay: Literal["cosine", "constant"] = "cosine"
    anneal: Literal["geometric", "paper"] = "geometric"
    start_sharpness: float = 10.0
    max_sharpness: float = 3000.0
    duals: Literal["auto", "solve", "adam"] = "auto"
    ridge: float = 1e-4
    form: Literal["kernel", "parameter"] = "kernel"
    project: bool = True
    first_layer: bool = False

    def __post_init__(self):
        _checks.at_least(1, num_steps=self.num_steps)
        _checks.positive(
            learning_rate=self.learning_rate,
            dual_learning_rate=self.dual_learning_rate,
            init_scale=self.init_scale,
        )
        _checks.positive(start_sharpness=self.start_sharpness)
        _checks.at_least(self.start_sharpness, max_sharpness=self.max_sharpness)
        _checks.at_least(0, box_weight=self.box_weight)
        _checks.one_of(("cosine", "constant"), decay=self.decay)
        _checks.one_of(("geometric", "paper"), anneal=self.anneal)
        _checks.one_of(("auto", "solve", "adam"), duals=self.duals)
        _checks.at_least(0, ridge=self.ridge)
        _checks.one_of(("kernel", "parameter"), form=self.form)
        if self.form == "parameter" and self.duals == "solve":
            raise ValueError(
                'duals="solve" needs the kernel form: use form="kernel", or "adam".'
            )


FAST = Settings()
"""The default: a twentieth of the published steps, and a better curve."""

STANDARD = dataclasses.replace(FAST, num_steps=2000, max_sharpness=1000.0, ridge=3e-3)
"""For standard dynamics, with `points="both"`: the residual does not vanish at the
truth, so the duals are held back more."""

POLISH = dataclasses.replace(
    STANDARD,
    first_layer=True,
    num_steps=600,
    learning_rate=4e-3,
    dual_learning_rate=4e-3,
    start_sharpness=200.0,
)
"""From images that are nearly right, with `points="three"`: small steps, all equations,
and no smoothing to forget the images by."""

REPLAYED = dataclasses.replace(POLISH, ridge=1e-3)
"""With `features` of a replayed training, whose residual at the truth is small."""

PAPER = Settings(
    num_steps=80_000,
    decay="constant",
    anneal="paper",
    max_sharpness=200.0,
    duals="adam",
    form="parameter",
    project=False,
    first_layer=True,
)
"""The published attack; to be used with `points="final"`."""


def parse_points(points: str | Sequence[float]) -> tuple[float, ...]:
    """Returns s of every point: of a name, of numbers between commas, or of numbers.

    Args:
      points: of `POINTS`, or numbers in [0, 1].

    Raises:
      ValueError: an unknown name, no point, or one outside [0, 1].
    """
    if isinstance(points, str):
        if points in POINTS:
            return POINTS[points]
        try:
            points = tuple(float(part) for part in points.split(","))
        except ValueError as error:
            raise ValueError(
                f"points={points!r} is unknown: use {', '.join(POINTS)} or numbers in "
                "[0, 1] between commas."
            ) from error
    if not len(points):
        raise ValueError("points=() is empty: give at least one s in [0, 1].")
    for s in points:
        _checks.in_range(0, 1, points=s)
    return tuple(float(s) for s in points)
