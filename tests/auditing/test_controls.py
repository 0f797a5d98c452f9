"""The control on wrong weights runs what gave the images, and tells what it finds."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import auditing
from ntk_privacy.auditing import attack, controls
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import METHODS, Evidence, Reconstruction, evidence
from ntk_privacy.reconstruction.result import uncertain
from ntk_privacy.reconstruction.verdict import Verdict

SHAPE, N = (4, 4, 1), 3
NET = MLP((32,))
X = np.random.default_rng(0).random((N, *SHAPE))


@pytest.fixture(scope="module")
def weights():
    before = NET.init_params(jax.random.key(0), SHAPE, jnp.float64)
    y = jnp.ones((N, 1))
    slope = jax.grad(lambda p: jnp.mean((NET.apply_fn(p, jnp.asarray(X)) - y) ** 2))
    return before, jax.tree.map(lambda p, g: p - 0.1 * g, before, slope(before))


def _found(images, told):
    n = len(images)
    return Reconstruction(
        images=np.asarray(images),
        duals=np.zeros((1, n, 1)),
        losses=np.zeros(0),
        verdict=Verdict("approximate", told),
        sources=("kkt",) * n,
        **uncertain(n),
    )


def _audit(weights, monkeypatch, search):
    """An audit in which `search` is what `auto` does, and closed units see nothing."""

    def unread(*_, **__):
        raise ValueError("nothing to read")

    before, after = weights
    monkeypatch.setattr(attack.closed_units, "from_evidence", unread)
    auto = dataclasses.replace(METHODS["auto"], run=search)
    monkeypatch.setitem(METHODS, "auto", auto)
    return auditing.audit(after, before=before, network=NET, images=X, num_images=N)


@pytest.mark.parametrize("reads", ["the truth alone", "the truth always", "nothing"])
def test_what_searched_searches_in_wrong_weights_too(weights, monkeypatch, reads):
    seen, loops = [], []

    def search(known, config, *, key, stage):
        first = not seen
        seen.append(known)

        def go(images, done, callback):
            loops.append(callback)
            return images

        kept = X if reads == "the truth always" or first else np.full_like(X, 0.5)
        kept = np.zeros_like(X) if reads == "nothing" else kept
        return _found(stage("fill", kept, go, 1).result, "a search")

    found = _audit(weights, monkeypatch, search)
    assert len(seen) == len(loops) == 2
    kernels = [e.params_0["Dense_0"]["kernel"] for e in seen]
    assert not np.allclose(*kernels)
    np.testing.assert_array_equal(*[np.sort(kernel, axis=1) for kernel in kernels])
    # The change is the true one, of weights that it does not belong to.
    changes = [jax.tree.map(jnp.subtract, e.params_t, e.params_0) for e in seen]
    for a, b in zip(*map(jax.tree.leaves, changes), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    told = found.controls
    assert (told.wrong_weights, told.wrong_weights_told) == (0, "a search")
    both = N if reads == "the truth always" else 0
    assert told.wrong_weights_recovered == both
    noted = [n for n in found.notes if "recovered from wrong weights too" in n]
    assert len(noted) == bool(both)


def test_a_control_that_cannot_be_run_says_so(weights, monkeypatch):
    calls = []

    def search(known, config, *, key, stage):
        calls.append(known)
        if len(calls) > 1:
            raise ValueError("these gates are not to be had.")
        return _found(X, "a search")

    told = _audit(weights, monkeypatch, search).controls
    assert told.wrong_weights is None
    assert told.wrong_weights_told == "Not run: these gates are not to be had."


def test_it_searches_as_long_as_the_attack_may(weights, monkeypatch):
    before, after = weights
    known = Evidence(
        network=NET, params_0=before, params_t=after, image_shape=SHAPE, num_images=N
    )
    steps = []

    def search(known, config, *, key, stage):
        def go(state, done, callback):
            for step in range(1000):
                steps.append(step)
                time.sleep(0.01)
                if callback(step + 1, state, {}):
                    break
            return state

        return _found(stage("fill", X, go, 1000).result, "a search")

    auto = dataclasses.replace(METHODS["auto"], run=search)
    monkeypatch.setitem(METHODS, "auto", auto)
    tried = ("exact decoding of ReLU gates", "search and polishing")
    attacked = attack.Attacked(_found(X, ""), known, tried, (), seconds=0.5)
    attack.again(attacked, known, key=jax.random.key(0))
    # Until the time is over: neither at once nor to the end.
    assert 2 <= len(steps) <= 50


def test_shuffled_gradients_keep_their_change(weights):
    before, _ = weights
    gradient = jax.tree.map(jnp.ones_like, before)
    known = evidence.of_gradient(NET, before, gradient, image_shape=SHAPE)
    other = controls.on_wrong_weights(known, key=jax.random.key(1))
    assert other.is_gradient
    assert not np.allclose(
        other.params_0["Dense_0"]["kernel"], before["Dense_0"]["kernel"]
    )
