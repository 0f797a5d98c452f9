"""How much of the training images can be read back from what is to be published."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks, _thumbnails
from ntk_privacy.auditing import attack as attacks
from ntk_privacy.auditing import comparison, distilled_sets, recipes, statement
from ntk_privacy.auditing.cases import Case, case
from ntk_privacy.auditing.controls import Controls
from ntk_privacy.auditing.distilled_sets import Decoded
from ntk_privacy.auditing.given_images import GivenImages
from ntk_privacy.auditing.membership import Membership
from ntk_privacy.auditing.statement import Statement
from ntk_privacy.evaluation import copies
from ntk_privacy.evaluation.copies import Nearest
from ntk_privacy.evaluation.reconstruction_curve import Evaluation
from ntk_privacy.reconstruction import Reconstruction
from ntk_privacy.resume import Stage, straight

__all__ = ["Audit", "audit", "examine"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """What was found, and what it is worth.

    Attributes:
      verdict: the sentence, and what stands behind it.
      num_recovered: private images recovered at 25 dB; None without private images.
      num_certified: reconstructed images with a bound that was verified.
      estimated_num_images: N, as the weights show it; None where it is hidden.
      reconstruction: in the network's units; None of a distilled set alone.
      images: reconstructed ones as intensities.
      private: images that were given to compare with.
      pairs: of private and reconstructed images; None without either.
      controls: what the attack finds where there is nothing.
      membership: None without private and unseen images, or without weights before.
      distilled, nearest: a distilled set, and the private image nearest to each.
      decoded: what came back from a network that is trained on it.
      notes: what was inferred or left out, in sentences.
      settings: of the audit, by name.
    """

    verdict: Statement
    num_recovered: int | None = None
    num_certified: int = 0
    estimated_num_images: int | None = None
    reconstruction: Reconstruction | None = None
    images: Float[np.ndarray, "m h w c"] | None = None
    private: GivenImages | None = None
    pairs: Evaluation | None = None
    controls: Controls = dataclasses.field(default_factory=Controls)
    membership: Membership | None = None
    distilled: GivenImages | None = None
    nearest: Nearest | None = None
    decoded: Decoded | None = None
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<audit: {self.verdict.sentence}>"

    def _repr_html_(self) -> str:
        shown = self.images if self.images is not None else None
        if shown is None and self.distilled is not None:
            shown = self.distilled.images
        pictures = np.zeros((0, 1, 1, 1)) if shown is None else shown
        return _thumbnails.html(self.verdict.sentence, pictures, bounds=(0.0, 1.0))


def audit(
    after: Any = None,
    *,
    before: Any = None,
    gradient: Any = None,
    adapter: Any = None,
    seeds: tuple[int, int] | None = None,
    network: Any = None,
    images: Any = None,
    unseen: Any = None,
    distilled: Any = None,
    image_shape: Sequence[int] | None = None,
    bounds: tuple[Any, Any] | None = None,
    num_images: int | None = None,
    adapter_before: Any = None,
    adapter_scale: float | int | None = None,
    recipe: Any = None,
    minutes: float | int = 5.0,
    key: Array | None = None,
    stage: Stage = straight,
) -> Audit:
    """Tells how much of the training images can be read back, and what is worth what.

    Args:
      after: weights after training: a file or an object that
        `reconstruction.evidence_files` reads.
      before: weights before it; of a gradient, those at which it was taken; of an
        adapter, those of the frozen network.
      gradient: that is to be shared, of the structure of `before`.
      adapter: that was trained (LoRA), of the first dense layer.
      seeds: (first, end) of those to try as that of the weights before training.
      network: None infers an MLP from the shapes; else one, or `apply_fn`.
      images: private ones, to compare with: a folder, an .npz file or an array.
      unseen: images that were not trained on, for membership and decoys.
      distilled: a set that is to be published, to compare with `images`.
      image_shape: (height, width, depth); None takes that of the images.
      bounds: smallest and largest intensity that the network took, scalar or per
        channel; None is (0, 1), or what a saved model says.
      adapter_before: the adapter before training, where it is known.
      adapter_scale: of the adapter's product; None is what its file tells, or 1.
      num_images: N, where it is known and the weights may hide it.
      recipe: what is known of the training: a .json or .toml file, or values by name,
        those of `recipes.KnownTraining`.
      minutes: after which searches stop; what is read exactly is finished, and the
        control on wrong weights may search for as long again.
      key: of random starts; `jax.random.key(0)` if None.
      stage: runs the loops.

    Raises:
      ValueError, FileNotFoundError: what is given cannot be read, does not go together,
        or holds a NaN; each in one sentence.

    Example:
      >>> import jax
      >>> import ntk_privacy
      >>> key = jax.random.key(0)
      >>> digits = ntk_privacy.data.load("digits", num_train=8, key=key)
      >>> victim = ntk_privacy.training.victim.train(
      ...     digits.x_train,
      ...     digits.y_train,
      ...     width=256,
      ...     dynamics="standard",
      ...     stop_loss=1e-4,
      ...     key=key,
      ... )
      >>> ntk_privacy.audit(
      ...     victim.params_t, before=victim.params_0, image_shape=(8, 8, 1)
      ... )
      <audit: 8 of 8 training images can be computed from these weights with certainty.>
    """
    given = case(
        after,
        before=before,
        gradient=gradient,
        adapter=adapter,
        seeds=seeds,
        network=network,
        images=images,
        unseen=unseen,
        distilled=distilled,
        image_shape=image_shape,
        bounds=bounds,
        num_images=num_images,
        adapter_before=adapter_before,
        adapter_scale=adapter_scale,
        recipe=recipe,
    )
    return examine(given, minutes=minutes, key=key, stage=stage)


def examine(
    given: Case,
    *,
    minutes: float | int = 5.0,
    key: Array | None = None,
    stage: Stage = straight,
) -> Audit:
    """Attacks, compares, controls, and tells.

    Args:
      given: of `case`.
      minutes: after which searches stop.
      key: of random starts; `jax.random.key(0)` if None.
      stage: runs the loops.

    Raises:
      ValueError: the weights do not differ, hold a NaN, or do not fit.
    """
    _checks.positive(minutes=minutes)
    key = jax.random.key(0) if key is None else key
    _checks.typed_key(key=key)
    start, notes = time.monotonic(), list(given.notes)
    parts: dict[str, Any] = {"private": given.private}
    attacked = counts = None
    if given.evidence is not None:
        attacked = attacks.attack(
            given.evidence,
            key=key,
            seconds=60.0 * minutes,
            seeds=None if given.seeds is None else range(*given.seeds),
            stage=stage,
        )
        seen = comparison.compared(given, attacked, notes)
        parts |= seen.parts
        parts |= comparison.controlled(given, attacked, seen, key, notes, stage=stage)
        counts = seen.counts
        if given.training is not None:
            notes += recipes.unused(given.training, attacked.evidence)
    near = copied = None
    if given.distilled is not None and given.private is not None:
        made_set, real = given.distilled.images, given.private.images
        near = copies.nearest(real, made_set, mean=np.zeros(real.shape[-1], np.float32))
        decoded = distilled_sets.decoded(
            given.distilled,
            given.private,
            key=jax.random.fold_in(key, 2),
            seconds=60.0 * minutes,
            stage=stage,
        )
        copied = statement.Copies(len(made_set), near.num_copies, decoded)
        parts |= {
            "distilled": given.distilled,
            "nearest": near,
            "decoded": decoded,
        }
    settings = _settings(given, attacked, minutes)
    settings["seconds"] = round(time.monotonic() - start, 1)
    return Audit(
        verdict=statement.state(attacked, counts, copied, given.training),
        notes=tuple(notes),
        settings=settings,
        **parts,
    )


def _settings(
    given: Case, attacked: attacks.Attacked | None, minutes: float | int
) -> dict[str, Any]:
    told: dict[str, Any] = {"minutes": minutes}
    for name in ("private", "unseen", "distilled"):
        one = getattr(given, name)
        if one is not None:
            told[name] = f"{len(one.images)} images of {one.source}"
    if given.training is not None:
        known = given.training.told().items()
        told["recipe"] = ", ".join(f"{name}={value}" for name, value in known)
    if attacked is None:
        return told
    known = attacked.evidence
    kinds = (known.is_adapter, "an adapter"), (known.is_gradient, "one gradient")
    kind = next((name for has, name in kinds if has), "weights")
    before = known.params_0 is not None
    if kind == "weights":
        kind = "weights before and after" if before else "weights after training"
    told |= {
        "evidence": kind,
        "image_shape": known.image_shape,
        "bounds": known.bounds,
        "num_outputs": known.num_outputs,
    }
    widths = getattr(known.network, "widths", None)
    if widths is not None:
        told["widths"] = tuple(widths)
    if attacked.seed is not None:
        told["seed"] = attacked.seed.seed
    return told
