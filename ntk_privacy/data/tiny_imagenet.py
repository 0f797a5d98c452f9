"""Tiny ImageNet, or a part of it, from its original folders."""

import codecs
import re
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from ntk_privacy import _files
from ntk_privacy.data import decoding
from ntk_privacy.data.raw import Raw, find_folder

FOLDERS = (
    *("tiny-imagenet-200", "tiny-imagenet-200/tiny-imagenet-200", "tiny-imagenet-*"),
    *("tiny_imagenet*", "tiny-imagenet", "tinyimagenet*"),
)
SUFFIXES = (".jpeg", ".jpg", ".png")
IMAGE_SIZE = (64, 64)
_ANNOTATIONS = "val/val_annotations.txt"
_WNID = re.compile(r"n[0-9]{8}")
_ALIKE = r"tiny|imagenet|^wnids|^train|^val|annotations"
_REMEDY = "give it as published"
_REPAIR = "repair it, or give it as published"


def load_raw(root: Path) -> Raw:
    """Reads the training and the validation images under `root`.

    The validation images are the test set, for the test images are published without
    labels. They may be sorted by class, in `val/WNID/images` or `val/WNID`, and are
    then in the order of their names, which is that of the annotations as published; so
    may those in `train`. Classes are numbered in the order of `wnids.txt`.

    Args:
        root: The folder that holds `wnids.txt`, or one that holds a folder
            `tiny-imagenet-200` (which wins) or `tiny-imagenet-*` that does.

    Raises:
        FileNotFoundError: `wnids.txt`, `train` or the labels of `val` are missing.
        ValueError: A file is corrupt, no regular file or too large, or the lists and
            the folders disagree.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> from ntk_privacy import data
        >>> folder, wnid = pathlib.Path(tempfile.mkdtemp()), "n00000001"
        >>> _ = (folder / "wnids.txt").write_text(wnid)
        >>> for part in ("train", "val"):
        ...     place = folder / part / wnid / "images"
        ...     place.mkdir(parents=True)
        ...     Image.new("RGB", (64, 64)).save(place / f"{part}_0.JPEG")
        >>> data.SETS["tiny_imagenet"].load_raw(folder).images_train.shape
        (1, 64, 64, 3)
    """
    folder = find_folder(
        "tiny_imagenet", root, FOLDERS, missing_files, alike=_ALIKE, taken=_taken
    )
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
    """Names of the files and folders that `folder` lacks.

    Args:
        folder: The folder that holds `wnids.txt`, `train` and `val`.
    """
    lists = ["wnids.txt", _ANNOTATIONS]
    folders = ["train", "val/images"]
    if _by_class(folder):
        lists, folders = lists[:1], folders[:1]
    # What is there but no regular file is told by who reads it.
    lacks = [name for name in lists if _files.kind(folder / name) == "missing"]
    return lacks + [name for name in folders if not (folder / name).is_dir()]


def _by_class(folder: Path) -> list[Path]:
    """Returns the folders of classes in `val`, where it has no folder `images`."""
    val = folder / "val"
    if (val / "images").is_dir() or not val.is_dir():
        return []
    return [path for path in _files.entries(val) if _WNID.fullmatch(path.name)]


def _taken(folder: Path) -> list[Path]:
    return [folder / n for n in ("wnids.txt", "train", "val") if (folder / n).exists()]


def decode_jpeg(data: bytes, *, source: str = "image") -> UInt8[np.ndarray, "64 64 3"]:
    """Decodes one 64x64 JPEG or PNG; grey and CMYK become RGB. See `decoding.opened`.

    Args:
        data: The file's bytes.
        source: The file's name, for messages.

    Raises:
        ValueError: The bytes are no complete 64x64 picture in grey, RGB or CMYK.
    """
    with decoding.opened(
        data, formats=("JPEG", "PNG"), source=source, remedy=_REPAIR
    ) as image:
        size, mode, kind = image.size, image.mode, image.format
        # Before the pixels are decoded: a header may announce gigabytes.
        if size == IMAGE_SIZE and mode in decoding.MODES:
            return np.asarray(decoding.rgb(image), dtype=np.uint8)
    raise ValueError(
        f"{source} is a {kind} of {size[0]}x{size[1]} pixels in mode {mode}, expected "
        f"64x64 with 8 bits a channel: {_REPAIR}."
    )


def parse_wnids(data: bytes, *, source: str = "wnids.txt") -> list[str]:
    """Reads the class identifiers, one a line.

    Args:
        data: The file's bytes.
        source: The file's name, for messages.

    Raises:
        ValueError: There is none, one is twice there, or one is not `n` and 8 digits.
    """
    lines = [text.strip() for text in _text(data, source).splitlines()]
    wnids = [line for line in lines if line]
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
        if not text.strip():
            continue
        fields = text.rstrip().split("\t")
        if len(fields) != 6:
            raise ValueError(
                f"{source} line {line} has {len(fields)} fields, expected 6 (image, "
                f"class, box): {_REMEDY}."
            )
        name, wnid = (field.strip() for field in fields[:2])
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


def _text(data: bytes, source: str, *, old: bool = False) -> str:
    """Returns a list's text, without a mark at its start.

    Args:
        data: The file's bytes.
        source: The file's name, for messages.
        old: Whether other bytes are Latin-1, as in names of old lists.

    Raises:
        ValueError: It is no text.
    """
    kinds = ["utf-8-sig"]
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        kinds = ["utf-16"]
    elif old and b"\0" not in data:
        kinds.append("latin-1")
    at = 0
    for kind in kinds:
        try:
            return data.decode(kind)
        except UnicodeDecodeError as error:
            at = min(error.start, len(data) - 1)
    raise ValueError(f"{source} is no text (byte 0x{data[at]:02x} at {at}): {_REMEDY}.")


