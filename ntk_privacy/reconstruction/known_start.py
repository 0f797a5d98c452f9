r"""What trained weights tell by themselves, where biases began at zero.

A bias that began at zero tells its whole change, though no weight before training is
known. The first layer of a ReLU network has $W_t = W_0 + \sum_i x_i d_i^\top$ and
$b_t = \sum_i d_i$, with $d_i$ the signals of image i, zero where it closes a unit. Two
traits of the units follow, and both were written by the images:

1. *Opened*: a unit that no image ever opens has a bias of exactly zero, under any loss
   and any optimiser that adds no noise. $W_0$ is random, so by Stein's lemma the
   regression of "it opened" on the unit's weights before training has coefficients
   $\sum_i p_i x_i$ with $p_i \ge 0$: the share of units whose border with image i
   decides. On those after training it is nearly so. With one image that is its
   direction.
2. *Change*: the regression of the weights on the biases, $W_t b / |b|^2$, is
   $\sum_i x_i \langle d_i, b \rangle / |b|^2$, whose weights sum to one, and noise of
   $\sigma / |b|$ a pixel, with $\sigma$ the deviation of the initial weights. It is an
   image of the right contrast where training moved the biases far. That is so where
   weights and biases took the same steps, as under SGD; under Adam, or a decay of the
   weights alone, the weights of the sum are others.

Each is one image in the span of the training images, and only of one image alone a
training image. Its error bar is that of the regression; nothing is certified.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ntk_privacy import _checks
from ntk_privacy._types import Params
from ntk_privacy.models import published
from ntk_privacy.reconstruction import first_layer, layer_chain, leaf_names
from ntk_privacy.reconstruction.verdict import Verdict

__all__ = ["KnownStart", "Reading", "read"]

_WIDE = 1.6  # units a pixel, from which least squares beat plain correlation
_CHANCE = 1e-6  # p-value
_HALF = 0.5  # share that is no noise: the error bar is the contrast
_DEVIATIONS = 3.0
_FEW = 8  # units of each kind that a share is made of


class Reading(NamedTuple):
    """An image that one trait of the units tells.

    Attributes:
      trait: "opened" or "change", see above.
      image: (height, width, depth); of "change" in the network's units of intensity, of
        "opened" of norm one: its contrast is not known.
      error: (height, width, depth), the standard deviation of each pixel.
      share: of the image's squared norm that noise does not explain; its root is the
        cosine to expect with what the training images span. 0 where noise explains all.
      p_value: the chance that units which know of no image tell as much.
    """

    trait: Literal["opened", "change"]
    image: Float[np.ndarray, "h w d"]
    error: Float[np.ndarray, "h w d"]
    share: float
    p_value: float


class KnownStart(NamedTuple):
    """What biases that began at zero tell.

    Attributes:
      opened: (units,), whether an image ever opened the unit; of first-layer units.
      largest_angle: in radians, that no two images that gave the layer a signal exceed
        by more than chance (three standard deviations): pairs at an angle t open at
        least 1/2 + t / (2 pi) of random units. None where all units opened.
      classes: that were surely among the images, if the loss is softmax cross-entropy
        of hard labels and the last bias began at zero: images of others can only push
        an entry down. None where names and shapes do not tell the last layer, or it
        has one output.
      readings: the image that each trait tells, the one with the largest share first.
      verdict: "approximate" where an image stands above its error bar.
    """

    opened: Bool[np.ndarray, " units"]
    largest_angle: float | None
    classes: tuple[int, ...] | None
    readings: tuple[Reading, ...]
    verdict: Verdict


def read(
    params_t: Params,
    *,
    image_shape: tuple[int, int, int],
    layer: str | None = None,
    norm: str | None = None,
) -> KnownStart:
    """Reads what the first layer's biases tell of the images, from trained weights.

    Weights before training are not needed, but their law is: kernels that are
    symmetric, independent and of one variance a layer (Glorot, He, LeCun), and biases
    of zero, as in Flax. PyTorch's own biases are random: then every unit "opened", and
    what the changes tell is mixed with the biases of the start.

    Args:
      params_t: after training, a ReLU behind the first dense layer.
      image_shape: (height, width, depth) in pixels.
      layer: name of that layer; None takes the first that has as many inputs as pixels.
      norm: name of a normalisation between the layer and its ReLU: its bias tells which
        units opened, and the layer's own is not looked at.

    Raises:
      ValueError: no such layer, no bias, one that did not move, fewer than 16 units, or
        weights that are not finite.

    Example:
      >>> import jax
      >>> import ntk_privacy
      >>> from ntk_privacy.reconstruction import known_start
      >>> key = jax.random.key(0)
      >>> digits = ntk_privacy.data.load("digits", num_train=2, key=key)
      >>> victim = ntk_privacy.training.victim.train(
      ...     digits.x_train[:1],
      ...     digits.y_train[:1],
      ...     width=1024,
      ...     dynamics="standard",
      ...     stop_loss=1e-3,
      ...     key=key,
      ... )
      >>> found = known_start.read(victim.params_t, image_shape=(8, 8, 1))
      >>> found.verdict.word, found.readings[0].trait
      ('approximate', 'opened')
    """
    for size in image_shape:
        _checks.at_least(1, image_shape=size)
    name = first_layer.candidates(
        params_t, pixels=int(np.prod(image_shape)), layer=layer
    )[0]
    dense = first_layer.dense(params_t, pixels=int(np.prod(image_shape)), name=name)
    bias = dense.bias if norm is None else _vector(params_t, norm, dense.kernel)
    where = name or "params"
    if bias is None:
        raise ValueError(
            f"The layer {where} has no bias, whose start would be known: name the "
            "normalisation behind it, norm=..., or guess the seed of all weights with "
            "reconstruction.initialisation."
        )
    if len(bias) < 2 * _FEW:
        raise ValueError(
            f"The layer {where} has {len(bias)} units, too few to tell an image from "
            f"chance: {2 * _FEW} at least."
        )
    opened = bias != 0
    if not opened.any():
        raise ValueError(
            f"The bias of {norm or where} is zero: it was not trained, or no unit "
            "opened; give the weights after training."
        )
    readings, angle = [], None
    if min(opened.sum(), (~opened).sum()) >= _FEW:
        readings.append(_reading("opened", dense.kernel, opened * 1.0, image_shape))
    if not opened.all():
        share = float(opened.mean())
        spread = _DEVIATIONS * np.sqrt(share * (1 - share) / len(opened))
        angle = float(np.clip(2 * np.pi * (share + spread - 0.5), 0, np.pi))
    if norm is None and np.ptp(bias) > 0:
        readings.append(_reading("change", dense.kernel, bias, image_shape))
    readings.sort(key=lambda each: -each.share)
    return KnownStart(
        opened,
        angle,
        _classes(params_t, int(np.prod(image_shape))),
        tuple(readings),
        _verdict(readings, opened),
    )


def _vector(params: Params, name: str, kernel: np.ndarray) -> np.ndarray:
    """The bias of a normalisation."""
    found = {".".join(names): leaf for names, leaf in leaf_names.leaves(params)}
    known = [
        f"{name}.{bias}" for bias in leaf_names.BIASES if f"{name}.{bias}" in found
    ]
    if not known:
        raise ValueError(
            f"norm={name!r} has no bias in the parameters: name a normalisation that "
            "has one, as it stands there."
        )
    bias = published.as_numpy(found[known[0]]).astype(np.float64)
    _checks.finite(**{known[0]: bias})
    if bias.shape != kernel.shape[1:]:
        raise ValueError(
            f"{known[0]} has shape {bias.shape}, the layer {kernel.shape[1]} units: "
            "name the normalisation behind it."
        )
    return bias


def _reading(trait, kernel, values, image_shape) -> Reading:
    pixels, units = kernel.shape
    weights = kernel - kernel.mean(1, keepdims=True)
    centred = values - values.mean()
    if trait == "opened" and units >= _WIDE * pixels:
        image, error, p_value = _regressed(weights, centred)
    else:
        image, error, p_value = _correlated(weights, centred)
    size = float(image @ image)
    share = max(0.0, 1 - float(error @ error) / max(size, 1e-300))
    scale = 1.0 if trait == "change" else 1 / max(np.sqrt(size), 1e-300)
    image, error = (scale * part.reshape(image_shape) for part in (image, error))
    return Reading(trait, image, error, share, p_value)


def _regressed(
    weights: Float[np.ndarray, "d units"], values: Float[np.ndarray, " units"]
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"], float]:
    """Least squares of a trait on the weights: coefficients, deviations, F-test."""
    d, units = weights.shape
    free = units - d - 1
    inverse = np.linalg.pinv(weights @ weights.T, hermitian=True)
    image = inverse @ (weights @ values)
    total = float(values @ values)
    left = float(np.sum((values - image @ weights) ** 2))
    error = np.sqrt(left / free * np.diag(inverse))
    ratio = (total - left) / d / max(left / free, 1e-300)
    from scipy import stats  # slow to import

    return image, error, float(stats.f.sf(ratio, d, free))


def _correlated(
    weights: Float[np.ndarray, "d units"], values: Float[np.ndarray, " units"]
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"], float]:
    """Least squares of every pixel's weights on a trait.

    The p-value is of the sum of the squared pixels over their variances, under all
    orders of the units: its mean is exact, its variance that of normal numbers of the
    correlations that the pixels' weights have by chance.
    """
    d, units = weights.shape
    total = float(values @ values)
    image = weights @ values / total
    powers = np.sum(weights**2, axis=1)
    left = np.maximum(powers - image**2 * total, 0)
    error = np.sqrt(left / (units - 2) / total)
    alive = powers > 0
    scaled = weights[alive] / np.sqrt(powers[alive])[:, None]
    gram = scaled @ scaled.T if d < units else scaled.T @ scaled
    count, second = float(alive.sum()), float(np.sum(gram**2))
    squares = float(np.sum((scaled @ values) ** 2)) * (units - 1) / total
    # A gamma of this mean, count, and this variance, 2 second.
    freedom = count**2 / second
    from scipy import stats  # slow to import

    p_value = stats.chi2.sf(squares * freedom / count, freedom)
    return image, error, float(p_value)


def _classes(params: Params, pixels: int) -> tuple[int, ...] | None:
    """Outputs whose bias rose, where names and shapes tell which layer is the last."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for names, leaf in leaf_names.leaves(params):
        layers.setdefault(".".join(names[:-1]), {})[names[-1]] = leaf
    sizes, biases = {}, {}
    for name, leaves in layers.items():
        kind = next((k for k in leaf_names.KERNELS if k in leaves), None)
        if kind is not None and leaves[kind].ndim == 2:
            shape = tuple(leaves[kind].shape)
            # PyTorch's weight is (out, in).
            sizes[name] = shape[::-1] if kind == "weight" else shape
            biases[name] = next(
                (leaves[b] for b in leaf_names.BIASES if b in leaves), None
            )
    orders = layer_chain.orders(list(sizes), list(sizes.values()), pixels)
    if len(orders) != 1:
        return None
    last = biases[list(sizes)[orders[0][-1]]]
    if last is None or len(last) < 2:
        return None
    return tuple(np.flatnonzero(published.as_numpy(last) > 0).tolist())


