"""What a binary does with the methods of a kind, and which flags it has for them."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from ntk_privacy.method import Method
from ntk_privacy.reports import files
from ntk_privacy.reports.workdir import Workdir

if TYPE_CHECKING:
    from ._job import Job
    from ._program import Asked

Results = dict[str, Any]
Run = Callable[["Asked[Any]"], Results]


def _as_asked(asked: "Asked[Any]", stored: Results, results: Results) -> bool:
    """Whether the flags that may differ are as they were."""
    del results
    flat, kind = files.plain(asked.flat()), asked.kind
    asked_for = (n for n in kind.later(asked) if n in flat and n not in kind.stages)
    return all(stored.get(name) == flat[name] for name in asked_for)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """What is done with methods of a kind: see `_run.run`.

    Attributes:
      groups: classes of flags, besides the method's.
      defaults: `(method, preset)` returns values of these flags unless given, where
        they are not those of the classes.
      passed_over: flags that are not read, each with the choice that makes it so.
      check: raises ValueError where values do not go together.
      load: returns what the work is done on, or raises UsageError where a flag does not
        fit it: before the folder is touched, so that images that cannot be had leave
        nothing behind.
      work: `(job, loaded)` returns what results.json will hold.
      timers: of its seconds, told whether or not there is such a loop.
      grid: `(asked, run)` runs many cells instead; None where one run is asked for.
      told: `(asked, results)` returns a text for the terminal.
      later: flags that may differ when a run goes on in its folder.
      stages: those of them that ask for more, each with the entry of results.json that
        tells that it is there.
      covers: `(asked, config.json, results.json)`: whether a whole run holds all that
        is asked of these stages.
      extended: `(asked, config.json, results.json)`: the flags, with those that stages
        which are there were made with.
      files: without which a run is not whole.
      look: what a start of a whole run still does, such as a check of its model.
      tidy: whether to remove the checkpoints of a whole run.
      joins: whether processes of --distributed compute together; else each by itself.
    """

    groups: tuple[type, ...]
    load: Callable[["Asked[Any]"], Any] = lambda _: None
    work: Callable[["Job", Any], Results] = lambda *_: {}
    timers: tuple[str, ...] = ()
    told: Callable[["Asked[Any]", Results], str]
    defaults: Callable[[Method[Any], str], Mapping[str, Any]] = lambda *_: {}
    passed_over: Callable[["Asked[Any]"], Mapping[str, str]] = lambda _: {}
    check: Callable[["Asked[Any]"], None] = lambda _: None
    grid: Callable[["Asked[Any]", Run], Results | None] = lambda *_: None
    later: Callable[["Asked[Any]"], Collection[str]] = lambda _: ()
    stages: Mapping[str, str] = dataclasses.field(default_factory=dict)
    covers: Callable[["Asked[Any]", Results, Results], bool] = _as_asked
    extended: Callable[["Asked[Any]", Results, Results], "Asked[Any]"] = (
        lambda asked, *_: asked
    )
    files: tuple[str, ...] = ()
    look: Callable[["Asked[Any]", Workdir], None] = lambda *_: None
    tidy: bool = False
    joins: bool = True

    def is_whole(self, asked: "Asked[Any]", stored: Results, results: Results) -> bool:
        """Whether a folder's results are all that is asked for."""
        flags = asked.flat()
        there = [e in results for stage, e in self.stages.items() if flags[stage]]
        return all(there) and self.covers(asked, stored, results)

    def with_earlier(
        self, asked: "Asked[Any]", stored: Results, earlier: Results
    ) -> "Asked[Any]":
        """Returns the flags, with the stages that are there already."""
        flags = asked.flat()
        there = {s: flags[s] or e in earlier for s, e in self.stages.items()}
        return self.extended(asked, stored, earlier).replaced(**there)
