"""A comparison by attacks of three kinds on each set: cells of method and seed."""

import dataclasses
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments import _compared, _timed_sets
from experiments._compare_flags import (
    SUFFIX,
    Budget,
    Poison,
    is_curved,
    matches_curvature,
)
from experiments._program import Asked
from experiments._timed_sets import TimedSet
from experiments._workdir import Workdir
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.evaluation import set_attacks
from ntk_privacy.evaluation.reconstruction_curve import RECOVERED_PSNR
from ntk_privacy.evasion import threat_model
from ntk_privacy.poisoning import Scene, direct
from ntk_privacy.reports import tables


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
    return _compared.results(asked) | {
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
    if not is_curved(name) or matches_curvature(name):
        config = dataclasses.replace(config, penalty_weight=None)
    judged = asked.method.run(
        images,
        clean.made,
        config,
        key=jax.random.key(seed),
        stage=_compared.training(asked, workdir, f"{seed}_{name}"),
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
    base = name if matches_curvature(name) else name.removesuffix(SUFFIX)
    file = f"set_{seed}_{base}_{told}"
    if not workdir.path(f"{file}.npz").exists():
        keys = jax.random.split(jax.random.key(seed))
        one = _compared.made(asked, workdir, images, base, keys, file)
        _timed_sets.write(workdir, f"{file}.npz", one)
        if told == "clean":
            _compared.draw(asked, workdir, images, one, file, name)
    return _timed_sets.read(workdir, f"{file}.npz")
