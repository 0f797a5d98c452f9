"""Kills binaries at random moments, starts them again, and compares with no kill.

    python tests/survival.py --kills=8 --out=survival.json [--after_checkpoint]

Not collected: it takes an hour. Per job one run is not disturbed; then SIGINT, SIGTERM
or SIGKILL strike others at random moments, up to six times each, until one ends by
itself; and so on until a job had its kills; `--after_checkpoint` waits for something to
go on from. Arrays, and numbers that are no times, must be those of the first to the
bit. A stop that a process can answer leaves at most a line of its own, and no
traceback. What else can go wrong is in `hardships`.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import pathlib
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = "--dataset=digits"
_STRIKES = 6
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
STUDENTS = ("--evaluate", "--num_networks=2", "--num_epochs=5", "--width=4")
MADE = (DIGITS, "--num_train=300", "--num_test=60", "--images_per_class=1", *STUDENTS)
COMPARED = (
    *(DIGITS, "--images_per_class=1", "--seconds=0.001", "--width=4"),
    *("--num_networks=2", "--num_epochs=2", "--num_images=1400", "--num_test=40"),
)
# In {given} is what examples.make_flax_mlp leaves.
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
    "distill, dm": ["--method=dm", *MADE, "--num_steps=200", "--batch_size=8"],
    "distill, dc": [
        *("--method=dc", *MADE, "--num_steps=40", "--batch_size=8"),
        *("--outer_steps=2", "--inner_epochs=2"),
    ],
    "distill, mtt": [
        *("--method=mtt", *MADE, "--num_steps=20", "--num_experts=3"),
        *("--student_steps=2", "--expert_epochs=1"),
    ],
    "distill, sre2l": [
        *("--method=sre2l", DIGITS, "--num_train=100", "--num_test=30", "--width=2"),
        *("--blocks=1", "--images_per_class=1", "--squeeze_epochs=20"),
        *("--squeeze_batch_size=50", "--num_steps=20", "--num_epochs=4"),
        *("--batch_size=10", "--evaluate"),
    ],
    "poison": [
        *("--attack=dm", "--methods=dm", DIGITS, "--num_train=300", "--num_test=60"),
        *("--num_seeds=1", "--nocontrol", "--width=4", "--attack_steps=40"),
        *("--num_steps=10", "--batch_size=8", "--rate=0.02", "--num_restarts=1"),
        *("--num_networks=1", "--num_epochs=3"),
    ],
    "evade": [
        *("--train=plain", DIGITS, "--width=4", "--num_epochs=3", "--num_attacked=20"),
        *("--attacks=pgd,square", "--num_queries=20", "--attack_steps=10"),
    ],
    "compare": [
        *(*COMPARED, "--methods=rkip,rdm", "--num_targets=100"),
        "--architectures=ConvNet",
    ],
    "compare, attacks": [
        *("--judge=attacks", *COMPARED, "--methods=rdm,rdm_curvature"),
        *("--num_attacked=5", "--attack_steps=2", "--num_queries=5"),
    ],
    "audit": [
        *("--before={given}/before.safetensors", "--after={given}/after.safetensors"),
        *("--images={given}/images", "--unseen={given}/unseen"),
    ],
    "kernel": [DIGITS, "--num_train=400", "--depth=2"],
    "kernel, stream": [
        *("--kernel=empirical_mlp", DIGITS, "--num_train=400", "--stream"),
        *("--notrain", "--budget=1"),
    ],
    "study": ["--paper=loo", "--item=outliers", "--scale=smoke"],
}
# What differs from one run to the next, by the name of the entry.
TIMES = re.compile(
    r"(^|_)(seconds?|minutes?|times?|compile|resumed|peak|memory|date|commit|command)"
    r"($|_)"
)


def given(base: pathlib.Path) -> None:
    """Makes what jobs read, in a folder."""
    make = [sys.executable, "-m", "examples.make_flax_mlp", str(base / "given")]
    subprocess.run(make, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def command(job: str, folder: pathlib.Path, *changes: str) -> list[str]:
    """Returns the words of a job, in a folder beside the one of what is given."""
    flags = [flag.format(given=folder.parent / "given") for flag in JOBS[job]]
    return [
        *(sys.executable, "-m", f"experiments.{binary(job)}", *flags, "--noprogress"),
        *("--checkpoint_seconds=0.1", f"--workdir={folder}", *changes),
    ]


def binary(job: str) -> str:
    return job.partition(",")[0]


def environment(base: pathlib.Path) -> dict[str, str]:
    """Returns that of jobs, whose programs are kept: to start again takes seconds."""
    kept = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(base / "programs"))
    own = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return {**os.environ, **own, "JAX_COMPILATION_CACHE_DIR": kept}


def _numbers(told, path=""):
    """All entries that are no times, by their place."""
    if isinstance(told, dict):
        for name, value in told.items():
            # The table for people has a column of seconds.
            if not TIMES.search(name) and name not in ("workdir", "markdown"):
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
                    if not TIMES.search(key):
                        found[f"{name}:{key}"] = array.tobytes()
        elif path.suffix == ".npy":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "results.json":
            found |= dict(_numbers(json.loads(path.read_text()), name))
    return found


def has_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a step, or a piece of the work that is done, is there to go on from."""
    names = (path.name for path in folder.rglob("*") if ".tmp" not in str(path))
    cells = folder.glob("*/work/cells/*/results.json")  # those of a study
    pieces = (name.isdecimal() or name.startswith("cell_") for name in names)
    return any(pieces) or any(cells)


