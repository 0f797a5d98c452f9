"""Networks to attack: what they are, how they are trained, what is known before."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ntk_privacy import _checks
from ntk_privacy.data import Dataset
from ntk_privacy.method import Method, field
from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction import known_trunk
from ntk_privacy.reconstruction.evidence import Evidence
from ntk_privacy.reconstruction.through_trunk import EmbedFn
from ntk_privacy.resume import Stage, straight
from ntk_privacy.training import adapter_victim, logistic, margin_victim, victim
from ntk_privacy.training import recipe as recipes
from ntk_privacy.training.recipe import Recipe
from ntk_privacy.training.victim import Victim

__all__ = ["InPractice", "Logistic", "Network", "Trained", "network"]

_SHARED = (
    "What is attacked: weights after training, with those before it or, of "
    "final_weights, without, so that their seed is guessed; or one gradient of the "
    "loss at those before it; or an adapter of the first layer (LoRA), trained by "
    "gradient descent while all else but its bias is frozen; or a head trained on "
    "what a known trunk makes of the images."
)

# Evidence that no schedule makes, and the flags that it reads all the same.
_ALONE = {
    "gradient": (),
    "adapter": ("adapter_rank", "train_learning_rate", "num_epochs"),
}
_OF_AUTO = ("settings", "points", "num_candidates", "num_steps", "learning_rate")
_FIELDS = {
    "batch_size": "batch_size",
    "optimizer": "optimizer",
    "train_learning_rate": "learning_rate",
    "num_epochs": "num_epochs",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """The network."""

    width: int = field(4096, "Units of every hidden layer.")
    max_train_steps: int = field(1_000_000, "Limit of iterative training.")
    precision: Literal["float32", "float64"] = field("float32", "Of everything.")

    def __post_init__(self):
        _checks.at_least(1, width=self.width, max_train_steps=self.max_train_steps)

    @property
    def num_seeds(self) -> int | None:
        """Seeds to guess the weights before training from; None where they are told."""
        return None

    def trunk(self, dataset: Dataset, method: str) -> EmbedFn | None:
        """Returns what stands below the network and is known; None if it is whole."""
        del dataset, method
        return None

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
class InPractice:
    """The network: how it is trained in practice, and what is attacked."""

    evidence: Literal["weights", "final_weights", "gradient", "adapter", "head"] = (
        field("weights", _SHARED)
    )
    embed_fn: str | None = field(
        None,
        "module:function that returns the trunk of --evidence=head, images to "
        "embeddings; none is a ConvNet of fixed random weights.",
    )
    adapter_rank: int = field(16, "r, of --evidence=adapter.")
    guess_seeds: int = field(
        100_000, "Seeds, from 0 on, that --evidence=final_weights tries."
    )
    loss: Literal["mse", "logistic", "cross_entropy"] = field(
        "mse",
        "Of the training: squares; logistic of a binary task; cross-entropy of "
        "all_classes.",
    )
    batch_size: int | None = field(
        None, "Training images that a step sees; none is all."
    )
    optimizer: Literal["gd", "sgd", "momentum", "adam"] | None = field(
        None,
        "Of the training; none follows --schedule, or is momentum (0.9) where another "
        "flag asks for another training.",
    )
    train_learning_rate: float | None = field(
        None, "Of that optimizer; none is 0.01, of adam 0.001."
    )
    weight_decay: float = field(0.0, "L2 decay of all weights under that optimizer.")
    num_epochs: int | None = field(
        None,
        "Passes over the images, unless the loss ends it before; none is 500 of that "
        "optimizer.",
        former=("epochs",),
    )

    def recipe(self) -> Recipe | None:
        """Returns how the network is trained; None where a schedule says it."""
        if not self._asked():
            return None
        given = {name: getattr(self, flag) for flag, name in _FIELDS.items()}
        given = {name: value for name, value in given.items() if value is not None}
        return Recipe(loss=self.loss, weight_decay=self.weight_decay, **given)

    def _asked(self) -> dict[str, Any]:
        """Returns the flags that ask for another training than a schedule's."""
        names = ("loss", "weight_decay", *_FIELDS)
        defaults = {e.name: e.default for e in dataclasses.fields(InPractice)}
        given = {name: getattr(self, name) for name in names}
        return {k: v for k, v in given.items() if v != defaults[k]}

    def check(self, dynamics: str) -> None:
        """Raises ValueError where a training is none of these dynamics."""
        kinds = ("weights", "final_weights", "gradient", "adapter", "head")
        _checks.one_of(kinds, evidence=self.evidence)
        _checks.at_least(
            1, guess_seeds=self.guess_seeds, adapter_rank=self.adapter_rank
        )
        asked = self._asked()
        self.recipe()
        if self.evidence not in _ALONE and asked and dynamics == "linearized":
            name, value = next(iter(asked.items()))
            raise ValueError(
                f"{name}={value} with dynamics=linearized: the first-order model is "
                "solved in closed form; give dynamics=standard to train the network "
                "itself."
            )

    def unread(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        if self.evidence in _ALONE:
            names = {"schedule", "stop_loss", "early_stop_loss", "max_train_steps"}
            names |= {"replays", "weight_decay", "guess_seeds", "adapter_rank"}
            names |= {"embed_fn"}
            if self.evidence == "adapter":
                names |= {*_OF_AUTO, "auxiliary"}
            names = (names | {*_FIELDS}) - {*_ALONE[self.evidence]}
            return dict.fromkeys(sorted(names), f"--evidence={self.evidence}")
        out = {"adapter_rank": f"--evidence={self.evidence}"}
        if self.evidence != "final_weights":
            out["guess_seeds"] = f"--evidence={self.evidence}"
        if self.evidence != "head":
            out["embed_fn"] = f"--evidence={self.evidence}"
        else:
            # A head is read by closed units, whichever of both methods is asked.
            names = (*_OF_AUTO, "replays", "auxiliary")
            out |= dict.fromkeys(names, "--evidence=head")
        for name, value in self._asked().items():
            out["schedule"] = f"--{name}={value}"
        if self.loss != "mse":
            out["replays"] = f"--loss={self.loss}"
        return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained(InPractice, Network):
    """The network.

    It is trained to fit its images, or shares one gradient; `InPractice` has what is
    attacked and how it is trained, where no schedule says it, and `training.victim`
    the meaning of the rest.

    Raises:
      ValueError: values are out of range, or do not go together.

    Example:
      >>> from ntk_privacy.data import choice
      >>> from ntk_privacy.reconstruction import victims
      >>> digits, key = choice.TaskImages(num_train=4).load(seed=0)
      >>> victims.Trained(width=64).train(digits, key).loss < 1e-9
      True
    """

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

    @property
    def num_seeds(self) -> int | None:
        """Seeds to guess the weights before training from; None where they are told."""
        return self.guess_seeds if self.evidence == "final_weights" else None

    def trunk(self, dataset: Dataset, method: str) -> EmbedFn | None:
        """Returns what stands below a head and is known; None of other evidence.

        Args:
          dataset: the images.
          method: that attacks.

        Raises:
          ValueError: there is no such trunk, or the method reads no heads.
        """
        if self.evidence != "head":
            return None
        # The others search within an image's bounds, or by an image's pixels.
        _checks.one_of(("auto", "closed_units"), method=method)
        _, *sizes = dataset.x_train.shape
        return known_trunk.named(self.embed_fn, (sizes[0], sizes[1], sizes[2]))

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        linearized, out = "--dynamics=linearized", self.unread()
        if self.evidence in _ALONE:
            return out
        if self.dynamics == "linearized":
            out["replays"] = linearized
            if self.schedule == "flow":
                out["max_train_steps"] = f"the closed form of {linearized}"
        if self.early_stop_loss is not None:
            out["stop_loss"] = "--early_stop_loss"
        return out

    def before(self, dataset: Dataset) -> Evidence:
        """Returns what is known of the network before it is trained."""
        widths, outputs = (self.width,) * self.depth, dataset.y_train.shape[1]
        recipes.takes(self.loss, outputs)
        is_gradient = self.evidence == "gradient"
        return Evidence(
            network=MLP(widths, outputs, parametrization=self.parametrization),
            params_t={},
            image_shape=dataset.x_train.shape[1:],
            dynamics="linearized" if is_gradient else self.dynamics,
            objective=self.loss,
            recipe=self._told_recipe(len(dataset.x_train)),
            is_gradient=is_gradient,
            is_adapter=self.evidence == "adapter",
        )

    def _told_recipe(self, count: int) -> Recipe | None:
        """Returns how it is trained, batches of all images as what they are."""
        recipe = None if self.evidence in _ALONE else self.recipe()
        if recipe is None or (recipe.batch_size or 0) < count:
            return recipe
        return dataclasses.replace(recipe, batch_size=None)

    def train(
        self, dataset: Dataset, key: jax.Array, stage: Stage = straight
    ) -> Victim:
        """Trains on the images; a finished training is read back."""
        given = self.common(key, stage)
        given |= {"depth": self.depth, "parametrization": self.parametrization}
        trunk = self.trunk(dataset, "closed_units")
        if trunk is not None:
            dataset = known_trunk.embedded(dataset, trunk)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logistic(Network):
    """The network, of max-margin training."""

    early_stop_loss: float = field(
        margin_victim.STOP_LOSS,
        "Mean logistic loss at which training ends; 0 is after all steps.",
    )

    def __post_init__(self):
        super().__post_init__()
        _checks.at_least(0, early_stop_loss=self.early_stop_loss)

    def before(self, dataset: Dataset) -> Evidence:
        """Returns what is known of the network before it is trained."""
        outputs = dataset.y_train.shape[1]
        network = logistic.network(self.width)
        return Evidence(
            network=dataclasses.replace(network, num_outputs=outputs),
            params_t={},
            image_shape=dataset.x_train.shape[1:],
        )

    def train(
        self, dataset: Dataset, key: jax.Array, stage: Stage = straight
    ) -> Victim:
        """Trains on the images; a finished training is read back."""
        return margin_victim.train(
            dataset.x_train,
            dataset.y_train,
            stop_loss=self.early_stop_loss,
            **self.common(key, stage),
        )


def network(method: Method[Any]) -> type[Trained] | type[Logistic]:
    """Returns the group of the network that a method is tried on.

    Args:
      method: of `reconstruction.METHODS`.
    """
    return Logistic if "logistic" in method.wants else Trained
