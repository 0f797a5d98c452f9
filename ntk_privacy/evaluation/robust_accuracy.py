"""What a model still reads rightly under attack, over a data set in batches.

As in the evaluation of AutoAttack (Croce & Hein, arXiv:2003.01690), images that are
misread without an attack count against it, and each attack gets what the others left.
"""

import functools
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _checks, sharding
from ntk_privacy._types import Callback
from ntk_privacy.evaluation import attacked_batches, named_attacks
from ntk_privacy.evaluation.attacked_batches import Batches
from ntk_privacy.evaluation.named_attacks import AttackFn, Stage
from ntk_privacy.evasion import LogitsFn, ThreatModel, autoattack, inputs
from ntk_privacy.evasion import task as tasks

__all__ = [
    "RobustAccuracy",
    "RobustState",
    "RobustnessWarning",
    "init",
    "robust_accuracy",
]

_SUSPECT_SHARE = 0.002
_Images = Float[Array | np.ndarray, "n h w c"]
_Labels = Int[Array | np.ndarray, " m"]


class RobustnessWarning(UserWarning):
    """The result is likely to be too good, or attacks were weaker than by default."""


class RobustState(NamedTuple):
    """Where an evaluation stands; arrays, to be saved by `checkpoint.save`.

    Attributes:
      stage, batch: the next batch of the next stage.
      success: of each stage on each image, false where it was not tried.
      queries: evaluations of the model by each stage on each image.
      distance: of what each stage found, in its own norm; NaN where nothing.
      images: adversarial images; those of the data where none was found.
      found_by: the stage that found them, or -1.
    """

    stage: Int[np.ndarray, ""]
    batch: Int[np.ndarray, ""]
    success: Bool[np.ndarray, "s n"]
    queries: Int[np.ndarray, "s n"]
    distance: Float[np.ndarray, "s n"]
    images: Float[np.ndarray, "n h w c"]
    found_by: Int[np.ndarray, " n"]


class RobustAccuracy(NamedTuple):
    """The result; shares are of all images, those misread from the start included.

    Attributes:
      clean: share read rightly without an attack.
      accuracy: by attack, the share read rightly under it; if only survivors went on,
        under it and all before it that keep the same threat model.
      ensemble: share read rightly under all attacks within the threat model.
      correct: whether each image is read rightly without an attack.
      survived: by attack, the images that `accuracy` counts.
      left: of attacks in stages, such as AutoAttack, the share left after each stage.
      queries: by attack, evaluations of the model spent on each image.
      distance: by attack, from the image to what was found in the norm of the attack;
        NaN where nothing was.
      images: adversarial images, the first found for each: within the threat model if
        any is; the image itself where none was found.
      found_by: the attack that found it, or "".
      warnings: why the result may be too good; they were also raised.
      reread: of a random model, the share of draws that read `images` rightly, whose
        accuracies count an image as broken if most draws misread it; None for others.
      names: by attack, what a table may call it, see `named_attacks.honest_name`.
      state: of the end.
    """

    clean: float
    accuracy: dict[str, float]
    ensemble: float
    correct: Bool[np.ndarray, " n"]
    survived: dict[str, np.ndarray]
    left: dict[str, dict[str, float]]
    queries: dict[str, np.ndarray]
    distance: dict[str, np.ndarray]
    images: Float[np.ndarray, "n h w c"]
    found_by: list[str]
    warnings: tuple[str, ...]
    reread: float | None
    names: dict[str, str]
    state: RobustState


def init(x: _Images, *, stages: Sequence[Stage]) -> RobustState:
    """Returns the state before the first batch.

    Args:
      x: images.
      stages: of `named_attacks.plan`.
    """
    each = (len(stages), len(x))
    dtype = np.asarray(x).dtype
    return RobustState(
        np.zeros((), np.int32),
        np.zeros((), np.int32),
        np.zeros(each, bool),
        np.zeros(each, np.int32),
        np.full(each, np.nan, dtype),
        np.array(x),
        np.full(len(x), -1, np.int32),
    )


def _pending(
    stages: Sequence[Stage],
    index: int,
    success: np.ndarray,
    correct: np.ndarray,
    survivors_only: bool,
) -> np.ndarray:
    """Returns which images a stage attacks, whether it has begun or not."""
    stage, open_ = stages[index], correct.copy()
    for i, earlier in enumerate(stages[:index]):
        shared = survivors_only and stage.within and earlier.within
        if shared or earlier.name == stage.name:
            open_ &= ~success[i]
    return open_


