"""Networks under attack by `experiments.reconstruct`: commands, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import _flags, reconstruct
from ntk_privacy.reconstruction import victims

STANDARD = ("--dynamics=standard", "--width=128", "--num_images=4")


def _call(capsys, folder, *flags):
    given = ["--noprogress", f"--workdir={folder}", *flags]
    if not any(flag.startswith("--method") for flag in flags):
        given.append("--method=closed_units")
    code = _flags.call(reconstruct.main, reconstruct.PROGRAM.parse, given)
    return code, "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        (
            (
                "--loss=logistic",
                "--batch_size=3",
                "--epochs=40",
                "--optimizer=sgd",
                "--train_learning_rate=0.1",
                "--depth=3",
            ),
            80,
        ),
        (
            (
                "--evidence=gradient",
                "--loss=cross_entropy",
                "--task=all_classes",
                "--num_images=10",
            ),
            0,
        ),
    ],
)
def test_every_victim_is_a_command_and_read_exactly(tmp_path, capsys, flags, steps):
    code, told = _call(capsys, tmp_path, *STANDARD, *flags)
    assert code == 0, told
    results = json.loads((tmp_path / "results.json").read_text())
    is_gradient = not steps
    assert results["evidence"] == ("gradient" if is_gradient else "weights")
    assert results["train_steps"] == steps
    assert (results["kernel_distance"] > 1e-3) != is_gradient
    assert results["num_certified"] == results["num_images"]
    assert max(results["squared_distances"]) < 1e-4
    # The loss of a network that did not learn is log 10, or so.
    assert is_gradient == (results["train_loss"] > 1)
    # The whole is looked up again, under any name of the flag.
    again = [flag.replace("--epochs", "--num_epochs") for flag in flags]
    assert _call(capsys, tmp_path, *STANDARD, *again)[0] == 0


def test_the_seed_of_final_weights_is_guessed(tmp_path, capsys):
    flags = ("--evidence=final_weights", "--schedule=heavy_ball", "--seed=42")
    code, told = _call(
        capsys, tmp_path / "a", *STANDARD, *flags, "--guess_seeds=100"
    )  # fmt: skip
    assert code == 0, told
    assert "seed of the weights before training, as guessed" in told
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results["evidence"] == "final_weights"
    assert results["seed_found"]["seed"] == 42
    assert results["num_certified"] == results["num_images"]
    assert max(results["squared_distances"]) < 1e-4

    code, told = _call(
        capsys, tmp_path / "b", *STANDARD, *flags, "--guess_seeds=30"
    )  # fmt: skip
    assert code == 0, told
    assert "None of 30 seeds stands out" in " ".join(told.split())
    results = json.loads((tmp_path / "b" / "results.json").read_text())
    assert results["verdict"]["word"] == "nothing found"
    assert (results["seed_found"]["seed"], results["num_certified"]) == (None, 0)
    # A finished run is looked up.
    again = _call(capsys, tmp_path / "b", *STANDARD, *flags, "--guess_seeds=30")
    assert again[0] == 0


def test_an_adapter_is_trained_and_read(tmp_path, capsys):
    flags = ("--width=256", "--num_images=4", "--num_epochs=25", "--adapter_rank=8")
    asked = ("--method=auto", "--evidence=adapter", *flags)
    code, told = _call(capsys, tmp_path / "a", *asked)
    assert code == 0, told
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert (results["evidence"], results["train_steps"]) == ("adapter", 25)
    assert (results["num_certified"], results["estimated_num_images"]) == (0, 4)
    assert max(results["squared_distances"]) < 0.01
    # The method asks for that evidence by itself.
    code, told = _call(capsys, tmp_path / "b", "--method=adapter", *flags)
    assert code == 0, told
    again = json.loads((tmp_path / "b" / "results.json").read_text())
    assert again["squared_distances"] == results["squared_distances"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            "--evidence=adapter --method=kkt",
            "method=kkt reads whole layers that were trained, and an adapter trains it",
        ),
        (
            "--evidence=weights --method=adapter",
            "method=adapter reads low-rank factors alone; give evidence=adapter",
        ),
        (
            "--method=auto --evidence=adapter --num_candidates=7",
            "--num_candidates has no effect with --evidence=adapter",
        ),
        ("--adapter_rank=4", "--adapter_rank has no effect with --evidence=weights"),
        ("--evidence=adapter --adapter_rank=0", "adapter_rank=0 must be at least 1"),
        ("--evidence=adapter --stop_loss=1", "no effect with --evidence=adapter"),
        (
            "--method=auto --evidence=head --num_steps=9",
            "no effect with --evidence=head",
        ),
        ("--embed_fn=a:b", "--embed_fn has no effect with --evidence=weights"),
        ("--guess_seeds=9", "--guess_seeds has no effect with --evidence=weights"),
        (
            "--guess_seeds=0 --evidence=final_weights",
            "guess_seeds=0 must be at least 1",
        ),
        ("--loss=logistic", "loss=logistic with dynamics=linearized: the first-order"),
        (
            "--batch_size=5",
            "batch_size=5 with dynamics=linearized: the first",
        ),
        ("--epochs=9", "num_epochs=9 with dynamics=linearized: the first-order model"),
        (
            "--loss=cross_entropy --dynamics=standard",
            "loss=cross_entropy takes one output a class, the task has 1 in all: use",
        ),
        (
            "--loss=logistic --dynamics=standard --task=all_classes --num_images=10",
            "loss=logistic takes one output, the task has 10: use a binary task",
        ),
        ("--optimizer=gd --batch_size=2 --dynamics=standard", "takes all images at ev"),
        ("--batch_size=0 --dynamics=standard", "batch_size=0 must be at least 1"),
        (
            "--batch_size=5 --schedule=paper --dynamics=standard",
            "--schedule has no effect with --batch_size=5",
        ),
        (
            "--method=auto --loss=logistic --replays=1 --dynamics=standard",
            "--replays has no effect with --loss=logistic",
        ),
        ("--evidence=gradient --epochs=9", "no effect with --evidence=gradient"),
        ("--evidence=gradient --stop_loss=1", "no effect with --evidence=gradient"),
        ("--method=max_margin --loss=mse", "--loss has no effect with --method=max_m"),
        ("--loss=mes", "did you mean mse? Use one of mse, logistic, cross_entropy"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(tmp_path, capsys, flags, told):
    code, found = _call(capsys, tmp_path / "new", *flags.split())
    assert (code, told in found, found.count("\n")) == (2, True, 1), found
    assert not (tmp_path / "new").exists()


def test_without_its_flags_the_training_is_that_of_the_schedule():
    """A folder of an earlier version, which has none of them, goes on."""
    asked = reconstruct.PROGRAM.asked("closed_units", dynamics="standard")
    (network,) = [g for g in asked.groups if isinstance(g, victims.InPractice)]
    assert network.recipe() is None
    names = [entry.name for entry in dataclasses.fields(victims.InPractice)]
    assert not any("before" in entry.metadata for entry in dataclasses.fields(network))
    old = {k: v for k, v in asked.flat().items() if k not in names}
    again = reconstruct.PROGRAM.asked(**{k: v for k, v in old.items() if v is not None})
    assert again.flat() == asked.flat()


def test_the_seed_fixes_a_victim(tmp_path, capsys):
    flags = (*STANDARD, "--batch_size=3", "--epochs=20")
    arrays = []
    for seed in (0, 0, 1):
        folder = tmp_path / str(len(arrays))
        assert _call(capsys, folder, *flags, f"--seed={seed}")[0] == 0
        with np.load(folder / "arrays.npz") as stored:
            arrays.append(stored["reconstructions"])
    np.testing.assert_array_equal(arrays[0], arrays[1])
    assert not np.array_equal(arrays[0], arrays[2])
