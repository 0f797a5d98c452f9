"""`experiments.audit`: the verdict first, whole files, one sentence of faults."""

import json

import numpy as np
import pytest

from experiments import _flags, audit
from ntk_privacy.auditing import inputs
from ntk_privacy.data import load_set

torch = pytest.importorskip("torch", reason="PyTorch trains the network to audit")
safetensors = pytest.importorskip("safetensors.torch")
N = 6


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A network that PyTorch trained and exported, and its images."""
    folder = tmp_path_factory.mktemp("given")
    images = load_set("digits").x_train[:N]
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        *(torch.nn.Linear(64, 384), torch.nn.ReLU(), torch.nn.Linear(384, 64)),
        *(torch.nn.ReLU(), torch.nn.Linear(64, 2)),
    )
    before = {name: leaf.clone() for name, leaf in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = torch.from_numpy(images.reshape(N, -1)), torch.arange(N) % 2
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    safetensors.save_file(before, folder / "before.safetensors")
    safetensors.save_file(net.state_dict(), folder / "after.safetensors")
    np.savez(folder / "images.npz", images=images)
    return folder


def _words(given, workdir, *more):
    return [
        f"--before={given / 'before.safetensors'}",
        f"--after={given / 'after.safetensors'}",
        f"--images={given / 'images.npz'}",
        "--image_shape=8,8,1",
        f"--workdir={workdir}",
        "--noprogress",
        *more,
    ]


def _call(words, capsys):
    code = _flags.call(audit.main, audit.PROGRAM.parse, words)
    told = capsys.readouterr()
    return code, told.out, told.err


def test_pytorchs_names_end_in_a_verdict_and_a_page(given, tmp_path, capsys):
    words = _words(given, tmp_path)
    code, out, _ = _call(words, capsys)
    assert code == 0
    told = json.loads((tmp_path / "results.json").read_text())
    assert out.splitlines()[0] == told["verdict"]
    assert told["verdict"] == (
        f"{N} of {N} training images can be computed from these weights; {N} are "
        "certain."
    )
    assert (told["num_recovered"], told["num_certified"]) == (N, N)
    assert told["estimated_num_images"] == N
    assert told["warnings"] == []
    page = (tmp_path / "report.html").read_text()
    assert told["verdict"] in page
    assert "python -m experiments.audit" in page
    assert str(given / "images.npz") in page
    # Started again it tells the same, without a look at the weights.
    stamp = (tmp_path / "report.html").stat().st_mtime_ns
    assert _call(words, capsys)[1] == out
    assert (tmp_path / "report.html").stat().st_mtime_ns == stamp


def test_a_folder_belongs_to_its_files_wherever_they_lie(given, tmp_path):
    first = audit.PROGRAM.parse(_words(given, tmp_path))
    assert first.group(inputs.Given).fingerprint.count(",") == len(inputs.PATHS) - 1
    with pytest.raises(_flags.UsageError, match="is of other files"):
        audit.PROGRAM.parse(_words(given, tmp_path, "--fingerprint=abc"))


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        ([], "There is nothing to audit", 1),
        (["--seeds=5"], "seeds='5' must be the first", 2),
        (["--bounds=1,0"], "the smallest and the largest", 2),
        (["--after=absent.safetensors"], "absent.safetensors", 1),
        (["--recipe=absent.toml"], "recipe absent.toml: there is no such file", 1),
        (["--minutes=0"], "minutes", 2),
        (["--image_shape=8,8"], "expected 3 values", 2),
        (["--imges=x"], "images", 2),
    ],
)
def test_faults_are_one_line_and_leave_nothing(words, told, code, tmp_path, capsys):
    workdir = tmp_path / "work"
    got, out, err = _call([*words, f"--workdir={workdir}"], capsys)
    assert (got, out) == (code, "")
    assert told in err
    assert len(err.strip().splitlines()) == 1
    assert not workdir.exists()


def test_images_that_are_none_are_told_before_anything(given, tmp_path, capsys):
    np.savez(tmp_path / "x.npz", images=np.full((2, 8, 8, 1), 200.0))
    words = _words(given, tmp_path / "work", f"--images={tmp_path / 'x.npz'}")
    code, _, err = _call(words, capsys)
    assert code == 1
    assert "divide by what is white" in err
