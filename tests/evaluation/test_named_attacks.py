"""What tables may call an attack: weaker settings never read as the plain name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.evaluation import named_attacks, robust_accuracy
from ntk_privacy.evaluation.robust_accuracy import RobustnessWarning
from ntk_privacy.evasion import ThreatModel, pgd

_OWN_STEPS = {"pgd": 20, "mim": 20, "cw": 50, "cw_guard": 50, "cw_binary": 10_000}


@pytest.mark.parametrize("name", named_attacks.ATTACKS)
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
