"""One set judged by attacks of three kinds, as people compare ways to distil.

Evasion: test images are changed until a network trained on the set misreads them.
Reconstruction: the set is published; a training image is recovered if one of the set
comes as near to it as a reconstruction must. Poisoning, where a second set is given
that was distilled from poisoned images: networks trained on it are asked about the
target.
"""

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from ntk_privacy import _checks
from ntk_privacy._types import Params
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import dc
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.evaluation import (
    copies,
    named_attacks,
    rates,
    robust_accuracy,
    students,
)
from ntk_privacy.evaluation.evasion_budget import Budget
from ntk_privacy.evaluation.judged import Judged, pixels
from ntk_privacy.evaluation.reconstruction_curve import RECOVERED_PSNR
from ntk_privacy.evaluation.robust_accuracy import RobustnessWarning
from ntk_privacy.evasion import threat_model
from ntk_privacy.method import Method, field
from ntk_privacy.models import ConvNet, saved
from ntk_privacy.resume import Stage, straight

__all__ = ["ATTACKS", "JUDGE", "Config", "evade", "names", "recovered", "row"]

ATTACKS = ("pgd", "autoattack")
"""Of evasion, by their names in `evasion.METHODS`."""

_BATCH = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(students.Config, Budget):
    """Networks trained on the set, and their attackers.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, evaluation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images, key = data.ImageSet.from_arrays(grey, [0, 1] * 4), jax.random.key(0)
      >>> from ntk_privacy.distillation import real
      >>> some = real.of_classes(images, images_per_class=1, key=key)
      >>> judge = evaluation.JUDGES["attacks"]
      >>> config = judge.configured(
      ...     width=1, num_networks=1, num_epochs=1, attack_steps=1, num_queries=1
      ... )
      >>> found = judge.run(images, some, config, key=key)
      >>> found.figures["recovered"]
      1.0
    """

    eps: str | float = field(
        "1/255",
        "Bound of the evasion, l_inf; number or fraction.",
        means=threat_model.bound,
    )
    num_attacked: int = field(100, "Test images to attack, at most.")
    penalty_weight: float | None = field(
        None, "Of the curvature in the loss of networks; none is no such penalty."
    )
    penalty_step: float = field(3.0, "That tells the curvature, normalised units.")

    def __post_init__(self):
        super().__post_init__()
        Budget.__post_init__(self)
        _checks.at_least(1, num_attacked=self.num_attacked)
        _checks.positive(penalty_step=self.penalty_step)
        if self.penalty_weight is not None:
            _checks.positive(penalty_weight=self.penalty_weight)


def evade(
    images: ImageSet, model: ConvNet, params: Params, config: Config, *, key: Array
) -> dict[str, Any]:
    """Returns the accuracy of a network under attack; see `robust_accuracy`.

    Args:
      images: whose test images are attacked, the same ones for all networks.
      model: the architecture.
      params: of one network.
      config: of the attacks.
      key: typed key: which images, and the attacks.
    """
    # The last word alone: of key(seed) it is the seed.
    seed = int(np.asarray(jax.random.key_data(key)).ravel()[-1])
    draw = np.random.default_rng(seed).permutation(len(images.x_test))
    rows = np.sort(draw[: config.num_attacked])
    with warnings.catch_warnings():
        # They are in the figures.
        warnings.simplefilter("ignore", RobustnessWarning)
        attacked = robust_accuracy.robust_accuracy(
            saved.logits_fn(model, params, **images.normal._asdict()),
            images.x_test[rows],
            np.asarray(images.class_test[rows], np.int32),
            key=key,
            attacks=ATTACKS,
            threat_model=config.threat_model,
            batch_size=_BATCH,
            num_steps=config.attack_steps,
            num_queries=config.num_queries,
        )
    return {
        "accuracy_attacked": attacked.clean,
        **{name: attacked.accuracy[name] for name in ATTACKS},
        "warnings": list(attacked.warnings),
    }


