"""AutoAttack: complementary attacks in turn, each on what the others left.

Source: Croce & Hein, ICML 2020 (arXiv:2003.01690), and the released code, whose checks
for models that only seem robust are warnings here.
"""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks
from ntk_privacy.evasion import apgd, fab, losses, pgd, settings, square
from ntk_privacy.evasion.task import (
    Found,
    LogitsFn,
    Task,
    evaluate,
    finish,
    prepare,
    takes_key,
)
from ntk_privacy.evasion.threat_model import Adversarial, ThreatModel, per_sample

__all__ = [
    "METHODS",
    "TARGETS",
    "VERSIONS",
    "attack",
    "left_out",
    "stages",
    "warn_of_the_model",
]

VERSIONS = ("standard", "plus", "rand", "torchattacks10")
TARGETS = 9
"""Wrong classes that attacks with targets aim at, where there are as many."""
_RESTARTS = 5
_DRAWS = 20
_STEPS, _QUERIES = 100, 5000
_SUSPECT_SHARE = 0.002
_NEARLY = 0.1
_SUM, _EXPERTS = 0.01, 20


def stages(
    version: str,
    num_classes: int,
    *,
    num_steps: int | None = None,
    num_queries: int = 5000,
) -> Mapping[str, Callable[..., Found]]:
    """Returns the attacks of a version in order, as `(task, *, key, norm) -> Found`.

    Args:
      version: "standard"; "plus", with restarts and untargeted attacks besides; "rand",
        for random models; "torchattacks10", with the 10 steps and the stretched
        schedule of squares that torchattacks has by default.
      num_classes: of the model. Three leave out the targeted ratio, two the other one
        as well. The released code leaves out FAB then, which needs only two.
      num_steps: of APGD and FAB; 100, or 10 for "torchattacks10", if None.
      num_queries: of Square.

    Raises:
      ValueError: there is no such version.
    """
    _checks.one_of(VERSIONS, version=version)
    if num_steps is None:
        num_steps = 10 if version == "torchattacks10" else _STEPS
    targets = min(TARGETS, num_classes - 1)
    many = _RESTARTS if version == "plus" else 1
    climb = functools.partial(apgd.run, num_steps=num_steps)
    near = functools.partial(fab.run, num_steps=num_steps, stop_early=True)
    every = {
        "apgd-ce": functools.partial(climb, loss="ce", num_restarts=many),
        "apgd-dlr": functools.partial(climb, loss="dlr", num_restarts=many),
        "apgd-t": functools.partial(climb, loss="targeted-dlr", num_targets=targets),
        "fab": functools.partial(near, num_targets=None, num_restarts=many),
        "fab-t": functools.partial(near, num_targets=targets),
        "square": functools.partial(
            square.run, num_queries=num_queries, rescale=version == "torchattacks10"
        ),
    }
    standard = ("apgd-ce", "apgd-t", "fab-t", "square")
    order = {
        "standard": standard,
        "torchattacks10": standard,
        "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
        "rand": ("apgd-ce", "apgd-dlr"),
    }[version]
    if version == "rand":
        every = {name: functools.partial(f, eot=_DRAWS) for name, f in every.items()}
    possible = {
        2: {"apgd-ce", "fab", "fab-t", "square"},
        3: set(every) - {"apgd-t"},
    }.get(num_classes, set(every))
    return {name: every[name] for name in order if name in possible}


@functools.partial(jax.jit, static_argnames="loss")
def _flat(task: Task, key: Array, *, loss: str) -> tuple[Array, Array]:
    """Returns how many gradients vanish, and how many others nearly do.

    Nearly: by the gradient of the margin alone, a move of every pixel through the whole
    box would change the margin by less than a tenth of it.
    """

    def ahead(logits, y, target):
        del target
        return losses.margin(logits, y)

    one = functools.partial(evaluate, task.model)
    at = (task.x, task.y, task.y, key)
    _, _, gradient = one(losses.LOSSES[loss], *at)
    zero = jnp.all(gradient == 0, axis=(1, 2, 3)) & task.active
    margin, _, slope = one(ahead, *at)
    width = task.limits.high - task.limits.low
    reach = jnp.sum(jnp.abs(slope.astype(margin.dtype)), axis=(1, 2, 3))
    short = reach * width.astype(margin.dtype) < _NEARLY * margin
    return jnp.sum(zero), jnp.sum(short & task.active & ~zero)


