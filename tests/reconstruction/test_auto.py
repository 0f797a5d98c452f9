"""What `auto` makes of its parts: which images it keeps, and what it says of them."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import (
    algebraic,
    auto,
    closed_units,
    evidence,
    kkt,
    polishing,
)
from ntk_privacy.reconstruction.result import Reconstruction, uncertain
from ntk_privacy.reconstruction.verdict import Verdict

WORD = Verdict("nothing found", "Too little to tell from a fit.")


@pytest.fixture
def known():
    """Evidence whose weights nothing here looks at."""
    weights = {"Dense_0": jnp.zeros((3, 3))}
    return evidence.Evidence(
        network=MLP((3,)),
        params_0=weights,
        params_t=weights,
        image_shape=(1, 3, 1),
        bounds=(-1.0, 1.0),
        num_images=2,
    )


@pytest.fixture
def parts(monkeypatch):
    """Nothing is decoded, five candidates show three images, a polish adds one half."""
    a, b, c = np.eye(3).reshape(3, 1, 3, 1)
    images = np.stack([a, 1.1 * a, 0.1 * b, c, -a])
    duals = np.asarray([1.0, 0.5, 1.0, -2.0, 0.3]).reshape(1, 5, 1)
    asked = {}

    def refuse(*_, **__):
        raise ValueError("depth 1; give num_images.")

    def search(known, config, *, key, stage):
        asked["search"] = known.num_images
        return Reconstruction(
            images, duals, np.ones(9), WORD, ("kkt",) * 5, **uncertain(5)
        )

    def polish(known, images, duals, *, points, replays, key, stage):
        asked.update(points=points, replays=replays, polished=len(images))
        found = kkt.Reconstruction(
            images=images + 0.5,
            duals=np.concatenate([duals, duals]),
            losses=np.ones(2),
            state=None,
            nonfinite=False,
            verdict=WORD,
            contributions=np.ones(len(images)),
        )
        return polishing.Polished(found, (0.4, 0.3))

    monkeypatch.setattr(algebraic, "reconstruct", refuse)
    monkeypatch.setattr(kkt, "from_evidence", search)
    monkeypatch.setattr(polishing, "polish", polish)
    return asked


def test_where_features_move_the_strongest_images_are_polished(known, parts):
    found = auto.reconstruct(known, key=jax.random.key(0))
    assert parts == {
        "search": 2,
        "points": (0.0, 0.5, 1.0),
        "replays": 2,
        "polished": 2,
    }
    # The two strongest, merged with their likes, then those that are neither.
    np.testing.assert_allclose(found.images[:, 0, :, 0].argmax(1), [2, 0, 1, 1])
    np.testing.assert_allclose(found.duals[0, :, 0], [-4.0, 3.0, 1.0, 0.3])
    assert found.sources == ("kkt, polished",) * 2 + ("kkt",) * 2
    assert found.replay_misses == (0.4, 0.3)
    for name in ("sources", "certified", "residuals", "errors", "contributions"):
        assert len(getattr(found, name)) == len(found.images) == 4, name
    assert found.message == "not decoded (depth 1; give num_images.)"
    assert found.verdict.reason.endswith(
        "fit; not decoded (depth 1; give num_images.)."
    )


def test_a_linearized_network_is_left_as_searched(known, parts):
    straight = dataclasses.replace(known, dynamics="linearized")
    found = auto.reconstruct(straight, key=jax.random.key(0))
    assert "polished" not in parts
    assert found.sources == ("kkt",) * 5
    with pytest.raises(ValueError, match="points='both': the gradients of a linear"):
        auto.reconstruct(straight, auto.Config(points="both"), key=jax.random.key(0))


def test_a_number_of_images_that_shows_nowhere_is_asked_for(known):
    """One hidden layer: nothing is decoded nor counted, and a search needs a number."""
    net = MLP((4,))
    weights = [
        net.init_params(jax.random.key(i), (1, 3, 1), np.float32) for i in range(2)
    ]
    unknown = dataclasses.replace(
        known, network=net, params_0=weights[0], params_t=weights[1], num_images=None
    )
    with pytest.raises(ValueError, match="num_images is not told: tell it, or give"):
        auto.reconstruct(unknown, key=jax.random.key(0))


def test_another_network_is_sent_to_the_search(known):
    other = dataclasses.replace(known, network=lambda params, x: x)
    with pytest.raises(ValueError, match="auto takes an MLP: for other networks use"):
        auto.reconstruct(other, key=jax.random.key(0))


def _read(certified, word):
    """What closed units give: two images, of which these are certified."""
    images = np.asarray([[[[7.0], [0], [0]]], [[[0.0], [5], [0]]]])
    return Reconstruction(
        images=images,
        duals=np.zeros((1, 2, 1)),
        losses=np.zeros(0),
        verdict=Verdict(word, "Closed.", num_certified=sum(certified)),
        sources=("closed units",) * 2,
        certified=np.asarray(certified),
        residuals=np.zeros(2),
        errors=np.where(certified, 1e-3, np.inf),
        estimated_num_images=2,
        message="closed told.",
    )


@pytest.fixture
def units(monkeypatch, known, parts):
    """Evidence with a first layer, and what gives its closed units."""
    kernels = [jnp.zeros((3, 3)), jnp.ones((3, 3))]
    weights = [{"Dense_0": {"kernel": k, "bias": k[0]}} for k in kernels]
    known = dataclasses.replace(known, params_0=weights[0], params_t=weights[1])
    searched = kkt.from_evidence

    def search(known, config, *, key, starts=None, stage):
        parts["starts"], parts["auxiliary"] = starts, known.auxiliary
        return searched(known, config, key=key, stage=stage)

    monkeypatch.setattr(kkt, "from_evidence", search)

    def give(*certified, word="exact"):
        def read(known, *, key, stage):
            parts["read"] = known.dynamics
            return _read(certified, word)

        monkeypatch.setattr(closed_units, "from_evidence", read)

    return known, give


def test_images_that_closed_units_certify_are_all_there_is_to_do(units, parts):
    known, give = units
    give(True, True)
    found = auto.reconstruct(known, key=jax.random.key(0))
    assert parts == {"read": "standard"}
    assert found.sources == ("closed units",) * 2
    assert found.certified.all()


@pytest.mark.parametrize("word", ["approximate", "nothing found"])
def test_images_that_they_do_not_certify_are_starts(units, parts, word):
    known, give = units
    give(False, False, word=word)
    found = auto.reconstruct(known, key=jax.random.key(0))
    if word == "nothing found":
        assert parts["starts"] is None
    else:
        np.testing.assert_array_equal(parts["starts"], _read((0, 0), word).images)
    assert not found.certified.any()
    assert found.message.endswith("; closed units: closed told.")


@pytest.mark.parametrize("explained", [0.99, 0.9995])
def test_a_whole_set_that_explains_the_change_is_not_searched_on(
    units, parts, monkeypatch, explained
):
    known, _ = units

    def read(*_, **__):
        found = _read((False, False), "approximate")
        return found._replace(verdict=found.verdict._replace(explained=explained))

    monkeypatch.setattr(closed_units, "from_evidence", read)
    found = auto.reconstruct(known, key=jax.random.key(0))
    if explained > auto._EXPLAINED:
        assert "search" not in parts
        np.testing.assert_array_equal(found.images, _read((0, 0), "").images)
    else:
        assert "search" in parts


def test_a_certified_image_stays_as_it_was_read(units, parts):
    known, give = units
    give(True, False)
    found = auto.reconstruct(known, key=jax.random.key(0))
    assert "polished" in parts
    where = found.sources.index("closed units")
    np.testing.assert_array_equal(found.images[where], _read((1, 0), "").images[0])
    assert found.certified.tolist() == [i == where for i in range(len(found.images))]
    assert (found.errors[where], found.verdict.word) == (1e-3, "exact")


def test_a_linearized_network_is_decoded_first_and_one_gradient_is_not(units, parts):
    known, give = units
    give(True, True)
    straight = dataclasses.replace(known, dynamics="linearized")
    auto.reconstruct(straight, key=jax.random.key(0))
    assert "read" not in parts
    auto.reconstruct(
        dataclasses.replace(straight, is_gradient=True), key=jax.random.key(0)
    )
    assert parts["read"] == "linearized"


def test_a_training_is_replayed_on_squares_alone(known, parts):
    other = dataclasses.replace(known, objective="logistic")
    auto.reconstruct(other, key=jax.random.key(0))
    assert parts["replays"] == 0


@pytest.mark.parametrize("certified", [True, False])
def test_what_decoding_certifies_is_kept_though_its_gap_is_faint(
    known, parts, monkeypatch, certified
):
    decoded = types.SimpleNamespace(
        estimated_num_images=2,
        rank_gap=30.0,
        accepted=np.array([certified, False]),
        certified=np.array([certified, False]),
        message="faint.",
    )
    monkeypatch.setattr(algebraic, "decode", lambda *_, **__: decoded)
    filled = _read((1, 0), "exact")
    monkeypatch.setattr(auto, "_filled", lambda _attack, _decoded: filled)
    found = auto.reconstruct(known, key=jax.random.key(0))
    assert (found is filled) == certified
    assert ("search" in parts) != certified
