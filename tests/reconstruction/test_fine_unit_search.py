"""The finer climb: narrow networks, and what was found stays out of the way."""

import jax
import numpy as np
import pytest
from broken_victims import digits
from odd_training import Recipe, trainer

from ntk_privacy.reconstruction import (
    change_factors,
    fine_unit_search,
    unit_space,
)

N = 8


@pytest.fixture(scope="module")
def narrow():
    """The space of a narrow network, the true u and the true rows of signals."""
    x, y = digits(0, N)
    before, after = trainer(Recipe(rate=0.05), width=64)(0, x, y)
    layers = [jax.tree.map(np.float64, p["Dense_0"]) for p in (before, after)]
    factors = change_factors.factorize(layers[1]["kernel"] - layers[0]["kernel"])
    space = unit_space.make(
        factors,
        tuple(layer["kernel"] for layer in layers),
        tuple(layer["bias"] for layer in layers),
        layers[1]["bias"] - layers[0]["bias"],
    )
    u = x.reshape(N, -1).astype(np.float64) @ (space.left / space.values**2)
    return space, u, np.linalg.inv(u).T


def _alike(a, b):
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    return np.abs(a @ b.T)


def test_random_starts_climb_to_images_of_a_narrow_network(narrow):
    space, u, _ = narrow
    rng = np.random.default_rng(0)
    inverse = unit_space.inverse_gates(space, np.zeros((0, N)))
    starts = rng.standard_normal((128, N))
    starts *= np.where(starts @ space.scale < 0, -1, 1)[:, None]
    rough = fine_unit_search.climb(
        space, starts, inverse, np.zeros((0, N)), key=jax.random.key(0)
    )
    seen = _alike(rough @ space.gates, u @ space.gates)
    there = _alike(starts @ space.gates, u @ space.gates)
    assert np.sum(np.max(seen, axis=0) > 0.95) >= N - 2, np.max(seen, axis=0)
    assert np.sum(np.max(there, axis=0) > 0.95) < N // 2, np.max(there, axis=0)


def test_every_image_is_orthogonal_to_rows_that_were_found(narrow):
    space, _, c = narrow
    found = c[:3]
    starts = np.random.default_rng(1).standard_normal((128, N))
    basis = np.linalg.qr(found.T)[0]
    starts -= starts @ basis @ basis.T
    inverse = unit_space.inverse_gates(space, found)
    rough = fine_unit_search.climb(space, starts, inverse, found, key=jax.random.key(0))
    assert np.max(_alike(rough, found)) < 1e-3


def test_many_images_are_left_to_the_other_climb(narrow):
    space = narrow[0]
    assert fine_unit_search.most_starts(space) >= 64
    many = space._replace(rows=np.zeros((100, 300)))
    assert fine_unit_search.most_starts(many) == 0
