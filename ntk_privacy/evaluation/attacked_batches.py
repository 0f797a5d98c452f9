"""Batches of one shape for attacks, on any number of devices, and NaN told of."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ntk_privacy import hosts, sharding
from ntk_privacy.evaluation.named_attacks import Stage
from ntk_privacy.evasion import LogitsFn, inputs, reading
from ntk_privacy.evasion import task as tasks

__all__ = ["Batches", "attack", "most_frequent", "num_classes_of", "read"]


# What `_note` heard from programs on the device; read and cleared after each batch.
_NAN: list[int] = []


def _note(count: Any) -> None:
    # NumPy: a callback that runs a JAX program may wait for itself on one core.
    found = int(np.asarray(count))
    if found > 0:
        _NAN.append(found)


def _nothing(count: Array) -> None:
    del count


def _across_hosts(mesh: Mesh | None) -> bool:
    return mesh is not None and len({d.process_index for d in mesh.devices.flat}) > 1


def _spread(x: Array, mesh: Mesh | None) -> Array:
    """Gives each device its share of the images, if they can be shared evenly."""
    if mesh is None or x.shape[0] % mesh.size:
        return x
    if _across_hosts(mesh):
        x = _whole(x, mesh)  # and so is its gradient
    return sharding.spread(x, mesh)


def _whole(x: Array, mesh: Mesh | None) -> Array:
    """Gives each host all of an array, since attacks look at what they compute."""
    return sharding.whole(x, mesh) if _across_hosts(mesh) else x


def _told(logits: Array) -> Array:
    """Returns logits; the host hears of it if some are NaN."""
    count = jnp.sum(jnp.any(jnp.isnan(logits), axis=1), dtype=jnp.int32)
    tell = functools.partial(jax.debug.callback, _note)
    jax.lax.cond(count > 0, tell, _nothing, jax.lax.stop_gradient(count))
    return logits


@dataclasses.dataclass(frozen=True)
class _Watched:
    """A model on all devices, that tells of NaN logits if it is to be listened to.

    A program that calls the host is compiled anew by every process, so only where it
    must be. compared: its images are known to be read each by itself.
    """

    mesh: Mesh | None
    listens: bool
    compared: bool = True

    def __call__(self, inner: Any, x: Array) -> Array:
        logits = _whole(inner(_spread(x, self.mesh)), self.mesh)
        return _told(logits) if self.listens else logits


@dataclasses.dataclass(frozen=True)
class _WatchedRandom:
    """The same for random models, whose draws differ: always listened to."""

    mesh: Mesh | None
    listens: bool = True
    compared: bool = True

    def __call__(self, inner: Any, x: Array, *, key: Array) -> Array:
        return _told(_whole(inner(_spread(x, self.mesh), key=key), self.mesh))


@jax.jit
def _call(inner: Any, x: Array) -> Any:
    return inner(x)


@jax.jit
def _call_random(inner: Any, x: Array, key: Array) -> Any:
    return inner(x, key=key)


class Batches(NamedTuple):
    """The data on the host, and how a batch of it gets to the devices."""

    inner: Any
    random: bool
    x: np.ndarray
    y: np.ndarray
    size: int
    mesh: Mesh | None

    @property
    def rows(self) -> int:
        """Rows of every batch: a multiple of the number of devices."""
        devices = 1 if self.mesh is None else self.mesh.size
        return -(-self.size // devices) * devices

    def place(self, array: np.ndarray) -> Array:
        """Returns an array on the devices."""
        put = sharding.replicate if _across_hosts(self.mesh) else sharding.shard_rows
        return put(jnp.asarray(array), self.mesh)

    def chosen(self, rows: np.ndarray) -> np.ndarray:
        """Returns the rows of a batch, filled up with its first."""
        return np.concatenate([rows, np.repeat(rows[:1], self.rows - len(rows))])

    def logits(self, images: Array, key: Array) -> Any:
        """Returns the logits of a batch."""
        if self.random:
            return _call_random(self.inner, images, key)
        return _call(self.inner, images)


def num_classes_of(logits_fn: LogitsFn, shape: Sequence[int], dtype: Any = None) -> int:
    """Returns the number of columns of the logits, without evaluating the model.

    Args:
      logits_fn: see `evasion.LogitsFn`.
      shape: of a batch of images, (n, height, width, channels).
      dtype: of images, float32 unless given.

    Raises:
      ValueError: the logits are no matrix of n rows and at least two columns, or no
        floating-point numbers.
    """
    x = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype or jnp.float32))
    with inputs.asking(x.shape):
        if tasks.takes_key(logits_fn):
            found = jax.eval_shape(lambda x: logits_fn(x, key=jax.random.key(0)), x)
        else:
            found = jax.eval_shape(lambda x: logits_fn(x), x)
    return inputs.check_logits(found, x.shape[0])


def _not_a_number(count: int, where: str) -> ValueError:
    return ValueError(
        f"logits_fn returned NaN for {count} images {where}: nothing can be said of "
        "its robustness; repair the model where it is not finite."
    )


def read(batches: Batches, images: np.ndarray, key: Array) -> np.ndarray:
    """Returns the class that each image is read as, by draw of the model.

    Args:
      batches: with the model, and the size of a batch.
      images: as many as those of the data set.
      key: typed key.

    Returns:
      (draws, n): one draw, or `reading.DRAWS` of a random model.

    Raises:
      ValueError: NaN logits.
    """
    keys = reading.draws(key) if batches.random else [key]
    found = []
    for first in range(0, len(images), batches.size):
        rows = np.arange(first, min(first + batches.size, len(images)))
        placed = batches.place(images[batches.chosen(rows)])
        draws = []
        for one in keys:
            logits = batches.logits(placed, jax.random.fold_in(one, first))
            logits = sharding.on_host(logits)[: len(rows)]
            bad = int(np.isnan(logits).any(axis=1).sum())
            if bad:
                raise _not_a_number(bad, "of the data set")
            draws.append(np.argmax(logits, axis=1))
        found.append(np.stack(draws))
    return np.concatenate(found, axis=1)


def most_frequent(classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the class that most draws read; on a tie the label, if it is in it.

    Args:
      classes: of `read`, (draws, n).
      labels: (n,).
    """
    count = (classes[:, None] == classes[None]).sum(0)  # of each draw's own class
    first = classes[count.argmax(0), np.arange(classes.shape[1])]
    own = (classes == labels).sum(0)
    return np.where(own == count.max(0), labels, first)


