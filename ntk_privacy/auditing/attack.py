"""The attacks of an audit: the strongest that the evidence allows, within a time."""

import dataclasses
import time
from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from ntk_privacy import _checks, resume
from ntk_privacy._types import Params
from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction import (
    METHODS,
    Evidence,
    Reconstruction,
    algebraic,
    closed_units,
    initialisation,
    unit_verdict,
)
from ntk_privacy.reconstruction.initialisation import SeedFound, TorchLinear
from ntk_privacy.reconstruction.verdict import Verdict
from ntk_privacy.resume import Stage, straight

__all__ = ["Attacked", "again", "attack"]

_NAMES = {"kernel": "weight", "bias": "bias"}  # PyTorch's, by Flax's
_CANDIDATES = 100  # of a search, where the number of images is not known
_EXACT_NEEDS = "exact reading (it needs the weights before training, or their seed)"
_READING, _DECODING = "exact reading of closed units", "exact decoding of ReLU gates"
_SEARCH_NOT_NEEDED = "a search (all images that the weights show were read exactly)"
_SEARCH_NOT_BETTER = "a search (the images that were read explain the change as it is)"


class Attacked(NamedTuple):
    """What was found, and how.

    Attributes:
      found: of the last attack.
      evidence: with the weights before training, where their seed was found.
      tried: attacks that were run, in words.
      left_out: those that were not, each with the reason.
      seed: the seed that was looked for; None if none was.
      seconds: after which its searches had to stop.
    """

    found: Reconstruction
    evidence: Evidence
    tried: tuple[str, ...]
    left_out: tuple[str, ...]
    seed: SeedFound | None = None
    seconds: float = 0.0


def attack(
    evidence: Evidence,
    *,
    key: Array,
    seconds: float,
    seeds: Iterable[int] | None = None,
    stage: Stage = straight,
) -> Attacked:
    """Attacks a network with what is known of it.

    Args:
      evidence: as it was given.
      key: of random starts.
      seconds: after which searches stop; what is read in one piece is finished.
      seeds: of the weights before training, where they are not known; None tries none.
      stage: runs the loops.

    Raises:
      ValueError: the weights hold a NaN, do not differ, or are of two networks.
    """
    _checks.finite(after=evidence.params_t)
    if evidence.params_0 is not None:
        ends = ("before", evidence.params_0, "after", evidence.params_t)
        _checks.same_structure(*ends)
        _checks.differ(*ends)
    made = _attacked(evidence, key, seeds, _within(stage, seconds))
    return made._replace(seconds=seconds)


def again(
    attacked: Attacked, evidence: Evidence, *, key: Array, stage: Stage = straight
) -> Reconstruction:
    """Returns what the same attacks find in other evidence, within the same time.

    Args:
      attacked: weights from before and after training, or a gradient.
      evidence: of a network of the same shape.
      key: of random starts.
      stage: runs the loops.

    Raises:
      ValueError: they cannot be run on it.
    """
    if _DECODING not in attacked.tried:
        return closed_units.from_evidence(evidence, key=key, stage=stage)
    method, stage = METHODS["auto"], _within(stage, attacked.seconds)
    return method.run(evidence, method.configured(), key=key, stage=stage)


def _within(stage: Stage, seconds: float) -> Stage:
    end = time.monotonic() + seconds
    return resume.until(stage, lambda: time.monotonic() >= end)


def _attacked(
    evidence: Evidence, key: Array, seeds: Iterable[int] | None, stage: Stage
) -> Attacked:
    if evidence.is_adapter:
        found = METHODS["adapter"].run(
            evidence, METHODS["adapter"].configured(), key=key, stage=stage
        )
        return Attacked(found, evidence, ("closed units of an adapter",), ())
    seed, tried, left_out = None, (), ()
    if evidence.params_0 is None and seeds is not None:
        evidence, seed = _seeded(evidence, seeds, stage)
        tried = (f"{seed.num_seeds} seeds of the weights before training",)
    elif evidence.params_0 is None:
        left_out = (
            "weights before training by their seed (give seeds=0:100000 if the network "
            "was seeded with a number)",
        )
    if evidence.params_0 is None:
        later = _from_final_weights(evidence, key, stage)
    else:
        later = _from_both(evidence, key, stage)
    return later._replace(
        tried=tried + later.tried, left_out=left_out + later.left_out, seed=seed
    )


