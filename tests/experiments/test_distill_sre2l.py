"""`experiments.distill` with sre2l and cda: files, stages, going on, refusals."""

import dataclasses
import functools
import io
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from command_lines import summary
from PIL import Image

from experiments import _flags, _run, _soft_students, distill, evade
from ntk_privacy import checkpoint, distillation
from ntk_privacy.data.choice import Choice, Data
from ntk_privacy.evaluation import robust_accuracy as robust
from ntk_privacy.evaluation import soft_students
from ntk_privacy.reports import curvature_plots, squeezed

TOY = {
    "method": "sre2l",
    "dataset": "digits",
    "num_train": 100,
    "num_test": 30,
    "width": 2,
    "blocks": (1,),
    "images_per_class": 1,
    "squeeze_epochs": 2,
    "squeeze_batch_size": 50,
    "num_steps": 4,
    "num_epochs": 4,
    "batch_size": 10,
    "attack_steps": 2,
    "num_queries": 5,
    "progress": False,
}


FIVE = ("pgd100", "square", "autoattack", "cw", "mim")


def _config(folder, **changes):
    return distill.PROGRAM.asked(**{**TOY, "workdir": str(folder), **changes})


def test_a_run_leaves_its_files_and_is_evaluated_later(tmp_path, monkeypatch, capsys):
    results = distill.run(_config(tmp_path, regularizer="loss_difference"))
    assert (tmp_path / "distilled.png").read_bytes()[:4] == b"\x89PNG"
    with np.load(tmp_path / "arrays.npz") as stored:
        assert stored["images"].shape == (10, 8, 8, 1)
        np.testing.assert_array_equal(stored["labels"], np.arange(10))
        assert stored["losses_squeeze"].shape == (4,)
        assert stored["losses_recover"].shape == (4,)
    assert "accuracy" not in results
    assert results["penalty_weight"] == 1.0

    class Told:
        clean = 0.5

        def __init__(self, attacks):
            self.accuracy = {attacks[0]: 0.25}
            staged = attacks[0] == "autoattack"
            self.left = {"autoattack": {"square": 0.2}} if staged else {}

    asked = []

    def attacked(logits_fn, x, y, *, attacks, num_steps, **options):
        asked.append((attacks[0], num_steps, float(options["threat_model"].eps)))
        # Images are intensities; the network normalises by itself.
        assert 0 <= x.min() < x.max() <= 1
        assert logits_fn(jax.numpy.asarray(x)).shape == (30, 10)
        return Told(attacks)

    monkeypatch.setattr(robust, "robust_accuracy", attacked)
    later = {"regularizer": "loss_difference", "evaluate": True, "attacks": FIVE}
    results = distill.run(_config(tmp_path, **later))
    # With 2 steps and 5 queries nothing but pgd100 is what its name tells.
    assert set(results["accuracy"]) == {
        *("clean", "pgd100", "square (5 queries)", "cw (2 steps)"),
        *("autoattack (2 steps, 5 queries)", "mim (2 steps)"),
    }
    assert results["autoattack_left"] == {
        "autoattack (2 steps, 5 queries)": {"square": 0.2}
    }
    assert asked == [
        (name, None if name == "pgd100" else 2, 1 / 255)
        for name in ("pgd100", "square_rescaled", "autoattack", "cw_guard", "mim")
    ]
    assert results["top_hessian_eigenvalue"]["squeezed"] > 0
    assert results["top_hessian_eigenvalue"]["student"] >= 0
    assert (tmp_path / "eigenvalues.png").read_bytes()[:4] == b"\x89PNG"
    assert distill.run(_config(tmp_path, **later)) == results
    assert "student, pgd100" in summary(results)
    # A baseline is drawn beside what is there, if it can be read.
    drawn = []
    monkeypatch.setattr(
        curvature_plots, "eigenvalues", lambda shown, *_, **__: drawn.append(shown)
    )
    other = tmp_path / "other"
    other.mkdir()
    np.save(tmp_path / "one.npy", np.ones(3))
    unreadable = (b"PK", (tmp_path / "one.npy").read_bytes())
    new = tmp_path / "new"
    for content in (None, *unreadable):
        message = "has no eigenvalues.npz: give"
        if content is not None:
            (other / "eigenvalues.npz").write_bytes(content)
            message = "has an eigenvalues.npz that cannot be read: give"
        with monkeypatch.context() as patch:
            # Before the images are read, and where there is nothing yet.
            patch.setattr(Choice, "read", None)
            with pytest.raises(_flags.UsageError, match=message):
                distill.run(_config(new, **later, baseline=str(other)))
        assert not new.exists()
    np.savez(other / "eigenvalues.npz", squeezed=np.zeros(3), student=np.ones(3))
    distill.run(_config(tmp_path, **later, baseline=str(other)))
    assert len(drawn) == 1
    assert [*drawn[0]] == ["baseline", "regularizer loss_difference"]
    np.testing.assert_array_equal(drawn[0]["baseline"], 1)
    with np.load(tmp_path / "eigenvalues.npz") as stored:
        student = stored["student"]
    np.testing.assert_array_equal(drawn[0]["regularizer loss_difference"], student)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["baseline"] == str(other)
    # Other attacks are other results.
    wider = distill.run(_config(tmp_path, **later, eps=0.1))
    assert [told["judging"]["eps"] for told in (results, wider)] == [1 / 255, 0.1]
    assert [eps for *_, eps in asked[5:]] == [0.1] * 5
    # Another regulariser is another set.
    arguments = [
        f"--{name}={str(value).lower()}"
        for name, value in {**TOY, "blocks": 1, "workdir": tmp_path}.items()
        if name not in ("attack_steps", "num_queries")  # of what is evaluated
    ]
    assert _flags.call(distill.main, distill.PROGRAM.parse, arguments) == 2
    assert 'regularizer: "loss_difference" in the folder' in capsys.readouterr().err


