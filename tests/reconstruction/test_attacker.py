"""A network, what is told of it, and the attack, without a command line."""

import jax
import numpy as np
import pytest

from ntk_privacy import reconstruction
from ntk_privacy.data import choice, draws
from ntk_privacy.reconstruction import attacker, evidence, victims


@pytest.fixture(scope="module")
def digits():
    return choice.TaskImages(num_train=4).load(seed=3)


def test_an_attack_is_that_of_the_method_and_of_its_seed(digits):
    dataset, key = digits
    network = victims.Trained(width=64)
    victim = network.train(dataset, key)
    method = reconstruction.METHODS["algebraic"]
    config = method.configured()
    method.check(network.before(dataset), config)
    told = attacker.Told()
    found, figures = attacker.attack(method, config, dataset, victim, told, seed=5)
    known = evidence.told(victim, dataset)
    key = jax.random.fold_in(jax.random.key(1), 5)
    np.testing.assert_array_equal(found.images, method.run(known, config, key=key)[0])
    assert figures == {}


def test_weights_before_training_are_guessed_from_seeds(digits):
    dataset, key = digits
    network = victims.Trained(
        width=64, dynamics="standard", optimizer="gd", num_epochs=3
    )
    victim = network.train(dataset, key)
    method = reconstruction.METHODS["closed_units"]
    attacked = (method, method.configured(), dataset, victim, attacker.Told())
    _, figures = attacker.attack(*attacked, num_seeds=5)
    assert figures["seed_found"]["seed"] == 3
    found, figures = attacker.attack(*attacked, num_seeds=3)
    assert figures["seed_found"]["seed"] is None
    assert (len(found.images), found.verdict.word) == (0, "nothing found")


def test_what_is_told_and_the_network_are_those_that_a_method_wants():
    methods = reconstruction.METHODS
    assert attacker.told(methods["kkt"]) is attacker.Told
    wants = {name for name, m in methods.items() if "auxiliary" in m.wants}
    assert wants
    assert {attacker.told(methods[name]) for name in wants} == {attacker.ToldOfDomain}
    assert victims.network(methods["max_margin"]) is victims.Logistic
    assert victims.network(methods["auto"]) is victims.Trained


def test_keys_of_a_seed_are_two_and_its_own():
    assert len({str(key) for seed in (0, 1) for key in draws.keys(seed)}) == 4
