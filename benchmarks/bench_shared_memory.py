"""Bytes that a device needs for its share of a search, and what sharing changes.

    python -m benchmarks.bench_shared_memory --out=results/benchmarks/shared_memory.json

The toy searches of `tests/shared_searches.py`, float64, on one device and on eight
simulated ones of a CPU, in a process of its own: arguments and working memory of a
chunk of steps as the compiled program tells them; the gap is the largest difference of
an entry of the results.
"""

import os
import pathlib
import re
import subprocess
import sys

from benchmarks import _measure

_ROOT = pathlib.Path(__file__).parents[1]
_LINE = re.compile(r"(\w+) gap (\S+) bytes (\d+) (\d+)")
# Images, or candidates of the KKT search, by search.
SIZES = {"kkt": 200}
SEARCHES = (
    *("dm", "rdm", "dc", "mtt", "mtt_batches", "rkip", "rkip_batches"),
    *("poison_dm", "poison_gradient", "kkt"),
)


def compared(name: str, size: int) -> dict[str, float | int | str]:
    """Returns what a search needs alone and shared."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(_ROOT),
    }
    told = subprocess.run(
        [sys.executable, "tests/shared_searches.py", str(size), name],
        cwd=_ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    ((_, gap, one, each),) = _LINE.findall(told)
    return {
        "search": name,
        "size": size,
        "devices": 8,
        "bytes_one": int(one),
        "bytes_each": int(each),
        "gap": float(gap),
    }


def main() -> None:
    """Prints and writes a row a search; those that the file holds are kept."""
    options = _measure.arguments(rows=",".join(SEARCHES))
    rows = [] if options.out is None else _measure.read(options.out)
    for name in _measure.chosen(options.rows, dict.fromkeys(SEARCHES)):
        if any(row["search"] == name for row in rows):
            continue
        rows.append(compared(name, SIZES.get(name, 40)))
        _measure.report("shared_memory", rows[-1:], None)
        if options.out is not None:
            _measure.write("shared_memory", rows, options.out)


if __name__ == "__main__":
    main()
