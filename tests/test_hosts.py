"""What several hosts agree on."""

import jax
import numpy as np
import pytest

from ntk_privacy import hosts


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
