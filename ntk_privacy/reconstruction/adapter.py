r"""Training images from a low-rank adapter of the first dense layer (LoRA).

The factors tell how many images there were, if fewer than the rank r, and what they
span (`adapter_factors`). If A stood still, B would be a sketch $A^\top X D$ of the
change that the whole kernel would have seen, and in that span the sketch is undone:
closed units read X D as they read a trained kernel. One gradient of the factors is
such a sketch, exactly. In training A moves, as the square of B at first, so in the mean
of B's steps it stands a third of the way. What other points of the way make of an image
is told, but images that were not trained all along may be further off, so that images
of a training are estimates, and those of one gradient alone are certified.

More images than r, or a start of A that is not known: see `adapter_replay.within`.
"""

import dataclasses

import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks, _linalg
from ntk_privacy._types import Params
from ntk_privacy.method import Method
from ntk_privacy.models.adapter import Adapter
from ntk_privacy.reconstruction import (
    adapter_factors,
    change_factors,
    first_layer,
    result,
    shown_change,
    unit_reading,
    unit_space,
    unit_verdict,
)
from ntk_privacy.reconstruction.closed_units import Config
from ntk_privacy.reconstruction.evidence import Evidence
from ntk_privacy.reconstruction.verdict import Verdict, told_bound
from ntk_privacy.resume import Stage, straight

__all__ = ["METHOD", "Config", "check", "from_evidence", "reconstruct"]
__all__ += ["reconstruct_gradient"]

# Share of A's way at which it stands for all steps: B of zero grows as t and moves A as
# t^2, whose mean is a third; a B that was there moves A as t.
_STILL, _MOVING = 1 / 3, 1 / 2
_SPANS = 2.0  # least gap in A's change behind as many directions as images
_LOOSE = 0.3  # share of a bias's change that may lie outside rows that A's way turned
_ROUNDINGS = 4.0  # what is stated, over the size of A's rounding
_APART = 2.0  # the same, over the difference of two readings, of which one may be right
_CONFIG = Config()


@_linalg.on_one_thread
def reconstruct(
    public: Params,
    adapter: Adapter,
    *,
    key: Array,
    image_shape: tuple[int, int, int],
    num_images: int | None = None,
    layer: str | None = None,
    num_starts: int | None = None,
    max_rounds: int = 20,
) -> result.Reconstruction:
    """Reads training images from the factors of the first layer, and their start.

    A ReLU follows the layer, and the images are fewer than r. None is certified: A
    moves while it is trained, and nothing shows where it stood when an image was seen.
    Without a bias that was trained with the factors images are known up to their size.

    Args:
      public: parameters of the frozen network.
      adapter: of its first dense layer, with A's start.
      key: typed key of the random starts.
      image_shape: (height, width, depth) in pixels.
      num_images: N, where it is r, so that the factors hide it.
      layer: name of the layer; None takes the first that has as many inputs as pixels.
      num_starts: random starts a round, see `closed_units.reconstruct`.
      max_rounds: rounds of starts at most.

    Raises:
      ValueError: A's start is not known or A did not move, a layer that does not fit,
        parameters that are not finite, or a number out of range.

    Example:
      >>> import jax
      >>> import ntk_privacy
      >>> from ntk_privacy.reconstruction import adapter
      >>> from ntk_privacy.training import adapter_victim
      >>> key = jax.random.key(0)
      >>> digits = ntk_privacy.data.load("digits", num_train=4, key=key)
      >>> victim = adapter_victim.train(
      ...     digits.x_train, digits.y_train, width=256, rank=8, key=key
      ... )
      >>> found = adapter.reconstruct(
      ...     victim.params_0, victim.adapter, key=key, image_shape=(8, 8, 1)
      ... )
      >>> found.estimated_num_images, len(found.images)
      (4, 4)
    """
    _checks.typed_key(key=key)
    dense = _layer(public, adapter, image_shape, layer)
    seen = adapter_factors.num_images(adapter)
    if num_images is not None:
        _checks.at_least(1, num_images=num_images)
        if seen.hidden and num_images <= seen.rank:
            seen = seen._replace(rank=num_images, hidden=False)
    if seen.hidden:
        return _nothing(adapter, seen, image_shape)
    gap = adapter_factors.span_gap(adapter, rank=seen.rank)
    if gap < _SPANS:
        verdict = Verdict("assumptions do not hold", _other(seen.rank, gap), gap=gap)
        return unit_verdict.nothing(image_shape, verdict)
    basis = adapter_factors.span(adapter, rank=seen.rank)
    bias_t = moved = None
    if adapter.bias_t is not None and dense.bias is not None:
        bias_t = np.asarray(adapter.bias_t, np.float64)
        moved = bias_t - dense.bias
    point = _STILL if adapter.b_0 is None else _MOVING
    changed = adapter_factors.change(adapter, basis, point=point)
    found = _read(
        dense, changed, bias_t, moved,
        image_shape, after=dense.kernel + adapter.product, rank=seen.rank,
        roundoff=max(adapter.roundoff, dense.roundoff),
        key=key, num_starts=num_starts, max_rounds=max_rounds,
    )  # fmt: skip
    doubts = _way(found, adapter, basis, point) + _outside(
        found, adapter, basis, adapter.a_at(point)
    )
    return _estimated(found, doubts)


