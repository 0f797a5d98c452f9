r"""Exact reconstruction of a training set by decoding ReLU gates.

Training that stays linear moves a network by $\Delta\theta = \sum_i \alpha_i
\nabla_\theta f_{\theta_0}(x_i)$ (Loo et al., ICLR 2024, arXiv:2302.01428), whether it
has converged or was stopped early. The published attack fits x and alpha by 80,000
optimizer steps. The layers of a ReLU network need no fit: they factorize.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks, _linalg, resume
from ntk_privacy._types import Params
from ntk_privacy.method import Method, field
from ntk_privacy.reconstruction import (
    certificate,
    layer_inversion,
    low_rank,
    mlp_layers,
    one_output,
    result,
    several_outputs,
)
from ntk_privacy.reconstruction.algebraic_result import (
    TOLERANCE as TOLERANCE,
)
from ntk_privacy.reconstruction.algebraic_result import (
    AlgebraicReconstruction as AlgebraicReconstruction,
)
from ntk_privacy.reconstruction.algebraic_result import from_arrays, to_arrays
from ntk_privacy.reconstruction.evidence import Evidence, far
from ntk_privacy.reconstruction.verdict import Verdict
from ntk_privacy.resume import Stage, straight

__all__ = [
    "METHOD",
    "TOLERANCE",
    "AlgebraicReconstruction",
    "Config",
    "UndecodableError",
    "as_result",
    "count_images",
    "decode",
    "from_evidence",
    "reconstruct",
]


@_linalg.on_one_thread
def reconstruct(
    params_0: Params,
    params_t: Params,
    *,
    key: Array,
    image_shape: tuple[int, int, int],
    num_images: int | None = None,
    auxiliary: Float[Array | np.ndarray, "k h w d"] | None = None,
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

    What is certified was verified by other means than those that found it, see
    `certificate`. Evidence against the assumptions is a verdict, not an error.

    Args:
      params_0: layers before training, biases included, standard parametrization:
        Flax dicts and states, PyTorch's weight and bias, nested and named at will. The
        order of the layers is read from their names or their shapes.
      params_t: the same after training.
      key: typed key of the random starts.
      image_shape: (height, width, depth) in pixels.
      num_images: N; None reads it from the rank.
      auxiliary: images of the same domain, preprocessed alike, as further starts.
      num_starts: starts per round, by default 128 to 1,024, growing with N.
      max_rounds: rounds of starts at most.

    Raises:
      ValueError: not a ReLU MLP of two or more hidden layers with trained biases,
        parameters that differ in structure, are equal or not finite, or fewer usable
        units than images.

    Example:
      >>> import jax
      >>> import ntk_privacy
      >>> key = jax.random.key(0)
      >>> digits = ntk_privacy.data.load("digits", num_train=4, key=key)
      >>> victim = ntk_privacy.training.victim.train(
      ...     digits.x_train, digits.y_train, width=256, key=key
      ... )
      >>> found = ntk_privacy.reconstruction.algebraic.reconstruct(
      ...     victim.params_0, victim.params_t, key=key, image_shape=(8, 8, 1)
      ... )
      >>> found.estimated_num_images, int(found.certified.sum())
      (4, 4)
    """
    _checks.at_least(1, max_rounds=max_rounds)
    if num_images is not None:
        _checks.at_least(1, num_images=num_images)
    if num_starts is not None:
        _checks.at_least(2, num_starts=num_starts)
    _checks.typed_key(key=key)
    _checks.at_least(1, **{f"image_shape[{i}]": n for i, n in enumerate(image_shape)})
    pixels = int(np.prod(image_shape))
    layers, roundoff = mlp_layers.read(params_0, params_t, pixels=pixels)
    if len(layers.kernels[0]) != pixels:
        raise ValueError(
            f"image_shape={image_shape} has {pixels} values but the first layer takes "
            f"{len(layers.kernels[0])}: give the shape of the training images."
        )
    _check_alive(layers)
    flat = None
    if auxiliary is not None:
        _checks.at_least(1, auxiliary_images=len(auxiliary))
        _checks.finite(auxiliary=auxiliary)
        if tuple(auxiliary.shape[1:]) != tuple(image_shape):
            raise ValueError(
                f"auxiliary images have shape {auxiliary.shape[1:]} but image_shape is "
                f"{image_shape}: preprocess them like the training images."
            )
        dtype = layers.kernels[0].dtype
        flat = jnp.asarray(auxiliary, dtype).reshape(len(auxiliary), -1)
    one = layers.kernels[-1].shape[1] == 1
    try:
        found = (one_output if one else several_outputs).decode(
            layers,
            key,
            num_images=num_images,
            auxiliary=flat,
            num_starts=num_starts,
            max_rounds=max_rounds,
        )
    except low_rank.RankHiddenError as error:
        return _nothing(layers, image_shape, error)
    return _result(found, image_shape, roundoff)


