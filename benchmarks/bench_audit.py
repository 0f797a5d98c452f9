"""Audits of the networks that `examples` makes: recovered, certain, told apart.

    python -m benchmarks.bench_audit --out=results/benchmarks/audit.json

Each is made and audited by the commands that `docs/audit.md` shows, in processes of
their own; seconds are of both.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import _measure

# What stands beside `--before`.
NETWORKS = {"flax_mlp": "after", "torch_mlp": "after", "gradient": "gradient"}


def audited(name: str, evidence: str, folder: pathlib.Path) -> dict[str, Any]:
    """Returns what the audit of a network says, and the seconds that it took."""
    made, work = folder / name, folder / name / "audit"
    files = {"before": "before.safetensors", evidence: f"{evidence}.safetensors"}
    files |= {"images": "images", "unseen": "unseen"}
    given = [f"--{flag}={made / file}" for flag, file in files.items()]
    start = time.perf_counter()
    for words in (
        [f"examples.make_{name}", str(made)],
        ["experiments.audit", *given, f"--workdir={work}", "--noprogress"],
    ):
        subprocess.run([sys.executable, "-m", *words], check=True)
    spent = time.perf_counter() - start
    told = json.loads((work / "results.json").read_text())
    controls = told["controls"]
    return {
        "network": name,
        "N": len(told["pairs"]["train_index"]),
        "recovered": told["num_recovered"],
        "certified": told["num_certified"],
        "certified_on_shuffled_units": controls["wrong_weights"],
        "first": sum(rank == 1 for rank in controls["identified"]["ranks"]),
        "area": told["membership"]["area"],
        "s_with_making": spent,
    }


def main() -> None:
    """Audits all, one after the other."""
    out = _measure.arguments().out
    with tempfile.TemporaryDirectory() as folder:
        rows = [audited(n, e, pathlib.Path(folder)) for n, e in NETWORKS.items()]
    _measure.report("audit", rows, out)


if __name__ == "__main__":
    main()
