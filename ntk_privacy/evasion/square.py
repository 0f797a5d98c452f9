"""The Square attack: random search by squares, without gradients.

Source: Andriushchenko et al., ECCV 2020 (arXiv:1912.00049), algorithms 1 to 3, with the
schedule and the margin loss of the released code.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _checks
from ntk_privacy.evasion import losses, pgd, pool, settings
from ntk_privacy.evasion.task import (
    Found,
    LogitsFn,
    Task,
    carry_out,
    confirmed,
)
from ntk_privacy.evasion.threat_model import (
    Adversarial,
    Region,
    ThreatModel,
    distance,
    per_sample,
    project,
    region,
    wide,
)

__all__ = ["METHODS", "attack", "bump", "run", "sides", "walk"]

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCHEDULE = 10000
_TILES = 5
# Thousands of evaluations: programs for few images are soon worth their compilation.
_KEPT = 0.75


def sides(
    num_queries: int,
    shape: tuple[int, int],
    *,
    p_init: _checks.Number = 0.8,
    rescale: bool = False,
    norm: str = "linf",
) -> np.ndarray:
    """Returns the side of the square at each query, in pixels.

    The share of pixels is p_init, halved after queries 10, 50, 200, 500, 1000, 2000,
    4000, 6000 and 8000.

    Args:
      num_queries: queries after the first.
      shape: height and width of images.
      p_init: share of pixels at first.
      rescale: whether the schedule of 10000 queries is stretched onto `num_queries`.
      norm: for l_2 a side is odd and at least 3.
    """
    h, w = shape
    steps = np.arange(num_queries)
    if rescale:
        steps = (steps / num_queries * _SCHEDULE).astype(int)
    halved = np.searchsorted(np.asarray(_HALVINGS), steps, side="left")
    found = np.round(np.sqrt(p_init / 2.0**halved * h * w)).astype(np.int32)
    found = np.maximum(found, 1)
    if norm == "l2":
        found = np.maximum(found, 3)
        found = found + (found % 2 == 0)
        least = min(h, w)
        found = np.minimum(found, least - (least % 2 == 0))
    return np.minimum(found, min(h, w)).astype(np.int32)


def _pyramid(h: int, w: int) -> np.ndarray:
    """Returns concentric rectangles, each 1/k^2 higher than the k-th around it."""
    found = np.zeros((h, w))
    row, column = h // 2, w // 2
    for k in range(max(row, column) + 1):
        top, left = max(row - k, 0), max(column - k, 0)
        found[top : row + k + 1, left : column + k + 1] += 1 / (k + 1) ** 2
    return found / np.linalg.norm(found)


def bump(side: int) -> np.ndarray:
    """Returns two pyramids of opposite sign that fill a square, of norm 1.

    Args:
      side: of the square, in pixels.
    """
    half = side // 2
    found = np.zeros((side, side))
    if half:
        found[:half] = _pyramid(half, side)
    found[half:] = -_pyramid(side - half, side)
    return found / np.linalg.norm(found)


class State(NamedTuple):
    """Of the search, before `point` is evaluated for the i-th time."""

    point: Float[Array, "n h w c"]
    best: Float[Array, "n h w c"]
    margin: Float[Array, " n"]
    success: Bool[Array, " n"]
    queries: Int[Array, " n"]
    i: Int[Array, " n"]


def _signs(key: Array, shape: tuple[int, ...], dtype) -> Array:
    return jax.random.rademacher(key, shape).astype(dtype)


def _window(key: Array, side: Array, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Returns the first row and column: floor(u (h - side)), u uniform."""
    u = jax.random.uniform(key, (2,), jnp.float32)
    room = jnp.asarray(shape, jnp.int32) - side
    row, column = jnp.floor(u * room.astype(jnp.float32)).astype(jnp.int32)
    return row, column


def _inside(corner: tuple[Array, Array], side: Array, shape: tuple[int, int]) -> Array:
    """Returns 1 within the window, (h, w, 1)."""
    rows, columns = (jnp.arange(n, dtype=jnp.int32) - a for n, a in zip(shape, corner,
                     strict=True))  # fmt: skip
    down, right = ((u >= 0) & (u < side) for u in (rows, columns))
    return (down[:, None] & right[None, :])[:, :, None]


def _stripes(key: Array, shape: tuple[int, int, int], dtype) -> Array:
    _, w, c = shape
    return jnp.broadcast_to(_signs(key, (1, w, c), dtype), shape)


def _squares(key: Array, best: Array, allowed: Region, side: Array) -> Array:
    """Returns images with one square moved by 2 eps, a sign for each channel."""
    shape = (best.shape[1], best.shape[2])

    def one(key, side):
        where, sign = jax.random.split(key)
        inside = _inside(_window(where, side, shape), side, shape)
        signs = _signs(sign, (1, 1, best.shape[3]), best.dtype)
        return jnp.where(inside, 2 * signs, 0)

    move = allowed.eps * jax.vmap(one)(key, side)
    return project(best + move, allowed, norm="linf")


