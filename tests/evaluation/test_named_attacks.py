"""What tables may call an attack: weaker settings never read as the plain name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evade
from ntk_privacy.evaluation import attacked_set, named_attacks, robust_accuracy
from ntk_privacy.evaluation.robust_accuracy import RobustnessWarning
from ntk_privacy.evasion import METHODS, Adversarial, ThreatModel, pgd
from ntk_privacy.method import Method, field

_OWN_STEPS = {"pgd": 20, "mim": 20, "cw": 50, "cw_guard": 50, "cw_binary": 10_000}


@pytest.mark.parametrize("name", METHODS)
def test_other_settings_stand_in_the_name(name):
    asks = name.startswith(("square", "autoattack")) and name != "autoattack_rand"
    steps = not name.startswith("square")
    told = named_attacks.honest_name(name, num_steps=7, num_queries=300)
    parts = ["7 steps"] * steps + ["300 queries"] * asks
    assert told == f"{name} ({', '.join(parts)})"
    # Its own settings, said or not, and those of the others, leave it as it is.
    own = _OWN_STEPS.get(name, 10 if name.endswith("10") else 100)
    assert named_attacks.honest_name(name) == name
    assert named_attacks.honest_name(name, num_steps=own, num_queries=5000) == name


def test_the_shown_name_carries_the_same():
    call = named_attacks.honest_name
    assert call("autoattack", shown="AutoAttack") == "AutoAttack"
    told = call("autoattack", num_steps=20, num_queries=300, shown="AutoAttack")
    assert told == "AutoAttack (20 steps, 300 queries)"
    # More than the standard is not the standard either.
    assert call("autoattack", num_steps=200) == "autoattack (200 steps)"
    assert call("my own", num_steps=3) == "my own"


def test_the_published_cw_says_once_what_it_is():
    x = np.random.default_rng(1).uniform(0.4, 0.6, size=(6, 4, 4, 1))

    def far(images):
        z = 100 * images.reshape(len(images), -1).mean(axis=1)
        return jnp.stack([z, jnp.zeros_like(z)], axis=1)

    with pytest.warns(RobustnessWarning, match="cite cw, which searches") as caught:
        found = robust_accuracy.robust_accuracy(
            far,
            x,
            np.zeros(6, np.int32),
            key=jax.random.key(0),
            attacks=("cw_guard",),
            threat_model=ThreatModel("l2", 0.1),
            batch_size=2,
        )
    assert len(caught) == 1
    assert found.accuracy == {"cw_guard": 1.0}


def test_results_carry_the_names_of_their_attacks():
    w = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    x = np.random.default_rng(1).uniform(size=(6, 4, 4, 1)).astype(np.float32)

    def linear(images):
        return images.reshape(len(images), -1) @ w

    def evaluate(attacks):
        return robust_accuracy.robust_accuracy(
            linear,
            x,
            np.asarray(linear(x)).argmax(1).astype(np.int32),
            key=jax.random.key(0),
            attacks=attacks,
            threat_model=ThreatModel("linf", 0.01),
            num_steps=2,
            num_queries=3,
        )

    with pytest.warns(RobustnessWarning, match="weaker than what the name"):
        found = evaluate(("pgd", "square"))
    assert found.names == {"pgd": "pgd (2 steps)", "square": "square (3 queries)"}
    # What a function of one's own does with its name is its own affair.
    assert evaluate({"pgd": pgd.attack}).names == {"pgd": "pgd"}


@dataclasses.dataclass(frozen=True)
class _Config:
    num_tries: int = field(3, "Tries.")


def _corner(logits_fn, x, y, config, *, key, threat_model):
    """Adds eps to every pixel: an attack of the test's own."""
    del key
    images = jnp.clip(x + threat_model.eps, 0, 1)
    wrong = logits_fn(images).argmax(1).astype(y.dtype) != y
    spent = jnp.full(len(x), config.num_tries, jnp.int32)
    far = jnp.abs(images - x).max(axis=(1, 2, 3))
    return Adversarial(
        jnp.where(wrong[:, None, None, None], images, x), wrong, spent, far
    )


def test_one_record_adds_an_attack_to_evaluations_and_flags(monkeypatch):
    corner = Method("corner", "adds eps", _Config, {"published": _Config}, _corner)
    flags = ["--train=plain", "--dataset=digits", "--attacks=corner,pgd"]
    with pytest.raises(ValueError, match="attacks='corner' is unknown"):
        evade.PROGRAM.parse(flags)
    monkeypatch.setitem(METHODS, "corner", corner)
    asked = evade.PROGRAM.parse(flags).group(attacked_set.Config)
    assert asked.attacks == ("corner", "pgd")
    w = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    x = np.random.default_rng(1).uniform(size=(6, 4, 4, 1)).astype(np.float32)

    def linear(images):
        return images.reshape(len(images), -1) @ w

    y = np.asarray(linear(x)).argmax(1).astype(np.int32)
    config = attacked_set.Config(attacks=("corner",), eps="0.2", batch_size=4)
    found = attacked_set.attack(linear, x, y, config, key=jax.random.key(0))
    moved = np.asarray(linear(np.clip(x + 0.2, 0, 1))).argmax(1) != y
    told = attacked_set.figures(found, config)
    assert told["accuracy"]["corner"] == np.mean(~moved)
    assert told["settings"] == {"corner": "adds eps"}
    assert told["names"] == {"corner": "corner"}
    assert told["queries"] == {"corner": 3.0}