def test_flags_are_chosen_on_images_that_are_neither_trained_on_nor_reported(
    tmp_path, monkeypatch
):
    """The networks stay, and no attack of one kind is read back as the other's."""
    seen = []

    def attacked(logits_fn, x, y, **options):
        seen.append(np.asarray(x))
        share = float(np.mean(x))
        return SimpleNamespace(clean=share, accuracy={"mim": share}, left={})

    monkeypatch.setattr(robust, "robust_accuracy", attacked)
    flags = {"evaluate": True, "attacks": ("mim",), "attack_steps": None}
    chosen = distill.run(_config(tmp_path, **flags, judged_on="validation"))
    arrays = (tmp_path / "arrays.npz").read_bytes()
    told = distill.run(_config(tmp_path, **flags))
    again = distill.run(_config(tmp_path, **flags, num_test=40))
    assert arrays == (tmp_path / "arrays.npz").read_bytes()
    assert [len(x) for x in seen] == [30, 30, 40]
    assert "judged on" in summary(chosen)
    assert chosen["judging"]["judged_on"] == "validation"
    assert chosen["accuracy"] != told["accuracy"]
    assert (told["num_test"], again["num_test"]) == (30, 40)
    images = _soft_students.KIND.load(_config(tmp_path)).images
    trained = {image.tobytes() for image in images.x_train}
    tested = {image.tobytes() for image in images.x_test}
    held = {image.tobytes() for image in seen[0]}
    assert len(held) == 30
    assert not held & trained
    assert not held & tested
    np.testing.assert_array_equal(seen[1], images.x_test)
    with pytest.raises(_flags.UsageError, match="takes 30 images of the 0 training"):
        distill.run(_config(tmp_path / "all", num_images=1437, judged_on="validation"))


class _Killed(BaseException):
    """Nothing in a run may catch it."""


@pytest.mark.slow
def test_killed_in_any_stage_it_ends_with_the_same_bytes(tmp_path, monkeypatch):
    row, train = distillation.METHODS["cda"], soft_students.train
    shorter = dataclasses.replace(row, run=functools.partial(row.run, chunk=2))
    monkeypatch.setitem(distillation.METHODS, "cda", shorter)
    monkeypatch.setattr(soft_students, "train", functools.partial(train, chunk=2))
    changes = {"checkpoint_seconds": 0.0, "method": "cda"}
    whole = distill.run(_config(tmp_path / "whole", **changes))
    save, stops = checkpoint.save, []

    def save_and_die(folder, step, state):
        save(folder, step, state)
        stops.append((folder.name, step))
        raise _Killed

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    while True:
        try:
            found = distill.run(_config(tmp_path / "parts", **changes))
            break
        except _Killed:
            continue
    assert {name for name, _ in stops} == set(squeezed.LOOPS)
    assert len(stops) == len(set(stops)) == 8
    one, two = (
        (tmp_path / name / "arrays.npz").read_bytes() for name in ("whole", "parts")
    )
    assert one == two
    assert found["accuracysqueezed"] == whole["accuracysqueezed"]


def test_flags_are_those_of_a_method_like_any_other(capsys):
    asked = distill.PROGRAM.parse
    assert asked(["--method", "cda"]).method.name == "cda"
    plain = asked(["--method=sre2l"])
    flat = plain.flat()
    assert (flat["dataset"], flat["num_train"], flat["num_test"]) == (
        "cifar10",
        2000,
        200,
    )
    assert (flat["workdir"], flat["preset"], flat["attacks"]) == (
        "runs/sre2l",
        "cpu",
        ("pgd100", "mim", "apgd_t"),
    )
    paper = asked(["--method=sre2l", "--preset=paper", "--regularizer=curvature"])
    assert paper.config.penalty_weight == 100.0
    assert len(paper.flat()["attacks"]) == 5
    assert paper.flat()["num_train"] is None
    arguments = ["--method=cda", "--preset=paper", "--dataset=tiny_imagenet"]
    tiny = asked(arguments).config
    assert (tiny.num_steps, tiny.learning_rate, tiny.bn_weight) == (4000, 0.4, 0.05)
    assert asked([*arguments, "--num_steps=9"]).config.num_steps == 9
    large = ["--dataset=image_folder", "--data_dir=x", "--image_size=224"]
    assert asked(["--method=sre2l", "--preset=paper", *large]).config.jitter == 32
    for flags, told in (
        (["--outer_steps=2"], "it is a flag of dc, dsa"),
        (["--squeeze_epoch=2"], "Did you mean: squeeze_epochs"),
        (["--penalty_weight=3"], "penalty_weight=3.0 is for a penalty"),
    ):
        assert (
            _flags.call(distill.main, distill.PROGRAM.parse, ["--method=cda", *flags])
            == 2
        )
        assert told in capsys.readouterr().err


