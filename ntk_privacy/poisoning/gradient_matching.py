"""Gradient matching: poisons that pull parameters where the target's gradient points.

Source: Geiping et al., ICLR 2021 (Witches' Brew, arXiv:2009.02276), released code; the
RDM-DC paper, equation 4 and algorithm 1.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ntk_privacy import _class_checks, _tree
from ntk_privacy._types import Params
from ntk_privacy.data import augmentation
from ntk_privacy.models import fitting
from ntk_privacy.models.convnet import Network
from ntk_privacy.poisoning import perturbation
from ntk_privacy.poisoning.distribution_matching import (
    Target,
    checked,
    normalise,
)

__all__ = ["Alignment", "Ensemble", "poison", "prepare"]


class Ensemble(NamedTuple):
    """params, target_gradients: of the clean networks, stacked on the first axis.
    label: the adversarial class. mean, deviation: of the data, per channel.
    """  # noqa: D205

    params: Params
    target_gradients: Params
    label: Int[Array, ""]
    mean: Float[Array, " d"]
    deviation: Float[Array, " d"]


def _loss(model: Network, params: Params, images: Array, label: Array) -> Array:
    logits = model.apply_fn(params, images)
    labels = jnp.broadcast_to(label, (len(images),))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def _check_fit(model: Network, params: Params, shape, name: str) -> None:
    outputs = _class_checks.num_outputs(model, shape)
    fitting.check_apply_fn(
        model.apply_fn, params, image_shape=shape, num_outputs=outputs, name=name
    )


def prepare(
    networks: Sequence[Params],
    target: Target,
    *,
    model: Network,
    adversarial_class: int,
) -> Ensemble:
    """Returns what the objective needs: networks, and the target's gradients in them.

    Args:
      networks: parameters of clean networks, best trained for different times.
      target: taken as it is, without augmentation.
      model: of the networks.
      adversarial_class: the label that the target shall get.

    Raises:
      ValueError: there are no networks, or one that does not fit the target and the
        model, a batch of targets or one out of [0, 1], a class that the network has no
        output for, or a gradient vanishes.
    """
    if isinstance(networks, Mapping):
        raise ValueError(  # noqa: TRY004  every fault of networks is one
            "networks is one network: give a list of clean networks."
        )
    if not networks:
        raise ValueError("networks is empty: give at least one clean network.")
    target = checked(target)
    outputs = _class_checks.num_outputs(model, target.image.shape)
    _class_checks.one_class(outputs, adversarial_class=adversarial_class)
    for i, one in enumerate(networks):
        _check_fit(model, one, target.image.shape, f"networks[{i}]")
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)
    label = jnp.asarray(adversarial_class, jnp.int32)
    image = normalise(target.image[None], target.mean, target.deviation)

    @jax.jit
    def gradients(params, image, label):
        return jax.lax.map(
            lambda p: jax.grad(lambda q: _loss(model, q, image, label))(p), params
        )

    found = gradients(params, image, label)
    sizes = jax.vmap(_tree.largest)(found)
    if not bool(jnp.all(sizes > 0) & jnp.all(jnp.isfinite(sizes))):
        raise ValueError(
            "A network's gradient on the target is zero or not finite: use networks "
            "trained for less time, or another target."
        )
    return Ensemble(params, found, label, target.mean, target.deviation)


@dataclasses.dataclass(frozen=True)
class Alignment:
    """One less the cosine of the poisons' and the target's gradients, over networks.

    Attributes:
      model: of the networks.
      operations: of `data.augmentation`, drawn per image.
    """

    model: Network
    operations: tuple[str, ...] = augmentation.OPERATIONS

    def __call__(
        self, images: Float[Array, "p h w d"], key: Array, data: Ensemble
    ) -> Float[Array, ""]:
        """Returns its mean, in [0, 2]."""
        augmented = augmentation.augment(
            key,
            normalise(images, data.mean, data.deviation),
            operations=self.operations,
        )

        def one(pair):
            params, wanted = pair
            found = jax.grad(lambda p: _loss(self.model, p, augmented, data.label))(
                params
            )
            return 1 - _tree.cosine(found, wanted)

        # One network after the other: their second derivatives need not fit together.
        return jnp.mean(jax.lax.map(one, (data.params, data.target_gradients)))


def poison(
    images: Float[Array, "p h w d"],
    ensemble: Ensemble,
    *,
    model: Network,
    key: Array,
    operations: tuple[str, ...] = augmentation.OPERATIONS,
    **options: Any,
) -> perturbation.Poisoned:
    """Changes images of the adversarial class until training on them moves the target.

    Args:
      images: clean images whose label is the adversarial one, in [0, 1].
      ensemble: of `prepare`.
      model: of the ensemble.
      key: typed key.
      operations: of `data.augmentation`.
      **options: of `perturbation.craft`: bound, step, num_steps, num_restarts...

    Raises:
      ValueError: the ensemble or the images do not fit the network; see
        `perturbation.craft`.
    """
    _class_checks.images(images=images)
    first = jax.tree.map(lambda leaf: leaf[0], ensemble.params)
    _check_fit(model, first, images.shape[1:], "ensemble.params")
    objective = Alignment(model, operations)
    return perturbation.craft(images, objective, ensemble, key=key, **options)
