"""The version that is installed, as the project names it."""

import importlib.metadata

__all__ = ["__version__"]

try:
    __version__ = importlib.metadata.version("ntk_privacy")
except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"
