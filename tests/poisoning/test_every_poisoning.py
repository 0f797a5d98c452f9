"""One contract for every poisoning attack, a toy of the test's own among them."""

import dataclasses
import functools
import inspect
import json

import jax
import numpy as np
import pytest

from experiments import _flags, poison
from ntk_privacy import _checks, data, method, poisoning, resume
from ntk_privacy.evaluation import poisoned_means, poisoned_sets, protocol
from ntk_privacy.poisoning import METHODS, Poisoned

DATA = {"num_train": 200, "num_test": 20}
RATE = 0.02


@dataclasses.dataclass(frozen=True)
class _Config:
    strength: float = method.field(0.5, "What is left of an image at each step.")
    attack_steps: int = method.field(3, "Steps.")

    def __post_init__(self):
        _checks.at_least(1, attack_steps=self.attack_steps)


def _fade(scene, config, *, key, stage=resume.straight):
    """Darkens the images: a poison that does nothing."""
    start = scene.clean * jax.random.uniform(key, (), np.float32)

    def go(images, done, callback):
        for step in range(done, config.attack_steps):
            images = config.strength * images
            if callback(step + 1, images, {"loss": np.ones(1)}):
                break
        return images

    ran = stage("craft", start, go, config.attack_steps)
    images = np.asarray(ran.result, np.float32)
    losses = ran.losses[np.isfinite(ran.losses)]
    return Poisoned(images, losses, np.zeros(0), None)


TOY = method.Method("toy", "Fades.", _Config, {"cpu": _Config}, _fade)


def _in_chunks(row):
    """The row with a loop of two steps at a time."""
    if "chunk" not in inspect.signature(row.run).parameters:
        return row
    return dataclasses.replace(row, run=functools.partial(row.run, chunk=2))


ROWS = {name: _in_chunks(row) for name, row in {**METHODS, "toy": TOY}.items()}
SHORT = {"width": 4, "attack_steps": 3, "num_restarts": 2, "num_clean": 2, "bound": 80}
# Loops that each goes through, and the steps of the last.
STAGES = {"dm": ["craft"], "gradient": ["clean", "craft"], "toy": ["craft"]}


@pytest.fixture(autouse=True)
def with_toy(monkeypatch):
    """One row in the table is all that an attack takes."""
    for name, row in ROWS.items():
        monkeypatch.setitem(METHODS, name, row)


@pytest.fixture(scope="module")
def scene():
    images = data.load_set("digits").subset(**DATA)
    return poisoning.scene(images, seed=0, rate=RATE)


def _config(name, **changes):
    names = {entry.name for entry in dataclasses.fields(ROWS[name].config)}
    given = {k: v for k, v in SHORT.items() if k in names}
    return ROWS[name].configured(**given | changes)


def _run(name, scene, stage=resume.straight, key=None, **changes):
    key = scene.key if key is None else key
    return ROWS[name].run(scene, _config(name, **changes), key=key, stage=stage)


@pytest.fixture(scope="module", params=ROWS)
def case(request, scene):
    return request.param, scene, _run(request.param, scene)


def test_poison_stands_in_its_rows_within_its_bound(case):
    name, scene, found = case
    assert isinstance(found, Poisoned)
    images = np.asarray(found.images)
    assert images.shape == scene.clean.shape
    assert 0 <= images.min() <= images.max() <= 1
    config = _config(name)
    if hasattr(config, "bound"):
        change = 16 * (images.astype(float) - scene.clean)
        np.testing.assert_allclose(change, np.rint(change), atol=1e-5)
        assert 0 < np.abs(np.rint(change)).max() <= 5  # 80/255 in steps of 1/16
    steps = getattr(config, "attack_steps", 0) * getattr(config, "num_restarts", 1)
    assert found.losses.shape == (steps,)
    assert np.isfinite(found.losses).all()
    poisoned = scene.poisoned(found.images)
    rest = np.setdiff1d(np.arange(200), scene.where)
    np.testing.assert_array_equal(poisoned.x_train[scene.where], images)
    np.testing.assert_array_equal(poisoned.x_train[rest], scene.images.x_train[rest])
    np.testing.assert_array_equal(poisoned.class_train, scene.images.class_train)


def _same(one, other):
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.losses, other.losses)


def test_the_key_fixes_it_and_another_compiles_nothing(case):
    name, scene, found = case
    compiled, listening = [], [True]

    def heard(event, seconds, **_):
        if listening and event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    other = poisoning.scene(scene.images, seed=1, rate=RATE)
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        _same(_run(name, scene), found)
        another = _run(name, other)
    finally:
        listening.clear()  # JAX 0.7 keeps listeners for good
    assert compiled == []
    if name in STAGES:
        key = _run(name, scene, key=jax.random.key(5))
        assert np.any(np.asarray(key.images) != np.asarray(found.images))
    assert np.any(np.asarray(another.images) != np.asarray(found.images))


