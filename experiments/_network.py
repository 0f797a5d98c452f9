"""Flags of the network under attack: each group of them trains one."""

import dataclasses
from typing import Any

import jax

from experiments._trained import Network, Trained
from ntk_privacy import _checks, data
from ntk_privacy.method import Method, field
from ntk_privacy.reconstruction.evidence import Evidence
from ntk_privacy.resume import Stage
from ntk_privacy.training import logistic, margin_victim
from ntk_privacy.training.victim import Victim

__all__ = ["Logistic", "Network", "Trained", "of"]


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

    def before(self, dataset: data.Dataset) -> Evidence:
        """Returns what is known of the network before it is trained."""
        outputs = dataset.y_train.shape[1]
        network = logistic.network(self.width)
        return Evidence(
            network=dataclasses.replace(network, num_outputs=outputs),
            params_t={},
            image_shape=dataset.x_train.shape[1:],
        )

    def train(self, dataset: data.Dataset, key: jax.Array, stage: Stage) -> Victim:
        """Trains on the images; a finished training is read back."""
        return margin_victim.train(
            dataset.x_train,
            dataset.y_train,
            stop_loss=self.early_stop_loss,
            **self.common(key, stage),
        )


def of(method: Method[Any]) -> type[Trained] | type[Logistic]:
    """Returns the group of the network that a method is tried on."""
    return Logistic if "logistic" in method.wants else Trained
