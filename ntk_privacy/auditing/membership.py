r"""Was this image trained on? How much of the change its gradients explain.

Training moves weights along gradients of the training images' outputs. Private and
unseen images together explain the change by their gradients $\nabla_\theta f_k(x)$
after training (of one gradient, before it); the score of an image is the share of the
squared change that is lost without it, and that no other image makes up for. Rates are
told as Carlini et al., S&P 2022 (arXiv:2112.03570) tell them: true positives at few
false ones.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks, _tree
from ntk_privacy._types import Params
from ntk_privacy.auditing import epsilon
from ntk_privacy.auditing.epsilon import LowerBound
from ntk_privacy.kernels import empirical, structured
from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction import Evidence
from ntk_privacy.reconstruction.verdict import told_bound

__all__ = ["MOST_ROWS", "Membership", "Rate", "explained_shares", "measured"]

FALSE_POSITIVES = (0.01, 0.001)
"""At which rates are told, where there are images enough to tell them."""

MOST_ROWS = 4000
"""Images times outputs: their products are in memory at once."""

_RIDGE = 1e-3  # of the mean squared gradient


class Rate(NamedTuple):
    """A point of the curve.

    Attributes:
      false_positives: that are asked for, as a share of unseen images.
      true_positives: share of members above the threshold; None where so few unseen
        images cannot tell.
    """

    false_positives: float
    true_positives: float | None


class Membership(NamedTuple):
    """Scores of private and unseen images, and the attack that thresholds them.

    Attributes:
      members: share of the change lost without each private image; (n,).
      others: by each unseen one; (k,).
      false_positives, true_positives: the curve, from (0, ...) to (1, 1).
      area: under it; 0.5 is chance.
      rates: at 1% and 0.1% false positives.
      told: what so many images can tell, in a sentence.
      epsilon: a lower bound on that of differential privacy.
    """

    members: Float[np.ndarray, " n"]
    others: Float[np.ndarray, " k"]
    false_positives: Float[np.ndarray, " t"]
    true_positives: Float[np.ndarray, " t"]
    area: float
    rates: tuple[Rate, ...]
    told: str
    epsilon: LowerBound


def explained_shares(
    evidence: Evidence, images: Float[Array | np.ndarray, "n h w d"]
) -> Float[np.ndarray, " n"]:
    """Returns the share of the squared change that each image alone explains.

    Args:
      evidence: with the weights before training, or a gradient.
      images: members and others together, in the units that the network takes; with
        all outputs at most `MOST_ROWS` gradients.

    Raises:
      ValueError: the weights before training are not known, nothing changed, or there
        are too many images.
    """
    evidence.needs("membership", "params_0")
    count = len(images) * evidence.num_outputs
    if not 1 <= count <= MOST_ROWS:
        raise ValueError(
            f"{len(images)} images of {evidence.num_outputs} outputs have {count} "
            f"gradients: give from 1 to {MOST_ROWS // evidence.num_outputs} images."
        )
    change = evidence.step
    if change is None:
        change = _tree.sub(evidence.params_t, evidence.params_0)
    if not float(_tree.largest(change)):
        raise ValueError("The weights did not change: they hold nothing of the images.")
    params = evidence.params_0 if evidence.is_gradient else evidence.params_t
    x = jnp.asarray(images, jax.tree.leaves(params)[0].dtype)
    gram, along = (
        np.array(a, np.float64) for a in _products(evidence, params, change, x)
    )
    gram = gram.transpose(0, 2, 1, 3).reshape(count, count)
    gram[np.diag_indices(count)] += max(_RIDGE * np.trace(gram) / count, 1e-300)
    inverse = np.linalg.inv(gram)
    duals = (inverse @ along.ravel()).reshape(along.shape)
    outputs = along.shape[1]
    blocks = [
        inverse[i : i + outputs, i : i + outputs] for i in range(0, count, outputs)
    ]
    lost = [d @ np.linalg.solve(b, d) for d, b in zip(duals, blocks, strict=True)]
    return np.asarray(lost) / float(_tree.squared_norm(change))


def _products(evidence: Evidence, params: Params, change: Params, x: Array):
    """Returns products of all gradients, (n, n, c, c), and theirs with the change."""
    network = evidence.network
    if isinstance(network, MLP):
        apply_fn = network.apply_fn
        gram = structured.ntk(network, params, x, trace_outputs=False)
    else:
        apply_fn = network
        gram = empirical.ntk(apply_fn, params, x, trace_outputs=False)
    change = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), change, params)
    along = jax.jvp(lambda p: apply_fn(p, x), (params,), (change,))[1]
    return gram, along


def measured(
    members: Float[np.ndarray, " n"], others: Float[np.ndarray, " k"]
) -> Membership:
    """Returns the curve of the attack that calls high scores members.

    Args:
      members: scores of images that were trained on.
      others: of images that were not.

    Raises:
      ValueError: one of them is empty or holds a NaN.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.auditing import membership
      >>> found = membership.measured(np.asarray([0.9, 0.8]), np.linspace(0, 0.5, 200))
      >>> found.area, found.rates[0].true_positives, found.rates[1].true_positives
      (1.0, 1.0, None)
    """
    _checks.at_least(1, num_members=len(members), num_others=len(others))
    _checks.finite(members=members, others=others)
    scores = np.unique(np.concatenate([members, others]))[::-1]
    # A tie is called alike: one point for each score that occurs.
    true = np.asarray([0.0, *(np.mean(members >= s) for s in scores)])
    false = np.asarray([0.0, *(np.mean(others >= s) for s in scores)])
    area = float(np.trapezoid(true, false))
    rates = tuple(_rate(true, false, at, len(others)) for at in FALSE_POSITIVES)
    return Membership(
        *(np.asarray(members), np.asarray(others), false, true, area, rates),
        told=_told(true, false, len(members), len(others), rates),
        epsilon=epsilon.lower_bound(np.asarray(members), np.asarray(others)),
    )


def _rate(true: np.ndarray, false: np.ndarray, at: float, count: int) -> Rate:
    if count * at < 1:
        return Rate(at, None)
    return Rate(at, float(np.max(true[false <= at])))


def _told(
    true: np.ndarray, false: np.ndarray, n: int, k: int, rates: tuple[Rate, ...]
) -> str:
    free = round(float(np.max(true[false == 0])) * n)
    told = (
        f"{free} of {n} private images score above all {k} unseen ones. So many unseen "
        f"images tell false-positive rates in steps of {100 / k:.3g}%"
    )
    hidden = [rate.false_positives for rate in rates if rate.true_positives is None]
    if hidden:
        names = " and ".join(f"{100 * rate:g}%" for rate in hidden)
        most = round(1 / min(hidden))
        told += f"; true positives at {names} are not known from them: give {most}"
    # Birnbaum and Klose, Annals of Mathematical Statistics 28 (1957).
    spread = told_bound(0.5 / np.sqrt(min(n, k)))
    return f"{told}. The standard error of the area is at most {spread}."
