"""One run on several hosts: as on one, and whoever dies takes the others along."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
import several
import survival

from experiments import __main__ as listed
from experiments import _flags, _hosts, _run, distill, kernel
from ntk_privacy import hosts

ROOT = pathlib.Path(__file__).parents[2]
RKIP = (
    *("experiments.distill", "--method=rkip", "--dataset=digits", "--num_train=50"),
    *("--num_distilled=10", "--noprogress", "--checkpoint_seconds=0"),
)


def _started(workdir, command, count=2):
    address = several.free_address()
    return [
        subprocess.Popen(
            [sys.executable, "-m", *command, f"--workdir={workdir}", "--distributed"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=several.environment()
            | {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(i),
            },
        )
        for i in range(count)
    ]


def _ended(processes):
    """Returns exit codes, what was printed, and the lines of errors."""
    try:
        found = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    told = [
        "\n".join(line for line in out.splitlines() if "[Gloo]" not in line)
        for out, _ in found
    ]
    return codes, told, [error.strip().splitlines() for _, error in found]


def _alone(workdir, command):
    done = subprocess.run(
        [sys.executable, "-m", *command, f"--workdir={workdir}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=several.environment(),
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def _copies():
    return sorted(pathlib.Path(tempfile.gettempdir()).glob("tmp*/run"))


def _arrays(workdir, name="arrays.npz"):
    with np.load(pathlib.Path(workdir, name)) as stored:
        return dict(stored)


def _files(workdir):
    paths = pathlib.Path(workdir).glob("*")
    return sorted(path.name for path in paths if not path.name.startswith("."))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID is"),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "localhost:1",
                "JAX_NUM_PROCESSES": "two",
                "JAX_PROCESS_ID": "0",
            },
            "JAX_NUM_PROCESSES=two is no whole number",
        ),
        ({}, "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID for every"),
    ],
)
def test_what_is_not_set_is_one_sentence(given, told, monkeypatch, capsys):
    for name in hosts._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    if not given:

        def refuse(*_):
            raise ValueError("coordinator_address should be defined.")

        monkeypatch.setattr(hosts.jax.distributed, "initialize", refuse)
    arguments = ["--distributed", "--workdir=nowhere"]
    assert _flags.call(kernel.main, kernel.PROGRAM.parse, arguments) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not pathlib.Path("nowhere").exists()


def test_a_folder_goes_on_with_or_without_the_flag(tmp_path):
    asked = functools.partial(distill.PROGRAM.asked, "rkip", workdir=str(tmp_path))
    for distributed in (False, True, False):
        with _run.opened(asked(distributed=distributed)):
            pass
    with pytest.raises(_flags.UsageError), _run.opened(asked(seed=9)):
        pass


def test_without_the_flag_nothing_is_asked_of_a_device(monkeypatch, tmp_path):
    def ask():
        raise AssertionError("a device is looked for")

    monkeypatch.setattr(_hosts.jax, "process_count", ask)
    asked = distill.PROGRAM.parse(["--method=rkip", f"--workdir={tmp_path}"])
    with _hosts.own(asked) as mine:
        assert mine is asked


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_hosts_distil_what_one_does(count, tmp_path):
    command = (*RKIP, "--num_steps=600")
    _alone(tmp_path / "one", command)
    codes, told, errors = _ended(_started(tmp_path / "many", command, count))
    assert codes == [0] * count, errors
    one, many = (_arrays(tmp_path / name) for name in ("one", "many"))
    np.testing.assert_allclose(many["images"], one["images"], atol=1e-5)
    assert "results.json" in told[0]
    assert not any("results.json" in text for text in told[1:])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Where `given` has what the audit reads."""
    folder = tmp_path_factory.mktemp("hosts")
    survival.given(folder)
    return folder


