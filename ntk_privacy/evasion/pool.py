"""A fixed number of places on the device, refilled as soon as an image is done.

Attacks end early on most images and late on a few. A batch that waits for its slowest
image spends most of its evaluations on images that are done; here the next image, or
the next run of an image, takes the place, in one compiled program of one batch size.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _platform
from ntk_privacy.evasion.task import Found, Task, batch_size
from ntk_privacy.evasion.threat_model import per_sample, wide

__all__ = [
    "Carry",
    "Outcome",
    "Spot",
    "Walk",
    "drive",
    "found",
    "keys",
    "places",
    "run",
    "whole",
]

_FEWEST = 8
# Down to so many places, some of them are given up once nothing waits for them, which
# compiles once more; elsewhere a small batch takes as long as a large one.
_SHRINKS = {"cpu": _FEWEST}
_HALF = 0.5
# What an evaluation costs besides its images, in images.
_OVERHEAD = 4


class Spot(NamedTuple):
    """What stands in each place.

    Attributes:
      task: images and labels; `active` tells which places are in use.
      row: of the image in the whole task.
      run: which of its runs.
      target: class, of a targeted attack.
    """

    task: Task
    row: Int[Array, " b"]
    run: Int[Array, " b"]
    target: Int[Array, " b"]


class Outcome(NamedTuple):
    """What a walk has come to, per place.

    Attributes:
      images: to keep if their score is the least of all the image's runs.
      score: infinite if nothing was found.
      queries: evaluations spent.
      done: whether this run is over.
      closed: whether no other run of the image is needed.
    """

    images: Float[Array, "b h w c"]
    score: Float[Array, " b"]
    queries: Int[Array, " b"]
    done: Bool[Array, " b"]
    closed: Bool[Array, " b"]


class Walk(NamedTuple):
    """An attack, as what it does in each place; no place depends on another.

    Attributes:
      begin: `(spot, score) -> state`, score being the least of the image's earlier
        runs; all leaves of a state have an axis of places first.
      advance: `(spot, state, key) -> state`, with one evaluation of the model or two.
      outcome: `(spot, state) -> Outcome`.
    """

    begin: Callable[[Spot, Array], Any]
    advance: Callable[[Spot, Any, Array], Any]
    outcome: Callable[[Spot, Any], Outcome]


class Carry(NamedTuple):
    """Of the loop: what was found, what stands in the places, and what is next.

    Attributes:
      best: of all images.
      spot, state: of the places.
      cursor: runs before it were begun, or are not needed.
      tick: evaluations so far, for the keys of a random model.
    """

    best: "Best"
    spot: Spot
    state: Any
    cursor: Int[Array, ""]
    tick: Int[Array, ""]


class Best(NamedTuple):
    """The least score of each image of the task so far, and what belongs to it."""

    images: Float[Array, "n h w c"]
    score: Float[Array, " n"]
    queries: Int[Array, " n"]
    closed: Bool[Array, " n"]


def places(task: Task, runs: int, num_active: int | None = None) -> int:
    """Returns how many places serve a task in the least time.

    Args:
      task: of `prepare`.
      runs: of each image.
      num_active: images to attack if that may choose the size, and so what is compiled;
        else it depends on shapes alone.
    """
    if num_active is None:
        return batch_size(len(task.y))
    # Two sizes an octave: each compiles once more.
    most = batch_size(len(task.y))
    halved = [
        size >> octave
        for octave in range(most.bit_length())
        for size in (3 * most // 4, most // 2)
    ]
    sizes = [most, *(size for size in halved if size >= _FEWEST)]
    # On a tie the largest: the loop is shorter.
    jobs = runs * num_active
    return min(sizes, key=lambda b: -(-jobs // b) * (b + _OVERHEAD))


def keys(key: Array, spot: Spot) -> Array:
    """Returns a key for each run of each image, whatever its place.

    Args:
      key: typed key of the attack.
      spot: images at hand, with the row and the run of each.
    """

    def one(row, which):
        return jax.random.fold_in(jax.random.fold_in(key, which), row)

    return jax.vmap(one)(spot.row, spot.run)


def whole(task: Task, target: Int[Array, " n"]) -> Spot:
    """Returns a place for every image, for its first run.

    Args:
      task: images and labels.
      target: class that each image is to be read as.
    """
    row = jnp.arange(len(task.y), dtype=jnp.int32)
    return Spot(task, row, jnp.zeros_like(row), target)


# What of a task each place has its own of.
_PLACED = ("x", "y", "logits", "active")


def _at(values: Array, like: Array) -> Array:
    return values.reshape(values.shape + (1,) * (like.ndim - 1))


def _select(where: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(_at(where, a), a, b), new, old)


def _fewer_places(num_places: int, kept: float) -> int:
    """Returns how many places follow so many; 0 if there is nothing to give up."""
    fewer = int(kept * num_places)
    return fewer if fewer >= _SHRINKS.get(_platform.name(), num_places) else 0


def drive(
    advance: Callable[..., Carry],
    num_places: int,
    *args: Any,
    kept: float = _HALF,
    **options: Any,
) -> Best:
    """Calls a compiled `run` in ever fewer places until all is done.

    Args:
      advance: `(*args, carry, num_places=..., **options) -> Carry`.
      num_places: at first.
      args: of `advance`.
      kept: see `run`.
      options: of `advance`, static.
    """
    carry = advance(*args, None, num_places=num_places, **options)
    while bool(jnp.any(carry.spot.task.active)):
        num_places = _fewer_places(num_places, kept)
        carry = _fewer(carry, num_places=num_places)
        carry = advance(*args, carry, num_places=num_places, **options)
    return carry.best


@functools.partial(jax.jit, static_argnames="num_places")
def _fewer(carry: Carry, *, num_places: int) -> Carry:
    """Returns the same with the places in use alone."""
    task = carry.spot.task
    keep = jnp.argsort(~task.active, stable=True)[:num_places]

    def kept(tree):
        return jax.tree.map(lambda a: a[keep], tree)

    task = task._replace(**{name: kept(getattr(task, name)) for name in _PLACED})
    return carry._replace(
        spot=Spot(task, *kept(carry.spot[1:])), state=kept(carry.state)
    )


def run(
    task: Task,
    targets: Int[Array, "r n"],
    walk: Walk,
    key: Array,
    carry: Carry | None = None,
    *,
    num_places: int,
    kept: float = _HALF,
) -> Carry:
    """Walks every run of every active image, in the order of runs, then of images.

    Ends when all is done, or earlier with few of the places in use.

    Args:
      task: of `prepare`.
      targets: class of each run and image.
      walk: the attack.
      key: typed key, for a random model.
      carry: of an earlier call, cut to the places.
      num_places: images evaluated at once.
      kept: share of the places that the next call has; the longer an attack, the more
        calls are worth their compilation.
    """
    runs, n = targets.shape
    total = runs * n
    number = jnp.arange(num_places, dtype=jnp.int32)

    def seat(job: Array) -> Spot:
        row, which = job % n, job // n
        part = task._replace(
            x=task.x[row], y=task.y[row], logits=task.logits[row], active=job < total
        )
        return Spot(part, row, which, targets[jnp.minimum(which, runs - 1), row])

    def load(best, spot, state, cursor):
        """Gives free places the next runs of images that are not closed."""
        free = ~spot.task.active
        index = jnp.arange(total, dtype=jnp.int32)
        waits = jnp.tile(task.active & ~best.closed, runs) & (index >= cursor)
        # The k-th free place takes the k-th run that waits.
        rank = jnp.cumsum(waits.astype(jnp.int32)) - 1
        slot = jnp.where(waits & (rank < num_places), rank, num_places)
        queue = jnp.full((num_places,), total, jnp.int32)
        queue = queue.at[slot].set(index, mode="drop")
        job = queue[jnp.cumsum(free.astype(jnp.int32)) - 1]
        job = jnp.where(free, job, total)
        taken = job < total
        fresh = seat(job)
        state = _select(taken, walk.begin(fresh, best.score[fresh.row]), state)
        part = spot.task._replace(
            **{
                name: _select(free, getattr(fresh.task, name), getattr(spot.task, name))
                for name in _PLACED
            }
        )
        rest = _select(free, fresh[1:], spot[1:])
        started = jnp.max(jnp.where(taken, job + 1, cursor))
        return Spot(part, *rest), state, started

    def store(best, spot, state):
        """Keeps what has ended, and frees its places."""
        out = walk.outcome(spot, state)
        ended = spot.task.active & out.done
        better = ended & (out.score < best.score[spot.row])
        # Two runs of one image may end at once: the least score wins, then the first.
        rival = better[None, :] & (spot.row[:, None] == spot.row[None, :])
        ahead = (out.score[None, :] < out.score[:, None]) | (
            (out.score[None, :] == out.score[:, None])
            & (number[None, :] < number[:, None])
        )
        win = better & ~jnp.any(rival & ahead, axis=1)

        def rows(where):
            return jnp.where(where, spot.row, n)

        closed = best.closed.at[rows(ended & out.closed)].set(True, mode="drop")
        ended = spot.task.active & (out.done | closed[spot.row])
        best = Best(
            best.images.at[rows(win)].set(out.images, mode="drop"),
            best.score.at[rows(win)].set(out.score, mode="drop"),
            best.queries.at[rows(ended)].add(out.queries, mode="drop"),
            closed,
        )
        part = spot.task._replace(active=spot.task.active & ~ended)
        return best, spot._replace(task=part)

    def ends(spot, state):
        return jnp.any(spot.task.active & walk.outcome(spot, state).done)

    def onward(carry):
        spot, state, _, tick = carry
        state = walk.advance(spot, state, jax.random.fold_in(key, tick))
        return spot, state, ends(spot, state), tick + 1

    def refill(carry: Carry) -> Carry:
        best, spot, state, cursor, tick = carry
        spot, state, cursor = load(best, spot, state, cursor)
        over = ends(spot, state)
        spot, state, _, tick = jax.lax.while_loop(
            lambda c: jnp.any(c[0].task.active) & ~c[2],
            onward,
            (spot, state, over, tick),
        )
        best, spot = store(best, spot, state)
        return Carry(best, spot, state, cursor, tick)

    def more(carry: Carry) -> Array:
        index = jnp.arange(total, dtype=jnp.int32)
        open_ = task.active & ~carry.best.closed
        waits = jnp.tile(open_, runs) & (index >= carry.cursor)
        fewest = _fewer_places(num_places, kept)
        return (jnp.sum(carry.spot.task.active) > fewest) | jnp.any(waits)

    if carry is None:
        nobody = seat(jnp.full((num_places,), total, jnp.int32))
        best = Best(
            task.x,
            jnp.full(task.y.shape, jnp.inf, wide(task.x.dtype)),
            jnp.zeros(task.y.shape, jnp.int32),
            jnp.zeros(task.y.shape, bool),
        )
        zero = jnp.asarray(0, jnp.int32)
        state = walk.begin(nobody, best.score[nobody.row])
        carry = Carry(best, nobody, state, zero, zero)
    return jax.lax.while_loop(more, refill, carry)


def found(task: Task, best: Best, success: Bool[Array, " n"]) -> Found:
    """Returns the images that succeed, and x for the others.

    Args:
      task: images and labels.
      best: of each image.
      success: whether `best` is misread.
    """
    images = jnp.where(per_sample(success), best.images, task.x)
    return Found(images, success, best.queries)
