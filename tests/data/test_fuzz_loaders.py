"""Corrupt files: the right arrays or ValueError, never another outcome.

`CASES` corruptions in all; what a plain file cannot reveal (a changed pixel) has to
come back as changed, by a second reading of the bytes that is slow and obvious.
"""

import gzip
import shutil

import numpy as np
import pytest
from handmade_files import (
    cifar_files,
    idx_images,
    idx_labels,
    jpeg,
    mnist_arrays,
    mnist_files,
    pixels,
    tiny_files,
    write,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ntk_privacy import data
from ntk_privacy.data import cifar10, mnist, tiny_imagenet

CASES = {
    "plain images": 300,
    "zipped images": 400,
    "labels": 300,
    "cifar": 300,
    "jpeg cut": 200,
    "jpeg flip": 200,
    "mnist folder": 200,
    "cifar folder": 100,
    "tiny text": 200,
    "tiny image": 100,
}


def fuzz(kind):
    """Derandomized, so that every run makes the same corruptions."""
    return settings(
        max_examples=CASES[kind],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@st.composite
def corruptions(draw, whole, *, kinds=("cut", "grow", "set", "drop", "repeat")):
    """Draws a corrupted copy of `whole`: often in its first bytes, the header."""
    kind = draw(st.sampled_from(kinds))
    head = st.integers(0, min(32, len(whole) - 1))
    at = draw(st.one_of(head, st.integers(0, len(whole) - 1)))
    if kind == "cut":
        return whole[:at]
    if kind == "grow":
        return whole + draw(st.binary(min_size=1, max_size=40))
    if kind == "set":
        changed = bytearray(whole)
        for _ in range(draw(st.integers(1, 3))):
            changed[at] = draw(st.integers(0, 255))
            at = draw(st.one_of(head, st.integers(0, len(whole) - 1)))
        return bytes(changed)
    length = draw(st.integers(1, 40))
    if kind == "drop":
        return whole[:at] + whole[at + length :]
    return whole[: at + length] + whole[at:]


def outcome(function, *args):
    """What the function returns; None for ValueError, told in one line."""
    try:
        return function(*args)
    except ValueError as error:
        told = error
    assert type(told) is ValueError
    assert "\n" not in str(told)
    assert str(told).endswith(".")
    return None


def agree(found, expected):
    assert (found is None) == (expected is None), (found, expected)
    if found is not None:
        np.testing.assert_array_equal(found, expected)


def obvious_images(raw):
    if len(raw) < 16 or raw[:4] != b"\0\0\x08\x03":
        return None
    count, rows, columns = (int.from_bytes(raw[i : i + 4]) for i in (4, 8, 12))
    if (rows, columns) != (28, 28) or count == 0 or len(raw) != 16 + count * 784:
        return None
    return np.array(list(raw[16:]), np.uint8).reshape(count, 28, 28)


def obvious_labels(raw):
    if len(raw) < 9 or raw[:4] != b"\0\0\x08\x01" or max(raw[8:]) > 9:
        return None
    return list(raw[8:]) if int.from_bytes(raw[4:8]) == len(raw) - 8 else None


IMAGES = mnist_arrays(num_train=2)[0]
SPARSE = IMAGES * (IMAGES > 230)  # compresses, so gzip's own structure is hit
LABELS = [3, 1, 4, 1, 5, 9, 2, 6]
BATCH = cifar_files(num=2)["data_batch_3.bin"]
PICTURE = jpeg(5)


@fuzz("plain images")
@given(corruptions(idx_images(IMAGES)))
def test_plain_images(raw):
    agree(outcome(mnist.parse_idx_images, raw), obvious_images(raw))


@fuzz("zipped images")
@given(corruptions(gzip.compress(idx_images(SPARSE), mtime=0)))
def test_zipped_images(raw):
    found = outcome(mnist.parse_idx_images, raw)
    if found is not None:
        np.testing.assert_array_equal(found, SPARSE)


@fuzz("labels")
@given(corruptions(idx_labels(LABELS)))
def test_labels(raw):
    agree(outcome(mnist.parse_idx_labels, raw), obvious_labels(raw))


@fuzz("cifar")
@given(corruptions(BATCH))
def test_cifar_batch(raw):
    found = outcome(cifar10.parse_batch, raw)
    count, rest = divmod(len(raw), 3073)
    labels = list(raw[::3073])
    if rest or not count or max(labels) > 9:
        assert found is None
        return
    images, classes = found
    np.testing.assert_array_equal(classes, labels)
    for n in range(count):
        for y, x, c in [(0, 0, 0), (0, 7, 2), (13, 5, 1), (31, 31, 2)]:
            assert images[n, y, x, c] == raw[n * 3073 + 1 + c * 1024 + y * 32 + x]


@fuzz("jpeg cut")
@given(corruptions(PICTURE, kinds=("cut", "grow")))
def test_cut_or_grown_jpeg(raw):
    found = outcome(tiny_imagenet.decode_jpeg, raw)
    if found is not None:
        np.testing.assert_array_equal(found, pixels(PICTURE))


@fuzz("jpeg flip")
@given(corruptions(PICTURE))
def test_corrupt_jpeg_is_told_or_has_its_shape(raw):
    # JPEG has no checksum: other pixels may come out, another error or shape may not.
    found = outcome(tiny_imagenet.decode_jpeg, raw)
    if found is not None:
        assert found.shape == (64, 64, 3)
        assert found.dtype == np.uint8


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write(root / "mnist", mnist_files())
    write(root / "cifar10", cifar_files(num=1))
    write(root / "tiny_imagenet", tiny_files(num_train=2, num_val=3))
    yield root
    shutil.rmtree(root)


def load_with(folder, name, content):
    """Loads the set with one file replaced, and puts the file back."""
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        return outcome(data.load_raw, folder.name, folder)
    finally:
        path.write_bytes(whole)


def same_arrays(found, expected):
    for a, b in zip(found[:4], expected[:4], strict=True):
        np.testing.assert_array_equal(a, b)


@fuzz("mnist folder")
@given(drawn=st.data())
def test_mnist_folder(folders, drawn):
    files = mnist_files()
    name = drawn.draw(st.sampled_from(sorted(files)))
    found = load_with(folders / "mnist", name, drawn.draw(corruptions(files[name])))
    if found is not None:
        same_arrays(found, data.load_raw("mnist", folders / "mnist"))


@fuzz("cifar folder")
@given(drawn=st.data())
def test_cifar_folder(folders, drawn):
    files = cifar_files(num=1)
    name = drawn.draw(st.sampled_from(sorted(files)))
    content = drawn.draw(corruptions(files[name]))
    found = load_with(folders / "cifar10", name, content)
    if len(content) != 3073 or content[0] > 9:
        assert found is None
    else:
        together = b"".join((files | {name: content})[n] for n in sorted(files))
        labels = [*found.labels_train, *found.labels_test]
        assert labels == list(together[::3073])


@fuzz("tiny text")
@given(drawn=st.data())
def test_tiny_imagenet_lists(folders, drawn):
    files = tiny_files(num_train=2, num_val=3)
    name = drawn.draw(st.sampled_from(["wnids.txt", "val/val_annotations.txt"]))
    content = drawn.draw(corruptions(files[name]))
    found = load_with(folders / "tiny_imagenet", name, content)
    if found is not None:
        whole = data.load_raw("tiny_imagenet", folders / "tiny_imagenet")
        same_arrays(found, whole)


@fuzz("tiny image")
@given(drawn=st.data())
def test_tiny_imagenet_images(folders, drawn):
    files = tiny_files(num_train=2, num_val=3)
    images = sorted(name for name in files if name.endswith("JPEG"))
    name = drawn.draw(st.sampled_from(images))
    content = drawn.draw(corruptions(files[name], kinds=("cut", "grow")))
    found = load_with(folders / "tiny_imagenet", name, content)
    if found is not None:
        whole = data.load_raw("tiny_imagenet", folders / "tiny_imagenet")
        same_arrays(found, whole)


def test_there_are_two_thousand_corruptions():
    assert sum(CASES.values()) >= 2000