@_linalg.on_one_thread
def reconstruct_gradient(
    public: Params,
    adapter: Adapter,
    gradient: tuple[Array | np.ndarray, ...],
    *,
    key: Array,
    image_shape: tuple[int, int, int],
    layer: str | None = None,
    num_starts: int | None = None,
    max_rounds: int = 20,
) -> result.Reconstruction:
    """Reads a batch from one gradient of the factors, such as a client shares.

    With G the gradient that the whole kernel would have, that of A is G B^T and that of
    B is A^T G: two sketches, which give G back exactly if the batch is below r.

    Args:
      public: parameters of the frozen network.
      adapter: the factors at which the gradient was taken, B not zero.
      gradient: of A, of B and, if it is trained, of the layer's bias.
      key: typed key of the random starts, as all that follow see `reconstruct`.
      image_shape: in pixels.
      layer: its name.
      num_starts: a round.
      max_rounds: at most.

    Raises:
      ValueError: see `reconstruct`; gradients of other shapes, zero or not finite.

    Example:
      >>> import jax, numpy as np, ntk_privacy.models as models
      >>> from ntk_privacy.reconstruction.adapter import reconstruct_gradient
      >>> key, some = jax.random.key(0), np.random.default_rng(0).normal
      >>> public = models.MLP((6,)).init_params(key, (2, 2, 1))
      >>> at, sent = ([some(size=(4, 2)), some(size=(2, 6))] for _ in range(2))
      >>> given = public, models.adapter.Adapter(a_t=at[0], b_t=at[1]), tuple(sent)
      >>> len(reconstruct_gradient(*given, key=key, image_shape=(2, 2, 1)).images)
      0
    """
    _checks.typed_key(key=key)
    dense = _layer(public, adapter, image_shape, layer)
    if len(gradient) not in (2, 3):
        raise ValueError(
            f"gradient has {len(gradient)} leaves: give those of A, B and, where it is "
            "trained, the bias."
        )
    # Taken as a step against it, from factors of zero: the checks are theirs.
    leaves = [-np.asarray(leaf) for leaf in gradient]
    zeros = [np.zeros_like(leaf) for leaf in leaves]
    step = Adapter(
        a_t=leaves[0], b_t=leaves[1], a_0=zeros[0], b_0=zeros[1],
        bias_t=leaves[2] if len(leaves) > 2 else None, scale=adapter.scale,
    )  # fmt: skip
    if step.shape != adapter.shape or step.rank != adapter.rank:
        raise ValueError(
            f"The gradient is of factors of {step.shape} by rank {step.rank}, the "
            f"adapter of {adapter.shape} by {adapter.rank}: give those of one layer."
        )
    seen = adapter_factors.num_images(dataclasses.replace(step, b_0=None))
    if seen.hidden:
        return _nothing(adapter, seen, image_shape)
    basis = adapter_factors.span(step, rank=seen.rank)
    bias = dense.bias
    if adapter.bias_t is not None:
        bias = np.asarray(adapter.bias_t, np.float64)
    now = dense._replace(kernel=dense.kernel + adapter.product, bias=bias)
    sketch = dataclasses.replace(adapter, a_0=None, b_0=None, b_t=step.moved_b)
    moved = None if step.bias_t is None else np.asarray(step.bias_t, np.float64)
    changed = adapter_factors.change(sketch, basis, point=1.0)
    found = _read(
        now, changed, moved, moved,
        image_shape, after=now.kernel, rank=seen.rank,
        roundoff=max(step.roundoff, dense.roundoff),
        key=key, num_starts=num_starts, max_rounds=max_rounds,
    )  # fmt: skip
    doubts = _outside(found, step, basis, sketch.a_at(1.0))
    doubts = doubts + _unlike(found, adapter, step, basis, changed)
    return _doubted(found, doubts, "the rounding of the gradient and of the factors")


