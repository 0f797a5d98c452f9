"""Means that a few poisoned representations cannot move far.

Each is, or makes, a `MeanFn`: (n, d) representations of one class to (d,). `rate` is
the share of poison in that class: poisons that make up 1% of ten equal classes and all
lie in one of them have rate 0.1 there (`class_level`). What is dropped is
ceil(3 rate n): about 2 rate n lie above the threshold in theory, the rest is margin.

Source: the paper of RDM-DC, algorithms 4 and 5, and its baselines. `quantum_entropy`:
Dong, Hopkins & Li, NeurIPS 2019 (arXiv:1906.11366); as a defence against poison,
without the covariance that is estimated there, Hayase et al., ICML 2021 (SPECTRE,
arXiv:2104.11315).

Each is the same at every scale of the representations. A NaN or an infinity among them
is refused (ValueError) where there are numbers; under jit, where nothing can be raised,
the mean is NaN and nothing counts as kept.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ntk_privacy import _checks, _linalg
from ntk_privacy._linalg import gram

__all__ = [
    "MeanFn",
    "Selection",
    "calibrated",
    "class_level",
    "mean",
    "median",
    "num_dropped",
    "poisoned_deviation",
    "quantum_entropy",
    "trimmed",
    "truncated",
]

MeanFn = Callable[[Float[Array, "n d"]], Float[Array, " d"]]
"""`(representations) -> mean`, hashable."""


def class_level(rate: float, num_classes: int) -> float:
    """Returns the rate within one class if all poison lies there.

    Args:
      rate: share of poison in the whole training set.
      num_classes: classes of equal size.

    Raises:
      ValueError: the rate within the class is outside of [0, 1/3).
    """
    _checks.at_least(1, num_classes=num_classes)
    _check_rate(rate * num_classes)
    return rate * num_classes


def _check_rate(rate: float) -> None:
    if not 0 <= rate < 1 / 3:
        raise ValueError(
            f"rate={rate} must lie in [0, 1/3): three times that share of a class is "
            "dropped; use the share of poison within one class, such as 0.1."
        )


def num_dropped(num_samples: int, rate: float) -> int:
    """Returns ceil(3 rate n).

    Args:
      num_samples: n.
      rate: share of poison in the class, in [0, 1/3).

    Raises:
      ValueError: the rate is out of range, or nothing would be left.

    Example:
      >>> from ntk_privacy.distillation import robust_mean
      >>> robust_mean.num_dropped(100, 0.1)
      30
    """
    _check_rate(rate)
    # 3 * 0.1 * 10 is above 3 by a rounding error, which is no reason for a fourth.
    dropped = math.ceil(round(3 * rate * num_samples, 9))
    if dropped >= num_samples:
        raise ValueError(
            f"rate={rate} drops {dropped} of {num_samples} samples: give more samples "
            "of the class, or a lower rate."
        )
    return dropped


def _check(features: Array) -> None:
    shape, dtype = np.shape(features), getattr(features, "dtype", None)
    floating = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    if len(shape) != 2 or not all(shape) or not floating:
        raise ValueError(
            f"features has shape {shape} and dtype {dtype or type(features).__name__}: "
            "give a row of floating-point numbers for each sample, (n, d)."
        )
    if _checks.concrete(features):
        _checks.finite_data(features=features)


def _scaled(a: Array) -> Array:
    """Returns numbers over their largest, whose squares stay within any dtype."""
    largest = jnp.max(jnp.abs(a), initial=0)
    return a / jnp.where(largest == 0, 1, largest)


def _centred(features: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Returns what lies between features and their mean, the largest number 1."""
    scaled = _scaled(features)
    # Again: they may lie far from zero and near one another.
    return _scaled(scaled - jnp.mean(scaled, axis=0, keepdims=True))


def mean(features: Float[Array, "n d"]) -> Float[Array, " d"]:
    """The plain mean, that of DM.

    Args:
      features: one row per image.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.distillation import robust_mean
      >>> print(robust_mean.mean(jnp.array([[0.0, 2.0], [2.0, 4.0]])))
      [1. 3.]
    """
    _check(features)
    return jnp.mean(features, axis=0)


def median(features: Float[Array, "n d"]) -> Float[Array, " d"]:
    """Median of each dimension; of an even number the mean of the middle two.

    Args:
      features: one row per image.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.distillation import robust_mean
      >>> print(robust_mean.median(jnp.array([[0.0], [2.0], [99.0]])))
      [2.]
    """
    _check(features)
    return jnp.median(_nan_everywhere(features), axis=0)