def _onto_sphere(move: Array, allowed: Region) -> Array:
    size = per_sample(distance(move, norm="l2").astype(move.dtype))
    return project(
        allowed.centre + allowed.eps * move / (size + losses.tiny(move.dtype)),
        allowed,
        norm="l2",
    )


def _tiles(key: Array, shape: tuple[int, int, int], dtype) -> Array:
    h, w, c = shape
    side = max(min(h, w) // _TILES, 1)
    down, right = h // side, w // side
    tile = jnp.asarray(bump(side) if side > 1 else np.ones((1, 1))).astype(dtype)
    one, two = jax.random.split(key)
    signs = _signs(one, (down, 1, right, 1, c), dtype)
    # Tiles are turned as one column, as all other bumps are.
    turned = jax.random.bernoulli(two, shape=(down, 1, right, 1, 1))
    grid = jnp.where(
        turned, tile.T[None, :, None, :, None], tile[None, :, None, :, None]
    )
    grid = (signs * grid).reshape(down * side, right * side, c)
    top, left = (h - down * side) // 2, (w - right * side) // 2
    move = jnp.zeros(shape, dtype)
    return jax.lax.dynamic_update_slice(move, grid, (top, left, 0))


def _bump(
    key: Array,
    own: Array,
    move: Array,
    side: Array,
    bumps: Array,
    eps: Array,
) -> Array:
    """Returns one move where one window takes the length of another, as a bump.

    Args:
      key: of the windows, for all images; `own` is of this image's signs.
      own: see `key`.
      move: from x.
      side: of the windows.
      bumps: of `table`.
      eps: of the threat model.
    """
    h, w, c = move.shape
    first, second, turn = jax.random.split(key, 3)
    corner = _window(first, side, (h, w))
    inside = _inside(corner, side, (h, w))
    emptied = _inside(_window(second, side, (h, w)), side, (h, w))

    def lengths(move, where):
        kept = jnp.where(where, move, 0) ** 2
        return jnp.sqrt(jnp.sum(kept, axis=(0, 1), keepdims=True))  # (1, 1, c)

    both = lengths(move, inside | emptied)
    left = jnp.maximum(eps**2 - jnp.sum(move**2), 0)
    # bumps[side] fills the top left corner of an image: turned, then moved in place.
    found = jax.lax.dynamic_index_in_dim(bumps, side, keepdims=False)
    found = jnp.where(jax.random.bernoulli(turn), found.T, found)[:h, :w]
    # JAX's stub has tuples of integers alone.
    found = jnp.roll(found, corner, axis=(0, 1))  # pyright: ignore[reportCallIssue, reportArgumentType]
    found = found[:, :, None]
    found = found * _signs(own, (1, 1, c), move.dtype)
    old, least = jnp.where(inside, move, 0), losses.tiny(move.dtype)
    found = found + old / (lengths(old, inside) + least)
    size = jnp.sqrt(left / c + both**2)
    found = found / (lengths(found, inside) + least) * size
    return jnp.where(inside, found, jnp.where(emptied, 0, move))


def walk(
    lengths: Int[Array, " q"], bumps: Array, key: Array, *, norm: str
) -> pool.Walk:
    """Returns the search, as what each image does for itself.

    The window of a query, and in l_inf its signs, are the same for all images.

    Args:
      lengths: of `sides`.
      bumps: of `table`.
      key: typed key.
      norm: of the threat model.
    """
    start_key, query_key, sign_key = jax.random.split(key, 3)

    def begin(spot: pool.Spot, score: Array) -> State:
        allowed = region(spot.task.x, spot.task.limits, norm=norm)
        (_, h, w, c), dtype = spot.task.x.shape, spot.task.x.dtype
        draw = functools.partial(
            _stripes if norm == "linf" else _tiles, shape=(h, w, c), dtype=dtype
        )
        move = jax.vmap(draw)(pool.keys(start_key, spot))
        if norm == "linf":
            point = project(allowed.centre + allowed.eps * move, allowed, norm=norm)
        else:
            point = _onto_sphere(move, allowed)
        none = jnp.zeros(score.shape, jnp.int32)
        return State(
            point=point,
            best=spot.task.x,
            margin=jnp.full(score.shape, jnp.inf, spot.task.logits.dtype),
            success=jnp.zeros(score.shape, bool),
            queries=none,
            i=none,
        )

    def advance(spot: pool.Spot, state: State, key: Array) -> State:
        task = spot.task
        allowed = region(task.x, task.limits, norm=norm)
        logits = task.model(state.point, key)
        margin = losses.margin(logits, task.y)
        wrong = confirmed(task, state.point, logits, jax.random.fold_in(key, 1))
        open_ = task.active & ~state.success
        take = open_ & ((margin < state.margin) | wrong | (state.i == 0))
        best = jnp.where(per_sample(take), state.point, state.best)
        side = lengths[jnp.minimum(state.i, len(lengths) - 1)]
        draws = jax.vmap(lambda i: jax.random.fold_in(query_key, i))(state.i)
        if norm == "linf":
            point = _squares(draws, best, allowed, side)
        else:
            own = pool.keys(sign_key, spot)
            own = jax.vmap(jax.random.fold_in)(own, state.i)
            one = functools.partial(_bump, bumps=bumps, eps=allowed.eps)
            moves = jax.vmap(one)(draws, own, best - task.x, side)
            point = _onto_sphere(moves, allowed)
        return State(
            point=point,
            best=best,
            margin=jnp.where(take, margin, state.margin),
            success=state.success | (open_ & wrong),
            queries=state.queries + open_.astype(state.queries.dtype),
            i=state.i + 1,
        )

    def outcome(spot: pool.Spot, state: State) -> pool.Outcome:
        del spot
        score = jnp.where(state.success, 0, jnp.inf).astype(wide(state.best.dtype))
        # One evaluation of the start, then one for each query.
        done = state.success | (state.i > len(lengths))
        return pool.Outcome(state.best, score, state.queries, done, state.success)

    return pool.Walk(begin, advance, outcome)


@functools.partial(jax.jit, static_argnames=("norm", "num_places"))
def _search(
    task: Task,
    lengths: Int[Array, " q"],
    bumps: Array,
    key: Array,
    carry: pool.Carry | None,
    *,
    norm: str,
    num_places: int,
) -> pool.Carry:
    draws, model = jax.random.split(key)
    search = walk(lengths, bumps, draws, norm=norm)
    aims = task.y[None]
    return pool.run(task, aims, search, model, carry, num_places=num_places, kept=_KEPT)


def table(shape: tuple[int, int], norm: str, dtype) -> np.ndarray:
    """Returns the bump of each odd side in the corner of a square, by side."""
    if norm == "linf":
        return np.zeros((1, 1, 1), dtype)
    least, most = min(shape), max(shape)
    found = np.zeros((least + 1, most, most), dtype)
    for side in range(1, least + 1, 2):
        found[side, :side, :side] = bump(side)
    return found


def run(
    task: Task,
    *,
    key: Array,
    norm: str,
    num_queries: int = 5000,
    p_init: _checks.Number = 0.8,
    rescale: bool = False,
    num_active: int | None = None,
) -> Found:
    """Walks from one start on what is active.

    Args: task of `task.prepare`, norm of the threat model, num_active the images at
      hand at once; the others are those of `attack`.
    """
    shape = (task.x.shape[1], task.x.shape[2])
    lengths = sides(num_queries, shape, p_init=p_init, rescale=rescale, norm=norm)
    bumps = table(shape, norm, task.x.dtype)
    best = pool.drive(
        _search,
        pool.places(task, 1, num_active),
        task,
        jnp.asarray(lengths),
        jnp.asarray(bumps),
        key,
        kept=_KEPT,
        norm=norm,
    )
    return pool.found(task, best, jnp.isfinite(best.score))


def attack(
    logits_fn: LogitsFn,
    x: Float[Array, "n h w c"],
    y: Int[Array, " m"],
    *,
    key: Array,
    threat_model: ThreatModel,
    num_queries: int = 5000,
    p_init: _checks.Number = 0.8,
    rescale: bool = False,
) -> Adversarial:
    """Moves random squares and keeps what lowers the margin; else x is returned.

    Window and signs are drawn once per query for the whole batch in l_inf; in l_2 the
    signs are each image's own.

    Args:
      logits_fn: see `task.LogitsFn`.
      x: images in the box.
      y: labels.
      key: typed key.
      threat_model: what the attacker may do.
      num_queries: squares to try; the start is one query more.
      p_init: share of pixels in a square at first.
      rescale: whether the schedule for 10000 queries is stretched onto `num_queries`,
        as GUARD's evaluation does and AutoAttack does not.

    Raises:
      ValueError: see `task.prepare`; or a setting out of range.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.evasion import ThreatModel, square
      >>> def logits_fn(x):
      ...     bright = x.mean((1, 2, 3))
      ...     return jnp.stack([bright, 0.5 - bright, bright - 0.5], 1) * 9
      >>> x, y = jnp.full((2, 4, 4, 1), 0.2), jnp.ones(2, int)
      >>> budget = ThreatModel("linf", 0.1)
      >>> key = jax.random.key(0)
      >>> square.attack(logits_fn, x, y, key=key, threat_model=budget).success.tolist()
      [True, True]
    """
    _checks.at_least(1, num_queries=num_queries)
    _checks.positive(p_init=p_init)
    _checks.in_range(0, 1, p_init=p_init)
    pgd.bounded(threat_model)
    return carry_out(
        run,
        logits_fn,
        x,
        y,
        key=key,
        threat_model=threat_model,
        num_queries=num_queries,
        p_init=p_init,
        rescale=rescale,
    )


METHODS = (
    settings.named("square", "5000 queries, no gradients", attack, settings.Queries),
    settings.named(
        "square_rescaled",
        "the same, the schedule of 10000 queries squeezed into them",
        attack,
        settings.Queries,
        rescale=True,
    ),
)
