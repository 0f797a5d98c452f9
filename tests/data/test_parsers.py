"""Each parser against handmade files, and each fault it must tell."""

import gzip
import struct

import numpy as np
import pytest
from handmade_files import (
    WNIDS,
    cifar_files,
    cifar_images,
    cifar_record,
    idx_images,
    idx_labels,
    jpeg,
    mnist_arrays,
    mnist_files,
    pixels,
    tiny_files,
    write,
)

from ntk_privacy import data
from ntk_privacy.data import cifar10, mnist, tiny_imagenet

IMAGES = mnist_arrays()[0]
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def one_line(error, *parts):
    told = str(error.value)
    assert "\n" not in told
    assert type(error.value) is ValueError
    for part in parts:
        assert part in told
    assert told.endswith(".")


@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_files_come_back_as_written(zipped, tmp_path):
    raw = data.load_raw("mnist", write(tmp_path, mnist_files(zipped=zipped)))
    for found, expected in zip(raw[:4], mnist_arrays(), strict=True):
        np.testing.assert_array_equal(found.squeeze(), expected)
    assert raw.images_train.shape == (6, 28, 28, 1)
    assert raw.labels_train.dtype == np.int32
    assert raw.class_names[7] == "7"


def test_gzip_is_told_by_content_not_by_name(tmp_path):
    files = mnist_files(zipped=False)
    write(tmp_path, {f"{name}.gz": content for name, content in files.items()})
    raw = data.load_raw("mnist", tmp_path)
    np.testing.assert_array_equal(raw.images_train[..., 0], IMAGES)


def image_header(magic=0x803, count=6, rows=28, columns=28):
    return struct.pack(">IIII", magic, count, rows, columns)


