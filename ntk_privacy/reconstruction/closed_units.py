r"""Exact reconstruction by closed units: any loss, features that move, any depth.

Whatever stands above it, the first dense layer of a network changes under gradient
descent, with momentum, minibatches or changing steps, by

$$\Delta W = \sum_i x_i d_i^\top, \quad \Delta b = \sum_i d_i,$$

where $d_i$ sums the signals of image i, one number a unit, over all steps. It vanishes,
exactly, on every unit that is closed for image i throughout: about half of them. So
each $d_i$ is a vector of the row space of $\Delta W$ that is zero where its own image
says so, and no linearization is needed.

1. Singular values tell N, and the noise (`change_factors`).
2. Random directions climb to pairs of an image and its row, in N coordinates of
   the row space (`unit_search`), and become exact rows (`unit_rows`).
3. What is found is removed: the others are orthogonal to it (`closed_rows`).
4. The whole set is refined together and weighed (`unit_set`).

The method is this project's own. It shares the aim of SPEAR (Dimitrov et al., NeurIPS
2024), which reads one gradient by searching for rows that vanish on closed units.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks, _linalg
from ntk_privacy._types import Params
from ntk_privacy.method import Method, field
from ntk_privacy.reconstruction import (
    change_factors,
    first_layer,
    result,
    sent_form,
    shown_change,
    unit_reading,
    unit_space,
    unit_verdict,
)
from ntk_privacy.reconstruction.evidence import Evidence
from ntk_privacy.reconstruction.verdict import Verdict
from ntk_privacy.resume import Stage, straight

__all__ = ["METHOD", "Config", "from_evidence", "reconstruct", "reconstruct_gradient"]


@_linalg.on_one_thread
def reconstruct(
    params_0: Params,
    params_t: Params,
    *,
    key: Array,
    image_shape: tuple[int, int, int],
    num_images: int | None = None,
    starts: Float[Array | np.ndarray, "k h w d"] | None = None,
    layer: str | None = None,
    frozen_gates: bool = False,
    num_starts: int | None = None,
    max_rounds: int = 20,
    dtype=jnp.float32,
) -> result.Reconstruction:
    r"""Reads the training images from the first dense layer before and after training.

    **What a certificate means.** The layer's change is, up to noise whose size is
    measured, a sum of images times signals, each of which vanishes on the units that
    its image closes; that holds for every image of the set, and noise, or another row
    that vanishes on as many units, moves this one by no more than `errors`. What no
    weights can tell apart is decoded as one: copies, images that share every gate, or
    all but a few (their mean, weighted by signals), as the forms of an augmented image
    may, and with zero initial biases positive multiples
    of one image. An image that closes every unit leaves nothing. The bias is taken to
    have been trained with the kernel's step sizes: other ones rescale all images alike.
    Where the weights decayed, the bias is taken to have decayed as they did, if its
    change is a sum of the same signals to within its noise.

    Args:
      params_0: before training: any pytree in which a dense layer takes the images.
      params_t: after training by SGD of any kind on a network with ReLU behind that
        layer. L2 weight decay is recognised.
      key: typed key of the random starts.
      image_shape: (height, width, depth) in pixels.
      num_images: N, for where noise hides the rank; the rank says better.
      starts: images to begin from, besides random directions, preprocessed alike.
      layer: name of the layer; None takes the first that has as many inputs as pixels.
        Where the gates are frozen a hidden layer of as many inputs gives its
        activations: name the first one if its name sorts behind that.
      frozen_gates: units opened as they did before training, as in a network whose
        Taylor model was trained, or whose weights moved by one step.
      num_starts: random starts a round; None is N, 512 at least.
      max_rounds: rounds of starts at most.
      dtype: of the search; what follows is float64 on the host.

    Raises:
      ValueError: no such layer, one that did not move, parameters that differ in
        structure or are not finite, or a number out of range.

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
      >>> found = ntk_privacy.reconstruction.closed_units.reconstruct(
      ...     victim.params_0, victim.params_t, key=key, image_shape=(8, 8, 1)
      ... )
      >>> found.verdict.word, int(found.certified.sum())
      ('exact', 8)
    """
    _checks.typed_key(key=key)
    _check_numbers(image_shape, num_images, num_starts, max_rounds)
    pixels = int(np.prod(image_shape))
    names = first_layer.candidates(params_0, pixels=pixels, layer=layer)
    for name in names:
        read = first_layer.read(params_0, params_t, pixels=pixels, name=name)
        plain = change_factors.factorize(read.kernel_t - read.kernel_0)
        # Another one may have as many inputs, but not the rank of images.
        if plain.shown or len(names) == 1:
            break
    else:
        read = first_layer.read(params_0, params_t, pixels=pixels, name=names[0])
        plain = change_factors.factorize(read.kernel_t - read.kernel_0)
    shown = shown_change.factorized(read, plain, num_images)
    sent = sent_form.seen(read.kernel_t - read.kernel_0)
    if isinstance(shown, Verdict):
        return sent_form.noted(unit_verdict.nothing(image_shape, shown), sent)
    factors, decay = shown
    kernels = (read.kernel_0, read.kernel_0 if frozen_gates else read.kernel_t)
    biases = change = None
    coarse = 1.0
    if read.bias_0 is not None and read.bias_t is not None:
        ends = (read.bias_0, read.kernel_0), (read.bias_t, read.kernel_t)
        coarse = max(shown_change.coarse(*end) for end in ends)
        biases = (read.bias_0, read.bias_0 if frozen_gates else read.bias_t)
        change = shown_change.bias_change(factors, read.bias_0, read.bias_t, decay)
    space = unit_space.make(factors, kernels, biases, change, coarse=coarse)
    found = unit_reading.searched(
        space, factors, image_shape, starts, key=key,
        roundoff=max(read.roundoff, sent.roundoff), decay=decay, num_starts=num_starts,
        max_rounds=max_rounds, dtype=dtype,
    )  # fmt: skip
    return sent_form.noted(found, sent)


@_linalg.on_one_thread
def reconstruct_gradient(
    params: Params,
    gradient: Params,
    *,
    key: Array,
    image_shape: tuple[int, int, int],
    num_images: int | None = None,
    starts: Float[Array | np.ndarray, "k h w d"] | None = None,
    layer: str | None = None,
    num_starts: int | None = None,
    max_rounds: int = 20,
    dtype=jnp.float32,
) -> result.Reconstruction:
    """Reads a batch from one gradient of its loss, such as a client shares.

    Args:
      params: at which the gradient was taken.
      gradient: of any loss, of the structure of the parameters; a multiple will do.
      key: see `reconstruct`, as all that follow.
      image_shape: in pixels.
      num_images: N.
      starts: images to begin from.
      layer: its name; None takes the first by name that has as many inputs as pixels.
        A hidden layer of as many inputs would give its activations: name it then.
      num_starts: a round.
      max_rounds: at most.
      dtype: of the search.

    Raises:
      ValueError: see `reconstruct`.

    Example:
      >>> import jax
      >>> import ntk_privacy
      >>> from ntk_privacy.reconstruction import closed_units
      >>> key = jax.random.key(0)
      >>> digits = ntk_privacy.data.load("digits", num_train=6, key=key)
      >>> client = ntk_privacy.training.victim.one_gradient(
      ...     digits.x_train, digits.y_train, width=128, key=key
      ... )
      >>> found = closed_units.reconstruct_gradient(
      ...     client.params_0, client.gradient, key=key, image_shape=(8, 8, 1)
      ... )
      >>> found.verdict.word, len(found.images)
      ('exact', 6)
    """
    _checks.typed_key(key=key)
    _check_numbers(image_shape, num_images, num_starts, max_rounds)
    pixels = int(np.prod(image_shape))
    name = first_layer.candidates(params, pixels=pixels, layer=layer)[0]
    read = first_layer.read(params, gradient, pixels=pixels, name=name)
    if not np.any(read.kernel_t):
        raise ValueError(
            f"The gradient of the layer {read.name} is zero: it holds nothing of the "
            "images."
        )
    sent = sent_form.seen(read.kernel_t)
    factors, told = change_factors.factorize(read.kernel_t), ""
    if not factors.shown and num_images is not None:
        factors = change_factors.factorize(read.kernel_t, rank=num_images)
        told = f"; N of {num_images} was told"
    if not factors.shown and (not told or factors.gap < change_factors.CLEAR / 2):
        why = unit_verdict.hidden(factors.gap, told)
        return sent_form.noted(unit_verdict.nothing(image_shape, why), sent)
    biases = change = None
    coarse = 1.0
    if read.bias_0 is not None and read.bias_t is not None:
        coarse = shown_change.coarse(read.bias_t, read.kernel_t)
        biases = (read.bias_0, read.bias_0)
        change = shown_change.fitting(factors, read.bias_t)
    kernels = (read.kernel_0, read.kernel_0)
    space = unit_space.make(factors, kernels, biases, change, coarse=coarse)
    found = unit_reading.searched(
        space, factors, image_shape, starts, key=key,
        roundoff=max(read.roundoff, sent.roundoff), decay=1.0, num_starts=num_starts,
        max_rounds=max_rounds, dtype=dtype,
    )  # fmt: skip
    return sent_form.noted(found, sent)


def _check_numbers(image_shape, num_images, num_starts, max_rounds) -> None:
    if len(image_shape) != 3:
        raise ValueError(
            f"image_shape={tuple(image_shape)} has {len(image_shape)} numbers: give "
            "(height, width, depth) in pixels."
        )
    for size in image_shape:
        _checks.at_least(1, image_shape=size)
    if num_images is not None:
        _checks.at_least(1, num_images=num_images)
    if num_starts is not None:
        _checks.at_least(1, num_starts=num_starts)
    _checks.at_least(1, max_rounds=max_rounds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How long the search goes on; attributes: see the help of each field."""

    num_starts: int | None = field(
        None, "Random starts per round; none is N, 512 at least."
    )
    max_rounds: int = field(20, "Rounds of starts at most.")
    layer: str | None = field(
        None, "Name of the first dense layer; none is the first that takes the images."
    )

    def __post_init__(self):
        _checks.at_least(1, max_rounds=self.max_rounds)
        if self.num_starts is not None:
            _checks.at_least(1, num_starts=self.num_starts)


