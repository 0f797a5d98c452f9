"""`experiments.distill` with dc, dsa, mtt, tesla, and `experiments.compare`."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import pytest
from command_lines import asked, chunks, command_line, summary

from experiments import (
    _flags,
    _students,
    compare,
    distill,
)
from ntk_privacy import checkpoint, data
from ntk_privacy.distillation import dc, gradient_matching, mtt, search, timed
from ntk_privacy.models import ConvNet
from ntk_privacy.reports import made_set
from ntk_privacy.training import classification, trajectories

TOY = {
    "num_train": 300,
    "num_test": 60,
    "width": 4,
    "images_per_class": 1,
    "num_steps": 3,
    "batch_size": 8,
    "num_networks": 2,
    "num_epochs": 2,
    "progress": False,
}
LOOPS = ("--outer_steps=1", "--inner_epochs=1")
TRAJECTORY = {"num_experts": 2, "student_steps": 2, "expert_epochs": 1}


def _run(folder, **changes):
    return distill.run(asked(TOY, **{"workdir": str(folder), **changes}))


@pytest.mark.parametrize("method", ["dc", pytest.param("mtt", marks=pytest.mark.slow)])
def test_a_run_has_both_accuracies_and_goes_on_after_a_kill(
    tmp_path, method, monkeypatch
):
    changes = {"method": method, "evaluate": True, "checkpoint_seconds": 0.0}
    changes |= TRAJECTORY if method == "mtt" else {}
    chunks(monkeypatch, 1)
    results = _run(tmp_path / "whole", **changes)
    assert results["method"] == method
    for entry in ("accuracy", "accuracy_random"):
        assert 0 <= results[entry]["convnet"] <= 1
    assert (tmp_path / "whole" / "distilled.png").read_bytes()[:4] == b"\x89PNG"
    with np.load(tmp_path / "whole" / "arrays.npz") as stored:
        assert stored["images"].shape == (10, 8, 8, 1)
        np.testing.assert_array_equal(stored["labels"], np.arange(10))
        assert ("step_size" in stored) == (method == "mtt")
        made = stored["images"] * stored["deviation"]
        mean = stored["mean"]
    images = data.load_set("digits").subset(num_train=300, num_test=60)
    apart = (images.x_train - mean)[None] - made[:, None]
    apart = np.linalg.norm(apart.reshape(*apart.shape[:2], -1), axis=2)
    near = results["nearest"]
    np.testing.assert_allclose(near["distances"], apart.min(1), rtol=1e-4)
    shown = np.clip(made + mean, 0, 1)
    errors = np.mean((images.x_train[near["psnr_index"]] - shown) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(near["psnr"], -10 * np.log10(errors), rtol=1e-4)
    assert near["num_copies"] == sum(value >= 25 for value in near["psnr"])

    class Killed(BaseException):
        """Nothing in a run may catch it."""

    save = checkpoint.save

    def save_and_die(folder, step, state):
        save(folder, step, state)
        if folder.name == "distill" and step == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_die)
        with pytest.raises(Killed):
            _run(tmp_path / "cut", **changes)
    assert _run(tmp_path / "cut", **changes)["runs"] == results["runs"]
    whole, cut = ((tmp_path / n / "arrays.npz").read_bytes() for n in ("whole", "cut"))
    assert whole == cut


def test_dc_matches_the_regularised_loss_if_a_weight_is_given(tmp_path, monkeypatch):
    """At the same steps: dc and dc_curvature side by side, not at the same seconds."""
    asked = []
    real = gradient_matching.distill

    def distil(x, classes, *, real_loss=None, **options):
        asked.append((real_loss, options["num_steps"]))
        return real(x, classes, real_loss=real_loss, **options)

    monkeypatch.setattr(gradient_matching, "distill", distil)
    plain, flat, shorter = (
        _run(tmp_path / name, method="dc", num_steps=2, **changes)
        for name, changes in (
            ("plain", {}),
            ("flat", {"penalty_weight": 2.0}),
            ("shorter", {"penalty_weight": 2.0, "penalty_step": 0.5}),
        )
    )
    want = [dc.real_loss(ConvNet(10, 4), 2.0, h) for h in (3.0, 0.5)]
    assert asked == [(loss, 2) for loss in (None, *want)]
    assert len({plain["loss"], flat["loss"], shorter["loss"]}) == 3


def test_experts_of_a_folder_are_completed_after_a_kill_or_taken_as_they_are(
    tmp_path, monkeypatch
):
    changes = {"method": "mtt", **TOY, **TRAJECTORY, "experts": str(tmp_path)}
    changes |= {"batch_size": 300, "width": 2, "max_start_epoch": 1}
    config = asked(changes, method="mtt").config
    images = data.load_set("digits").subset(num_train=300, num_test=60)

    def experts(seed=0, **other):
        config_ = dataclasses.replace(config, **other)
        key = jax.random.key(seed)
        found = mtt.experts(images, config_, key=key, folder=tmp_path / "not")
        return len(jax.tree.leaves(found)[0])

    def die(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(classification, "train", die)
        with pytest.raises(KeyboardInterrupt):
            experts()
        assert trajectories.recorded(tmp_path) == ()
    assert experts() == 2
    # Of another seed: enough of three, not of six.
    with pytest.warns(UserWarning, match="Taken as they are: .*another recipe"):
        assert experts(1, num_experts=3) == 2
    with pytest.raises(ValueError, match="experts of another recipe"):
        experts(1, num_experts=6)


def test_presets_are_the_published_tables():
    for each in (1, 50):
        paper = distill.PROGRAM.asked(
            method="dc", preset="paper", images_per_class=each
        ).config
        moves, epochs = (1, 1) if each == 1 else (50, 10)
        assert (paper.outer_steps, paper.inner_epochs) == (moves, epochs)
        assert paper.learning_rate == 0.1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if each == 50 else "error")
            small = distill.PROGRAM.asked(method="dsa", images_per_class=each).config
        assert (small.num_steps, small.learning_rate) == (
            (400, 0.2) if each == 1 else (60, 0.5)
        )
        assert (small.outer_steps, small.batch_size) == (1 if each == 1 else 5, 64)
    sizes = {}
    for method in ("mtt", "tesla"):
        for each in (1, 10, 50):
            config = distill.PROGRAM.asked(
                method=method, preset="paper", images_per_class=each
            ).config
            sizes[method, each] = (
                *(config.student_steps, config.expert_epochs, config.max_start_epoch),
                *(config.learning_rate, config.step_size_rate, config.step_size),
            )
    assert sizes["mtt", 1] == (50, 2, 2, 100, 1e-7, 0.01)
    assert sizes["mtt", 10] == (30, 2, 20, 100, 1e-5, 0.001)
    assert sizes["mtt", 50] == (30, 2, 40, 1000, 1e-5, 0.001)
    for each in (10, 50):
        assert sizes["tesla", each] == sizes["mtt", each]
    # Half of what is published: the factor 2 is in the gradient here.
    assert sizes["tesla", 1] == (50, 2, 5, 500, 1e-7, 0.01)
    with pytest.warns(UserWarning, match="images_per_class=20 has no published sizes"):
        distill.PROGRAM.asked(method="mtt", preset="paper", images_per_class=20)
    with pytest.warns(UserWarning, match="=7 has no published loops") as caught:
        paper = distill.PROGRAM.asked(
            method="dc", preset="paper", images_per_class=7
        ).config
    assert (len(caught), paper.outer_steps, paper.inner_epochs) == (1, 10, 50)
    for given in ({}, {"outer_steps": 3}, {"inner_epochs": 3}):
        with pytest.warns(UserWarning, match="=7 has no loops of its own") as caught:
            distill.PROGRAM.asked(method="dc", images_per_class=7, **given)
        assert len(caught) == 1


def test_many_products_are_not_kept():
    def lean(**flags):
        config = distill.PROGRAM.asked(method="mtt", preset="paper", **flags).config
        return mtt._low_memory((32, 32, 3), 10, config)

    # 0.7, 1.4, 4.2 and 21 GB.
    assert not lean(images_per_class=1)
    assert not lean(images_per_class=10, student_steps=10)
    assert lean(images_per_class=10)
    assert lean(images_per_class=50)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method=dc", "--student_steps=3"], "--student_steps has no effect with"),
        (["--method=mtt", "--outer_steps=3"], "it is a flag of dc, dsa"),
        (
            ["--method=dsa", "--images_per_class=90", *LOOPS],
            "images_per_class=90 is more than",
        ),
        (
            ["--method=dc", "--images_per_class=90", "--evaluate", *LOOPS],
            "what --evaluate compares with: use fewer",
        ),
        (["--method=dm", "--penalty_weight=3"], "--penalty_weight has no effect with"),
        (["--method=dc", "--penalty_weight=0"], "penalty_weight=0.0 must be above 0"),
        (["--method=dc", "--penalty_step=2"], "has no effect without penalty_weight"),
        (["--method=mtt", "--step_size=0"], "step_size=0.0 must be above 0"),
        (["--method=tesla", "--num_experts=0"], "num_experts=0 must be at least 1"),
    ],
)
def test_flags_of_other_methods_are_refused(tmp_path, capsys, flags, message):
    folder = tmp_path / "new"
    arguments = command_line(distill.PROGRAM, TOY, *flags, workdir=folder)
    assert _flags.call(distill.main, distill.PROGRAM.parse, arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_compare_has_a_row_per_method_and_a_column_per_architecture(tmp_path):
    config = compare.PROGRAM.asked(
        dataset="digits",
        num_epochs=2,
        methods=("rkip", "dc"),
        architectures=("MLP", "ConvNetW4D1"),
        width=4,
        seconds=0.01,
        num_images=800,
        num_test=40,
        num_targets=100,
        num_networks=1,
        workdir=str(tmp_path),
        progress=False,
    )
    results = compare.run(config)
    assert list(results["rows"]) == ["random", "rkip", "dc"]
    for row in results["rows"].values():
        assert list(row["accuracy"]) == ["ConvNetW4", "MLP", "ConvNetW4D1"]
    assert results["rows"]["dc"]["steps"] == timed.CHUNK
    assert len(results["markdown"].splitlines()) == 5
    assert (tmp_path / "dc.png").exists()
    # Asked for more, it keeps what is there.
    (tmp_path / "random.json").write_text(json.dumps(results["rows"]["random"]))
    again = compare.run(config)
    assert again["rows"] == results["rows"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"methods": ("dm", "gan")}, "methods='gan' is unknown"),
        ({"methods": ()}, "methods is empty: name one"),
        ({"architectures": ()}, "architectures is empty: name one"),
        ({"architectures": ("VGG",)}, "name='VGG' is unknown"),
        ({"seconds": 0.0}, "seconds=0.0 must be above 0"),
        ({"num_test": -5}, "num_test=-5 must be at least 1"),
        ({"num_images": 0}, "num_train=0 must be at least 1"),
        ({"width": 0}, "width=0 must be at least 1"),
    ],
)
def test_comparisons_of_nothing_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        compare.PROGRAM.asked(**flags)


@pytest.mark.parametrize(("learnt", "fault"), [(-0.02, "is not above 0"), (0.04, None)])
def test_a_learnt_step_size_and_its_fault_are_results(
    tmp_path, monkeypatch, learnt, fault
):
    """A set that was condensed with a lost step size is told, not trained with it."""
    random = np.random.default_rng(0)
    made = search.Distilled(
        images=jax.numpy.asarray(random.normal(size=(10, 8, 8, 1)), np.float32),
        labels=jax.numpy.arange(10, dtype=np.int32),
        losses=np.ones(4, np.float32),
        state=search.Kept(step_size=np.float32(learnt)),
        nonfinite=jax.numpy.asarray(False),
    )
    monkeypatch.setattr(made_set, "made_or_read", lambda *_, **__: made)
    trained = []

    def accuracies(job, images, made, *rest):
        trained.append(made.step_size)
        return [0.5]

    monkeypatch.setattr(_students, "_accuracies", accuracies)
    changes = {"method": "mtt", "evaluate": True, "preset": "paper", **TRAJECTORY}
    results = _run(tmp_path, **changes)
    assert results["step_size"] == pytest.approx(learnt)
    if fault is None:
        assert results["step_size_fault"] is None
        assert len(trained) == 2
        return
    assert fault in results["step_size_fault"]
    assert not trained
    assert "accuracy" not in results
    assert fault in summary(results)
    # With a step size of one's own the set may still be tried.
    other = _run(tmp_path / "other", **changes, train_learning_rate=0.01)
    assert fault in other["step_size_fault"]
    assert len(trained) == 2
