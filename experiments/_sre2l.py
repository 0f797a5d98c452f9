"""`experiments.distill` with sre2l and cda: squeeze, recover, relabel, train, attack.

Each stage leaves its result in the folder and goes on from its last checkpoint.
"""

import pathlib
import shutil
from typing import Any

import numpy as np

from experiments import _image_sets, _sre2l_evaluation
from experiments._image_sets import Images
from experiments._sre2l_config import Config
from experiments._sre2l_stages import Stages
from experiments._workdir import Workdir, versions
from ntk_privacy.models import saved
from ntk_privacy.reports import plots

NOT_RESULTS = ("workdir", "progress", "checkpoint_seconds", "data_dir", "download")
_ATTACK = ("eps", "attack_steps", "num_queries", "attacks", "judged_on")
# Who judges and on what: the networks are the same.
LATER = ("evaluate", "baseline", "num_test", *_ATTACK)


def run(config: Config) -> dict[str, Any]:
    """Runs one configuration; returns what results.json holds.

    Raises:
      UsageError: the folder belongs to another configuration, or more images are asked
        for than there are.
      OSError: a file is missing.
      ValueError: a file is damaged, or a loss is not finite.
    """
    there = (pathlib.Path(config.workdir) / "results.json").exists()
    # Read before anything is computed: hours later it might be gone.
    beside = _sre2l_evaluation.baseline(config)
    images = None if there else _load(config)
    ignore = _image_sets.not_results(config, NOT_RESULTS + LATER)
    if config.regularizer == "adversarial":
        # It is part of the training.
        ignore = tuple(name for name in ignore if name != "eps")
    with Workdir(config.workdir, config, ignore=ignore) as workdir:
        if workdir.is_done():
            known = workdir.read_json("results.json")
            same = known.get("judging") == _judging(config)
            if not config.evaluate or ("accuracy" in known and same):
                if "accuracy" in known and beside is not None:
                    _sre2l_evaluation.draw(config, workdir, known["num_images"], beside)
                    workdir.write_json("config.json", config)
                return known
        workdir.write_json("config.json", config)
        return _Run(config, workdir, images or _load(config), beside)()


def _load(config: Config) -> Images:
    return _image_sets.load(
        config,
        num_train=config.num_images,
        num_test=config.num_test,
        judged_on=config.judged_on,
    )


def _judging(config: Config) -> dict[str, Any]:
    """Returns the flags that judge, as JSON holds them."""
    told = {name: getattr(config, name) for name in (*_ATTACK, "num_test")}
    return told | {"attacks": list(config.attacks or ())}


class _Run:
    """The stages of one configuration, and what their results tell."""

    def __init__(
        self,
        config: Config,
        workdir: Workdir,
        images: Images,
        beside: np.ndarray | None,
    ) -> None:
        self.config, self.workdir, self.images = config, workdir, images
        self.beside, self.stages = beside, Stages(config, workdir, images)

    def draw(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Draws the distilled images."""
        config: Any = self.config
        each, count = config.images_per_class, len(self.images.x)
        plots.pictures(
            images * self.images.deviation,
            self.workdir.path("distilled.png"),
            mean=self.images.mean,
            notes=[f"class {label}" for label in labels],
            columns=min(each, 10) if each > 1 else 5,
            title=f"{config.method}, regularizer {config.regularizer}: {count} "
            f"images of {config.dataset} condensed to {each} of each class",
        )

    def eigenvalues(self, **networks: Any) -> dict[str, np.ndarray]:
        """Returns those of each network, at training images: what is there is kept."""
        if not self.workdir.path("eigenvalues.npz").exists():
            model, key = self.stages.model, self.stages.keys["evaluate"]
            found = {
                name: _sre2l_evaluation.eigenvalues(self.images, model, network, key)
                for name, network in networks.items()
            }
            self.workdir.write_arrays("eigenvalues.npz", **found)
        return self.workdir.read_arrays("eigenvalues.npz")

    def __call__(self) -> dict[str, Any]:
        """Runs what is not there yet; returns the results."""
        config: Any = self.config
        stages = self.stages
        teacher = stages.squeeze()
        recovered = stages.recover(teacher)
        if bool(recovered.nonfinite):
            raise ValueError(
                f"The loss of recover is not finite: lower "
                f"learning_rate={config.learning_rate}."
            )
        labels = stages.relabel(recovered.images, teacher)
        student = stages.post_train(recovered.images, labels)
        images, classes = np.asarray(recovered.images), np.asarray(recovered.labels)
        self.workdir.write_arrays(
            "arrays.npz",
            images=images,
            labels=classes,
            mean=self.images.mean,
            deviation=self.images.deviation,
            **{f"losses_{name}": values for name, values in stages.losses.items()},
        )
        self.draw(images, classes)
        # Where experiments.evade looks for a model.
        for folder, (params, stats) in (("", student), ("squeezed", teacher)):
            saved.save(
                self.workdir.path(folder),
                stages.model,
                params,
                stats=stats,
                image_shape=stages.x.shape[1:],
                mean=self.images.mean,
                deviation=self.images.deviation,
            )
        results: dict[str, Any] = {
            "method": config.method,
            "regularizer": config.regularizer,
            "penalty_weight": config.penalty_weight,
            "dataset": config.dataset,
            "preset": config.preset,
            "num_images": len(self.images.x),
            "num_test": len(self.images.x_test),
            "num_distilled": len(images),
            "width": config.width,
            "seed": config.seed,
            "judging": _judging(config),
            "accuracy_squeezed": _sre2l_evaluation.accuracy(
                self.images, stages.model, teacher
            ),
        }
        if config.evaluate:
            with stages.timers["evaluate"]():
                results["accuracy"], results["autoattack_left"] = (
                    _sre2l_evaluation.attack(
                        config,
                        self.workdir,
                        self.images,
                        stages.model,
                        student,
                        stages.keys["evaluate"],
                    )
                )
                found = self.eigenvalues(squeezed=teacher, student=student)
            results["top_hessian_eigenvalue"] = {
                name: float(np.mean(values)) for name, values in found.items()
            }
            _sre2l_evaluation.draw(
                config, self.workdir, len(self.images.x), self.beside
            )
        seconds = {name: timer.run for name, timer in stages.timers.items()}
        seconds["compile"] = sum(timer.compile for timer in stages.timers.values())
        results |= {"seconds": seconds, "versions": versions()}
        results["device"] = results["versions"].pop("device")
        # Last: its presence says that the run is whole.
        self.workdir.write_json("results.json", results)
        shutil.rmtree(self.workdir.checkpoint_folder / "relabel", ignore_errors=True)
        return self.workdir.read_json("results.json")


def summary(results: dict[str, Any]) -> str:
    """Returns a short table for the terminal."""
    rows = [
        ("judged on", f"{results['num_test']} {results['judging']['judged_on']} images")
    ]
    rows += [("squeezed network, clean", f"{100 * results['accuracy_squeezed']:.2f}%")]
    for name, value in results.get("accuracy", {}).items():
        rows.append((f"student, {name}", f"{100 * value:.2f}%"))
    for name, value in results.get("top_hessian_eigenvalue", {}).items():
        rows.append((f"top eigenvalue, {name}", f"{value:.3g}"))
    spent = [f"{name} {s:.1f}" for name, s in results["seconds"].items() if s]
    rows.append(("seconds", ", ".join(spent)))
    size = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{size}}  {value}" for name, value in rows)


def main(config: Config) -> None:
    """Runs and prints the summary."""
    print(summary(run(config)))
    print(f"distilled.png and results.json are in {config.workdir}")
