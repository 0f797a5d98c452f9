"""Attacks a trained model and tells how much of its accuracy is left.

    python -m experiments.evade --train=plain --dataset=digits --eps=0.1 \
        --attacks=pgd,apgd_ce,square,autoattack --workdir=runs/evade_digits
    python -m experiments.evade --model=runs/evade_digits/model --dataset=digits ...
    python -m experiments.evade --model=my_module:make_logits_fn --dataset=cifar10 ...

The model is a folder that `models.saved.save` wrote (`experiments.distill --evaluate`
with dm and its kind leaves one), a `module:function` that returns a `logits_fn`, or one
that is trained first and kept in the folder's model/. Writes config.json, results.json,
arrays.npz and adversarial.png to --workdir. Killed and started again with the same
--workdir, it ends with the same arrays to the bit.
"""

import dataclasses
from typing import Any

import jax

from ntk_privacy.data import ArgumentError
from ntk_privacy.data.choice import Choice
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.evaluation import attacked_model, attacked_set
from ntk_privacy.evaluation.attacked_model import Model
from ntk_privacy.evaluation.attacked_set import Config as Attacks
from ntk_privacy.method import field
from ntk_privacy.reports import adversarial_plots, summaries
from ntk_privacy.reports.workdir import Workdir

from . import _flags, _run
from ._groups import Run
from ._job import Job
from ._kinds import Kind, Results
from ._program import Asked, Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Choice):
    """Images."""

    num_attacked: int | None = field(
        500, "Test images to attack, at most; none is all.", former=("num_images",)
    )


def _check(asked: Asked[Any]) -> None:
    try:
        asked.method.check(None, asked.config)
    except ArgumentError as error:
        raise ValueError(f"{error} (--train=plain, adversarial)") from error


def _load(asked: Asked[Any]) -> tuple[ImageSet, Model | None]:
    """Returns the images, and the model there is."""
    config, data = asked.group(Attacks), asked.group(Images)
    trains = asked.method.name != "none"
    whole, train = data.read(), asked.config.num_train if trains else 1

    there = (train, whole.class_train), (data.num_attacked, whole.class_test)
    train, test = (None if n is None else min(n, len(has)) for n, has in there)
    images = whole.subset(num_train=train, num_test=test, every_class=trains)
    model = None if trains else asked.method.run(images, asked.config)
    classes = attacked_model.check(model, images, config.batch_size)
    with _flags.usage():
        config.stages(classes)
    return images, model


def _refuse_another(asked: Asked[Any], workdir: Workdir) -> None:
    if asked.method.name != "none":
        return  # a network that the run itself trained is the one that it was
    images, model = _load(asked)
    known = workdir.read_arrays("arrays.npz").get("probe")
    if model is not None and known is not None:  # older results have none
        key = jax.random.fold_in(jax.random.key(asked.group(Run).seed), 1)
        attacked_set.refuse_another(model.logits_fn, images, known, key=key)


def _work(job: Job, loaded: Any) -> Results:
    (images, model), asked, workdir = loaded, job.asked, job.workdir
    config, dataset = asked.group(Attacks), asked.group(Images).dataset
    key = jax.random.key(job.seed)
    model = model or attacked_model.trained(
        *(asked.method, images, asked.config, workdir.path("model")),
        seed=job.seed,
        threat_model=config.threat_model,
        about={"dataset": dataset},
        stage=job.stage("train"),
        timer=job.timer("train"),
    )
    found = attacked_set.attack(
        *(model.logits_fn, images.x_test, images.class_test, config),
        key=jax.random.fold_in(key, 1),
        stage=job.stage("attack", loss="accuracy"),
        clock=job.timer("attack").elapsed,
    )
    path = workdir.path("adversarial.png")
    adversarial_plots.attacked(model, images, found.found, config, path, key=key)
    workdir.write_arrays("arrays.npz", **attacked_set.arrays(images, found))
    told, spent = attacked_set.figures(found, config), job.seconds()
    told["seconds"] |= {name: spent[name] for name in ("train", "compile")}
    return told | {"dataset": dataset, "model": model.about}


def _told(asked: Asked[Any], results: Results) -> str:
    config, text = asked.group(Attacks), summaries.adversarial(results)
    if config.survivors_only and len(config.attacks) > 1:
        text += "\nEach attack had what those above it left (--nosurvivors_only: all)."
    return _run.placed(asked, text, "adversarial.png")


KIND = Kind(
    groups=(Attacks, Images, Run),
    defaults=lambda *_: {"dataset": "cifar10", "workdir": "runs/evade"},
    check=_check,
    load=_load,
    work=_work,
    timers=("train",),
    told=_told,
    files=("arrays.npz",),
    look=_refuse_another,
    tidy=True,
)
PROGRAM = Program(
    about="Attacks a model and tells how much of its accuracy is left.",
    methods=attacked_model.MODELS,
    kind=lambda _: KIND,
    default="none",
    flag="train",
)
run, main = _run.run, _run.main

if __name__ == "__main__":
    _flags.run(main, PROGRAM.parse)
