"""Command line binaries: frozen configs, results in a folder."""

from ._interrupt import interrupted as interrupted
