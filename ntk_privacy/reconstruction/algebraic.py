r"""Exact reconstruction of a training set by decoding ReLU gates.

Training that stays linear moves a network by $\Delta\theta = \sum_i \alpha_i
\nabla_\theta f_{\theta_0}(x_i)$ (Loo et al., ICLR 2024, arXiv:2302.01428), whether it
has converged or was stopped early. The published attack fits x and alpha by 80,000
optimizer steps. The layers of a ReLU network need no fit: they factorize.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ntk_privacy import _checks
from ntk_privacy._types import Params
from ntk_privacy.reconstruction import gates as gates_lib
from ntk_privacy.reconstruction import layer_inversion, several_outputs

__all__ = ["AlgebraicReconstruction", "count_images", "reconstruct"]


_OTHER = "use reconstruction.kkt.reconstruct, which optimises images and needs no rank"


class AlgebraicReconstruction(NamedTuple):
    """Decoded images, best first, and what certifies them without the truth.

    Attributes:
      images: (m, height, width, depth) in the units that the network takes.
      duals: multiplier of each image and output, of the sum over images.
      activations: that feed the last hidden layer, decoded.
      gates: of the last hidden layer.
      residuals: one relative error per image, the largest of: distance of the gate row
        to the row space; gates that the activations contradict, twice their share;
        misfit of the forward pass; distance of the image to the first layer's span.
      certified: residual below `tolerance`: the image is right to about that relative
        error. Any other image may be anything.
      tolerance: what the noise in the singular values allows.
      estimated_num_images: N, from the rank.
      rank_gap: last kept over first dropped singular value: 1 is no evidence for N,
        above 20 is certainty.
      num_rounds: rounds of random starts that were used.
      message: what was and what was not decoded, in a sentence.
    """

    images: Float[Array, "m h w d"]
    duals: Float[Array, "m c"]
    activations: Float[Array, "m units0"]
    gates: Bool[Array, "m units"]
    residuals: Float[Array, " m"]
    certified: Bool[Array, " m"]
    tolerance: float
    estimated_num_images: int
    rank_gap: float
    num_rounds: int
    message: str


def _midpoint(layers: layer_inversion.Layers) -> layer_inversion.Layers:
    """Moves the features from params_0 to the middle of the way to params_t."""

    def move(values, changes):
        pairs = zip(values, changes, strict=True)
        return [(v + 0.5 * change).astype(v.dtype) for v, change in pairs]

    return layers._replace(
        kernels=move(layers.kernels, layers.kernel_changes),
        biases=move(layers.biases, layers.bias_changes),
    )


def _layers(params_0: Params, params_t: Params) -> layer_inversion.Layers:
    """Reads and checks the layers of a ReLU MLP; features are those of `params_0`."""
    _checks.same_structure("params_0", params_0, "params_t", params_t)
    _checks.finite(params_0=params_0, params_t=params_t)
    _checks.full_precision(params_0=params_0, params_t=params_t)
    _checks.differ("params_0", params_0, "params_t", params_t)
    count = len(params_0) if hasattr(params_0, "keys") else 0
    names = [f"Dense_{i}" for i in range(count)]
    if count < 3 or set(params_0) != set(names):
        found = sorted(params_0) if count else type(params_0).__name__
        raise ValueError(
            f"params_0 holds {found}, not Dense_0 ... Dense_L with L of at least 2: "
            f"decoding takes a ReLU MLP of two or more hidden layers; else {_OTHER}."
        )
    for name in names:
        if set(params_0[name]) != {"kernel", "bias"}:
            raise ValueError(
                f"{name} holds {sorted(params_0[name])}, not kernel and bias: without "
                f"its bias an image is known only up to its scale; {_OTHER}."
            )
        if np.ndim(params_0[name]["kernel"]) != 2:
            raise ValueError(
                f"{name}'s kernel has {np.ndim(params_0[name]['kernel'])} axes instead "
                f"of 2: decoding takes fully connected layers only; {_OTHER}."
            )
    kernels, biases, kernel_changes, bias_changes = [], [], [], []
    for name in names:
        before, after = params_0[name], params_t[name]
        kernels.append(np.asarray(before["kernel"]))
        biases.append(np.asarray(before["bias"]))
        kernel_changes.append(
            np.asarray(after["kernel"], np.float64) - np.asarray(before["kernel"])
        )
        bias_changes.append(
            np.asarray(after["bias"], np.float64) - np.asarray(before["bias"])
        )
    if not np.any(bias_changes[-2]):
        raise ValueError(
            f"The bias of {names[-2]} did not move: the network was trained without "
            f"it, so an image is known only up to its scale; {_OTHER}."
        )
    return layer_inversion.Layers(kernels, biases, kernel_changes, bias_changes)


def _usable(out: Float[np.ndarray, " units"], num_images: int | None) -> np.ndarray:
    """Returns the units whose output weight is large enough to divide by."""
    columns = np.flatnonzero(np.abs(out) > 0.2 * np.sqrt(np.mean(out**2)))
    if num_images is not None and len(columns) <= num_images:
        raise ValueError(
            f"num_images={num_images} but only {len(columns)} units of the last hidden "
            f"layer are usable: gates need more units than images; {_OTHER}."
        )
    return columns


def reconstruct(
    params_0: Params,
    params_t: Params,
    *,
    key: Array,
    image_shape: tuple[int, int, int],
    num_images: int | None = None,
    auxiliary: Float[Array, "k h w d"] | None = None,
    num_starts: int | None = None,
    max_rounds: int = 20,
) -> AlgebraicReconstruction:
    r"""Decodes the training images of a ReLU MLP from its weights before and after.

    For one output, hidden layers $a_1 = \mathrm{relu}(x W_1 + b_1)$,
    $a_2 = \mathrm{relu}(a_1 W_2 + b_2)$ and output weights w,

    $$\Delta W_2 = \sum_i \alpha_i a_{1,i} (w \circ s_i)^\top, \quad
      \Delta b_2 = \sum_i \alpha_i (w \circ s_i), \quad
      s_i = 1[a_{1,i} W_2 + b_2 > 0].$$

    1. $G = [\Delta W_2; \Delta b_2] / w = U S$, with $u_i = \alpha_i (a_{1,i}, 1)$ and
       binary S. The rank of G is N.
    2. The binary rows in its row space are the gates (`gates.find_gate_rows`).
    3. $U = G S^+$, weighted by w: its last row is alpha, the rest gives $a_{1,i}$.
    4. $\Delta W_1 = \sum_i \alpha_i x_i b_i^\top$ with
       $b_i = 1[a_{1,i} > 0] \circ (W_2 (w \circ s_i))$ known, and
       $x_i W_1 + b_1 = a_{1,i}$ on active units: least squares for $x_i$, each
       equation weighted by its noise.

    With more hidden layers steps 1 to 3 read the last one, and step 4 repeats.

    Args:
      params_0: `{"Dense_0": {"kernel", "bias"}, ...}` before training, biases included;
        standard parametrization.
      params_t: the same after training.
      key: typed key of the random starts.
      image_shape: (height, width, depth) in pixels.
      num_images: N; None reads it from the rank.
      auxiliary: images of the same domain, preprocessed alike, as further starts.
      num_starts: starts per round, by default 128 to 1,024, growing with N.
      max_rounds: rounds of starts at most.

    Raises:
      ValueError: not a ReLU MLP of two or more hidden layers with trained biases,
        parameters that differ in structure, are equal or not finite, a rank that noise
        hides, or fewer usable units than images.
    """
    _checks.at_least(1, max_rounds=max_rounds)
    if num_images is not None:
        _checks.at_least(1, num_images=num_images)
    if num_starts is not None:
        _checks.at_least(2, num_starts=num_starts)
    layers = _layers(params_0, params_t)
    pixels = int(np.prod(image_shape))
    if len(layers.kernels[0]) != pixels:
        raise ValueError(
            f"image_shape={image_shape} has {pixels} values but the first layer takes "
            f"{len(layers.kernels[0])}: give the shape of the training images."
        )
    if auxiliary is not None:
        _checks.finite(auxiliary=auxiliary)
        if tuple(auxiliary.shape[1:]) != tuple(image_shape):
            raise ValueError(
                f"auxiliary images have shape {auxiliary.shape[1:]} but image_shape is "
                f"{image_shape}: preprocess them like the training images."
            )
    if layers.kernels[-1].shape[1] != 1:
        found = several_outputs.decode(
            layers,
            key,
            num_images=num_images,
            auxiliary=auxiliary,
            num_starts=num_starts,
            max_rounds=max_rounds,
        )
        return _result(
            found.decoded,
            found.residuals,
            image_shape,
            layers.kernels[0].dtype,
            found.tolerance,
            found.rank,
            found.gap,
            found.rounds,
        )
    return _one_output(
        layers, key, image_shape, num_images, auxiliary, num_starts, max_rounds
    )


def count_images(params_0: Params, params_t: Params, *, key: Array) -> int | None:
    """Returns the size of the training set, read from the first layer's change.

    Its gradients are sums of outer products with the images, under any dynamics of
    full-batch training: its rank is their number. None where the rank is not clear:
    more images than pixels or units, or images that depend on each other.

    Args:
      params_0: of `models.MLP` before training.
      params_t: after training.
      key: typed key.
    """
    change = params_t["Dense_0"]["kernel"] - params_0["Dense_0"]["kernel"]
    return gates_lib.count_inputs(change, key=key)


def _one_output(
    layers, key, image_shape, num_images, auxiliary, num_starts, max_rounds
) -> AlgebraicReconstruction:
    """Decodes a network with one output.

    Images whose gate rows were not found are guessed from the column space that is
    left, with residual 1: starts for an optimiser, never certified.
    """
    key_rank, key_starts, key_span = jax.random.split(key, 3)
    dtype = layers.kernels[0].dtype
    last = len(layers.kernels) - 2
    for features in (layers, _midpoint(layers)):
        layers = features
        out = layers.kernels[-1][:, 0].astype(np.float64)
        columns = _usable(out, num_images)
        change = np.concatenate(
            [layers.kernel_changes[last], layers.bias_changes[last][None]]
        )[:, columns]
        factors = gates_lib.factorize(
            jnp.asarray(change / out[columns], dtype),
            key=key_rank,
            num_images=num_images,
        )
        if factors.gap > gates_lib.CLEAR_GAP:
            break
    first_change = jnp.asarray(layers.kernel_changes[0], dtype)
    if num_images is None and factors.gap <= gates_lib.CLEAR_GAP:
        # Moving features blur the rank of the gates, not that of the first layer.
        num_images = gates_lib.count_inputs(
            first_change, key=jax.random.fold_in(key_rank, 1)
        )
        if num_images is not None:
            _usable(out, num_images)
            factors = gates_lib.factorize(
                jnp.asarray(change / out[columns], dtype),
                key=key_rank,
                num_images=num_images,
            )
    rank = factors.right.shape[0]
    if num_images is None and factors.gap < 2.0:
        raise ValueError(
            f"The widest gap in the singular values is {factors.gap:.2f}, after {rank} "
            f"of {len(columns)}: the rank cannot be told from noise; give num_images "
            f"if it is known, else {_OTHER}."
        )
    # Squared relative error of the weakest direction of the row space.
    noise = 1.0 / factors.gap**2
    gate_tolerance = float(np.clip(16.0 * noise, 1e-4, 0.25))
    tolerance = float(np.clip(factors.gap**-1 * 2.0, 1e-2, 0.2))

    kernels = [jnp.asarray(k, dtype) for k in layers.kernels[:last]]
    biases = [jnp.asarray(b, dtype) for b in layers.biases[:last]]
    top = jnp.asarray(layers.kernels[last][:, columns], dtype)
    top_bias = jnp.asarray(layers.biases[last][columns], dtype)

    flat = None
    if auxiliary is not None:
        flat = jnp.asarray(auxiliary, dtype).reshape(len(auxiliary), -1)
    rows = gates_lib.find_gate_rows(
        factors,
        functools.partial(layer_inversion.activations_of, kernels, biases),
        functools.partial(layer_inversion.gates_of, top, top_bias),
        first_change,
        key=key_starts,
        tolerance=gate_tolerance,
        same=0.999 if gate_tolerance < 1e-3 else 0.85,
        num_starts=num_starts or int(np.clip(2 * rank, 128, 1024)),
        max_rounds=max_rounds,
        auxiliary=flat,
    )
    span = None
    if 2 * rank < len(first_change):
        left = gates_lib.factorize(first_change, key=key_span, num_images=rank).left
        span = np.asarray(left, np.float64)
    # What moved during training left the binary rows: their projections are the
    # gates averaged over the path. Without movement nothing changes.
    right = np.asarray(factors.right, np.float64)
    soft = rows.rows.astype(np.float64)
    if factors.gap < gates_lib.CLEAR_GAP:
        soft = (soft @ right.T) @ right
    decoded = layer_inversion.peel(
        layers, soft * out[columns], columns, span=span, dtype=dtype
    )
    contradicted = 2.0 * np.mean(decoded.gates[:, columns] != rows.rows, axis=1)
    residuals = np.max(
        [
            np.sqrt(rows.residuals),
            contradicted,
            decoded.forward_residuals,
            decoded.span_residuals,
        ],
        axis=0,
        initial=0.0,
    )
    residuals = np.where(np.isfinite(residuals), residuals, np.inf)
    guessed = 0
    if last == 1 and 0 < len(soft) < rank:
        guesses, _ = gates_lib.leftover(factors, soft, key=key_span)
        decoded = layer_inversion.extend(layers, decoded, guesses, span=span)
        guessed = len(guesses)
        residuals = np.concatenate([residuals, np.ones(guessed)])
    return _result(
        decoded,
        residuals,
        image_shape,
        dtype,
        tolerance,
        rank,
        factors.gap,
        rows.rounds,
        guessed=guessed,
    )


def _result(
    decoded, residuals, image_shape, dtype, tolerance, rank, gap, rounds, *, guessed=0
) -> AlgebraicReconstruction:
    """Sorts images by residual and says what was found."""
    order = np.argsort(residuals, kind="stable")
    certified = residuals[order] < tolerance
    images = decoded.inputs[order].reshape(-1, *image_shape)
    count = int(certified.sum())
    message = f"{count} of {rank} images certified"
    found = len(order) - guessed
    if found < rank:
        message += f", {rank - found} not found in {rounds} rounds"
        message += f" ({guessed} guessed as starts for an optimiser)" if guessed else ""
    if count < found:
        message += f", {found - count} decoded but not certified"
    if gap < 20.0:
        message += f"; the gates' rank has a faint gap of {gap:.1f}"
    return AlgebraicReconstruction(
        images=jnp.asarray(images, dtype),
        duals=jnp.asarray(decoded.duals[order], dtype),
        activations=jnp.asarray(decoded.activations[order], dtype),
        gates=jnp.asarray(decoded.gates[order]),
        residuals=jnp.asarray(residuals[order], dtype),
        certified=jnp.asarray(certified),
        tolerance=tolerance,
        estimated_num_images=rank,
        rank_gap=gap,
        num_rounds=rounds,
        message=message + ".",
    )
