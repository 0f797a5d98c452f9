"""The contract of every judge of a distilled set; one is added by a record."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import data, method, resume
from ntk_privacy.distillation import METHODS, Distilled, squeezed
from ntk_privacy.distillation.search import Kept
from ntk_privacy.evaluation import (
    JUDGES,
    Judged,
    copies,
    judged,
    soft_students,
    students,
    transfer,
)

SMALL = {
    "width": 8,
    "depth": 1,
    "num_networks": 2,
    "num_epochs": 2,
    "architectures": ("ConvNetW4D1",),
    "num_attacked": 4,
    "attack_steps": 2,
    "num_queries": 3,
    "max_train_steps": 20,
}
OF_CLASSES = ("students", "architectures", "attacks")
OF_TASKS = ("transfer", "defence")
# AutoAttack and the reconstruction take long to compile: their own tests run them.
QUICK = ("copies", "students", "transfer")


def _config(name, **changes):
    names = {entry.name for entry in dataclasses.fields(JUDGES[name].config)}
    return JUDGES[name].configured(
        **{k: v for k, v in SMALL.items() if k in names} | changes
    )


@pytest.fixture(scope="module")
def images():
    return data.load_set("digits").subset(num_train=100, num_test=20)


def _set(images, labels, **kept):
    return Distilled(
        images=jnp.asarray(images, jnp.float32),
        labels=jnp.asarray(labels),
        losses=np.zeros(0),
        state=Kept(**kept),
        nonfinite=jnp.asarray(False),
    )


@pytest.fixture(scope="module")
def sets(images):
    """A set of classes, and one to regress on."""
    x = images.normalised(images.x_train)[:10]
    of_classes = _set(x, images.class_train[:10].astype(np.int32))
    random = METHODS["random"]
    config = random.configured(num_distilled=4)
    regressed = random.run(images, config, key=jax.random.key(0))
    return dict.fromkeys(("copies", *OF_CLASSES), of_classes) | dict.fromkeys(
        OF_TASKS, regressed
    )


def _same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", QUICK)
def test_a_judge_is_fixed_by_its_key(images, sets, name):
    def run(seed):
        key = jax.random.key(seed)
        return JUDGES[name].run(images, sets[name], _config(name), key=key)

    found = run(0)
    assert isinstance(found, Judged)
    assert found.figures
    _same(found.figures, run(0).figures)


@pytest.mark.parametrize("name", ["students", "transfer"])
def test_a_judge_goes_on_to_the_bit(tmp_path, monkeypatch, images, sets, name):
    monkeypatch.setattr(students, "_CHUNK", 1)

    class Killed(BaseException):
        """Nothing in a judge may catch it."""

    def run(stop=None):
        stage = resume.resumed(tmp_path, timer=resume.Timer(), seconds=0.0, stop=stop)
        key = jax.random.key(0)
        return JUDGES[name].run(images, sets[name], _config(name), key=key, stage=stage)

    key = jax.random.key(0)
    whole = JUDGES[name].run(images, sets[name], _config(name), key=key)
    seen = []

    def die(step, state, metrics):
        seen.append(step)
        if len(seen) == 2:
            raise Killed

    with pytest.raises(Killed):
        run(die)
    _same(run().figures, whole.figures)
    before = len(seen)
    # What is done is not done again: only the last state is looked at.
    _same(run(lambda *_: seen.append(0)).figures, whole.figures)
    assert len(seen) == before


@pytest.mark.parametrize("name", JUDGES)
def test_every_judge_says_what_it_is_and_refuses_what_it_cannot_judge(
    images, sets, name
):
    judge = JUDGES[name]
    assert judge.name == name
    assert judge.about.endswith(".")
    for preset in judge.presets:
        assert isinstance(judge.configured(preset), judge.config)
    fields = dataclasses.fields(judge.config)
    for entry in fields:
        assert entry.metadata["help"].endswith((".", ").")), entry.name
    with pytest.raises(ValueError, match=f"{name} takes no magic"):
        judge.configured(magic=1)
    if "width" in {entry.name for entry in fields}:
        with pytest.raises(ValueError, match="width=0 must be at least 1"):
            _config(name, width=0)
    if name == "copies":  # takes both
        return
    hard = name in OF_CLASSES or name == "soft_students"
    other = sets["transfer" if hard else "students"]
    with pytest.raises(ValueError, match=r"labels are .*: give a set with"):
        judge.run(images, other, _config(name), key=jax.random.key(0))


def test_one_record_adds_a_judge(monkeypatch, images, sets):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        scale: float = method.field(1.0, "What the mean is multiplied by.")

    def run(images, distilled, config, *, key, stage=resume.straight):
        del key, stage
        _, made, mean = judged.pixels(images, distilled)
        return Judged({"mean": config.scale * float((made + mean).mean())})

    toy = method.Method("mean", "Is the mean.", Config, {"cpu": Config}, run)
    monkeypatch.setitem(JUDGES, "mean", toy)
    found = {
        name: JUDGES["mean"].run(
            images, sets[name], toy.configured(scale=2.0), key=None
        )
        for name in ("students", "transfer")
    }
    # Intensities whatever the unit of the set.
    real = 2 * images.x_train[:10].mean()
    assert found["students"].figures["mean"] == pytest.approx(real, rel=1e-4)
    assert 0 < found["transfer"].figures["mean"] < 1


def test_a_learnt_step_size_is_taken_where_no_other_is_given(images, sets):
    config = _config("students", train_learning_rate=None)
    judge, key = JUDGES["students"], jax.random.key(0)
    learnt = sets["students"]._replace(state=Kept(step_size=np.float32(0.25)))
    found = judge.run(images, learnt, config, key=key).made
    given = _config("students", train_learning_rate=0.25)
    _same(found, judge.run(images, sets["students"], given, key=key).made)
    lost = sets["students"]._replace(state=Kept(step_size=np.float32(-1)))
    with pytest.raises(ValueError, match=r"step_size=-1\.0 must be above 0"):
        judge.run(images, lost, config, key=key)


def test_the_nearest_image_need_not_be_the_one_of_the_best_psnr():
    # Beyond 1 the distance to bright pixels counts more than clipping leaves of it.
    train = np.asarray([[1.0, 0.3], [0.8, 0.0], [0.0, 1.0]], np.float32)
    x, mean = train.reshape(3, 1, 2, 1), np.zeros(1, np.float32)
    image = np.asarray([1.8, 0.0], np.float32).reshape(1, 1, 2, 1)
    told = copies.nearest(x, image, mean=mean)
    assert told.nearest == [0]
    assert told.distances == pytest.approx([0.73**0.5])
    assert told.psnr_index == [1]
    assert told.psnr == pytest.approx([-10 * np.log10(0.02)])
    copy = copies.nearest(x, x[2:], mean=mean)
    assert (copy.psnr_index, copy.psnr, copy.num_copies) == ([2], [np.inf], 1)


def test_the_closest_row_is_found_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(23, 2, 3, 1)).astype(np.float32)
    points = np.concatenate([rng.normal(size=(6, 2, 3, 1)), rows[[0, 9, 22]]])
    points = points.astype(np.float32)
    apart = np.sum((rows[None] - points[:, None]) ** 2, axis=(2, 3, 4))
    for size in (1, 5, 100):
        monkeypatch.setattr(copies, "_ROWS", size)
        found = copies._closest(rows, points)
        np.testing.assert_array_equal(found, apart.argmin(axis=1))


def test_the_released_label_fault_scores_trucks_as_animals():
    y = np.asarray([[-1.0], [1.0], [1.0]], np.float32)
    outputs = np.asarray([[-0.2], [0.3], [0.4]])
    assert transfer.accuracy(outputs, y) == 1
    classes = np.asarray([3, 8, 9])
    fault = transfer.accuracy(outputs, y, classes=classes, released_fault=(9,))
    assert fault == pytest.approx(2 / 3)


def test_deviations_are_those_of_a_sample_and_none_of_a_single_run():
    runs = {"infinite": [0.5], "standard": [], "linearized": [0.4, 0.6]}
    known = {k: [{"accuracy": value} for value in v] for k, v in runs.items()}
    told = transfer.means(known, "accuracy")
    assert (told["infinite"], told["infinite_deviation"]) == (0.5, None)
    assert (told["standard"], told["standard_deviation"]) == (None, None)
    assert told["linearized_deviation"] == pytest.approx(0.02**0.5)


def test_what_is_not_a_number_hides_nothing_and_scores_nothing():
    with pytest.raises(ValueError, match="outputs has NaN or infinite values in 1 row"):
        transfer.accuracy(np.asarray([[np.nan, 0.0], [1.0, 0.0]]), np.eye(2)[[0, 0]])
    x, mean = np.ones((3, 2, 2, 1), np.float32), np.zeros(1, np.float32)
    lost = x.copy()
    lost[1, 0, 0] = np.nan
    for real, made in ((x, lost), (lost, x)):
        with pytest.raises(ValueError, match="NaN or infinite values in 1 rows"):
            copies.nearest(real, made, mean=mean)
    with pytest.raises(ValueError, match="num_images=0 must be at least 1"):
        copies.nearest(x, x[:0], mean=mean)
    with pytest.raises(ValueError, match="noise covers all of an image"):
        copies.nearest(x, x, mean=mean, noise=np.arange(3)[:, None, None, None] == x)


def test_a_set_of_other_images_is_not_tested_on_these():
    images = data.load_set("digits").subset(num_train=40, num_test=10)
    labels = jnp.arange(2, dtype=jnp.int32)
    made = Distilled(jnp.zeros((2, 4, 4, 1)), labels, np.zeros(0), None, jnp.asarray(0))
    config = students.Config(width=2, num_networks=1, num_epochs=1)
    with pytest.raises(ValueError, match=r"shape \(4, 4, 1\), the test images \(8, 8"):
        students.train(images, made, config, key=jax.random.key(0))


@pytest.mark.filterwarnings("ignore:mim with num_steps=1")
def test_a_student_of_soft_labels_is_judged_like_any_other(images):
    sre2l, judge = METHODS["sre2l"], JUDGES["soft_students"]
    sizes = {"width": 2, "blocks": (1,), "num_epochs": 2}
    steps = {"squeeze_epochs": 1, "squeeze_batch_size": 50, "num_steps": 2}
    config = sre2l.configured(**sizes, **steps, images_per_class=1, batch_size=10)
    key = jax.random.key(0)
    made = sre2l.run(images, config, key=key)
    small = judge.configured(**sizes, attacks=("mim",), attack_steps=1)
    found = judge.run(images, made, small, key=key)
    assert isinstance(found, Judged)
    assert set(found.figures["accuracy"]) == {"clean", "mim (1 steps)"}
    assert 0 <= found.figures["accuracy"]["clean"] <= 1
    assert np.isfinite(found.figures["top_hessian_eigenvalue"])
    # As the binary trains it, from the same key.
    alone = soft_students.train(
        made.images,
        made.state.soft_labels,
        model=squeezed.network(images, config),
        key=squeezed.keys(key).post_train,
        num_epochs=2,
        temperature=small.temperature,
    )
    _same(found.made.params, alone.params)
