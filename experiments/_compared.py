"""A comparison, set by set: by networks trained on each, or by attacks of three kinds.

A finished part is read back.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments._compare_flags import SUFFIX, Budget, Poison, matches_curvature
from experiments._job import Job
from experiments._kinds import Results
from experiments._timed_sets import made_or_kept
from ntk_privacy.data.choice import Data
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation.timed import TimedSet
from ntk_privacy.evaluation import set_attacks
from ntk_privacy.evaluation.reconstruction_curve import RECOVERED_PSNR
from ntk_privacy.poisoning import Scene, direct
from ntk_privacy.reports import sets, tables
from ntk_privacy.resume import Stage


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison of sets of these images."""

    job: Job
    images: ImageSet

    def by_architectures(self) -> Results:
        """Returns what results.json holds of networks trained on each set."""
        names = self.job.asked.config.names()
        keys = jax.random.split(jax.random.key(self.job.seed), 3)
        rows = {
            name: self._once(name, name, self._row, name, *keys)
            for name in self._names()
        }
        table = tables.of_architectures(names, rows)
        return self._about({"architectures": names, "rows": rows, "markdown": table})

    def _row(
        self, name: str, key: jax.Array, networks: jax.Array, random: jax.Array
    ) -> Results:
        begin, workdir = time.perf_counter(), self.job.workdir
        one = made_or_kept(
            *(self.job, name, self.images, random if name == "random" else key),
            f"checkpoints/{name}/set",
            folder=name,
        )
        judged = self.job.asked.method.run(
            *(self.images, one.made, self.job.asked.config),
            key=networks,
            stage=self._training(name),
        )
        arrays = {"images": one.made.images, "labels": one.made.labels}
        workdir.write_arrays(f"{name}.npz", **arrays)
        self._draw(one, name, f"{name}, {one.seconds:.0f} s")
        told = {"steps": one.steps, "seconds": one.seconds, **judged.figures}
        return told | {"seconds_in_all": time.perf_counter() - begin}

    def by_attacks(self, scenes: Mapping[int, Scene]) -> Results:
        """Returns what results.json holds of attacks on each set, by seed."""
        config = self.job.asked.config
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
            "eps": config.threat_model.eps,
            "rate": self.job.asked.group(Poison).rate,
            "num_attacked": min(config.num_attacked, len(self.images.x_test)),
            "recovered_psnr": RECOVERED_PSNR,
            "table": [{"method": name, **row} for name, row in rows.items()],
            "runs": cells,
            "markdown": tables.of_attacks(rows, set_attacks.names(config)),
        }
        return self._about(told)

    def _cell(self, name: str, seed: int, scene: Scene) -> Results:
        """Judges a method with one seed."""
        target = jnp.asarray(scene.target_image)
        poison = direct.poison(target, num_poisons=len(scene.where))
        # Of flat and curved the set is one, where the method does not regularise.
        base = name if matches_curvature(name) else name.removesuffix(SUFFIX)
        both = {"clean": self.images, "poisoned": scene.poisoned(poison)}
        made, (key, random) = {}, jax.random.split(jax.random.key(seed))
        for told, images in both.items():
            stored = f"set_{seed}_{base}_{told}"
            is_new = not self.job.workdir.path(f"{stored}.npz").exists()
            made[told] = made_or_kept(
                *(self.job, base, images, random if base == "random" else key, stored),
                folder=stored,
            )
            if is_new and told == "clean":
                self._draw(made[told], stored, name)
        config = self.job.asked.config
        if base == name:
            config = dataclasses.replace(config, penalty_weight=None)
        judged = self.job.asked.method.run(
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

    def _once(
        self, file: str, folder: str, make: Callable[..., Results], *args: Any
    ) -> Results:
        """Returns what is made once, and read back ever after."""
        workdir, file = self.job.workdir, f"{file}.json"
        if not workdir.path(file).exists():
            workdir.write_json(file, make(*args))
            shutil.rmtree(workdir.checkpoint_folder / folder, ignore_errors=True)
        return workdir.read_json(file)

    def _names(self) -> tuple[str, ...]:
        return ("random", *self.job.asked.group(Budget).methods)

    def _training(self, folder: str) -> Stage:
        return self.job.stage("train", folder, description="train")

    def _about(self, told: Results) -> Results:
        flat, names = self.job.asked.flat(), ("dataset", "images_per_class", "seconds")
        return {name: flat[name] for name in names} | told

    def _draw(self, one: TimedSet, file: str, told: str) -> None:
        count, dataset = len(self.images.x_train), self.job.asked.group(Data).dataset
        title, path = f"{told}: {count} images of {dataset}", f"{file}.png"
        sets.draw(self.images, one.made, self.job.workdir.path(path), title=title)
