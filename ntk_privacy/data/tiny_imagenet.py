"""Tiny ImageNet, or a part of it, from its original folders."""

import re
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from ntk_privacy.data import decoding
from ntk_privacy.data.raw import Raw, find_folder

FOLDERS = ("tiny-imagenet-200", "tiny-imagenet-*")
IMAGE_SIZE = (64, 64)
_ANNOTATIONS = "val/val_annotations.txt"
_WNID = re.compile(r"n[0-9]{8}")
_REMEDY = "delete the folder and fetch it again"


def load_raw(root: Path) -> Raw:
    """Reads the training and the validation images under `root`.

    The validation images are the test set, for the test images are published without
    labels. Classes are numbered in the order of `wnids.txt`.

    Args:
        root: The folder that holds `wnids.txt`, or one that holds a folder
            `tiny-imagenet-200` (which wins) or `tiny-imagenet-*` that does.

    Raises:
        FileNotFoundError: `wnids.txt`, `train` or `val/val_annotations.txt` is missing.
        ValueError: A file is corrupt, or the lists and the folders disagree.
    """
    folder = find_folder("tiny_imagenet", root, FOLDERS, missing_files)
    wnids = _read_wnids(folder)
    train_paths, labels_train = _list_train(folder, wnids)
    test_paths, labels_test = _list_val(folder, wnids)
    return Raw(
        images_train=_decode_all(train_paths),
        labels_train=labels_train,
        images_test=_decode_all(test_paths),
        labels_test=labels_test,
        class_names=_read_class_names(folder, wnids),
        max_intensity=255,
    )


def missing_files(folder: Path) -> list[str]:
    """Names of the files and folders that `folder` lacks."""
    lacks = [n for n in ("wnids.txt", _ANNOTATIONS) if not (folder / n).is_file()]
    return lacks + [n for n in ("train", "val/images") if not (folder / n).is_dir()]


def decode_jpeg(data: bytes, *, source: str = "image") -> UInt8[np.ndarray, "64 64 3"]:
    """Decodes one 64x64 JPEG; grey images become RGB. See `decoding.opened`.

    Args:
        data: The file's bytes.
        source: The file's name, for messages.

    Raises:
        ValueError: The bytes are no complete 64x64 JPEG in grey or RGB.
    """
    with decoding.opened(
        data, formats=("JPEG",), source=source, remedy=_REMEDY
    ) as image:
        size, mode = image.size, image.mode
        # Before the pixels are decoded: a header may announce gigabytes.
        if size == IMAGE_SIZE and mode in ("L", "RGB"):
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
    raise ValueError(
        f"{source} is a JPEG of {size[0]}x{size[1]} pixels in mode {mode}, expected "
        f"64x64 in L or RGB: {_REMEDY}."
    )


def parse_wnids(data: bytes, *, source: str = "wnids.txt") -> list[str]:
    """Reads the class identifiers, one a line.

    Raises:
        ValueError: There is none, one is twice there, or one is not `n` and 8 digits.
    """
    wnids = [line for line in _text(data, source).splitlines() if line]
    if not wnids:
        raise ValueError(f"{source} names no class: {_REMEDY}.")
    for line, wnid in enumerate(wnids, 1):
        if not _WNID.fullmatch(wnid):
            raise ValueError(
                f"{source} line {line} is {wnid[:40]!r}, expected n and 8 digits: "
                f"{_REMEDY}."
            )
    if len(set(wnids)) < len(wnids):
        twice = next(wnid for wnid in wnids if wnids.count(wnid) > 1)
        raise ValueError(f"{source} names class {twice} twice: {_REMEDY}.")
    return wnids


