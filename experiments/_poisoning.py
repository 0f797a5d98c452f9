"""What a seed of `experiments.poison` fixes, and the poisons made for it, resumable."""

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _condensed, _progress
from experiments._flags import UsageError
from ntk_privacy import checkpoint, resume
from ntk_privacy.data import augmentation
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import dm, robust_mean
from ntk_privacy.models import convnet
from ntk_privacy.poisoning import direct, gradient_matching, perturbation
from ntk_privacy.poisoning import distribution_matching as dm_poisoning
from ntk_privacy.training import classification

_CHUNK = 10
_NUM_DRAWS = 16


class Scene(NamedTuple):
    """target: a test image. where: the rows that become poison. key: of the seed."""

    target: int
    target_class: int
    adversarial_class: int
    where: np.ndarray
    key: jax.Array


def scene(config: Any, images: ImageSet, seed: int) -> Scene:
    """Draws a target, a class that is not its own, and images of it to poison.

    Args:
      config: has rate and attack.
      images: to draw from.
      seed: fixes all of it.

    Raises:
      UsageError: the class has fewer images than the rate asks for, or the rate asks
        for none.
    """
    key = jax.random.key(seed)
    draw = np.random.default_rng(seed)
    target = int(draw.integers(len(images.x_test)))
    target_class = int(images.class_test[target])
    others = [c for c in range(images.num_classes) if c != target_class]
    adversarial = int(draw.choice(others))
    many = len(images.x_train)
    count = round(config.rate * many)
    if count < 1 and config.attack != "none":
        raise UsageError(
            f"rate={config.rate} of {many} images is no poison at all: use a rate of "
            f"at least {1 / many:.4g}, or attack=none."
        )
    count = max(1, count)
    members = int(np.sum(images.class_train == adversarial))
    if count > members:
        raise UsageError(
            f"rate={config.rate} asks for {count} poisons, class {adversarial} has "
            f"{members} images: use a rate of at most {members / many:.4f}."
        )
    where = direct.choose(
        jnp.asarray(images.class_train),
        key=jax.random.fold_in(key, 1),
        adversarial_class=adversarial,
        target_class=target_class,
        num_poisons=count,
    )
    return Scene(target, target_class, adversarial, where, key)


def bound_in_steps(config: Any, images: ImageSet) -> int:
    """Returns the bound in whole steps of the grid, which is coarser for digits.

    Args:
      config: has bound, in 1/255.
      images: have levels.

    Raises:
      UsageError: it is below one step.
    """
    steps = config.bound * images.levels // 255
    if steps < 1:
        raise UsageError(
            f"bound={config.bound}/255 is below one step of {config.dataset}, which is "
            f"1/{images.levels}: use at least {-(-255 // images.levels)}."
        )
    return steps


def poisons(
    config: Any, images: ImageSet, scene: Scene, *, folder: pathlib.Path
) -> np.ndarray:
    """Returns what stands in the poisoned rows, in [0, 1].

    Args:
      config: of `experiments.poison`.
      images: with the target and the rows.
      scene: of the seed.
      folder: of the checkpoints.

    Raises:
      ValueError: a clean network is of no use, or a checkpoint is damaged.
    """
    clean = jnp.asarray(images.x_train[scene.where])
    target = jnp.asarray(images.x_test[scene.target])
    if config.attack == "none":
        return np.asarray(clean)
    if config.attack == "direct":
        return np.asarray(direct.poison(target, num_poisons=len(clean)))
    parts = dm_poisoning.Target(
        target, jnp.asarray(images.normal.mean), jnp.asarray(images.normal.deviation)
    )
    model = _condensed.model(config, images)
    total = config.attack_steps * config.num_restarts
    options: dict[str, Any] = {
        "model": model,
        "operations": images.operations,
        "key": jax.random.fold_in(scene.key, 2),
        "bound": bound_in_steps(config, images) / images.levels,
        "step": 1 / images.levels,
        "levels": images.levels,
        "num_steps": config.attack_steps,
        "num_restarts": config.num_restarts,
        "chunk": _CHUNK,
    }

    def go(state, done, callback):
        del done  # the state knows
        loop = {"state": state, "callback": callback}
        if config.attack == "dm":
            return dm_poisoning.poison(clean, parts, **options, **loop)
        ensemble = gradient_matching.prepare(
            _clean_networks(config, images, scene, folder / "clean"),
            parts,
            model=model,
            adversarial_class=scene.adversarial_class,
        )
        return gradient_matching.poison(clean, ensemble, **options, **loop)

    stage = _progress.stage(
        config, folder, resume.Timer(), description=f"poisons, {config.attack}"
    )
    start = perturbation.init(clean, config.num_restarts)
    return np.asarray(stage("craft", start, go, total).result.images)


