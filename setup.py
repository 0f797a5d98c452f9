"""Binaries are a folder beside the package, and a part of it once installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ntk_privacy*"]), "ntk_privacy.experiments"],
    package_dir={"ntk_privacy.experiments": "experiments"},
)