def parse_annotations(
    data: bytes, wnids: list[str], *, source: str = _ANNOTATIONS
) -> list[tuple[str, int]]:
    """Reads image names and labels; per line name, class and a box, tab-separated.

    Args:
        data: The file's bytes.
        wnids: The class identifiers, in label order.
        source: The file's name, for messages.

    Raises:
        ValueError: A line has too few fields, an unknown class or a name that was
            there before; or there is no line.
    """
    index = {wnid: label for label, wnid in enumerate(wnids)}
    labels: dict[str, int] = {}
    for line, text in enumerate(_text(data, source).splitlines(), 1):
        fields = text.split("\t")
        if len(fields) != 6:
            raise ValueError(
                f"{source} line {line} has {len(fields)} fields, expected 6 (image, "
                f"class, box): {_REMEDY}."
            )
        name, wnid = fields[:2]
        if wnid not in index:
            raise ValueError(
                f"{source} line {line} names class {wnid[:40]!r}, which is not among "
                f"the {len(wnids)} of wnids.txt: {_REMEDY}."
            )
        if name in labels:
            raise ValueError(
                f"{source} line {line} names image {name[:40]!r} a second time: "
                f"{_REMEDY}."
            )
        labels[name] = index[wnid]
    if not labels:
        raise ValueError(f"{source} names no image: {_REMEDY}.")
    return list(labels.items())


def _text(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{source} is no text (byte 0x{data[error.start]:02x} at {error.start}): "
            f"{_REMEDY}."
        ) from error


def _read_wnids(folder: Path) -> list[str]:
    path = folder / "wnids.txt"
    wnids = parse_wnids(path.read_bytes(), source=str(path))
    there = {p.name for p in (folder / "train").iterdir() if _WNID.fullmatch(p.name)}
    for wnid in [*wnids, *sorted(there)]:
        if wnid not in there or wnid not in wnids:
            lacks = f"{path} does" if wnid in there else f"{folder / 'train'} does"
            raise ValueError(f"{lacks} not hold class {wnid}: {_REMEDY}.")
    return wnids


def _read_class_names(folder: Path, wnids: list[str]) -> tuple[str, ...]:
    path = folder / "words.txt"
    if not path.is_file():
        return tuple(wnids)
    lines = _text(path.read_bytes(), str(path)).splitlines()
    names = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return tuple(names.get(wnid, wnid) for wnid in wnids)


def _list_images(folder: Path) -> list[Path]:
    return decoding.list_images(folder, suffixes=(".jpeg",), remedy=_REMEDY)


def _list_train(
    folder: Path, wnids: list[str]
) -> tuple[list[Path], Int32[np.ndarray, " n"]]:
    per_class = [_list_images(folder / "train" / wnid / "images") for wnid in wnids]
    counts = [len(paths) for paths in per_class]
    labels = np.repeat(np.arange(len(wnids), dtype=np.int32), counts)
    return [path for paths in per_class for path in paths], labels


def _list_val(
    folder: Path, wnids: list[str]
) -> tuple[list[Path], Int32[np.ndarray, " m"]]:
    source = folder / _ANNOTATIONS
    annotated = parse_annotations(source.read_bytes(), wnids, source=str(source))
    there = {path.name: path for path in _list_images(folder / "val" / "images")}
    for name, _ in annotated:
        if name not in there:
            raise ValueError(
                f"{source} names image {name[:40]!r}, which is not in "
                f"{folder / 'val' / 'images'}: {_REMEDY}."
            )
    if len(annotated) < len(there):
        raise ValueError(
            f"{source} labels {len(annotated)} of the {len(there)} images in "
            f"{folder / 'val' / 'images'}, expected all: {_REMEDY}."
        )
    labels = np.array([label for _, label in annotated], dtype=np.int32)
    return [there[name] for name, _ in annotated], labels


def _decode_all(paths: list[Path]) -> UInt8[np.ndarray, "n 64 64 3"]:
    images = np.empty((len(paths), *IMAGE_SIZE, 3), dtype=np.uint8)
    for image, path in zip(images, paths, strict=True):
        image[:] = decode_jpeg(path.read_bytes(), source=str(path))
    return images
