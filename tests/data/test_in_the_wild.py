"""Files as people have them: other names and layouts, damaged notes, no files."""

import gzip
import io
import os
import resource
import shutil
import socket
import struct
import time

import numpy as np
import pytest
from handmade_files import (
    WNIDS,
    cifar_files,
    idx_images,
    jpeg,
    mnist_arrays,
    mnist_files,
    pixels,
    tiny_files,
    write,
)
from PIL import Image

from ntk_privacy import _files, data
from ntk_privacy.data import decoding, image_folder, tiny_imagenet

# --- MNIST ---


def _same(raw, expected):
    for found, wanted in zip(raw[:4], expected[:4], strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.fixture
def mnist_raw(tmp_path):
    return data.load_raw("mnist", write(tmp_path / "published", mnist_files()))


LAYOUTS = {
    "root": "{name}",
    "torchvision": "MNIST/raw/{name}",
    "torchvision, beside": "mnist/MNIST/raw/{name}",
    "raw": "raw/{name}",
    "capitals": "MNIST/{name}",
    "dots": "{dots}",
    "dots in a folder": "Mnist/{dots}",
    "capital letters": "mnist/{upper}",
    "kaggle": "{dots}/{dots}",
    "kaggle, dash": "{name}/{dots}",
    "kaggle, packed": "mnist/{plain}/{name}",
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_mnist_is_found_under_its_other_names(layout, zipped, tmp_path, mnist_raw):
    files = {}
    for name, content in mnist_files(zipped=zipped).items():
        told = {
            "name": name,
            "dots": name.replace("-idx", ".idx"),
            "upper": name.upper(),
            "plain": name.removesuffix(".gz"),
        }
        files[LAYOUTS[layout].format(**told)] = content
    others = {"._train-images-idx3-ubyte.gz": b"\0\5\x16\7", ".DS_Store": b""}
    root = write(tmp_path / "other", files | others)
    _same(data.load_raw("mnist", root), mnist_raw)


def _keras(**changes):
    names = ("x_train", "y_train", "x_test", "y_test")
    arrays = dict(zip(names, map(np.asarray, mnist_arrays()), strict=True))
    arrays = {name: array.astype(np.uint8) for name, array in arrays.items()}
    out = io.BytesIO()
    np.savez(out, **(arrays | changes))
    return out.getvalue()


def test_mnist_as_keras_has_it(tmp_path, mnist_raw):
    _same(data.load_raw("mnist", write(tmp_path, {"mnist.npz": _keras()})), mnist_raw)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (_keras(x_train=np.array([{}], object)), "x_train is object of shape"),
        (_keras(x_train=np.zeros((6, 28, 28))), "x_train is float64 of shape"),
        (_keras(x_test=np.zeros((4, 14, 56), np.uint8)), "x_test is uint8 of shape"),
        (_keras(y_test=np.full(4, 10, np.uint8)), "label 10 at record 0"),
        (_keras(y_test=np.zeros(3, np.uint8)), r"4 images but y_test holds 3 labels"),
        (_keras()[:-30], "mnist.npz is damaged or of another kind"),
        (b"", "mnist.npz is damaged or of another kind"),
        (gzip.compress(b"idx", mtime=0), "mnist.npz is damaged or of another kind"),
    ],
)
def test_a_broken_archive_of_keras_is_told(content, told, tmp_path):
    write(tmp_path, {"mnist.npz": content})
    with pytest.raises(ValueError, match=told) as caught:
        data.load_raw("mnist", tmp_path)
    assert "\n" not in str(caught.value)


def test_near_misses_are_named_with_what_is_wrong_with_them(tmp_path):
    files = mnist_files()
    files["train-images.idx3-ubyte.zip"] = files.pop("train-images-idx3-ubyte.gz")
    files["t10k-labels-idx1-ubyte.gz.part"] = files.pop("t10k-labels-idx1-ubyte.gz")
    write(tmp_path / "mnist", files | {"notes.txt": b""})
    with pytest.raises(FileNotFoundError) as caught:
        data.load_raw("mnist", tmp_path)
    told = str(caught.value)
    assert "mnist: train-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz not" in told
    assert "found t10k-labels-idx1-ubyte.gz.part (an unfinished download)" in told
    assert "train-images.idx3-ubyte.zip (packed: unpack it)" in told
    for part in ("notes", "t10k-images", "train-labels", "\n"):
        assert part not in told


