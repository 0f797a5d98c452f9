r"""Reads the embeddings that a head was trained on, or that one gradient of it holds.

A head is dense layers with ReLU behind the first one, on features that a trunk makes.
Closed units do not ask what the inputs are: where the trunk is frozen, each image's
embedding is the same at every step, and the change of the head's first layer is

$$\Delta W = \sum_i e_i d_i^\top, \quad \Delta b = \sum_i d_i.$$

One gradient of a network trained end to end, such as LeNet, is of that form as well,
with the features of each image below its first dense layer. Where such a network trains
for several steps its features move, the sum has no rank N, and the verdict says so.

The signals $d_i$ follow from the embeddings, by regression. They say more of a network
trained end to end: $\delta_i = W d_i$ is what the trunk's own gradient was made of (see
`through_trunk.kernel_equations`).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

from ntk_privacy import _checks
from ntk_privacy._types import Params
from ntk_privacy.reconstruction import closed_units, first_layer, result
from ntk_privacy.reconstruction.verdict import Verdict

__all__ = ["Embeddings", "decode", "decode_gradient"]


class Embeddings(NamedTuple):
    """What was read from a head; certificates are those of `closed_units`.

    Attributes:
      rows: (m, length), an embedding each; m may be 0.
      certified: `errors` is a bound that was verified, of the embedding.
      errors: bound on the relative L2 error of each embedding; inf where there is none.
      signals: (m, units), the row of each in the change of the layer; of a gradient,
        what the loss sends back to the units that it opens. What weight decay took
        from the old weights is in them, too.
      backward: (m, length), what the head sends back to each embedding: the signals
        through the layer's initial kernel.
      verdict: what the change says of the whole set.
      message: see `Reconstruction`.
    """

    rows: Float[np.ndarray, "m length"]
    certified: Bool[np.ndarray, " m"]
    errors: Float[np.ndarray, " m"]
    signals: Float[np.ndarray, "m units"]
    backward: Float[np.ndarray, "m length"]
    verdict: Verdict
    message: str


def decode(
    params_0: Params,
    params_t: Params,
    *,
    length: int,
    key: Array,
    layer: str | None = None,
    num_images: int | None = None,
    max_rounds: int = 20,
) -> Embeddings:
    """Reads the embeddings that a head was trained on by SGD of any kind.

    Args:
      params_0: of the head before training: any pytree with dense layers.
      params_t: after it.
      length: of an embedding.
      key: typed key of the search.
      layer: name of the layer that takes the embeddings; None takes the first of as
        many inputs, by name.
      num_images: N, for where noise hides the rank.
      max_rounds: of the search.

    Raises:
      ValueError: see `closed_units.reconstruct`.

    Example:
      >>> import jax
      >>> import ntk_privacy
      >>> from ntk_privacy.reconstruction import heads
      >>> key = jax.random.key(0)
      >>> features = jax.nn.relu(jax.random.normal(key, (6, 48)))
      >>> labels = jax.nn.one_hot(jax.numpy.arange(6) % 3, 3)
      >>> victim = ntk_privacy.training.victim.one_gradient(
      ...     features.reshape(6, 48, 1, 1), labels, width=128, depth=1, key=key
      ... )
      >>> found = heads.decode_gradient(
      ...     victim.params_0, victim.gradient, length=48, key=key
      ... )
      >>> found.verdict.word, found.rows.shape
      ('exact', (6, 48))
    """
    shape = _shape(length)
    found = closed_units.reconstruct(
        params_0, params_t, key=key, image_shape=shape, layer=layer,
        num_images=num_images, max_rounds=max_rounds,
    )  # fmt: skip
    return _told(found, params_0, params_t, length, layer, is_gradient=False)


def decode_gradient(
    params: Params,
    gradient: Params,
    *,
    length: int,
    key: Array,
    layer: str | None = None,
    num_images: int | None = None,
    max_rounds: int = 20,
) -> Embeddings:
    """Reads the embeddings of a batch from one gradient of its loss.

    Args:
      params: at which it was taken: of the head, or of a whole network with dense
        layers above the features.
      gradient: of the structure of the parameters.
      length: of an embedding.
      key: see `decode`, as layer, num_images and max_rounds.
      layer: its name.
      num_images: N.
      max_rounds: at most.

    Raises:
      ValueError: see `closed_units.reconstruct_gradient`.
    """
    shape = _shape(length)
    found = closed_units.reconstruct_gradient(
        params, gradient, key=key, image_shape=shape, layer=layer,
        num_images=num_images, max_rounds=max_rounds,
    )  # fmt: skip
    return _told(found, params, gradient, length, layer, is_gradient=True)


def _shape(length: int) -> tuple[int, int, int]:
    _checks.at_least(1, length=length)
    return int(length), 1, 1


def _told(
    found: result.Reconstruction,
    before: Params,
    after: Params,
    length: int,
    layer: str | None,
    *,
    is_gradient: bool,
) -> Embeddings:
    rows = np.asarray(found.images, np.float64).reshape(-1, length)
    names = first_layer.candidates(before, pixels=length, layer=layer)
    if len(names) > 1:
        raise ValueError(
            f"The layers {', '.join(names)} all take {length} numbers: name the one "
            "that takes the embeddings, layer=..."
        )
    read = first_layer.read(before, after, pixels=length, name=names[0])
    change = read.kernel_t - (0 if is_gradient else read.kernel_0)
    known = rows.T
    if read.bias_0 is not None and read.bias_t is not None:
        bias = read.bias_t - (0 if is_gradient else read.bias_0)
        change = np.concatenate([change, bias[None]])
        known = np.concatenate([known, np.ones((1, len(rows)))])
    signals = np.linalg.lstsq(known, change, rcond=None)[0]
    return Embeddings(
        rows=rows,
        certified=found.certified,
        errors=found.errors,
        signals=signals,
        backward=signals @ read.kernel_0.T,
        verdict=found.verdict._replace(reason=of_embeddings(found.verdict.reason)),
        message=of_embeddings(found.message),
    )


def of_embeddings(text: str) -> str:
    """Returns what closed units say, of embeddings."""
    return text.replace("an image", "an embedding").replace("image", "embedding")
