"""The examples in the docstrings of victims, evidence, attacks and folders run."""

import doctest

import pytest

from ntk_privacy import _versions, resume
from ntk_privacy.data import choice
from ntk_privacy.evaluation import identification, limits
from ntk_privacy.models import adapter as models_adapter
from ntk_privacy.reconstruction import (
    adapter,
    adapter_factors,
    adapter_replay,
    attacker,
    auto,
    evidence,
    heads,
    known_trunk,
    shared_labels,
    victims,
)
from ntk_privacy.reports import loops, made_set, reconstructions, workdir
from ntk_privacy.training import adapter_victim, margin_victim, victim


@pytest.mark.parametrize(
    "module",
    [
        *(resume, evidence, victim, margin_victim, reconstructions),
        *(attacker, choice, limits, loops, made_set, victims, workdir),
        *(adapter, adapter_factors, adapter_replay, adapter_victim, identification),
        *(heads, known_trunk, models_adapter, shared_labels),
        # The README's cell is the same, and quick tests run it.
        pytest.param(auto, marks=pytest.mark.slow),
    ],
    ids=lambda module: module.__name__,
)
def test_the_examples_print_what_they_say(module):
    with _versions.enable_x64(False):
        failed, attempted = doctest.testmod(module)
    assert attempted
    assert failed == 0
