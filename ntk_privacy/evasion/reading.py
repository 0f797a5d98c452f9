"""How a model reads: each image by itself, and a random model by several draws.

Attacks put batches together anew as images are done, so an image must be read alike
whatever stands beside it. Batch norm in training mode breaks that, and what an attack
then finds is an image in one company, misread in no other.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _platform
from ntk_privacy.evasion import inputs
from ntk_privacy.evasion.threat_model import Limits

__all__ = ["DRAWS", "draws", "read", "refuse_company", "votes"]

DRAWS = 20
"""Draws of a random model by which an image is judged."""

_FEW = 4
# Of the spread of the logits: less changes no figure; solvers end so.
_SHARE = 1e-3
# Kernels for other batch sizes round otherwise: so many units in the last place.
_UNITS = 16
_TIMES = 8

_MODES = inputs.MODES
_BATCH_NORM = (
    "logits_fn gives an image other outputs when the other images of its batch change, "
    "as batch norm in training mode does: put the model into evaluation mode "
    f"({_MODES})."
)
_PLACE = (
    "logits_fn gives an image other outputs elsewhere in a batch, or in a batch of "
    "another size, as dropout or batch norm in training mode do: put the model into "
    f"evaluation mode ({_MODES})."
)
_UNKEYED = (
    "logits_fn gives other outputs at each call although it takes no key, as dropout "
    f"with random numbers of its own does: put the model into evaluation mode "
    f"({_MODES}), or let it take its random numbers from an argument `key`."
)


@jax.jit
def read(model: Any, x: Float[Array, "n h w c"], key: Array) -> Any:
    """Returns what a model returns, compiled.

    Args:
      model: a pytree that is called with images and a key.
      x: images.
      key: typed key, for a model that is random.
    """
    return model(x, key)


class _Gap(NamedTuple):
    """between: greatest difference of two readings. spread: of logits within one.

    size: of the greatest logit, which rounding is in proportion to.
    """

    between: float
    spread: float
    size: float


def _gap(one: Any, two: Any) -> _Gap:
    """Compares logits up to a constant for each image, which reads nothing."""
    one, two = (np.asarray(z, np.float64) for z in (one, two))
    with np.errstate(invalid="ignore"):
        top = one.max(1, keepdims=True)
        one_, two_ = one - top, two - two.max(1, keepdims=True)
        below = np.where(np.isfinite(one_), -one_, np.nan)
        rows = below[np.isfinite(below).any(1)]
        spread = float(np.nanmedian(rows, 1).max()) if len(rows) else 0.0
        # Classes that are masked out say nothing of the others.
        far = (one_ < -100 * spread) & (two_ < -100 * spread)
        apart = np.where(far | (one_ == two_), 0, np.abs(one_ - two_))
    apart = np.where(np.isnan(one_) & np.isnan(two_), 0, apart)
    between = float(np.where(np.isnan(apart), np.inf, apart).max())
    size = float(np.where(np.isfinite(top), np.abs(top), 0).max())
    return _Gap(between, spread, size)


def _unit(model: Any, x: Array, key: Array) -> float:
    """Returns the coarsest rounding unit among the numbers that a model computes."""
    found = [float(jnp.finfo(x.dtype).eps)]
    # What "default" precision of a product means there: tensor floats, bfloat16.
    products = {"gpu": 2.0**-10, "tpu": 2.0**-7}
    found.append(products.get(_platform.name(), 0.0))

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            for out in equation.outvars:
                dtype = getattr(out.aval, "dtype", None)
                if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                    found.append(float(jnp.finfo(dtype).eps))
            for value in equation.params.values():
                for inner in jax.tree.leaves(
                    value, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
                ):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        walk(inner)

    walk(jax.make_jaxpr(lambda x: model(x, key))(x).jaxpr)
    return max(found)


def _rounding(model: Any, x: Array, key: Array) -> float:
    """Returns how far two programs that read each image by itself are apart."""

    def alone(image):
        return model(image[None], key)[0]

    mapped = jax.jit(lambda x: jax.lax.map(alone, x))(x)
    return _gap(jax.jit(jax.vmap(alone))(x), mapped).between


def _companions(x: Array, limits: Limits) -> Array:
    """Returns other images of the box: mirrored in it, and noise."""
    low, high = limits.low.astype(x.dtype), limits.high.astype(x.dtype)
    mirrored = jnp.clip(low + high - x, low, high)
    noise = jax.random.uniform(jax.random.key(0), x.shape, x.dtype)
    noise = jnp.clip(low + (high - low) * noise, low, high)
    odd = (jnp.arange(len(x), dtype=jnp.int32) % 2 == 1)[:, None, None, None]
    return jnp.where(odd, noise, mirrored)


def refuse_company(
    model: Any,
    x: Float[Array, "n h w c"],
    logits: Float[Array, "n k"],
    limits: Limits,
    key: Array,
    *,
    random: bool,
) -> None:
    """Refuses a model that reads an image by what else is in its batch.

    A few images are read in one program with other companions in their batch, where a
    model that reads each by itself gives the same bits; then in other places, and in
    the batch that was given, where it may round otherwise.

    Args:
      model: `(images, key) -> logits`.
      x: images.
      logits: of the model on all of them at once.
      limits: the box.
      key: typed key.
      random: whether the model draws from the key; then places may differ.

    Raises:
      ValueError: it does, or its outputs are random without a key.
    """
    few, rows, one = _first_reading(model, x, key)
    other = _companions(few, limits)
    half = len(few) // 2
    again = _gap(one, read(model, few, key))
    spread = max(again.spread, _gap(logits, logits).spread)
    least = float(jnp.finfo(logits.dtype).eps) * again.size
    same = max(4 * again.between, _SHARE * spread, least)
    if again.between > max(10 * _SHARE * spread, _UNITS * least):
        raise ValueError(_UNKEYED)
    for kept in (slice(0, half), slice(half, len(few))):
        company = other.at[kept].set(few[kept])
        found = _gap(one[kept], read(model, company, key)[kept])
        if not found.between <= same:
            raise ValueError(_BATCH_NORM)
    if random:
        return
    turned = _gap(one, read(model, few[::-1], key)[::-1])
    whole = _gap(one, logits[rows])
    apart = max(turned.between, whole.between)
    if apart <= same:
        return
    # Rare, so what follows may take its time.
    if _gap(one, jax.jit(lambda x: model(x, key))(few)).between > same:
        # Traced again: numbers of NumPy's are drawn then, and kept by the program.
        raise ValueError(_UNKEYED)
    unit = max(_unit(model, few, key), float(jnp.finfo(logits.dtype).eps))
    rounding = _UNITS * unit * max(spread, again.size)
    if apart > max(same, rounding) and apart > _TIMES * _rounding(model, few, key):
        raise ValueError(_PLACE)


def _first_reading(
    model: Any, x: Array, key: Array
) -> tuple[Array, np.ndarray, Float[Array, "f k"]]:
    """Returns a few images, their rows, and how they are read together."""
    rows = np.linspace(0, len(x) - 1, _FEW).round().astype(np.int32)
    try:
        return x[rows], rows, read(model, x[rows], key)
    except (TypeError, ValueError):
        # A model of one batch size: that of the images.
        if len(x) < 2:
            raise
    rows = np.arange(len(x), dtype=np.int32)
    return x, rows, read(model, x, key)


def draws(key: Array, *, num_draws: int = DRAWS) -> Array:
    """Returns keys by which a random model is judged.

    Args:
      key: typed key.
      num_draws: keys.
    """
    return jax.random.split(jax.random.fold_in(key, 0x5EED), num_draws)


def votes(
    model: Any, images: Float[Array, "n h w c"], y: Int[Array, " n"], keys: Array
) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
    """Returns how many draws misread each image, and whether most of them do.

    That is: another class has more draws than its own. NaN in any draw is misread.

    Args:
      model: `(images, key) -> logits`.
      images: to judge.
      y: labels.
      keys: of the draws.
    """

    def add(carry, key):
        counts, unread = carry
        logits = model(images, key)
        classes = jnp.arange(logits.shape[1], dtype=jnp.int32)
        hit = classes[None] == jnp.argmax(logits, axis=1).astype(jnp.int32)[:, None]
        unread = unread | jnp.any(jnp.isnan(logits), axis=1)
        return (counts + hit.astype(jnp.int32), unread), None

    width = jax.eval_shape(model, images, keys[0]).shape[1]
    start = jnp.zeros((len(y), width), jnp.int32), jnp.zeros(len(y), bool)
    (counts, unread), _ = jax.lax.scan(add, start, keys)
    own = jnp.take_along_axis(counts, y[:, None], axis=1)[:, 0]
    wrong = unread | (jnp.max(counts, axis=1) > own)
    return jnp.where(unread, len(keys), len(keys) - own), wrong
