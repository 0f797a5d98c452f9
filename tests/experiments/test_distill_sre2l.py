"""`experiments.distill` with sre2l and cda: files, stages, going on, refusals."""

import io
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import (
    _flags,
    _image_sets,
    _sre2l,
    _sre2l_config,
    _sre2l_evaluation,
    _sre2l_stages,
    distill,
    evade,
)
from ntk_privacy import checkpoint, curvature
from ntk_privacy.evaluation import robust_accuracy as robust
from ntk_privacy.reports import curvature_plots
from ntk_privacy.training import squeeze

TOY = {
    "method": "sre2l",
    "dataset": "digits",
    "num_images": 100,
    "num_test": 30,
    "width": 2,
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


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    real = _sre2l_stages.ResNet18
    monkeypatch.setattr(
        _sre2l_stages,
        "ResNet18",
        lambda outputs, width, stem: real(outputs, width, stem, blocks=(1,)),
    )


def _config(folder, **changes):
    return _sre2l_config.Config(**{**TOY, "workdir": str(folder), **changes})


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
    assert "student, pgd100" in _sre2l.summary(results)
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
            patch.setattr(_sre2l, "_load", None)
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
        for name, value in {**TOY, "workdir": tmp_path}.items()
    ]
    kind = distill.FLAGS
    assert _flags.call(distill.main, kind, arguments) == 2
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
    assert "judged on" in _sre2l.summary(chosen)
    assert chosen["judging"]["judged_on"] == "validation"
    assert chosen["accuracy"] != told["accuracy"]
    assert (told["num_test"], again["num_test"]) == (30, 40)
    images = _sre2l._load(_config(tmp_path))
    trained = {image.tobytes() for image in images.x}
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
    monkeypatch.setattr(_sre2l_stages, "_CHUNK", 2)
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
    assert {name for name, _ in stops} == set(_sre2l_stages.STAGES)
    assert len(stops) == len(set(stops)) == 8
    one, two = (
        (tmp_path / name / "arrays.npz").read_bytes() for name in ("whole", "parts")
    )
    assert one == two
    assert found["accuracy_squeezed"] == whole["accuracy_squeezed"]


def test_config_class_and_refusals():
    asked = distill.FLAGS.parse
    assert isinstance(asked(["--method", "cda"]), _sre2l_config.Config)
    assert asked(["--method=kip"]).method.name == "kip"
    assert asked([]).method.name == "rkip"
    with pytest.raises(ValueError, match="penalty_weight=3 is for a penalty"):
        _sre2l_config.Config(penalty_weight=3, regularizer="none")
    with pytest.raises(ValueError, match="penalty_weight=0 must be above 0"):
        _sre2l_config.Config(penalty_weight=0, regularizer="curvature")
    with pytest.raises(ValueError, match=r"penalty_share=2 must lie in \[0, 1\]"):
        _sre2l_config.Config(penalty_share=2, regularizer="curvature")
    paper = _sre2l_config.Config(preset="paper", regularizer="curvature")
    assert (paper.width, paper.penalty_weight, paper.penalty_step) == (64, 100.0, 3.0)
    assert json.dumps(paper.num_images) == "null"
    tiny = _sre2l_config.Config(preset="paper", dataset="tiny_imagenet", method="cda")
    assert (tiny.num_steps, tiny.learning_rate, tiny.bn_weight) == (4000, 0.4, 0.05)


def test_the_bound_is_part_of_adversarial_training_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(_sre2l, "_Run", lambda config, *_: lambda: config.eps)
    for kind in ("adversarial", "none"):
        assert distill.run(_config(tmp_path / kind, regularizer=kind)) == 1 / 255
    assert distill.run(_config(tmp_path / "none", eps=0.1)) == 0.1
    with pytest.raises(_flags.UsageError, match=r"eps: 0\.0039.* in the folder, 0\.1"):
        distill.run(
            _config(tmp_path / "adversarial", regularizer="adversarial", eps=0.1)
        )


