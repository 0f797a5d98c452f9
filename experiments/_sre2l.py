"""`experiments.distill` with sre2l and cda: squeeze, recover, relabel, train, attack.

Each stage leaves its result in the folder and goes on from its last checkpoint.
"""

import functools
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _image_sets, _sre2l_evaluation
from experiments._image_sets import Images
from experiments._progress import Progress
from experiments._sre2l_config import Config
from experiments._timing import Timer
from experiments._victim import Every
from experiments._workdir import Workdir, versions
from ntk_privacy import checkpoint, curvature
from ntk_privacy.condensation import cda, sre2l
from ntk_privacy.models import ResNet18, saved
from ntk_privacy.reports import plots
from ntk_privacy.training import adversarial, soft_labels, squeeze

NOT_RESULTS = ("workdir", "progress", "checkpoint_seconds", "data_dir", "download")
_ATTACK = ("eps", "attack_steps", "num_queries")
LATER = ("evaluate", "baseline", *_ATTACK)
STAGES = ("squeeze", "recover", "relabel", "post_train")
_CHUNK = 20


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
            asked = {name: getattr(config, name) for name in _ATTACK}
            same = all(known.get(name, asked[name]) == asked[name] for name in asked)
            if not config.evaluate or ("accuracy" in known and same):
                if "accuracy" in known and beside is not None:
                    _sre2l_evaluation.draw(config, workdir, known["num_images"], beside)
                    workdir.write_json("config.json", config)
                return known
        workdir.write_json("config.json", config)
        return _Run(config, workdir, images or _load(config), beside)()


def _load(config: Config) -> Images:
    return _image_sets.load(
        config, num_train=config.num_images, num_test=config.num_test
    )


@functools.cache
def _regularize(mode: str, weight: float, step: float) -> Callable[..., Any]:
    # One object for all calls: compiled programs are looked up by it.
    return functools.partial(curvature.regularize, mode=mode, weight=weight, step=step)


def batch_loss(config: Config, images: Images) -> Any:
    """Returns the loss of the network that is squeezed.

    Args:
      config: has the regulariser and its numbers.
      images: what normalises them.
    """
    if config.regularizer == "none":
        return squeeze.cross_entropy
    if config.regularizer == "adversarial":
        mean, deviation = (
            tuple(map(float, v)) for v in (images.mean, images.deviation)
        )
        return adversarial.PGD(mean, deviation, eps=config.eps)
    weight, share = config.penalty_weight, config.penalty_share
    assert weight is not None
    assert share is not None
    return squeeze.Regularized(
        _regularize(config.regularizer, weight, config.penalty_step), share
    )


