"""Image sets: `load("mnist", num_train=100, key=...)`."""

from ntk_privacy.data.dataset import Dataset, load, load_raw
from ntk_privacy.data.raw import Raw

__all__ = ["Dataset", "Raw", "load", "load_raw"]