def _verdict(readings: list[Reading], opened: np.ndarray) -> Verdict:
    share = f"{opened.mean():.0%} of the units opened"
    sure = [each for each in readings if each.p_value < _CHANCE]
    if not sure:
        lowest = min((each.p_value for each in readings), default=1.0)
        return Verdict(
            "nothing found",
            f"{share}; which, and how far their biases moved, depends too little on "
            f"the weights to be no chance (p = {lowest:.2g}): biases that began at "
            "random, too few units, or too many images.",
        )
    best = sure[0]
    noise = np.sqrt((1 - best.share) / max(best.share, 1e-300))
    if best.share < _HALF:
        return Verdict(
            "nothing found",
            f"{share}; they do tell of images (p = {best.p_value:.2g}), but the error "
            f"bar of the image is {noise:.2g} times its contrast.",
        )
    what = {
        "opened": "a positive mixture of the training images, of unknown contrast",
        "change": "a sum of the training images, with weights that sum to one if "
        "biases began at zero and took the same steps as the weights",
    }[best.trait]
    return Verdict(
        "approximate",
        f"{share}; the image is {what}, with an error bar of {noise:.2g} of its "
        f"contrast (p = {best.p_value:.2g}); it is a training image only if there was "
        "one, and nothing is certified.",
    )
