"""Any folder of pictures: what is read, how it is resized, and each fault it tells."""

import io

import jaxtyping
import numpy as np
import pytest
from handmade_files import jpeg, write
from PIL import Image

from ntk_privacy.data import image_folder


def picture(seed, *, shape=(6, 6), mode="RGB"):
    deep = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    return np.random.default_rng(seed).integers(0, 256, (*shape, *deep), np.uint8)


def encoded(pixels, **options):
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(out, format="PNG", **options)
    return out.getvalue()


def files():
    """Classes b10 and b9, whose order by name is not that by number."""
    return {
        "train/b9/2.png": encoded(picture(0)),
        "train/b9/10.png": encoded(picture(1)),
        "train/b10/x.PNG": encoded(picture(2)),
        "val/b10/x.png": encoded(picture(3)),
        "val/b9/x.png": encoded(picture(4)),
    }


def test_classes_are_in_order_of_their_names_and_pixels_stay(tmp_path):
    others = {"train/b9/.2.png": b"", "train/b9/list.csv": b"", "train/README": b""}
    others["val/.cache/x"] = others["test/other/x.png"] = b""
    raw = image_folder.load_raw(write(tmp_path, files() | others), size=6)
    assert raw.class_names == ("b10", "b9")
    np.testing.assert_array_equal(raw.labels_train, [0, 1, 1])
    np.testing.assert_array_equal(raw.labels_test, [0, 1])
    assert raw.labels_train.dtype == np.int32
    # Number 2 before number 10; rows are rows, columns are columns.
    for found, seed in zip(raw.images_train, (2, 0, 1), strict=True):
        np.testing.assert_array_equal(found, picture(seed))
    np.testing.assert_array_equal(raw.images_test[1], picture(4))
    assert (raw.max_intensity, raw.images_test.dtype) == (255, np.uint8)


def test_pictures_of_other_formats_are_passed_over_with_a_warning(tmp_path):
    write(tmp_path, files() | {"train/b9/3.webp": b"", "train/b9/4.GIF": b""})
    with pytest.warns(UserWarning, match=r"b9 holds .* over, 3\.webp, 4\.GIF: conv"):
        raw = image_folder.load_raw(tmp_path, size=6)
    assert len(raw.labels_train) == 3


def test_without_val_the_test_folder_is_read_and_may_lack_classes(tmp_path):
    kept = {k: v for k, v in files().items() if not k.startswith("val")}
    kept["test/b9/1.png"] = encoded(picture(7))
    raw = image_folder.load_raw(write(tmp_path, kept), size=6)
    np.testing.assert_array_equal(raw.labels_test, [1])
    np.testing.assert_array_equal(raw.images_test[0], picture(7))


def _weights(length, first, side, size):
    """Rows of a triangle as wide as the pixels that become one, (size, length)."""
    scale = side / size
    centres = first + (np.arange(size) + 0.5) * scale
    away = np.abs(np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1)
    weights = np.maximum(0, 1 - away)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("shape", "size"), [((8, 8), 4), ((12, 20), 3), ((20, 13), 5), ((4, 6), 7)]
)
def test_the_central_square_is_resized_without_aliasing(shape, size):
    pixels = picture(0, shape=shape)
    side = min(shape)
    rows, columns = (
        _weights(n, (n - side) / 2, side, size) @ np.eye(n, dtype=float) for n in shape
    )
    expected = np.einsum("ah,bw,hwc->abc", rows, columns, pixels.astype(float))
    found = image_folder.decode(encoded(pixels), size=size)
    assert found.shape == (size, size, 3)
    np.testing.assert_allclose(found, expected, atol=1.5)  # two roundings


def test_a_crop_alone_changes_no_pixel():
    wide, tall = picture(0, shape=(4, 8)), picture(1, shape=(9, 5))
    found = image_folder.decode(encoded(wide), size=4)
    np.testing.assert_array_equal(found, wide[:, 2:6])
    found = image_folder.decode(encoded(tall), size=5)
    np.testing.assert_array_equal(found, tall[2:7])


def test_grey_transparent_and_palette_pictures_become_rgb():
    grey, clear = picture(0, mode="L"), picture(1, mode="RGBA")
    found = image_folder.decode(encoded(grey), size=6)
    np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, axis=2))
    found = image_folder.decode(encoded(clear), size=6)
    np.testing.assert_array_equal(found, clear[..., :3])
    indexed = Image.fromarray(picture(2)).quantize(8)
    expected = np.asarray(indexed.convert("RGB"))
    data = encoded(indexed, transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(image_folder.decode(data, size=6), expected)
    found = image_folder.decode(jpeg(size=(9, 7), mode="CMYK"), size=7)
    assert found.shape == (7, 7, 3)


PNG = encoded(picture(0))
DEEP = encoded(Image.fromarray(np.zeros((6, 6), np.uint16)))
# In the checksum of the pixels, not in the pixels.
FLIPPED = bytes([PNG[-14] ^ 1])
ONE = "train/b9/2.png"
FAULTS = {
    "damaged": ({ONE: PNG[:60]}, [ONE, "no readable JPEG or PNG", "repair or delete"]),
    "wrong checksum": ({ONE: PNG[:-14] + FLIPPED + PNG[-13:]}, [ONE, "no readable"]),
    "truncated jpeg": ({ONE: jpeg()[:-2]}, [ONE, "no end-of-image marker"]),
    "text": ({ONE: b"<html>"}, [ONE, "no readable JPEG or PNG"]),
    "empty": ({ONE: b""}, [ONE, "no readable JPEG or PNG"]),
    "16 bits": ({ONE: DEEP}, [ONE, "expected 8 bits a channel"]),
    "no image": ({"train/c/a.txt": b""}, ["train/c holds no image (*.jpg, *.jpeg"]),
    "no test image": ({"val/b9/x.png": None}, ["val/b9 holds no image"]),
    "unknown class": ({"val/c/a.png": PNG}, ["val holds class 'c'", "2 of", "train"]),
}


def _told(folder, error=ValueError, size=6):
    with pytest.raises(error) as caught:
        image_folder.load_raw(folder, size=size)
    told = str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in told
    assert told.endswith(".")
    return told


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_sentence(tmp_path, fault):
    changes, parts = FAULTS[fault]
    write(tmp_path, files())
    for name, content in changes.items():
        if content is None:
            (tmp_path / name).unlink()
        else:
            write(tmp_path, {name: content})
    told = _told(tmp_path)
    for part in parts:
        assert part in told


def test_missing_folders_are_told(tmp_path):
    assert "nowhere is no folder but missing: name the" in _told(
        tmp_path / "nowhere", FileNotFoundError
    )
    assert "has no folder train" in _told(tmp_path, FileNotFoundError)
    (tmp_path / "train").mkdir()
    assert "has no folder val or test" in _told(tmp_path, FileNotFoundError)
    (tmp_path / "val").mkdir()
    assert "train holds no class" in _told(tmp_path)
    write(tmp_path, {"train/a/1.png": PNG})
    assert "val holds no class" in _told(tmp_path)


@pytest.mark.parametrize("size", [0, -3, 1.5])
def test_a_size_below_one_is_refused(tmp_path, size, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    told = _told(write(tmp_path, files()), size=size)
    assert f"size={size} must be " in told
    assert "at least 1" in told
