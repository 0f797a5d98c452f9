"""A study that costs nothing, and a process that works on it."""

import dataclasses
import os
import pathlib
import sys
import time

import jax
import numpy as np

from ntk_privacy.reports.atomic import replacing
from ntk_privacy.studies import Grid, Item, make
from ntk_privacy.studies.item import by_draw, paired
from ntk_privacy.studies.verdict import above, below


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    size: int
    kind: str = "plain"


def _run(config, *, key, stage):
    def go(state, done, callback):
        for step in range(done + 1, 4):
            state = np.asarray(state + 1)
            callback(step, state, {})
        return state

    steps = stage("count", np.zeros((), np.int64), go, 3).result
    noise = 0.1 * float(jax.random.normal(key))
    return {"value": config.size + noise, "steps": int(steps), "list": [1.0, noise]}


def _judge(rows):
    return [
        above("it grows", paired(rows, "value", of="size", one=2, other=1)),
        below("it is small", by_draw(rows, "value"), 5.0),
    ]


def _draw(rows, path):
    with replacing(path) as temporary:
        temporary.write_text(f"{len(rows)} rows")


TOY = Item(
    paper="toy",
    name="figure1",
    claim="It grows.",
    about="A toy.",
    grids={
        "smoke": Grid((Point(size=1), Point(size=2)), 2),
        "cpu": Grid(tuple(Point(size=size) for size in range(1, 7)), 3),
        "paper": Grid((Point(size=1), Point(size=2)), 1),
    },
    run=_run,
    judge=_judge,
    columns={"value": "value", "steps": "steps"},
    draw=_draw,
)


def logged(log, pause=0.0, hang=None):
    """The toy, whose cells each leave a line in a file; the one named `hang` hangs."""

    def run(config, *, key, stage):
        with pathlib.Path(log).open("a") as file:
            draw = [
                d for d in range(9) if key == jax.random.fold_in(jax.random.key(0), d)
            ]
            file.write(f"{config.size} {draw[0]} {os.getpid()}\n")
        if hang == config.size:
            time.sleep(600)
        time.sleep(pause)
        return _run(config, key=key, stage=stage)

    return dataclasses.replace(TOY, run=run)


if __name__ == "__main__":
    folder, log, pause, hang = sys.argv[1:]
    item = logged(log, float(pause), int(hang))
    make(item, "cpu", pathlib.Path(folder), wait=0.05)
