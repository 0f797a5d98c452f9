"""Certificates beside the truth, over whole inputs and damaged ones.

    python -m benchmarks.bench_soundness --out=results/benchmarks/soundness.json

The families of the slow tests (`tests/reconstruction/test_*_sound.py`), counted: small
networks, gradients, heads and adapters, most of which break an assumption of their
attack, at many strengths; of some families fewer inputs than the tests take. A row is a
family. Columns: inputs and images of theirs; certified images; `false`, those that are
further from every image than their certificate states; `merged`, those further off that
are excepted, as mixtures of images that share their gates (`tests/reconstruction/
census.py`) or of the noised forms of one image;
images of inputs without a certificate; the least stated over true error of those that
held. `--bits=32` has JAX's types as they are unless a user asks for others; the tests
have 64 bits. Rows that the file has are kept; it is written after each. Needs pytest,
which these files import.
"""

import importlib
import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from benchmarks import _measure
from ntk_privacy import compilation_cache

_TESTS = pathlib.Path(__file__).parents[1] / "tests"
# As pytest finds what these files import of their folders.
_FOLDERS = (_TESTS, _TESTS / "reconstruction")


class Evidence(NamedTuple):
    """The file that counts, the one with its families, which of them, and how many
    inputs of each at most, so that all evidences take an hour of one core."""

    counting: str
    families: str
    names: Callable[[str], bool] = bool  # all
    most: int = 1000


def _is_narrow(name: str) -> bool:
    return name.startswith("PyTorch's weights")


def _is_sent(name: str) -> bool:
    return name.startswith(("top-k", "few bits", "16 bits", "private", "averaged"))


def _is_plain(name: str) -> bool:
    return not (_is_narrow(name) or _is_sent(name))


_UNITS = "test_closed_units_sound"
EVIDENCES = {
    "adapters": Evidence("test_adapter_sound", "adapter_victims"),
    "heads": Evidence("test_heads_sound", "head_victims"),
    "decoding": Evidence("test_certificates", "test_certificates", most=30),
    "clients": Evidence(_UNITS, _UNITS, _is_sent),
    "narrow": Evidence(_UNITS, _UNITS, _is_narrow),
    "closed_units": Evidence(_UNITS, _UNITS, _is_plain, 20),
    "class_rows": Evidence("test_class_rows_sound", "batch_victims", most=8),
}


def _module(name: str):
    for folder in map(str, _FOLDERS):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    return importlib.import_module(name)


def families(evidence: Evidence) -> list[str]:
    """Names of the families of an evidence, in order."""
    return list(filter(evidence.names, _module(evidence.families).FAMILIES))


def size(evidence: Evidence, family: str) -> int:
    """How many inputs of a family are counted."""
    counting = _module(evidence.counting)
    known = _module(evidence.families).FAMILIES[family]
    whole = known[0] if isinstance(known, tuple) else counting.COUNT
    return min(whole, evidence.most)


def row(name: str, family: str, most: int) -> dict[str, Any]:
    """What was counted in a family."""
    evidence = EVIDENCES[name]
    begin = time.perf_counter()
    count = min(most, size(evidence, family))
    found = _module(evidence.counting).counted(family, count)
    told = {
        key: value.item() if hasattr(value, "item") else value
        for key, value in found._asdict().items()
    }
    told["tightest"] = told["tightest"] if math.isfinite(told["tightest"]) else None
    # A thousand networks leave more programs than a process may map.
    jax.clear_caches()
    seconds = time.perf_counter() - begin
    return {"evidence": name, "family": family, **told, "s": seconds}


def main() -> None:
    options = _measure.arguments(evidence=",".join(EVIDENCES), most=1000, bits=64)
    compilation_cache.enable()  # families share programs
    jax.config.update("jax_enable_x64", options.bits == 64)
    rows = [] if options.out is None else _measure.read(options.out)
    counted = {(row["evidence"], row["family"]) for row in rows}
    for name in _measure.chosen(options.evidence, EVIDENCES):
        for family in families(EVIDENCES[name]):
            if (name, family) not in counted:
                rows.append(row(name, family, options.most))
                _measure.report("soundness", rows[-1:], None)
                if options.out is not None:
                    _measure.write("soundness", rows, options.out)


if __name__ == "__main__":
    main()
