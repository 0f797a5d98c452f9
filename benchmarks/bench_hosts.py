"""Two hosts against one: how far what they leave is apart.

    python -m benchmarks.bench_hosts --out=results/benchmarks/hosts.json

Some jobs of `tests/survival.py` and searches in float64, each run by one process, and
by two of this machine with `--distributed` (loopback address). Columns: number of
arrays that are left; how many differ; the largest difference of a number in them, and
where it is. Rows that the file has are kept; it is written after each.
"""

import contextlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import _measure

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))

import several
import survival

_KKT = survival.JOBS["reconstruct"]
_KKT = [flag for flag in _KKT if not flag.startswith("--num_steps")]
_FLOAT64 = [*_KKT, "--precision=float64"]
_TOYS = ("reconstruct", "kernel", "kernel, stream")  # --only takes the others too
JOBS = {name: survival.JOBS[name] for name in _TOYS} | {
    "reconstruct, 200 steps in float64": [*_FLOAT64, "--num_steps=200"],
    "reconstruct, 200 steps in float64, settings of the paper": [
        *(*_FLOAT64, "--num_steps=200", "--settings=paper"),
    ],
}
survival.JOBS.update(JOBS)


def ran(job: str, folder: pathlib.Path, hosts: int) -> None:
    """Runs a job as so many processes; ends with what the first one says that fails."""
    words = survival.command(job, folder, *["--distributed"] * (hosts > 1))
    told = survival.environment(folder.parent) | several.environment()
    told |= {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / f"programs_{hosts}")}
    if hosts > 1:
        told["JAX_COORDINATOR_ADDRESS"] = several.free_address()
        told["JAX_NUM_PROCESSES"] = str(hosts)
    logs = [folder.parent / f"host_{i}.log" for i in range(hosts)]
    with contextlib.ExitStack() as stack:
        processes = [
            subprocess.Popen(
                words, cwd=survival.ROOT, env=told | {"JAX_PROCESS_ID": str(i)},
                stdout=subprocess.DEVNULL, stderr=stack.enter_context(log.open("w")),
            )
            for i, log in enumerate(logs)
        ]  # fmt: skip
        for process in processes:
            stack.callback(process.kill)
        for process, log in zip(processes, logs, strict=True):
            if process.wait(timeout=900):
                error = log.read_text()[-500:]
                raise SystemExit(f"{job} on {hosts} hosts failed: {error}")


def arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Numbers in the arrays of a finished folder, by file and name."""
    found = {}
    for path in sorted(folder.rglob("*.npz")):
        with np.load(path, allow_pickle=False) as held:
            place = path.relative_to(folder)
            found |= {f"{place}:{name}": each for name, each in held.items()}
    return {
        name: each.astype(np.float64)
        for name, each in found.items()
        if each.dtype.kind in "fiub" and not survival.TIMES.search(name)
    }


def row(job: str, base: pathlib.Path) -> dict[str, Any]:
    """Runs a job both ways and compares what they leave."""
    begin, folders = time.perf_counter(), [base / "one", base / "two"]
    for hosts, folder in enumerate(folders, 1):
        shutil.rmtree(folder, ignore_errors=True)
        ran(job, folder, hosts)
    one, two = map(arrays, folders)
    if one.keys() != two.keys():
        raise SystemExit(f"Only one has {', '.join(one.keys() ^ two.keys())}: {job}")
    apart = {name: float(np.abs(one[name] - two[name]).max(initial=0)) for name in one}
    # A NaN is a difference, and the largest.
    where = max(apart, key=lambda name: (np.isnan(apart[name]), apart[name]))
    return {
        "job": job, "arrays": len(one), "largest": apart[where], "array": where,
        "differ": sum(value != 0 for value in apart.values()),
        "s": time.perf_counter() - begin,
    }  # fmt: skip


def main() -> None:
    options = _measure.arguments(only=";".join(JOBS))
    rows = [] if options.out is None else _measure.read(options.out)
    done = {each["job"] for each in rows}
    with tempfile.TemporaryDirectory() as folder:
        jobs = survival.chosen(options.only)
        if "audit" in jobs:
            survival.given(pathlib.Path(folder))
        for job in jobs:
            if job not in done:
                rows.append(row(job, pathlib.Path(folder)))
                _measure.report("hosts", rows[-1:], None)
                if options.out is not None:
                    _measure.write("hosts", rows, options.out)


if __name__ == "__main__":
    main()