def test_the_bound_is_part_of_adversarial_training_alone(tmp_path, monkeypatch):
    kind_of_eps = dataclasses.replace(
        _soft_students.KIND, work=lambda job, _: {"eps": job.asked.config.eps}
    )
    monkeypatch.setattr(_soft_students, "KIND", kind_of_eps)
    for kind in ("adversarial", "none"):
        found = distill.run(_config(tmp_path / kind, regularizer=kind))
        assert found["eps"] == "1/255"
    other = _config(tmp_path / "none", eps="0.1")
    with _run.opened(other) as workdir:
        assert workdir.is_done()
    with pytest.raises(_flags.UsageError, match=r'eps: "1/255" in the folder, "0\.1"'):
        distill.run(
            _config(tmp_path / "adversarial", regularizer="adversarial", eps="0.1")
        )


def test_what_is_whole_is_judged_again_without_its_checkpoints(tmp_path, monkeypatch):
    distill.run(_config(tmp_path))
    shutil.rmtree(tmp_path / "checkpoints")
    monkeypatch.setattr(squeezed, "make", None)
    monkeypatch.setattr(
        robust,
        "robust_accuracy",
        lambda *_, attacks, **__: SimpleNamespace(
            clean=0.5, accuracy=dict.fromkeys(attacks, 0.25), left={}
        ),
    )
    found = distill.run(_config(tmp_path, evaluate=True, attacks=("mim",)))
    assert found["accuracy"] == {"clean": 0.5, "mim (2 steps)": 0.25}
    assert found["seconds"]["squeeze"] > 0


def _folder(root, counts):
    """Pictures of 9x7 pixels; counts: of each class in train."""
    rng = np.random.default_rng(0)
    for part, each in (("train", counts), ("val", [1] * len(counts))):
        for name, count in zip("ab", each, strict=True):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                out = io.BytesIO()
                pixels = rng.integers(0, 256, (7, 9, 3), np.uint8)
                Image.fromarray(pixels).save(out, format="PNG")
                (root / part / name / f"{i}.png").write_bytes(out.getvalue())
    return root


def test_any_image_folder_is_a_data_set(tmp_path):
    root = _folder(tmp_path / "images", (3, 2))
    about = {"dataset": "image_folder", "data_dir": str(root)}
    config = _config(tmp_path / "run", **about, num_images=4, num_test=2)
    assert config.group(Data).image_size == 64
    small = {**about, "image_size": 5}
    config = _config(tmp_path / "run", **small, num_images=4, num_test=2)
    images = _soft_students.KIND.load(config).images
    assert images.x_train.shape == (4, 5, 5, 3)
    assert images.x_test.shape == (2, 5, 5, 3)
    assert (images.num_classes, images.levels) == (2, 255)
    assert "flip" in images.operations
    mean = images.x_train.mean((0, 1, 2))
    np.testing.assert_allclose(images.normal.mean, mean, rtol=1e-5)
    # evade reads it once, and takes what there is.
    attacked = evade.PROGRAM.asked(train="plain", **small)
    images, model = evade._load(attacked)
    assert model is None
    assert images.x_train.shape == (5, 5, 5, 3)
    assert images.class_names == ("a", "b")
    # Its place is what is in it: another is another run.
    names = ("data_dir", "workdir")
    assert "data_dir" not in config.group(Data).not_results(names)
    assert "data_dir" in _config(tmp_path).group(Data).not_results(names)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--dataset=image_folder"], 2, "name the folder that holds train and val"),
        (["--image_size=32"], 2, "image_size=32 is for dataset='image_folder'"),
        (["--dataset=image_folder", "--image_size=0", "--data_dir=x"], 2, "at least 1"),
        (["--dataset=image_folder", "--data_dir=/nowhere"], 1, "/nowhere is no folder"),
    ],
)
@pytest.mark.parametrize("program", [distill, evade])
def test_faults_of_image_folders_are_one_line(
    tmp_path, capsys, program, flags, code, message
):
    own = ["--method=sre2l"] if program is distill else ["--train=plain"]
    arguments = [*own, *flags, f"--workdir={tmp_path / 'run'}"]
    assert _flags.call(program.main, program.PROGRAM.parse, arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
