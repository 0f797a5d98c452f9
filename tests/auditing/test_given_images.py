"""Pictures of an audit: all that are there, in [0, 1], or one sentence."""

import numpy as np
import pytest
from PIL import Image

from ntk_privacy.auditing import given_images

X = np.random.default_rng(0).random((5, 4, 4, 1)).astype(np.float32)


def _png(path, levels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(levels, np.uint8)).save(path)


def test_an_archive_and_an_array_are_the_same_images(tmp_path):
    np.savez(tmp_path / "x.npz", images=X, labels=np.arange(5) % 2)
    found = given_images.read(tmp_path / "x.npz", name="images")
    assert np.array_equal(found.images, X)
    assert found.classes.tolist() == [0, 1, 0, 1, 0]
    assert np.array_equal(given_images.read(X, name="images").images, X)


def test_bytes_become_intensities_whoever_holds_them():
    found = given_images.read((X * 255).astype(np.uint8), name="images").images
    assert np.abs(found - X).max() <= 1 / 255
    assert found.dtype == np.float32


@pytest.mark.parametrize("names", [("a", "b"), ("a",), ()])
def test_a_folder_is_read_whole_with_classes_or_without(tmp_path, names):
    levels = np.arange(64).reshape(8, 8) * 4
    for name in names or (".",):
        for i in range(6):
            _png(tmp_path / name / f"{i}.png", levels + i)
    found = given_images.read(tmp_path, name="images", image_shape=(8, 8, 1))
    # Nothing is held out, as it is where networks are trained.
    assert found.images.shape == (6 * max(len(names), 1), 8, 8, 1)
    assert np.allclose(found.images[0, ..., 0] * 255, levels, atol=1e-3)
    assert (found.classes is None) == (not names)


def test_of_a_folder_with_a_training_part_that_part_is_read(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        for i in range(count):
            _png(tmp_path / part / "a" / f"{i}.png", np.full((8, 8), 40 * i + 9))
    assert len(given_images.read(tmp_path, name="images").images) == 3


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (X * 255, "divide by what is white, such as images / 255"),
        (X.transpose(0, 3, 1, 2), r"put channels last, images.transpose\(0, 2, 3, 1\)"),
        (X[:0], "empty"),
        (np.where(X > 0.5, np.nan, X), "NaN or infinite"),
        (X - 0.5, "undo the centring"),
        ("absent.npz", "images=absent.npz is missing"),
    ],
)
def test_what_is_no_image_is_one_sentence(given, told):
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        given_images.read(given, name="images")


def test_faults_of_files_name_the_file(tmp_path):
    np.savez(tmp_path / "other.npz", weights=X)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:99])
    (tmp_path / "empty").mkdir()
    for name, told in (
        ("other.npz", "other.npz holds weights: save the pictures"),
        ("cut.npz", "cut.npz is damaged"),
        ("empty", "empty holds no image"),
    ):
        with pytest.raises(ValueError, match=told):
            given_images.read(tmp_path / name, name="images")
    with pytest.raises(ValueError, match="the network takes 8x8x1"):
        given_images.read(X, name="images", image_shape=(8, 8, 1))
    _png(tmp_path / "colour" / "a.png", np.arange(192).reshape(8, 8, 3))
    with pytest.raises(ValueError, match="in colour, and the network takes one"):
        given_images.read(tmp_path / "colour", name="images", image_shape=(8, 8, 1))


def test_classes_of_folders_keep_their_names(tmp_path):
    for name in ("b", "c"):
        _png(tmp_path / name / "0.png", [[0, 255], [255, 0]])
    found = given_images.read(tmp_path, name="images")
    assert found.class_names == ("b", "c")
