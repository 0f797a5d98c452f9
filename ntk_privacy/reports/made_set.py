"""The set of a run that distils: made once, then read back from its folder."""

from typing import Any

import jax
import numpy as np

from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import kept, search
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.method import Method
from ntk_privacy.reports.loops import Loops

__all__ = ["made_or_read"]


def made_or_read(
    method: Method[Any],
    config: object,
    images: ImageSet,
    *,
    key: jax.Array,
    loops: Loops,
    called: str = "distill",
    **about: np.ndarray,
) -> Distilled:
    """Runs a method, or reads back what an earlier start of the run finished.

    Args:
      method: of `distillation.METHODS`.
      config: of the method.
      images: to distil.
      key: typed key.
      loops: of the run, whose folder keeps the set in arrays.npz.
      called: what the seconds are called.
      **about: further entries of arrays.npz.

    Raises:
      ValueError: the loss is not finite, or what the method raises.

    Example:
      >>> import tempfile
      >>> import jax
      >>> from ntk_privacy import data, distillation
      >>> from ntk_privacy.reports import loops, made_set, workdir
      >>> images, random = data.load_set("digits"), distillation.METHODS["random"]
      >>> config, key = random.configured(num_distilled=10), jax.random.key(0)
      >>> images = images.balanced(None, num_train=40, key=key)
      >>> with workdir.Workdir(tempfile.mkdtemp(), config) as folder:
      ...     run = {"key": key, "loops": loops.Loops(folder)}
      ...     made = made_set.made_or_read(random, config, images, **run)
      >>> made.images.shape
      (10, 8, 8, 1)
    """
    workdir, timer = loops.workdir, loops.timer(called)
    name = "checkpoints/distilled.json"
    # Both: a set that was deleted, because it was damaged, is made again.
    if workdir.path(name).exists() and workdir.path("arrays.npz").exists():
        timer.run, timer.compile = workdir.read_json(name)["seconds"]
        stored = workdir.read_arrays("arrays.npz")
        if not {"images", "labels", "losses"} <= set(stored):
            raise ValueError(
                f"{workdir.path('arrays.npz')} holds {', '.join(stored)}, not images, "
                "labels and losses: delete it to make it again."
            )
        return kept.of_arrays(stored)
    experts = workdir.path("experts")
    stage = loops.stage(called, description=method.name)
    found = method.run(images, config, key=key, stage=stage, folder=experts)
    arrays = kept.arrays(found)
    if bool(found.nonfinite):
        workdir.write_arrays("last_good.npz", **arrays)
        told, last = search.lost(method.name, config, found), "last_good.npz"
        raise ValueError(
            f"{told} Do so in another workdir. The images before it are in "
            f"{workdir.path(last)}."
        )
    arrays |= {"losses": np.asarray(found.losses), **about}
    workdir.write_arrays("arrays.npz", **arrays)
    workdir.checkpoint_folder.mkdir(parents=True, exist_ok=True)
    workdir.write_json(name, {"seconds": [timer.run, timer.compile]})
    return kept.of_arrays(arrays)
