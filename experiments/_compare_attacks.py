"""`experiments.compare --attacks=all`: one set judged by attacks of all three kinds.

Evasion: test images are changed until networks trained on the set misread them.
Poisoning: 1% of the training images become copies of a test image under a false class
before the set is made. Reconstruction: the set is published; a training image is
recovered if one of the set comes as near to it as a reconstruction must.

`METHOD_curvature` adds the curvature regulariser (GUARD, arXiv:2403.10045) where the
method has a place for it: dc and dsa match the gradient of the regularised loss of the
real images; of all others the set is the same, and the networks that are trained on it
are regularised.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _defence, _run, _timed_sets
from experiments._timed_sets import TimedSet
from experiments._workdir import Workdir, versions
from ntk_privacy import poisoning
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import dc
from ntk_privacy.evaluation import named_attacks, protocol, rates, robust_accuracy
from ntk_privacy.evaluation.reconstruction_curve import RECOVERED_PSNR
from ntk_privacy.evaluation.robust_accuracy import RobustnessWarning
from ntk_privacy.evasion import threat_model
from ntk_privacy.models import ConvNet, saved
from ntk_privacy.poisoning import Scene, direct
from ntk_privacy.reports import plots

SUFFIX = "_curvature"
ATTACKS = ("pgd", "autoattack")
# Of networks trained on a set; a tenth of the paper's epochs, ten times the step.
NUM_EPOCHS, LEARNING_RATE = 100, 0.1
_MATCH_GRADIENTS = ("dc", "dsa")
_ATTACK_BATCH = 100


class _Judge:
    """One comparison: sets, networks and attacks, each kept in the folder."""

    def __init__(self, config: Any, workdir: Workdir, images: ImageSet) -> None:
        self.config, self.workdir, self.images = config, workdir, images
        width = config.width or _timed_sets.flags_of("dm", config).width
        self.model = ConvNet(images.num_classes, width)

    def distil(self, name: str, seed: int, images: ImageSet, told: str) -> TimedSet:
        """Returns a distilled set; one that is on disk is read back."""
        config, base = self.config, name.removesuffix(SUFFIX)
        flat = name != base and base in _MATCH_GRADIENTS
        file = f"set_{seed}_{name if flat else base}_{told}"
        if self.workdir.path(f"{file}.npz").exists():
            stored = self.workdir.read_arrays(f"{file}.npz")
            return TimedSet(
                stored["images"],
                stored["labels"],
                int(stored["steps"]),
                float(stored["seconds"]),
                stored.get("noise"),
            )
        key_made, key_random = jax.random.split(jax.random.key(seed))
        if base == "random":
            made = _timed_sets.random(config, images, key_random)
        else:
            numbers = {
                name: getattr(config, name)
                for name in ("penalty_weight", "penalty_step")
                if flat
            }
            made = _timed_sets.make(
                base,
                config,
                images,
                key_made,
                folder=self.workdir.path(file),
                rate=config.rate,
                **numbers,
            )
        arrays = {k: v for k, v in made._asdict().items() if v is not None}
        self.workdir.write_arrays(f"{file}.npz", **arrays)
        if told == "clean":
            plots.pictures(
                made.images * self.images.normal.deviation,
                self.workdir.path(f"{file}.png"),
                mean=self.images.normal.mean,
                notes=[f"class {label}" for label in made.labels],
                columns=10,
                title=f"{name}: {len(images.x_train)} images of {config.dataset}",
            )
        return made

    def train(
        self, made: TimedSet, key: jax.Array, regularize: Any, target: jax.Array
    ) -> protocol.Evaluated:
        """Trains networks on a set, tests them and asks about the target."""
        return protocol.evaluate(
            jnp.asarray(made.images),
            jnp.asarray(made.labels, jnp.int32),
            jnp.asarray(self.images.normalised(self.images.x_test)),
            jnp.asarray(self.images.class_test),
            model=self.model,
            key=key,
            num_networks=self.config.num_networks,
            num_epochs=NUM_EPOCHS,
            targets=target,
            operations=self.images.operations,
            learning_rate=LEARNING_RATE,
            regularize=regularize,
        )

    def evade(self, found: protocol.Evaluated, seed: int) -> dict[str, Any]:
        """Attacks the first network; images are the same for all methods."""
        images, config = self.images, self.config
        draw = np.random.default_rng(seed).permutation(len(images.x_test))
        rows = np.sort(draw[: config.num_attacked])
        first = jax.tree.map(lambda leaf: leaf[0], found.state.params)
        logits_fn = saved.logits_fn(self.model, first, **images.normal._asdict())
        with warnings.catch_warnings():
            # They are in the results.
            warnings.simplefilter("ignore", RobustnessWarning)
            attacked = robust_accuracy.robust_accuracy(
                logits_fn,
                images.x_test[rows],
                np.asarray(images.class_test[rows], np.int32),
                key=jax.random.key(seed),
                attacks=ATTACKS,
                threat_model=threat_model.of_text(config.eps),
                batch_size=_ATTACK_BATCH,
                num_steps=config.attack_steps,
                num_queries=config.num_queries,
            )
        return {
            "accuracy_attacked": attacked.clean,
            **{name: attacked.accuracy[name] for name in ATTACKS},
            "warnings": list(attacked.warnings),
        }

    def reconstruct(self, made: TimedSet) -> dict[str, Any]:
        """Tells how many images of a set are as good as a training image.

        Entries that are noise for good are left out: they alone would hide a copy.
        """
        images = self.images
        mean, deviation = images.normal
        real = _defence.Real(images.x_train - mean, mean)
        near: Any = _defence.nearest(real, made.images * deviation, made.noise)
        psnr = near["psnr" if made.noise is None else "psnr_outside_noise"]
        share = float(np.mean(np.asarray(psnr) >= RECOVERED_PSNR))
        return {"recovered": share, "psnr": psnr}

    def cell(self, method: str, seed: int, scene: Scene) -> dict[str, Any]:
        """Judges a method with one seed; a finished cell is read back."""
        about = f"cell_{seed}_{method}.json"
        if self.workdir.path(about).exists():
            return self.workdir.read_json(about)
        images, config = self.images, self.config
        base = method.removesuffix(SUFFIX)
        regularize = None
        if method != base and base not in _MATCH_GRADIENTS:
            regularize = dc.regularize(config.penalty_weight, config.penalty_step)
        target = jnp.asarray(images.x_test[scene.target])
        poison = direct.poison(target, num_poisons=len(scene.where))
        clean = jnp.asarray(images.x_train)
        poisoned = images.replaced(direct.replace(clean, poison, scene.where))
        key = jax.random.fold_in(jax.random.key(seed), 1)
        kinds = {"clean": images, "poisoned": poisoned}
        made = {told: self.distil(method, seed, kinds[told], told) for told in kinds}
        asked = jnp.asarray(images.normalised(target[None]))
        found = {
            told: self.train(one, key, regularize, asked) for told, one in made.items()
        }
        entry = {
            "method": method,
            "seed": seed,
            "class": scene.target_class,
            "adversarial_class": scene.adversarial_class,
            "accuracies": found["clean"].accuracy,
            "accuracies_poisoned": found["poisoned"].accuracy,
            "target_classes": found["poisoned"].target_classes[:, 0],
            "target_classes_clean": found["clean"].target_classes[:, 0],
            **self.evade(found["clean"], seed),
            **self.reconstruct(made["clean"]),
            "steps": made["clean"].steps,
            "seconds": made["clean"].seconds,
        }
        self.workdir.write_json(about, entry)
        return self.workdir.read_json(about)


def row(method: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a method's row: means over seeds and networks.

    Args:
      method: its name.
      cells: of all methods.
    """
    mine = [cell for cell in cells if cell["method"] == method]

    def every(name: str) -> np.ndarray:
        return np.array([value for cell in mine for value in cell[name]])

    accuracy = rates.mean_and_deviation(every("accuracies"))

    def hits(name: str) -> list[bool]:
        return [
            found == cell["adversarial_class"] for cell in mine for found in cell[name]
        ]

    told = ("accuracy_attacked", *ATTACKS, "recovered", "steps", "seconds")
    return {
        "method": method,
        "accuracy": accuracy.mean,
        "accuracy_std": accuracy.deviation,
        "accuracy_poisoned": float(np.mean(every("accuracies_poisoned"))),
        "attack_success": float(np.mean(hits("target_classes"))),
        # The control: what networks trained without poison take the target for.
        "success_without_attack": float(np.mean(hits("target_classes_clean"))),
        "num_decisions": len(hits("target_classes")),
        "num_targets": len(mine),
        "best_psnr": max(float(value) for cell in mine for value in cell["psnr"]),
        **{name: float(np.mean([cell[name] for cell in mine])) for name in told},
    }