def _like_probabilities(logits: np.ndarray) -> bool:
    """Returns whether outputs are none below 0, and none above 1 or of one sum.

    The sum of a distribution is 1, of k experts' k, of percentages 100; sigmoids have
    none. Logits that were shifted may have one sum, but none of them is near 0.
    """
    if logits.min() < 0:
        return False
    sums = logits.sum(1)
    experts = np.round(sums[0])
    # Half precision adds up to no better.
    alike = np.all(np.abs(sums - experts) < _SUM * experts)
    percent = np.all(np.abs(sums - 100) < 1) and logits.min() < 1
    return bool(logits.max() <= 1 + _SUM or (alike and experts <= _EXPERTS) or percent)


def warn_of_the_model(
    logits_fn: LogitsFn, task: Task, key: Array, version: str
) -> None:
    """Warns if outputs look like probabilities, are random, or have no gradient.

    Args:
      logits_fn: the model.
      task: images, labels and logits of them.
      key: typed key, for a second look at a model that is random.
      version: of `VERSIONS`; "rand" is for random models.
    """
    logits = np.asarray(task.logits, np.float64)
    if _like_probabilities(logits):
        warnings.warn(
            "The outputs look like probabilities: return logits, else gradients vanish "
            "and the result is too good.",
            stacklevel=3,
        )
    random = takes_key(logits_fn)
    if random and version != "rand":
        warnings.warn(
            "The model is random: use version='rand' (autoattack_rand by name), else "
            "the result is too good.",
            stacklevel=3,
        )
    if not random and version == "rand":
        warnings.warn(
            "The model is not random: use version='standard', which is stronger.",
            stacklevel=3,
        )
    loss = "dlr" if logits.shape[1] > 2 else "ce"
    flat, nearly = map(int, _flat(task, key, loss=loss))
    if flat:
        warnings.warn(
            f"The gradient ({loss}) vanishes for {flat} of {len(logits)} images: "
            "attacks by gradients are blind there, the result may be too good.",
            stacklevel=3,
        )
    if nearly:
        warnings.warn(
            f"The gradient nearly vanishes for {nearly} of {len(logits)} images: by "
            "it, no image of the box would be read otherwise; outputs are saturated, "
            "or gradients masked, and the result may be too good.",
            stacklevel=3,
        )


def left_out(version: str, num_classes: int) -> list[str]:
    """Returns the attacks of a version that need more classes.

    Args:
      version: of `VERSIONS`.
      num_classes: of the model.
    """
    possible = stages(version, num_classes)
    return [name for name in stages(version, TARGETS + 1) if name not in possible]


def told_of_classes(num_classes: int, version: str) -> str:
    """Returns what so few classes leave out of a version, or ""."""
    if num_classes > TARGETS or version == "rand":
        return ""
    lost = left_out(version, num_classes)
    needs = f", without {' and '.join(lost)}, which need more" * bool(lost)
    return (
        f"The model has {num_classes} classes, fewer than {TARGETS + 1}: "
        f"{num_classes - 1} of {TARGETS} targets are used{needs}."
    )


def _weaker(version: str, num_steps: int | None, num_queries: int) -> str:
    """Returns what is less than the version stands for, or ""."""
    steps = 10 if version == "torchattacks10" else _STEPS
    less = []
    if num_steps is not None and num_steps < steps:
        less.append(f"num_steps={num_steps} instead of {steps}")
    if version != "rand" and num_queries < _QUERIES:
        less.append(f"num_queries={num_queries} instead of {_QUERIES}")
    if not less:
        return ""
    return (
        f"AutoAttack with {' and '.join(less)}: weaker than what the name stands for."
    )


