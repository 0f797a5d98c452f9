"""Takes disk, rights and sense from binaries, gives them back, and compares.

    python tests/hardships.py --out=hardships.json

Not collected: it takes an hour, and mounts small disks, which only root may. Each job
of `survival` runs where the disk is too small, and goes on where it no longer is: to
the bit of a run on a large one. Where a folder may only be read, where a file of images
unpacks to more than it tells or than there is memory, and where a saved network holds
NaN, a run ends with one sentence.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import survival

# Of what a finished folder takes: the disk; bytes that any run may have in memory.
_SHARES = (0.0, 0.5)
_MEMORY = 2 * 1024**3
_UNPACKED = 3 * 1024**3


@contextlib.contextmanager
def disk(folder: pathlib.Path, size: int):
    """Yields a folder on a disk of so many bytes; no less than a page."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={max(size, 4096)}", "small"]
    subprocess.run([*mount, str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)  # what came too late


def changed(folder: pathlib.Path, options: str) -> None:
    mount = ["mount", "-o", f"remount,{options}", str(folder)]
    subprocess.run(mount, check=True)


def run(words: list[str], environment: dict[str, str]) -> dict:
    """Runs a binary; returns its exit code, what it said, and what it took."""
    started = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=survival.ROOT,
        env=environment,
    )
    said = started.stderr.read().strip() if started.stderr else ""
    _, status, usage = os.wait4(started.pid, 0)
    started.returncode = os.waitstatus_to_exitcode(status)
    return {
        "code": started.returncode,
        "said": said,
        "bytes": 1024 * usage.ru_maxrss,
    }


def wrong(done: dict) -> list[str]:
    """Returns what is not as it should be where a run cannot go on."""
    said, found = done["said"], []
    if done["code"] not in (1, 2):
        found.append(f"exit code {done['code']}: {said[-300:]}")
    elif len(said.splitlines()) != 1 or not said.startswith("error: "):
        found.append(f"{len(said.splitlines())} lines: {said[-600:]}")
    if done["bytes"] > _MEMORY:
        found.append(f"{done['bytes']} bytes of memory")
    return found


def taken(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def on_small_disks(job, base, environment) -> list[dict]:
    """Fills disks of several sizes, makes room, and goes on."""
    folder = base / "run"
    done = run(survival.command(job, folder), environment)
    assert done["code"] == 0, done["said"]
    whole, size = survival.outcome(folder), taken(folder)
    shutil.rmtree(folder)
    rows = []
    for share in _SHARES:
        with disk(folder, int(share * size)):
            first = run(survival.command(job, folder), environment)
            changed(folder, "size=1g")
            then = run(survival.command(job, folder), environment)
            found = survival.outcome(folder)
        complaints = [] if first["code"] == 0 else wrong(first)
        if then["code"]:
            complaints.append(f"not gone on: {then['said'][-300:]}")
        names = sorted({*whole, *found})
        different = [n for n in names if whole.get(n) != found.get(n)]
        rows.append(told(job, "full disk", first, complaints, different))
    return rows


def read_only(job, base, environment) -> list[dict]:
    folder = base / "run"
    with disk(folder, 1 << 20):
        changed(folder, "ro")
        done = run(survival.command(job, folder), environment)
    return [told(job, "read-only folder", done, wrong(done))]


def bomb(path: pathlib.Path, count: int, size: int) -> None:
    """Writes an .npz that tells of so many images, and unpacks to so many zeros."""
    header, labels = io.BytesIO(), io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": (count, 8, 8, 1)}
    np.lib.format.write_array_header_1_0(header, about)
    np.save(labels, np.arange(10) % 2)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", labels.getvalue())
        with archive.open("images.npy", "w", force_zip64=True) as member:
            member.write(header.getvalue())
            for _ in range(size >> 20):
                member.write(bytes(1 << 20))


def unpacking(job, base, environment) -> list[dict]:
    """Gives files of images that unpack to more than they tell, or than there is."""
    if survival.binary(job) == "study":
        return []  # its images are the study's own
    rows, flag = [], "images" if survival.binary(job) == "audit" else "dataset"
    for count, size in ((10, _UNPACKED), (10**12, 1 << 20)):
        path = base / f"bomb_{count}.npz"
        if not path.exists():
            bomb(path, count, size)
        words = survival.command(job, base / "run", f"--{flag}={path}")
        done = run(words, environment)
        complaints = wrong(done)
        if (base / "run").exists():
            complaints.append("it left a folder")
            shutil.rmtree(base / "run")
        rows.append(told(job, "archive bomb", done, complaints))
    return rows


def with_nan(job, base, environment) -> list[dict]:
    """Puts NaN into what earlier runs saved, for those that read it."""
    folder, spoilt = base / "run", base / f"spoilt_{job}.safetensors"
    if survival.binary(job) == "audit":
        words = survival.command(job, folder)
        after = next(word for word in words if word.startswith("--after="))
        shutil.copy(after.partition("=")[2], spoilt)
        _spoil_safetensors(spoilt)
        cases = [f"--after={spoilt}"]
    elif job == "evade":
        made = run(survival.command(job, folder), environment)
        assert made["code"] == 0, made["said"]
        shutil.move(folder / "model", spoilt)
        shutil.rmtree(folder)
        _spoil_npz(spoilt / "params.npz")
        cases = [f"--model={spoilt}"]
    else:
        return []
    rows = []
    for case in cases:
        words = survival.command(job, folder, case)
        if job == "evade":
            own = ("--train=", "--num_epochs=", "--width=")
            words = [word for word in words if not word.startswith(own)]
        done = run(words, environment)
        rows.append(told(job, "NaN in a saved network", done, wrong(done)))
    return rows


def _spoil_safetensors(path: pathlib.Path) -> None:
    from safetensors.numpy import load_file, save_file

    arrays = load_file(path)
    first = sorted(arrays)[0]
    arrays[first] = arrays[first].copy()
    arrays[first].flat[0] = np.nan
    save_file(arrays, path)


def _spoil_npz(path: pathlib.Path) -> None:
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    next(iter(arrays.values())).flat[0] = np.nan
    np.savez(path, **arrays)


def told(job, hardship, done, complaints, different=()) -> dict:
    said = done["said"][-300:]
    row = {"job": job, "hardship": hardship, "code": done["code"], "said": said}
    return row | {"complaints": complaints, "different": list(different)}


HARDSHIPS = (read_only, unpacking, with_nan, on_small_disks)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=";".join(survival.JOBS))
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        base = pathlib.Path(temporary)
        survival.given(base)
        environment = survival.environment(base)
        for job in survival.chosen(options.only):
            for hardship in HARDSHIPS:
                for row in hardship(job, base, environment):
                    print(json.dumps(row), flush=True)
                    rows.append(row)
            if options.out:
                options.out.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    failed = [row for row in rows if row["complaints"] or row["different"]]
    print(f"{len(rows)} hardships, {len(failed)} not as they should be")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