def names(config: Any) -> list[str]:
    """Returns what a table may call the attacks.

    Args:
      config: has attack_steps and num_queries.
    """
    given = {"num_steps": config.attack_steps, "num_queries": config.num_queries}
    return [
        named_attacks.honest_name(name, shown=shown, **given)
        for name, shown in zip(ATTACKS, ("PGD", "AutoAttack"), strict=True)
    ]


def markdown(table: list[dict[str, Any]], called: list[str]) -> str:
    """Returns the table: a row per method, in per cent.

    Args:
      table: rows of `row`.
      called: of `names`.
    """
    head = ["method", "accuracy", "attacked images, clean", *called]
    head += ["poisoning succeeds", "without attack", "set recovers", "best PSNR, dB"]
    lines = [head, ["---"] * len(head)]
    for one in table:
        rate = rates.Rate(one["accuracy"], one["accuracy_std"]).scaled(100)
        told = ("accuracy_attacked", *ATTACKS, "attack_success")
        told += ("success_without_attack", "recovered")
        shares = [f"{100 * one[name]:.1f}" for name in told]
        lines.append([one["method"], f"{rate:.1f}", *shares, f"{one['best_psnr']:.1f}"])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def run(config: Any, images: ImageSet, *, ignore: tuple[str, ...]) -> dict[str, Any]:
    """Judges all methods; returns what results.json holds.

    Args:
      config: of `experiments.compare`.
      images: to distil, checked for the methods.
      ignore: flags that may differ when a run goes on in its folder.

    Raises:
      UsageError: the folder belongs to another configuration, or the rate does not fit
        the image set.
      ValueError: a file is damaged, or a loss is not finite.
    """
    # All before the folder is touched: a seed that cannot be is told at once.
    seeds = range(config.seed, config.seed + config.num_seeds)
    with _run.flags_at_fault():
        scenes = {
            seed: poisoning.scene(images, seed=seed, rate=config.rate) for seed in seeds
        }
    with Workdir(config.workdir, config, ignore=(*ignore, "num_seeds")) as workdir:
        judge = _Judge(config, workdir, images)
        methods = ("random", *config.methods)
        cells = [
            judge.cell(method, seed, scene)
            for seed, scene in scenes.items()
            for method in methods
        ]
        table = [row(method, cells) for method in methods]
        results: dict[str, Any] = {
            "dataset": config.dataset,
            "images_per_class": config.images_per_class,
            "seconds": config.seconds,
            "eps": threat_model.of_text(config.eps).eps,
            "rate": config.rate,
            "num_attacked": min(config.num_attacked, len(images.x_test)),
            "recovered_psnr": RECOVERED_PSNR,
            "table": table,
            "runs": cells,
            "versions": versions(),
            "markdown": markdown(table, names(config)),
        }
        results["device"] = results["versions"].pop("device")
        workdir.write_text("table.md", results["markdown"] + "\n")
        workdir.write_json("results.json", results)
        return workdir.read_json("results.json")