def _nan_everywhere(features: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Returns the features, or NaN alone if one is not finite: none hides by order."""
    return jnp.where(jnp.all(jnp.isfinite(features)), features, jnp.nan)


def _matvec(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class Selection:
    """A mean that drops the highest scores: what its kinds share.

    Attributes:
      rate: share of poison in the class.
    """

    rate: float

    def __post_init__(self):
        _check_rate(self.rate)

    def scores(self, features: Float[Array, "n d"]) -> Float[Array, " n"]:
        """One number per row, high where it looks like poison."""
        raise NotImplementedError

    def kept(self, features: Float[Array, "n d"]) -> Bool[Array, " n"]:
        """Which rows enter the mean."""
        _check(features)
        keep = len(features) - num_dropped(len(features), self.rate)
        scores = self.scores(features)
        chosen = jnp.zeros(len(features), bool).at[jnp.argsort(scores)[:keep]].set(True)
        # One NaN is in the mean, and so in the scores: no order can be trusted.
        return chosen & jnp.all(jnp.isfinite(scores))

    def __call__(self, features: Float[Array, "n d"]) -> Float[Array, " d"]:
        """Returns the mean of what is kept."""
        kept = self.kept(features).astype(features.dtype)
        # Nothing kept: 0 / 0, and NaN it is.
        return _matvec(kept, _nan_everywhere(features)) / jnp.sum(kept)


@dataclasses.dataclass(frozen=True)
class _Calibrated(Selection):
    num_iterations: int
    seed: int

    def scores(self, features):
        d = features.shape[1]
        centred = _centred(features)
        # A constant of the program: nothing to draw at every step.
        start = np.random.default_rng(self.seed).normal(size=d)

        def step(v, _):
            # The covariance, d x d, is never formed; its scale does not matter.
            v = _matvec(_matvec(centred, v), centred)
            norm = jnp.linalg.norm(v)
            return v / jnp.where(norm == 0, 1, norm), None

        v = jnp.asarray(start, features.dtype)
        v, _ = jax.lax.scan(step, v, None, length=self.num_iterations)
        return jnp.abs(_matvec(centred, v))


def calibrated(
    *, rate: float = 0.1, num_iterations: int = 10, seed: int = 0
) -> _Calibrated:
    """Drops what lies farthest along the top eigenvector of the covariance (RDM-DC).

    Args:
      rate: share of poison in the class, in [0, 1/3).
      num_iterations: of the power method, at least 5.
      seed: of its first vector.

    Raises:
      ValueError: an argument is out of range; when called, that too few samples are
        left.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.distillation import robust_mean
      >>> clean = jnp.linspace(-1, 1, 36).reshape(18, 2)
      >>> features = jnp.concatenate([clean, jnp.full((2, 2), 50.0)])  # poison
      >>> mean_fn = robust_mean.calibrated(rate=0.1)
      >>> bool(abs(mean_fn(features)).max() < 1)
      True
    """
    _checks.at_least(5, num_iterations=num_iterations)
    return _Calibrated(rate, num_iterations, seed)


@dataclasses.dataclass(frozen=True)
class _Truncated(Selection):
    def scores(self, features):
        return jnp.sum(jnp.square(_centred(features)), axis=1)


def truncated(*, rate: float = 0.1) -> _Truncated:
    """Drops what lies farthest from the mean.

    Args:
      rate: share of poison in the class, in [0, 1/3).

    Raises:
      ValueError: as `calibrated`.
    """
    return _Truncated(rate)


@dataclasses.dataclass(frozen=True)
class _QuantumEntropy(Selection):
    sharpness: float

    def scores(self, features):
        # Eigenvectors of n x n have those of the d x d covariance as their other half.
        centred = _centred(features)
        if jnp.finfo(centred.dtype).bits < 32:  # in which nothing is decomposed
            centred = centred.astype(jnp.float32)
        energies, vectors = jnp.linalg.eigh(gram(centred))
        top = energies[-1]
        share = energies / jnp.where(top == 0, 1, top)
        weights = energies * jnp.exp(self.sharpness * (share - 1))
        return _matvec(jnp.square(vectors), weights)


def quantum_entropy(*, rate: float = 0.1, sharpness: float = 4.0) -> _QuantumEntropy:
    r"""Drops what is large along all directions of large variance, not the top one.

    The score is $r^\top \exp(\alpha \Sigma / \|\Sigma\|) r$ for centred r. It is the
    choice of the literature after the top eigenvector, which poison of several
    directions evades: at $\alpha = 0$ it is `truncated`, as $\alpha$ grows it tends to
    the exact form of `calibrated`.

    Args:
      rate: share of poison in the class, in [0, 1/3).
      sharpness: alpha (dimensionless), at least 0; 4 in SPECTRE.

    Raises:
      ValueError: as `calibrated`.
    """
    _checks.at_least(0, sharpness=sharpness)
    return _QuantumEntropy(rate, sharpness)


@dataclasses.dataclass(frozen=True)
class _Trimmed:
    rate: float

    def __post_init__(self):
        _check_rate(self.rate)

    def __call__(self, features: Float[Array, "n d"]) -> Float[Array, " d"]:
        _check(features)
        n = len(features)
        side = num_dropped(n, self.rate) // 2
        order = jnp.sort(_nan_everywhere(features), axis=0)
        return jnp.mean(order[side : n - side], axis=0)


def trimmed(*, rate: float = 0.1) -> _Trimmed:
    """Drops the largest and the smallest values of each dimension.

    Args:
      rate: share of poison in the class, in [0, 1/3); half of what is dropped, rounded
        down, goes on each side.

    Raises:
      ValueError: as `calibrated`.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.distillation import robust_mean
      >>> features = jnp.array([[0.0], [1.0], [2.0], [3.0], [99.0]])
      >>> print(robust_mean.trimmed(rate=0.2)(features))
      [2.]
    """
    return _Trimmed(rate)


def poisoned_deviation(
    features: Float[Array, "n d"],
    is_poison: Bool[Array, " n"],
    kept: Bool[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Returns what poison adds to a mean: the norm of its sum over the number kept.

    Args:
      features: representations, best centred on the mean of the clean ones, so that
        only the poison's excess counts.
      is_poison: which rows are poison.
      kept: which rows enter the mean, such as `calibrated(rate=0.1).kept(features)`;
        all if None.
    """
    chosen = jnp.ones_like(is_poison) if kept is None else kept
    poison = (is_poison & chosen).astype(features.dtype)
    count = jnp.sum(chosen.astype(features.dtype))
    return _linalg.norm(_matvec(poison, features)).reshape(()) / count