def _layer(
    public: Params, adapter: Adapter, image_shape, layer: str | None
) -> first_layer.Dense:
    """The adapted layer."""
    pixels, (d, m) = int(np.prod(image_shape)), adapter.shape
    if d != pixels:
        raise ValueError(
            f"image_shape={tuple(image_shape)} has {pixels} values, the adapter {d} "
            "inputs: give the shape of the training images."
        )
    name = first_layer.candidates(public, pixels=pixels, layer=layer)[0]
    dense = first_layer.dense(public, pixels=pixels, name=name, where="public")
    if dense.kernel.shape != (d, m):
        raise ValueError(
            f"The layer {name or 'params'} has a kernel of shape {dense.kernel.shape}, "
            f"the factors multiply to {(d, m)}: give those of the layer that takes the "
            "images."
        )
    if dense.bias is None and adapter.bias_t is not None:
        raise ValueError(
            f"The layer {name or 'params'} has no bias, but bias_t is given: leave it "
            "out."
        )
    return dense


def _nothing(adapter: Adapter, seen: adapter_factors.Size, image_shape):
    verdict = Verdict("nothing found", adapter_factors.full(adapter), gap=seen.gap)
    return unit_verdict.nothing(image_shape, verdict)


def _other(rank: int, gap: float) -> str:
    return (
        f"B shows {rank} images, and the change of A does not have as many directions "
        f"(gap {gap:.2g}): images of the first step alone leave no trace in it; or A "
        "began otherwise than a_0 says, or its change is no sum of images, as after "
        "Adam, weight decay or dropout before the adapter, or is rounded too coarsely."
    )


def _read(
    dense, changed, bias_t, moved, image_shape, *, after, rank, roundoff, **search
) -> result.Reconstruction:
    """Closed units of a change whose rank is known."""
    factors = change_factors.factorize(changed, rank=rank)
    coarse = 1.0
    if moved is not None:
        coarse = shown_change.coarse(bias_t, changed)
        moved = shown_change.fitting(factors, moved, share=_LOOSE)
    biases = None
    if dense.bias is not None:
        biases = (dense.bias, dense.bias)
    space = unit_space.make(
        factors, (dense.kernel, after), biases, moved, coarse=coarse
    )
    return unit_reading.searched(
        space, factors, image_shape, None, roundoff=roundoff, decay=1.0, **search
    )


def _flat(found: result.Reconstruction) -> Float[np.ndarray, "n d"]:
    images = np.asarray(found.images, np.float64)
    return images.reshape(len(images), int(np.prod(images.shape[1:])))


def _relative(part: np.ndarray, whole: np.ndarray) -> Float[np.ndarray, " n"]:
    norms = np.maximum(np.linalg.norm(whole, axis=-1), 1e-300)
    return np.linalg.norm(part, axis=-1) / norms


def _outside(
    found: result.Reconstruction,
    adapter: Adapter,
    basis: Float[np.ndarray, "d n"],
    a: Float[np.ndarray, "d r"],
) -> Float[np.ndarray, " k"]:
    """Relative error of images for what moved A besides them, rounding or decay.

    It turns their span; what of an image is outside then is seen by the sketch, whose
    inverse makes more of it. And it may have moved as large a share of B.
    """
    moved = adapter.moved_a
    assert moved is not None
    values, n = np.linalg.svd(moved, compute_uv=False), basis.shape[1]
    noise = adapter.roundoff * float(np.linalg.norm(adapter.a_at(1.0)))
    if n < len(values):
        noise = max(noise, float(values[n]))
    flat, size = _flat(found), np.linalg.norm(adapter.a_at(1.0), 2)
    more = 1 + np.linalg.norm(np.linalg.pinv(a.T @ basis), 2) * np.linalg.norm(a, 2)
    turned = more * _relative(flat @ basis / values[:n], flat)
    return _ROUNDINGS * noise * (turned + 1 / max(float(size), 1e-300))


def _way(
    found: result.Reconstruction, adapter: Adapter, basis: Float[np.ndarray, "d n"],
    point: float,
) -> Float[np.ndarray, " k"]:  # fmt: skip
    """Relative changes of images with the point at which A stands for all steps."""
    inside = _flat(found) @ basis
    sketched = inside @ (adapter.a_at(point).T @ basis).T
    doubts = np.zeros(len(inside))
    for other in (0.0, 2 * point):
        back = sketched @ np.linalg.pinv(adapter.a_at(other).T @ basis).T
        doubts = np.maximum(doubts, _relative(back - inside, inside))
    return doubts


