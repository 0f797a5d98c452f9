"""Image sets: `load("mnist", num_train=100, key=...)`."""

from ntk_privacy.data.dataset import ArgumentError, Dataset, load, load_raw
from ntk_privacy.data.raw import Raw

__all__ = ["ArgumentError", "Dataset", "Raw", "load", "load_raw"]