# --- CIFAR-10 ---


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_the_python_version_of_cifar_is_told_and_never_opened(inside, tmp_path):
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]
    folder = tmp_path / inside
    write(folder, dict.fromkeys(names, b"\x80\x04N."))
    before = {path: path.stat().st_atime_ns for path in folder.iterdir()}
    with pytest.raises(FileNotFoundError) as caught:
        data.load_raw("cifar10", tmp_path)
    told = str(caught.value)
    assert "the python version, which is pickles and never loaded" in told
    assert "cifar-10-binary.tar.gz" in told
    assert ("cifar-10-batches-py" if inside else "data_batch_1, data_batch_2") in told
    assert before == {path: path.stat().st_atime_ns for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cifar-10-binary.tar.gz", "cifar-10-binary.tar.gz (packed: unpack it)"),
        ("cifar-10-python.tar.gz", "which is pickles and never loaded"),
        ("cifar-10-matlab.tar.gz", "the Matlab version: get the binary version"),
        ("cifar-100-binary.tar.gz", "another set, of 100 classes"),
        ("train-00000-of-00001.parquet", "a format that is not read"),
    ],
)
def test_other_archives_of_cifar_are_named(name, told, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        data.load_raw("cifar10", write(tmp_path, {name: b""}))
    assert told in str(caught.value)


@pytest.mark.parametrize("inside", ["CIFAR10/cifar-10-batches-bin", "CIFAR-10", "."])
def test_cifar_is_found_in_other_folders(inside, tmp_path):
    write(tmp_path / inside, cifar_files())
    assert data.load_raw("cifar10", tmp_path).images_train.shape == (10, 32, 32, 3)


# --- Tiny ImageNet ---

ONE = f"train/{WNIDS[0]}/images/{WNIDS[0]}_1.JPEG"
VAL = "val/val_annotations.txt"


def _by_class(files, *, deep=True, keep=False):
    """As people sort `val` for PyTorch: val_i into the folder of its class."""
    moved = {k: v for k, v in files.items() if not k.startswith("val/")}
    for i in range(4):
        folder = f"val/{WNIDS[i % 2]}" + ("/images" if deep else "")
        moved[f"{folder}/val_{i}.JPEG"] = files[f"val/images/val_{i}.JPEG"]
    return moved | ({VAL: files[VAL]} if keep else {})


def _edit(name, old, new):
    return lambda files: files | {name: files[name].replace(old, new)}


WORDS = "n98765430\tcaf\xe9\nn01234567\tna\xefve\n"
LISTS = ("wnids.txt", VAL, "words.txt")
SAME = {
    "blank lines": lambda f: f | {n: f[n].replace(b"\n", b"\n\n \n") for n in LISTS},
    "trailing spaces": lambda f: f | {n: f[n].replace(b"\n", b"  \n") for n in LISTS},
    "windows": lambda f: f | {n: f[n].replace(b"\n", b"\r\n") for n in LISTS},
    "marks": lambda f: f | {n: b"\xef\xbb\xbf" + f[n] for n in LISTS},
    "utf-16": lambda f: f | {n: f[n].decode().encode("utf-16") for n in LISTS},
    "no end of line": lambda f: f | {n: f[n].rstrip() for n in LISTS},
    ".jpg": lambda f: {k.replace(".JPEG", ".jpg"): v for k, v in f.items()},
    ".Jpeg": lambda f: {k.replace(".JPEG", ".Jpeg"): v for k, v in f.items()},
    "leavings": lambda f: f | {
        f"{folder}/{name}": b"\0\5\x16\7"
        for folder in (ONE.rpartition("/")[0], "val/images", "train", "val")
        for name in ("._val_0.JPEG", ".DS_Store", "Thumbs.db", "__MACOSX/._x.JPEG")
    },
    "train flat": lambda f: {
        (k.replace("/images/", "/") if k.startswith("train") else k): v
        for k, v in f.items()
    },
    "val/WNID/images": _by_class,
    "val/WNID": lambda f: _by_class(f, deep=False),
    "val/WNID with the list": lambda f: _by_class(f, keep=True),
}  # fmt: skip


@pytest.mark.parametrize("spoil", SAME)
def test_tiny_imagenet_is_the_same_in_the_wild(spoil, tmp_path):
    expected = data.load_raw("tiny_imagenet", write(tmp_path / "a", tiny_files()))
    write(tmp_path / "b" / "tiny-imagenet-200", SAME[spoil](tiny_files()))
    found = data.load_raw("tiny_imagenet", tmp_path / "b")
    _same(found, expected)
    assert found.class_names == expected.class_names


def test_names_in_latin_1_and_pictures_of_other_kinds_are_read(tmp_path):
    grey, ink = jpeg(mode="L"), jpeg(mode="CMYK")
    out = io.BytesIO()
    Image.fromarray(pixels(jpeg(7))).save(out, "PNG")
    files = tiny_files() | {"words.txt": WORDS.encode("latin-1"), ONE: ink}
    png = out.getvalue()
    files |= {ONE.replace("_1", "_0"): grey, ONE.replace("_1", "_2"): png}
    raw = data.load_raw("tiny_imagenet", write(tmp_path, files))
    assert raw.class_names == ("na\xefve", "caf\xe9")
    for image, content in zip(
        raw.images_train, (grey, ink, out.getvalue()), strict=False
    ):
        np.testing.assert_array_equal(image, pixels(content))


def test_two_images_of_one_name_are_told(tmp_path):
    """One of them would take the other's place, whichever was meant."""
    files = tiny_files() | {"val/images/val_0.png": jpeg()}
    with pytest.raises(ValueError, match=r"val_0.* have one name but for the suffix"):
        data.load_raw("tiny_imagenet", write(tmp_path, files))


def test_sorted_images_that_the_list_contradicts_are_told(tmp_path):
    files = _by_class(tiny_files(), keep=True)
    swapped = _edit(VAL, WNIDS[0].encode(), WNIDS[1].encode())(files)
    with pytest.raises(ValueError, match=r"val_0\.JPEG lies in another class than"):
        data.load_raw("tiny_imagenet", write(tmp_path / "a", swapped))
    files = _by_class(tiny_files()) | {"val/n00000000/val_9.JPEG": jpeg()}
    with pytest.raises(ValueError, match="n00000000 is a class that is not among"):
        data.load_raw("tiny_imagenet", write(tmp_path / "b", files))
    files = tiny_files()
    both = files[VAL] + files[VAL].splitlines(keepends=True)[0].replace(b"JPEG", b"jpg")
    with pytest.raises(ValueError, match=r"val_0\.jpg' of .* a second time"):
        data.load_raw("tiny_imagenet", write(tmp_path / "c", files | {VAL: both}))


# --- Pictures ---


def _exif(body):
    """A JPEG whose camera noted `body`."""
    plain = jpeg()
    rest = plain[4 + struct.unpack(">H", plain[4:6])[0] :]  # less its JFIF header
    note = b"Exif\0\0" + body
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(note) + 2) + note + rest