# Job, more flags, and how far the arrays of two hosts may be from those of one. Fast
# settings of the KKT search sharpen its ReLU, which multiplies what the order of sums
# changes; without that float64 tells whether they are the same.
SMOOTH = ("--settings=paper", "--precision=float64", "--num_steps=200")
SHARED = [
    *((job, (), 1e-5) for job in ("audit", "compare, attacks", "distill, dm", "evade")),
    *((job, (), 1e-5) for job in ("kernel", "poison", "reconstruct, auto")),
    *(("reconstruct", (), 1e-3), ("reconstruct", SMOOTH, 1e-5)),
]


def test_all_binaries_are_run_on_hosts():
    # Those of a study share its folder alone: see below.
    hosted = set(listed.names()) - {"study"}
    assert {survival.binary(job) for job, *_ in SHARED} == hosted


@pytest.mark.slow
def test_hosts_share_the_cells_of_a_study(tmp_path):
    study = ("experiments.study", "--paper=rdm", "--item=lemma4_1", "--scale=smoke")
    codes, told, errors = _ended(_started(tmp_path, (*study, "--noprogress")))
    assert codes == [0, 0], errors
    assert all("(12 of 12 cells)" in text for text in told), told
    lines = [line for text in told for line in text.splitlines()]
    made = [line for line in lines if line.startswith("rdm_lemma4_1: ")]
    assert len(made) == len(set(made)) == 12


@pytest.mark.slow
@pytest.mark.parametrize(("job", "flags", "near"), SHARED)
def test_every_binary_runs_on_two_hosts(job, flags, near, base):
    """Not what networks learn from it: at toy size it may be another class."""
    command = survival.command(job, base / "run", *flags)[2:]
    one, two = (base / f"{job}{len(flags)}_{name}" for name in ("one", "two"))
    _alone(one, command)
    codes, told, errors = _ended(_started(two, command))
    assert codes == [0, 0], errors
    assert told[0]
    assert not told[1]
    assert _files(one) == _files(two)
    for path in one.glob("*.npz"):
        arrays, others = _arrays(one, path.name), _arrays(two, path.name)
        assert list(arrays) == list(others)
        for key in arrays.keys() & {"images", "kernel", "reconstructions", "poisons"}:
            np.testing.assert_allclose(others[key], arrays[key], atol=near)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_host_that_dies_ends_the_others_and_a_restart_goes_on(killed, tmp_path):
    command = (*RKIP, "--num_steps=2000")
    copies = _copies()
    processes = _started(tmp_path / "cut", command)
    folder = tmp_path / "cut" / "checkpoints" / "distill"
    until = time.monotonic() + 120
    while not (folder / "500").exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(processes[killed].pid, signal.SIGKILL)
    begun = time.monotonic()
    codes, _, errors = _ended(processes)
    assert time.monotonic() - begun < 30
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == 1
    told = f"error: host {killed} ended before the run did: start all hosts again."
    assert errors[1 - killed] == [told]
    # Nor does the copy of the folder that a host works in stay.
    until = time.monotonic() + 20
    # One that is killed throws nothing away.
    while killed == 0 and _copies() != copies:
        assert time.monotonic() < until
        time.sleep(0.2)
    assert not (tmp_path / "cut" / "results.json").exists()
    assert any(folder.iterdir())
    codes, _, errors = _ended(_started(tmp_path / "cut", command))
    assert codes == [0, 0], errors
    codes, _, errors = _ended(_started(tmp_path / "whole", command))
    assert codes == [0, 0], errors
    cut, whole = (_arrays(tmp_path / name) for name in ("cut", "whole"))
    for name, array in whole.items():
        np.testing.assert_array_equal(cut[name], array)


@pytest.mark.slow
def test_what_fails_on_all_hosts_is_told_by_its_own_sentence(tmp_path):
    command = (*RKIP[:2], "--dataset=mnist", "--data_dir=/nowhere", "--noprogress")
    codes, _, errors = _ended(_started(tmp_path / "none", command))
    assert all(codes)
    first, second = errors
    assert len(first) == len(second) == 1
    assert "/nowhere" in first[0]
    assert "/nowhere" in second[0] or "host 0 ended before" in second[0]
