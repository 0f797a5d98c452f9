"""Flags of training as it is in practice: loss, batches, optimizer, decay, epochs."""

import dataclasses
from typing import Any, Literal

from ntk_privacy import _checks
from ntk_privacy.method import field
from ntk_privacy.training.recipe import Recipe

_FIELDS = {
    "batch_size": "batch_size",
    "optimizer": "optimizer",
    "train_learning_rate": "learning_rate",
    "num_epochs": "num_epochs",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InPractice:
    """The network."""

    evidence: Literal["weights", "final_weights", "gradient", "head"] = field(
        "weights",
        "What is attacked: weights after training, with those before it or, of "
        "final_weights, without, so that their seed is guessed; one gradient of the "
        "loss at those before it; or a head trained on what a known trunk makes of the "
        "images.",
    )
    embed_fn: str | None = field(
        None,
        "module:function that returns the trunk of --evidence=head, images to "
        "embeddings; none is a ConvNet of fixed random weights.",
    )
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
        kinds = ("weights", "final_weights", "gradient", "head")
        _checks.one_of(kinds, evidence=self.evidence)
        _checks.at_least(1, guess_seeds=self.guess_seeds)
        asked = self._asked()
        self.recipe()
        if self.evidence != "gradient" and asked and dynamics == "linearized":
            name, value = next(iter(asked.items()))
            raise ValueError(
                f"{name}={value} with dynamics=linearized: the first-order model is "
                "solved in closed form; give dynamics=standard to train the network "
                "itself."
            )

    def unread(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        if self.evidence == "gradient":
            names = ("schedule", "stop_loss", "early_stop_loss", "max_train_steps")
            names += ("replays", "weight_decay", "guess_seeds", "embed_fn", *_FIELDS)
            return dict.fromkeys(names, "--evidence=gradient")
        out = {}
        if self.evidence != "final_weights":
            out["guess_seeds"] = f"--evidence={self.evidence}"
        if self.evidence != "head":
            out["embed_fn"] = f"--evidence={self.evidence}"
        for name, value in self._asked().items():
            out["schedule"] = f"--{name}={value}"
        if self.loss != "mse":
            out["replays"] = f"--loss={self.loss}"
        return out
