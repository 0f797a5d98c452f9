"""The network under attack: flags to images and training, resumable."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments import _progress
from experiments._flags import UsageError
from experiments._workdir import Workdir
from ntk_privacy import data
from ntk_privacy.evaluation import trained_network
from ntk_privacy.resume import Timer
from ntk_privacy.training import margin_victim, victim
from ntk_privacy.training.victim import Victim


def load(config: Any) -> tuple[data.Dataset, jax.Array]:
    """Returns the images that the config asks for, and the key of the parameters.

    Raises:
      UsageError: a flag does not fit the image set.
      OSError, ValueError: see `data.load`.
    """
    key_data, key_init = jax.random.split(
        jax.random.fold_in(jax.random.key(0), config.seed)
    )
    try:
        dataset = data.load(
            config.dataset,
            task=config.task,
            num_train=config.num_images,
            key=key_data,
            data_dir=config.data_dir,
            download=config.download,
        )
    except data.ArgumentError as error:
        raise UsageError(str(error).replace("num_train", "num_images")) from error
    return dataset, key_init


def make(
    config: Any,
    workdir: Workdir,
    dataset: data.Dataset,
    key_init: jax.Array,
    timer: Timer,
) -> Victim:
    """Trains on the images; a finished training is read back.

    Args:
      config: of `experiments.reconstruct`.
      workdir: keeps checkpoints of the training.
      dataset: from `load`.
      key_init: from `load`.
      timer: of the training.
    """
    stage = _progress.stage(
        config, workdir.checkpoint_folder, timer, description="train"
    )
    given = {
        "key": key_init,
        "width": config.width,
        "max_steps": config.max_train_steps,
        "dtype": jnp.dtype(config.precision),
        "stage": stage,
    }
    if config.method == "max_margin":
        # The published run goes on for all its epochs.
        stop = 0.0 if config.preset == "paper" else margin_victim.STOP_LOSS
        return margin_victim.train(
            dataset.x_train,
            dataset.y_train,
            stop_loss=config.early_stop_loss or stop,
            **given,
        )
    return victim.train(
        dataset.x_train,
        dataset.y_train,
        depth=config.depth,
        parametrization=config.parametrization,
        dynamics=config.dynamics,
        schedule=config.schedule,
        stop_loss=config.early_stop_loss or config.stop_loss,
        **given,
    )


def figures(config: Any, dataset: data.Dataset, trained: Victim) -> dict[str, float]:
    """Returns kernel distance and test accuracy, as results.json has them."""
    x_test, y_test = dataset.x_test[:1000], dataset.y_test[:1000]
    if config.method == "max_margin":
        centre = dataset.x_train.mean(axis=0)
        # The initial kernel of a vanishing first layer is no reference.
        moved = float("nan")
        x_test = x_test - centre
    else:
        x = jnp.asarray(dataset.x_train, jnp.dtype(config.precision))
        moved = trained_network.kernel_moved(trained, x)
    accuracy = trained_network.test_accuracy(trained, x_test, y_test)
    return {"test_accuracy": accuracy, "kernel_distance": moved}
