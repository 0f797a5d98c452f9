"""`experiments.evade` at toy size: files, models of every kind, going on, faults."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_lines import command_line
from PIL import Image

from experiments import _flags, distill, evade
from ntk_privacy import checkpoint
from ntk_privacy.evasion import robust_training
from ntk_privacy.models import saved

TOY = {
    "train": "plain",
    "dataset": "digits",
    "eps": "16/255",
    "attacks": ("pgd", "square"),
    "num_images": 40,
    "batch_size": 16,
    "num_steps": 3,
    "num_queries": 10,
    "width": 8,
    "num_train": 200,
    "num_epochs": 15,
    "train_batch_size": 50,
    "train_attack_steps": 2,
    "progress": False,
}


def _run(folder, **changes):
    # From the command line: what goes on there has the same flags.
    return evade.run(evade.PROGRAM.parse(_arguments(folder, **changes)))


def _arguments(folder, **changes):
    return command_line(evade.PROGRAM, TOY, workdir=folder, **changes)


def make_logits_fn(image_shape, num_classes):
    """A linear model that knows the mean image of no class: random weights."""
    size = int(np.prod(image_shape))
    w = np.random.default_rng(0).normal(size=(size, num_classes))
    return lambda x: x.reshape(len(x), -1) @ jnp.asarray(w, x.dtype)


def make_number():
    return 3


def make_whole():
    return lambda x: jnp.zeros((len(x), 10), jnp.int32)


def make_numpy():
    return lambda x: np.asarray(x).reshape(len(x), -1)[:, :10]


def make_narrow():
    return lambda x: jnp.zeros((len(x), 3), x.dtype)


def make_flat():
    return lambda x: x[:, 0, 0, 0]


def make_nan():
    def logits_fn(x):
        off = jnp.max(jnp.abs(16 * x - jnp.round(16 * x)), axis=(1, 2, 3)) > 0.1
        ones = jnp.ones((len(x), 10), x.dtype) * jnp.arange(10, dtype=x.dtype)[None]
        return jnp.where(off[:, None], jnp.nan, -ones)

    return logits_fn


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_models", sys.modules[__name__])
    return "own_models"


def test_a_run_trains_attacks_and_writes_every_file(tmp_path, capsys):
    assert _flags.call(evade.main, evade.PROGRAM.parse, _arguments(tmp_path)) == 0
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    share = results["accuracy"]
    assert set(share) == {"clean", "pgd", "square", "ensemble"}
    assert share["ensemble"] == share["square"] <= share["pgd"] <= share["clean"]
    assert results["eps"] == pytest.approx(16 / 255)
    assert (
        set(results["queries"])
        == set(results["seconds"]["attacks"])
        == {*("pgd", "square")}
    )
    assert results["model"]["train"] == "plain"
    assert (tmp_path / "adversarial.png").read_bytes()[:4] == b"\x89PNG"
    for word in ("none", "pgd", "square", "all within eps"):
        assert word in out
    with np.load(tmp_path / "arrays.npz") as stored:
        arrays = dict(stored)
    assert arrays["survived_pgd"].mean() == share["pgd"]
    assert arrays["correct"].mean() == share["clean"]
    assert np.abs(arrays["attacked"] - arrays["clean"]).max() <= 16 / 255
    network = saved.load(tmp_path / "model")
    assert network.class_names == tuple("0123456789")
    assert not (tmp_path / "checkpoints" / "evade").exists()
    # A finished run is read back; another configuration is refused.
    before = (tmp_path / "results.json").read_bytes()
    assert _flags.call(evade.main, evade.PROGRAM.parse, _arguments(tmp_path)) == 0
    assert (tmp_path / "results.json").read_bytes() == before
    assert (
        _flags.call(evade.main, evade.PROGRAM.parse, _arguments(tmp_path, eps="0.1"))
        == 2
    )
    # The saved network in another folder, named by its parent: the same figures.
    again = _run(tmp_path / "again", model=str(tmp_path), train="none")
    assert again["accuracy"] == share


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


@pytest.mark.parametrize(
    "stage", [pytest.param("train", marks=pytest.mark.slow), "evade"]
)
def test_a_killed_run_goes_on_to_the_bit(tmp_path, monkeypatch, stage):
    kind = "adversarial" if stage == "train" else "plain"
    options = {"checkpoint_seconds": 0, "train": kind, "batch_size": 4}
    monkeypatch.setattr(robust_training, "_CHUNK", 4)
    whole = _run(tmp_path / "whole", **options)
    # Several batches, or there is nothing to go on with.
    assert stage == "train" or whole["accuracy"]["clean"] > 0.3
    save, written = checkpoint.save, []

    def dying(folder, step, state):
        save(folder, step, state)
        written.append(folder.name)
        if written.count(stage) == 2:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", dying)
    with pytest.raises(Killed):
        _run(tmp_path / "killed", **options)
    monkeypatch.setattr(checkpoint, "save", save)
    resumed = _run(tmp_path / "killed", **options)
    for told in (whole, resumed):
        del told["seconds"], told["model"]["folder"]
    assert resumed == whole
    for name in ("arrays.npz", "adversarial.png", "model/params.npz"):
        same = [(tmp_path / run / name).read_bytes() for run in ("whole", "killed")]
        assert same[0] == same[1], name


def test_a_function_of_ones_own_and_another_one_on_going_on(
    tmp_path, here, monkeypatch, capsys
):
    options = {"train": "none", "model": f"{here}:make_logits_fn", "eps": "0.3"}
    options |= {"checkpoint_seconds": 0}
    results = _run(tmp_path / "whole", **options)
    assert results["model"] == {"function": "own_models:make_logits_fn"}
    assert results["accuracy"]["clean"] < 0.5
    save = checkpoint.save

    def dying(folder, step, state):
        save(folder, step, state)
        raise Killed

    monkeypatch.setattr(checkpoint, "save", dying)
    with pytest.raises(Killed):
        _run(tmp_path / "killed", **options)
    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(sys.modules[__name__], "make_logits_fn", make_other)
    arguments = _arguments(tmp_path / "killed", **options)
    assert _flags.call(evade.main, evade.PROGRAM.parse, arguments) == 1
    assert "not that of the checkpoint" in capsys.readouterr().err


def test_results_of_another_model_are_not_read_back(
    tmp_path, here, monkeypatch, capsys
):
    options = {"train": "none", "model": f"{here}:make_logits_fn", "eps": "0.3"}
    results = _run(tmp_path, **options)
    assert results["settings"]["square"].endswith("but with num_queries=10")
    assert results["settings"]["pgd"].endswith("but with num_steps=3")
    assert any("weaker than" in said for said in results["warnings"])
    assert _run(tmp_path, **options) == results
    monkeypatch.setattr(sys.modules[__name__], "make_logits_fn", make_other)
    assert (
        _flags.call(evade.main, evade.PROGRAM.parse, _arguments(tmp_path, **options))
        == 1
    )
    assert "not that of the results" in capsys.readouterr().err
    monkeypatch.setattr(sys.modules[__name__], "make_logits_fn", make_wider)
    assert (
        _flags.call(evade.main, evade.PROGRAM.parse, _arguments(tmp_path, **options))
        == 1
    )
    assert "not that of the results" in capsys.readouterr().err
    (tmp_path / "arrays.npz").write_bytes(b"")
    assert (
        _flags.call(evade.main, evade.PROGRAM.parse, _arguments(tmp_path, **options))
        == 1
    )
    assert "arrays.npz is damaged" in capsys.readouterr().err


def make_wider(image_shape, num_classes):
    return make_other(image_shape, num_classes + 2)


def make_other(image_shape, num_classes):
    size = int(np.prod(image_shape))
    return lambda x: x.reshape(len(x), -1) @ jnp.eye(size, num_classes, dtype=x.dtype)


@pytest.mark.slow
def test_distill_leaves_a_network_to_attack(tmp_path):
    distill.run(
        distill.PROGRAM.asked(
            method="dm",
            num_images=300,
            num_test=60,
            width=4,
            images_per_class=1,
            num_steps=2,
            batch_size=8,
            num_networks=2,
            num_epochs=2,
            evaluate=True,
            progress=False,
            workdir=str(tmp_path / "dm"),
        )
    )
    network = saved.load(tmp_path / "dm" / "model")
    assert network.about["trained_on"] == "dm"
    results = _run(
        tmp_path / "evade", model=str(tmp_path / "dm"), train="none", attacks=("mim",)
    )
    assert results["model"]["trained_on"] == "dm"


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"attacks": "best"}, 2, "attacks='best' is unknown"),
        ({"attacks": "pgd,pgd"}, 2, "attacks names pgd twice"),
        ({"eps": "8/0"}, 2, "eps='8/0' is no number: write 0.03 or 8/255"),
        ({"eps": "-0.1"}, 2, "eps=-0.1 must be finite and at least 0"),
        ({"eps": "inf"}, 2, "eps=inf must be finite and at least 0"),
        ({"train": "none"}, 2, "give a model, or train"),
        ({"model": "x"}, 2, "--model has no effect with --train=plain: leave it out"),
        ({"batch_size": 0}, 2, "batch_size=0 must be at least 1"),
        ({"num_images": 0}, 2, "num_attacked=0 must be at least 1"),
        ({"train": "none", "model": "nowhere"}, 2, "holds no model.json"),
        ({"train": "none", "model": "nomodule:f"}, 2, "cannot be imported"),
        ({"train": "none", "model": "own_models:f"}, 2, "cannot be imported"),
        ({"train": "none", "model": "own_models:make_number"}, 2, "returned int"),
        ({"train": "none", "model": "own_models:jax"}, 2, "is module: name a fun"),
        ({"train": "none", "model": "own_models:_arguments"}, 2, "needs folder: name"),
        ({"train": "none", "model": ":f"}, 2, "holds no model.json"),
        ({"train": "none", "model": "..up:f"}, 2, "holds no model.json"),
        ({"train": "none", "model": "own_models:make_whole"}, 2, "floating-point"),
        ({"train": "none", "model": "own_models:make_numpy"}, 2, "of jax.numpy"),
        ({"train": "none", "model": "own_models:make_narrow"}, 2, "has 3 classes"),
        ({"train": "none", "model": "own_models:make_flat"}, 2, "returned (16,)"),
        ({"train": "none", "model": "own_models:make_nan"}, 1, "returned NaN"),
        ({"dataset": "mnist", "data_dir": "/nowhere"}, 1, "/nowhere"),
    ],
)
def test_faults_are_one_line(tmp_path, capsys, here, changes, code, message):
    arguments = _arguments(tmp_path / "w", **changes)
    assert _flags.call(evade.main, evade.PROGRAM.parse, arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_model_of_other_images_is_refused(tmp_path, capsys, monkeypatch):
    net = saved.ConvNet(10, 4)
    params = net.init_params(jax.random.key(0), (16, 16, 3))
    saved.save(tmp_path / "m", net, params, image_shape=(16, 16, 3))
    arguments = _arguments(tmp_path / "w", train="none", model=tmp_path / "m")
    assert _flags.call(evade.main, evade.PROGRAM.parse, arguments) == 2
    assert "give the dataset that it was trained on" in capsys.readouterr().err
    few = saved.ConvNet(4, 4)
    params = few.init_params(jax.random.key(0), (8, 8, 1))
    saved.save(tmp_path / "m", few, params, image_shape=(8, 8, 1))
    assert _flags.call(evade.main, evade.PROGRAM.parse, arguments) == 2
    assert "4 classes but the image set 10" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_versions_of_autoattack_end_to_end(tmp_path):
    attacks = ("autoattack_torchattacks10", "autoattack_plus", "autoattack", "cw")
    results = _run(tmp_path, attacks=attacks, survivors_only=False, num_steps=None)
    share = results["accuracy"]
    assert share["ensemble"] <= min(share[name] for name in attacks[:3])
    assert list(results["left"]["autoattack_plus"]) == [
        *("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")
    ]
    assert results["median_distance"]["cw"] > 0


def test_an_attack_that_needs_more_classes_is_a_usage_error(tmp_path, capsys):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "set" / part / name
            folder.mkdir(parents=True)
            for i in range(3):
                pixels = np.full((8, 8, 3), 40 * i + len(name), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    place = {"dataset": "image_folder", "data_dir": tmp_path / "set", "image_size": 8}
    arguments = _arguments(tmp_path / "w", **place, attacks="apgd_dlr")
    assert _flags.call(evade.main, evade.PROGRAM.parse, arguments) == 2
    error = capsys.readouterr().err
    assert "apgd_dlr" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "w").exists()
