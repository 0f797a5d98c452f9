"""Whole commands from an empty cache of compiled programs, and from a full one.

    python -m benchmarks.bench_cold --out=results/benchmarks/cold.json [--repeats=5]

Each command is a process of its own in a new folder: the first finds a cache that is
empty, the second the one that the first left; without is `--nocompilation_cache`. In
turn, repeated; seconds are from command to result, medians, `cpu` those of both
cores. `same`: whether all wrote the same arrays.
"""

import hashlib
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import _measure

COMMANDS = {
    "evade, AutoAttack on 100 digits": (
        "evade --train=plain --dataset=digits --eps=0.1 --num_attacked=100",
        "arrays.npz",
    ),
    "reconstruct, 20 digits, width 1024": (
        "reconstruct --dataset=digits --num_images=20 --width=1024",
        "arrays.npz",
    ),
    "distill, RKIP, 200 digits to 10": (
        "distill --method=rkip --dataset=digits --num_train=200 --num_steps=500",
        "arrays.npz",
    ),
    "distill, DM and a network, digits": (
        "distill --method=dm --dataset=digits --images_per_class=2 --num_steps=20",
        "arrays.npz",
    ),
}
KINDS = ("without", "first", "second")


def _digest(path: pathlib.Path) -> str:
    with np.load(path) as arrays:
        whole = b"".join(arrays[name].tobytes() for name in sorted(arrays))
    return hashlib.sha256(whole).hexdigest()


def _timed(told: str, cache: pathlib.Path, kind: str, name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        flags = [*told.split(), f"--workdir={folder}/run", "--noprogress"]
        flags += ["--nocompilation_cache"] * (kind == "without")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "experiments", *flags],
            check=True,
            capture_output=True,
            env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        )
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        return {
            "s": wall,
            "cpu": cpu,
            "arrays": _digest(pathlib.Path(folder, "run", name)),
        }


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Runs a command in all ways, in turn."""
    told, arrays = COMMANDS[name]
    rounds: list[dict[str, dict[str, Any]]] = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            place = pathlib.Path(cache)
            rounds.append({k: _timed(told, place, k, arrays) for k in KINDS})
            size = sum(p.stat().st_size for p in place.rglob("*-cache"))
    row: dict[str, Any] = {"command": told, "what": name, "repeats": repeats}
    for kind in KINDS:
        for unit in ("s", "cpu"):
            row[f"{unit}_{kind}"] = float(np.median([r[kind][unit] for r in rounds]))
    spent = {k: [r[k]["s"] for r in rounds] for k in KINDS}
    row["times_faster"] = _measure.median_ratio(spent["without"], spent["second"])
    row["same"] = len({r[k]["arrays"] for r in rounds for k in KINDS}) == 1
    return row | {"cache_mb": size / 1e6}


def main() -> None:
    """Prints and writes a row for each command."""
    args = _measure.arguments(repeats=5, only="")
    rows = []
    if not any(args.only in name for name in COMMANDS):
        raise SystemExit(f"only={args.only!r} is in none of: {'; '.join(COMMANDS)}.")
    for name in COMMANDS:
        if args.only in name:
            rows.append(measure(name, args.repeats))
            print(rows[-1], flush=True)
            if args.out is not None:
                _measure.write("cold", rows, args.out)


if __name__ == "__main__":
    main()
