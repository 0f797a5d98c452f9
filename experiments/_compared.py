"""One comparison of `experiments.compare`: sets, and what judges say of them."""

import dataclasses
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments import _progress, _timed_sets
from experiments._groups import Data, Run
from experiments._program import Asked
from experiments._timed_sets import TimedSet
from experiments._workdir import Workdir
from ntk_privacy import _checks, resume
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.evaluation import set_attacks
from ntk_privacy.evaluation.reconstruction_curve import RECOVERED_PSNR
from ntk_privacy.evasion import threat_model
from ntk_privacy.method import Method, field
from ntk_privacy.poisoning import Scene, direct
from ntk_privacy.reports import sets, tables

_SUFFIX = "_curvature"
"""Adds the curvature regulariser (GUARD, arXiv:2403.10045) where a method has a place
for it: dc and dsa match the gradient of the regularised loss of the real images; of all
others the set is the same, and the networks that are trained on it are regularised."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """The comparison."""

    methods: tuple[str, ...] = field(
        ("kip", "rkip", "dm", "rdm", "dc", "dsa", "mtt", "tesla"),
        "Between commas: methods of `experiments.distill` that match classes, kip, "
        "rkip, rkip_noise; with --attacks=all also with _curvature behind the name.",
    )
    images_per_class: int = field(1, "Distilled images of each class.")
    seconds: float = field(120.0, "Time of each method, compilation apart.")
    num_targets: int = field(
        1000, "Images that kip and rkip see, of which a kernel is made."
    )

    def __post_init__(self):
        if not self.methods:
            raise ValueError("methods is empty: name one at least.")
        _checks.positive(seconds=self.seconds)
        _checks.at_least(
            1, images_per_class=self.images_per_class, num_targets=self.num_targets
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poison:
    """The poison."""

    rate: float = field(0.01, "Poison, as a share of the training set.")
    num_seeds: int = field(1, "Of the attacks: sets, networks and targets.")

    def __post_init__(self):
        _checks.positive(rate=self.rate)
        _checks.at_least(1, num_seeds=self.num_seeds)


def check_names(names: tuple[str, ...], *, curved: bool) -> None:
    """Refuses names of no method, with a suffix or without; raises ValueError."""
    known = tuple(_timed_sets.methods())
    if curved:
        known += tuple(name + _SUFFIX for name in known)
    for name in names:
        _checks.one_of(known, methods=name)


def is_curved(name: str) -> bool:
    """Returns whether a name asks for the regulariser."""
    return name.endswith(_SUFFIX)


def method_of(name: str) -> Method[Any]:
    """Returns the method of a name, with a suffix or without."""
    return _timed_sets.methods()[name.removesuffix(_SUFFIX)]


def _matches_curvature(name: str) -> bool:
    return is_curved(name) and hasattr(method_of(name).config, "penalty_weight")


def configured(asked: Asked[Any], name: str) -> Any:
    """Returns the config of a method at the budget.

    Args:
      asked: of the comparison.
      name: of the method.
    """
    parts = asked.parts() if asked.method.name == "all" else asked.groups
    flags = {k: v for part in parts for k, v in vars(part).items()}
    if not _matches_curvature(name):
        flags = {k: v for k, v in flags.items() if not k.startswith("penalty_")}
    own = ("images_per_class", "num_targets", "rate", "penalty_weight", "penalty_step")
    given = {k: flags[k] for k in own if k in flags} | {"width": asked.config.width}
    return _timed_sets.configured(method_of(name), asked.preset, **given)


def _made(
    asked: Asked[Any],
    workdir: Workdir,
    images: ImageSet,
    name: str,
    keys: jax.Array,
    file: str,
) -> TimedSet:
    """Returns the set of a method, or random images."""
    key, key_random = keys
    budget = asked.group(Budget)
    if name == "random":
        return _timed_sets.drawn(images, budget.images_per_class, key_random)
    return _timed_sets.make(
        method_of(name),
        configured(asked, name),
        images,
        key,
        seconds=budget.seconds,
        run=asked.group(Run),
        folder=workdir.path(file),
    )


def _stage(asked: Asked[Any], workdir: Workdir, file: str) -> resume.Stage:
    run, folder = asked.group(Run), workdir.checkpoint_folder / file
    return _progress.stage(run, folder, resume.Timer(), description="train")


def _results(asked: Asked[Any]) -> dict[str, Any]:
    budget = asked.group(Budget)
    return {
        "dataset": asked.group(Data).dataset,
        "images_per_class": budget.images_per_class,
        "seconds": budget.seconds,
    }


def by_architectures(
    asked: Asked[Any], workdir: Workdir, images: ImageSet
) -> dict[str, Any]:
    """Returns what results.json holds of networks trained on each set.

    Args:
      asked: of the comparison.
      workdir: keeps each method's set and row.
      images: to distil.
    """
    key_condense, key_networks, key_random = jax.random.split(
        jax.random.key(asked.group(Run).seed), 3
    )
    rows: dict[str, Any] = {}
    for name in ("random", *asked.group(Budget).methods):
        about = f"{name}.json"
        if not workdir.path(about).exists():
            begin = time.perf_counter()
            keys = jnp.stack([key_condense, key_random])
            one = _made(asked, workdir, images, name, keys, name)
            stage = _stage(asked, workdir, name)
            judged = asked.method.run(
                images, one.made, asked.config, key=key_networks, stage=stage
            )
            arrays = {"images": one.made.images, "labels": one.made.labels}
            workdir.write_arrays(f"{name}.npz", **arrays)
            _draw(asked, workdir, images, one, name, f"{name}, {one.seconds:.0f} s")
            told = {"steps": one.steps, "seconds": one.seconds, **judged.figures}
            told["seconds_in_all"] = time.perf_counter() - begin
            workdir.write_json(about, told)
            shutil.rmtree(workdir.checkpoint_folder / name, ignore_errors=True)
        rows[name] = workdir.read_json(about)
    names = asked.config.names()
    table = tables.of_architectures(names, rows)
    return _results(asked) | {"architectures": names, "rows": rows, "markdown": table}


def by_attacks(
    asked: Asked[Any], workdir: Workdir, images: ImageSet, scenes: Mapping[int, Scene]
) -> dict[str, Any]:
    """Returns what results.json holds of attacks of three kinds on each set.

    Args:
      asked: of the comparison.
      workdir: keeps each set and cell.
      images: to distil.
      scenes: what is poisoned, by seed.
    """
    names = ("random", *asked.group(Budget).methods)
    cells = [
        _cell(asked, workdir, images, name, seed, scene)
        for seed, scene in scenes.items()
        for name in names
    ]
    rows = {
        name: set_attacks.row([cell for cell in cells if cell["method"] == name])
        for name in names
    }
    return _results(asked) | {
        "eps": threat_model.of_text(asked.config.eps).eps,
        "rate": asked.group(Poison).rate,
        "num_attacked": min(asked.config.num_attacked, len(images.x_test)),
        "recovered_psnr": RECOVERED_PSNR,
        "table": [{"method": name, **row} for name, row in rows.items()],
        "runs": cells,
        "markdown": tables.of_attacks(rows, set_attacks.names(asked.config)),
    }


def _cell(
    asked: Asked[Any],
    workdir: Workdir,
    images: ImageSet,
    name: str,
    seed: int,
    scene: Scene,
) -> dict[str, Any]:
    """Judges a method with one seed; a finished cell is read back."""
    about = f"cell_{seed}_{name}.json"
    if workdir.path(about).exists():
        return workdir.read_json(about)
    target = jnp.asarray(scene.target_image)
    poisoned = scene.poisoned(direct.poison(target, num_poisons=len(scene.where)))
    of = {"clean": images, "poisoned": poisoned}
    sets_of = {
        told: _distilled(asked, workdir, one, name, seed, told)
        for told, one in of.items()
    }
    config, clean = asked.config, sets_of["clean"]
    if not is_curved(name) or _matches_curvature(name):
        config = dataclasses.replace(config, penalty_weight=None)
    judged = asked.method.run(
        images,
        clean.made,
        config,
        key=jax.random.key(seed),
        stage=_stage(asked, workdir, f"{seed}_{name}"),
        poisoned=sets_of["poisoned"].made,
        target=target,
    )
    told = {
        "method": name,
        "seed": seed,
        "class": scene.target_class,
        "adversarial_class": scene.adversarial_class,
        "steps": clean.steps,
        "seconds": clean.seconds,
    }
    workdir.write_json(about, told | judged.figures)
    shutil.rmtree(workdir.checkpoint_folder / f"{seed}_{name}", ignore_errors=True)
    return workdir.read_json(about)


def _distilled(
    asked: Asked[Any],
    workdir: Workdir,
    images: ImageSet,
    name: str,
    seed: int,
    told: str,
) -> TimedSet:
    """Returns the set of a seed; one that is on disk is read back."""
    base = name if _matches_curvature(name) else name.removesuffix(_SUFFIX)
    file = f"set_{seed}_{base}_{told}"
    if not workdir.path(f"{file}.npz").exists():
        keys = jax.random.split(jax.random.key(seed))
        one = _made(asked, workdir, images, base, keys, file)
        _timed_sets.write(workdir, f"{file}.npz", one)
        if told == "clean":
            _draw(asked, workdir, images, one, file, name)
    return _timed_sets.read(workdir, f"{file}.npz")


def _draw(
    asked: Asked[Any],
    workdir: Workdir,
    images: ImageSet,
    one: TimedSet,
    file: str,
    told: str,
) -> None:
    title = f"{told}: {len(images.x_train)} images of {asked.group(Data).dataset}"
    sets.draw(images, one.made, workdir.path(f"{file}.png"), title=title)
