r"""Reads closed units; else decodes, searches for the rest, and polishes.

Of a network that was trained itself, or of one gradient, the units that each image
closes tell the images exactly, however far features moved (`closed_units`). If all are
certified, that is all; if not, those found are where the others begin. One gradient of
many images and several outputs is decoded first (`algebraic`, class by class): it is
faster there, and as sure.

Of a network whose training stayed linear, decoding returns images exactly
(`algebraic`); those that it misses are searched for with the decoded ones held (`kkt`).
Where features moved and closed units do not read all, what a search from noise found is
polished: along the line from $\theta_0$ to $\theta_T$ first, then along the training
that the images explain (`replay`).

Source: the search is that of Loo et al., ICLR 2024 (arXiv:2302.01428); the rest is this
package's.
"""

import contextlib
import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Array

from ntk_privacy import _checks
from ntk_privacy.method import Method, field
from ntk_privacy.reconstruction import (
    adapter,
    algebraic,
    closed_units,
    first_layer,
    judging,
    kkt,
    polishing,
    several_outputs,
)
from ntk_privacy.reconstruction.candidates import distinct
from ntk_privacy.reconstruction.evidence import Evidence
from ntk_privacy.reconstruction.result import Reconstruction, uncertain
from ntk_privacy.resume import Stage, straight

__all__ = ["METHOD", "Config", "reconstruct"]