def test_eigenvalues_are_of_images_of_all_classes(monkeypatch):
    """Folders hold one class after the other."""
    seen = []

    def told(loss_fn, params, x, classes, **options):
        seen.append(np.asarray(classes))
        return np.zeros(len(x))

    monkeypatch.setattr(curvature, "top_eigenvalues", told)
    images = _images((400, 2, 2, 1), np.repeat(np.arange(4), 100))
    _sre2l_evaluation.eigenvalues(images, None, None, None)
    np.testing.assert_array_equal(np.bincount(seen[0]), [32] * 4)
    few = images._replace(x=images.x[:7], classes=images.classes[::60])
    _sre2l_evaluation.eigenvalues(few, None, None, None)
    np.testing.assert_array_equal(seen[1], few.classes)


def _images(shape, classes):
    x = np.zeros(shape, np.float32)
    one = np.ones(shape[-1], np.float32)
    return _image_sets.Images(x, classes, x, classes, one, one, 4, 255, ())


@pytest.mark.parametrize(
    ("flags", "size", "stem", "squeeze_with", "rest"),
    [
        ({}, 32, "cifar", (200, 0.1, 128, 5e-4, 0), (1000, 0.25, 0.01, 4, 128, 30)),
        (
            {"dataset": "tiny_imagenet"},
            *(64, "cifar", (50, 0.2, 256, 1e-4, 5)),
            (4000, 0.1, 1.0, 4, 100, 20),
        ),
        *(
            (
                {"dataset": "image_folder", "data_dir": "x", "image_size": size},
                *(size, stem, (50, 0.025, 32, 1e-4, 0)),
                (2000, 0.25, 0.01, jitter, 100, 20),
            )
            for size, stem, jitter in ((64, "cifar", 4), (224, "imagenet", 32))
        ),
    ],
)
def test_the_paper_preset_is_the_published_recipe(
    monkeypatch, flags, size, stem, squeeze_with, rest
):
    config = _sre2l_config.Config(preset="paper", **flags)
    assert rest == (
        *(config.num_steps, config.learning_rate, config.bn_weight),
        *(config.jitter, config.batch_size, config.temperature),
    )
    images = _images((1, size, size, 3), np.zeros(1, int))
    run = _sre2l_stages.Stages(config, None, images)
    assert run.model.stem == stem
    told = {}

    def train(x, labels, **options):
        told.update(options)
        return SimpleNamespace(params=None, stats=None)

    monkeypatch.setattr(squeeze, "init", lambda x, **options: None)
    monkeypatch.setattr(squeeze, "train", train)
    monkeypatch.setattr(run, "_stage", lambda name, steps, start, go: go(start, None))
    run.squeeze()
    names = ("num_epochs", "learning_rate", "batch_size", "weight_decay")
    assert tuple(told[name] for name in (*names, "warmup_epochs")) == squeeze_with
    assert told["flip"] is False


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
    assert config.image_size == 64
    small = {**about, "image_size": 5}
    config = _config(tmp_path / "run", **small, num_images=4, num_test=2)
    images = _sre2l._load(config)
    assert images.x.shape == (4, 5, 5, 3)
    assert images.x_test.shape == (2, 5, 5, 3)
    assert (images.num_classes, images.levels) == (2, 255)
    assert "flip" in images.operations
    np.testing.assert_allclose(images.mean, images.x.mean((0, 1, 2)), rtol=1e-5)
    # evade reads it once, and takes what there is.
    attacked = evade.Config(train="plain", **small)
    images, names = evade._images(attacked, trains=True)
    assert images.x.shape == (5, 5, 5, 3)
    assert names == ("a", "b")
    # Its place is what is in it: another is another run.
    assert "data_dir" not in _image_sets.not_results(config, ("data_dir", "workdir"))
    assert "data_dir" in _image_sets.not_results(_config(tmp_path), ("data_dir",))


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
    kind = distill.FLAGS if program is distill else evade.Config
    assert _flags.call(program.main, kind, arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