def _warn_of_the_model(
    logits_fn: LogitsFn,
    batches: Batches,
    names: Sequence[str],
    key: Array,
    threat_model: ThreatModel,
) -> list[str]:
    """Returns AutoAttack's warnings, of the first batch."""
    versions = [named_attacks.version_of(name) for name in names]
    version = "rand" if "rand" in versions else "standard"
    few = slice(0, batches.size)
    task = tasks.prepare(
        logits_fn,
        jnp.asarray(batches.x[few]),
        jnp.asarray(batches.y[few]),
        key=key,
        threat_model=threat_model,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        autoattack.warn_of_the_model(logits_fn, task, key, version)
    return [str(w.message) for w in caught if w.category is UserWarning]


def _store(
    state: RobustState,
    stages: Sequence[Stage],
    rows: np.ndarray,
    found: tuple[np.ndarray, ...],
) -> None:
    """Writes a batch into the state's arrays."""
    index = int(state.stage)
    images, success, queries, distance = found
    state.success[index, rows] = success
    state.queries[index, rows] = queries
    state.distance[index, rows] = np.where(success, distance, np.nan)
    within = np.array([stage.within for stage in stages] + [False])
    known = state.found_by[rows]
    # Found before, and not beyond a bound that the new one keeps: it stays.
    take = success & ((known < 0) | (stages[index].within & ~within[known]))
    state.images[rows[take]] = images[take]
    state.found_by[rows[take]] = index


def robust_accuracy(
    logits_fn: LogitsFn,
    x: _Images,
    y: _Labels,
    *,
    key: Array,
    attacks: Sequence[str] | Mapping[str, AttackFn] = ("autoattack",),
    threat_model: ThreatModel | None = None,
    batch_size: int = 256,
    survivors_only: bool = True,
    num_steps: int | None = None,
    num_queries: int = 5000,
    mesh: Mesh | None = None,
    state: RobustState | None = None,
    callback: Callback | None = None,
) -> RobustAccuracy:
    """Attacks a data set; returns what is left.

    One attack after the other goes over the images that are read rightly, in batches of
    one shape; the last is filled up. The key of an attack depends on its name alone, so
    that without `survivors_only` its result does not depend on the other attacks.

    Args:
      logits_fn: see `evasion.LogitsFn`.
      x: images in the box of the threat model.
      y: labels.
      key: typed key.
      attacks: names of `evasion.METHODS`, or functions of your own by name.
      threat_model: what the attacker may do; l_inf with eps = 8/255 if None.
      batch_size: images of a batch.
      survivors_only: whether an attack gets what those before it left, else all images
        that are read rightly. AutoAttack's own stages always do.
      num_steps: of every attack by steps, instead of its own.
      num_queries: of Square.
      mesh: of `sharding.row_mesh`, whose devices share every batch.
      state: of `callback`, to continue to the bit.
      callback: `(done, state, metrics)` after each batch; done is out of images times
        stages. The arrays of the state are written on: save or copy them. metrics:
        `attack` and `index`, of the stage under way, and `accuracy`, the share that it
        has left so far. What it returns is not read: an evaluation cut short would
        count images that were never attacked as robust; raise to stop.

    Raises:
      ValueError: see `named_attacks.plan` and `evasion.task.prepare`; NaN logits, also
        at a point that an attack reached; or a state of another evaluation.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.evaluation import robust_accuracy
      >>> from ntk_privacy.evasion import ThreatModel
      >>> def logits_fn(x):
      ...     bright = x.mean((1, 2, 3))
      ...     return jnp.stack([0.5 - bright, bright - 0.5], 1)
      >>> bright = jnp.array([0.1, 0.23, 0.36, 0.49])
      >>> x = jnp.tile(bright[:, None, None, None], (1, 2, 2, 1))
      >>> found = robust_accuracy.robust_accuracy(
      ...     logits_fn,
      ...     x,
      ...     jnp.zeros(4, int),
      ...     key=jax.random.key(0),
      ...     attacks=("pgd",),
      ...     threat_model=ThreatModel("linf", 0.1),
      ... )
      >>> found.clean, found.accuracy["pgd"]  # of 0.10, 0.23, 0.36 and 0.49
      (1.0, 0.75)
    """
    threat_model = threat_model or ThreatModel()
    _checks.at_least(1, batch_size=batch_size)
    _checks.typed_key(key=key)
    images = np.asarray(x)
    # Attacks see NumPy's float64 as float32 unless JAX has 64 bits.
    images = images.astype(jax.dtypes.canonicalize_dtype(images.dtype))
    labels = inputs.check(images, y, threat_model)
    size = min(batch_size, len(images))
    classes = attacked_batches.num_classes_of(
        logits_fn, (size, *images.shape[1:]), images.dtype
    )
    inputs.check_classes(labels, classes)
    stages, said = named_attacks.plan(
        attacks,
        threat_model=threat_model,
        num_classes=classes,
        num_steps=num_steps,
        num_queries=num_queries,
    )
    partial = jax.tree_util.Partial
    inner = logits_fn if isinstance(logits_fn, partial) else partial(logits_fn)
    inner = jax.tree.map(lambda leaf: sharding.replicate(leaf, mesh), inner)
    batches = Batches(
        inner,
        tasks.takes_key(logits_fn),
        images,
        labels,
        size,
        mesh,
    )
    names = list(dict.fromkeys(stage.name for stage in stages))
    key_clean, key_check, key_attacks = jax.random.split(key, 3)
    said += _warn_of_the_model(logits_fn, batches, names, key_check, threat_model)
    drawn = attacked_batches.read(batches, images, key_clean)
    read = attacked_batches.most_frequent(drawn, labels)
    correct = read == labels
    first = init(images, stages=stages)
    state = first if state is None else _copied(state, first)
    state = _run(state, stages, batches, read, key_attacks, survivors_only, callback)
    called = {
        name: named_attacks.honest_name(
            name, num_steps=num_steps, num_queries=num_queries
        )
        if not isinstance(attacks, Mapping)
        else name
        for name in names
    }
    found = _result(state, stages, called, correct, survivors_only, said)
    if batches.random:
        found = _read_again(found, batches, jax.random.fold_in(key_check, 1))
    for text in found.warnings:
        warnings.warn(text, RobustnessWarning, stacklevel=2)
    return found


def _read_again(found: RobustAccuracy, batches: Batches, key: Array) -> RobustAccuracy:
    """Adds how often draws of a random model read the returned images rightly."""
    drawn = attacked_batches.read(batches, found.images, key)
    share = float(np.mean(drawn == batches.y))
    text = (
        f"The model is random: an image counts as broken if {len(drawn)} draws read "
        "another class more often than its own; a draw reads the returned images "
        f"rightly in {share:.3f} of cases."
    )
    return found._replace(reread=share, warnings=(*found.warnings, text))


def _copied(state: RobustState, like: RobustState) -> RobustState:
    state = RobustState(*(np.array(part) for part in state))
    for name, part, wanted in zip(state._fields, state, like, strict=True):
        if (part.shape, part.dtype) != (wanted.shape, wanted.dtype):
            raise ValueError(
                f"state.{name} has shape {part.shape} and dtype {part.dtype}, not "
                f"{wanted.shape} and {wanted.dtype}: it belongs to other images or "
                "attacks; start anew."
            )
    return state


def _run(
    state: RobustState,
    stages: Sequence[Stage],
    batches: Batches,
    read: np.ndarray,
    key: Array,
    survivors_only: bool,
    callback: Callback | None,
) -> RobustState:
    correct, n = read == batches.y, len(batches.x)
    while int(state.stage) < len(stages):
        index, batch = int(state.stage), int(state.batch)
        stage = stages[index]
        open_ = _pending(stages, index, state.success, correct, survivors_only)
        rows = np.flatnonzero(open_)
        count = -(-len(rows) // batches.size)
        if stage.threat_model.eps == 0:
            count = 0  # only the image itself is allowed
        if batch < count:
            one = jax.random.fold_in(key, zlib.crc32(stage.label.encode()))
            part = rows[batch * batches.size : (batch + 1) * batches.size]
            one = jax.random.fold_in(one, batch)
            found = attacked_batches.attack(stage, batches, part, read, one)
            _store(state, stages, part, found)
            batch += 1
        is_last = batch >= count
        state = state._replace(
            stage=np.asarray(index + is_last, np.int32),
            batch=np.asarray(0 if is_last else batch, np.int32),
        )
        if callback is not None:
            left = np.sum(open_ & ~state.success[index])
            done = index * n + (n if is_last else n * batch // count)
            metrics = {"attack": stage.label, "index": index}
            metrics["accuracy"] = np.asarray([left / n])
            callback(done, state, metrics)
    return state


def _result(
    state: RobustState,
    stages: Sequence[Stage],
    names: Mapping[str, str],
    correct: np.ndarray,
    survivors_only: bool,
    said: Sequence[str],
) -> RobustAccuracy:
    pending = functools.partial(
        _pending, stages, correct=correct, survivors_only=survivors_only
    )
    survived, left, queries, distance = {}, {}, {}, {}
    said, ensemble = list(said), correct.copy()
    for name in names:
        mine = [i for i, stage in enumerate(stages) if stage.name == name]
        after = {i: pending(i, success=state.success) & ~state.success[i] for i in mine}
        survived[name] = after[mine[-1]]
        queries[name] = state.queries[mine].sum(axis=0)
        near = np.where(np.isnan(state.distance[mine]), np.inf, state.distance[mine])
        distance[name] = np.where(np.isinf(near.min(0)), np.nan, near.min(0))
        if stages[mine[0]].within:
            ensemble &= ~state.success[mine].any(axis=0)
        if stages[mine[0]].part:
            left[name] = {stages[i].part: float(np.mean(after[i])) for i in mine}
        square = [i for i in mine if stages[i].part == "square"]
        broken = sum(int(state.success[i].sum()) for i in square)
        if broken > _SUSPECT_SHARE * len(correct):
            said.append(
                f"Square broke {broken} of {len(correct)} images that attacks by "
                f"gradients in {name} had left: gradients may be masked; attack this "
                "model by hand."
            )
    return RobustAccuracy(
        float(np.mean(correct)),
        {name: float(np.mean(kept)) for name, kept in survived.items()},
        float(np.mean(ensemble)),
        correct,
        survived,
        left,
        queries,
        distance,
        state.images,
        [stages[i].name if i >= 0 else "" for i in state.found_by],
        tuple(said),
        None,
        dict(names),
        state,
    )