# Above this ratio of singular values the rank is beyond doubt: the change is a sum of
# one outer product per image, as linearized dynamics leave it.
_LINEAR_GAP = 100.0
_EXPLAINED = 0.999  # by a set of closed units that no search betters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How the attack searches and polishes; attributes: see the help of each field."""

    settings: Literal["fast", "paper"] = field(
        "fast", "Of the search: ours, which depend on the dynamics, or the published."
    )
    points: str | None = field(
        None,
        "Where features are taken: final, init, midpoint, both, three, or numbers in "
        "[0, 1] between commas; none is what suits settings and dynamics.",
    )
    num_candidates: int | None = field(
        None,
        "Images searched for where nothing is decoded; none is twice those of the "
        "training set.",
    )
    num_steps: int | None = field(
        None, "Steps of the search; none is what the settings say."
    )
    learning_rate: float | None = field(
        None, "Step size of the images (intensity); none is what the settings say."
    )
    replays: int = field(
        2,
        "Times that the training is replayed on what was found, and polished along its "
        "path, under standard dynamics.",
    )

    def __post_init__(self):
        _checks.at_least(0, replays=self.replays)
        self.search()

    def search(self) -> kkt.Config:
        """Returns the config of the search alone."""
        names = [entry.name for entry in dataclasses.fields(kkt.Config)]
        return kkt.Config(**{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True)
class _Attack:
    """One attack: what is known, how to go on, and what runs its loops."""

    evidence: Evidence
    config: Config
    key: Array
    stage: Stage
    units: Reconstruction | None = None
    decoded: algebraic.AlgebraicReconstruction | None = None

    @property
    def starts(self) -> np.ndarray | None:
        """Images that closed units gave, certified or not; None if there are none."""
        if self.units is None or self.units.verdict.word == "nothing found":
            return None
        return self.units.images if len(self.units.images) else None

    @property
    def is_standard(self) -> bool:
        return self.evidence.dynamics == "standard"

    def polished(self, images, duals, *, replays: bool) -> polishing.Polished:
        _, points = kkt.plan(self.config.search(), self.evidence.dynamics)
        # They train on squares: another loss takes another path.
        replays = replays and self.evidence.objective == "mse"
        if self.is_standard and self.config.points is None:
            # Near the truth a finer quadrature pays.
            points = kkt.parse_points("three")
        return polishing.polish(
            self.evidence,
            images,
            duals,
            points=points,
            replays=self.config.replays if replays and self.is_standard else 0,
            key=self.key,
            stage=self.stage,
        )


def reconstruct(
    evidence: Evidence,
    config: Config = Config(),
    *,
    key: Array,
    stage: Stage = straight,
) -> Reconstruction:
    """Recovers training images from parameters before and after training.

    Args:
      evidence: network (an `MLP`), weights before and after, image shape and bounds;
        the number of images is read from the weights where it is not told.
      config: of search and polish.
      key: typed key; fixes the random starts and the noise that a search begins from.
      stage: runs the loops "closed_units", "decoded", "fill", "attack", "polish",
        "replay_1" and so on, those of them that there are.

    Returns:
      images (m, h, w, d), m the number of training images where it is known and
      decoding was of use, else that of the candidates; `sources` says how each was
      found, `verdict` what the whole is worth.

    Raises:
      ValueError: something is not known that is needed, the network is no MLP, the
        weights hold a NaN or do not differ, or the number of images is needed, not told
        and not to be read from the weights.

    Example:
      >>> import jax
      >>> import ntk_privacy
      >>> from ntk_privacy.reconstruction import auto, evidence
      >>> key = jax.random.key(0)
      >>> digits = ntk_privacy.data.load("digits", num_train=2, key=key)
      >>> victim = ntk_privacy.training.victim.train(
      ...     digits.x_train, digits.y_train, width=256, key=key
      ... )
      >>> known = evidence.of(victim, bounds=digits.bounds)
      >>> found = auto.reconstruct(known, key=key)
      >>> found.images.shape, found.verdict.word
      ((2, 8, 8, 1), 'exact')
    """
    _checks.typed_key(key=key)
    if evidence.is_adapter:
        return adapter.from_evidence(evidence, key=key, stage=stage)
    evidence.needs("auto", "params_0", "bounds")
    evidence.mlp("auto")
    # Before anything is decoded: points may be wrong.
    kkt.plan(config.search(), evidence.dynamics)
    units = decoded = None
    if _has_classes(evidence, key):
        with contextlib.suppress(algebraic.UndecodableError):
            decoded = algebraic.decode(evidence, key=key, stage=stage)
        if decoded is not None and _all_certified(decoded):
            return algebraic.as_result(decoded)
    if _has_closed_units(evidence):
        units = closed_units.from_evidence(evidence, key=key, stage=stage)
        if len(units.images) and units.certified.all():
            return units
    found = _others(_Attack(evidence, config, key, stage, units, decoded))
    return found if units is None or found is units else _with_certified(units, found)


def _has_classes(evidence: Evidence, key: Array) -> bool:
    """Whether decoding comes first: one gradient of many images of several classes."""
    if not evidence.is_gradient or evidence.num_outputs < 2:
        return False
    count = evidence.num_images
    if count is None:
        try:
            count = algebraic.count_images(
                evidence.params_0, evidence.params_t, key=key
            )
        except ValueError:
            return False
    return count is not None and count >= several_outputs.MANY


def _all_certified(decoded: algebraic.AlgebraicReconstruction) -> bool:
    count = decoded.estimated_num_images
    return len(decoded.images) == count and bool(decoded.certified.all())


def _has_closed_units(evidence: Evidence) -> bool:
    """Whether closed units come first: not where decoding is as sure.

    Without a bias they tell images up to their size, which is no start for the others.
    """
    if evidence.dynamics == "linearized" and not evidence.is_gradient:
        return False
    pixels = int(np.prod(evidence.image_shape))
    weights = evidence.params_0, evidence.params_t
    try:
        name = first_layer.candidates(evidence.params_0, pixels=pixels)[0]
        read = first_layer.read(*weights, pixels=pixels, name=name)
    except ValueError:
        return False
    return read.bias_t is not None


def _with_certified(units: Reconstruction, found: Reconstruction) -> Reconstruction:
    """Puts images that closed units certify in the place of the nearest found."""
    told = f"{found.message.rstrip('.')}; closed units: {units.message}"
    found = found._replace(message=told)
    sure = np.flatnonzero(units.certified)
    if not len(sure) or not len(found.images):
        return found
    flat = [np.asarray(a).reshape(len(a), -1) for a in (units.images, found.images)]
    fields = ("images", "certified", "residuals", "errors")
    changed = {name: np.array(getattr(found, name)) for name in fields}
    sources, free = list(found.sources), np.ones(len(found.images), bool)
    for i in sure[: len(free)]:
        squared = np.sum((flat[1] - flat[0][i]) ** 2, axis=1)
        place = int(np.argmin(np.where(free, squared, np.inf)))
        free[place] = False
        sources[place] = units.sources[i]
        for name, values in changed.items():
            values[place] = getattr(units, name)[i]
    verdict = judging.completed(units.verdict, found.verdict)
    return found._replace(sources=tuple(sources), verdict=verdict, **changed)


def _others(attack: _Attack) -> Reconstruction:
    """Decodes, searches and polishes."""
    evidence, key, stage = attack.evidence, attack.key, attack.stage
    if attack.starts is not None:
        known = evidence.auxiliary
        given = (
            attack.starts if known is None else np.concatenate([attack.starts, known])
        )
        evidence = dataclasses.replace(evidence, auxiliary=given)
    decoded = attack.decoded
    if decoded is None:
        try:
            decoded = algebraic.decode(evidence, key=key, stage=stage)
        except algebraic.UndecodableError as error:
            return _from_noise(attack, _count(attack), f"not decoded ({error})")
    count, clear = decoded.estimated_num_images, decoded.rank_gap > _LINEAR_GAP
    most = count is not None and 2 * np.sum(decoded.accepted) >= count
    if clear or decoded.certified.any() or (most and not attack.is_standard):
        return _filled(attack, decoded)
    # What moving features made of the rows is worse than noise to start from.
    told = f"searched from noise: of the decoding, {decoded.message}"
    return _from_noise(attack, count, told)


def _count(attack: _Attack) -> int | None:
    """Returns N, told or read from the weights; None where they do not show it."""
    evidence = attack.evidence
    if evidence.num_images is not None:
        return evidence.num_images
    try:
        return algebraic.count_images(
            evidence.params_0, evidence.params_t, key=attack.key
        )
    except ValueError:
        # Too few layers, no biases, another parametrisation: a search takes them.
        return None


def _filled(
    attack: _Attack, decoded: algebraic.AlgebraicReconstruction
) -> Reconstruction:
    """Keeps what was decoded, and searches for the images that are missing."""
    evidence, stage = attack.evidence, attack.stage
    settings, points = kkt.plan(attack.config.search(), evidence.dynamics)
    # Images that contradict themselves may be anything: the search replaces them.
    keep = decoded.accepted
    images, duals = np.asarray(decoded.images[keep]), decoded.duals[keep]
    duals = np.repeat(duals[None] / len(points), len(points), axis=0)
    held, count = len(images), decoded.estimated_num_images or 0
    found = Reconstruction(
        images=images,
        duals=duals,
        losses=np.zeros(0),
        verdict=decoded.verdict,
        sources=("decoded",) * held,
        certified=np.asarray(decoded.certified[keep]),
        residuals=np.asarray(decoded.residuals[keep]),
        errors=np.asarray(decoded.errors[keep]),
        estimated_num_images=count,
        message=decoded.message,
        decoded=decoded,
        kept={"decoded": np.asarray(decoded.images)},
    )
    if held >= count:
        return found
    extra = 2 * (count - held)
    network = (evidence.network, evidence.params_0, evidence.params_t)
    given: dict[str, Any] = {
        **evidence.common(attack.key),
        "points": points,
        "settings": settings,
    }
    start = kkt.prepare(*network, num_images=extra, **given)
    noise = start.step.pixels(start.state.latents, start.problem)
    start = kkt.prepare(
        *network,
        num_images=held + extra,
        initial_images=np.concatenate(
            [images, np.asarray(noise).reshape(extra, *images.shape[1:])]
        ),
        initial_duals=np.concatenate(
            [duals, np.zeros((len(points), extra, duals.shape[2]))], axis=1
        ),
        movable=np.arange(held + extra) >= held,
        **given,
    )
    searched = kkt.run_staged(start, stage=stage, name="fill")
    return found._replace(
        # Held images stay as decoded, to the bit.
        images=np.concatenate([images, np.asarray(searched.images)[held:]]),
        duals=np.asarray(searched.duals),
        losses=np.asarray(searched.losses),
        verdict=judging.completed(found.verdict, searched.verdict),
        sources=found.sources + ("kkt",) * extra,
        certified=_with(found.certified, extra, False),
        residuals=_with(found.residuals, extra, np.nan),
        errors=_with(found.errors, extra, np.inf),
        contributions=searched.contributions,
        nonfinite=searched.nonfinite,
    )


def _with(values: np.ndarray, extra: int, value: Any) -> np.ndarray:
    return np.concatenate([values, np.full(extra, value, values.dtype)])


def _from_noise(attack: _Attack, count: int | None, message: str) -> Reconstruction:
    """Searches from noise; refines as many images as there are, where features move.

    Not where closed units read all images, and these explain the change: a search keeps
    images within the bounds, which may be told wrong, and moves them away.
    """
    evidence, units = attack.evidence, attack.units
    if (
        units is not None
        and len(units.images) == units.estimated_num_images
        and (units.verdict.explained or 0.0) > _EXPLAINED
    ):
        return units
    if count is not None:
        evidence = dataclasses.replace(evidence, num_images=count)
    given = {} if attack.starts is None else {"starts": attack.starts}
    found = kkt.from_evidence(
        evidence, attack.config.search(), key=attack.key, stage=attack.stage, **given
    )
    if count is not None and attack.is_standard and not found.nonfinite:
        found = _best_polished(attack, found, count)
    told = f"{found.verdict.reason.rstrip('.')}; {message.rstrip('.')}."
    return found._replace(
        verdict=found.verdict._replace(reason=told),
        estimated_num_images=count,
        message=message,
    )


def _best_polished(
    attack: _Attack, found: Reconstruction, count: int
) -> Reconstruction:
    """Polishes the images that explain most, as many as there are; keeps the rest."""
    kept, duals, rest = distinct(found.images, found.duals, count)
    result, misses = attack.polished(
        found.images[kept], duals, replays=len(kept) == count
    )
    totals = np.asarray(result.duals).sum(0), found.duals[:, rest].sum(0)
    images = np.concatenate([np.asarray(result.images), found.images[rest]])
    return found._replace(
        images=images,
        duals=np.concatenate(totals)[None],
        losses=np.asarray(result.losses),
        verdict=result.verdict,
        sources=("kkt, polished",) * len(kept) + ("kkt",) * len(rest),
        contributions=np.concatenate([result.contributions, np.zeros(len(rest))]),
        nonfinite=result.nonfinite,
        replay_misses=misses,
        **uncertain(len(images)),
    )


def _check(evidence: Evidence, config: Config) -> None:
    kkt.plan(config.search(), evidence.dynamics)


def _paper(**given: Any) -> Config:
    return Config(**{"settings": "paper", **given})


METHOD = Method(
    name="auto",
    about="Closed units of what was trained itself, exact; else decodes, then searches "
    "for the rest (Loo et al., ICLR 2024, arXiv:2302.01428) and polishes along the "
    "training that the images explain.",
    config=Config,
    presets={"fast": Config, "paper": _paper},
    run=reconstruct,
    check=_check,
    wants=("auxiliary", "num_images"),
)
