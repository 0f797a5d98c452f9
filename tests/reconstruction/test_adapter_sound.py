"""No certificate of an adapter's gradient is false, whatever was damaged."""

import dataclasses

import adapter_victims as victims
import census
import jax
import numpy as np
import pytest
from broken_victims import SHAPE
from census import Census

from ntk_privacy.reconstruction import adapter


def weigh(victim: victims.Client, seed: int) -> Census:
    """Compares every certificate of one input with the truth."""
    given = {"key": jax.random.key(seed), "image_shape": SHAPE, "max_rounds": 2}
    told = victim.adapter
    kernel = np.asarray(victim.public["Dense_0"]["kernel"], np.float64)
    layer = (kernel + told.product, np.asarray(told.bias_t))
    try:
        if victim.gradient is None:
            found = adapter.reconstruct(victim.public, told, **given)
        else:
            found = adapter.reconstruct_gradient(
                victim.public, told, victim.gradient, **given
            )
    except ValueError as error:
        message = str(error)
        assert any(
            word in message for word in ("did not move", "spans fewer", "NaN")
        ), message
        images = len(victim.images)
        return Census(1, images, empty=images)
    assert found.verdict.num_certified == found.certified.sum()
    assert (found.verdict.word == "exact") == bool(found.certified.any())
    return census.weigh(
        np.asarray(found.images).reshape(len(found.images), 64),
        found.certified, found.errors, victim.images,
        forms=victim.forms, layers=[layer],
    )  # fmt: skip


def counted(name: str, count: int | None = None) -> Census:
    most, make = victims.FAMILIES[name]
    made = make(most if count is None else count)
    return census.summed(weigh(victim, k) for k, victim in enumerate(made))


def test_noise_on_one_factor_is_no_false_certificate():
    found = counted("noise of B", 4)
    assert found.false == 0, found
    assert 0 < found.certified < found.images


def test_factors_of_another_moment_are_seen_by_the_gradient_of_a():
    """They mix the images, whose rows of signals vanish where they did."""
    right = victims.client(1)
    assert weigh(right, 1).certified == victims.SIZE
    noise = np.random.default_rng(0).standard_normal(right.adapter.a_t.shape)
    a_t = (right.adapter.a_t + 0.01 * noise).astype(np.float32)
    wrong = right._replace(adapter=dataclasses.replace(right.adapter, a_t=a_t))
    assert weigh(wrong, 1).false == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", list(victims.FAMILIES))
def test_no_certificate_is_false_over_a_thousand_adapters(name):
    found = counted(name)
    assert found.inputs == victims.FAMILIES[name][0]
    assert found.false == 0, found
    if name == "intact":
        assert found.certified > 0.9 * found.images, found
    if name == "trained":
        assert found.certified == 0
