"""`experiments.kernel` at toy size: files, resuming to the bit, exit codes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _flags, kernel
from ntk_privacy import checkpoint, data, method
from ntk_privacy.evaluation.kernel_distance import kernel_distance
from ntk_privacy.kernels import blockwise, infinite, named
from ntk_privacy.reports import summaries

TOY = {"num_images": 10, "progress": False}
TRAINED = {
    "kernel": "empirical_mlp",
    "width": 8,
    "max_train_steps": 45,
    "checkpoint_seconds": 0.0,
}


def _run(folder, **changes):
    given = {**TOY, **changes, "workdir": str(folder)}
    return kernel.run(kernel.PROGRAM.asked(**given))


def _arrays(folder):
    with np.load(folder / "arrays.npz", allow_pickle=False) as stored:
        return dict(stored)


def _call(capsys, folder, *flags):
    given = [f"--{name}={str(value).lower()}" for name, value in TOY.items()]
    arguments = [*given, f"--workdir={folder}", *flags]
    code = _flags.call(kernel.main, kernel.PROGRAM.parse, arguments)
    return code, capsys.readouterr()


@dataclasses.dataclass(frozen=True)
class _Linear:
    scale: float = method.field(2.0, "Of the products.")


def _products(problem, config, *, key):
    del problem, key

    def fn(x1, x2=None):
        rows = [x.reshape(len(x), -1) for x in (x1, x1 if x2 is None else x2)]
        return config.scale * rows[0] @ rows[1].T

    return named.Kernel(fn)


def test_a_kernel_more_is_one_row(tmp_path, capsys, monkeypatch):
    presets = {"default": _Linear}
    row = method.Method("toy", "Products.", _Linear, presets, _products)
    monkeypatch.setitem(named.KERNELS, "toy", row)
    code, told = _call(capsys, tmp_path, "--kernel=toy", "--scale=3", "--stream")
    assert (code, told.err) == (0, "")
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))[0]
    digits = data.load("digits", num_train=10, key=key)
    x = digits.x_train[np.argsort(digits.class_train, kind="stable")].reshape(10, -1)
    streamed = np.load(tmp_path / "kernel.npy", allow_pickle=False)
    np.testing.assert_allclose(streamed, 3 * x @ x.T, rtol=1e-4, atol=1e-4)
    helped = _call(capsys, tmp_path, "--kernel=toy", "--help")[1].out
    assert "flags of toy:\n  --scale=FLOAT" in helped
    assert "toy: Products." in helped
    for title in ("Images:", "The kernel in memory:", "The run:"):
        assert f"\n{title}\n" in helped
    for name in ("depth", "train", "head", "width"):
        assert f"--{name}=" not in helped
        assert f"]{name}\n" not in helped
    code, told = _call(capsys, tmp_path, "--kernel=toy", "--depth=1")
    assert (code, "--depth has no effect with --kernel=toy" in told.err) == (2, True)


def test_the_kernel_and_its_spectrum_are_written(tmp_path, capsys):
    code, told = _call(capsys, tmp_path, "--kernel=infinite_mlp", "--seed=3")
    assert (code, told.err) == (0, "")
    assert "condition number" in told.out
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 3))[0]
    dataset = data.load("digits", num_train=10, key=key)
    order = np.argsort(dataset.class_train, kind="stable")
    want = infinite.mlp(2)(jnp.asarray(dataset.x_train[order]))
    arrays = _arrays(tmp_path)
    np.testing.assert_allclose(arrays["kernel"], want, rtol=1e-6)
    assert arrays["kernel"].dtype == np.float32
    values = np.linalg.eigvalsh(np.asarray(want, np.float64))[::-1]
    np.testing.assert_allclose(arrays["eigenvalues"], values, rtol=1e-4)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["trace"] == pytest.approx(values.sum())
    assert results["condition_number"] == pytest.approx(values[0] / values[-1], 1e-3)
    rank = values.sum() ** 2 / (values**2).sum()
    assert results["effective_rank"] == pytest.approx(rank, 1e-4)
    for name in ("kernel.png", "spectrum.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert set(results) >= {"seconds", "versions", "device"}
    # A second call reads, another config is refused.
    stamp = (tmp_path / "results.json").stat().st_mtime_ns
    assert _call(capsys, tmp_path, "--seed=3")[0] == 0
    assert (tmp_path / "results.json").stat().st_mtime_ns == stamp
    code, told = _call(capsys, tmp_path, "--seed=3", "--depth=1")
    assert code == 2
    assert "depth: 2 in the folder, 1 asked" in told.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return folder, _run(folder, **TRAINED)


def test_the_distance_over_training_is_that_of_the_kernels(trained):
    folder, results = trained
    assert results["steps"] == [0, 10, 20, 40, 45]
    distances, losses = results["kernel_distances"], results["losses"]
    assert distances[0] == 0 < distances[1] < distances[-1]
    assert losses == sorted(losses, reverse=True)
    arrays = _arrays(folder)
    first, last = arrays["kernel"], arrays["kernel_after"]
    cosine = np.vdot(first, last) / np.linalg.norm(first) / np.linalg.norm(last)
    assert distances[-1] == pytest.approx(1 - cosine, rel=1e-3)
    again = kernel_distance(jnp.asarray(first), jnp.asarray(last))
    assert results["kernel_distance"] == pytest.approx(float(again), rel=1e-6)
    assert (folder / "distance.png").exists()
    assert "kernel distance after training" in summaries.kernel(results)


class _Killed(Exception):
    pass


def test_interrupted_in_training_it_ends_with_the_same_bytes(
    tmp_path, trained, monkeypatch
):
    folder, whole = trained
    save, deaths = checkpoint.save, []

    def save_and_die(folder, step, state):
        save(folder, step, state)
        if step in (30, 45) and step not in deaths:
            deaths.append(step)
            raise _Killed

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    while True:
        try:
            cut = _run(tmp_path / "cut", **TRAINED)
        except _Killed:
            assert not (tmp_path / "cut" / "results.json").exists()
            continue
        break
    assert deaths == [30, 45]
    assert cut["kernel_distances"] == whole["kernel_distances"]
    one, other = (f / "arrays.npz" for f in (folder, tmp_path / "cut"))
    assert one.read_bytes() == other.read_bytes()


def test_a_streamed_kernel_is_the_same_and_goes_on(tmp_path, monkeypatch):
    _run(tmp_path / "whole", precision="float64")
    monkeypatch.setattr(blockwise, "size_within", lambda fn, x, budget: 3)
    stream, stops = blockwise.stream, []

    def interrupted(*args, callback, **kwargs):
        def stop(done, out, metrics):
            stops.append(done)
            if done == 4 and stops.count(4) == 1:
                raise _Killed
            return callback(done, out, metrics)

        return stream(*args, callback=stop, **kwargs)

    monkeypatch.setattr(blockwise, "stream", interrupted)
    changes = {"stream": True, "precision": "float64"}
    with pytest.raises(_Killed):
        _run(tmp_path / "cut", **changes)
    _run(tmp_path / "cut", **changes)
    assert stops == list(range(1, 11))
    got = np.load(tmp_path / "cut" / "kernel.npy", allow_pickle=False)
    want = _arrays(tmp_path / "whole")
    np.testing.assert_allclose(got, want["kernel"], rtol=1e-12)
    have = _arrays(tmp_path / "cut")
    assert "kernel" not in have
    np.testing.assert_allclose(have["eigenvalues"], want["eigenvalues"], rtol=1e-8)


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel": "infinite_convnet", "depth": 1, "pooling": "avg", "bias_std": 0.1},
        {"kernel": "neural_tangents_mlp", "bias_std": 0.1},
    ],
)
def test_other_kernels(tmp_path, changes, request):
    if changes["kernel"].startswith("neural"):
        request.getfixturevalue("nt")
        _run(tmp_path / "ours", **changes | {"kernel": "infinite_mlp"})
    results = _run(tmp_path / "run", **changes)
    assert results["smallest_eigenvalue"] > 0
    if changes["kernel"].startswith("neural"):
        pair = [_arrays(tmp_path / name)["kernel"] for name in ("ours", "run")]
        np.testing.assert_allclose(*pair, rtol=1e-3)  # its diagonal is rounded


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_images=0"], "num_train=0 must be at least 1"),
        (["--kernel=magic"], "unknown: use one of infinite_mlp"),
        (["--kernel=infinite_mpl"], "did you mean infinite_mlp?"),
        (["--weight_std=-1"], "weight_std=-1.0 must be at least 0"),
        (["--budget=0"], "budget=0.0 must be above 0"),
        (["--budget=1e-6", "--stream"], "smaller than one block"),
        (
            ["--budget=64"],
            "no effect with --kernel=infinite_mlp in one piece",
        ),
        (["--width=9"], "--width has no effect with --parametrization=ntk"),
        (["--notrain"], "--notrain has no effect with --kernel=infinite_mlp"),
        (["--widht=8"], "Unknown command line flag 'widht'"),
        (["--num_images=5"], "num_train=5 does not split evenly"),
        (["--kernel=empirical_mlp", "--stream"], "add --notrain"),
        (
            ["--kernel=empirical_mlp", "--bias_std=0.1"],
            "a flag of infinite_mlp,",
        ),
        (
            ["--kernel=empirical_mlp", "--notrain", "--stop_loss=1"],
            "--stop_loss has no effect with --notrain",
        ),
        (["--kernel=empirical_mlp", "--budget=1e-6"], "memory_budget=1 bytes is small"),
    ],
)
def test_bad_flags_are_one_line_exit_2_and_leave_nothing(
    tmp_path, capsys, flags, message
):
    folder = tmp_path / "new"
    code, told = _call(capsys, folder, *flags)
    assert code == 2
    assert message in told.err
    assert told.err.count("\n") == 1
    assert not folder.exists()


def test_missing_and_broken_files_are_one_line_exit_1_and_leave_nothing(
    tmp_path, capsys
):
    short = tmp_path / "short" / "mnist"
    short.mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for stem in ("train", "t10k"):
        images = np.array([2051, 20, 28, 28], ">i4").tobytes() + b"\0" * 1000
        labels = np.array([2049, 20], ">i4").tobytes() + bytes(range(10)) * 2
        (short / f"{stem}-images-idx3-ubyte").write_bytes(images)
        (short / f"{stem}-labels-idx1-ubyte").write_bytes(labels)
    folder = tmp_path / "new"
    for data_dir, message in (("empty", "mnist"), ("short", "idx3-ubyte")):
        flags = ("--dataset=mnist", f"--data_dir={tmp_path / data_dir}")
        code, told = _call(capsys, folder, *flags)
        assert code == 1
        assert message in told.err
        assert told.err.startswith("error: ")
        assert told.err.count("\n") == 1
        assert not folder.exists()


def test_a_truncated_file_of_the_run_is_named(tmp_path, capsys):
    assert _call(capsys, tmp_path, "--stream", "--budget=64")[0] == 0
    (tmp_path / "results.json").unlink()
    stored = tmp_path / "kernel.npy"
    stored.write_bytes(stored.read_bytes()[:200])
    code, told = _call(capsys, tmp_path, "--stream", "--budget=64")
    assert code == 1
    assert "kernel.npy" in told.err
    assert told.err.count("\n") == 1
