"""What of dense algebra is not tested where it is used."""

import threadpoolctl

from ntk_privacy import _linalg
from ntk_privacy.reconstruction import closed_units


def _threads():
    return {
        told["num_threads"]
        for told in threadpoolctl.threadpool_info()
        if told["user_api"] == "blas"
    }


def test_blas_has_one_thread_within_and_as_many_as_before_after_it():
    with threadpoolctl.threadpool_limits(limits=2, user_api="blas"):
        before = _threads()
        assert _linalg.on_one_thread(_threads)() == {1}
        assert _threads() == before


def test_what_is_wrapped_is_still_called_by_its_name():
    assert closed_units.reconstruct.__name__ == "reconstruct"
    assert "Raises:" in closed_units.reconstruct.__doc__