BODY = IMAGES.tobytes()
PLAIN = idx_images(IMAGES)
ZIPPED = gzip.compress(PLAIN)
MNIST_FAULTS = {
    "empty": (b"", "0 bytes"),
    "short header": (PLAIN[:15], "15 bytes, fewer than the 16"),
    "wrong magic": (image_header(magic=0x801) + BODY, "0x00000801"),
    "doubles": (image_header(magic=0xE03) + BODY, "expected 0x00000803"),
    "no image": (image_header(count=0), "0 records, expected 1 to"),
    "absurd count": (image_header(count=2**32 - 1) + BODY, "4294967295 records"),
    "absurd rows": (image_header(rows=2**31) + BODY, "2147483648x28 pixels"),
    "transposed split": (image_header(12, 14, 28) + BODY, "expected"),
    "half rows": (image_header(count=12, rows=14) + BODY, "14x28 pixels"),
    "no columns": (image_header(columns=0), "28x0 pixels"),
    "truncated": (PLAIN[:-1], "only 4703"),
    "trailing": (PLAIN + b"\0", "more than 4704"),
    "truncated gzip": (ZIPPED[: len(ZIPPED) // 2], "broken gzip"),
    "gzip without checksum": (ZIPPED[:-8], "broken gzip"),
    "wrong gzip checksum": (ZIPPED[:-8] + bytes(4) + ZIPPED[-4:], "CRC"),
    "gzip header alone": (ZIPPED[:10], "broken gzip"),
    "gzip magic alone": (b"\x1f\x8b", "broken gzip"),
    "gzip garbage": (ZIPPED[:10] + b"\xff" * 50, "broken gzip"),
    "gzip then garbage": (ZIPPED + b"garbage", "broken gzip"),
    "trailing in gzip": (gzip.compress(PLAIN + b"x"), "more than 4704"),
    "two members": (ZIPPED + ZIPPED, "more than 4704"),
    "gzip of nothing": (gzip.compress(b""), "0 bytes"),
    "gzip of text": (gzip.compress(b"<html>not found</html>" * 9), "0x3c68746d"),
}


@pytest.mark.parametrize("case", MNIST_FAULTS)
def test_broken_idx_images_are_told(case, tmp_path):
    content, told = MNIST_FAULTS[case]
    with pytest.raises(ValueError, match=r".") as error:
        mnist.parse_idx_images(content, source="the file")
    one_line(error, "the file", told)
    path = write(tmp_path, mnist_files() | {TRAIN_IMAGES: content}) / TRAIN_IMAGES
    with pytest.raises(ValueError, match=r".") as error:
        data.load("mnist", data_dir=tmp_path)
    one_line(error, str(path), told)


def test_decompression_bomb_is_read_no_further_than_announced(monkeypatch):
    bomb = gzip.compress(image_header(count=1) + bytes(50_000_000))
    taken = []
    read = gzip.GzipFile.read

    def counting(self, size=-1):
        taken.append(size)
        return read(self, size)

    monkeypatch.setattr(gzip.GzipFile, "read", counting)
    with pytest.raises(ValueError, match="more than 784"):
        mnist.parse_idx_images(bomb)
    assert min(taken) >= 0
    assert sum(taken) == 16 + 784 + 1


def test_label_above_nine_is_told(tmp_path):
    with pytest.raises(ValueError, match="label 10 at record 2, expected 0 to 9"):
        mnist.parse_idx_labels(idx_labels([1, 2, 10, 250]))


def test_labels_that_are_not_one_per_image_are_told(tmp_path):
    write(tmp_path, mnist_files() | {TRAIN_LABELS: idx_labels([1] * 5)})
    with pytest.raises(ValueError, match=r"6 images but .* 5 labels") as error:
        data.load("mnist", data_dir=tmp_path)
    one_line(error, TRAIN_IMAGES, TRAIN_LABELS)


def test_cifar_record_is_channel_first_and_comes_back_channel_last():
    image = np.zeros((32, 32, 3), np.uint8)
    image[0, 1, 0] = 11  # red, first row, second column: byte 1 of the record's pixels
    image[2, 0, 1] = 22  # green, third row: 1024 + 64
    image[31, 31, 2] = 33  # the last byte
    record = cifar_record(8, image)
    assert [record[0], record[2], record[1 + 1024 + 64], record[-1]] == [8, 11, 22, 33]
    images, labels = cifar10.parse_batch(record)
    np.testing.assert_array_equal(images, image[None])
    np.testing.assert_array_equal(labels, [8])


def test_cifar_batches_are_joined_in_order(tmp_path):
    raw = data.load_raw("cifar10", write(tmp_path, cifar_files()))
    expected = np.concatenate([cifar_images(seed, 2) for seed in range(5)])
    np.testing.assert_array_equal(raw.images_train, expected)
    np.testing.assert_array_equal(raw.labels_train, np.arange(10))
    np.testing.assert_array_equal(raw.images_test, cifar_images(5, 2))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "0 bytes, expected a positive multiple of 3073"),
        (bytes(3072), "3072 bytes"),
        (bytes(3073 * 2 + 1), "6147 bytes"),
        (bytes(3073) + b"\x0a" + bytes(3072), "label 10 at record 1"),
    ],
)
def test_broken_cifar_batch_is_told(content, told, tmp_path):
    write(tmp_path, cifar_files() | {"data_batch_4.bin": content})
    with pytest.raises(ValueError, match=r".") as error:
        data.load("cifar10", data_dir=tmp_path)
    one_line(error, "data_batch_4.bin", told)


def test_tiny_imagenet_folders_come_back(tmp_path):
    files = tiny_files(num_train=11)
    raw = data.load_raw("tiny_imagenet", write(tmp_path / "tiny-imagenet-2", files))
    assert raw.class_names == ("first thing", "second thing")
    np.testing.assert_array_equal(raw.labels_train, [0] * 11 + [1] * 11)
    np.testing.assert_array_equal(raw.labels_test, [0, 1, 0, 1])
    names = [f"train/{w}/images/{w}_{i}.JPEG" for w in WNIDS for i in range(11)]
    for image, name in zip(raw.images_train, names, strict=True):
        np.testing.assert_array_equal(image, pixels(files[name]))
    for i, image in enumerate(raw.images_test):
        np.testing.assert_array_equal(image, pixels(files[f"val/images/val_{i}.JPEG"]))


