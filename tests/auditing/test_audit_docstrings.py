"""The examples in the docstrings of audits and of their pages run."""

import doctest

import pytest

from ntk_privacy import _versions
from ntk_privacy.auditing import (
    auditor,
    controls,
    distilled_sets,
    given_images,
    inputs,
    membership,
    statement,
    units,
)
from ntk_privacy.reports import audit_page, shown


@pytest.mark.parametrize(
    "module",
    [
        *(controls, distilled_sets, given_images, inputs, membership, statement, units),
        *(audit_page, shown),
        pytest.param(auditor, marks=pytest.mark.slow),
    ],
    ids=lambda module: module.__name__,
)
def test_the_examples_print_what_they_say(module):
    with _versions.enable_x64(False):
        failed, attempted = doctest.testmod(module)
    assert attempted
    assert failed == 0
