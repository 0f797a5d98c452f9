"""What a seed draws, and bounds on a coarse grid."""

import numpy as np
import pytest

from ntk_privacy import data, poisoning
from ntk_privacy.poisoning import bounded


@pytest.fixture(scope="module")
def images():
    return data.load_set("digits").subset(num_train=400, num_test=50)


def test_every_scene_poisons_another_class_than_the_target_s(images):
    drawn = [poisoning.scene(images, seed=seed, rate=0.01) for seed in range(30)]
    for scene in drawn:
        assert scene.target_class == images.class_test[scene.target]
        assert scene.adversarial_class != scene.target_class
        assert set(images.class_train[scene.where]) == {scene.adversarial_class}
        assert len(set(scene.where)) == 4
        np.testing.assert_array_equal(scene.clean, images.x_train[scene.where])
    assert len({(s.target, s.adversarial_class) for s in drawn}) > 20


def test_a_rate_for_no_image_or_for_too_many_is_refused(images):
    with pytest.raises(data.ArgumentError, match=r"no poison at all: .* least 0\.0025"):
        poisoning.scene(images, seed=0, rate=0.001)
    alone = poisoning.scene(images, seed=0, rate=0.0, at_least_one=True)
    assert len(alone.where) == 1
    with pytest.raises(data.ArgumentError, match=r"asks for 80 poisons, class \d has"):
        poisoning.scene(images, seed=0, rate=0.2)
    for rate in (float("nan"), -0.01):
        with pytest.raises(ValueError, match=f"rate={rate} must be at least 0"):
            poisoning.scene(images, seed=0, rate=rate)


@pytest.mark.parametrize(("bound", "steps"), [(64, 4), (73, 4), (80, 5), (255, 16)])
def test_the_bound_is_never_passed_on_a_coarser_grid(bound, steps):
    assert bounded.whole_steps(bound, 16) == steps
    assert steps / 16 <= bound / 255
    assert bounded.whole_steps(bound, 255) == bound