def recovered(images: ImageSet, distilled: Distilled) -> dict[str, Any]:
    """Returns the share of a set's images that are as good as a training image.

    Entries that are noise for good are left out: they alone would hide a copy.

    Args:
      images: that were distilled.
      distilled: the set.
    """
    real, made, mean = pixels(images, distilled)
    near = copies.nearest(real, made, mean=mean, noise=distilled.noise)
    psnr = near.psnr if near.psnr_outside_noise is None else near.psnr_outside_noise
    return {"recovered": float(np.mean(psnr >= RECOVERED_PSNR)), "psnr": psnr.tolist()}


def _run(
    images: ImageSet,
    distilled: Distilled,
    config: Config,
    *,
    key: jax.Array,
    stage: Stage = straight,
    poisoned: Distilled | None = None,
    target: jax.Array | None = None,
) -> Judged:
    """Judges a set; `poisoned` is one of poisoned images, `target` its test image."""
    if (poisoned is None) != (target is None):
        raise ValueError("give poisoned and target both, or neither.")
    regularize = None
    if config.penalty_weight is not None:
        regularize = dc.regularize(config.penalty_weight, config.penalty_step)
    model = ConvNet(images.num_classes, config.width)
    sets, asked = {"clean": distilled}, None
    if poisoned is not None and target is not None:
        sets["poisoned"] = poisoned
        asked = jax.numpy.asarray(images.normalised(target[None]))
    found = {
        told: students.train(
            images,
            one,
            config,
            key=jax.random.fold_in(key, 1),
            stage=stage,
            model=model,
            targets=asked,
            regularize=regularize,
            name=f"students_{told}",
        )
        for told, one in sets.items()
    }
    figures: dict[str, Any] = {"accuracies": found["clean"].accuracy.tolist()}
    if poisoned is not None:
        figures |= {
            "accuracies_poisoned": found["poisoned"].accuracy.tolist(),
            "target_classes": found["poisoned"].target_classes[:, 0].tolist(),
            "target_classes_clean": found["clean"].target_classes[:, 0].tolist(),
        }
    first = jax.tree.map(lambda leaf: leaf[0], found["clean"].state.params)
    figures |= evade(images, model, first, config, key=key)
    return Judged(figures | recovered(images, distilled), found["clean"].state.params)


def row(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns means over seeds and networks, of a method.

    Args:
      cells: figures of the judge, of one seed each; of poisoning, with the class that
        the attacker wants as `adversarial_class`; and whatever is to be averaged of
        steps and seconds.
    """

    def every(name: str) -> np.ndarray:
        return np.array([value for cell in cells for value in cell[name]])

    def hits(name: str) -> list[bool]:
        return [
            found == cell["adversarial_class"] for cell in cells for found in cell[name]
        ]

    accuracy = rates.mean_and_deviation(every("accuracies"))
    averaged = ("accuracy_attacked", *ATTACKS, "recovered", "steps", "seconds")
    return {
        "accuracy": accuracy.mean,
        "accuracy_std": accuracy.deviation,
        "accuracy_poisoned": float(np.mean(every("accuracies_poisoned"))),
        "attack_success": float(np.mean(hits("target_classes"))),
        # The control: what networks trained without poison take the target for.
        "success_without_attack": float(np.mean(hits("target_classes_clean"))),
        "num_decisions": len(hits("target_classes")),
        "num_targets": len(cells),
        "best_psnr": max(float(value) for cell in cells for value in cell["psnr"]),
        **{name: float(np.mean([cell[name] for cell in cells])) for name in averaged},
    }


def names(config: Config) -> list[str]:
    """Returns what a table may call the attacks of evasion.

    Args:
      config: of the judge.
    """
    given = {"num_steps": config.attack_steps, "num_queries": config.num_queries}
    return [
        named_attacks.honest_name(name, shown=shown, **given)
        for name, shown in zip(ATTACKS, ("PGD", "AutoAttack"), strict=True)
    ]


JUDGE = Method(
    name="attacks",
    about="trains networks on the set and attacks them, the images that it is made of, "
    "and the set itself.",
    config=Config,
    presets={"cpu": functools.partial(Config, **students.SMALL), "paper": Config},
    run=_run,
)