def _directory(*entries):
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed


NOTES = {
    "value behind the end": _directory((0, 2, 2555904, 9999)) + bytes(4),
    "cut directory": _directory((0x011A, 5, 1, 9999))[:-6],
    "no directory": b"II*\0" + struct.pack("<I", 200),
    "no tiff": b"garbage!garbage!",
    "rotated": _directory((0x0112, 3, 1, 6)) + bytes(4),
    "nothing": b"",
}


@pytest.mark.parametrize("note", NOTES)
def test_pictures_with_damaged_notes_are_read(note):
    data = _exif(NOTES[note])
    expected = pixels(jpeg())
    np.testing.assert_array_equal(image_folder.decode(data, size=64), expected)
    np.testing.assert_array_equal(tiny_imagenet.decode_jpeg(data), expected)
    with pytest.raises(ValueError, match="no end-of-image marker"):
        image_folder.decode(data[:-40], size=64)


def _chunk(kind, content, *, damaged=False):
    crc = (_crc(kind + content) + damaged) % 2**32
    checksum = struct.pack(">I", crc)
    return struct.pack(">I", len(content)) + kind + content + checksum


def _crc(content):
    return int.from_bytes(gzip.compress(content)[-8:-4], "little")


def test_what_stands_beside_the_pixels_of_a_png_may_be_damaged():
    wanted = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(wanted).save(out, "PNG")
    png, at = out.getvalue(), 8 + 25  # behind the signature and IHDR
    for chunk in (
        _chunk(b"tEXt", b"Comment\0", damaged=True),
        _chunk(b"iCCP", b"x\0\0no profile"),
        _chunk(b"zTXt", b"x\0\0" + b"\xff" * 40),
        _chunk(b"acTL", struct.pack(">II", 3, 0)),
    ):
        found = image_folder.decode(png[:at] + chunk + png[at:] + b"rest", size=6)
        np.testing.assert_array_equal(found, wanted)
    # What pixels need is still checked: IDAT's checksum stands before IEND's 12 bytes.
    spoilt = png[:-13] + bytes([png[-13] ^ 1]) + png[-12:]
    for broken in (spoilt, png[:-12], png[:-20], png[:at]):
        with pytest.raises(ValueError, match="no readable JPEG or PNG"):
            image_folder.decode(broken, size=6)


