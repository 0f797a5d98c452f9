"""What poison is worth once condensed: which sets are made, who is asked, the table."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import data, poisoning, resume
from ntk_privacy.data.image_set import ImageSet, Statistics
from ntk_privacy.distillation import Distilled, dm
from ntk_privacy.evaluation import (
    poisoned_means,
    poisoned_sets,
    poisoned_table,
    protocol,
    students,
)

SIZES = {"width": 4, "images_per_class": 1, "num_steps": 4, "batch_size": 8}
LEFT = dict.fromkeys(poisoned_means.Deviation._fields, 0.5)


@pytest.fixture(scope="module")
def images():
    return data.load_set("digits").subset(num_train=400, num_test=50)


@pytest.fixture
def unmeasured(monkeypatch):
    left = poisoned_means.Deviation(**LEFT)
    monkeypatch.setattr(poisoned_means, "deviation", lambda *args, **kwargs: left)


def _plan(images, condense, attack="direct", **changes):
    """A study whose condensation is a function of the test's own, by method."""
    method = poisoning.METHODS[attack]
    numbers = poisoned_sets.Config(**SIZES, num_runs=2)
    made = poisoned_sets.plan(
        images,
        method,
        method.configured(),
        numbers,
        students.Config(width=4, num_networks=2, num_epochs=1),
        **{"seeds": [0], "control": False, **changes},
    )

    def own(name):
        def call(images, *, key, stage):
            del stage
            return condense(name, images, key)

        return call

    own = {k: v._replace(condense=own(k)) for k, v in made.condensers.items()}
    return made._replace(condensers=own)


def _condensed():
    return Distilled(
        jnp.zeros((10, 8, 8, 1)),
        jnp.arange(10),
        np.ones(4),
        None,
        jnp.asarray(False),
    )


def test_each_cell_condenses_poisoned_images_and_is_asked_about_the_target(
    images, monkeypatch, unmeasured
):
    seen = []

    def condense(method, images, key):
        seen.append([method, images.normalised(images.x_train), key, None])
        return _condensed()

    def train(images, condensed, config, *, key, targets, **rest):
        seen[-1][3] = np.asarray(targets)
        wanted = [6, 6] if seen[-1][0] == "dm" else [6, 1]
        return protocol.Evaluated(np.array([0.2, 0.4]), np.array(wanted)[:, None], None)

    monkeypatch.setattr(students, "train", train)
    plan = _plan(images, condense)
    scene = dataclasses.replace(plan.scenes[0], adversarial_class=6)
    shown = []
    entries = poisoned_sets.study(
        plan._replace(scenes={0: scene}),
        show=lambda name, *_, title: shown.append(name),
    )
    assert shown == ["poisons_0", "condensed_0_dm", "condensed_0_rdm"]
    target = images.normalised(images.x_test[scene.target][None])
    want = np.array(images.normalised(images.x_train))
    want[scene.where] = target
    assert [method for method, *_ in seen] == ["dm", "dm", "rdm", "rdm"]
    for _, x, _, asked in seen:
        np.testing.assert_array_equal(x, want)
        np.testing.assert_array_equal(asked, target)
    keys = [tuple(np.asarray(jax.random.key_data(key))) for _, _, key, _ in seen]
    assert keys[0] == keys[2] != keys[1] == keys[3]  # by run, alike for all methods
    rows = poisoned_table.table(entries, attack="direct")
    assert [row["method"] for row in rows] == ["dm", "rdm"]
    dm_row, rdm = rows
    assert (dm_row["attack_success"], dm_row["attack_success_std"]) == (1, 0)
    spread = pytest.approx(3**-0.5)  # of a sample of four
    assert (rdm["attack_success"], rdm["attack_success_std"]) == (0.5, spread)
    assert dm_row["num_decisions"] == rdm["num_decisions"] == 4
    assert rdm["accuracy"] == pytest.approx(0.3)
    assert rdm["accuracy_std"] == pytest.approx((0.04 / 3) ** 0.5)
    lines = poisoned_table.text(rows).splitlines()
    assert "30.00 +- 11.55  50.00 +- 57.74    -" in lines[2]


