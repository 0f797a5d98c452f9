"""Downloads from a server on the loopback interface."""

import gzip
import hashlib
import io
import os
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from handmade_files import cifar_files, mnist_arrays, mnist_files, tiny_files

from ntk_privacy import data
from ntk_privacy.data import fetch, mnist


class Server(ThreadingHTTPServer):
    """Serves `files`; announces `cut` bytes more than it sends."""

    files: dict
    requested: list
    cut = 0


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requested.append(self.path)
        content = self.server.files.get(self.path.lstrip("/"))
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + self.server.cut))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as running:
        running.files, running.requested = {}, []
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def publish(server, monkeypatch):
    """Returns a function that serves files and enters them in the registry."""

    def serve(name, files, *, extra_mirrors=()):
        server.files.update(files)
        mirror = f"http://127.0.0.1:{server.server_port}"
        source = fetch.Source(
            folder=fetch.REGISTRY[name].folder,
            mirrors=(*extra_mirrors, mirror),
            files={k: hashlib.sha256(v).hexdigest() for k, v in files.items()},
        )
        monkeypatch.setattr(fetch, "REGISTRY", {name: source})

    return serve


def tar(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def cifar_archive(**kwargs):
    files = cifar_files(**kwargs)
    return tar({f"cifar-10-batches-bin/{k}": v for k, v in files.items()})


def left_in(folder):
    return sorted(path.name for path in folder.rglob("*"))


def fails(error_type, match, name, root):
    with pytest.raises(error_type, match=match) as caught:
        data.load(name, data_dir=root, download=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_is_fetched_unless_asked(server, publish, tmp_path):
    publish("mnist", mnist_files())
    with pytest.raises(FileNotFoundError, match="download=True"):
        data.load("mnist", data_dir=tmp_path)
    assert server.requested == []
    assert left_in(tmp_path) == []


def test_mnist_is_fetched_once_and_with_progress(server, publish, tmp_path, capfd):
    publish("mnist", mnist_files())
    raw = data.load_raw("mnist", tmp_path / "new", download=True)
    np.testing.assert_array_equal(raw.images_train[..., 0], mnist_arrays()[0])
    assert left_in(tmp_path / "new" / "mnist") == sorted(mnist_files())
    assert left_in(tmp_path) == sorted(["new", "mnist", *mnist_files()])
    assert "100%" in capfd.readouterr().err
    assert len(server.requested) == 4
    data.load_raw("mnist", tmp_path / "new", download=True)
    assert len(server.requested) == 4


def test_only_the_missing_file_is_fetched(server, publish, tmp_path):
    publish("mnist", mnist_files())
    data.load_raw("mnist", tmp_path, download=True)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    server.requested.clear()
    data.load_raw("mnist", tmp_path, download=True)
    assert server.requested == ["/t10k-labels-idx1-ubyte.gz"]


def test_next_mirror_is_asked_when_one_fails(server, publish, tmp_path):
    absent = f"http://127.0.0.1:{server.server_port}/absent"
    publish("mnist", mnist_files(), extra_mirrors=(absent,))
    data.load_raw("mnist", tmp_path, download=True)
    assert server.requested[0].startswith("/absent/")
    assert len(server.requested) == 8


def test_cifar_archive_is_fetched_and_unpacked(publish, tmp_path):
    publish("cifar10", {"cifar-10-binary.tar.gz": cifar_archive(num=2)})
    raw = data.load_raw("cifar10", tmp_path, download=True)
    assert raw.images_train.shape == (10, 32, 32, 3)
    assert left_in(tmp_path) == sorted(["cifar-10-batches-bin", *cifar_files()])


def test_tiny_imagenet_archive_is_fetched_and_unpacked(publish, tmp_path):
    files = {f"tiny-imagenet-200/{k}": v for k, v in tiny_files().items()}
    publish("tiny_imagenet", {"tiny-imagenet-200.zip": zipped(files)})
    raw = data.load_raw("tiny_imagenet", tmp_path, download=True)
    assert raw.images_train.shape == (6, 64, 64, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-imagenet-200"]


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_wrong_hash_is_told_and_nothing_kept(name, server, publish, tmp_path):
    files = mnist_files() if name == "mnist" else {"cifar-10-binary.tar.gz": b"right"}
    publish(name, files)
    changed = list(files)[-1]
    server.files[changed] = files[changed] + b"x"
    told = fails(ValueError, "whose SHA-256 is not", name, tmp_path)
    assert changed in told
    assert left_in(tmp_path) == []


def test_broken_transfer_is_told_and_nothing_kept(server, publish, tmp_path):
    publish("cifar10", {"cifar-10-binary.tar.gz": cifar_archive()})
    server.cut = 1000
    fails(ConnectionError, "could not be fetched", "cifar10", tmp_path)
    assert left_in(tmp_path) == []


def test_absent_file_is_told(server, publish, tmp_path):
    publish("mnist", mnist_files())
    server.files.clear()
    told = fails(ConnectionError, "404", "mnist", tmp_path)
    assert "NTK_PRIVACY_DATA" in told
    assert left_in(tmp_path) == []


def test_absent_server_is_told(publish, server, tmp_path, monkeypatch):
    publish("mnist", mnist_files())
    with Server(("127.0.0.1", 0), Handler) as other:
        free_port = other.server_port
    source = fetch.REGISTRY["mnist"]._replace(
        mirrors=(f"http://127.0.0.1:{free_port}",)
    )
    monkeypatch.setattr(fetch, "REGISTRY", {"mnist": source})
    fails(ConnectionError, "check the network", "mnist", tmp_path)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("entry", ["../evil", "/tmp/evil", "a/../../evil"])
@pytest.mark.parametrize("name", ["cifar10", "tiny_imagenet"])
def test_archive_that_leaves_its_folder_is_refused(name, entry, publish, tmp_path):
    entry = entry.replace("/tmp", str(tmp_path))
    make = tar if name == "cifar10" else zipped
    (file,) = fetch.REGISTRY[name].files
    publish(name, {file: make({entry: b"evil", "folder/x": b""})})
    fails(ValueError, "was not unpacked", name, tmp_path / "root")
    assert left_in(tmp_path) == ["root"]


def test_archive_with_an_outward_link_is_refused(publish, tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        entry = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    publish("cifar10", {"cifar-10-binary.tar.gz": out.getvalue()})
    fails(ValueError, "was not unpacked", "cifar10", tmp_path)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cifar10", b"no archive"),
        ("cifar10", b""),
        ("cifar10", gzip.compress(b"x" * 600)),
        ("cifar10", cifar_archive()[:3000]),
        ("cifar10", tar({"elsewhere/test_batch.bin": b"x"})),
        ("tiny_imagenet", b"no archive"),
        ("tiny_imagenet", zipped({"elsewhere/wnids.txt": b"x"})),
        ("tiny_imagenet", zipped({"tiny-imagenet-200/wnids.txt": b"x" * 99})[:-30]),
    ],
    # Archives hold the time of day, which would be in the names of the tests.
    ids=[
        *("text", "empty", "gzip of no tar", "cut tar", "foreign tar"),
        *("text for zip", "foreign zip", "cut zip"),
    ],
)
def test_malformed_archive_is_told_and_nothing_kept(name, content, publish, tmp_path):
    (file,) = fetch.REGISTRY[name].files
    publish(name, {file: content})
    fails(ValueError, "the published archive", name, tmp_path)
    assert left_in(tmp_path) == []


def test_incomplete_folder_is_not_replaced(server, publish, tmp_path):
    publish("cifar10", {"cifar-10-binary.tar.gz": cifar_archive()})
    mine = tmp_path / "cifar-10-batches-bin" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("keep")
    fails(FileExistsError, "move it away", "cifar10", tmp_path)
    assert mine.read_text() == "keep"
    assert server.requested == []


def test_an_interrupted_fetch_leaves_nothing(publish, tmp_path, monkeypatch):
    publish("cifar10", {"cifar-10-binary.tar.gz": cifar_archive()})

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_unpack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.load("cifar10", data_dir=tmp_path, download=True)
    assert left_in(tmp_path) == []


def test_what_a_killed_fetch_left_is_swept_once_it_is_old(publish, tmp_path):
    publish("cifar10", {"cifar-10-binary.tar.gz": cifar_archive()})
    for name, age in ((".fetch-old", 7200), (".fetch-new", 60)):
        part = tmp_path / name / "part"
        part.parent.mkdir()
        part.write_bytes(b"half")
        for path in (part, part.parent):
            os.utime(path, (time.time() - age,) * 2)
    data.load("cifar10", data_dir=tmp_path, download=True)
    # The newer one may be another process at work.
    assert [p.name for p in tmp_path.glob(".fetch-*")] == [".fetch-new"]


def test_published_hashes_are_sha256_of_the_files_that_loaders_read():
    assert set(fetch.REGISTRY) == {"mnist", "cifar10", "tiny_imagenet"}
    hashes = [h for s in fetch.REGISTRY.values() for h in s.files.values()]
    assert len(set(hashes)) == 6
    assert all(len(bytes.fromhex(h)) == 32 for h in hashes)
    assert list(fetch.REGISTRY["mnist"].files) == [f"{name}.gz" for name in mnist.FILES]
