"""Labels, subsets and mean of `load`."""

import chex
import jax
import numpy as np
import pytest
from handmade_files import cifar_files, mnist_files, tiny_files, write

from ntk_privacy import _versions, data
from ntk_privacy.data import SETS

KEY = jax.random.key(3)


@pytest.fixture
def cifar(tmp_path):
    return write(tmp_path / "cifar-10-batches-bin", cifar_files(num=10)).parent


def test_odd_is_plus_one_and_even_minus_one():
    found = data.load("digits", task="odd_even")
    expected = [[1.0 if digit % 2 else -1.0] for digit in found.class_train]
    np.testing.assert_array_equal(found.y_train, expected)


def test_vehicle_is_plus_one_and_animal_minus_one(cifar):
    found = data.load("cifar10", data_dir=cifar)
    names = data.load_raw("cifar10", cifar).class_names
    vehicles = {"airplane", "automobile", "ship", "truck"}
    expected = [[1.0 if names[c] in vehicles else -1.0] for c in found.class_train]
    np.testing.assert_array_equal(found.y_train, expected)
    assert set(found.class_train) == set(range(10))


def test_one_hot_targets_sum_to_zero_and_differ_by_one():
    found = data.load("digits", task="all_classes")
    np.testing.assert_allclose(found.y_train.sum(axis=1), 0, atol=1e-6)
    np.testing.assert_array_equal(found.y_train.argmax(axis=1), found.class_train)
    np.testing.assert_allclose(np.unique(found.y_train), [-0.1, 0.9], rtol=1e-6)


def test_one_hot_of_two_classes_is_centred_by_one_half(tmp_path):
    write(tmp_path, tiny_files())
    found = data.load("tiny_imagenet", data_dir=tmp_path)
    np.testing.assert_array_equal(np.unique(found.y_test), [-0.5, 0.5])


def test_released_fault_turns_trucks_of_the_test_set_alone(cifar):
    right = data.load("cifar10", data_dir=cifar)
    fault = data.load("cifar10", data_dir=cifar, released_label_fault=True)
    truck = right.class_test == 9
    assert truck.any()
    np.testing.assert_array_equal(right.y_test[truck], 1)
    np.testing.assert_array_equal(fault.y_test[truck], -1)
    np.testing.assert_array_equal(fault.y_test[~truck], right.y_test[~truck])
    np.testing.assert_array_equal(fault.y_train, right.y_train)
    np.testing.assert_array_equal(fault.class_test, right.class_test)


def test_binary_subset_is_half_minus_one_then_half_plus_one():
    found = data.load("digits", num_train=40, key=KEY)
    np.testing.assert_array_equal(found.y_train[:20], -1)
    np.testing.assert_array_equal(found.y_train[20:], 1)


def test_class_subset_is_balanced_in_class_order():
    found = data.load("digits", task="all_classes", num_train=30, key=KEY)
    np.testing.assert_array_equal(found.class_train, np.repeat(np.arange(10), 3))


def _rows(dataset):
    images = dataset.x_train + dataset.mean
    return [tuple(np.rint(image.ravel() * 16).astype(int)) for image in images]


def test_subset_is_without_replacement_and_of_the_training_set():
    raw = data.load_raw("digits")
    everything = {
        tuple(i.ravel().astype(int)): c for i, c in zip(*raw[:2], strict=True)
    }
    found = data.load("digits", num_train=1300, key=KEY)
    assert len(set(_rows(found))) == 1300
    classes = [everything[row] for row in _rows(found)]
    np.testing.assert_array_equal(classes, found.class_train)


def test_every_image_of_a_superclass_is_drawn_equally_often():
    raw = data.load_raw("digits")
    few = raw._replace(
        images_train=np.arange(50, dtype=np.uint8).reshape(-1, 1, 1, 1),
        labels_train=np.array([0] * 10 + [1] * 40, np.int32),
    )
    draws = 400
    keys = jax.random.split(jax.random.key(0), draws)
    images = data.ImageSet.from_raw(few, name="few", binary=SETS["digits"].binary)
    chosen = [images.balanced("odd_even", num_train=10, key=key) for key in keys]
    drawn = np.concatenate([part.images_train.ravel() for part in chosen])
    counts = np.bincount(drawn, minlength=50)
    # Binomial(400, 5/10) and (400, 5/40): 5 standard deviations each.
    assert np.all(abs(counts[:10] - 200) < 5 * 10)
    assert np.all(abs(counts[10:] - 50) < 5 * 6.7)


def test_one_key_gives_one_subset_and_another_key_another():
    one, same = (data.load("digits", num_train=20, num_test=9, key=KEY) for _ in "ab")
    other = data.load("digits", num_train=20, num_test=9, key=jax.random.key(4))
    chex.assert_trees_all_equal(one, same)
    assert _rows(one) != _rows(other)
    assert not np.array_equal(one.class_test, other.class_test)


def test_subset_is_the_same_in_float32_mode():
    double = data.load("digits", num_train=20, num_test=9, key=KEY)
    with _versions.enable_x64(False):
        single = data.load("digits", num_train=20, num_test=9, key=KEY)
    chex.assert_trees_all_equal(single, double)


def test_training_and_test_subsets_do_not_depend_on_each_other():
    base = data.load("digits", num_train=20, num_test=9, key=KEY)
    more = data.load("digits", num_train=20, num_test=50, key=KEY)
    less = data.load("digits", num_train=2, num_test=9, key=KEY)
    assert _rows(base) == _rows(more)
    np.testing.assert_array_equal(base.class_test, less.class_test)
    assert len(more.x_test) == 50


