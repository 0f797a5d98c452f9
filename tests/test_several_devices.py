"""Searches that share their data over devices end as on one, and need less of each."""

import pytest
import several
import shared_searches

CODE = "import sys, shared_searches; shared_searches.main(*sys.argv[1:])"
# Compiled in haste: it is the results that are compared.
ON_HOSTS = """
import shared_searches
jax.config.update("jax_disable_most_optimizations", True)
shared_searches.main(*sys.argv[4:])
"""


def _check(told, names, most):
    rows = [line.split() for line in told.splitlines()]
    assert [row[0] for row in rows] == list(names)
    for name, _, gap, _, of_one, of_all in rows:
        assert float(gap) <= 1e-5, (name, gap)
        assert int(of_all) < most * int(of_one), (name, of_one, of_all)


def test_eight_devices_share_the_targets_of_rkip():
    _check(several.on_devices(CODE, "24", "rkip"), ["rkip"], 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("name", shared_searches.SEARCHES)
def test_eight_devices_share_every_search(name):
    # Beside many candidates the weights, which every device holds, take little.
    size = "200" if name == "kkt" else "40"
    _check(several.on_devices(CODE, size, name), [name], 0.6)


@pytest.mark.slow
def test_two_hosts_share_every_search():
    for told in several.on_hosts(ON_HOSTS, "12"):
        _check(told, shared_searches.SEARCHES, 0.95)
