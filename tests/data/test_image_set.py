"""`ImageSet`: what is drawn, centred, normalised and refused; a set more is a row."""

import jax
import numpy as np
import pytest
from handmade_files import cifar_files, mnist_files, tiny_files, write

from ntk_privacy import data
from ntk_privacy.data import splits, tasks
from ntk_privacy.data.sets import SETS, Set

POSITIVE = {"odd_even": (1, 3, 5, 7, 9), "animal_vehicle": (0, 1, 8, 9)}
CASES = [
    *(("digits", task) for task in ("odd_even", "all_classes", None)),
    *(("mnist", task) for task in ("odd_even", "all_classes")),
    *(("cifar10", task) for task in ("animal_vehicle", "all_classes")),
    ("tiny_imagenet", "all_classes"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write(root / "mnist", mnist_files(num_train=40, num_test=8))
    write(root / "cifar-10-batches-bin", cifar_files(num=8))
    write(root / "tiny-imagenet-200", tiny_files())
    return root


def _drawn(key, count):
    return np.argsort(
        np.asarray(jax.random.bits(key, (count,), "uint32")), kind="stable"
    )


def _reference(raw, task, num_train, num_test, key):
    """What `data.load` returns, image by image."""
    key_train, key_test = jax.random.split(key)
    count = 2 if task in POSITIVE else len(raw.class_names)
    group = [int(c in POSITIVE[task]) if task in POSITIVE else c for c in raw[1]]
    train, test = range(len(raw[1])), range(len(raw[3]))
    if num_train is not None:
        order = _drawn(key_train, len(train))
        each = num_train // count
        parts = [[i for i in order if group[i] == g][:each] for g in range(count)]
        train = [i for part in parts for i in part]
    if num_test is not None:
        test = sorted(_drawn(key_test, len(test))[:num_test])
    levels = np.float32(raw.max_intensity)
    x, x_test = (
        np.stack([images[i].astype(np.float32) / levels for i in rows])
        for images, rows in ((raw[0], train), (raw[2], test))
    )
    mean = x.mean((0, 1, 2), dtype=np.float64).astype(np.float32)
    ys = []
    for classes, rows in ((raw[1], train), (raw[3], test)):
        if task in POSITIVE:
            y = [[1.0 if classes[i] in POSITIVE[task] else -1.0] for i in rows]
        else:
            row = np.eye(count, dtype=np.float32) - np.float32(1 / count)
            y = [row[classes[i]] for i in rows]
        ys.append(np.array(y, np.float32))
    classes = raw[1][list(train)], raw[3][list(test)]
    return (x - mean, ys[0], classes[0], x_test - mean, ys[1], classes[1], mean)


@pytest.mark.parametrize(("name", "task"), CASES)
@pytest.mark.parametrize(("each", "num_test", "seed"), [(1, None, 0), (2, 3, 1)])
def test_regression_is_bit_for_bit_what_it_says(root, name, task, each, num_test, seed):
    raw, told = data.load_raw(name, root), task or "odd_even"
    num_train = each * (2 if told in POSITIVE else len(raw.class_names))
    key = jax.random.key(seed)
    found = data.load(
        name, task=task, num_train=num_train, num_test=num_test, key=key, data_dir=root
    )
    expected = _reference(raw, told, num_train, num_test, key)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", SETS)
def test_a_whole_set_is_in_file_order_and_has_the_shape_of_its_row(root, name):
    raw, whole = data.load_raw(name, root), data.load_set(name, data_dir=root)
    expected = _reference(raw, whole.tasks[0], None, None, jax.random.key(0))
    for a, b in zip(whole.regression(), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert whole.image_shape == SETS[name].image_shape
    assert whole.tasks == SETS[name].tasks
    assert ("flip" in whole.operations) == (name in ("cifar10", "tiny_imagenet"))


@pytest.mark.parametrize("judged_on", ["test", "validation"])
def test_a_part_is_that_of_the_splits_and_is_normalised_by_its_own(judged_on):
    raw, whole = data.load_raw("digits"), data.load_set("digits")
    part = whole.subset(num_train=300, num_test=50, judged_on=judged_on)
    held = 50 if judged_on == "validation" else 0
    rows = splits.split(1437, 360, num_train=300, num_test=50, num_validation=held)
    x = raw.images_train[rows.train].astype(np.float32) / np.float32(16)
    np.testing.assert_array_equal(part.x_train, x)
    pixels, labels = (raw.images_test, raw.labels_test)
    if held:
        pixels, labels = (raw.images_train, raw.labels_train)
    judging = rows.validation if held else rows.test
    np.testing.assert_array_equal(part.class_test, labels[judging])
    np.testing.assert_array_equal(part.x_test * 16, pixels[judging])
    mean, deviation = (
        f((0, 1, 2), dtype=np.float64).astype(np.float32) for f in (x.mean, x.std)
    )
    np.testing.assert_array_equal(part.normalised(x), (x - mean) / deviation)


def test_published_numbers_normalise_where_there_are(root):
    grey, small = data.load_set("mnist", data_dir=root), data.load_set("digits")
    one = np.ones((1, 28, 28, 1), np.float32)
    found = grey.by_published().normalised(one)
    np.testing.assert_allclose(found, (1 - 0.1307) / 0.3081, rtol=1e-6)
    np.testing.assert_array_equal(small.by_published().normal, small.statistics)


def test_replaced_images_are_normalised_as_the_others_were():
    digits = data.load_set("digits").subset(num_train=50, num_test=10)
    x = np.array(digits.x_train)
    x[:5] = 1
    changed = digits.replaced(x)
    np.testing.assert_array_equal(changed.x_train, x)
    np.testing.assert_array_equal(changed.normal.mean, digits.statistics.mean)
    assert changed.statistics.mean > digits.statistics.mean
    np.testing.assert_array_equal(changed.normalised(x[9:]), digits.normalised(x[9:]))


def test_targets_are_of_the_task_asked():
    digits = data.load_set("digits")
    classes = np.arange(10, dtype=np.int32)
    signs = digits.targets(classes, "odd_even")[:, 0]
    np.testing.assert_array_equal(signs, [-1, 1] * 5)
    every = digits.targets(classes, "all_classes")
    np.testing.assert_array_equal(every.argmax(1), classes)
    with pytest.raises(data.ArgumentError, match="use one of odd_even, all_classes"):
        digits.targets(classes, "two_classes")


def test_a_set_more_is_one_row(monkeypatch):
    def load_raw(root):
        assert root.name == "somewhere"
        images = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2, 1)
        labels = np.array([0, 1, 2, 0, 1, 2], np.int32)
        return data.Raw(images, labels, images[:3], labels[:3], tuple("abc"), 255)

    parity = {"first": tasks.Binary("others", "a", (0,))}
    monkeypatch.setitem(SETS, "toy", Set(load_raw, (2, 2, 1), parity, flips=False))
    found = data.load("toy", data_dir="somewhere")
    np.testing.assert_array_equal(found.y_train[:, 0], [1, -1, -1] * 2)
    assert data.load_set("toy", data_dir="somewhere").operations[0] != "flip"
    with pytest.raises(ValueError, match=r"name='tody' is unknown \(did you mean toy"):
        data.load_raw("tody")


IMAGES = np.linspace(0, 1, 6 * 3 * 3).reshape(6, 3, 3)
LABELS = np.array([0, 1, 2] * 2)


def test_arrays_become_a_set_as_they_are():
    found = data.ImageSet.from_arrays(
        IMAGES, LABELS[:, None], IMAGES[:1], LABELS[:1], class_names=["x", "y", "z"]
    )
    np.testing.assert_array_equal(found.x_train[..., 0], IMAGES.astype(np.float32))
    assert (found.x_test.shape, found.levels) == ((1, 3, 3, 1), 255)
    assert (found.class_names, found.tasks) == (("x", "y", "z"), ("all_classes",))
    assert found.class_train.dtype == np.int32
    assert not found.flips
    in_bytes = np.arange(6 * 3 * 3 * 3, dtype=np.uint8).reshape(6, 3, 3, 3)
    colour = data.ImageSet.from_arrays(in_bytes, LABELS % 2, levels=200)
    expected = in_bytes.astype(np.float32) / np.float32(200)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([colour.x_train, colour.x_test]), 0), expected
    )
    assert colour.flips
    assert colour.tasks == ("two_classes", "all_classes")