def count_images(params_0: Params, params_t: Params, *, key: Array) -> int | None:
    """Returns the size of the training set, read from the first layer's change.

    Its gradients are sums of outer products with the images, under any dynamics of
    full-batch training: its rank is their number. None where the rank is not clear:
    more images than pixels or units, or images that depend on each other.

    Args:
      params_0: of `models.MLP` before training, in any form that `reconstruct` takes.
      params_t: after training.
      key: typed key.

    Raises:
      ValueError: key is no typed key, or parameters that are not of one MLP.
    """
    _checks.typed_key(key=key)
    layers, _ = mlp_layers.read(params_0, params_t, pixels=None)
    if not np.any(layers.kernel_changes[0]):
        return None
    change = jnp.asarray(layers.kernel_changes[0], layers.kernels[0].dtype)
    return low_rank.count_inputs(change, key=key)


def _check_alive(layers: layer_inversion.Layers) -> None:
    """Raises ValueError unless gradients passed through every hidden layer."""
    for i, change in enumerate(layers.kernel_changes[:-1], 1):
        if not np.any(change):
            raise ValueError(
                f"The kernel of hidden layer {i} did not move: it was frozen, or every "
                f"image is zero, and decoding needs the change of all; "
                f"{mlp_layers.OTHER}."
            )
    units = layers.kernels[-1].shape[0]
    if not np.any(layers.kernels[-1]) or units < 2:
        told = f"{units} unit" if units < 2 else "output weights of zero"
        raise ValueError(
            f"The last hidden layer has {told} before training: gates are read from "
            f"how its units differ; {mlp_layers.OTHER}."
        )


def _nothing(
    layers: layer_inversion.Layers,
    image_shape: tuple[int, int, int],
    error: low_rank.RankHiddenError,
) -> AlgebraicReconstruction:
    """No image, since the rank does not show."""
    dtype = layers.kernels[0].dtype
    units, outputs = layers.kernels[-1].shape
    return AlgebraicReconstruction(
        images=jnp.zeros((0, *image_shape), dtype),
        duals=jnp.zeros((0, outputs), dtype),
        activations=jnp.zeros((0, len(layers.kernels[-2])), dtype),
        gates=jnp.zeros((0, units), bool),
        residuals=jnp.zeros(0, dtype),
        accepted=jnp.zeros(0, bool),
        errors=jnp.zeros(0, dtype),
        certified=jnp.zeros(0, bool),
        tolerance=TOLERANCE,
        estimated_num_images=None,
        rank_gap=error.gap,
        num_rounds=0,
        message=str(error),
        verdict=Verdict("assumptions do not hold", str(error), gap=error.gap),
    )


def _result(
    found: layer_inversion.Decoding,
    image_shape: tuple[int, int, int],
    roundoff: float,
) -> AlgebraicReconstruction:
    """Judges images by what they explain, sorts them and says what was found."""
    judged = certificate.judge(found, roundoff=roundoff, tolerance=TOLERANCE)
    # Certified ones first: these are what a reader takes.
    order = np.lexsort((found.residuals, judged.errors, ~judged.certified))
    dtype = found.layers.kernels[0].dtype
    decoded, most = found.decoded, float(np.finfo(dtype).max)
    # Duals of nothing: what was divided by them is no image.
    kept = [decoded.inputs, decoded.duals, decoded.activations]
    order = order[np.all([_fits(v, most) for v in kept], axis=0)[order]]
    accepted = (found.residuals < found.tolerance) | judged.certified
    residuals, errors = (
        np.where(v > most, np.inf, v) for v in (found.residuals, judged.errors)
    )
    return AlgebraicReconstruction(
        images=jnp.asarray(decoded.inputs[order].reshape(-1, *image_shape), dtype),
        duals=jnp.asarray(decoded.duals[order], dtype),
        activations=jnp.asarray(decoded.activations[order], dtype),
        gates=jnp.asarray(decoded.gates[order]),
        residuals=jnp.asarray(residuals[order], dtype),
        accepted=jnp.asarray(accepted[order]),
        errors=jnp.asarray(errors[order], dtype),
        certified=jnp.asarray(judged.certified[order]),
        tolerance=TOLERANCE,
        estimated_num_images=found.rank,
        rank_gap=found.gap,
        num_rounds=found.rounds,
        message=_message(found, int(judged.certified.sum()), len(order)),
        verdict=judged.verdict,
    )


def _fits(values: np.ndarray, most: float) -> np.ndarray:
    """Which rows a number format holds."""
    return np.all(np.abs(values) <= most, axis=1)


