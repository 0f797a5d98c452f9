"""The attacks of `experiments.evade`: resumable, with what they leave behind."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments import _condensed, _progress
from experiments._image_sets import Images
from experiments._workdir import Workdir
from ntk_privacy.evaluation import attacked_batches, named_attacks, robust_accuracy
from ntk_privacy.evaluation.robust_accuracy import RobustAccuracy, RobustState
from ntk_privacy.evasion import ThreatModel
from ntk_privacy.evasion import task as tasks
from ntk_privacy.evasion import threat_model as threat_models
from ntk_privacy.reports import adversarial_plots
from ntk_privacy.resume import Timer

_SHOWN = 10
_PROBED = 8


class Attacked(NamedTuple):
    """found: of the evaluation. seconds: of each attack, compilation apart.

    probe: logits of the first images, by which the model is known again.
    """

    found: RobustAccuracy
    seconds: dict[str, float]
    probe: np.ndarray


def threat_model(eps: str, norm: Any = "linf") -> ThreatModel:
    """Returns what an attacker may do.

    Args:
      eps: a number or a fraction, such as 8/255.
      norm: linf or l2.

    Raises:
      ValueError: eps is no number, negative, or not finite.
    """
    return threat_models.of_text(eps, norm)


def _folder(workdir: Workdir):
    return workdir.checkpoint_folder / "evade"


def _probe(logits_fn: Any, images: Images, key: jax.Array) -> np.ndarray:
    """Returns logits by which a model is known again."""
    few = jnp.asarray(images.x_test[:_PROBED])
    if tasks.takes_key(logits_fn):
        return np.asarray(logits_fn(few, key=key))
    return np.asarray(logits_fn(few))


def check_done(workdir: Workdir, logits_fn: Any, images: Images, config: Any) -> None:
    """Refuses results that are of another model.

    Args:
      workdir: with arrays.npz.
      logits_fn: the model.
      images: that were attacked.
      config: of `experiments.evade`.

    Raises:
      ValueError: the model reads the first images in another way, or the file is
        damaged.
    """
    # Older results do not have it.
    known = workdir.read_arrays("arrays.npz").get("probe")
    if known is None:
        return
    found = _probe(logits_fn, images, _key(config))
    same = known.shape == found.shape
    if not (same and np.allclose(known, found, rtol=1e-3, atol=1e-4)):
        raise ValueError(
            f"The model is not that of the results in {config.workdir}: give another "
            "--workdir, or the model as it was."
        )


def _key(config: Any) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), 1)


def attack(
    config: Any,
    workdir: Workdir,
    logits_fn: Any,
    images: Images,
    *,
    mesh: Mesh | None,
    timer: Timer,
) -> Attacked:
    """Attacks, from the last checkpoint in the folder.

    Args:
      config: of `experiments.evade`.
      workdir: keeps the checkpoints.
      logits_fn: the model.
      images: to attack.
      mesh: of the devices, or None.
      timer: of the attacks.

    Raises:
      ValueError: another model than that of the checkpoint, or one that returns NaN.
    """
    x, n = images.x_test, len(images.x_test)
    size = min(config.batch_size, n)
    stages, _ = named_attacks.plan(
        config.attacks,
        threat_model=config.threat_model,
        num_classes=attacked_batches.num_classes_of(logits_fn, (size, *x.shape[1:])),
        num_steps=config.num_steps,
        num_queries=config.num_queries,
    )
    key = _key(config)
    probe = _probe(logits_fn, images, key)
    seconds = np.zeros(len(stages))
    start = {
        "state": robust_accuracy.init(x, stages=stages),
        "seconds": seconds,
        "probe": probe,
    }

    def go(start, done, callback):
        if done and not np.allclose(start["probe"], probe, rtol=1e-3, atol=1e-4):
            raise ValueError(
                "The model is not that of the checkpoint: give another --workdir, or "
                "the model as it was."
            )
        seconds, told = np.array(start["seconds"]), {"run": timer.run}

        def watch(done, state, metrics):
            spent = timer.elapsed()
            seconds[metrics["index"]] += spent - told["run"]
            told["run"] = spent
            entry = {"state": state, "seconds": seconds, "probe": probe}
            return callback(done, entry, metrics)

        found = robust_accuracy.robust_accuracy(
            logits_fn,
            x,
            np.asarray(images.class_test, np.int32),
            key=key,
            attacks=config.attacks,
            threat_model=config.threat_model,
            batch_size=config.batch_size,
            survivors_only=config.survivors_only,
            num_steps=config.num_steps,
            num_queries=config.num_queries,
            mesh=mesh,
            state=RobustState(*(np.array(part) for part in start["state"]))
            if done
            else None,
            callback=watch,
        )
        return found, seconds

    folder = _folder(workdir)
    stage = _progress.stage(
        config, folder.parent, timer, description="attack", loss="accuracy"
    )
    found, seconds = stage(folder.name, start, go, len(stages) * n).result
    by_name = dict.fromkeys(config.attacks, 0.0)
    for stage, spent in zip(stages, seconds, strict=True):
        by_name[stage.name] += float(spent)
    return Attacked(found, by_name, probe)


def told(attacked: Attacked) -> dict[str, Any]:
    """Returns the figures for results.json."""
    found = attacked.found
    spent = {
        name: float(values[values > 0].mean()) if (values > 0).any() else 0.0
        for name, values in found.queries.items()
    }
    nearest = {
        name: None if np.isnan(values).all() else float(np.nanmedian(values))
        for name, values in found.distance.items()
    }
    return {
        "accuracy": {
            "clean": found.clean,
            **found.accuracy,
            "ensemble": found.ensemble,
        },
        "names": found.names,
        "left": found.left,
        "queries": spent,
        "median_distance": nearest,
        "warnings": list(found.warnings),
        "seconds": {"attacks": attacked.seconds},
    }


def _shown(found: RobustAccuracy) -> np.ndarray:
    """Returns up to ten broken images, evenly chosen; others if none is broken."""
    rows = np.flatnonzero(np.array(found.found_by) != "")
    rows = rows if len(rows) else np.arange(len(found.correct))
    places = np.linspace(0, len(rows) - 1, min(_SHOWN, len(rows))).round().astype(int)
    return rows[places]


def draw(
    config: Any,
    workdir: Workdir,
    logits_fn: Any,
    images: Images,
    attacked: Attacked,
    names: tuple[str, ...],
) -> None:
    """Writes adversarial.png."""
    found = attacked.found
    rows = _shown(found)
    key = jax.random.key(config.seed)

    def read(x):
        x = jnp.asarray(x)
        random = tasks.takes_key(logits_fn)
        logits = np.asarray(logits_fn(x, key=key) if random else logits_fn(x))
        return [
            names[c] if c < len(names) else str(c) for c in map(int, logits.argmax(1))
        ]

    clean, after = images.x_test[rows], found.images[rows]
    broken = sum(name != "" for name in found.found_by)
    adversarial_plots.adversarial(
        clean,
        after,
        workdir.path("adversarial.png"),
        clean_notes=read(clean),
        attacked_notes=read(after),
        title=f"{config.norm}, eps = {config.eps}: {broken} of "
        f"{int(found.correct.sum())} rightly read images broken; what the model takes "
        "them for",
    )


def write_arrays(workdir: Workdir, images: Images, attacked: Attacked) -> None:
    """Writes arrays.npz: who survived what, and the images shown."""
    found, rows = attacked.found, _shown(attacked.found)
    masks = {f"survived_{name}": kept for name, kept in found.survived.items()}
    distances = {f"distance_{name}": d for name, d in found.distance.items()}
    workdir.write_arrays(
        "arrays.npz",
        labels=images.class_test,
        correct=found.correct,
        shown=rows,
        clean=images.x_test[rows],
        attacked=found.images[rows],
        found_by=np.array(found.found_by, dtype=np.str_),
        probe=attacked.probe,
        **masks,
        **distances,
    )


def forget(workdir: Workdir) -> None:
    """Removes the checkpoints of attacks whose results are written."""
    _condensed.remove(_folder(workdir))
    _condensed.remove(workdir.checkpoint_folder / "train")
