"""A comparison, set by set: by networks trained on each, or by attacks of three kinds.

Every method runs for the same seconds. A set that is made again in them is another
set: what is judged goes on with the one that there is. A finished part is read back.
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ntk_privacy import resume
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import kept, real, timed
from ntk_privacy.distillation.timed import Budget, TimedSet
from ntk_privacy.evaluation import set_attacks
from ntk_privacy.evaluation.reconstruction_curve import RECOVERED_PSNR
from ntk_privacy.method import Method
from ntk_privacy.poisoning import Scene, direct
from ntk_privacy.reports import sets, tables
from ntk_privacy.reports.loops import Loops
from ntk_privacy.reports.progress import Progress
from ntk_privacy.resume import Stage

__all__ = ["Comparison"]

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Sets of the same images, made at one budget beside random ones, and judged.

    Attributes:
      images: to distil, and to test on.
      budget: of every method.
      configs: of `distillation.timed.at_budget`.
      judge, judging: "architectures" or "attacks" of `evaluation.JUDGES`, its config.
      seed: of the first set; attacks have one by scene.
      dataset: what the images are called.
      loops: of the run, whose folder holds what is made: sets, rows and pictures.
      show: whether to show the seconds go by; None is where stderr is a terminal.

    Example:
      >>> import jax, tempfile
      >>> import numpy as np
      >>> from ntk_privacy import data, evaluation
      >>> from ntk_privacy.distillation.timed import Budget
      >>> from ntk_privacy.reports.comparison import Comparison
      >>> from ntk_privacy.reports.loops import Loops
      >>> from ntk_privacy.reports.workdir import Workdir
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images = data.ImageSet.from_arrays(grey, [0, 1] * 4)
      >>> judge, budget = evaluation.JUDGES["architectures"], Budget(seconds=1.0)
      >>> with Workdir(tempfile.mkdtemp(), budget) as workdir:
      ...     compared = Comparison(
      ...         images=images, budget=budget, configs={}, judge=judge, dataset="grey",
      ...         judging=judge.configured(), loops=Loops(workdir, show=False),
      ...     )
      ...     key = jax.random.key(0)
      ...     one = compared.made_or_kept("random", images, key, "set", folder="set")
      >>> one.made.images.shape
      (2, 8, 8, 1)
    """

    images: ImageSet
    budget: Budget
    configs: Mapping[str, Any]
    judge: Method[Any]
    judging: Any
    loops: Loops
    dataset: str
    seed: int = 0
    show: bool | None = None

    def by_architectures(self) -> Row:
        """Returns what results.json holds of networks trained on each set."""
        names = self.judging.names()
        keys = jax.random.split(jax.random.key(self.seed), 3)
        rows = {
            name: self._once(name, name, self._row, name, *keys)
            for name in self._names()
        }
        table = tables.of_architectures(names, rows)
        return self._about({"architectures": names, "rows": rows, "markdown": table})

    def _row(
        self, name: str, key: jax.Array, networks: jax.Array, random: jax.Array
    ) -> Row:
        begin = time.perf_counter()
        key, file = random if name == "random" else key, f"checkpoints/{name}/set"
        one = self.made_or_kept(name, self.images, key, file, folder=name)
        judged = self.judge.run(
            *(self.images, one.made, self.judging),
            key=networks,
            stage=self._training(name),
        )
        arrays = {"images": one.made.images, "labels": one.made.labels}
        self.loops.workdir.write_arrays(f"{name}.npz", **arrays)
        self._draw(one, name, f"{name}, {one.seconds:.0f} s")
        told = {"steps": one.steps, "seconds": one.seconds, **judged.figures}
        return told | {"seconds_in_all": time.perf_counter() - begin}

    def by_attacks(self, scenes: Mapping[int, Scene], *, rate: float) -> Row:
        """Returns what results.json holds of attacks on each set.

        Args:
          scenes: of the images, by seed.
          rate: poison of the scenes, as a share of the training set.
        """
        cells = [
            self._once(f"cell_{s}_{n}", f"{s}_{n}", self._cell, n, s, scene)
            for s, scene in scenes.items()
            for n in self._names()
        ]
        rows = {
            name: set_attacks.row([cell for cell in cells if cell["method"] == name])
            for name in self._names()
        }
        told = {
            "eps": self.judging.threat_model.eps,
            "rate": rate,
            "num_attacked": min(self.judging.num_attacked, len(self.images.x_test)),
            "recovered_psnr": RECOVERED_PSNR,
            "table": [{"method": name, **row} for name, row in rows.items()],
            "runs": cells,
            "markdown": tables.of_attacks(rows, set_attacks.names(self.judging)),
        }
        return self._about(told)

    def _cell(self, name: str, seed: int, scene: Scene) -> Row:
        """Judges a method with one seed."""
        target = jnp.asarray(scene.target_image)
        poison = direct.poison(target, num_poisons=len(scene.where))
        # Of flat and curved the set is one, where the method does not regularise.
        is_curved = timed.matches_curvature(name)
        base = name if is_curved else name.removesuffix(timed.SUFFIX)
        both = {"clean": self.images, "poisoned": scene.poisoned(poison)}
        made, (key, random) = {}, jax.random.split(jax.random.key(seed))
        for told, images in both.items():
            stored = f"set_{seed}_{base}_{told}"
            is_new = not self.loops.workdir.path(f"{stored}.npz").exists()
            made[told] = self.made_or_kept(
                *(name, images, random if base == "random" else key, stored),
                folder=stored,
            )
            if is_new and told == "clean":
                self._draw(made[told], stored, name)
        config = self.judging
        if base == name:
            config = dataclasses.replace(config, penalty_weight=None)
        judged = self.judge.run(
            *(self.images, made["clean"].made, config),
            key=jax.random.key(seed),
            stage=self._training(f"{seed}_{name}"),
            poisoned=made["poisoned"].made,
            target=target,
        )
        return {
            "method": name,
            "seed": seed,
            "class": scene.target_class,
            "adversarial_class": scene.adversarial_class,
            "steps": made["clean"].steps,
            "seconds": made["clean"].seconds,
            **judged.figures,
        }

    def made_or_kept(
        self, name: str, images: ImageSet, key: jax.Array, file: str, *, folder: str
    ) -> TimedSet:
        """Returns the set of a method, or random images; one on disk is read back.

        Args:
          name: of the method, or "random".
          images: to distil, poisoned or not.
          key: of the method, or of random images.
          file: of the set, without its ending.
          folder: of experts, for the methods that train some.
        """
        if not self.loops.workdir.path(f"{file}.npz").exists():
            if name == "random":
                each = self.budget.images_per_class
                one = TimedSet(real.of_classes(images, images_per_class=each, key=key))
            else:
                one = self._make(name, images, key, folder)
            arrays = kept.arrays(one.made)
            arrays |= {"steps": one.steps, "seconds": one.seconds}
            self.loops.workdir.write_arrays(f"{file}.npz", **arrays)
        stored = self.loops.workdir.read_arrays(f"{file}.npz")
        steps, seconds = int(stored["steps"]), float(stored["seconds"])
        return TimedSet(kept.of_arrays(stored), steps, seconds)

    def _make(
        self, name: str, images: ImageSet, key: jax.Array, folder: str
    ) -> TimedSet:
        method, timer = timed.method_of(name), resume.Timer()
        experts = self.loops.workdir.path(folder) / "experts"
        seconds = self.budget.seconds
        # Experts of a run that was killed would be free.
        shutil.rmtree(experts, ignore_errors=True)
        told, total = f"{method.name}, seconds", math.ceil(seconds)
        with Progress(total, description=told, show=self.show) as bar:

            def watch(step, state, metrics):
                del step
                spent = timer.elapsed()
                bar(total if spent >= seconds else int(spent), state, metrics)

            return timed.make(
                *(method, self.configs[name], images),
                key=key,
                seconds=seconds,
                folder=experts,
                timer=timer,
                watch=watch,
            )

    def _once(
        self, file: str, folder: str, make: Callable[..., Row], *args: Any
    ) -> Row:
        """Returns what is made once, and read back ever after."""
        workdir, file = self.loops.workdir, f"{file}.json"
        if not workdir.path(file).exists():
            workdir.write_json(file, make(*args))
            shutil.rmtree(workdir.checkpoint_folder / folder, ignore_errors=True)
        return workdir.read_json(file)

    def _names(self) -> tuple[str, ...]:
        return ("random", *self.configs)

    def _training(self, folder: str) -> Stage:
        return self.loops.stage("train", folder, description="train")

    def _about(self, told: Row) -> Row:
        each, seconds = self.budget.images_per_class, self.budget.seconds
        about = {"dataset": self.dataset, "images_per_class": each, "seconds": seconds}
        return about | told

    def _draw(self, one: TimedSet, file: str, told: str) -> None:
        count, path = len(self.images.x_train), self.loops.workdir.path(f"{file}.png")
        title = f"{told}: {count} images of {self.dataset}"
        sets.draw(self.images, one.made, path, title=title)
