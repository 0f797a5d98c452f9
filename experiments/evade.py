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
import shutil
from typing import Any

import jax

from experiments import _flags, _image_sets, _progress, _run
from experiments._groups import Run, Source
from experiments._program import Asked, Program
from experiments._workdir import Workdir
from ntk_privacy import _checks
from ntk_privacy.data import ArgumentError
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.evaluation import attacked_model, attacked_set
from ntk_privacy.evaluation.attacked_model import Model
from ntk_privacy.evaluation.attacked_set import Config as Attacks
from ntk_privacy.method import field
from ntk_privacy.reports import adversarial_plots, adversarial_table
from ntk_privacy.resume import Timer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Source):
    """Images."""

    dataset: str = _image_sets.dataset_field("cifar10")
    num_images: int | None = field(500, "Test images, at most; none is all of them.")

    def __post_init__(self):
        super().__post_init__()
        _checks.at_least(
            1, num_images=1 if self.num_images is None else self.num_images
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvadeRun(Run):
    """The run."""

    workdir: str = field("runs/evade", "Folder of the results.")


PROGRAM = Program(
    about="Attacks a model and tells how much of its accuracy is left.",
    methods=attacked_model.MODELS,
    groups=lambda _: (Attacks, Images, EvadeRun),
    default="none",
    check=lambda asked: asked.method.check(None, asked.config),
    flag="train",
)


def _found(asked: Asked[Any]) -> tuple[ImageSet, Model | None]:
    """Returns the images, and the model there is, before the folder is touched."""
    config, trains = asked.group(Attacks), asked.method.name != "none"
    with _flags.usage(ArgumentError, train="num_train"):
        images = _image_sets.at_most(
            asked.group(Images),
            num_train=asked.config.num_train if trains else 1,
            num_test=asked.group(Images).num_images,
            every_class=trains,
        )
        model = None if trains else asked.method.run(images, asked.config)
        classes = attacked_model.check(model, images, config.batch_size)
    with _flags.usage(train="num_train"):
        config.stages(classes)
    return images, model


def run(asked: Asked[Any]) -> dict[str, Any]:
    """Runs one configuration; returns what results.json holds.

    Raises:
      UsageError: the folder is of another configuration, or flags do not fit the model.
      OSError, ValueError: a file is missing or damaged, or logits are NaN.
    """
    trains = asked.method.name != "none"
    if trains and (known := _run.told(PROGRAM, asked, (), "arrays.npz")) is not None:
        return known  # of its own network
    images, model = _found(asked)
    with _run.opened(PROGRAM, asked) as workdir:
        if not (workdir.is_done() and workdir.path("arrays.npz").exists()):
            return _attacked(asked, workdir, images, model)
        known = workdir.read_arrays("arrays.npz").get("probe")
        if model is not None and known is not None:  # older results have none
            key = jax.random.fold_in(jax.random.key(asked.group(EvadeRun).seed), 1)
            attacked_set.refuse_another(model.logits_fn, images, known, key=key)
        return workdir.read_json("results.json")


def _attacked(
    asked: Asked[Any], workdir: Workdir, images: ImageSet, model: Model | None
) -> dict[str, Any]:
    config, paced = asked.group(Attacks), asked.group(EvadeRun)
    dataset, folder = asked.group(Images).dataset, workdir.checkpoint_folder
    key = jax.random.key(paced.seed)
    training, attacking = Timer(), Timer()
    model = model or attacked_model.trained(
        asked.method,
        images,
        asked.config,
        workdir.path("model"),
        seed=paced.seed,
        threat_model=config.threat_model,
        about={"dataset": dataset},
        stage=_progress.stage(paced, folder, training),
        timer=training,
    )
    found = attacked_set.attack(
        model.logits_fn,
        images.x_test,
        images.class_test,
        config,
        key=jax.random.fold_in(key, 1),
        stage=_progress.stage(paced, folder, attacking, loss="accuracy"),
        clock=attacking.elapsed,
    )
    path = workdir.path("adversarial.png")
    adversarial_plots.attacked(model, images, found.found, config, path, key=key)
    workdir.write_arrays("arrays.npz", **attacked_set.arrays(images, found))
    told = attacked_set.figures(found, config)
    told["seconds"]["train"] = training.run
    told["seconds"]["compile"] = training.compile + attacking.compile
    told = _run.finished(workdir, told | {"dataset": dataset, "model": model.about})
    shutil.rmtree(folder, ignore_errors=True)
    return told


def main(asked: Asked[Any]) -> None:
    """Runs and prints the table."""
    results, config = run(asked), asked.group(Attacks)
    print(adversarial_table.table(results))
    if config.survivors_only and len(config.attacks) > 1:
        print("Each attack had what those above it left (--nosurvivors_only: all).")
    print(f"adversarial.png and results.json are in {asked.group(EvadeRun).workdir}")


if __name__ == "__main__":
    _flags.run(main, PROGRAM)
