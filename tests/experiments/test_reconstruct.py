"""`experiments.reconstruct` at toy size: files, resuming to the bit, exit codes."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

from experiments import _flags, reconstruct
from experiments import _run as _run_folder
from ntk_privacy import checkpoint
from ntk_privacy.reconstruction import algebraic, auto, judging, kkt
from ntk_privacy.reports import summaries
from ntk_privacy.resume import Every

TOY = {
    "width": 32,
    "num_images": 4,
    "method": "kkt",
    "num_steps": 60,
    "progress": False,
}
FILES = {"config.json", "results.json", "arrays.npz", "curve.png", "gallery.png"}


def _run(folder, **changes):
    return reconstruct.run(_asked(folder, **changes))


def _asked(folder, **changes):
    """TOY without what is of the search, where the method has none."""
    given = {**TOY, "workdir": str(folder), **changes}
    if given["method"] == "algebraic":
        given.pop("num_steps")
    return reconstruct.PROGRAM.asked(**given)


def _arguments(folder, **changes):
    given = {**TOY, "workdir": folder, **changes}
    if given["method"] == "algebraic":
        given.pop("num_steps")
    return [f"--{name}={str(value).lower()}" for name, value in given.items()]


def _call(capsys, *arguments):
    """Exit code and stderr of the command line."""
    code = _flags.call(reconstruct.main, reconstruct.PROGRAM.parse, arguments)
    return code, capsys.readouterr().err


def test_a_run_writes_every_file_and_a_second_call_returns_the_same(tmp_path, capsys):
    results = _run(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= FILES
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "gallery.png").read_bytes()[:4] == b"\x89PNG"
    required = {
        *("method", "dynamics", "width", "num_images", "seed", "train_loss"),
        *("kernel_distance", "squared_distances", "num_recovered", "seconds"),
        *("versions", "device", "psnr", "ssim", "mean_error", "nonfinite"),
    }
    assert set(results) >= required
    assert set(results["seconds"]) == {"train", "compile", "attack"}
    assert all(spent >= 0 for spent in results["seconds"].values())
    squared = results["squared_distances"]
    assert len(squared) == 4
    assert squared == sorted(squared)
    assert (results["kernel_distance"], results["nonfinite"]) == (0.0, False)
    assert results["train_loss"] < 2e-10
    assert json.loads((tmp_path / "config.json").read_text())["width"] == 32
    with np.load(tmp_path / "arrays.npz") as stored:
        arrays = dict(stored)
    assert arrays["images"].shape == (4, 8, 8, 1)
    assert arrays["reconstructions"].shape == (8, 8, 8, 1)
    assert arrays["reconstructions"].dtype == np.float32
    assert arrays["duals"].shape == (1, 8, 1)
    assert arrays["true_duals"].shape == (4, 1)
    assert arrays["losses"].shape == (60,)
    pairs = (
        arrays["images"][arrays["train_index"]]
        - arrays["reconstructions"][arrays["reconstruction_index"]]
    )
    np.testing.assert_allclose(
        np.sum(pairs.astype(float) ** 2, axis=(1, 2, 3)), squared, rtol=1e-6
    )
    summary = summaries.reconstruction(results)
    assert f"{results['num_recovered']} of 4" in summary
    assert "kernel distance" in summary
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    before.pop(tmp_path / ".lock")
    assert _run(tmp_path, progress=False, checkpoint_seconds=0.0) == results
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in before.items())
    # Another config is refused, the difference named, nothing touched.
    code, told = _call(capsys, *_arguments(tmp_path, width=16, seed=3))
    assert code == 2
    assert "width: 32 in the folder, 16 asked; seed: 0 in the folder, 3 asked" in told
    assert told.count("\n") == 1
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in before.items())


@pytest.mark.parametrize(
    "changes",
    [
        {"dynamics": "standard", "early_stop_loss": 1e-2, "points": "0,0.5,1"},
        {"task": "all_classes", "num_images": 10, "num_candidates": 11},
        pytest.param(
            {"precision": "float64", "preset": "paper"}
            | {"schedule": "paper", "depth": 1},
            marks=pytest.mark.slow,
        ),
        {"early_stop_loss": 1e-3, "parametrization": "ntk", "num_candidates": 3},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_toy_runs_of_every_kind(tmp_path, changes):
    results = _run(tmp_path, **{"num_steps": 20, "max_train_steps": 20_000, **changes})
    with np.load(tmp_path / "arrays.npz") as stored:
        arrays = dict(stored)
    precision = changes.get("precision", "float32")
    assert arrays["reconstructions"].dtype == precision
    assert np.isfinite(arrays["reconstructions"]).all()
    count = changes.get("num_candidates", 8)
    assert len(arrays["reconstructions"]) == count
    assert arrays["labels"].shape[1] == (10 if "task" in changes else 1)
    assert len(results["squared_distances"]) == min(count, len(arrays["images"]))
    if changes.get("dynamics") == "standard":
        assert 0 < results["kernel_distance"] < 1
        assert arrays["duals"].shape == (3, 8, 1)
        assert "true_duals" not in arrays
        assert 0.005 < results["train_loss"] < 1e-2
        assert results["train_steps"] > 0
    if changes.get("parametrization") == "ntk":
        np.testing.assert_allclose(results["train_loss"], 1e-3, rtol=1e-2)


class _Killed(BaseException):
    """Nothing in a run may catch it."""


def test_interrupted_at_any_checkpoint_it_ends_with_the_same_bytes(
    tmp_path, monkeypatch
):
    changes = {
        "dynamics": "standard",
        "checkpoint_seconds": 0.0,
        "num_steps": 130,
        "max_train_steps": 45,
    }
    _run(tmp_path / "whole", **{**changes, "checkpoint_seconds": 1e9})
    save, stops = checkpoint.save, []

    def save_and_die(folder, step, state):
        save(folder, step, state)
        stops.append((folder.name, step))
        raise _Killed

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    for _ in range(20):
        try:
            _run(tmp_path / "cut", **changes)
            break
        except _Killed:
            assert not (tmp_path / "cut" / "results.json").exists()
    assert stops == [
        *[("train_coordinates", step) for step in (20, 40, 45)],
        *[("attack", 50), ("attack", 100), ("attack", 130)],
    ]
    whole, cut = ((tmp_path / n / "arrays.npz").read_bytes() for n in ("whole", "cut"))
    assert whole == cut


def _wait_for_step(process, folder, seconds=120):
    """Waits until a checkpoint of `folder` is complete and the process still runs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        if any(p.name.isdigit() and p.name != "0" for p in folder.glob("*")):
            return
        time.sleep(0.005)
    pytest.fail(f"no checkpoint in {folder} after {seconds} s")


