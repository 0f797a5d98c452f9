"""Small heads of known features, adapted: what the law is tried on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ntk_privacy.reconstruction import adapter_replay

INPUTS = 24
PLAN = adapter_replay.Schedule(num_steps=40, learning_rate=0.03)


@functools.cache
def cross_entropy(n, m):
    """Mean softmax cross-entropy of n images, of one class after the other."""

    def loss(z):
        return -jnp.mean(jax.nn.log_softmax(z)[np.arange(n), np.arange(n) % m])

    return loss


@functools.cache
def squares(n, m):
    """Mean squares of n images against fixed targets."""
    targets = np.random.default_rng(99).normal(size=(n, m))
    return lambda z: jnp.mean(jnp.sum((z - targets) ** 2, axis=1)) / 2


def case(k, r, n, m, *, seed=0, kind=cross_entropy, starts=3, wrong=False):
    """Searches n images of k unknowns each, whose A began nobody knows how.

    Returns the best of a few searches that begin near the images, and its largest
    error against the images that the factors were trained on. `wrong`: these are
    others than the search begins at.
    """
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(INPUTS, m)) / np.sqrt(INPUTS)
    a_0 = rng.normal(size=(INPUTS, r)) / np.sqrt(INPUTS)
    basis = np.linalg.qr(rng.normal(size=(INPUTS, k)))[0] * np.sqrt(INPUTS / k)
    offset = rng.normal(size=INPUTS) / 2
    u, others = rng.normal(size=(2, n, k))
    loss, given = kind(n, m), {"kernel": kernel}
    images = (others if wrong else u) @ basis.T + offset
    made = adapter_replay.trained(images, a_0, loss, PLAN, **given)
    made = dataclasses.replace(made, a_0=None)
    best = None
    for start in range(starts):
        near = u + 10.0 ** (-3 + start) * rng.normal(size=u.shape)
        found = adapter_replay.within(
            made, loss, basis, near, PLAN, offset=offset, max_iterations=40, **given
        )
        if best is None or found.miss < best.miss:
            best = found
        if best.verdict.word != "nothing found":
            break
    errors = np.linalg.norm(best.images - images, axis=1)
    return best, float(np.max(errors / np.linalg.norm(images, axis=1)))
