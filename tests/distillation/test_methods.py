"""The contract of every method of distillation; one is added by a record."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _flags, compare, distill
from ntk_privacy import data, distillation
from ntk_privacy.distillation import METHODS, Distilled
from ntk_privacy.method import Method, field
from ntk_privacy.resume import Ran, straight

SMALL = {
    "images_per_class": 1,
    "num_distilled": 4,
    "width": 4,
    "num_steps": 3,
    "batch_size": 8,
    "outer_steps": 1,
    "inner_epochs": 1,
    "num_experts": 1,
    "student_steps": 2,
    "expert_epochs": 1,
    "max_start_epoch": 1,
    "attack_steps": 60,
    "max_train_steps": 20,
    "blocks": (1,),
    "squeeze_epochs": 1,
    "squeeze_batch_size": 100,
    "num_epochs": 1,
}
# The loop that makes the images, where it has another name.
LOOPS = {"sre2l": "recover", "cda": "recover"}
# Loops of one step at a time, whose states a test can look at.
STEPWISE = [name for name in METHODS if name not in ("random", "full", "rkip_finite")]


def _config(name, **changes):
    names = {entry.name for entry in dataclasses.fields(METHODS[name].config)}
    given = {k: v for k, v in SMALL.items() if k in names}
    return METHODS[name].configured(**given | changes)


@pytest.fixture(scope="module")
def images():
    return data.load_set("digits").subset(num_train=200, num_test=20)


def _run(name, images, stage=straight, key=0, chunk=1):
    run = METHODS[name].run
    return run(images, _config(name), key=jax.random.key(key), stage=stage, chunk=chunk)


class _Seen:
    """A stage that keeps the states, stops where asked, or starts from one of them."""

    def __init__(self, loop, stop=None, begin=None):
        self.loop, self.stop, self.begin, self.states = loop, stop, begin, {}

    def __call__(self, name, start, go, num_steps):
        if name != self.loop:
            return straight(name, start, go, num_steps)
        losses = np.full(num_steps, np.nan)

        def callback(step, state, metrics):
            self.states[step] = state
            part = np.atleast_1d(np.asarray(metrics["loss"]))
            losses[step - len(part) : step] = part
            return step == self.stop

        done, state = self.begin or (0, start)
        return Ran(go(state, done, callback), losses)


@pytest.mark.parametrize("name", STEPWISE)
def test_a_method_is_fixed_by_its_key_stops_and_goes_on_to_the_bit(images, name):
    seen = functools.partial(_Seen, LOOPS.get(name, "distill"))
    whole = seen()
    found = _run(name, images, whole)
    assert isinstance(found, Distilled)
    assert list(whole.states) == [1, 2, 3]
    assert found.losses.shape == (3,)
    assert np.isfinite(found.losses).all()
    assert not bool(found.nonfinite)
    assert len(found.images) == len(found.labels)
    rest = seen(begin=(1, whole.states[1]))
    again = _run(name, images, rest)
    np.testing.assert_array_equal(again.images, found.images)
    np.testing.assert_array_equal(again.labels, found.labels)
    np.testing.assert_array_equal(again.losses[1:], found.losses[1:])
    stopped = seen(stop=2)
    short = _run(name, images, stopped)
    assert list(stopped.states) == [1, 2]
    np.testing.assert_array_equal(short.images, whole.states[2].images)
    other = _run(name, images, seen(stop=1), key=1)
    assert np.any(np.asarray(other.images) != np.asarray(whole.states[1].images))


@pytest.mark.parametrize("name", ["random", "full"])
def test_real_images_are_those_of_the_set(images, name):
    found, again = (_run(name, images) for _ in range(2))
    np.testing.assert_array_equal(found.images, again.images)
    x = images.regression().x_train
    apart = np.abs(np.asarray(found.images)[:, None] - x[None]).max(axis=(2, 3, 4))
    assert (apart.min(axis=1) == 0).all()
    assert len(found.images) == (4 if name == "random" else 200)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is_and_refuses_what_does_not_fit(images, name):
    method = METHODS[name]
    assert method.name == name
    assert method.about.endswith(".")
    for preset in method.presets:
        assert isinstance(method.configured(preset), method.config)
    for entry in dataclasses.fields(method.config):
        assert entry.metadata["help"].endswith((".", ").")), entry.name
    with pytest.raises(ValueError, match=f"{name} takes no magic"):
        method.configured(magic=1)
    sizes = {entry.name for entry in dataclasses.fields(method.config)}
    if "num_distilled" in sizes:
        with pytest.raises(ValueError, match="num_distilled=0 must be at least 1"):
            _config(name, num_distilled=0)
        with pytest.raises(ValueError, match="does not split evenly"):
            method.check(images, _config(name, num_distilled=3))
    if "images_per_class" in sizes:
        with pytest.raises(ValueError, match="images_per_class=0 must be at least 1"):
            _config(name, images_per_class=0)
    method.check(images, _config(name))


# A method that is not in the library: the mean of each class.


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanConfig:
    images_per_class: int = field(1, "Copies of each mean.")
    num_steps: int = field(1, "Times that the mean is taken.")
    strength: float = field(1.0, "What it is multiplied by.")


def _means(images, config, *, key, stage=straight, chunk=1, folder=None):
    del key, chunk, folder
    x = images.normalised(images.x_train)
    classes = np.repeat(np.arange(images.num_classes), config.images_per_class)
    means = [config.strength * x[images.class_train == c].mean(axis=0) for c in classes]
    start = jnp.zeros((len(means), *images.image_shape), jnp.float32)

    def go(state, done, callback):
        if not done:
            state = jnp.asarray(np.stack(means), jnp.float32)
            callback(1, state, {"loss": np.zeros(1)})
        return state

    ran = stage("distill", start, go, 1)
    labels = jnp.asarray(classes, jnp.int32)
    return Distilled(ran.result, labels, ran.losses, None, jnp.asarray(False))


MEAN = Method(
    "mean", "is the mean of each class.", MeanConfig, {"cpu": MeanConfig}, _means
)


@pytest.fixture
def added(monkeypatch):
    monkeypatch.setitem(distillation.METHODS, "mean", MEAN)


def test_one_record_adds_a_method_to_the_command_line(added, tmp_path, capsys, images):
    arguments = ["--method=mean", "--num_images=200", "--num_test=20", "--strength=2"]
    arguments += [f"--workdir={tmp_path}", "--noprogress", "--images_per_class=2"]
    assert _flags.call(distill.main, distill.PROGRAM.parse, arguments) == 0
    with np.load(tmp_path / "arrays.npz") as stored:
        found = stored["images"]
    same = _means(images, MeanConfig(images_per_class=2, strength=2.0), key=None)
    np.testing.assert_array_equal(found, same.images)
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["method"], results["num_distilled"]) == ("mean", 20)
    assert (tmp_path / "distilled.png").exists()
    # Finished, it is read back.
    assert _flags.call(distill.main, distill.PROGRAM.parse, arguments) == 0
    capsys.readouterr()
    assert (
        _flags.call(distill.main, distill.PROGRAM.parse, ["--method=mean", "--help"])
        == 0
    )
    text = capsys.readouterr().out
    assert "mean: is the mean of each class." in text
    assert "--strength=FLOAT\n        What it is multiplied by. (default: 1.0)" in text
    assert "--batch_size" not in text
    for flag, told in (
        ("--batch_size=3", "--batch_size has no effect with --method=mean"),
        ("--strengt=3", "Did you mean: strength"),
        ("--strength=x", "expected a number, not 'x'"),
    ):
        assert (
            _flags.call(distill.main, distill.PROGRAM.parse, ["--method=mean", flag])
            == 2
        )
        assert told in capsys.readouterr().err


def test_one_record_adds_a_method_to_comparisons(added):
    names = compare.PROGRAM.asked(methods=("mean", "dm")).flat()["methods"]
    assert names == ("mean", "dm")
    with pytest.raises(ValueError, match="methods='means' is unknown"):
        compare.PROGRAM.asked(methods=("means",))
    # Soft labels are not what its students are trained on.
    with pytest.raises(ValueError, match="methods='sre2l' is unknown"):
        compare.PROGRAM.asked(methods=("sre2l",))
