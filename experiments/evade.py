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

from experiments import _flags, _run
from experiments._groups import Run, Source, dataset_field
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

    dataset: str = dataset_field("cifar10")
    num_attacked: int | None = field(
        500, "Test images to attack, at most; none is all.", former=("num_images",)
    )

    def __post_init__(self):
        super().__post_init__()
        if self.num_attacked is not None:
            _checks.at_least(1, num_attacked=self.num_attacked)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvadeRun(Run):
    """The run."""

    workdir: str = field("runs/evade", "Folder of the results.")


def _check(asked: Asked[Any]) -> None:
    try:
        asked.method.check(None, asked.config)
    except ArgumentError as error:
        raise ValueError(f"{error} (--train=plain, adversarial)") from error


PROGRAM = Program(
    about="Attacks a model and tells how much of its accuracy is left.",
    methods=attacked_model.MODELS,
    groups=lambda _: (Attacks, Images, EvadeRun),
    default="none",
    check=_check,
    flag="train",
)


def run(asked: Asked[Any]) -> dict[str, Any]:
    """Runs one configuration; returns what results.json holds.

    Raises:
      UsageError: the folder is of another configuration, or flags do not fit the model.
      OSError, ValueError: a file is missing or damaged, or logits are NaN.
    """
    # A network that the run itself trained is the one that it was.
    look = _refuse_another if asked.method.name == "none" else None
    return _run.resumed(
        asked, _load, _work, files=("arrays.npz",), look=look, tidy=True
    )


def _load(asked: Asked[Any]) -> tuple[ImageSet, Model | None]:
    """Returns the images, and the model there is."""
    config, data = asked.group(Attacks), asked.group(Images)
    trains = asked.method.name != "none"
    whole, train = data.read(), asked.config.num_train if trains else 1

    there = (train, whole.class_train), (data.num_attacked, whole.class_test)
    train, test = (None if n is None else min(n, len(has)) for n, has in there)
    with _flags.usage(ArgumentError):
        images = whole.subset(num_train=train, num_test=test, every_class=trains)
        model = None if trains else asked.method.run(images, asked.config)
        classes = attacked_model.check(model, images, config.batch_size)
    with _flags.usage():
        config.stages(classes)
    return images, model


def _refuse_another(asked: Asked[Any], workdir: Workdir) -> None:
    images, model = _load(asked)
    known = workdir.read_arrays("arrays.npz").get("probe")
    if model is not None and known is not None:  # older results have none
        key = jax.random.fold_in(jax.random.key(asked.group(Run).seed), 1)
        attacked_set.refuse_another(model.logits_fn, images, known, key=key)


def _work(asked: Asked[Any], workdir: Workdir, loaded: Any) -> dict[str, Any]:
    (images, model), config, run = loaded, asked.group(Attacks), asked.group(Run)
    dataset, folder = asked.group(Images).dataset, workdir.checkpoint_folder
    key, training, attacking = jax.random.key(run.seed), Timer(), Timer()
    model = model or attacked_model.trained(
        *(asked.method, images, asked.config, workdir.path("model")),
        seed=run.seed,
        threat_model=config.threat_model,
        about={"dataset": dataset},
        stage=_run.stage(run, folder, training),
        timer=training,
    )
    found = attacked_set.attack(
        *(model.logits_fn, images.x_test, images.class_test, config),
        key=jax.random.fold_in(key, 1),
        stage=_run.stage(run, folder, attacking, loss="accuracy"),
        clock=attacking.elapsed,
    )
    path = workdir.path("adversarial.png")
    adversarial_plots.attacked(model, images, found.found, config, path, key=key)
    workdir.write_arrays("arrays.npz", **attacked_set.arrays(images, found))
    told = attacked_set.figures(found, config)
    told["seconds"]["train"] = training.run
    told["seconds"]["compile"] = training.compile + attacking.compile
    return told | {"dataset": dataset, "model": model.about}


def main(asked: Asked[Any]) -> None:
    """Runs and prints the table."""
    results, config = run(asked), asked.group(Attacks)
    print(adversarial_table.table(results))
    if config.survivors_only and len(config.attacks) > 1:
        print("Each attack had what those above it left (--nosurvivors_only: all).")
    print(f"adversarial.png and results.json are in {asked.group(Run).workdir}")


if __name__ == "__main__":
    _flags.run(main, PROGRAM)
