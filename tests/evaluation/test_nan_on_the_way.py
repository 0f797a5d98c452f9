"""NaN logits at any single point that an attack evaluates are told of, not lost."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.evaluation import (
    attacked_batches,
    named_attacks,
    robust_accuracy,
)
from ntk_privacy.evasion import METHODS, ThreatModel, cw, mim

KEY = jax.random.key(5)
_RNG = np.random.default_rng(0)
W = _RNG.normal(size=(36, 4))
X = _RNG.uniform(0.3, 0.7, size=(6, 6, 6, 1))
Y = (X.reshape(6, -1) @ W).argmax(1).astype(np.int32)
NEVER = np.full((6, 6, 1), 9.0)
REACHED: list[np.ndarray] = []


def _logits(at, x):
    """Linear; at one point the last logit is NaN."""
    jax.debug.callback(lambda x: REACHED.extend(np.asarray(x)), x)
    there = jnp.max(jnp.abs(x - at[None]), axis=(1, 2, 3)) < 1e-9
    logits = x.reshape(len(x), -1) @ jnp.asarray(W)
    last = jnp.arange(4) == 3
    return jnp.where(there[:, None] & last[None], jnp.nan, logits)


def _attack(name, at):
    model = jax.tree_util.Partial(_logits, jnp.asarray(at))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = robust_accuracy.robust_accuracy(
            model,
            X,
            Y,
            key=KEY,
            attacks=(name,),
            threat_model=ThreatModel("linf", 0.02),
            batch_size=6,
            num_steps=4,
            num_queries=12,
        )
    jax.effects_barrier()
    return found


_QUICK = ("cw", "fab")
NAMES = [
    n if n in _QUICK else pytest.param(n, marks=pytest.mark.slow)
    for n in METHODS
    if not n.startswith("autoattack")
]


@pytest.mark.parametrize("name", NAMES)
def test_nan_at_any_one_point_is_told(name, monkeypatch):
    usual = attacked_batches.attack

    def alone(*args):
        jax.effects_barrier()
        REACHED.clear()  # what the model was asked before is not the attack's
        return usual(*args)

    monkeypatch.setattr(attacked_batches, "attack", alone)
    _attack(name, NEVER)
    distance = [np.abs(X - point).max((1, 2, 3)) for point in REACHED]
    moved = [p for p, d in zip(REACHED, distance, strict=True) if d.min() > 1e-6]
    assert len(moved) > 5
    for point in moved[:: -(-len(moved) // 9)]:
        with pytest.raises(ValueError, match=f"NaN for . images at points that {name}"):
            _attack(name, point)


def test_momentum_carries_no_image_past_nan():
    REACHED.clear()
    given = {
        "key": KEY,
        "threat_model": ThreatModel("linf", 0.02),
        "step": 0.005,
        "num_steps": 4,
    }
    attack = functools.partial(mim.attack, x=jnp.asarray(X), y=jnp.asarray(Y), **given)
    attack(jax.tree_util.Partial(_logits, jnp.asarray(NEVER)))
    jax.effects_barrier()
    distance = [np.abs(X - point).max((1, 2, 3)).min() for point in REACHED]
    passed = [
        point
        for point, d in zip(REACHED, distance, strict=True)
        if abs(d - 0.01) < 1e-4  # after two steps of four
    ]
    assert passed
    with pytest.raises(ValueError, match="returned NaN for 1 of 6 images"):
        attack(jax.tree_util.Partial(_logits, jnp.asarray(passed[-1])))


def test_cw_tells_of_nan_that_lies_beyond_what_it_found():
    given = {"constant": 1e3, "num_steps": 12, "rate": 0.05}

    def attack(at):
        model = jax.tree_util.Partial(_logits, jnp.asarray(at))
        cw.attack(model, jnp.asarray(X), jnp.asarray(Y), key=KEY, **given)
        jax.effects_barrier()

    REACHED.clear()
    attack(NEVER)
    # Misread, as NaN counts, but farther off than what is kept by then.
    beyond, nearest = [], np.full(len(X), np.inf)
    for point in REACHED:
        far = np.square(X - point).sum((1, 2, 3))
        image = int(far.argmin())
        if (point.reshape(-1) @ W).argmax() != Y[image]:
            if far[image] > 1.01 * nearest[image]:
                beyond.append(point)
            nearest[image] = min(nearest[image], far[image])
    assert beyond
    with pytest.raises(ValueError, match="returned NaN for 1 of 6 images"):
        attack(beyond[0])


def test_only_what_may_not_tell_of_nan_is_listened_to():
    given = {"threat_model": ThreatModel("linf", 0.02), "num_classes": 10}
    stages, _ = named_attacks.plan(tuple(METHODS), **given)
    assert not [stage.name for stage in stages if stage.listens]
    own, _ = named_attacks.plan({"mine": lambda *_, **__: None}, **given)
    assert own[0].listens