def _awaited(run: subprocess.Popen, folder: pathlib.Path) -> None:
    """Waits until there is something to go on from, or the run has ended."""
    while run.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # a folder that goes meanwhile
            if has_checkpoint(folder):
                return
        time.sleep(0.02)


def struck(job, folder, moments, kinds, environment, *, await_checkpoint=False) -> dict:
    """Runs until a run ends by itself; returns its kills and complaints."""
    told = {"kills": {}, "checkpoint_known": 0, "complaints": [], "ended": False}
    told["unheard"] = 0
    for moment, kind in [*zip(moments, kinds, strict=True), (None, None)]:
        run = subprocess.Popen(
            command(job, folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        if await_checkpoint and moment is not None:
            _awaited(run, folder)
        try:
            _, said = run.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            known = has_checkpoint(folder)
            run.send_signal(kind)
            _, said = run.communicate(timeout=600)
            if run.returncode == 0:  # it had ended, or has not heard
                told["unheard"] += 1
                return told | {"ended": True}
            told["kills"][kind.name] = told["kills"].get(kind.name, 0) + 1
            told["checkpoint_known"] += known
            answered = kind != signal.SIGKILL and run.returncode != -kind
            if "Traceback" in said or len(said.strip().splitlines()) > 1:
                last = said.strip().splitlines()[-1]
                wrong = f"{kind.name} after {moment:.1f} s: {last}"
                told["complaints"].append(wrong)
            elif answered and run.returncode not in (0, 1, 130, 143):
                wrong = f"{kind.name} after {moment:.1f} s: exit code {run.returncode}"
                told["complaints"].append(f"{wrong}: {said.strip()[-300:]}")
            continue
        if run.returncode:
            wrong = f"exit code {run.returncode}: {said.strip()[-300:]}"
            told["complaints"].append(wrong)
        return told | {"ended": run.returncode == 0}
    return told


def added(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    names = sorted({*one, *other})
    return {name: one.get(name, 0) + other.get(name, 0) for name in names}


def survived(
    job: str,
    base: pathlib.Path,
    num_kills: int,
    rng: random.Random,
    *,
    await_checkpoint: bool = False,
) -> dict:
    """Runs a job undisturbed, then kills it so often; returns what was found."""
    row = {"job": job, "kills": {}, "checkpoint_known": 0, "runs": 0, "different": []}
    row["unheard"], row["complaints"], kept = 0, [], environment(base)
    folder = base / "run"  # one name: results may tell it
    # Twice: the second has its programs compiled, as those that are struck.
    for _ in range(2):
        start = time.monotonic()
        done = struck(job, folder, [], [], kept)
        took = time.monotonic() - start
        row["complaints"] += done["complaints"]
        if not done["ended"]:
            return row
        whole = outcome(folder)
        shutil.rmtree(folder)
    row |= {"seconds": round(took, 1), "compared": len(whole)}
    while sum(row["kills"].values()) < num_kills:
        begun = time.monotonic()
        left = min(_STRIKES, num_kills - sum(row["kills"].values()))
        moments = [rng.uniform(0.05, 0.7) * took for _ in range(left)]
        if await_checkpoint:  # the first is counted from there
            moments[0] *= 0.2
        kinds = rng.choices(SIGNALS, k=left)
        done = struck(
            job, folder, moments, kinds, kept, await_checkpoint=await_checkpoint
        )
        found = outcome(folder) if done["ended"] else {}
        shutil.rmtree(folder, ignore_errors=True)
        row["kills"] = added(row["kills"], done["kills"])
        for name in ("checkpoint_known", "unheard"):
            row[name] += done[name]
        row["complaints"] += done["complaints"]
        row["runs"] += 1
        names = sorted({*whole, *found})
        row["different"] += [n for n in names if whole.get(n) != found.get(n)]
        spent = time.monotonic() - begun
        print(job, f"{took:.0f} {spent:.0f} s", done, file=sys.stderr, flush=True)
        if not done["kills"]:  # the machine has less to do than it had
            took = min(took, spent)
    return row


def summed(rows: list[dict]) -> dict:
    """Returns what all jobs add up to, and each binary's kills."""
    per: dict[str, int] = {}
    for row in rows:
        per = added(per, {binary(row["job"]): sum(row["kills"].values())})
    return {
        "kills": sum(per.values()),
        "per_binary": per,
        "checkpoint_known": sum(row["checkpoint_known"] for row in rows),
        "different": sum(len(row["different"]) for row in rows),
        "complaints": sum(len(row["complaints"]) for row in rows),
    }


def processor() -> str:
    text = pathlib.Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*: (.*)$", text, re.M)
    return found[1] if found else platform.processor()


def chosen(only: str) -> list[str]:
    """Returns jobs by their names, between semicolons."""
    jobs = only.split(";")
    unknown = [job for job in jobs if job not in JOBS]
    if unknown:
        raise SystemExit(f"only={unknown[0]!r} is unknown: use {'; '.join(JOBS)}.")
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=8, help="of each job")
    parser.add_argument("--each", type=int, default=10, help="of each binary")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--after_checkpoint", action="store_true")
    parser.add_argument("--only", default=";".join(JOBS))
    parser.add_argument("--out", type=pathlib.Path, help="added to what it holds")
    options = parser.parse_args()
    # Where this runs in the background it is ignored, by all that is started too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rng, rows, total = random.Random(options.seed), [], {}
    if options.out and options.out.exists():
        rows = json.loads(options.out.read_text())["rows"]
    with tempfile.TemporaryDirectory() as temporary:
        given(pathlib.Path(temporary))
        jobs = chosen(options.only)
        shares = collections.Counter(map(binary, jobs))
        for job in jobs:
            kills = max(options.kills, -(-options.each // shares[binary(job)]))
            base, late = pathlib.Path(temporary), options.after_checkpoint
            rows.append(survived(job, base, kills, rng, await_checkpoint=late))
            print(json.dumps(rows[-1]), flush=True)
            total = summed(rows)
            if options.out:  # after each: to be stopped loses nothing
                told = {"processor": processor(), **total, "rows": rows}
                options.out.write_text(json.dumps(told, indent=2) + "\n")
    print(json.dumps(total))
    sys.exit(bool(total["different"] or total["complaints"]))


if __name__ == "__main__":
    main()