@pytest.mark.parametrize("name", STAGES)
def test_it_stops_when_asked_and_goes_on_from_any_chunk(scene, tmp_path, name):
    found = _run(name, scene)
    short = _run(name, scene, resume.watched(lambda *_: True))
    assert np.isfinite(short.losses).sum() < len(found.losses)
    options = {"timer": resume.Timer(), "seconds": 0.0}
    seen = []
    whole = resume.resumed(
        tmp_path / "whole", stop=lambda *_: seen.append(1), **options
    )
    _same(_run(name, scene, whole), found)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == STAGES[name]

    class Killed(Exception):
        pass

    for chunk in range(len(seen)):
        left = iter(range(chunk))

        def kill(*_, left=left):
            if next(left, None) is None:
                raise Killed

        folder = tmp_path / str(chunk)
        with pytest.raises(Killed):
            _run(name, scene, resume.resumed(folder, stop=kill, **options))
        _same(_run(name, scene, resume.resumed(folder, **options)), found)


@pytest.mark.parametrize("name", ROWS)
def test_every_attack_says_what_it_is_and_refuses_what_does_not_fit(scene, name):
    row = ROWS[name]
    assert row.name == name
    assert row.about.endswith((".", ").")), row.about
    for preset in row.presets:
        assert isinstance(row.configured(preset), row.config)
    for entry in dataclasses.fields(row.config):
        assert entry.metadata["help"].endswith("."), entry.name
        if entry.type in (int, "int"):
            with pytest.raises(ValueError, match=f"{entry.name}=-1 must "):
                row.configured(**{entry.name: -1})
    with pytest.raises(ValueError, match=f"{name} takes no magic"):
        row.configured(magic=1)
    row.check(scene, _config(name))
    if name in ("dm", "gradient"):
        told = "bound=15/255 is below one step of digits, which is 1/16: use at least"
        for call in (row.check, functools.partial(row.run, key=scene.key)):
            with pytest.raises(data.ArgumentError, match=told):
                call(scene, _config(name, bound=15))
    if name == "dm":
        images = scene.images.replaced(0.97 * scene.images.x_train)
        off = dataclasses.replace(scene, images=images)
        with pytest.raises(ValueError, match=r"off the grid of 1/16: give"):
            _run(name, off)


@pytest.fixture
def uncondensed(monkeypatch):
    """What follows the attack is no matter here."""

    def trial(images, condense, config, targets, *, key, stage):
        made = poisoned_sets.Distilled(
            np.zeros((10, 8, 8, 1)), np.arange(10), np.ones(4), None, False
        )
        asked = np.zeros((1, len(targets)), np.int32)
        return poisoned_sets.Trial(made, protocol.Evaluated(np.ones(1), asked, None))

    monkeypatch.setattr(poisoned_sets, "trial", trial)
    left = poisoned_means.Deviation(0.0, 0.0, 1.0, 1.0)
    monkeypatch.setattr(poisoned_means, "deviation", lambda *args, **kwargs: left)


def _arguments(name, folder):
    given = {**DATA, "dataset": "digits", "num_seeds": 1, "rate": RATE, "attack": name}
    given |= {"batch_size": 8, "width": 4, "workdir": folder}
    given |= dataclasses.asdict(_config(name))
    return [*(f"--{flag}={value}" for flag, value in given.items()), "--noprogress"]


def test_the_binary_makes_the_same(case, uncondensed, tmp_path, capsys):
    name, scene, found = case
    told = _flags.call(poison.main, poison.PROGRAM.parse, _arguments(name, tmp_path))
    assert told == 0, capsys.readouterr().err
    with np.load(tmp_path / "poisons_0.npz") as stored:
        np.testing.assert_array_equal(stored["poisons"], found.images)
        np.testing.assert_array_equal(stored["where"], scene.where)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["attack"] for row in results["table"]] == [name, name]


def test_one_record_adds_an_attack_to_the_command_line(capsys):
    call = functools.partial(_flags.call, poison.main, poison.PROGRAM.parse)
    assert call(["--attack=toy", "--help"]) == 0
    text = capsys.readouterr().out
    assert "toy: Fades." in text
    assert "--strength=FLOAT\n        What is left of an image at each step." in text
    assert "--bound" not in text
    for flag, told in (
        ("--bound=3", "--bound has no effect with --attack=toy: leave it out (it is a"),
        ("--strengt=3", "Did you mean: strength"),
        ("--attack=toi", "did you mean toy"),
    ):
        assert call(["--attack=toy", flag][-1 if "attack" in flag else 0 :]) == 2
        assert told in capsys.readouterr().err
