"""For `_defence` until it trains a victim itself; then this file goes."""

import dataclasses
from typing import Any, Literal

import jax

from experiments import _network, _progress
from experiments._workdir import Workdir
from ntk_privacy import data
from ntk_privacy.evaluation import trained_network
from ntk_privacy.resume import Timer
from ntk_privacy.training.victim import Victim


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A network to train and attack, as config.json of `checkpoints/attack` has it."""

    dataset: str
    image_size: int | None
    task: str | None
    num_images: int
    width: int
    depth: int
    parametrization: str = "standard"
    dynamics: Literal["linearized", "standard"]
    schedule: str = "flow"
    stop_loss: float
    early_stop_loss: float | None = None
    max_train_steps: int
    method: str = "auto"
    auxiliary: str = "none"
    preset: str = "fast"
    points: str | None = None
    known_num_images: int | None = None
    num_candidates: int | None = None
    num_steps: int | None
    learning_rate: float | None = None
    replays: int = 2
    sweep: str | None = None
    seed: int
    precision: Literal["float32", "float64"]
    data_dir: str | None
    download: bool
    fingerprint: str | None
    workdir: str = "runs/reconstruct"
    checkpoint_seconds: float
    progress: bool


def make(
    config: Config,
    workdir: Workdir,
    dataset: data.Dataset,
    key_init: jax.Array,
    timer: Timer,
) -> Victim:
    """Trains on the images; a finished training is read back."""
    names = [entry.name for entry in dataclasses.fields(_network.Regression)]
    network = _network.Regression(**{name: getattr(config, name) for name in names})
    folder = workdir.checkpoint_folder
    stage = _progress.stage(config, folder, timer, description="train")
    return network.train(dataset, key_init, stage)


def figures(config: Config, dataset: data.Dataset, trained: Victim) -> dict[str, Any]:
    """Returns kernel distance and test accuracy, as results.json has them."""
    del config
    return trained_network.figures(trained, dataset)
