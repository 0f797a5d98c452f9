"""What tests of the binaries share."""

import pytest

from experiments import _flags

# Their toy sizes are one list for all methods, which none of them reads in full. That
# such flags are refused is tested for every binary in test_flags.py.
_SHARED_SIZES = (
    *("test_distill", "test_distill_condensed", "test_distill_gradients"),
    *("test_poison", "test_evade", "test_compare_attacks"),
)


@pytest.fixture(autouse=True)
def sizes_of_other_methods(request, monkeypatch):
    """Takes flags without effect in files where all tests share their sizes."""
    if request.module.__name__.split(".")[-1] in _SHARED_SIZES:
        monkeypatch.setattr(_flags, "refuse_passed_over", lambda config, given: None)
