"""Small files in the original formats, made here byte by byte."""

import gzip
import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ("n01234567", "n98765430")


def idx_images(images):
    return struct.pack(">IIII", 0x803, *images.shape) + images.tobytes()


def idx_labels(labels):
    return struct.pack(">II", 0x801, len(labels)) + bytes(labels)


def mnist_arrays(seed=0, num_train=6, num_test=4):
    rng = np.random.default_rng(seed)
    train = rng.integers(0, 256, (num_train, 28, 28), dtype=np.uint8)
    test = rng.integers(0, 256, (num_test, 28, 28), dtype=np.uint8)
    return train, [i % 10 for i in range(num_train)], test, list(range(num_test))


def mnist_files(*, zipped=True, **kwargs):
    train, labels_train, test, labels_test = mnist_arrays(**kwargs)
    files = {
        "train-images-idx3-ubyte": idx_images(train),
        "train-labels-idx1-ubyte": idx_labels(labels_train),
        "t10k-images-idx3-ubyte": idx_images(test),
        "t10k-labels-idx1-ubyte": idx_labels(labels_test),
    }
    if not zipped:
        return files
    return {f"{k}.gz": gzip.compress(v, mtime=0) for k, v in files.items()}


def cifar_record(label, image):
    """One record of an (h, w, c) image, plane after plane, row after row."""
    return bytes([label]) + b"".join(image[:, :, c].tobytes() for c in range(3))


def cifar_images(seed, num):
    shape = (num, 32, 32, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def cifar_files(num=2):
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    return {
        name: b"".join(
            cifar_record((seed * num + i) % 10, image)
            for i, image in enumerate(cifar_images(seed, num))
        )
        for seed, name in enumerate(names)
    }


def jpeg(seed=0, *, size=(64, 64), mode="RGB"):
    """A smooth picture, so that it compresses to few bytes."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size).convert(mode)
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=80)
    return out.getvalue()


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def tiny_files(num_train=3, num_val=4):
    files = {
        "wnids.txt": "\n".join(WNIDS).encode() + b"\n",
        "words.txt": b"n98765430\tsecond thing\nn01234567\tfirst thing\n",
    }
    for c, wnid in enumerate(WNIDS):
        for i in range(num_train):
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg(10 * c + i)
    lines = []
    for i in range(num_val):
        files[f"val/images/val_{i}.JPEG"] = jpeg(100 + i)
        lines.append(f"val_{i}.JPEG\t{WNIDS[i % 2]}\t0\t1\t62\t63\n")
    files["val/val_annotations.txt"] = "".join(lines).encode()
    return files


def write(folder: Path, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