class _Run:
    """The stages of one configuration, one method each."""

    def __init__(
        self,
        config: Config,
        workdir: Workdir,
        images: Images,
        beside: np.ndarray | None,
    ) -> None:
        self.config, self.workdir, self.images = config, workdir, images
        self.beside = beside
        # Larger images than those of the small stem are ImageNet's.
        stem = "cifar" if images.x.shape[1] <= 64 else "imagenet"
        self.model = ResNet18(images.num_classes, config.width or 64, stem)
        names = (*STAGES, "evaluate")
        keys = jax.random.split(jax.random.key(config.seed), len(names))
        self.keys = dict(zip(names, keys, strict=True))
        self.timers = {name: Timer() for name in names}
        self.losses: dict[str, np.ndarray] = {}
        self.x = images.normalised(images.x)
        self.classes = jnp.asarray(images.classes)
        self.normal = {"mean": images.mean, "deviation": images.deviation}

    def _stage(
        self, name: str, num_steps: int, start: Any, go: Callable[..., Any]
    ) -> Any:
        """Returns the last state of a stage, from its last checkpoint.

        Args:
          name: of `STAGES`.
          num_steps: steps in all.
          start: the state before the first step.
          go: `(state, callback)` to the last state.
        """
        folder = self.workdir.checkpoint_folder / name
        timer, config = self.timers[name], self.config
        losses = np.full(num_steps, np.nan, np.float32)
        like = {"state": start, "losses": losses, "seconds": np.zeros(2)}
        state, first = start, checkpoint.latest_step(folder) or 0
        if first:
            stored = checkpoint.restore(folder, first, like)
            state = jax.tree.map(jnp.asarray, stored["state"])
            losses = np.array(stored["losses"])
            timer.run, timer.compile = map(float, stored["seconds"])
        self.losses[name] = losses
        if first == num_steps:
            return state
        every = Every(config.checkpoint_seconds)

        def save(step, state):
            spent = np.asarray([timer.elapsed(), timer.compile])
            entry = {"state": state, "losses": losses, "seconds": spent}
            checkpoint.save(folder, step, entry)

        with (
            timer(),
            Progress(
                num_steps,
                description=name,
                first_step=first,
                show=config.progress or None,
            ) as bar,
        ):

            def callback(step, state, metrics):
                if "loss" in metrics:
                    part = np.asarray(metrics["loss"])
                    losses[step - len(part) : step] = part
                    if not np.isfinite(part).all():
                        raise ValueError(
                            f"The loss of {name} is not finite after {step} steps: "
                            "lower its learning rate or the penalty's weight."
                        )
                bar(step, state, metrics)
                if step < num_steps and every():
                    save(step, state)

            state = jax.block_until_ready(go(state, callback))
        save(num_steps, state)
        return state

    def squeeze(self) -> tuple[Any, Any]:
        """Returns parameters and statistics of the network that bears the data."""
        config: Any = self.config
        options = {"model": self.model, "key": self.keys["squeeze"]}
        start = squeeze.init(self.x, **options)
        per_epoch = len(self.x) // min(config.squeeze_batch_size, len(self.x))

        def go(state, callback):
            return squeeze.train(
                self.x,
                self.classes,
                num_epochs=config.squeeze_epochs,
                loss=batch_loss(config, self.images),
                learning_rate=config.squeeze_learning_rate,
                warmup_epochs=config.squeeze_warmup_epochs,
                batch_size=config.squeeze_batch_size,
                weight_decay=config.squeeze_weight_decay,
                flip="flip" in self.images.operations,
                state=state,
                chunk=_CHUNK,
                callback=callback,
                **options,
            )

        state = self._stage("squeeze", per_epoch * config.squeeze_epochs, start, go)
        return state.params, state.stats

    def _min_share(self) -> sre2l.MinShare | None:
        small = self.x.shape[1] <= 32
        if self.config.method == "cda":
            return cda.curriculum(low=0.4 if small else 0.08)
        return None if small else sre2l.constant_crop()

    def recover(self, network: tuple[Any, Any]) -> Any:
        """Returns the distilled images, normalised, and their classes."""
        config: Any = self.config
        shared = {
            "key": self.keys["recover"],
            "image_shape": self.x.shape[1:],
            "num_classes": self.images.num_classes,
            "images_per_class": config.images_per_class,
            "num_steps": config.num_steps,
            "learning_rate": config.learning_rate,
        }

        def go(state, callback):
            return sre2l.recover(
                *network,
                model=self.model,
                mean=tuple(map(float, self.images.mean)),
                deviation=tuple(map(float, self.images.deviation)),
                bn_weight=config.bn_weight,
                jitter=config.jitter,
                signed_jitter=config.dataset == "tiny_imagenet",
                min_share=self._min_share(),
                flip="flip" in self.images.operations,
                state=state,
                chunk=_CHUNK,
                callback=callback,
                **shared,
            ).state

        return self._stage("recover", config.num_steps, sre2l.init(**shared), go)

    def relabel(self, images: Any, network: tuple[Any, Any]) -> Any:
        """Returns the draws and soft labels of all batches."""
        config: Any = self.config
        shared = {
            "key": self.keys["relabel"],
            "num_outputs": self.images.num_classes,
            "num_epochs": config.num_epochs,
            "batch_size": config.batch_size,
            "flip": "flip" in self.images.operations,
        }
        start = soft_labels.init_labels(images, **shared)

        def go(state, callback):
            return sre2l.relabel(
                images,
                *network,
                model=self.model,
                state=state,
                chunk=_CHUNK,
                callback=callback,
                **shared,
            )

        return self._stage("relabel", len(start.order), start, go)

    def post_train(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """Returns parameters and statistics of the student."""
        config: Any = self.config
        options = {"model": self.model, "key": self.keys["post_train"]}
        start = soft_labels.init_student(images, **options)

        def go(state, callback):
            return sre2l.post_train(
                images,
                labels,
                num_epochs=config.num_epochs,
                temperature=config.temperature,
                state=state,
                chunk=_CHUNK,
                callback=callback,
                **options,
            )

        state = self._stage("post_train", len(labels.order), start, go)
        return state.params, state.stats

    def draw(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Draws the distilled images."""
        config: Any = self.config
        each = config.images_per_class
        plots.pictures(
            images * self.images.deviation,
            self.workdir.path("distilled.png"),
            mean=self.images.mean,
            notes=[f"class {label}" for label in labels],
            columns=min(each, 10) if each > 1 else 5,
            title=f"{config.method}, regularizer {config.regularizer}: {len(self.x)} "
            f"images of {config.dataset} condensed to {each} of each class",
        )

    def __call__(self) -> dict[str, Any]:
        """Runs what is not there yet; returns the results."""
        config: Any = self.config
        teacher = self.squeeze()
        recovered = self.recover(teacher)
        if bool(recovered.nonfinite):
            raise ValueError(
                f"The loss of recover is not finite: lower "
                f"learning_rate={config.learning_rate}."
            )
        labels = self.relabel(recovered.images, teacher)
        student = self.post_train(recovered.images, labels)
        images, classes = np.asarray(recovered.images), np.asarray(recovered.labels)
        self.workdir.write_arrays(
            "arrays.npz",
            images=images,
            labels=classes,
            **self.normal,
            **{f"losses_{name}": values for name, values in self.losses.items()},
        )
        self.draw(images, classes)
        # Where experiments.evade looks for a model.
        for folder, (params, stats) in (("", student), ("squeezed", teacher)):
            saved.save(
                self.workdir.path(folder),
                self.model,
                params,
                stats=stats,
                image_shape=self.x.shape[1:],
                **self.normal,
            )
        results: dict[str, Any] = {
            "method": config.method,
            "regularizer": config.regularizer,
            "penalty_weight": config.penalty_weight,
            "dataset": config.dataset,
            "preset": config.preset,
            "num_images": len(self.x),
            "num_test": len(self.images.x_test),
            "num_distilled": len(images),
            "width": config.width,
            "seed": config.seed,
            **{name: getattr(config, name) for name in _ATTACK},
            "accuracy_squeezed": _sre2l_evaluation.accuracy(
                self.images, self.model, teacher
            ),
        }
        if config.evaluate:
            with self.timers["evaluate"]():
                results["accuracy"], results["autoattack_left"] = (
                    _sre2l_evaluation.attack(
                        config,
                        self.workdir,
                        self.images,
                        self.model,
                        student,
                        self.keys["evaluate"],
                    )
                )
                found = {
                    name: _sre2l_evaluation.eigenvalues(
                        self.images, self.model, network, self.keys["evaluate"]
                    )
                    for name, network in (("squeezed", teacher), ("student", student))
                }
            results["top_hessian_eigenvalue"] = float(np.mean(found["squeezed"]))
            results["top_hessian_eigenvalue_student"] = float(np.mean(found["student"]))
            self.workdir.write_arrays("eigenvalues.npz", **found)
            _sre2l_evaluation.draw(config, self.workdir, len(self.x), self.beside)
        seconds = {name: timer.run for name, timer in self.timers.items()}
        seconds["compile"] = sum(timer.compile for timer in self.timers.values())
        results |= {"seconds": seconds, "versions": versions()}
        results["device"] = results["versions"].pop("device")
        # Last: its presence says that the run is whole.
        self.workdir.write_json("results.json", results)
        shutil.rmtree(self.workdir.checkpoint_folder / "relabel", ignore_errors=True)
        return self.workdir.read_json("results.json")


def summary(results: dict[str, Any]) -> str:
    """Returns a short table for the terminal."""
    rows = [("squeezed network, clean", f"{100 * results['accuracy_squeezed']:.2f}%")]
    for name, value in results.get("accuracy", {}).items():
        rows.append((f"student, {name}", f"{100 * value:.2f}%"))
    for name, told in (
        ("top_hessian_eigenvalue", "top eigenvalue, squeezed network"),
        ("top_hessian_eigenvalue_student", "top eigenvalue, student"),
    ):
        if name in results:
            rows.append((told, f"{results[name]:.3g}"))
    spent = [f"{name} {s:.1f}" for name, s in results["seconds"].items() if s]
    rows.append(("seconds", ", ".join(spent)))
    size = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{size}}  {value}" for name, value in rows)


def main(config: Config) -> None:
    """Runs and prints the summary."""
    print(summary(run(config)))
    print(f"distilled.png and results.json are in {config.workdir}")