def _seeded(
    evidence: Evidence, seeds: Iterable[int], stage: Stage
) -> tuple[Evidence, SeedFound]:
    """Looks for the seed among PyTorch's initialisations, then Flax's."""
    network, params_t = evidence.mlp("an audit by seeds"), evidence.params_t
    layers = {name: np.shape(layer["kernel"]) for name, layer in params_t.items()}
    if all("bias" in layer for layer in params_t.values()):
        torch = TorchLinear(layers)
        found = initialisation.find_seed(torch, _as_torch(params_t), seeds=seeds)
        if found.seed is not None:
            drawn = torch(found.seed)
            params_0 = {
                name: {
                    ours: np.asarray(drawn[f"{name}.{theirs}"].T, leaf[ours].dtype)
                    for ours, theirs in _NAMES.items()
                }
                for name, leaf in params_t.items()
            }
            return dataclasses.replace(evidence, params_0=params_0), found
    dtype = jax.tree.leaves(params_t)[0].dtype

    def flax(seed):
        return network.init_params(jax.random.key(seed), evidence.image_shape, dtype)

    return initialisation.guessed(evidence, flax, seeds=seeds, stage=stage)


def _as_torch(params: Params) -> dict[str, np.ndarray]:
    return {
        f"{name}.{theirs}": np.asarray(layer[ours]).T
        for name, layer in params.items()
        for ours, theirs in _NAMES.items()
    }


def _from_final_weights(evidence: Evidence, key: Array, stage: Stage) -> Attacked:
    """Searches near the margin, where there are two classes."""
    method = METHODS["max_margin"]
    config = method.configured(num_candidates=evidence.num_images or _CANDIDATES)
    try:
        evidence.mlp("max_margin")
        method.check(evidence, config)
    except ValueError as error:
        nothing = _nothing(
            evidence, f"The weights before training are not known. {error}"
        )
        return Attacked(nothing, evidence, (), (f"max-margin search ({error})",))
    found = method.run(evidence, config, key=key, stage=stage)
    return Attacked(found, evidence, ("max-margin search",), (_EXACT_NEEDS,))


def _from_both(evidence: Evidence, key: Array, stage: Stage) -> Attacked:
    """Reads exactly, and searches for what is left where the number of images shows."""
    evidence.needs("an audit", "params_0", "bounds")
    method, is_mlp = METHODS["auto"], isinstance(evidence.network, MLP)
    try:
        units, why = closed_units.from_evidence(evidence, key=key, stage=stage), ""
    except ValueError as error:
        units, why = None, str(error)
    if units is not None and len(units.images) and units.certified.all():
        return Attacked(units, evidence, (_READING,), (_SEARCH_NOT_NEEDED,))
    if is_mlp and (evidence.num_images is not None or _shows_count(evidence, key)):
        found = method.run(evidence, method.configured(), key=key, stage=stage)
        if any("kkt" in source for source in found.sources):
            tried = _READING, _DECODING, "search and polishing"
            return Attacked(_better(units, found), evidence, tried, ())
        sure = found.certified.all()
        left = _SEARCH_NOT_NEEDED if sure else _SEARCH_NOT_BETTER
        return Attacked(found, evidence, (_READING, _DECODING), (left,))
    if units is None:
        return Attacked(_nothing(evidence, why), evidence, (), (f"{_READING} ({why})",))
    left = "a search (it takes an MLP, or the number of images)"
    if is_mlp:
        left = "a search (the weights do not show how many images to search for)"
    return Attacked(units, evidence, (_READING,), (left,))


def _better(units: Reconstruction | None, found: Reconstruction) -> Reconstruction:
    """Returns estimates of closed units, where a search that came after explains less.

    A search begins from noise: it may end far from what was read without a certificate.
    """
    if units is None or found.certified.any() or units.verdict.word != "approximate":
        return found
    shares = [one.verdict.explained or 0.0 for one in (units, found)]
    worse = found.verdict.word != "approximate" or shares[1] < shares[0]
    return units if worse else found


def _shows_count(evidence: Evidence, key: Array) -> bool:
    try:
        weights = evidence.params_0, evidence.params_t
        return algebraic.count_images(*weights, key=key) is not None
    except ValueError:
        return False


def _nothing(evidence: Evidence, reason: str) -> Reconstruction:
    verdict = Verdict("nothing found", reason)
    return unit_verdict.nothing(evidence.image_shape, verdict)._replace(
        duals=np.zeros((1, 0, evidence.num_outputs))
    )