def _unlike(
    found: result.Reconstruction,
    adapter: Adapter,
    step: Adapter,
    basis: Float[np.ndarray, "d n"],
    changed: Float[np.ndarray, "d m"],
) -> Float[np.ndarray, " k"]:
    """Relative difference of images from what the gradient of A makes of them.

    The change was read from B's gradient with A, in which an A of another moment only
    mixes the images: their rows vanish where they did. A's own gradient is that change
    times B, and sees it.
    """
    moved, inside = step.moved_a, _flat(found) @ basis
    assert moved is not None
    told = adapter.scale * (basis.T @ changed) @ np.asarray(adapter.b_t, np.float64).T
    turned = inside @ (basis.T @ moved @ np.linalg.pinv(told)).T
    return _APART * _relative(turned - inside, inside)


def _doubted(
    found: result.Reconstruction, doubts: Float[np.ndarray, " k"], why: str
) -> result.Reconstruction:
    """Adds what is uncertain of the images to their errors."""
    errors, n = found.errors + doubts, found.estimated_num_images or 0
    certified = found.certified & (errors <= unit_verdict.TOLERANCE)
    verdict, message, count = found.verdict, found.message, int(certified.sum())
    if found.certified.any():
        message = f"{count} of {n} images certified"
        if count:
            most = errors[certified].max()
            message += f", within {told_bound(most)} of their norm of training images"
        message += f"; {why} leaves up to {told_bound(doubts.max())} of an image open."
        word = "exact" if count else "approximate"
        verdict = verdict._replace(word=word, reason=message, num_certified=count)
    return found._replace(
        certified=certified,
        errors=np.where(certified, errors, np.inf),
        verdict=verdict,
        message=message,
        sources=("adapter",) * len(errors),
    )


def _estimated(
    found: result.Reconstruction, doubts: Float[np.ndarray, " k"]
) -> result.Reconstruction:
    """Takes certificates away: where A stood when an image was seen does not show.

    Images that were trained late met an A that had gone its way, those before did not,
    and the sums of both are all there is.
    """
    verdict, message = found.verdict, found.message
    if found.certified.any():
        message = (
            f"{len(found.images)} images read; other points of A's way change them by "
            f"up to {doubts.max():.1g} of their norm, and more those that were not "
            "trained all along, which the factors cannot show: none is certified."
        )
        verdict = verdict._replace(word="approximate", reason=message, num_certified=0)
    m = len(found.images)
    return found._replace(
        **result.uncertain(m) | {"residuals": found.residuals},
        verdict=verdict,
        message=message,
        sources=("adapter",) * m,
    )


def from_evidence(
    evidence: Evidence,
    config: Config = _CONFIG,
    *,
    key: Array,
    stage: Stage = straight,
) -> result.Reconstruction:
    """Reads the adapter that evidence speaks of, or returns what was read before.

    Args:
      evidence: the frozen network, its adapter, image shape; number of images if told.
      config: of the search.
      key: typed key of the random starts.
      stage: keeps what was found, as "adapter"; it cannot be cut short.

    Raises:
      ValueError: the evidence has no adapter, or see `reconstruct`.
    """
    check(evidence, config)
    evidence.needs("adapter", "params_0")
    adapter, public = evidence.adapter, evidence.params_0
    assert adapter is not None
    assert public is not None

    def make():
        return reconstruct(
            public,
            adapter,
            key=key,
            image_shape=evidence.image_shape,
            num_images=evidence.num_images,
            **dataclasses.asdict(config),
        )

    return unit_reading.kept(stage, "adapter", make, evidence)


def check(evidence: Evidence, config: Config) -> None:
    """Raises ValueError where the evidence is no adapter.

    Args:
      evidence: what is known, before or after training.
      config: any.
    """
    del config
    if not evidence.is_adapter:
        raise ValueError(
            "evidence is of whole layers: method=adapter reads low-rank factors alone; "
            "give evidence=adapter, or use auto."
        )


METHOD = Method(
    name="adapter",
    about="Images from a low-rank adapter (LoRA) of the first layer: its factors tell "
    "how many there are and their span, closed units the rest.",
    config=Config,
    presets={"fast": Config},
    run=from_evidence,
    check=check,
    wants=("adapter", "num_images"),
)
