"""Binaries are a folder beside the package, and a part of it once installed."""

import tempfile

from setuptools import find_packages, setup

# What pip builds of a checkout is not left in it.
with tempfile.TemporaryDirectory() as scratch:
    setup(
        packages=[*find_packages(include=["ntk_privacy*"]), "ntk_privacy.experiments"],
        package_dir={"ntk_privacy.experiments": "experiments"},
        options={"build": {"build_base": scratch}},
    )