def test_a_picture_of_more_pixels_than_memory_is_refused():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"x")
    with pytest.raises(ValueError, match="could be decompression bomb"):
        image_folder.decode(bomb + _chunk(b"IEND", b""), size=6)


def test_memory_that_is_used_up_is_one_sentence(tmp_path, monkeypatch):
    def full(*args, **options):
        raise MemoryError

    monkeypatch.setattr(np, "empty", full)
    with pytest.raises(ValueError, match=r"The 3 images of .* take 1\.2e-05 GB.*much"):
        _files.room(3, (4, 1000), source=tmp_path, remedy="keep fewer images")
    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(ValueError, match=r"x\.png does not fit the memory"):
        image_folder.decode(b"", size=6, source="x.png")


# --- Folders of pictures ---


def _folder(root, classes=("a", "b"), parts=("train", "val")):
    names = [f"{part}/{name}/1.jpg" for part in parts for name in classes]
    return write(root, {name: jpeg() for name in names})


def test_images_may_lie_one_folder_deeper(tmp_path):
    write(tmp_path, {f"Train/{c}/images/{c}.JPG": jpeg(i) for i, c in enumerate("ab")})
    write(tmp_path, {"Validation/b/b.jpeg": jpeg(9), "train.txt": b""})
    write(tmp_path, {"Train/__MACOSX/._a.JPG": b"", "Train/@eaDir/x/y.JPG": b""})
    raw = image_folder.load_raw(tmp_path, size=64)
    assert (raw.class_names, raw.labels_test.tolist()) == (("a", "b"), [1])
    np.testing.assert_array_equal(raw.images_train[1], pixels(jpeg(1)))


def test_a_folder_too_high_or_too_low_is_named(tmp_path):
    top = _folder(tmp_path / "imagenette2").parent
    with pytest.raises(FileNotFoundError, match="imagenette2 in it has: name that one"):
        image_folder.load_raw(top, size=8)
    with pytest.raises(FileNotFoundError, match=r"imagenette2 above it has: name that"):
        image_folder.load_raw(top / "imagenette2" / "train", size=8)
    shutil.move(top / "imagenette2" / "train", top / "imagenette2" / "training")
    with pytest.raises(FileNotFoundError, match="no folder train, only training, val"):
        image_folder.load_raw(top / "imagenette2", size=8)
    write(tmp_path / "flat", {"train/1.jpg": jpeg(), "val/a/1.jpg": jpeg()})
    with pytest.raises(ValueError, match="holds no class but 1 images without one"):
        image_folder.load_raw(tmp_path / "flat", size=8)
    write(tmp_path / "gif", {"train/a/1.gif": b"", "val/a/1.gif": b""})
    with pytest.raises(ValueError, match=r"holds no image .* but 1\.gif: add images"):
        image_folder.load_raw(tmp_path / "gif", size=8)


def test_one_class_and_links_to_folders_are_read(tmp_path):
    _folder(tmp_path / "set", classes=("a",))
    (tmp_path / "linked").mkdir()
    for part in ("train", "val"):
        (tmp_path / "linked" / part).symlink_to(tmp_path / "set" / part)
    assert image_folder.load_raw(tmp_path / "linked", size=8).class_names == ("a",)


def test_names_that_are_no_text_are_shown_as_text(tmp_path):
    _folder(tmp_path)
    for part in (b"train", b"val"):
        folder = os.fsencode(tmp_path) + b"/" + part + b"/\xff\nx"
        os.mkdir(folder)
        with open(folder + b"/1.jpg", "wb") as file:
            file.write(jpeg())
    names = image_folder.load_raw(tmp_path, size=8).class_names
    assert names == ("a", "b", "\\xff\\nx")
    with open(folder + b"/1.jpg", "wb") as file:
        file.write(b"text")
    with pytest.raises(ValueError, match="no readable") as caught:
        image_folder.load_raw(tmp_path, size=8)
    str(caught.value).encode("utf-8")
    assert "\n" not in str(caught.value)


