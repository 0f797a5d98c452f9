"""A comparison, set by set: by networks trained on each, or by attacks of three kinds.

A finished part is read back.
"""

import dataclasses
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments import _run
from experiments._compare_flags import SUFFIX, Budget, Poison, matches_curvature
from experiments._groups import Data, Run
from experiments._program import Asked
from experiments._timed_sets import made_or_kept
from experiments._workdir import Workdir
from ntk_privacy import resume
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation.timed import TimedSet
from ntk_privacy.evaluation import set_attacks
from ntk_privacy.evaluation.reconstruction_curve import RECOVERED_PSNR
from ntk_privacy.poisoning import Scene, direct
from ntk_privacy.reports import sets, tables


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison of sets of these images, in its folder."""

    asked: Asked[Any]
    workdir: Workdir
    images: ImageSet

    def by_architectures(self) -> dict[str, Any]:
        """Returns what results.json holds of networks trained on each set."""
        config = self.asked.config
        key, *keys = jax.random.split(jax.random.key(self.asked.group(Run).seed), 3)
        names = ("random", *self.asked.group(Budget).methods)
        rows = {name: self._row(name, key, *keys) for name in names}
        table = tables.of_architectures(config.names(), rows)
        told = {"architectures": config.names(), "rows": rows, "markdown": table}
        return self._about() | told

    def _row(self, name: str, key: jax.Array, networks: jax.Array, random: jax.Array):
        workdir, file, begin = self.workdir, f"{name}.json", time.perf_counter()
        if not workdir.path(file).exists():
            folder = workdir.checkpoint_folder / name
            stored = str((folder / "set").relative_to(workdir.folder))
            one = made_or_kept(
                self.asked,
                self.workdir,
                name,
                self.images,
                (key, random),
                stored,
                folder=name,
            )
            judged = self.asked.method.run(
                *(self.images, one.made, self.asked.config),
                key=networks,
                stage=self._training(name),
            )
            arrays = {"images": one.made.images, "labels": one.made.labels}
            workdir.write_arrays(f"{name}.npz", **arrays)
            self._draw(one, name, f"{name}, {one.seconds:.0f} s")
            told = {"steps": one.steps, "seconds": one.seconds, **judged.figures}
            told["seconds_in_all"] = time.perf_counter() - begin
            workdir.write_json(file, told)
            shutil.rmtree(folder, ignore_errors=True)
        return workdir.read_json(file)

    def by_attacks(self, scenes: Mapping[int, Scene]) -> dict[str, Any]:
        """Returns what results.json holds of attacks on each set, by seed."""
        config = self.asked.config
        names = ("random", *self.asked.group(Budget).methods)
        cells = [self._cell(n, s, scene) for s, scene in scenes.items() for n in names]
        rows = {
            name: set_attacks.row([cell for cell in cells if cell["method"] == name])
            for name in names
        }
        return self._about() | {
            "eps": config.threat_model.eps,
            "rate": self.asked.group(Poison).rate,
            "num_attacked": min(config.num_attacked, len(self.images.x_test)),
            "recovered_psnr": RECOVERED_PSNR,
            "table": [{"method": name, **row} for name, row in rows.items()],
            "runs": cells,
            "markdown": tables.of_attacks(rows, set_attacks.names(config)),
        }

    def _cell(self, name: str, seed: int, scene: Scene) -> dict[str, Any]:
        """Judges a method with one seed; a finished cell is read back."""
        workdir, file = self.workdir, f"cell_{seed}_{name}.json"
        if workdir.path(file).exists():
            return workdir.read_json(file)
        target, config = jnp.asarray(scene.target_image), self.asked.config
        poison = direct.poison(target, num_poisons=len(scene.where))
        # Of flat and curved the set is one, where the method does not regularise.
        base = name if matches_curvature(name) else name.removesuffix(SUFFIX)
        both = {"clean": self.images, "poisoned": scene.poisoned(poison)}
        made = {}
        for told, images in both.items():
            stored = f"set_{seed}_{base}_{told}"
            is_new = not workdir.path(f"{stored}.npz").exists()
            keys = [*jax.random.split(jax.random.key(seed))]
            made[told] = made_or_kept(
                self.asked, self.workdir, base, images, keys, stored, folder=stored
            )
            if is_new and told == "clean":
                self._draw(made[told], stored, name)
        if base == name:
            config = dataclasses.replace(config, penalty_weight=None)
        judged = self.asked.method.run(
            *(self.images, made["clean"].made, config),
            key=jax.random.key(seed),
            stage=self._training(f"{seed}_{name}"),
            poisoned=made["poisoned"].made,
            target=target,
        )
        told = {
            "method": name,
            "seed": seed,
            "class": scene.target_class,
            "adversarial_class": scene.adversarial_class,
            "steps": made["clean"].steps,
            "seconds": made["clean"].seconds,
        }
        workdir.write_json(file, told | judged.figures)
        shutil.rmtree(workdir.checkpoint_folder / f"{seed}_{name}", ignore_errors=True)
        return workdir.read_json(file)

    def _training(self, file: str) -> resume.Stage:
        folder = self.workdir.checkpoint_folder / file
        run, timer = self.asked.group(Run), resume.Timer()
        return _run.stage(run, folder, timer, description="train")

    def _about(self) -> dict[str, Any]:
        names = ("dataset", "images_per_class", "seconds")
        return {name: self.asked.flat()[name] for name in names}

    def _draw(self, one: TimedSet, file: str, told: str) -> None:
        count, dataset = len(self.images.x_train), self.asked.group(Data).dataset
        title = f"{told}: {count} images of {dataset}"
        sets.draw(self.images, one.made, self.workdir.path(f"{file}.png"), title=title)
