"""What `auto` makes of its parts: which images it keeps, and what it says of them."""

import dataclasses

import jax
import numpy as np
import pytest

from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import algebraic, auto, evidence, kkt, polishing
from ntk_privacy.reconstruction.result import Reconstruction, uncertain
from ntk_privacy.reconstruction.verdict import Verdict

WORD = Verdict("nothing found", "Too little to tell from a fit.")


@pytest.fixture
def known():
    """Evidence whose weights nothing here looks at."""
    weights = {"Dense_0": np.zeros((3, 3), np.float32)}
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
