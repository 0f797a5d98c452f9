"""Medians of interleaved runs, so that a busy machine slows every side alike."""

import argparse
import json
import pathlib
import platform
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def interleaved(
    sides: Mapping[str, Callable[[], Any]], *, repeats: int
) -> dict[str, dict[str, float]]:
    """Times every side in turn, `repeats` times over.

    Returns per side `compile` (first call less the median), `run` (median) and `cpu`,
    that of processor time, all in seconds.
    """
    first, times, spent = {}, {name: [] for name in sides}, {name: [] for name in sides}
    for name, side in sides.items():
        start = time.perf_counter()
        jax.block_until_ready(side())
        first[name] = time.perf_counter() - start
    for _ in range(repeats):
        for name, side in sides.items():
            start, begin = time.perf_counter(), time.process_time()
            jax.block_until_ready(side())
            times[name].append(time.perf_counter() - start)
            spent[name].append(time.process_time() - begin)
    return {
        name: {
            "compile": max(first[name] - float(np.median(times[name])), 0.0),
            "run": float(np.median(times[name])),
            "cpu": float(np.median(spent[name])),
        }
        for name in sides
    }


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """Median over rounds of slow / fast."""
    return float(np.median(np.asarray(slow) / np.asarray(fast)))


def peak_memory() -> float:
    """Largest resident size of this process so far, in GB."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        # getrusage counts the parent's size too, where one process starts another.
        told = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(told["VmHWM"].split()[0]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def arguments(**extra: Any) -> argparse.Namespace:
    """Parses --out (or --output) and the extra options (name=default)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", "--output", type=pathlib.Path, default=None)
    for name, default in extra.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


def peer_device() -> str:
    """Where PyTorch is to compute: on the accelerator that JAX has, if it is CUDA's."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def chosen(names: str, known: Mapping[str, Any]) -> list[str]:
    """Returns names between commas; ends with a sentence where one is unknown."""
    found = [name for name in names.split(",") if name]
    for name in found:
        if name not in known:
            raise SystemExit(f"rows={name!r} is unknown: use {', '.join(known)}.")
    return found


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of a file that `write` made; none where there is no file."""
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text())["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(
            f"{path} holds no rows of a benchmark ({error}): remove it, or name "
            "another."
        ) from error


def report(name: str, rows: list[dict[str, Any]], out: pathlib.Path | None) -> None:
    """Prints the rows, and writes them with the machine's description if asked."""
    for row in rows:
        print("  ".join(f"{k}={_short(v)}" for k, v in row.items()), flush=True)
    if out is not None:
        write(name, rows, out)


def write(name: str, rows: list[dict[str, Any]], out: pathlib.Path) -> None:
    """Writes the rows with the machine's description."""
    out.parent.mkdir(parents=True, exist_ok=True)
    told = {
        "benchmark": name,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "rows": rows,
    }
    out.write_text(json.dumps(told, indent=2) + "\n")


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
