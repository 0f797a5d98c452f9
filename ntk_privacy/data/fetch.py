"""Verified downloads of the public image sets; nothing here runs unless asked."""

import gzip
import shutil
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pooch
from requests.exceptions import RequestException  # what pooch's downloader raises

from ntk_privacy.data.raw import ENVIRONMENT_VARIABLE

TIMEOUT = 30.0
"""Seconds without a byte after which a transfer is given up."""


class Source(NamedTuple):
    """Where an image set is published.

    Attributes:
        folder: The folder it becomes, under the data root.
        mirrors: Base URLs that serve every file, tried in turn.
        files: SHA-256 of each file, by name.
    """

    folder: str
    mirrors: tuple[str, ...]
    files: Mapping[str, str]


_ARCHIVES = (".tar.gz", ".zip")

REGISTRY: Mapping[str, Source] = {
    "mnist": Source(
        folder="mnist",
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "https://storage.googleapis.com/cvdf-datasets/mnist",
        ),
        files={
            "train-images-idx3-ubyte.gz": (
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
            ),
            "train-labels-idx1-ubyte.gz": (
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
            ),
            "t10k-images-idx3-ubyte.gz": (
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
            ),
            "t10k-labels-idx1-ubyte.gz": (
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
            ),
        },
    ),
    "cifar10": Source(
        folder="cifar-10-batches-bin",
        mirrors=("https://www.cs.toronto.edu/~kriz",),
        files={
            "cifar-10-binary.tar.gz": (
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
            ),
        },
    ),
    "tiny_imagenet": Source(
        folder="tiny-imagenet-200",
        mirrors=("https://cs231n.stanford.edu", "http://cs231n.stanford.edu"),
        files={
            "tiny-imagenet-200.zip": (
                "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"
            ),
        },
    ),
}
"""The public image sets and the hashes of their files as published."""


def fetch(
    name: str,
    root: Path,
    *,
    registry: Mapping[str, Source] | None = None,
    progressbar: bool = True,
) -> Path:
    """Downloads an image set into a folder under `root`.

    Files are fetched and unpacked in a temporary folder beside their destination and
    moved once they are complete, so an interrupted call leaves nothing behind.

    Args:
        name: A name in the registry.
        root: The data root; made if it does not exist.
        registry: Where the sets are published; `REGISTRY` if None.
        progressbar: Whether to show the progress of each file on standard error.

    Returns:
        The set's folder.

    Raises:
        ConnectionError: No mirror delivered a file.
        FileExistsError: An incomplete folder of an archived set is in the way.
        ValueError: A file has another hash than published, or an archive is malformed
            or reaches outside its folder.
    """
    source = (REGISTRY if registry is None else registry)[name]
    folder = root / source.folder
    archived = any(file.endswith(_ARCHIVES) for file in source.files)
    if archived and folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{name}: {folder} is there but incomplete, and a download would replace "
            "it: move it away first."
        )
    root.mkdir(parents=True, exist_ok=True)
    _sweep_stale(root)
    with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as scratch:
        paths = [
            _download(source.mirrors, file, sha256, Path(scratch), progressbar)
            for file, sha256 in source.files.items()
            if not (folder / file).is_file()
        ]
        if archived:
            unpacked = Path(scratch) / "unpacked"
            for path in paths:
                _unpack(path, unpacked)
            if not (unpacked / source.folder).is_dir():
                raise ValueError(
                    f"{paths[0].name} holds no folder {source.folder}: it is not the "
                    f"published archive of {name}; get the files by hand."
                )
            (unpacked / source.folder).replace(folder)
        else:
            folder.mkdir(exist_ok=True)
            for path in paths:
                path.replace(folder / path.name)
    return folder


def _sweep_stale(root: Path) -> None:
    """Removes what a killed download left, once it has been still for an hour."""
    for scratch in root.glob(".fetch-*"):
        newest = max(
            (path.stat().st_mtime for path in [scratch, *scratch.rglob("*")]),
            default=0.0,
        )
        if time.time() - newest > 3600:
            shutil.rmtree(scratch, ignore_errors=True)


def _download(
    mirrors: tuple[str, ...],
    file: str,
    sha256: str,
    folder: Path,
    progressbar: bool,
) -> Path:
    """Fetches one file into `folder` from the first mirror that delivers it."""
    failure: Exception = ConnectionError(f"{file} has no mirror: name one.")
    for mirror in mirrors:
        url = f"{mirror}/{file}"
        downloader = pooch.HTTPDownloader(progressbar=progressbar, timeout=TIMEOUT)
        try:
            pooch.retrieve(
                url,
                known_hash=f"sha256:{sha256}",
                fname=file,
                path=folder,
                # pooch's own class, whose parameters have other names
                downloader=downloader,  # pyright: ignore[reportArgumentType]
            )
        except RequestException as error:
            told = " ".join(str(error).split())
            failure = ConnectionError(
                f"{url} could not be fetched ({told}): check the network, or get the "
                f"file by hand and name its folder as data_dir or in "
                f"{ENVIRONMENT_VARIABLE}."
            )
        except ValueError:
            failure = ValueError(
                f"{url} delivered a file whose SHA-256 is not {sha256}, so it was "
                f"discarded: try again, or get the file by hand and name its folder as "
                f"data_dir or in {ENVIRONMENT_VARIABLE}."
            )
        else:
            return folder / file
    raise failure


def _unpack(path: Path, folder: Path) -> None:
    """Unpacks an archive into `folder`; refuses entries that would leave it."""
    try:
        if path.name.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                _check_entries(archive.namelist())
                archive.extractall(folder)
        else:
            with tarfile.open(path, "r:gz") as archive:
                _check_entries(archive.getnames())
                archive.extractall(folder, filter="data")
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        gzip.BadGzipFile,
        ValueError,
    ) as error:
        raise ValueError(
            f"{path.name} was not unpacked ({error}): it is not the published archive; "
            "get the files by hand."
        ) from error


def _check_entries(entries: list[str]) -> None:
    # Both libraries would quietly move an absolute entry into the folder; a published
    # archive has none, so this one is something else.
    for entry in entries:
        path = PurePosixPath(entry.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"entry {entry[:60]!r} leaves the folder")