def _read_list(path: Path) -> bytes:
    return _files.read(path, most=_files.MAX_TEXT_BYTES, remedy=_REMEDY)


def _read_wnids(folder: Path) -> list[str]:
    path = folder / "wnids.txt"
    wnids = parse_wnids(_read_list(path), source=_files.shown(path))
    train = folder / "train"
    there = {p.name for p in _files.entries(train) if _WNID.fullmatch(p.name)}
    for wnid in [*wnids, *sorted(there)]:
        if wnid not in there or wnid not in wnids:
            lacks = _files.shown(path if wnid in there else train)
            raise ValueError(f"{lacks} does not hold class {wnid}: {_REMEDY}.")
    return wnids


def _read_class_names(folder: Path, wnids: list[str]) -> tuple[str, ...]:
    path = folder / "words.txt"
    if _files.kind(path) in ("missing", "a folder"):
        return tuple(wnids)
    # At line feeds alone: in Latin-1 names have bytes that are line ends elsewhere.
    lines = _text(_read_list(path), _files.shown(path), old=True).split("\n")
    pairs = (line.split("\t", 1) for line in lines if "\t" in line)
    names = {wnid.strip(): name.strip() for wnid, name in pairs}
    return tuple(names.get(wnid, wnid) for wnid in wnids)


def _list_images(folder: Path) -> list[Path]:
    return decoding.list_images(folder, suffixes=SUFFIXES, remedy=_REMEDY)


def _list_train(
    folder: Path, wnids: list[str]
) -> tuple[list[Path], Int32[np.ndarray, " n"]]:
    per_class = [_list_images(folder / "train" / wnid) for wnid in wnids]
    counts = [len(paths) for paths in per_class]
    labels = np.repeat(np.arange(len(wnids), dtype=np.int32), counts)
    return [path for paths in per_class for path in paths], labels


def _list_val(
    folder: Path, wnids: list[str]
) -> tuple[list[Path], Int32[np.ndarray, " m"]]:
    source = folder / _ANNOTATIONS
    told = _files.shown(source)
    sorted_by_class = _by_class(folder)
    annotated = None
    if not sorted_by_class or _files.kind(source) != "missing":
        annotated = parse_annotations(_read_list(source), wnids, source=told)
    if sorted_by_class:
        return _list_sorted(sorted_by_class, wnids, annotated, told)
    assert annotated is not None
    images = folder / "val" / "images"
    there = _by_key(_list_images(images))
    seen = set()
    for name, _ in annotated:
        key = _key(name)
        if key not in there or key in seen:
            why = "a second time" if key in there else "which is not there"
            raise ValueError(
                f"{told} names image {name[:40]!r} of {_files.shown(images)}, {why}: "
                f"{_REMEDY}."
            )
        seen.add(key)
    if len(annotated) < len(there):
        raise ValueError(
            f"{told} labels {len(annotated)} of the {len(there)} images in "
            f"{_files.shown(images)}, expected all: {_REMEDY}."
        )
    labels = np.array([label for _, label in annotated], dtype=np.int32)
    return [there[_key(name)] for name, _ in annotated], labels


def _key(name: str) -> str:
    """Returns a name without its suffix: the list has .JPEG, the files may .jpg."""
    path = Path(name)
    return path.stem if path.suffix.lower() in SUFFIXES else name


def _by_key(paths: list[Path]) -> dict[str, Path]:
    """Returns images by name; two that differ in suffix alone cannot be told apart."""
    there: dict[str, Path] = {}
    for path in paths:
        twin = there.setdefault(_key(path.name), path)
        if twin is not path:
            raise ValueError(
                f"{_files.shown(twin)} and {_files.shown(path.name)} beside it have "
                f"one name but for the suffix: remove one of them, or {_REMEDY}."
            )
    return there


def _list_sorted(
    folders: list[Path],
    wnids: list[str],
    annotated: list[tuple[str, int]] | None,
    source: str,
) -> tuple[list[Path], Int32[np.ndarray, " m"]]:
    """Returns images of folders by class, in the order of their names."""
    index = {wnid: label for label, wnid in enumerate(wnids)}
    known = {_key(name): label for name, label in annotated or ()}
    found: list[tuple[Path, int]] = []
    for folder in folders:
        if folder.name not in index:
            raise ValueError(
                f"{_files.shown(folder)} is a class that is not among the {len(wnids)} "
                f"of wnids.txt: {_REMEDY}."
            )
        label = index[folder.name]
        for path in _list_images(folder):
            if known.get(_key(path.name), label) != label:
                raise ValueError(
                    f"{_files.shown(path)} lies in another class than {source} gives "
                    f"it, {wnids[known[_key(path.name)]]}: {_REMEDY}."
                )
            found.append((path, label))
    found.sort(key=lambda pair: (len(pair[0].name), pair[0].name))
    return [path for path, _ in found], np.array([k for _, k in found], dtype=np.int32)


def _decode_all(paths: list[Path]) -> UInt8[np.ndarray, "n 64 64 3"]:
    images = _files.room(
        len(paths), (*IMAGE_SIZE, 3), source=paths[0].parent, remedy="keep fewer images"
    )
    for image, path in zip(images, paths, strict=True):
        data = _files.read(path, most=_files.MAX_IMAGE_BYTES, remedy=_REPAIR)
        image[:] = decode_jpeg(data, source=_files.shown(path))
    return images