@pytest.mark.slow
def test_killed_in_training_and_in_the_attack_it_goes_on_to_the_same_bytes(tmp_path):
    command = [sys.executable, "-m", "experiments.reconstruct"]
    changes = {
        "dynamics": "standard",
        "num_steps": 1500,
        "max_train_steps": 600,
        "checkpoint_seconds": 0,
    }
    cut = tmp_path / "cut"
    for stage in ("train_coordinates", "attack"):
        process = subprocess.Popen(
            [*command, *_arguments(cut, **changes)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            _wait_for_step(process, cut / "checkpoints" / stage)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert not (cut / "results.json").exists()
    changes["checkpoint_seconds"] = 1e9
    for name in ("cut", "whole"):
        done = subprocess.run(
            [*command, *_arguments(tmp_path / name, **changes)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "images recovered (PSNR >= 25 dB)" in done.stdout
    assert (cut / "arrays.npz").read_bytes() == (
        tmp_path / "whole" / "arrays.npz"
    ).read_bytes()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--width=0", "width=0 must be at least 1"),
        ("--num_images=0", "num_train=0 must be at least 1"),
        ("--depth=0", "depth=0 must be at least 1"),
        ("--num_steps=0", "num_steps=0 must be at least 1"),
        ("--num_candidates=-1", "num_candidates=-1 must be at least 1"),
        ("--learning_rate=0", "learning_rate=0.0 must be above 0"),
        ("--stop_loss=0", "stop_loss=0.0 must be above 0"),
        ("--early_stop_loss=1e-12", "early_stop_loss=1e-12 must be above stop_loss"),
        ("--checkpoint_seconds=-1", "checkpoint_seconds=-1.0 must be at least 0"),
        ("--seed=99999999999999", "seed=99999999999999 is too large: use at most 42"),
        ("--seed=-1", "seed=-1 must be at least 0"),
        ("--num_steps=3000000000", "num_steps=3000000000 is too large: use at most 1"),
        ("--max_train_steps=3000000000", "max_train_steps=3000000000 is too large"),
        ("--workdir=", "workdir is empty: name a folder"),
        ("--points=final", "points='final': the gradients of a linearized network"),
        ("--dataset=imagenet", "use one of digits, mnist, cifar10"),
        ("--method=magic", "use one of"),
        ("--widht=3", "Unknown command line flag 'widht'"),
        ("--num_images=5", "num_train=5 does not split evenly into the 2 classes"),
        ("--num_images=20000", "use at most "),
        ("--task=animal_vehicle", "task='animal_vehicle' does not exist for digits"),
    ],
)
def test_bad_flags_are_one_line_exit_2_and_leave_nothing(
    tmp_path, capsys, flag, message
):
    folder = tmp_path / "new"
    code, told = _call(capsys, *_arguments(folder), flag)
    assert code == 2
    assert message in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert not folder.exists()


def _write_mnist(folder, count=10, drop=0):
    folder.mkdir(parents=True)
    for stem, n in (("train", count), ("t10k", 4)):
        pixels = np.zeros((n, 28, 28), np.uint8).tobytes()
        header = np.array([2051, n, 28, 28], ">i4").tobytes()
        kept = pixels[: len(pixels) - drop]
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(header + kept)
        labels = (np.arange(n) % 10).astype(np.uint8).tobytes()
        header = np.array([2049, n], ">i4").tobytes()
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(header + labels)


def test_missing_and_broken_files_are_one_line_exit_1_and_leave_nothing(
    tmp_path, capsys
):
    folder = tmp_path / "new"
    (tmp_path / "empty").mkdir()
    _write_mnist(tmp_path / "short" / "mnist", drop=5)
    for data_dir, message in (("empty", "mnist"), ("short", "idx3-ubyte")):
        code, told = _call(
            capsys,
            *_arguments(folder, dataset="mnist"),
            f"--data_dir={tmp_path / data_dir}",
        )
        assert code == 1
        assert message in told
        assert told.count("\n") == 1
        assert not folder.exists()
    # Files that are sound but too few are the flag's fault.
    _write_mnist(tmp_path / "few" / "mnist")
    code, told = _call(
        capsys,
        *_arguments(folder, dataset="mnist", num_images=12),
        f"--data_dir={tmp_path / 'few'}",
    )
    assert code == 2
    assert "num_train=12 needs 6 images of" in told
    assert "use at most 10" in told
    assert not folder.exists()


def test_a_folder_that_failed_for_its_flags_takes_the_corrected_ones(tmp_path, capsys):
    folder = tmp_path / "new"
    assert _call(capsys, *_arguments(folder, num_images=5))[0] == 2
    with _run_folder.opened(_asked(folder)):
        pass


def test_a_lost_search_is_told_and_stays_lost_when_started_again(tmp_path, monkeypatch):
    changes = {"preset": "paper", "learning_rate": 1e30, "num_steps": 120}
    whole = _run(tmp_path / "whole", **changes)
    assert whole["nonfinite"]
    assert whole["attack_loss"] == "nan"
    assert "lower --learning_rate" in summaries.reconstruction(whole)

    def die(*_, **__):
        raise _Killed

    with monkeypatch.context() as patched:
        # After the search, before anything of it is written.
        patched.setattr(judging, "of_search", die)
        with pytest.raises(_Killed):
            _run(tmp_path / "cut", checkpoint_seconds=0.0, **changes)
    again = _run(tmp_path / "cut", **changes)
    assert again["nonfinite"]
    assert (tmp_path / "cut" / "arrays.npz").read_bytes() == (
        tmp_path / "whole" / "arrays.npz"
    ).read_bytes()


@pytest.mark.slow
def test_decoding_first_gives_the_size_of_the_set(tmp_path):
    results = _run(
        tmp_path, method="auto", width=128, num_steps=None, precision="float64"
    )
    assert results["estimated_num_images"] == 4
    assert results["num_recovered"] == 4
    assert set(results) >= {"num_certified", "sources", "rank_gap", "message"}


def test_the_verdict_and_its_reason_are_printed_and_kept(tmp_path, capsys):
    """A search of five steps is nothing, and says so."""
    reconstruct.main(_asked(tmp_path, num_steps=5))
    shown = " ".join(capsys.readouterr().out.split())
    verdict = json.loads((tmp_path / "results.json").read_text())["verdict"]
    # Not that the assumptions fail: they hold.
    assert verdict["word"] == "nothing found"
    assert 0 <= verdict["explained"] < 0.9
    assert f"verdict {verdict['word']} " in shown
    assert verdict["reason"] in shown


def test_nothing_decoded_is_a_result(tmp_path, monkeypatch):
    def nothing(*args, **kwargs):
        raise ValueError("the rank cannot be told; give num_images if it is known.")

    monkeypatch.setattr(algebraic, "reconstruct", nothing)
    found = _run(tmp_path, method="algebraic", num_steps=None)
    assert found["num_recovered"] == 0
    assert found["squared_distances"] == []
    assert found["verdict"]["word"] == "nothing found"
    # The remedy has the name that it has here.
    assert "give --known_num_images if it is known" in found["verdict"]["reason"]
    assert "0 of 4" in summaries.reconstruction(found)
    assert {p.name for p in tmp_path.iterdir()} >= FILES


@pytest.mark.parametrize("method", ["algebraic", "auto"])
@pytest.mark.parametrize("known", [None, 2])
def test_two_images_are_decoded(tmp_path, method, known):
    # Of fewer units linear regions are too wide for a certificate.
    changes = {"num_images": 2, "width": 256, "num_steps": None}
    found = _run(tmp_path, method=method, **changes, known_num_images=known)
    assert found["estimated_num_images"] == 2
    assert found["num_recovered"] == 2
    assert found["verdict"]["word"] == "exact"
    assert found["verdict"]["num_certified"] == 2


def test_warnings_are_kept_and_go_on():
    def warned():
        with _run_folder.recorded() as told:
            for _ in range(2):
                warnings.warn("odd   weights", UserWarning, stacklevel=1)
        return told

    with pytest.warns(UserWarning, match="odd"):
        told = warned()
    assert told == ["odd weights"]


def test_decoding_is_refused_for_networks_it_does_not_take(tmp_path, capsys):
    for flag in ("--depth=1", "--parametrization=ntk"):
        folder = tmp_path / "new"
        code, told = _call(capsys, *_arguments(folder, method="algebraic"), flag)
        assert code == 2
        assert "takes two or more hidden layers in the standard" in told
        assert not folder.exists()


def test_a_damaged_file_of_the_run_is_named_not_worked_around(tmp_path, capsys):
    changes = {"method": "auto", "width": 128, "num_steps": None}
    _run(tmp_path, **changes)
    for name in ("arrays.npz", "curve.png", "gallery.png"):
        (tmp_path / name).unlink()
    (tmp_path / "results.json").unlink()
    folder = tmp_path / "checkpoints" / "decoded"
    for leaf in [path for path in folder.rglob("*") if path.is_file()]:
        leaf.write_bytes(b"junk")
    code, told = _call(capsys, *_arguments(tmp_path, **changes))
    assert code == 1
    assert f"in {folder} cannot be restored" in told
    assert told.count("\n") == 1
    (tmp_path / "results.json").write_text("{")
    code, told = _call(capsys, *_arguments(tmp_path, **changes))
    assert code == 1
    assert "results.json is damaged" in told


def test_training_that_stops_short_is_told(tmp_path):
    changes = {"dynamics": "standard", "num_steps": 5}
    short = _run(tmp_path / "short", max_train_steps=3, **changes)
    assert short["converged"] is False
    assert "not reached" in summaries.reconstruction(short)
    reached = _run(tmp_path / "whole", stop_loss=0.05, **changes)
    assert reached["converged"] is True
    assert "not reached" not in summaries.reconstruction(reached)


def _faint(monkeypatch):
    decode = algebraic.reconstruct

    def faint(*args, **kwargs):
        found = decode(*args, **{**kwargs, "num_images": 4})
        nothing = np.zeros(len(found.certified), bool)
        return found._replace(
            rank_gap=3.0, certified=nothing, accepted=nothing, message="none."
        )

    monkeypatch.setattr(algebraic, "reconstruct", faint)


def test_auto_searches_from_noise_where_decoding_certifies_too_little(
    tmp_path, monkeypatch
):
    changes = {"num_steps": 5}
    _faint(monkeypatch)
    found = _run(tmp_path / "auto", method="auto", **changes)
    assert found["message"] == "searched from noise: of the decoding, none."
    assert set(found["sources"]) == {"kkt"}
    assert found["estimated_num_images"] == 4
    plain = _run(tmp_path / "kkt", method="kkt", **changes)
    assert found["squared_distances"] == plain["squared_distances"]


@pytest.mark.slow
def test_auto_replays_the_training_and_ends_with_the_same_bytes_when_interrupted(
    tmp_path, monkeypatch
):
    _faint(monkeypatch)
    monkeypatch.setattr(auto, "_has_closed_units", lambda known: False)
    changes = {
        "dynamics": "standard",
        "method": "auto",
        "width": 128,
        "num_steps": 1000,
        "stop_loss": 1e-4,
    }
    for name in ("POLISH", "REPLAYED"):
        short = dataclasses.replace(getattr(kkt, name), num_steps=200)
        monkeypatch.setattr(kkt, name, short)
    whole = _run(tmp_path / "whole", **changes, checkpoint_seconds=1e9)
    plain = _run(tmp_path / "plain", **{**changes, "method": "kkt"})
    assert whole["replay_misses"][1] < whole["replay_misses"][0] < 0.3
    assert whole["sources"] == ["kkt, polished"] * 4 + ["kkt"] * (
        len(whole["sources"]) - 4
    )
    assert whole["mean_squared_error"] < 0.5 * plain["mean_squared_error"]
    save = checkpoint.save
    stages = ["polish", "replay_1", "replay_2"]

    def save_and_die(folder, step, state):
        save(folder, step, state)
        if stages and folder.name == stages[0] and step >= 100:
            stages.pop(0)
            raise _Killed

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    for _ in range(3):
        with pytest.raises(_Killed):
            _run(tmp_path / "cut", **changes, checkpoint_seconds=0.0)
    _run(tmp_path / "cut", **changes, checkpoint_seconds=0.0)
    assert (tmp_path / "cut" / "arrays.npz").read_bytes() == (
        tmp_path / "whole" / "arrays.npz"
    ).read_bytes()


def test_checkpoints_are_due_once_in_so_many_seconds():
    now = [0.0]
    every = Every(10.0, clock=lambda: now[0])
    due = []
    for now[0] in (1.0, 9.9, 10.0, 10.5, 19.9, 20.1, 50.0):
        due.append(every())
    assert due == [False, False, True, False, False, True, True]
