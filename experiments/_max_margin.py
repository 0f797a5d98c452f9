"""`experiments.reconstruct --method=max_margin`: its own victim, search and ranking.

The victim is trained on the logistic loss from a tiny first layer, and the attacker has
its final weights alone (Haim et al., NeurIPS 2022, arXiv:2206.07758).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _progress
from experiments._attacks import Attacked, num_candidates, search
from experiments._victim import Victim
from experiments._workdir import Workdir
from ntk_privacy import data
from ntk_privacy.evaluation import max_margin_ranking
from ntk_privacy.reconstruction import (
    max_margin,
    max_margin_settings,
    max_margin_verdict,
)
from ntk_privacy.reports import plots
from ntk_privacy.resume import Timer
from ntk_privacy.training import logistic

# Of the fast preset: 50,000 epochs were no better at N = 20.
_EPOCHS, _STOP_LOSS = 10_000, 1e-3


def settings(config: Any) -> max_margin_settings.Settings:
    """Returns the released settings of the image set, with the flags' overrides."""
    name = "cifar10_b9dfyspx" if config.dataset == "cifar10" else "mnist_rbijxft7"
    chosen = max_margin_settings.RELEASED[name]
    if config.preset == "fast":
        chosen = dataclasses.replace(chosen, num_epochs=_EPOCHS)
    if config.num_steps is not None:
        chosen = dataclasses.replace(chosen, num_epochs=config.num_steps)
    if config.learning_rate is not None:
        chosen = dataclasses.replace(chosen, image_learning_rate=config.learning_rate)
    return chosen


def make(
    config: Any,
    workdir: Workdir,
    dataset: data.Dataset,
    key_init: jax.Array,
    timer: Timer,
) -> Victim:
    """Trains the victim, from its last checkpoint if any."""
    dtype = jnp.dtype(config.precision)
    x, _ = logistic.preprocess(dataset.x_train)
    model = logistic.network(config.width)
    params_0 = logistic.init_params(model, key_init, x.shape[1:], dtype=dtype)
    state = logistic.init(model, params_0, x, dataset.y_train)

    def go(state, done, callback):
        del done  # the state knows
        return logistic.train(
            model,
            params_0,
            x,
            dataset.y_train,
            max_epochs=config.max_train_steps,
            # The published run goes on for all its epochs.
            stop_loss=config.early_stop_loss
            or (0.0 if config.preset == "paper" else _STOP_LOSS),
            chunk=500,
            state=state,
            callback=callback,
        )

    stage = _progress.stage(config, workdir.checkpoint_folder, timer)
    trained = stage("train", state, go, config.max_train_steps).result
    centre = dataset.x_train.mean(axis=0)
    test = dataset.x_test[:1000] - centre
    outputs = np.asarray(model.apply_fn(trained.params, jnp.asarray(test, dtype)))
    right = np.sign(outputs) == np.sign(dataset.y_test[:1000])
    return Victim(
        dataset=dataset,
        model=model,
        params_0=params_0,
        params_t=trained.params,
        duals=None,
        loss=trained.loss,
        steps=trained.epochs,
        # The initial kernel of a vanishing first layer is no reference.
        kernel_distance=float("nan"),
        test_accuracy=float(np.mean(right)),
    )


def run(config: Any, workdir: Workdir, victim: Victim, timer: Timer) -> Attacked:
    """Searches from the final weights, ranks by SSIM, draws `ranked.png`."""
    dataset = victim.dataset
    x, centre = logistic.preprocess(dataset.x_train)
    attack = max_margin.prepare(
        victim.model,
        victim.params_t,
        key=jax.random.fold_in(jax.random.key(1), config.seed),
        image_shape=x.shape[1:],
        num_images=num_candidates(config),
        settings=settings(config),
    )
    result, losses = search(
        config,
        workdir,
        "attack",
        attack,
        lambda ready, first, callback: max_margin.run(
            ready, first_epoch=first, callback=callback
        ),
        attack.num_epochs,
        timer,
    )
    # In an earlier start of this run, perhaps.
    lost = not bool(np.isfinite(losses).all())
    mean_image = centre + dataset.mean
    found = np.asarray(result.images)
    ranking = max_margin_ranking.rank(x, found, mean=mean_image)
    # Unseen images under the same measure: what no leak at all would score.
    count = len(x)
    unseen = max_margin_ranking.rank(
        dataset.x_test[:count] - centre, found, mean=mean_image
    )
    order = ranking.train_index
    plots.gallery(
        dataset.x_train[order],
        ranking.images - dataset.mean,
        workdir.path("ranked.png"),
        mean=dataset.mean,
        distances=-ranking.ssim,
        sorted_by="SSIM",
        psnr=_psnr(dataset.x_train[order] + dataset.mean, ranking.images),
        title="Training images above their reconstructions",
    )
    return Attacked(
        images=found + centre,
        duals=np.asarray(result.lambdas * result.labels)[None, :, None],
        losses=losses,
        extra={
            "nonfinite": lost,
            "contributions": result.contributions,
            "ranking": {
                "ssim": ranking.ssim,
                "mean_ssim_best_10": ranking.mean_ssim_best,
                "mean_ssim_best_10_of_unseen_images": unseen.mean_ssim_best,
                "mean_dssim_best_10": ranking.mean_dssim_best,
            },
        },
        arrays={"ranked": ranking.images, "ranked_train_index": order},
        verdict=max_margin_verdict.judge(None) if lost else result.verdict,
    )


def _psnr(images: np.ndarray, found: np.ndarray) -> np.ndarray:
    return -10 * np.log10(np.mean((images - found) ** 2, axis=(1, 2, 3)))