def attack(
    stage: Stage, batches: Batches, rows: np.ndarray, read: np.ndarray, key: Array
) -> tuple[np.ndarray, ...]:
    """Returns images, success, queries and distance of one batch of rows.

    Args:
      stage: of the attack; its label is for messages.
      batches: images, labels and model.
      rows: of the images, one batch at most.
      read: class that the model takes each image for.
      key: typed key.

    Raises:
      NotANumberError: the model returned NaN, for images or for what the attack
        reached.
      ValueError: what the attack refuses.
    """
    chosen = batches.chosen(rows)
    y = batches.y[chosen]
    # What fills the batch up bears a wrong label: it is misread, so not attacked.
    y[len(rows) :] = np.where(read[chosen] == 0, 1, 0)[len(rows) :]
    images, labels = batches.place(batches.x[chosen]), batches.place(y)
    watch = (_WatchedRandom if batches.random else _Watched)(
        batches.mesh, stage.listens
    )
    watched = jax.tree_util.Partial(watch, batches.inner)
    _NAN.clear()
    bound, parts, refused, worst = stage.threat_model, (), None, 0
    try:
        found = stage.run(watched, images, labels, key=key, threat_model=bound)
        parts = tuple(sharding.on_host(part)[: len(rows)] for part in found)
    except tasks.NotANumberError as error:
        refused, worst = error, error.count
    except ValueError as error:
        refused = error
    jax.effects_barrier()
    # The first host hears of it for all.
    worst = int(hosts.of_first(np.asarray(max(_NAN, default=worst))))
    if worst:
        # The attack's own sentence about NaN does not name it.
        where = f"at points that {stage.label} reached"
        raise _not_a_number(worst, where)
    if refused is not None:
        raise refused
    return parts