def test_without_numbers_the_set_is_whole_and_in_file_order():
    raw, found = data.load_raw("digits"), data.load("digits")
    assert (len(found.x_train), len(found.x_test)) == (1437, 360)
    np.testing.assert_array_equal(found.class_train, raw.labels_train)
    np.testing.assert_allclose(
        found.x_test + found.mean, raw.images_test / 16, atol=1e-6
    )


def test_mean_is_that_of_the_chosen_training_images(cifar):
    found = data.load("cifar10", data_dir=cifar, num_train=10, key=KEY)
    whole = data.load("cifar10", data_dir=cifar)
    chex.assert_shape(found.mean, (3,))
    np.testing.assert_allclose(found.x_train.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    assert not np.allclose(found.mean, whole.mean, atol=1e-4)
    # The test images lose the training mean, not their own.
    raw = data.load_raw("cifar10", cifar).images_test / 255
    np.testing.assert_allclose(found.x_test, raw - found.mean, atol=1e-6)


def test_grey_images_lose_one_scalar(tmp_path):
    write(tmp_path, mnist_files())
    found = data.load("mnist", data_dir=tmp_path)
    chex.assert_shape(found.mean, (1,))
    raw = data.load_raw("mnist", tmp_path).images_train / 255
    np.testing.assert_allclose(found.mean, raw.mean(), rtol=1e-6)


def test_bounds_are_what_black_and_white_become():
    found = data.load("digits")
    lower, upper = found.bounds
    chex.assert_shape((lower, upper), (1,))
    np.testing.assert_allclose(found.x_train.min(), lower[0], atol=1e-7)
    np.testing.assert_allclose(found.x_train.max(), upper[0], atol=1e-7)


def test_dtypes_are_float32_and_int32():
    for key, array in data.load("digits", num_train=4, key=KEY)._asdict().items():
        assert isinstance(array, np.ndarray)
        assert array.dtype == (np.int32 if key.startswith("class") else np.float32)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"name": "svhn"}, "name='svhn' is unknown: use one of digits, mnist"),
        ({"task": "animal_vehicle"}, "does not exist for digits: use one of odd_even"),
        ({"num_train": 7, "key": KEY}, "num_train=7 does not split evenly into the 2"),
        ({"num_train": 0, "key": KEY}, "use a positive multiple of 2"),
        ({"num_train": -2, "key": KEY}, "use a positive multiple of 2"),
        ({"num_train": 1500, "key": KEY}, r"750 images of \w+, but digits has 7\d\d"),
        ({"num_test": 361, "key": KEY}, r"num_test=361 must lie in \[1, 360\]"),
        ({"num_test": 0, "key": KEY}, r"num_test=0 must lie in"),
        ({"num_train": 20}, r"key=None is no typed key.*jax.random.key\(0\)"),
        ({"num_test": 20, "key": jax.random.PRNGKey(0)}, "is no typed key"),
        ({"released_label_fault": True}, "does not fit digits"),
    ],
)
def test_wrong_argument_is_told_in_one_line(arguments, told):
    with pytest.raises(ValueError, match=told) as caught:
        data.load(**{"name": "digits", **arguments})
    assert "\n" not in str(caught.value)


def test_most_that_a_message_offers_can_be_had():
    with pytest.raises(ValueError, match="use at most") as caught:
        data.load("digits", num_train=1436, key=KEY)
    most = int(str(caught.value).rstrip(".").split()[-1])
    assert len(data.load("digits", num_train=most, key=KEY).x_train) == most


def test_files_are_looked_for_in_argument_then_variable_then_cache(
    tmp_path, monkeypatch
):
    folders = [tmp_path / name for name in ("argument", "variable", "cache")]
    for seed, folder in enumerate(folders):
        sub = folder / "ntk_privacy" if folder.name == "cache" else folder
        write(sub / "mnist", mnist_files(seed=seed))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folders[2]))
    monkeypatch.setenv("NTK_PRIVACY_DATA", str(folders[1]))
    from_argument = data.load_raw("mnist", folders[0])
    from_variable = data.load_raw("mnist")
    monkeypatch.delenv("NTK_PRIVACY_DATA")
    from_cache = data.load_raw("mnist")
    monkeypatch.delenv("XDG_CACHE_HOME")
    (folders[2] / ".cache").mkdir()
    (folders[2] / "ntk_privacy").rename(folders[2] / ".cache" / "ntk_privacy")
    monkeypatch.setenv("HOME", str(folders[2]))
    chex.assert_trees_all_equal(from_cache[:4], data.load_raw("mnist")[:4])
    chex.assert_trees_all_equal(
        from_argument[:4], data.load_raw("mnist", folders[0] / "mnist")[:4]
    )
    means = {r.images_train.mean() for r in (from_argument, from_variable, from_cache)}
    assert len(means) == 3


@pytest.mark.parametrize("name", ["mnist", "cifar10", "tiny_imagenet"])
def test_absent_files_are_told_with_the_remedies(name, tmp_path):
    folder = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match="not found in") as caught:
        data.load(name, data_dir=folder)
    told = str(caught.value)
    assert "\n" not in told
    for part in (str(folder), "data_dir", "NTK_PRIVACY_DATA", "--download"):
        assert part in told
    assert not folder.exists()


def test_missing_file_of_an_incomplete_folder_is_named(cifar):
    (cifar / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"cifar10: data_batch_3.bin not found"):
        data.load("cifar10", data_dir=cifar)
