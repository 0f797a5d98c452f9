"""A small network with images, some misread, and every attack at toy size."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

CLASSES = 5


@pytest.fixture(scope="session")
def toy():
    """A network on 12 images of 5 x 5 x 2, of which 0 and 7 are misread.

    One function for all tests, so that they share compiled programs; it counts traces.
    """
    traces = []

    def logits_of(params, x):
        traces.append(1)
        hidden = jnp.tanh(x.reshape(len(x), -1) @ params[0] + params[1][None])
        return hidden @ params[2]

    rng = np.random.default_rng(0)
    sizes = ((50, 16), (16,), (16, CLASSES))
    params = tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in sizes)
    x = jnp.asarray(rng.uniform(size=(12, 5, 5, 2)), jnp.float32)
    x = jnp.round(x * 255) / 255
    x = x.at[3, 0].set(0).at[4, 1].set(1)
    logits_fn = jax.tree_util.Partial(logits_of, params)
    y = jnp.argmax(logits_fn(x), axis=1).astype(jnp.int32)
    y = y.at[jnp.array([0, 7])].add(1) % CLASSES
    return SimpleNamespace(params=params, logits_fn=logits_fn, x=x, y=y, traces=traces)


@pytest.fixture(scope="session")
def line():
    """A linear classifier, and the exact distances to the nearest other class."""
    rng = np.random.default_rng(1)
    w = rng.normal(size=(36, 4))
    b = rng.normal(size=4)
    x = rng.uniform(0.35, 0.65, size=(10, 6, 6, 1))

    def logits_fn(images):
        return images.reshape(len(images), -1) @ jnp.asarray(w) + jnp.asarray(b)[None]

    z = x.reshape(10, -1) @ w + b
    y = z.argmax(1)
    gaps = z[np.arange(10), y][:, None] - z
    gaps[np.arange(10), y] = np.inf
    across = w[:, y].T[:, :, None] - w[None]
    norms = {"linf": np.abs(across).sum(1), "l2": np.sqrt((across**2).sum(1))}
    distances = {
        name: np.where(np.isinf(gaps), np.inf, gaps / np.maximum(value, 1e-9)).min(1)
        for name, value in norms.items()
    }
    return SimpleNamespace(
        logits_fn=logits_fn,
        w=w,
        x=jnp.asarray(x),
        y=jnp.asarray(y, jnp.int32),
        distances=distances,
    )


@pytest.fixture(scope="session")
def model():
    """Threat models that break some of the toy images, not all."""
    # Here, not above: the shape checks are installed before the package is imported.
    from ntk_privacy.evasion import ThreatModel

    return {"linf": ThreatModel("linf", 8 / 255), "l2": ThreatModel("l2", 0.2)}
