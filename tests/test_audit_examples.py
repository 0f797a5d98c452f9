"""Scripts of `examples` make what the docs audit; each leads to its verdict."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from ntk_privacy.auditing import given_images

ROOT = pathlib.Path(__file__).parents[1]


def _run(words, folder):
    command = [sys.executable, *words]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _pastes():
    text = (ROOT / "docs" / "audit.md").read_text().replace("\\\n", " ")
    return re.findall(
        r"^python -m (examples\.\w+) (\S+)\npython -m (experiments\.audit .*)",
        text,
        re.M,
    )


def test_the_page_on_audits_has_three_of_them():
    assert sorted(name for name, _, _ in _pastes()) == [
        "examples.make_flax_mlp",
        "examples.make_gradient",
        "examples.make_torch_mlp",
    ]


def test_pictures_are_digits_in_folders_of_classes(tmp_path):
    _run(["-m", "examples.make_images", str(tmp_path)], tmp_path)
    found = given_images.read(tmp_path / "images", name="images")
    assert found.images.shape == (16, 8, 8, 1)
    assert np.bincount(found.classes).tolist() == [4] * 4
    assert len(given_images.read(tmp_path / "unseen", name="unseen").images) == 160


@pytest.mark.slow
@pytest.mark.parametrize(("script", "folder", "audit"), _pastes())
def test_what_newcomers_paste_ends_in_the_right_verdict(
    script, folder, audit, tmp_path
):
    if script.endswith("torch_mlp"):
        pytest.importorskip("torch", reason="PyTorch trains it")
    place = str(tmp_path / "made")
    _run(["-m", script, place], tmp_path)
    words = shlex.split(audit.replace(folder, place))
    out = _run(["-m", *words, f"--workdir={tmp_path / 'work'}"], tmp_path)
    assert out.startswith("16 of 16 training images can be computed from th")
    told = json.loads((tmp_path / "work" / "results.json").read_text())
    assert (told["num_recovered"], told["num_certified"]) == (16, 16)
    assert told["controls"]["wrong_weights"] == 0
    assert told["membership"]["area"] > 0.9
