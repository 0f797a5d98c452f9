"""Writes 16 digits to train on, and 160 that are not, as PNG in folders of classes.

    python -m examples.make_images runs/images

The folder gets `images/CLASS/*.png` and `unseen/CLASS/*.png`, 8x8 pixels, grey.
"""

import pathlib
import sys

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

CLASSES = (0, 1, 2, 3)
NUM_IMAGES, NUM_UNSEEN = 4, 40  # of each class


def make(folder: str | pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Writes the pictures; returns the 16 of `images`, in [0, 1], and their classes."""
    digits, found = load_digits(), []
    for row, name in enumerate(CLASSES):
        chosen = digits.images[digits.target == name]
        pixels = np.round(chosen * 255 / 16).astype(np.uint8)
        for i, picture in enumerate(pixels[: NUM_IMAGES + NUM_UNSEEN]):
            part = "images" if i < NUM_IMAGES else "unseen"
            path = pathlib.Path(folder, part, str(name), f"{i:03d}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
            if part == "images":
                found.append((picture, row))
    pictures, classes = zip(*found, strict=True)
    intensities = np.stack(pictures)[..., None].astype(np.float32) / 255
    return intensities, np.asarray(classes)


if __name__ == "__main__":
    make(sys.argv[1])
    print(f"images and unseen are in {sys.argv[1]}")
