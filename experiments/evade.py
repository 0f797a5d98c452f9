"""Attacks a trained model and tells how much of its accuracy is left.

    python -m experiments.evade --train=plain --dataset=digits --eps=0.1 \
        --attacks=pgd,apgd_ce,square,autoattack --workdir=runs/evade_digits

    python -m experiments.evade --model=runs/evade_digits/model --dataset=digits ...
    python -m experiments.evade --model=my_module:make_logits_fn --dataset=cifar10 ...

The model is a folder that `ntk_privacy.models.saved.save` wrote (`experiments.distill
--evaluate` with dm and its kind leaves one in its folder), a `module:function` that
returns a `logits_fn`, or one that is trained first. Writes config.json, results.json,
arrays.npz and adversarial.png to --workdir. Killed at any moment and started again with
the same --workdir, it goes on and ends with the same arrays to the bit.
"""

import dataclasses
import warnings
from typing import Any, Literal, NamedTuple

import jax

from experiments import _attacked_model, _evasion, _flags, _image_sets
from experiments._image_sets import Images
from experiments._workdir import Workdir, versions
from ntk_privacy import _checks, sharding
from ntk_privacy.evaluation import named_attacks
from ntk_privacy.evaluation.robust_accuracy import RobustnessWarning
from ntk_privacy.evasion import ThreatModel
from ntk_privacy.resume import Timer

NOT_RESULTS = ("workdir", "progress", "checkpoint_seconds", "data_dir", "download")


