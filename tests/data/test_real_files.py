"""The loaders on the real files, whole."""

import jax
import numpy as np
import pytest

from ntk_privacy import data

COUNTS = {
    "mnist": ((17000, 28, 28, 1), 10000, 10),
    "cifar10": ((5085, 32, 32, 3), 1017, 10),
    "tiny_imagenet": ((5000, 64, 64, 3), 500, 10),
}
# The published sets hold these instead.
FULL = {"mnist": 60000, "cifar10": 50000, "tiny_imagenet": 100000}


@pytest.mark.parametrize("name", COUNTS)
def test_real_set_has_its_counts_and_plausible_images(name, real_data):
    raw = data.load_raw(name, real_data)
    shape, num_test, num_classes = COUNTS[name]
    if len(raw.images_train) == FULL[name]:
        pytest.skip("the full set is here, the counts are those of the subset")
    assert raw.images_train.shape == shape
    assert raw.images_test.shape == (num_test, *shape[1:])
    assert len(raw.class_names) == num_classes
    counts = np.bincount(raw.labels_train, minlength=num_classes)
    assert counts.min() > 0.8 * shape[0] / num_classes
    # Neighbouring pixels of a picture correlate; of wrongly ordered bytes they do not.
    pixels = raw.images_train[:500].astype(np.float64)
    for other in (pixels[:, 1:], pixels[:, :, 1:]):
        mine = pixels[:, : other.shape[1], : other.shape[2]]
        assert np.corrcoef(mine.ravel(), other.ravel())[0, 1] > 0.75


def test_first_mnist_labels_are_the_known_ones(real_data):
    raw = data.load_raw("mnist", real_data)
    np.testing.assert_array_equal(raw.labels_train[:8], [5, 0, 4, 1, 9, 2, 1, 3])
    np.testing.assert_array_equal(raw.labels_test[:8], [7, 2, 1, 0, 4, 1, 4, 9])


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_nearest_mean_beats_chance_on_real_files(name, real_data):
    found = data.load(name, num_train=500, key=jax.random.key(0), data_dir=real_data)
    means = [found.x_train[half].mean(axis=0) for half in np.split(np.arange(500), 2)]
    margin = [((found.x_test - m) ** 2).sum(axis=(1, 2, 3)) for m in means]
    right = np.mean(np.sign(margin[0] - margin[1]) == found.y_test[:, 0])
    assert right > 0.6  # the labels belong to the images
    assert right < 0.99
