"""The real files, where this machine has them."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real files; skips without one, fails if it is required."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("NTK_PRIVACY_DATA") or beside)
    if not (folder / "mnist").is_dir():
        reason = (
            f"no real image sets in {folder}: name their folder in NTK_PRIVACY_DATA"
        )
        if os.environ.get("NTK_PRIVACY_REQUIRE_DATA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
