"""What an attacker sees after training on a distilled set.

Source: Loo et al., ICLR 2024 (arXiv:2302.01428): networks are trained on the set and
attacked for twice as many images; those found are compared with the original ones.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation.networks import AttackedConfig as Config
from ntk_privacy.distillation.networks import attacked_network
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.evaluation import reconstruction_curve, trained_network
from ntk_privacy.evaluation.judged import Judged, has_classes
from ntk_privacy.evaluation.reconstruction_curve import RECOVERED_PSNR
from ntk_privacy.method import Method
from ntk_privacy.reconstruction import METHODS, Reconstruction, evidence
from ntk_privacy.resume import Stage, straight

__all__ = ["ATTACKS", "JUDGE", "Config", "found_of"]

ATTACKS = ("kkt", "auto")
"""The published search; and decoding exactly, then searching for the rest."""


def found_of(
    originals: Float[np.ndarray, "n h w d"],
    distilled: Float[Array | np.ndarray, "m h w d"],
    reconstructions: Float[np.ndarray, "k h w d"],
    *,
    mean: Float[np.ndarray, " d"],
) -> dict[str, Any]:
    """Returns how many original and distilled images an attacker has found.

    Args:
      originals: images that the set was made of, less the mean.
      distilled: what the network was trained on.
      reconstructions: of the attack.
      mean: per channel, what was subtracted.

    Returns:
      num_recovered, recovered, best_psnr, psnr and squared_distances of the originals;
      num_distilled_recovered and distilled_squared_distances of the set itself: did the
      attack work at all?

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.evaluation import defence
      >>> x = np.linspace(0, 1, 4 * 64, dtype=np.float32).reshape(4, 8, 8, 1)
      >>> told = defence.found_of(x[:2], x[2:], x[2:], mean=np.zeros(1, np.float32))
      >>> told["num_recovered"], told["num_distilled_recovered"]
      (0, 2)
    """
    original = reconstruction_curve.evaluate(originals, reconstructions, mean=mean)
    own = reconstruction_curve.match(distilled, reconstructions).squared_distances
    limit = reconstruction_curve.squared_distance_at(
        RECOVERED_PSNR, originals.shape[1:]
    )
    return {
        "num_recovered": original.num_recovered,
        "recovered": original.train_index[original.psnr >= RECOVERED_PSNR],
        # Of nothing found there is none.
        "best_psnr": float(original.psnr.max(initial=-np.inf)),
        "squared_distances": original.squared_distances,
        "psnr": original.psnr,
        "num_distilled_recovered": int(np.sum(own <= limit)),
        "distilled_squared_distances": own,
    }


def _told(found: Reconstruction) -> dict[str, Any]:
    """Returns what an attack says of itself."""
    told: dict[str, Any] = {}
    if found.contributions is not None:
        told["nonfinite"] = found.nonfinite
    if found.message:
        told["num_certified"] = int(np.sum(found.certified))
        told["message"] = found.message
    return told | {"verdict": found.verdict}


def _run(
    images: ImageSet,
    distilled: Distilled,
    config: Config,
    *,
    key: jax.Array,
    stage: Stage = straight,
    attack_key: jax.Array | None = None,
) -> Judged:
    if has_classes(distilled):
        raise ValueError(
            "labels are classes: give a set with targets to regress on, which an "
            "attack takes."
        )
    dataset, dtype = images.regression(config.task), jnp.dtype(config.precision)
    labels = np.asarray(distilled.labels)
    attacked = attacked_network(
        distilled.images, distilled.labels, config, key=key, stage=stage
    )
    known = evidence.of(attacked, bounds=dataset.bounds, labels=labels)
    figures, made = {}, {}
    for name in ATTACKS:
        sizes = {"num_candidates": 2 * len(labels), "num_steps": config.attack_steps}
        found = METHODS[name].run(
            known,
            METHODS[name].configured(**sizes),
            key=jax.random.fold_in(key, 1) if attack_key is None else attack_key,
            stage=stage,
        )
        made[name] = np.asarray(found.images)
        figures[name] = found_of(
            dataset.x_train, distilled.images, made[name], mean=dataset.mean
        ) | _told(found)
    moved = trained_network.kernel_moved(attacked, jnp.asarray(distilled.images, dtype))
    figures |= {"train_loss": attacked.loss, "kernel_distance": moved}
    return Judged(figures, made)


JUDGE = Method(
    name="defence",
    about="attacks a network trained on the set and compares what it finds with the "
    "original images (Loo et al., ICLR 2024).",
    config=Config,
    presets={"paper": Config},
    run=_run,
)
