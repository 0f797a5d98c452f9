"""The sentence: counts as they are, and never that anything is safe."""

import itertools

import numpy as np
import pytest

from ntk_privacy.auditing import statement
from ntk_privacy.auditing.attack import Attacked
from ntk_privacy.auditing.distilled_sets import Decoded
from ntk_privacy.auditing.statement import Copies, Counts
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import Evidence, Reconstruction
from ntk_privacy.reconstruction.result import uncertain
from ntk_privacy.reconstruction.verdict import Verdict


def _attacked(word="exact"):
    found = Reconstruction(
        images=np.zeros((0, 2, 2, 1)),
        duals=np.zeros((1, 0, 1)),
        losses=np.zeros(0),
        verdict=Verdict(word, "It is so."),
        sources=(),
        **uncertain(0),
    )
    net = MLP((2,))
    known = Evidence(network=net, params_t={}, params_0={}, image_shape=(2, 2, 1))
    return Attacked(found, known, ("reading",), ())


def test_where_nothing_was_tried_nothing_is_said_to_be_found():
    known = Evidence(network=MLP((2,)), params_t={}, image_shape=(2, 2, 1))
    blind = _attacked("nothing found")._replace(evidence=known, tried=())
    found = statement.state(blind, Counts(0, 0, None, 3, 0, 0))
    assert found.sentence.startswith("Nothing was tried on these weights")
    assert statement.NOTHING not in found.sentence
    assert found.word == "not attacked"
    assert "weights before training" in found.remedies[0]


def test_a_search_contradicts_no_assumption_of_exact_readers():
    counts = Counts(0, 0, None)
    exact = _attacked("assumptions do not hold")
    told = statement.state(exact, counts).contradicted[0]
    assert told.startswith("At least one of these does not hold")
    searched = exact._replace(found=exact.found._replace(sources=("kkt",)))
    assert not statement.state(searched, counts).contradicted


def test_no_more_images_are_told_than_there_are():
    found = statement.state(_attacked("approximate"), Counts(29, 0, 16))
    assert found.sentence.startswith("16 images were estimated")


def test_certain_images_in_other_units_are_not_denied():
    counts = Counts(5, 5, 5, 5, 0, 0, up_to_brightness=5)
    found = statement.state(_attacked("exact"), counts)
    assert "none of the" not in found.sentence
    assert "5 of the 5 given ones match them" in found.sentence


@pytest.mark.parametrize(
    ("word", "counts", "sentence", "told"),
    [
        (
            "exact",
            Counts(18, 16, 20, 20, 18, 16),
            "18 of 20 training images can be computed from these weights; 16 are "
            "certain.",
            "certain",
        ),
        (
            "exact",
            Counts(5, 5, 5, 3, 0, 0),
            "5 images can be computed from these weights with certainty, but none of "
            "the 3 given ones is among them.",
            "certain",
        ),
        (
            "exact",
            Counts(5, 5, 5, 3, 3, 3),
            "3 of 3 training images can be computed from these weights; 3 are certain. "
            "2 further images that are certain are not among those given.",
            "certain",
        ),
        (
            "approximate",
            Counts(8, 0, 8, 8, 2, 0),
            "2 of 8 training images can be computed from these weights; none is "
            "certain.",
            "likely",
        ),
        (
            "exact",
            Counts(6, 4, 6),
            "4 of 6 training images can be computed from these weights with certainty. "
            "2 more are estimates.",
            "certain",
        ),
        (
            "approximate",
            Counts(6, 0, 6),
            "6 images were estimated from these weights; none is certain.",
            "likely",
        ),
        (
            "assumptions do not hold",
            Counts(6, 0, None),
            "No image was computed from these weights: nothing found by these attacks.",
            "nothing found",
        ),
        (
            "approximate",
            Counts(8, 0, 8, 8, 0, 0, 7),
            "7 of 8 training images can be computed from these weights up to "
            "brightness and contrast; none is certain.",
            "likely",
        ),
        (
            "approximate",
            Counts(8, 0, 8, 8, 0, 0),
            "None of the 8 given images was computed from these weights: nothing found "
            "by these attacks.",
            "nothing found",
        ),
    ],
)
def test_the_sentence_says_what_was_counted(word, counts, sentence, told):
    found = statement.state(_attacked(word), counts)
    assert found.sentence == str(found) == sentence
    assert found.word == told


def test_assumptions_go_where_the_evidence_puts_them():
    none = Counts(0, 0, None)
    assert statement.state(_attacked("exact"), none).supported
    against = statement.state(_attacked("assumptions do not hold"), none)
    assert against.contradicted
    assert not against.supported
    open_ = statement.state(_attacked("nothing found"), none)
    assert not open_.supported
    assert not open_.contradicted
    assert len(open_.assumed) > len(against.assumed)


def test_nothing_is_ever_called_safe():
    words = ("exact", "approximate", "assumptions do not hold", "nothing found")
    numbers = itertools.product(words, (0, 1, 3), (0, 2), (None, 4), (0, 1))
    for word, images, certified, private, copies in numbers:
        count = None if private is None else 0
        counts = Counts(images + certified, certified, None, private, count, count)
        found = statement.state(_attacked(word), counts, Copies(5, copies))
        told = repr(found).lower()
        assert "safe" not in told
        assert "no leak" not in told
        assert found.remedies
        assert found.not_tried
        if found.word == "nothing found":
            assert statement.NOTHING in found.sentence


def test_what_a_network_gives_away_beyond_copies_comes_first():
    beyond = statement.state(None, None, Copies(10, 1, Decoded(10, 2, 31.0)))
    assert beyond.sentence.startswith("2 private images come back from a network")
    assert beyond.word == "likely"
    none = statement.state(None, None, Copies(10, 0, Decoded(0, 0, -np.inf)))
    assert none.word == "nothing found"
    assert any("it shows nothing" in text for text in none.rests_on)


def test_a_distilled_set_alone_is_told_too():
    assert statement.state(None, None, Copies(10, 0)).word == "nothing found"
    one = statement.state(None, None, Copies(10, 1))
    assert one.sentence == "1 of 10 distilled images is a copy of private images."