def test_the_full_tiny_imagenet_wins_over_a_part(tmp_path):
    write(tmp_path / "tiny-imagenet-10", tiny_files(num_train=2))
    write(tmp_path / "tiny-imagenet-200", tiny_files(num_train=3))
    assert len(data.load_raw("tiny_imagenet", tmp_path).images_train) == 6


def test_grey_jpeg_becomes_rgb():
    image = tiny_imagenet.decode_jpeg(jpeg(mode="L"))
    assert image.shape == (64, 64, 3)
    np.testing.assert_array_equal(image, np.repeat(image[..., :1], 3, axis=-1))


ONE = f"train/{WNIDS[0]}/images/{WNIDS[0]}_1.JPEG"
VAL = "val/val_annotations.txt"
LINES = tiny_files()[VAL].splitlines(keepends=True)
HUGE = jpeg().replace(struct.pack(">HH", 64, 64), struct.pack(">HH", 65500, 65500), 1)
TINY_FAULTS = {
    "empty jpeg": (ONE, b"", "its 0 bytes start with"),
    "text": (ONE, b"<html>not found</html>", "22 bytes start with b'<html>no'"),
    "truncated jpeg": (ONE, jpeg()[:-30], "truncated"),
    "no end marker": (ONE, jpeg()[:-2], "truncated"),
    "no start": (ONE, jpeg()[10:], "no readable JPEG"),
    "small jpeg": (ONE, jpeg(size=(63, 64)), "63x64 pixels in mode RGB"),
    "bomb": (ONE, HUGE, "no readable JPEG"),
    "no class": ("wnids.txt", b"\n", "names no class"),
    "class twice": ("wnids.txt", f"{WNIDS[0]}\n{WNIDS[0]}\n".encode(), "twice"),
    "path for class": ("wnids.txt", b"../../etc\n", "expected n and 8 digits"),
    "binary list": ("wnids.txt", b"n0123\xff\xfe", "byte 0xff at 5"),
    "class without folder": ("wnids.txt", "\n".join([*WNIDS, "n11111111"]).encode(),
                             "train does not hold class n11111111"),
    "folder without class": ("wnids.txt", WNIDS[0].encode(), "wnids.txt does not hold"),
    "binary words": ("words.txt", b"n0\0\xff", "is no text"),
    "unknown class": (VAL, b"val_0.JPEG\tn00000000\t0\t0\t1\t1\n", "not among the 2"),
    "missing image": (VAL, LINES[0].replace(b"val_0", b"val_77"), "val_77.JPEG' of"),
    "few fields": (VAL, b"val_0.JPEG n01234567\n", "1 fields, expected 6"),
    "image twice": (VAL, LINES[0] + LINES[0], "a second time"),
    "no annotation": (VAL, b"", "names no image"),
    "fewer annotations": (VAL, b"".join(LINES[:3]), "labels 3 of the 4 images"),
}  # fmt: skip


@pytest.mark.parametrize("case", TINY_FAULTS)
def test_broken_tiny_imagenet_is_told(case, tmp_path):
    name, content, told = TINY_FAULTS[case]
    write(tmp_path, tiny_files() | {name: content})
    with pytest.raises(ValueError, match=r".") as error:
        data.load("tiny_imagenet", data_dir=tmp_path)
    one_line(error, told, str(tmp_path))


@pytest.mark.parametrize("folder", [f"train/{WNIDS[1]}/images", "val/images"])
def test_folder_without_images_is_told(folder, tmp_path):
    write(tmp_path, tiny_files())
    for path in (tmp_path / folder).iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="holds no image") as error:
        data.load("tiny_imagenet", data_dir=tmp_path)
    one_line(error, str(tmp_path / folder))