def _field(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Attacks a trained model and tells how much of its accuracy is left."""

    model: str | None = _field(
        None,
        "A folder with a saved network, or module:function that returns a logits_fn: "
        "images in [0, 1] to logits; none trains one, see --train.",
    )
    attacks: tuple[str, ...] = _field(
        ("pgd", "apgd_ce", "square", "autoattack"),
        "In turn, of " + ", ".join(named_attacks.ATTACKS) + ".",
    )
    eps: str = _field("8/255", "Bound of a change, a number or a fraction.")
    norm: Literal["linf", "l2"] = _field("linf", "Of the change.")
    dataset: str = _image_sets.dataset_field("cifar10")
    image_size: int | None = _image_sets.size_field()
    num_images: int | None = _field(500, "Test images, at most; none is all of them.")
    batch_size: int = _field(256, "Images of a batch.")
    survivors_only: bool = _field(
        True,
        "Each attack gets what those before it left; else all images that are read "
        "rightly, to compare attacks.",
    )
    num_steps: int | None = _field(
        None, "Of every attack by steps; none is each one's own."
    )
    num_queries: int = _field(5000, "Of Square.")
    train: Literal["none", "plain", "adversarial"] = _field(
        "none",
        "Train a ConvNet first, on images as they are or attacked by PGD within --eps; "
        "it is kept in the folder's model/.",
    )
    width: int = _field(32, "Channels of the ConvNet.")
    num_train: int | None = _field(
        5000, "Training images, at most; none is all of them."
    )
    num_epochs: int = _field(15, "Of training.")
    train_batch_size: int = _field(128, "Of training.")
    train_attack_steps: int = _field(7, "Of PGD in training.")
    learning_rate: float = _field(0.1, "Greatest rate of training.")
    seed: int = _field(0, "Fixes training and attacks.")
    data_dir: str | None = _field(
        None, "Folder of the image sets; none: NTK_PRIVACY_DATA, else the cache."
    )
    download: bool = _field(False, "Fetch the image set if it is not there.")
    fingerprint: str | None = _image_sets.fingerprint_field()
    workdir: str = _field("runs/evade", "Folder of the results.")
    checkpoint_seconds: float = _field(30.0, "Time between checkpoints.")
    progress: bool = _field(True, "Show a progress bar.")

    def __post_init__(self):
        _image_sets.complete(self)
        if (self.model is None) == (self.train == "none"):
            raise ValueError(
                f"model={self.model} and train={self.train!r}: give a model, or train "
                "one with --train=plain or --train=adversarial."
            )
        _checks.at_least(
            1,
            num_attacks=len(self.attacks),
            batch_size=self.batch_size,
            num_queries=self.num_queries,
            width=self.width,
            num_epochs=self.num_epochs,
            train_batch_size=self.train_batch_size,
            train_attack_steps=self.train_attack_steps,
        )
        for name in ("num_images", "num_train", "num_steps"):
            if getattr(self, name) is not None:
                _checks.at_least(1, **{name: getattr(self, name)})
        _checks.at_least(0, seed=self.seed, checkpoint_seconds=self.checkpoint_seconds)
        _checks.positive(learning_rate=self.learning_rate)
        # Unknown and repeated names, before anything is loaded.
        _planned(self, 1000)

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        if self.model is not None:
            unread = ("width", "num_train", "num_epochs", "train_batch_size")
            unread += ("train_attack_steps", "learning_rate")
            return dict.fromkeys(unread, "--model, which is trained already")
        if self.train == "plain":
            return {"train_attack_steps": "--train=plain"}
        return {}

    @property
    def threat_model(self) -> ThreatModel:
        """What the attacker may do; a ValueError if eps is no bound."""
        return _evasion.threat_model(self.eps, self.norm)


def _planned(config: Config, num_classes: int) -> None:
    named_attacks.plan(
        config.attacks, threat_model=config.threat_model, num_classes=num_classes
    )


class _Normal(NamedTuple):
    """What `_image_sets.load` reads beside the images: normalised by their own."""

    preset: str = "cpu"


def _images(config: Config, trains: bool) -> tuple[Images, tuple[str, ...]]:
    whole = _image_sets.read(config)
    most = {
        "num_train": (config.num_train if trains else 1, len(whole.class_train)),
        "num_test": (config.num_images, len(whole.class_test)),
    }
    # A set may have fewer images than the default.
    sizes = {k: None if n is None else min(n, has) for k, (n, has) in most.items()}
    images = _image_sets.load(_Normal(), whole=whole, every_class=trains, **sizes)
    return images, whole.class_names


def run(config: Config) -> dict[str, Any]:
    """Runs one configuration; returns what results.json holds.

    Raises:
      UsageError: the folder belongs to another configuration, or a flag does not fit
        the model or the image set.
      OSError: a file is missing.
      ValueError: a file is damaged, or logits are NaN.
    """
    trains = config.train != "none"
    # Before the folder is touched: what cannot be had leaves nothing behind.
    images, names = _images(config, trains)
    found = None
    if not trains:
        found = _attacked_model.find(config.model or "", images)
        classes = _attacked_model.check(found, images, config.batch_size)
    else:
        classes = images.num_classes
    try:
        _planned(config, classes)
    except ValueError as error:
        raise _flags.UsageError(str(error)) from error
    ignore = _image_sets.not_results(config, NOT_RESULTS)
    with Workdir(config.workdir, config, ignore=ignore) as workdir:
        if workdir.is_done() and workdir.path("arrays.npz").exists():
            if found is not None:
                _evasion.check_done(workdir, found.logits_fn, images, config)
            return workdir.read_json("results.json")
        training, attacking = Timer(), Timer()
        if found is None:
            found = _attacked_model.trained(config, workdir, images, names, training)
        mesh = sharding.row_mesh() if jax.device_count() > 1 else None
        with warnings.catch_warnings():
            # They are in the results, and printed from there.
            warnings.simplefilter("ignore", RobustnessWarning)
            attacked = _evasion.attack(
                config, workdir, found.logits_fn, images, mesh=mesh, timer=attacking
            )
        _evasion.draw(config, workdir, found.logits_fn, images, attacked, names)
        _evasion.write_arrays(workdir, images, attacked)
        results = {
            "dataset": config.dataset,
            "model": found.about,
            "num_images": len(images.x_test),
            "eps": config.threat_model.eps,
            "norm": config.norm,
            **_evasion.told(attacked),
            "settings": {
                name: named_attacks.settings(
                    name, num_steps=config.num_steps, num_queries=config.num_queries
                )
                for name in config.attacks
            },
            "versions": versions(),
        }
        results["seconds"] |= {
            "train": training.run,
            "compile": training.compile + attacking.compile,
        }
        results["device"] = results["versions"].pop("device")
        # Last: its presence says that the run is whole.
        workdir.write_json("results.json", results)
        _evasion.forget(workdir)
        return workdir.read_json("results.json")


def summary(results: dict[str, Any]) -> str:
    """Returns a short table for the terminal."""
    share = results["accuracy"]
    rows = [("attack", "accuracy %", "queries", "seconds")]
    rows.append(("none", f"{100 * share['clean']:.2f}", "", ""))
    for name in results["settings"]:
        spent = results["seconds"]["attacks"][name]
        queries = f"{results['queries'][name]:.0f}"
        # Older results do not have it.
        called = results.get("names", {}).get(name, name)
        rows.append((called, f"{100 * share[name]:.2f}", queries, f"{spent:.1f}"))
        for part, left in results["left"].get(name, {}).items():
            rows.append((f"  after {part}", f"{100 * left:.2f}", "", ""))
    rows.append(("all within eps", f"{100 * share['ensemble']:.2f}", "", ""))
    size = max(len(row[0]) for row in rows)
    lines = [f"{a:<{size}}  {b:>10}  {c:>8}  {d:>8}".rstrip() for a, b, c, d in rows]
    return "\n".join([*lines, *(f"warning: {w}" for w in results["warnings"])])


def main(config: Config) -> None:
    """Runs and prints the table."""
    results = run(config)
    print(summary(results))
    if config.survivors_only and len(config.attacks) > 1:
        print("Each attack had what those above it left (--nosurvivors_only: all).")
    print(f"adversarial.png and results.json are in {config.workdir}")


if __name__ == "__main__":
    _flags.run(main, Config)