def _clean_networks(config, images, scene, folder) -> list[Any]:
    """Trains the networks of gradient matching, or reads them back."""
    model = _condensed.model(config, images)
    if checkpoint.latest_step(folder) is not None:
        one = model.init_params(scene.key, images.x_train.shape[1:])
        stored = checkpoint.restore(folder, 0, [one] * config.num_clean)
        return jax.tree.map(jnp.asarray, stored)
    networks = classification.staggered(
        jnp.asarray(images.normalised(images.x_train)),
        jnp.asarray(images.class_train),
        model=model,
        key=jax.random.fold_in(scene.key, 3),
        num_networks=config.num_clean,
        operations=images.operations,
    )
    checkpoint.save(folder, 0, networks)
    return networks


def deviation(
    config: Any, poisoned: ImageSet, scene: Scene, method: str
) -> dict[str, Any]:
    """Returns what a method's mean does to the poison, in fresh random networks.

    Entries: the shares of poison and of clean images that are dropped, and the norm of
    what poison adds to the mean of its class before and after, over the root mean
    square distance of clean features from their mean. None where it has no meaning: a
    median and a trimmed mean drop values, not images.

    Args:
      config: of `experiments.poison`.
      poisoned: training images with the poison in place.
      scene: of the seed.
      method: of `dm.METHODS`.
    """
    x = jnp.asarray(poisoned.normalised(poisoned.x_train))
    members = np.flatnonzero(poisoned.class_train == scene.adversarial_class)
    is_poison = np.isin(members, scene.where)
    mean_fn = dm.mean_fn(method, config.rate * poisoned.num_classes)
    keys = jax.random.split(jax.random.fold_in(scene.key, 4), _NUM_DRAWS)
    sums = _deviations(
        _condensed.model(config, poisoned),
        mean_fn,
        poisoned.operations,
        config.batch_size,
        (x[members], jnp.asarray(is_poison)),
        keys,
    )
    poison, poison_dropped, clean, clean_dropped, before, after = map(float, sums)
    found: dict[str, Any] = {
        "poison_dropped": poison_dropped / max(poison, 1),
        "clean_dropped": clean_dropped / max(clean, 1),
        "deviation_of_mean": before / _NUM_DRAWS,
        "deviation": after / _NUM_DRAWS,
    }
    if isinstance(mean_fn, robust_mean.Selection) or mean_fn is robust_mean.mean:
        return found
    return dict.fromkeys(found) | {"deviation_of_mean": found["deviation_of_mean"]}


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _deviations(model, mean_fn, operations, batch_size, data, keys):
    x, is_poison = data

    def one(key):
        key_network, key_batch, key_augment = jax.random.split(key, 3)
        params = model.init_params(key_network, x.shape[1:], x.dtype)
        rows = jax.random.permutation(key_batch, len(x))[:batch_size]
        bad = is_poison[rows]
        batch = augmentation.augment(
            key_augment, x[rows], operations=operations, siamese=True
        )
        features = convnet.embed_in_blocks(model, params, batch)
        kept = jnp.ones_like(bad)
        if isinstance(mean_fn, robust_mean.Selection):
            kept = mean_fn.kept(features)
        good = (~bad).astype(x.dtype)
        centre = jnp.sum(good[:, None] * features, axis=0) / jnp.sum(good)
        features = features - centre[None]
        squares = jnp.sum(jnp.square(features), axis=1)
        spread = jnp.sqrt(jnp.sum(good * squares) / jnp.sum(good))
        return jnp.stack(
            [
                *(jnp.sum(a).astype(x.dtype) for a in (bad, bad & ~kept)),
                *(jnp.sum(a).astype(x.dtype) for a in (~bad, ~bad & ~kept)),
                robust_mean.poisoned_deviation(features, bad) / spread,
                robust_mean.poisoned_deviation(features, bad, kept) / spread,
            ]
        )

    return jnp.sum(jax.lax.map(one, keys), axis=0)
