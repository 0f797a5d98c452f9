"""Command line binaries: frozen configs, results in a folder."""