def test_every_target_is_also_asked_of_networks_of_clean_images(
    images, monkeypatch, unmeasured
):
    seen = []

    def condense(method, images, key):
        x = images.normalised(images.x_train)
        seen.append((method, np.array(x), np.asarray(jax.random.key_data(key))))
        return _condensed()

    def train(images, condensed, config, *, key, targets, **rest):
        # Networks that take image i of many for class i % 10, and a lone one for 3.
        read = np.arange(len(targets)) % 10 if len(targets) > 1 else np.array([3])
        return protocol.Evaluated(np.array([0.2, 0.4]), np.stack([read] * 2), None)

    kept = {}

    def piece(name, make):
        if name not in kept:
            kept[name] = make(resume.straight)
        return kept[name]

    monkeypatch.setattr(students, "train", train)
    plan = _plan(images, condense, seeds=[0, 1], control=True)
    entries = poisoned_sets.study(plan, piece=piece)
    clean = np.asarray(images.normalised(images.x_train))
    controls = [part for part in seen if np.array_equal(part[1], clean)]
    assert [method for method, *_ in controls] == ["dm", "dm", "rdm", "rdm"]
    # The draws are those of the first seed's own cell, which stands before each.
    keys = [tuple(key) for *_, key in seen[:8]]
    assert keys[::2] == keys[1::2]
    assert keys[0] != keys[2]
    drawn = plan.scenes
    wrong = [s.target % 10 == s.adversarial_class for s in drawn.values()]
    for row in poisoned_table.table(entries, attack="direct"):
        assert row["success_without_attack"] == np.mean(wrong)
        assert row["attack_success"] == np.mean(
            [s.adversarial_class == 3 for s in drawn.values()]
        )
    for entry in entries:
        told = [drawn[entry["seed"]].target % 10] * 2
        assert entry["target_classes_without_attack"] == told
    # A third seed asks the networks that are there.
    count = len(seen)
    more = _plan(images, condense, seeds=[0, 1, 2], control=True)
    rows = poisoned_table.table(poisoned_sets.study(more, piece=piece), attack="direct")
    assert len(seen) == count + 4
    assert rows[0]["num_decisions"] == 12
    # Without an attack there is nothing to control.
    none = _plan(images, condense, attack="none", control=True)
    assert "target_classes_without_attack" not in poisoned_sets.study(none)[0]


def test_a_condensation_that_is_lost_is_told(images, unmeasured):
    def condense(method, images, key):
        state = SimpleNamespace(steps=7)
        return _condensed()._replace(nonfinite=jnp.asarray(True), state=state)

    with pytest.raises(ValueError, match="not finite after 7 steps: lower learning_ra"):
        poisoned_sets.study(_plan(images, condense))


def test_a_row_takes_the_entries_of_its_method_alone():
    entry = {"adversarial_class": 2, "target_classes": [2, 2, 1, 0]}
    entry |= dict.fromkeys(("poison_dropped", "clean_dropped"), 0.25)
    entry |= dict.fromkeys(("deviation_of_mean", "deviation"), 1.0)
    other = entry | {"method": "rdm", "accuracies": [0.9] * 4, "deviation": 9.0}
    entry |= {"method": "dm", "accuracies": [0.1, 0.2, 0.3, 0.2]}
    row = poisoned_table.row("dm", "direct", [entry, other])
    assert row["accuracy"] == pytest.approx(0.2)
    assert row["accuracy_std"] == pytest.approx((0.02 / 3) ** 0.5)
    spread = pytest.approx(3**-0.5)
    assert (row["attack_success"], row["attack_success_std"]) == (0.5, spread)
    assert row["success_without_attack"] is None
    assert (row["deviation"], row["num_decisions"]) == (1.0, 4)
    told = entry | dict.fromkeys(("poison_dropped", "clean_dropped", "deviation"))
    row = poisoned_table.row("dm", "direct", [told, told])
    assert (row["deviation"], row["deviation_of_mean"]) == (None, 1.0)


def test_condensation_descends_with_the_published_momentum():
    sgd = dm._sgd(2.0)
    state, moved = sgd.init(np.zeros(1)), 0.0
    for _ in range(2):
        update, state = sgd.update(np.ones(1), state)
        moved += float(update[0])
    assert moved == -2 - 2 * 1.5


class _Unaugmented(ImageSet):
    """Images whose augmentation changes nothing."""

    @property
    def operations(self):
        return ()


class _Pixels:
    """A network whose features are the pixels."""

    def init_params(self, key, image_shape, dtype=None):
        return ()

    def apply_fn(self, params, x):
        raise NotImplementedError

    def embed_fn(self, params, x):
        return x.reshape(len(x), -1)


def test_the_calibration_takes_the_deviation_away(images):
    scene = poisoning.scene(images, seed=0, rate=0.02)
    # As far off as the poison: 9 deviations.
    x = np.array(images.normalised(images.x_train))
    x[scene.where] = 9
    about = {e.name: getattr(images, e.name) for e in dataclasses.fields(images)}
    as_it_is = Statistics(np.zeros(1, np.float32), np.ones(1, np.float32))
    poisoned = _Unaugmented(**about | {"images_train": x, "normaliser": as_it_is})
    model = _Pixels()
    plain, rdm, median = (
        poisoned_means.deviation(
            scene, poisoned, dm.mean_fn(name, 0.2), model=model, batch_size=20
        )
        for name in ("dm", "rdm", "dm_median")
    )
    # 8 of about 40 are alike and far off: of 20, 12 are dropped, all these among them.
    assert rdm.poison_dropped == 1
    assert 0.4 < rdm.clean_dropped < 0.7
    assert rdm.deviation == 0
    members = images.class_train == scene.adversarial_class
    good = np.asarray(x)[members & ~np.isin(np.arange(400), scene.where)]
    apart = np.linalg.norm(9 - good.mean(0))
    spread = np.sqrt(np.square(good - good.mean(0)).sum((1, 2, 3)).mean())
    expected = 8 / members.sum() * apart / spread
    assert plain.deviation == pytest.approx(expected, rel=0.25)  # 16 batches of 20
    # A median drops values, not images: how much of the poison is left has no meaning.
    assert median.deviation_of_mean == plain.deviation
    assert median.deviation is median.poison_dropped is None