def _message(found: layer_inversion.Decoding, count: int, decoded: int) -> str:
    """What was and what was not decoded."""
    message = f"{count} of {found.rank} images certified"
    rows = len(found.residuals)
    if rows < found.rank:
        message += f", {found.rank - rows} not found in {found.rounds} rounds"
    if decoded < rows:
        message += f", {rows - decoded} beyond all bounds and left out"
    if count < decoded:
        message += f", {decoded - count} decoded but not certified"
    if found.gap < 20.0:
        message += f"; the gates' rank has a faint gap of {found.gap:.1f}"
    return message + "."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How long decoding tries; attributes: see the help of each field."""

    num_starts: int | None = field(
        None, "Random starts per round; none is 128 to 1,024, growing with N."
    )
    max_rounds: int = field(20, "Rounds of starts at most.")

    def __post_init__(self):
        _checks.at_least(1, max_rounds=self.max_rounds)
        if self.num_starts is not None:
            _checks.at_least(2, num_starts=self.num_starts)


class UndecodableError(ValueError):
    """The network is not one that decoding takes; a damaged checkpoint is no such."""


def decode(
    evidence: Evidence,
    config: Config = Config(),
    *,
    key: Array,
    stage: Stage = straight,
) -> AlgebraicReconstruction:
    """Decodes what evidence speaks of, or returns what an earlier process decoded.

    Args:
      evidence: weights before and after, image shape; number of images and auxiliary
        images if they are told.
      config: of the decoding.
      key: typed key of the random starts.
      stage: keeps what was decoded, as "decoded"; it cannot be cut short.

    Raises:
      UndecodableError: see `reconstruct`.
      ValueError: the weights before training are not known, or the checkpoint of an
        earlier process is damaged.
    """
    evidence.needs("algebraic", "params_0")

    def make():
        try:
            found = reconstruct(
                evidence.params_0,
                far(evidence),
                key=key,
                image_shape=evidence.image_shape,
                num_images=evidence.num_images,
                auxiliary=evidence.auxiliary,
                num_starts=config.num_starts,
                max_rounds=config.max_rounds,
            )
        except ValueError as error:
            raise UndecodableError(str(error)) from error
        return to_arrays(found)

    return from_arrays(resume.once(stage, "decoded", make))


def from_evidence(
    evidence: Evidence,
    config: Config = Config(),
    *,
    key: Array,
    stage: Stage = straight,
) -> result.Reconstruction:
    """Decodes; a network that decoding does not take is a result without images.

    Args: see `decode`.

    Raises:
      ValueError: the weights before training are not known, or hold a NaN.

    Example:
      >>> import jax
      >>> from ntk_privacy import data, reconstruction
      >>> from ntk_privacy.training import victim
      >>> key = jax.random.key(0)
      >>> digits = data.load("digits", num_train=4, key=key)
      >>> trained = victim.train(digits.x_train, digits.y_train, width=256, key=key)
      >>> known = reconstruction.evidence.of(trained)
      >>> row = reconstruction.METHODS["algebraic"]
      >>> found = row.run(known, row.configured(), key=key)
      >>> int(found.certified.sum())
      4
    """
    try:
        found = decode(evidence, config, key=key, stage=stage)
    except UndecodableError as error:
        return _undecoded(evidence, str(error))
    return as_result(found)


def as_result(found: AlgebraicReconstruction) -> result.Reconstruction:
    """Returns what was decoded in the form that all methods have.

    Args:
      found: by `decode`.
    """
    return result.Reconstruction(
        images=np.asarray(found.images),
        duals=np.asarray(found.duals)[None],
        losses=np.zeros(0),
        verdict=found.verdict,
        sources=("decoded",) * len(found.images),
        certified=np.asarray(found.certified),
        residuals=np.asarray(found.residuals),
        errors=np.asarray(found.errors),
        estimated_num_images=found.estimated_num_images,
        message=found.message,
        decoded=found,
        kept={
            "activations": np.asarray(found.activations),
            "gates": np.asarray(found.gates),
        },
    )


def _undecoded(evidence: Evidence, reason: str) -> result.Reconstruction:
    """Returns no image, and why."""
    return result.Reconstruction(
        images=np.zeros((0, *evidence.image_shape)),
        duals=np.zeros((1, 0, evidence.num_outputs)),
        losses=np.zeros(0),
        verdict=Verdict("nothing found", reason),
        sources=(),
        message=f"not decoded ({reason})",
        **result.uncertain(0),
    )


def _check(evidence: Evidence, config: Config) -> None:
    del config
    network = evidence.mlp("algebraic")
    if len(network.widths) < 2 or network.parametrization != "standard":
        raise ValueError(
            f"widths={network.widths}, parametrization={network.parametrization!r}: "
            "algebraic takes two or more hidden layers in the standard "
            "parametrisation; use kkt."
        )


METHOD = Method(
    name="algebraic",
    about="Exact decoding of the ReLU gates from the change of the weights; no search.",
    config=Config,
    presets={"fast": Config},
    run=from_evidence,
    check=_check,
    wants=("auxiliary", "num_images"),
)
