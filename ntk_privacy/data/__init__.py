"""Image sets: `load("mnist", num_train=100, key=...)`, `load_set("photos.npz")`."""

from ntk_privacy import _public
from ntk_privacy.data.dataset import ArgumentError, Dataset
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.data.raw import Raw
from ntk_privacy.data.sets import (
    SETS,
    Foretold,
    Set,
    foretold,
    load,
    load_raw,
    load_set,
)

__all__ = [
    "SETS",
    "ArgumentError",
    "Dataset",
    "Foretold",
    "ImageSet",
    "Raw",
    "Set",
    "foretold",
    "load",
    "load_raw",
    "load_set",
]

__dir__ = _public.names(__name__)
