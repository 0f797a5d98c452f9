"""A comparison by networks trained on each set; and what every comparison makes."""

import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments import _progress, _timed_sets
from experiments._compare_flags import Budget, configured, method_of
from experiments._groups import Data, Run
from experiments._program import Asked
from experiments._timed_sets import TimedSet
from experiments._workdir import Workdir
from ntk_privacy import resume
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.reports import sets, tables


def made(
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


def training(asked: Asked[Any], workdir: Workdir, file: str) -> resume.Stage:
    """Returns what trains networks on a set."""
    run, folder = asked.group(Run), workdir.checkpoint_folder / file
    return _progress.stage(run, folder, resume.Timer(), description="train")


def results(asked: Asked[Any]) -> dict[str, Any]:
    """Returns what results.json holds of every comparison."""
    budget = asked.group(Budget)
    return {
        "dataset": asked.group(Data).dataset,
        "images_per_class": budget.images_per_class,
        "seconds": budget.seconds,
    }


def _kept(
    asked: Asked[Any],
    workdir: Workdir,
    images: ImageSet,
    name: str,
    keys: tuple[jax.Array, jax.Array],
) -> TimedSet:
    """Returns a set; kept before networks are trained on it, which go on with it."""
    path = workdir.checkpoint_folder / name / "set.npz"
    file = str(path.relative_to(workdir.folder))
    if not path.exists():
        one = made(asked, workdir, images, name, jnp.stack(keys), name)
        path.parent.mkdir(parents=True, exist_ok=True)
        _timed_sets.write(workdir, file, one)
    return _timed_sets.read(workdir, file)


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
            one = _kept(asked, workdir, images, name, (key_condense, key_random))
            stage = training(asked, workdir, name)
            judged = asked.method.run(
                images, one.made, asked.config, key=key_networks, stage=stage
            )
            arrays = {"images": one.made.images, "labels": one.made.labels}
            workdir.write_arrays(f"{name}.npz", **arrays)
            draw(asked, workdir, images, one, name, f"{name}, {one.seconds:.0f} s")
            told = {"steps": one.steps, "seconds": one.seconds, **judged.figures}
            told["seconds_in_all"] = time.perf_counter() - begin
            workdir.write_json(about, told)
            shutil.rmtree(workdir.checkpoint_folder / name, ignore_errors=True)
        rows[name] = workdir.read_json(about)
    names = asked.config.names()
    table = tables.of_architectures(names, rows)
    return results(asked) | {"architectures": names, "rows": rows, "markdown": table}


def draw(
    asked: Asked[Any],
    workdir: Workdir,
    images: ImageSet,
    one: TimedSet,
    file: str,
    told: str,
) -> None:
    """Draws the images of a set."""
    title = f"{told}: {len(images.x_train)} images of {asked.group(Data).dataset}"
    sets.draw(images, one.made, workdir.path(f"{file}.png"), title=title)
