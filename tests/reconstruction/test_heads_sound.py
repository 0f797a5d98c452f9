"""No certificate of a head's embeddings is false, whatever was damaged."""

import census
import head_victims as victims
import jax
import numpy as np
import pytest
from broken_victims import Victim
from census import Census

from ntk_privacy.reconstruction import heads


def weigh(victim: Victim, seed: int) -> Census:
    """Compares every certificate of one head with the truth."""
    given = {
        "length": victims.LENGTH,
        "key": jax.random.key(seed),
        "max_rounds": 2,
        "layer": "Dense_0",
    }
    read = heads.decode_gradient if victim.gradient else heads.decode
    try:
        found = read(
            victim.params_0, victim.params_t, num_images=victim.num_images, **given
        )
    except ValueError as error:
        message = str(error)
        assert "did not move" in message or "is zero" in message, message
        images = len(victim.images)
        return Census(1, images, empty=images)
    assert found.verdict.num_certified == found.certified.sum()
    assert (found.verdict.word == "exact") == bool(found.certified.any())
    ends = [victim.params_0] if victim.gradient else [victim.params_0, victim.params_t]
    layers = [p["Dense_0"] for p in ends]
    flat, forms = victim.images.reshape(-1, victims.LENGTH), victim.forms
    return census.weigh(
        found.rows, found.certified, found.errors, flat,
        forms=None if forms is None else forms.reshape(-1, victims.LENGTH),
        layers=[(p["kernel"], p.get("bias", np.zeros(1))) for p in layers],
        spread=victim.spread,
    )  # fmt: skip


def counted(name: str, count: int | None = None) -> Census:
    family = victims.FAMILIES[name]
    made = family.make(family.count if count is None else count)
    return census.summed(weigh(victim, k) for k, victim in enumerate(made))


def test_noise_on_a_heads_gradient_is_no_false_certificate():
    found = counted("noised gradients", 5)
    assert found.false == 0, found
    assert 0 < found.certified < found.images


@pytest.mark.slow
@pytest.mark.parametrize("name", list(victims.FAMILIES))
def test_no_certificate_is_false_over_a_thousand_heads(name):
    family, found = victims.FAMILIES[name], counted(name)
    assert found.inputs > 0.8 * family.count
    assert found.false == 0, found
    if family.intact:
        assert found.certified > 0.9 * found.images, found
