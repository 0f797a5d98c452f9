"""What `experiments.distill` does with the sets of a kind of methods: one record each.

Methods that match classes make sets to train ConvNets on (`_students`), methods of a
task make sets to regress on (`_networks`), sre2l and cda sets with soft labels
(`_soft_students`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from experiments._groups import Data, Run
from experiments._program import Asked
from experiments._workdir import Workdir
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation.search import Distilled


class Loaded(NamedTuple):
    """Images; keys of the method, of networks, and of what they are set against."""

    images: ImageSet
    keys: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """What is done with a set.

    Attributes:
      groups: of flags, besides the method's and the run's.
      stages: flags that may be asked for later, each with the entry of results.json
        that tells that it is there.
      sizes: other flags that may differ when a run goes on.
      load: returns the images, or raises UsageError where a flag does not fit them.
      judged: `(asked, workdir, loaded, earlier)`: makes the set and judges it; returns
        what results.json holds, given what it held.
      rows: of a short table for the terminal, given the results.
      passed_over: flags that are not read, each with the choice that makes it so.
      covers: whether the results of a stage are all that is asked of it.
      extended: the flags of a stage that is there, given config.json.
      again: what a start of a run that is whole still does, such as a picture.
    """

    groups: tuple[type, ...]
    stages: Mapping[str, str]
    load: Callable[[Asked[Any]], Any]
    judged: Callable[[Asked[Any], Workdir, Any, dict[str, Any]], dict[str, Any]]
    rows: Callable[[dict[str, Any]], list[tuple[str, str]]]
    sizes: tuple[str, ...] = ()
    passed_over: Callable[[Asked[Any]], dict[str, str]] = lambda _: {}
    covers: Callable[[Asked[Any], Mapping[str, Any]], bool] = lambda *_: True
    extended: Callable[[Asked[Any], Mapping[str, Any]], Asked[Any]] = lambda asked, _: (
        asked
    )
    again: Callable[[Asked[Any], Workdir], None] = lambda *_: None

    def is_done(self, asked: Asked[Any], workdir: Workdir) -> bool:
        """Whether a folder holds all that is asked for."""
        flags, results = asked.flat(), workdir.read_json("results.json")
        there = [e in results for stage, e in self.stages.items() if flags[stage]]
        return all(there) and self.covers(asked, results)

    def work(self, asked: Asked[Any], workdir: Workdir, loaded: Any) -> dict[str, Any]:
        """Returns the results, those of the stages of earlier starts among them."""
        earlier = workdir.read_json("results.json") if workdir.is_done() else {}
        if earlier:
            flags, stored = asked.flat(), workdir.read_json("config.json")
            there = {s: flags[s] or e in earlier for s, e in self.stages.items()}
            if "accuracy" in earlier:
                asked = self.extended(asked, stored)
            asked = asked.replaced(**there)
        workdir.write_json("config.json", asked.flat())
        return self.judged(asked, workdir, loaded, earlier)


def figures(
    asked: Asked[Any], made: Distilled, nearest: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what results.json says of every set; nearest: of the judge of copies."""
    return {
        "method": asked.method.name,
        "dataset": asked.group(Data).dataset,
        "num_distilled": len(made.images),
        "width": asked.flat()["width"],
        "seed": asked.group(Run).seed,
        "nonfinite": False,
        "nearest": nearest,
    }


def told_of_copies(results: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the line of a short table for the terminal."""
    count = f"{results['nearest']['num_copies']} of {results['num_distilled']}"
    return "copies of training images (PSNR >= 25 dB)", count