def test_a_share_of_each_class_is_held_out_always_the_same():
    labels = np.array([0] * 10 + [1] * 2 + [2], np.int32)
    train, test = splits.hold_out(labels)
    assert np.bincount(labels[test], minlength=3).tolist() == [2, 1, 0]
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), range(13))
    np.testing.assert_array_equal(test, splits.hold_out(labels)[1])
    with pytest.raises(ValueError, match="no class has two"):
        splits.hold_out(np.arange(3, dtype=np.int32))


ONE_HOT = np.eye(3, dtype=int)[LABELS]
WRONG = {
    "0 to 255": ((IMAGES * 255, LABELS), "from 0 to 255, expected .* images / 255"),
    "centred": ((IMAGES - 0.5, LABELS), r"from -0.5 .* \(images \+ 1\) / 2"),
    "normalised": ((IMAGES * 4 - 2, LABELS), "undo the normalisation"),
    "nan": ((np.where(IMAGES > 0.5, np.nan, IMAGES), LABELS), "27 values that are NaN"),
    "int64": ((np.full((6, 3, 3), 9), LABELS), r"dtype int64.*astype\(np.uint8\)"),
    "black": ((IMAGES.round().astype(np.uint8), LABELS), "bytes of 0 and 1.*levels=1"),
    "flat": ((IMAGES.reshape(6, 9), LABELS), r"shape \(6, 9\).*reshape"),
    "channels first": ((np.zeros((6, 3, 8, 8)), LABELS), r"transpose\(0, 2, 3, 1\)"),
    "transparent": ((np.zeros((6, 8, 8, 4)), LABELS), r"images\[..., :3\]"),
    "ragged": (([[[1.0]], [[1.0, 2.0]]], [0, 1]), "images is no array of one shape"),
    "objects": ((np.full((6, 3, 3), None), LABELS), "object, which is not of numbers"),
    "empty": ((IMAGES[:0], LABELS[:0]), "so it is empty"),
    "one-hot": ((IMAGES, ONE_HOT), r"labels has shape \(6, 3\).*argmax\(axis=1\)"),
    "float labels": ((IMAGES, LABELS * 1.0), "float64, expected whole numbers"),
    "negative": ((IMAGES, LABELS - 1), "from -1 to 1, expected classes from 0"),
    "a gap": ((IMAGES, LABELS * 2), r"lacks class 1 \(1\) of 5"),
    "far": ((IMAGES, LABELS * 10**9), "to 2000000000, expected classes from 0"),
    "short": ((IMAGES, LABELS[:5]), "labels has 5 entries for 6 images"),
    "one class": ((IMAGES, LABELS * 0), "labels has one class"),
    "half a test": ((IMAGES, LABELS, IMAGES), "labels_test is missing"),
    "another shape": ((IMAGES, LABELS, IMAGES[:, 1:], LABELS), "give both alike"),
    "unseen": ((IMAGES, LABELS, IMAGES[:1], [3]), "labels_test goes from 3 to 3"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_are_no_images_and_classes_is_one_sentence(fault):
    given, told = WRONG[fault]
    with pytest.raises(ValueError, match=told) as caught:
        data.ImageSet.from_arrays(*given)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
