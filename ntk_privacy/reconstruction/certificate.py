r"""What decoded images explain of a weight change, and how far each can be off.

Images and duals predict the change of every parameter,
$\sum_i \alpha_i \nabla_\theta f_{\theta_0}(x_i)$, by a forward pass and a backward pass
that know nothing of how the images were found. In layer k the prediction is a sum
of rank-one matrices $\sum_i p_i q_i^\top$, with $p_i = (a_{k,i}, 1)$ the input of the
layer and $q_i$ the signal that reaches its output. Let $R_k$ be what it leaves of the
change. With $\tilde q_i$ the dual basis of the $q_i$, a disturbance E of the change
moves $p_i$ by $E \tilde q_i$, so by at most $\|E\|_2 \|\tilde q_i\|$. Images are fitted
to few directions of E; the rest of it stays in $R_k$, and with a margin for what they
absorb, which was measured and not proved, states the error of an image whatever E
comes from: rounding, noise, moving features, weight decay.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize

from ntk_privacy.reconstruction import label_evidence, layer_inversion, low_rank
from ntk_privacy.reconstruction.verdict import Verdict, told_bound

__all__ = ["Judgement", "Weighed", "judge", "weigh"]

# Of the bound: for the part of a disturbance that the images themselves absorb.
_MARGIN = 3.0
# Units whose preactivation is below this share of the image's own are as likely open
# as closed: the change decides.
_AMBIGUOUS = 0.02
_STEPS = 4
# Residuals below which images are weighed: the first is generous, the others leave out
# what spoils the rest.
_ADMITTED = (0.25, 1e-2, 1e-3)
# Over the number of hidden units: relative distance below which images share all gates
# as likely as not, and show as one: their mean weighted by duals, of either sign, so up
# to the edge of the region away.
_REGION = 10.0
# Of a column of what is left, over the median: a gate of it may still be wrong.
_STANDS_OUT = 10.0
# Share of the root mean square below which a unit is neither open nor closed.
_BLURRED = 1e-3
# Share of the change below which images are no explanation of it.
_EXPLAINED = 0.5


class Weighed(NamedTuple):
    """What a set of images explains, and the error bars of its members.

    Attributes:
      errors: bound on the relative error of each image.
      explained: share of the squared norm of the change of all parameters.
      output_rest: change of each output bias that no image accounts for; 0 if frozen.
    """

    errors: Float[np.ndarray, " m"]
    explained: float
    output_rest: Float[np.ndarray, " c"]


class Judgement(NamedTuple):
    """errors: of all images, inf where no bound. certified: which. verdict: of all."""

    errors: Float[np.ndarray, " m"]
    certified: Bool[np.ndarray, " m"]
    verdict: Verdict


def _leading(
    rest: Float[np.ndarray, "rows columns"], count: int
) -> tuple[float, Float[np.ndarray, "columns count"]]:
    """Returns singular value `count` (from 0) and the right vectors before it."""
    size = min(count + 4, min(rest.shape))
    y = np.random.default_rng(0).standard_normal((rest.shape[1], size))
    y = y.astype(rest.dtype)
    for _ in range(_STEPS):
        y = np.linalg.qr(rest.T @ (rest @ y))[0]
    _, values, right = np.linalg.svd(rest @ y, full_matrices=False)
    value = float(values[count]) if count < len(values) else 0.0
    return value, (y @ right[:count].T).astype(np.float64)


def _dual_norms(
    q: Float[np.ndarray, "m columns"], others: Float[np.ndarray, "columns f"]
) -> Float[np.ndarray, " m"]:
    """Norms of the dual basis of `q` that vanishes on `others`."""
    q = q - (q @ others) @ others.T
    size = np.maximum(np.linalg.norm(q, axis=1), 1e-300)
    unit = q / size[:, None]
    values, vectors = np.linalg.eigh(unit @ unit.T)
    values = np.maximum(values, 1e-15)
    return np.sqrt(np.sum(vectors**2 / values, axis=1)) / size


def _decide(rest, p, q, signal, gates, pre) -> None:
    """Sets the gates of units near zero to what the change says; in place.

    A forward pass knows an activation up to its error, so a unit this near to zero has
    a random gate; the wrong one leaves a whole column of the change unexplained. Where
    two images nearly agree and show as one, the gate between them counts in part. What
    a column tells, images that are alike share: one that still stands out is asked for
    all its gates at once.
    """
    near = np.abs(pre) < _AMBIGUOUS * np.sqrt(np.mean(pre**2, axis=1, keepdims=True))
    near &= signal != 0
    sizes = np.sum(p**2, axis=1)
    for i in range(len(p)):
        units = np.flatnonzero(near[i])
        fit = (p[i] @ rest[:, units]) / (signal[i, units] * sizes[i])
        step = np.clip(gates[i, units] + fit, 0.0, 1.0) - gates[i, units]
        gates[i, units] += step
        step *= signal[i, units]
        rest[:, units] -= np.outer(p[i], step)
        q[i, units] += step
    left = np.linalg.norm(rest, axis=0)
    for unit in np.flatnonzero(left > _STANDS_OUT * np.median(left)):
        who = np.flatnonzero(near[:, unit])
        if len(who) < 2:
            continue
        columns = (p[who] * signal[who, unit, None]).T.astype(np.float64)
        column = rest[:, unit].astype(np.float64)
        if not (np.isfinite(columns).all() and np.isfinite(column).all()):
            continue
        now = np.clip(gates[who, unit].astype(np.float64), 0.0, 1.0)
        step = optimize.lsq_linear(columns, column, (-now, 1 - now)).x
        gates[who, unit] += step
        rest[:, unit] -= columns @ step
        q[who, unit] += signal[who, unit] * step


def weigh(
    layers: layer_inversion.Layers,
    inputs: Float[np.ndarray, "m d"],
    duals: Float[np.ndarray, "m c"],
    *,
    missing: int = 0,
) -> Weighed:
    """Explains the change by images and bounds how far each is off.

    Args:
      layers: of the network, with the features that decoding used.
      inputs: flat images, one at least.
      duals: one per image and output.
      missing: images known to be left out; each may own one direction of every layer.
    """
    dtype = layers.kernels[0].dtype
    acts, pres = [inputs.astype(dtype)], []
    for kernel, bias in zip(layers.kernels[:-1], layers.biases[:-1], strict=True):
        pres.append(acts[-1] @ kernel + bias)
        acts.append(np.maximum(pres[-1], 0.0))
    total = unexplained = 0.0
    errors = np.zeros(len(inputs))
    output_rest = np.zeros(duals.shape[1])
    signal = duals.astype(dtype)
    for k in range(len(layers.kernels) - 1, -1, -1):
        p, change = acts[k], layers.kernel_changes[k].astype(dtype)
        trained = bool(np.any(layers.bias_changes[k]))
        if trained:
            p = np.concatenate([p, np.ones((len(p), 1), dtype)], 1)
            bias = layers.bias_changes[k][None].astype(dtype)
            change = np.concatenate([change, bias])
        total += float(np.vdot(change, change))
        hidden = k < len(pres)
        gates = (pres[k] > 0).astype(dtype) if hidden else np.ones_like(signal)
        q = signal * gates
        rest = change - p.T @ q
        if hidden:
            _decide(rest, p, q, signal, gates, pres[k])
            value, others = _leading(rest, missing)
            norms = _dual_norms(q.astype(np.float64), others)
            size = np.maximum(np.linalg.norm(acts[k], axis=1), 1e-30)
            errors = np.maximum(errors, value * norms / size)
            if trained:
                # The bias alone gives an image its scale.
                row = float(np.linalg.norm(rest[-1])) / np.sqrt(rest.shape[1])
                errors = np.maximum(errors, 3.0 * row * norms)
        elif trained:
            output_rest = rest[-1].astype(np.float64)
        unexplained += float(np.vdot(rest, rest))
        signal = q @ layers.kernels[k].T
    return Weighed(_MARGIN * errors, 1.0 - unexplained / total, output_rest)


def _mixed(
    layers: layer_inversion.Layers, inputs: Float[np.ndarray, "m d"], apart: float
) -> Bool[np.ndarray, " m"]:
    """Returns which images share every gate with another one that is not near.

    With several outputs such images keep a direction each, but any two mixtures of
    them explain the change as well as they do: positive multiples of one image, where
    initial biases are zero.

    Args:
      layers: of the network, with the features that decoding used.
      inputs: flat images.
      apart: relative distance up to which mixtures are no matter.
    """
    x, alike = inputs, np.ones((len(inputs), len(inputs)), bool)
    pairs = list(zip(layers.kernels, layers.biases, strict=True))
    for kernel, bias in pairs[:-1]:
        pre = x @ kernel.astype(np.float64) + bias
        clear = np.abs(pre) > _BLURRED * np.sqrt(np.mean(pre**2, 1, keepdims=True))
        opened, closed = clear & (pre > 0), clear & (pre <= 0)
        both = opened.astype(np.float32) @ closed.T.astype(np.float32)
        alike &= both + both.T == 0
        x = np.maximum(pre, 0.0)
    size = np.linalg.norm(inputs, axis=1)
    for i, j in np.argwhere(np.triu(alike, 1)):
        near = np.linalg.norm(inputs[i] - inputs[j]) <= apart * min(size[i], size[j])
        alike[i, j] = alike[j, i] = not near
    np.fill_diagonal(alike, val=False)
    return np.any(alike, axis=1).reshape(-1)


def _distinct_units(layers: layer_inversion.Layers) -> int:
    """Returns how many hidden units no other one opens and closes together with.

    Copies and positive multiples of a unit tell no more images apart than it does.
    """
    total = 0
    for kernel, bias in zip(layers.kernels[:-1], layers.biases[:-1], strict=True):
        units = np.concatenate([kernel, bias[None]]).astype(np.float64)
        units /= np.maximum(np.linalg.norm(units, axis=0), 1e-300)
        probe = np.random.default_rng(0).standard_normal((2, len(units)))
        total += len(np.unique(np.round(probe @ units, 5), axis=1).T)
    return total


def judge(
    found: layer_inversion.Decoding, *, roundoff: float, tolerance: float
) -> Judgement:
    """Bounds the errors of what was decoded, and says what the evidence is worth.

    Args:
      found: by either decoder.
      roundoff: relative precision of the stored weights.
      tolerance: largest error of a certified image.
    """
    count = len(found.residuals)
    errors, explained, best = np.full(count, np.inf), 0.0, None
    used: set[bytes] = set()
    for admitted in _ADMITTED:
        kept = found.residuals < admitted
        if not kept.any() or kept.tobytes() in used:
            continue
        used.add(kept.tobytes())
        missing = found.rank - int(kept.sum())
        if missing and found.gap <= low_rank.CLEAR_GAP:
            missing = 0  # how many are missing is not known either
        weighed = weigh(
            found.layers,
            found.decoded.inputs[kept],
            found.decoded.duals[kept],
            missing=missing,
        )
        explained = max(explained, weighed.explained)
        bounds = np.full(count, np.inf)
        bounds[kept] = np.where(np.isfinite(weighed.errors), weighed.errors, np.inf)
        if best is None or np.sum(bounds <= tolerance) > np.sum(errors <= tolerance):
            errors, best = bounds, weighed
        if np.sum(errors <= tolerance) >= min(found.rank, kept.sum()):
            break
    units = _distinct_units(found.layers)
    floor = _REGION / units
    bounds, errors = errors, np.maximum(errors, floor)
    certified = errors <= tolerance
    whole = certified.sum() == found.rank
    notes = []
    if floor > tolerance and np.any(bounds <= tolerance):
        notes.append(
            f"not certified, for {units} different hidden units tell no images apart "
            f"that are within {floor:.2g} of their norm of each other; a certificate "
            f"takes {math.ceil(_REGION / tolerance)}"
        )
    if certified.any():
        doubted, notes = label_evidence.doubts(
            found.layers, found.decoded.inputs[certified]
        )
        where = np.flatnonzero(certified)[doubted]
        certified[where], errors[where] = False, np.inf
        where = np.flatnonzero(certified)
        where = where[_mixed(found.layers, found.decoded.inputs[where], floor)]
        certified[where], errors[where] = False, np.inf
        if len(where):
            notes.append(
                f"{len(where)} not certified: they share every gate with each other, "
                "as positive multiples of one image do, so that mixtures of them "
                "explain the change as well"
            )
        if whole and best is not None:
            slack = np.abs(found.decoded.duals) * bounds[:, None]
            slack = 10.0 * (slack.sum(0) + roundoff * np.abs(found.layers.biases[-1]))
            if np.any(np.abs(best.output_rest) > slack + 1e-300):
                notes.append(
                    "the output bias moved beyond what these images explain, as where "
                    "an image whose units are all closed (zero, without initial "
                    "biases) was trained on: no weights show it"
                )
    return Judgement(
        errors, certified, _verdict(found, errors, certified, explained, notes)
    )


def _verdict(
    found: layer_inversion.Decoding,
    errors: Float[np.ndarray, " m"],
    certified: Bool[np.ndarray, " m"],
    explained: float,
    notes: list[str],
) -> Verdict:
    """One word for all of it, and the figures that decided."""
    number = int(certified.sum())
    decoded = len(errors)
    least = float(np.min(errors, initial=np.inf))
    share = f"{explained:.6f}" if explained > 0.99 else f"{explained:.2f}"
    why = f"the images explain {share} of the change's squared norm"
    if number:
        word = "exact"
        worst = told_bound(float(errors[certified].max()))
        why = f"{number} of {found.rank} images are within {worst} of their norm"
        why += f" of training images; they explain {share} of the change's squared norm"
    elif not decoded:
        word = "nothing found"
        why = f"no gates were found in {found.rounds} rounds"
    elif explained > _EXPLAINED:
        word = "approximate"
        if not notes:
            why += ", too little to bound the error of any"
            if np.isfinite(least):
                why += f" below {least:.1g}"
    elif found.gap > low_rank.CLEAR_GAP:
        # Gradients at the initial weights leave a clear rank: it speaks for them.
        word = "nothing found"
        why += (
            f", though its rank of {found.rank} is clear: rows were decoded wrongly, "
            "or the initial weights are not those that it began from"
        )
    else:
        word = "assumptions do not hold"
        why += (
            ": the change is no sum of gradients at the initial weights (other initial "
            "weights, another network, features that moved far, weight decay, noise)"
        )
    why += f"; the singular values' gap is {found.gap:.3g}"
    return Verdict(word, "; ".join([why, *notes]) + ".", explained, found.gap, number)