# --- What is no file ---


def _pipe(path):
    os.mkfifo(path)


def _socket(path):
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def _sparse(path):
    with path.open("wb") as file:
        file.truncate(300 * 10**9)


NO_FILES = {
    "a named pipe": _pipe,
    "a socket": _socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a link to nothing": lambda path: path.symlink_to(path.parent / "nowhere"),
    "not to be had": lambda path: path.symlink_to(path),
    "has 300000000000 bytes": _sparse,
}
PLACES = {
    "image_folder": "train/a/1.jpg",
    "tiny_imagenet": ONE,
    "tiny list": "wnids.txt",
    "tiny words": "words.txt",
    "tiny annotations": VAL,
    "mnist": "train-images-idx3-ubyte.gz",
    "keras": "mnist.npz",
    "cifar10": "data_batch_2.bin",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("thing", NO_FILES)
def test_only_regular_files_of_a_sound_size_are_read(thing, place, tmp_path):
    kind = place.partition(" ")[0]
    if kind == "image_folder":
        _folder(tmp_path)
    else:
        made = {"tiny": tiny_files, "tiny_imagenet": tiny_files, "cifar10": cifar_files}
        made |= {"mnist": mnist_files, "keras": lambda: {PLACES["keras"]: b""}}
        write(tmp_path, made[kind]())
    path = tmp_path / PLACES[place]
    path.unlink()
    NO_FILES[thing](path)
    if thing == "a folder" and place in ("tiny words", "keras"):
        pytest.skip("no list and no archive, which may both be absent")
    name = {"keras": "mnist", "tiny": "tiny_imagenet"}.get(kind, kind)
    before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    load = data.load_raw if kind != "image_folder" else _load_images
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load(name, tmp_path)
    told = str(caught.value)
    # IDX and archives are known by their first bytes, of which no more are read.
    known = thing.startswith("has") and place in ("mnist", "keras")
    empty = thing.replace("a ", "an empty ")
    assert thing in told or empty in told or known
    assert PLACES[place].rpartition("/")[2] in told
    assert "\n" not in told
    assert time.process_time() - before[0] < 20
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before[1]
    assert grown < 500_000  # kilobytes


def _load_images(_, folder):
    return image_folder.load_raw(folder, size=8)


def test_a_pipe_that_takes_a_file_s_place_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "x"
    os.mkfifo(path)
    monkeypatch.setattr(_files, "kind", lambda path: "")
    with pytest.raises(ValueError, match="x is no longer a regular file: repair it"):
        _files.read(path, most=10, remedy="repair it")


def test_files_that_may_not_be_read_are_one_sentence(tmp_path, monkeypatch):
    write(tmp_path, {"x": b"12345"})

    def refused(*args, **options):
        raise PermissionError(13, "Permission denied")

    with pytest.raises(ValueError, match="has 5 bytes, more than the 4 that are read"):
        _files.read(tmp_path / "x", most=4, remedy="repair it")
    assert _files.read(tmp_path / "x", most=5, remedy="repair it") == b"12345"
    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(ValueError, match=r"x cannot be read \(Permission denied\)"):
        _files.read(tmp_path / "x", most=9, remedy="repair it")
    monkeypatch.setattr(type(tmp_path), "iterdir", refused)
    with pytest.raises(ValueError, match=r"be looked into \(Permission denied\)"):
        decoding.list_images(tmp_path, suffixes=(".jpg",), remedy="repair it")


def test_a_set_that_no_memory_holds_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "memory", lambda: 10_000)
    with pytest.raises(ValueError, match=r"The 2 images of .*train take 2\.46e-05 GB"):
        image_folder.load_raw(_folder(tmp_path), size=64)
    assert image_folder.load_raw(tmp_path, size=8).images_train.shape == (2, 8, 8, 3)


def test_a_bomb_in_gzip_is_read_no_further_than_announced(tmp_path):
    images = idx_images(mnist_arrays()[0])
    files = mnist_files() | {
        "train-images-idx3-ubyte.gz": gzip.compress(images + bytes(10**8))
    }
    with pytest.raises(ValueError, match="holds more than 4704"):
        data.load_raw("mnist", write(tmp_path, files))
