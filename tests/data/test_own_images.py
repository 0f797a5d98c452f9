"""One's own images: .npz files and folders of classes, as people have them."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from ntk_privacy import _files, data
from ntk_privacy.data import image_folder, places

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(2, 256, (10, 5, 5, 3)).astype(np.uint8)
LABELS = np.array([0, 1] * 5)


def _saved(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("images", "labels", "images_test", "labels_test"),
    ],
)
def test_a_file_with_a_test_part_is_read_as_it_is(tmp_path, names):
    arrays = (IMAGES, LABELS, IMAGES[:3], LABELS[:3, None])
    path = _saved(tmp_path / "mine.npz", **dict(zip(names, arrays, strict=True)))
    found = data.load_set(str(path))
    np.testing.assert_array_equal(found.images_train, IMAGES)
    np.testing.assert_array_equal(found.class_test, [0, 1, 0])
    assert (found.name, found.class_names) == ("mine", ("0", "1"))


def test_without_a_test_part_a_fifth_is_held_out_and_classes_have_names(tmp_path):
    names = np.array(["cat", "dog"])
    path = tmp_path / "a.NPZ"
    with path.open("wb") as file:
        np.savez(file, images=IMAGES / 255, labels=LABELS, class_names=names)
    found = data.load(path)
    assert (len(found.x_train), len(found.x_test)) == (8, 2)
    assert sorted(found.class_test) == [0, 1]
    assert data.load_set(path).class_names == ("cat", "dog")
    np.testing.assert_array_equal(found.y_test[:, 0], 2 * found.class_test - 1)


FAULTS = {
    "floats to 255": (
        {"images": IMAGES * 1.0, "labels": LABELS},
        r"f\.npz: images has values from .* to 255, expected \[0, 1\]",
    ),
    "objects": (
        {"images": np.array([None, 1]), "labels": LABELS},
        r"images is object of shape \(2,\)",
    ),
    "no labels": ({"images": IMAGES}, "holds images: save it by"),
    "no test classes": (
        {"images": IMAGES, "labels": LABELS, "images_test": IMAGES},
        "holds images_test, half of a test part",
    ),
    "no test part": (
        {"x_train": IMAGES, "y_train": LABELS},
        "holds x_train, y_train: save it by",
    ),
    "other names": ({"arr_0": IMAGES, "arr_1": LABELS}, "holds arr_0, arr_1: save"),
    "one-hot": (
        {"images": IMAGES, "labels": np.eye(2)[LABELS]},
        r"labels has shape \(10, 2\)",
    ),
    "names that are numbers": (
        {"images": IMAGES, "labels": LABELS, "class_names": np.arange(2)},
        "class_names is int64",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path, fault):
    arrays, told = FAULTS[fault]
    path = tmp_path / "f.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=told) as caught:
        data.load_set(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_announces_more_than_the_memory_is_not_read(tmp_path, monkeypatch):
    header = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 500, 500, 3)}
    np.lib.format.write_array_header_1_0(header, about)
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())
        archive.writestr("labels.npy", header.getvalue())
    with pytest.raises(ValueError, match=r"announces .* more than the"):
        data.load_set(tmp_path / "f.npz")
    path = _saved(tmp_path / "g.npz", images=IMAGES / 255, labels=LABELS)
    # In bytes it would fit, as the numbers that they are not.
    monkeypatch.setattr(_files, "memory", lambda: IMAGES.size * 2)
    with pytest.raises(ValueError, match="images is float64 of shape"):
        data.load_set(path)


def test_no_file_and_what_is_no_archive_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.npz is missing"):
        data.load_set(f"{tmp_path}/no.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match=r"text\.npz is damaged or of another kind"):
        data.load_set(tmp_path / "text.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match="is a folder, not a regular file"):
        data.load_set(tmp_path / "folder.npz")


def _pictures(root, pixels, *, parts=("",), classes="ab"):
    for part in parts:
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True)
            for i, image in enumerate(pixels):
                Image.fromarray(image).save(folder / f"{i}.png")
    return root


def test_grey_pictures_stay_grey_whatever_they_were_saved_as(tmp_path):
    grey = IMAGES[..., 0]
    _pictures(tmp_path / "l", grey[:2], parts=("train", "val"))
    raw = image_folder.load_raw(tmp_path / "l")
    np.testing.assert_array_equal(raw.images_test[:2, ..., 0], grey[:2])
    assert raw.images_train.shape == (4, 5, 5, 1)
    rgb = np.repeat(grey[..., None], 3, -1)
    _pictures(tmp_path / "rgb", rgb[:2], parts=("train", "val"))
    found = image_folder.load_raw(tmp_path / "rgb")
    np.testing.assert_array_equal(found.images_train, raw.images_train)
    Image.fromarray(IMAGES[0]).save(tmp_path / "rgb" / "val" / "a" / "0.png")
    assert image_folder.load_raw(tmp_path / "rgb").images_train.shape[-1] == 3


def test_folders_of_classes_alone_hold_a_share_out(tmp_path):
    _pictures(tmp_path / "flowers", IMAGES[:5])
    found = data.load_set(str(tmp_path / "flowers"))
    assert found.class_train.tolist() == [0] * 4 + [1] * 4
    assert found.class_test.tolist() == [0, 1]
    assert (found.name, found.tasks[0]) == ("flowers", "two_classes")
    both = np.concatenate([found.images_train[:4], found.images_test[:1]])
    np.testing.assert_array_equal(np.sort(both, 0), np.sort(IMAGES[:5], 0))
    again = data.load_set(str(tmp_path / "flowers"))
    np.testing.assert_array_equal(again.images_test, found.images_test)


def test_pictures_keep_their_own_size_if_it_is_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    _pictures(one, IMAGES[:2])
    assert data.load_set(one).image_shape == (5, 5, 3)
    assert data.load_set(one, size=3).image_shape == (3, 3, 3)
    _pictures(two, IMAGES[:2, 1:, 1:], classes="a")
    _pictures(two, IMAGES[:2], classes="b")
    assert data.load_set(two).image_shape == (64, 64, 3)


def test_what_a_set_is_like_is_known_before_its_files_are_read(tmp_path):
    for name, size, kin, side in (
        ("digits", None, "cifar10", 8),
        ("tiny_imagenet", None, "tiny_imagenet", 64),
        ("nowhere.npz", None, "cifar10", None),
        ("./nowhere", None, "imagenet", None),
        ("./nowhere", 224, "imagenet", 224),
    ):
        assert data.foretold(name, size=size) == (kin, side)
    # And the same once they are.
    for place in (
        _saved(tmp_path / "a.npz", images=IMAGES, labels=LABELS),
        _pictures(tmp_path / "f", IMAGES[:2]),
    ):
        found = data.load_set(place)
        assert found.kin == data.foretold(place).kin
        assert found.subset().kin == found.kin
        assert found.side == 5
    assert data.load_set("digits").kin == "cifar10"


def test_what_is_neither_a_set_nor_a_place_is_told_with_the_nearest():
    with pytest.raises(ValueError, match=r"'MNITS' is unknown \(did you mean mnist\?"):
        data.load("MNITS")
    with pytest.raises(ValueError, match="'q' is unknown: use one of digits, mnist"):
        data.load_set("q")


def test_a_fingerprint_tells_other_images_and_not_another_place(tmp_path):
    one = _saved(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    (tmp_path / "b.npz").write_bytes(one.read_bytes())
    assert places.fingerprint(one) == places.fingerprint(tmp_path / "b.npz")
    _saved(tmp_path / "b.npz", images=IMAGES[::-1], labels=LABELS)
    assert places.fingerprint(one) != places.fingerprint(tmp_path / "b.npz")
    folder = _pictures(tmp_path / "f", IMAGES[:2])
    before = places.fingerprint(folder)
    assert before == places.fingerprint(_pictures(tmp_path / "g", IMAGES[:2]))
    (folder / "a" / "0.png").unlink()
    assert before != places.fingerprint(folder)
    assert places.fingerprint(tmp_path / "nowhere") is None
