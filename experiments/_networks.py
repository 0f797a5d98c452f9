"""`experiments.distill`, methods of a task: networks trained on the set, attacked."""

import shutil
from typing import Any

import jax

from ntk_privacy.data import draws
from ntk_privacy.data.choice import Data
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import kernel_methods
from ntk_privacy.distillation.search import Kept
from ntk_privacy.evaluation import JUDGES, copies
from ntk_privacy.evaluation.judged import Judged
from ntk_privacy.reports import made_set, plots, sets
from ntk_privacy.reports.workdir import Workdir

from . import _flags, _made
from ._groups import Run
from ._job import Job
from ._kinds import Kind, Results
from ._made import Loaded
from ._network_flags import Networks, fits, passed_over
from ._program import Asked


def load(asked: Asked[Any]) -> Loaded:
    """Returns the images that are asked for."""
    key_data, key_init = draws.keys(asked.group(Run).seed)
    images, count = asked.group(Data).read(), asked.group(Data).num_train
    images = images.balanced(asked.config.task, num_train=count, key=key_data)
    check(asked, images)
    return Loaded(images, jax.random.split(key_init, 3))


def check(asked: Asked[Any], images: ImageSet) -> None:
    """Refuses flags that do not fit the images, before anything is made."""
    with _flags.usage():
        images.regression(asked.config.task)
        asked.method.check(images, asked.config)


def _covers(asked: Asked[Any], stored: Results, results: Results) -> bool:
    del stored
    flags = asked.group(Networks)
    kinds = ("linearized", "standard") if flags.evaluate else ()
    return all(len(results["runs"][kind]) >= flags.num_trained for kind in kinds)


def _extended(asked: Asked[Any], stored: Results, results: Results) -> Asked[Any]:
    if "accuracy" not in results:
        return asked
    flags = asked.group(Networks)
    runs, finite = stored["num_runs"], stored["num_finite_runs"]
    finite = runs if finite is None else finite
    if flags.evaluate:
        runs, finite = max(runs, flags.num_runs), max(finite, flags.num_trained)
    finite = None if finite == runs else finite
    return asked.replaced(num_runs=runs, num_finite_runs=finite)


def _work(job: Job, loaded: Loaded) -> Results:
    (images, (key_method, key_networks, key_attack)), asked = loaded, job.asked
    flags, name, workdir = asked.group(Networks), asked.method.name, job.workdir
    mean, earlier = images.statistics.mean, workdir.earlier()
    made = made_set.made_or_read(
        *(asked.method, asked.config, images),
        key=key_method,
        loops=job,
        called="distill",
        mean=mean,
    )
    noise = kernel_methods.noise(images, asked.config, key_method)
    made = made._replace(state=Kept(noise=noise))
    shown = JUDGES["copies"].run(images, made, copies.Config(), key=key_networks)
    asked_for = asked.group(Data).num_train
    of = f"{asked_for} images of {asked.group(Data).dataset}"
    if name != "full":
        told = f"{name}: {of} distilled to {len(made.images)}, labels below"
        sets.draw(images, made, workdir.path("distilled.png"), title=told)
        sets.draw_nearest(images, made, shown.made, workdir.path("nearest.png"))
    results = _made.figures(job, made, shown.figures) | {
        "task": asked.config.task,
        "num_images": asked_for,
        "noise_ratio": getattr(asked.config, "noise_ratio", 0.0),
        "loss": float(made.losses[-1]) if len(made.losses) else None,
    }
    entries = ("accuracy", "accuracy_released_label_fault", "runs", "attack")
    results |= {entry: earlier[entry] for entry in entries if entry in earlier}
    if flags.evaluate:
        stage = job.stage("evaluate", description="train")
        judge = JUDGES["transfer"]
        results |= judge.run(images, made, flags, key=key_networks, stage=stage).figures
        for trained in workdir.checkpoint_folder.glob("standard_*[0-9]"):
            shutil.rmtree(trained)  # what is told of it is kept instead
    if flags.attack:
        found = JUDGES["defence"].run(
            *(images, made, flags),
            key=key_attack,
            attack_key=jax.random.fold_in(jax.random.key(1), job.seed),
            stage=job.stage("attack", "attack"),
        )
        results["attack"] = found.figures
        _keep(workdir, images, name, found)
    spent = {"evaluate": None, "attack": None, **earlier.get("seconds", {})}
    return results | {"seconds": spent | job.seconds()}


def _keep(workdir: Workdir, images: ImageSet, name: str, judged: Judged) -> None:
    """Keeps what the attacks found, and draws how near it is."""
    found, told = judged.made, judged.figures
    made = {f"reconstructions_{attack}": array for attack, array in found.items()}
    workdir.write_arrays("attack.npz", **made)
    plots.curve(
        {f"{name}, {attack}": told[attack]["squared_distances"] for attack in found},
        workdir.path("defence.png"),
        image_shape=images.image_shape,
        title="Original images against what the attacker finds",
    )


KIND = Kind(
    groups=(Data, Networks, Run),
    defaults=lambda *_: {"num_train": 500, "workdir": "runs/distill"},
    passed_over=passed_over,
    check=fits,
    load=load,
    work=_work,
    told=_made.told,
    stages={"evaluate": "accuracy", "attack": "attack"},
    later=lambda _: ("evaluate", "attack", "num_runs", "num_finite_runs"),
    covers=_covers,
    extended=_extended,
    files=("arrays.npz",),
)
