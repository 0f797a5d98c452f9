"""What several hosts agree on, and examples of it and of shared rows."""

import doctest

import jax
import numpy as np
import pytest

from ntk_privacy import _versions, hosts, sharding


@pytest.mark.parametrize("module", [hosts, sharding], ids=lambda m: m.__name__)
def test_the_examples_print_what_they_say(module):
    found = doctest.DocTestFinder().find(module, module.__name__)
    shown = {test.name.rpartition(".")[2] for test in found if test.examples}
    functions = {n for n in module.__all__ if callable(getattr(module, n))}
    assert functions <= shown
    with _versions.enable_x64(False):
        assert doctest.testmod(module).failed == 0


def test_what_one_host_cannot_do_no_host_does(monkeypatch):
    sent = []

    def gather(codes):
        sent.append(codes)
        return np.stack([codes, sent[0]])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", gather)
    with hosts.all_fail_together():
        pass
    sent.clear()
    with pytest.raises(OSError, match="full"), hosts.all_fail_together():
        raise OSError("the disk is full")
    # A host that has done its part hears of it.
    message = "Host 1 stopped: the disk is full"
    with pytest.raises(ValueError, match=message), hosts.all_fail_together():
        pass