def from_evidence(
    evidence: Evidence,
    config: Config = Config(),
    *,
    key: Array,
    stage: Stage = straight,
) -> result.Reconstruction:
    """Reads what evidence speaks of, or returns what an earlier process read.

    Args:
      evidence: weights before and after, image shape; number of images if it is told.
      config: of the search.
      key: typed key of the random starts.
      stage: keeps what was found, as "closed_units"; it cannot be cut short.

    Raises:
      ValueError: the weights before training are not known, or see `reconstruct`.

    Example:
      >>> import jax
      >>> from ntk_privacy import data, reconstruction
      >>> from ntk_privacy.training import victim
      >>> key = jax.random.key(0)
      >>> digits = data.load("digits", num_train=4, key=key)
      >>> trained = victim.train(digits.x_train, digits.y_train, width=256, key=key)
      >>> known = reconstruction.evidence.of(trained)
      >>> row = reconstruction.METHODS["closed_units"]
      >>> found = row.run(known, row.configured(), key=key)
      >>> int(found.certified.sum())
      4
    """
    evidence.needs("closed_units", "params_0")

    given = {
        "key": key,
        "image_shape": evidence.image_shape,
        "num_images": evidence.num_images,
        **dataclasses.asdict(config),
    }

    def make():
        if evidence.step is not None:
            # A multiple of the gradient as it came, before weights round it.
            return reconstruct_gradient(evidence.params_0, evidence.step, **given)
        return reconstruct(
            evidence.params_0,
            evidence.params_t,
            frozen_gates=evidence.dynamics == "linearized",
            **given,
        )

    return unit_reading.kept(stage, "closed_units", make, evidence)


METHOD = Method(
    name="closed_units",
    about="Exact images from the units that each keeps closed; any loss, no search.",
    config=Config,
    presets={"fast": Config},
    run=from_evidence,
    wants=("num_images",),
)