def attack(
    logits_fn: LogitsFn,
    x: Float[Array, "n h w c"],
    y: Int[Array, " m"],
    *,
    key: Array,
    threat_model: ThreatModel,
    version: str = "standard",
    num_steps: int | None = None,
    num_queries: int = 5000,
) -> Adversarial:
    """Runs the attacks of a version, each on what is not broken yet.

    Robust accuracy is `1 - mean(success)`; images misread from the start count against
    it. Warns, with `UserWarning`, if the result is likely to be too good: outputs that
    look like probabilities, random models, gradients that vanish or nearly do, or a
    Square attack that breaks what attacks by gradients could not; if the model has
    fewer classes than the attacks need; and if steps or queries are fewer.

    Args:
      logits_fn: see `task.LogitsFn`.
      x: images in the box.
      y: labels.
      key: typed key.
      threat_model: what the attacker may do.
      version: see `stages`.
      num_steps: see `stages`.
      num_queries: see `stages`.

    Raises:
      ValueError: see `task.prepare`; an unknown version, or a setting out of range.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.evasion import ThreatModel, autoattack
      >>> def logits_fn(x):
      ...     bright = x.mean((1, 2, 3))
      ...     return jnp.stack([bright, 0.5 - bright, bright - 0.5], 1) * 9
      >>> x, y = jnp.full((2, 4, 4, 1), 0.2), jnp.ones(2, int)
      >>> budget = ThreatModel("linf", 0.1)
      >>> key = jax.random.key(0)
      >>> found = autoattack.attack(logits_fn, x, y, key=key, threat_model=budget)
      >>> found.success.tolist()
      [True, True]
    """
    _checks.one_of(VERSIONS, version=version)
    _checks.at_least(1, num_queries=num_queries)
    if num_steps is not None:
        _checks.at_least(1, num_steps=num_steps)
    pgd.bounded(threat_model)
    norm = threat_model.norm
    task = prepare(logits_fn, x, y, key=key, threat_model=threat_model)
    warn_of_the_model(logits_fn, task, key, version)
    classes = task.logits.shape[1]
    for text in (
        told_of_classes(classes, version),
        _weaker(version, num_steps, num_queries),
    ):
        if text:
            warnings.warn(text, stacklevel=2)
    options: dict[str, Any] = {"num_steps": num_steps, "num_queries": num_queries}
    left = task
    images, success = task.x, jnp.zeros_like(task.active)
    queries = jnp.zeros(task.y.shape, jnp.int32)
    for name, stage in stages(version, classes, **options).items():
        count = int(jnp.sum(left.active))
        if not count:
            break
        key, one = jax.random.split(key)
        found = stage(left, key=one, norm=norm, num_active=count)
        # Read again: what is not misread then goes on to the next.
        told = finish(left, found, one, norm=norm)
        broken_now = left.active & told.success
        images = jnp.where(per_sample(broken_now), told.images, images)
        success, queries = success | broken_now, queries + told.queries
        left = left._replace(active=left.active & ~broken_now)
        broken = count - int(jnp.sum(left.active))
        if name == "square" and broken > _SUSPECT_SHARE * len(y):
            warnings.warn(
                f"Square broke {broken} of {len(y)} images that attacks by gradients "
                "had left: gradients may be masked; attack this model by hand.",
                stacklevel=2,
            )
    return finish(task, Found(images, success, queries), key, norm=norm)


METHODS = (
    settings.named(
        "autoattack",
        "apgd_ce, apgd_t, fab_t and square in turn: the standard",
        attack,
        settings.Both,
    ),
    settings.named(
        "autoattack_plus",
        "with 5 restarts, apgd_dlr and fab besides",
        attack,
        settings.Both,
        version="plus",
    ),
    settings.named(
        "autoattack_rand",
        "for random models: apgd_ce and apgd_dlr over 20 draws",
        attack,
        settings.Steps,
        version="rand",
    ),
    settings.named(
        "autoattack_torchattacks10",
        "with the 10 steps that torchattacks has by default",
        attack,
        settings.Both,
        numbers={"num_steps": 10},
        version="torchattacks10",
    ),
)
