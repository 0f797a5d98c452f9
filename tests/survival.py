"""Kills binaries at random moments, starts them again, and compares with no kill.

    python tests/survival.py --kills=100 --out=survival.json

Not collected: it takes minutes. Per job one run is not disturbed; then SIGINT, SIGTERM
or SIGKILL strike others at random moments, up to three times each, until one ends by
itself. Arrays, and numbers that are no times, must be those of the first to the bit. A
stop that a process can answer leaves at most a line of its own, and no traceback.
"""

import argparse
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = "--dataset=digits"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
JOBS = {
    "reconstruct": [
        *("--method=kkt", DIGITS, "--num_train=6", "--width=64", "--num_steps=600"),
    ],
    "reconstruct, auto": [
        *("--method=auto", DIGITS, "--num_train=6", "--width=64", "--num_steps=200"),
        *("--dynamics=standard", "--stop_loss=1e-3"),
    ],
    "distill, rkip": [
        *("--method=rkip", DIGITS, "--num_train=50", "--num_distilled=10"),
        *("--num_steps=3000", "--attack", "--attack_steps=100"),
    ],
    "distill, dm": [
        *("--method=dm", DIGITS, "--num_train=200", "--images_per_class=1"),
        *(
            "--num_steps=60",
            "--width=8",
            "--batch_size=8",
            "--evaluate",
            "--num_epochs=20",
        ),
    ],
    "poison": [
        *("--attack=dm", "--methods=dm", DIGITS, "--num_train=300", "--num_seeds=2"),
        *("--width=4", "--attack_steps=40", "--num_steps=10", "--batch_size=8"),
        *("--rate=0.02",),
    ],
    "evade": [
        *("--train=plain", DIGITS, "--width=4", "--num_epochs=3", "--num_attacked=50"),
        *("--attacks=pgd,apgd_ce,square", "--num_queries=100", "--attack_steps=10"),
    ],
    "kernel": [DIGITS, "--num_train=400", "--depth=2"],
}
# What differs from one run to the next, by the name of the entry.
_TIMES = re.compile(
    r"(^|_)(seconds?|minutes?|times?|compile|resumed|peak|memory|date|commit|command)"
    r"($|_)"
)


def command(job: str, folder: pathlib.Path) -> list[str]:
    name = job.split(",")[0]
    return [
        *(sys.executable, "-m", f"experiments.{name}", *JOBS[job]),
        *("--noprogress", "--checkpoint_seconds=0.1", f"--workdir={folder}"),
    ]


def _numbers(told, path=""):
    """All entries that are no times, by their place."""
    if isinstance(told, dict):
        for name, value in told.items():
            if not _TIMES.search(name) and name != "workdir":
                yield from _numbers(value, f"{path}/{name}")
    elif isinstance(told, list):
        for i, value in enumerate(told):
            yield from _numbers(value, f"{path}/{i}")
    else:
        yield path, repr(told)


def outcome(folder: pathlib.Path) -> dict[str, object]:
    """What a finished folder holds: arrays to the bit, numbers, names of files."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                for key, array in arrays.items():
                    if not _TIMES.search(key):
                        found[f"{name}:{key}"] = array.tobytes()
        elif path.name == "results.json":
            found |= dict(_numbers(json.loads(path.read_text()), name))
    return found


def struck(job, folder, moments, kinds, environment) -> tuple[int, list[str], bool]:
    """Runs until a run ends by itself; returns kills, complaints and success."""
    kills, wrong = 0, []
    for moment, kind in [*zip(moments, kinds, strict=True), (None, None)]:
        run = subprocess.Popen(
            command(job, folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        try:
            _, told = run.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            run.send_signal(kind)
            _, told = run.communicate(timeout=300)
            kills += 1
            answered = kind != signal.SIGKILL and run.returncode != -kind
            if "Traceback" in told:
                last = told.strip().splitlines()[-1]
                wrong.append(f"{kind.name} after {moment:.1f} s: {last}")
            elif answered and run.returncode not in (0, 1, 130, 143):
                wrong.append(f"{kind.name}: exit code {run.returncode}")
            continue
        if run.returncode:
            wrong.append(f"exit code {run.returncode}: {told.strip()[-300:]}")
        return kills, wrong, run.returncode == 0
    return kills, wrong, False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=";".join(JOBS))
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    rng, jobs = random.Random(options.seed), options.only.split(";")
    unknown = [job for job in jobs if job not in JOBS]
    if unknown:
        raise SystemExit(f"only={unknown[0]!r} is unknown: use {'; '.join(JOBS)}.")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        base = pathlib.Path(temporary)
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(base / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for index, job in enumerate(jobs):
            wanted = -(-options.kills * (index + 1) // len(jobs))
            folder = base / f"whole_{index}"
            # Twice: the second has its programs compiled, as those that are struck.
            for _ in range(2):
                start = time.monotonic()
                done = struck(job, folder, [], [], environment)
                took = time.monotonic() - start
                if not done[2]:
                    break
                whole = outcome(folder)
                folder = base / f"again_{index}"
            row = {"job": job, "seconds": took, "kills": 0, "runs": 0, "different": []}
            row["complaints"] = done[1]
            rows.append(row)
            while done[2] and sum(each["kills"] for each in rows) < wanted:
                folder = base / f"struck_{index}_{row['runs']}"
                moments = [rng.uniform(0.1, 1.1) * took for _ in range(3)]
                kinds = rng.choices(SIGNALS, k=3)
                kills, wrong, ended = struck(job, folder, moments, kinds, environment)
                row["kills"] += kills
                row["runs"] += 1
                row["complaints"] += wrong
                found = outcome(folder) if ended else {}
                row["different"] += [
                    name
                    for name in sorted({*whole, *found})
                    if whole.get(name) != found.get(name)
                ]
            print(json.dumps(row), flush=True)
    total = {
        "kills": sum(row["kills"] for row in rows),
        "different": sum(len(row["different"]) for row in rows),
        "complaints": sum(len(row["complaints"]) for row in rows),
    }
    print(json.dumps(total))
    if options.out:
        options.out.write_text(json.dumps({"rows": rows, **total}, indent=2) + "\n")
    sys.exit(bool(total["different"] or total["complaints"]))


if __name__ == "__main__":
    main()
