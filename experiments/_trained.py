"""Flags of a network that is trained to fit its images, or shares one gradient."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments._in_practice import InPractice
from ntk_privacy import _checks, data
from ntk_privacy.method import field
from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction.evidence import Evidence
from ntk_privacy.resume import Stage
from ntk_privacy.training import adapter_victim, recipe, victim
from ntk_privacy.training.victim import Victim


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """The network."""

    width: int = field(4096, "Units of every hidden layer.")
    max_train_steps: int = field(1_000_000, "Limit of iterative training.")
    precision: Literal["float32", "float64"] = field("float32", "Of everything.")

    def __post_init__(self):
        _checks.at_least(1, width=self.width, max_train_steps=self.max_train_steps)

    def common(self, key: jax.Array, stage: Stage) -> dict[str, Any]:
        """Returns the arguments that every training takes."""
        return {
            "key": key,
            "width": self.width,
            "max_steps": self.max_train_steps,
            "dtype": jnp.dtype(self.precision),
            "stage": stage,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained(InPractice, Network):
    """The network."""

    depth: int = field(2, "Hidden layers.")
    parametrization: Literal["standard", "ntk"] = field(
        "standard", "Of the network: Flax's default, or the NTK parametrisation."
    )
    dynamics: Literal["linearized", "standard"] = field(
        "linearized",
        "Training of the first-order Taylor model, or of the network; a gradient is of "
        "neither.",
    )
    schedule: Literal["flow", "heavy_ball", "paper"] = field(
        "flow",
        "Gradient flow (standard: heavy ball close to it), a heavy ball in a fifteenth "
        "of its steps, or the published step size.",
    )
    stop_loss: float = field(
        1e-10,
        "Mean loss at which training ends, that of (f - y)^2 / 2 unless named.",
    )
    early_stop_loss: float | None = field(
        None, "Attack the parameters at this larger loss instead."
    )

    def __post_init__(self):
        super().__post_init__()
        self.check(self.dynamics)
        _checks.at_least(1, depth=self.depth)
        _checks.positive(stop_loss=self.stop_loss)
        if self.early_stop_loss is None:
            return
        _checks.positive(early_stop_loss=self.early_stop_loss)
        if self.early_stop_loss <= self.stop_loss:
            raise ValueError(
                f"early_stop_loss={self.early_stop_loss} must be above "
                f"stop_loss={self.stop_loss}: it ends training earlier."
            )

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        linearized, out = "--dynamics=linearized", self.unread()
        if self.evidence in ("gradient", "adapter"):
            return out
        if self.dynamics == "linearized":
            out["replays"] = linearized
            if self.schedule == "flow":
                out["max_train_steps"] = f"the closed form of {linearized}"
        if self.early_stop_loss is not None:
            out["stop_loss"] = "--early_stop_loss"
        return out

    def before(self, dataset: data.Dataset) -> Evidence:
        """Returns what is known of the network before it is trained."""
        widths, outputs = (self.width,) * self.depth, dataset.y_train.shape[1]
        recipe.takes(self.loss, outputs)
        is_gradient = self.evidence == "gradient"
        return Evidence(
            network=MLP(widths, outputs, parametrization=self.parametrization),
            params_t={},
            image_shape=dataset.x_train.shape[1:],
            dynamics="linearized" if is_gradient else self.dynamics,
            objective=self.loss,
            is_gradient=is_gradient,
            is_adapter=self.evidence == "adapter",
        )

    def train(self, dataset: data.Dataset, key: jax.Array, stage: Stage) -> Victim:
        """Trains on the images; a finished training is read back."""
        given = self.common(key, stage)
        given |= {"depth": self.depth, "parametrization": self.parametrization}
        images = (dataset.x_train, dataset.y_train)
        if self.evidence == "gradient":
            given.pop("max_steps")
            return victim.one_gradient(*images, loss=self.loss, **given)
        if self.evidence == "adapter":
            given.pop("max_steps")
            asked = {"learning_rate": self.train_learning_rate}
            asked |= {"num_steps": self.num_epochs, "rank": self.adapter_rank}
            given |= {name: value for name, value in asked.items() if value is not None}
            return adapter_victim.train(*images, loss=self.loss, **given)
        return victim.train(
            *images,
            dynamics=self.dynamics,
            schedule=self.schedule,
            recipe=self.recipe(),
            stop_loss=self.early_stop_loss or self.stop_loss,
            **given,
        )
