"""Makes a figure or a table of a paper: its cells, its table, its verdict.

    python -m experiments.study --paper=loo --item=figure2 --scale=cpu --workdir=DIR
    python -m experiments.study --list

Each item has a folder in --workdir, and each scale besides cpu one of its own, with
table.md, figure.png and results.json. Killed at any moment and started again it goes
on; any number of processes, also on several hosts, may work in one folder at a time,
and no cell is made twice. --list tells what is stored there, at which scale, and what
it says of the paper's claim.
"""

import dataclasses
import functools
import pathlib
from typing import Any, Literal

from ntk_privacy import _checks, compilation_cache
from ntk_privacy.method import Method, field
from ntk_privacy.reports import files
from ntk_privacy.studies import ITEMS, listing, make, of_paper

from . import _flags, _run
from ._kinds import Kind, Results
from ._program import Asked, Program

_PAPERS = {
    "loo": "Loo et al., ICLR 2024 (arXiv:2302.01428): reconstruction, KIP and RKIP.",
    "rdm": "Zheng & Li, UAI 2023: poison and robust distribution matching.",
    "guard": "Xue et al., AAAI 2025 (arXiv:2403.10045): curvature regularisation.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """The run; draws are numbered from 0."""

    workdir: str = field("results/study", "Folder of all studies.")
    checkpoint_seconds: float = field(30.0, "Time between checkpoints.")
    progress: bool = field(True, "Show a progress bar.")
    compilation_cache: bool = field(
        True, "Keep compiled programs for later runs, in the user's cache folder."
    )
    distributed: bool = field(
        False,
        "Accepted as in the other binaries, and changes nothing: processes that see "
        "--workdir share the cells anyway, each on its own devices.",
    )

    def __post_init__(self):
        _checks.at_least(0, checkpoint_seconds=self.checkpoint_seconds)
        if not self.workdir.strip():
            raise ValueError("workdir is empty: name a folder for the results.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """The list."""

    list: bool = field(False, "List what is stored in --workdir, and the verdicts.")
    page: str | None = field(
        None, "Markdown file whose table of results --list writes anew."
    )

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        if self.list:
            run = ("checkpoint_seconds", "progress", "distributed")
            return dict.fromkeys(("paper", "item", "scale", *run), "--list")
        return {"page": "--nolist"}


def _config(paper: str) -> type:
    """Returns the flags of a paper's studies."""
    items = Literal[*of_paper(paper)]
    scales = Literal["smoke", "cpu", "paper"]
    first = next(iter(of_paper(paper)))
    told = "A taste for tests, what two cores finish in two hours, or published sizes."
    return dataclasses.make_dataclass(
        "Config",
        [
            ("item", items, field(first, "Figure or table.")),
            ("scale", scales, field("cpu", told)),
        ],
        frozen=True,
        namespace={"__doc__": "A study."},
    )


def _study(paper: str, about: str) -> Method[Any]:
    config = _config(paper)
    return Method(paper, about, config, {"given": config}, lambda *_: None)


def _worked(asked: Asked[Any], run: Any) -> Results:
    """Makes the cells of a study, or lists what there is."""
    del run
    own, flags = asked.group(Work), asked.group(Listing)
    root = pathlib.Path(own.workdir)
    if flags.list:
        told = listing.text(ITEMS, root)
        if flags.page is not None:
            path = pathlib.Path(flags.page)
            text = listing.updated(path.read_text(), listing.summary(ITEMS, root))
            files.write_string(path, text)
        return {"markdown": told}
    item = of_paper(asked.method.name)[asked.config.item]
    found = make(
        item,
        asked.config.scale,
        root / item.folder(asked.config.scale),
        checkpoint_seconds=own.checkpoint_seconds,
        show=own.progress or None,
        told=functools.partial(print, flush=True),
    )
    parts = [f"  {part['told']}: {part['value']:.4g}" for part in found["parts"]]
    made = f"{found['num_made']} of {found['num_cells']} cells"
    told = [f"{item.paper} {item.name}: {found['verdict']} ({made})", *parts]
    return {**found, "markdown": "\n".join(told)}


KIND = Kind(
    groups=(Listing, Work),
    joins=False,
    grid=_worked,
    told=lambda _, results: results["markdown"],
)
PROGRAM = Program(
    about="Makes a figure or a table of a paper, and tells whether its claim holds.",
    methods={
        paper: _study(paper, about)
        for paper, about in _PAPERS.items()
        if of_paper(paper)
    },
    kind=lambda _: KIND,
    default="loo",
    flag="paper",
)
run = _run.run


def main(asked: Asked[Any]) -> None:
    """Makes a study, or lists what there is, and tells it."""
    if asked.group(Work).compilation_cache:
        compilation_cache.enable()
    print(asked.kind.told(asked, run(asked)))


if __name__ == "__main__":
    _flags.run(main, PROGRAM.parse)
