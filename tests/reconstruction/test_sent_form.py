"""What was done to a gradient is seen in it, and the verdict says so."""

import re

import client_victims
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import (
    change_factors,
    closed_units,
    evidence,
    sent_form,
    shown_change,
)
from ntk_privacy.training import shared_update

SHAPE, WIDTH, N = (10, 10, 1), 160, 4
SMALL, KEY = (8, 8, 1), jax.random.key(0)


def _change(seed=0, n=N, *, dark=False, noise=0.0):
    """A sum of images times signals, half of which are 0, in float32."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((100, n))
    if dark:  # most pixels of an image are 0, as of digits
        x = x * (rng.uniform(size=x.shape) < 0.2)
    d = rng.standard_normal((n, WIDTH)) * (rng.uniform(size=(n, WIDTH)) < 0.5)
    return 1e-3 * (x @ d + noise * rng.standard_normal((100, WIDTH)))


def _sent(change, treat):
    return np.asarray(treat(jnp.asarray(change, jnp.float32)), np.float64)


def _quantised(bits, key=None):
    return lambda g: shared_update.quantise(g, bits=bits, key=key)


TREATMENTS = {
    "8 bits": (_quantised(8), r"multiple of \S+ \(8 bits with the sign\)"),
    "16 bits": (_quantised(16), r"\(16 bits with the sign\): it was quantised"),
    "at random": (_quantised(4, KEY), r"\(4 bits with the sign\)"),
    "bfloat16": (lambda g: g.astype(jnp.bfloat16), "a number of bfloat16"),
    "float16": (lambda g: (1e3 * g).astype(jnp.float16), "a number of float16"),
    "underflow": (lambda g: (1e-3 * g).astype(jnp.float16), "float16 has none in betw"),
    "top 90%": (lambda g: shared_update.top_k(g, share=0.9), r"\(top-k\)"),
    "top 1%": (lambda g: shared_update.top_k(g, share=0.01), r"\(top-k\)"),
}


@pytest.mark.parametrize("name", list(TREATMENTS))
def test_each_treatment_is_seen(name):
    treat, told = TREATMENTS[name]
    form = sent_form.seen(_sent(_change(), treat))
    assert re.search(told, form.what), form.what
    assert form.remedy


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("n", [1, N, 30])
def test_nothing_is_seen_in_a_sum_of_images(dark, n):
    change = _sent(_change(n=n, dark=dark), lambda g: g)
    assert sent_form.seen(change).what == ""
    assert sent_form.noise_level(change) is None


@pytest.mark.parametrize("share", [0.02, 1.0])
def test_the_level_of_noise_is_read_from_the_spectrum(share):
    change = _change(noise=share)
    assert sent_form.noise_level(change) == pytest.approx(1e-3 * share, rel=0.1)
    # Of steps that are divided by their own size there is a rest too, of no such shape.
    assert sent_form.noise_level(np.cbrt(_change())) is None


def test_a_bias_with_the_noise_of_the_kernel_tells_the_scale():
    rng = np.random.default_rng(1)
    change = _change(noise=0.2)
    factors = change_factors.factorize(change, rank=N)
    bias = factors.right.T @ rng.standard_normal(N)
    bias *= 10 * factors.noise * np.sqrt(WIDTH) / np.linalg.norm(bias)
    noise = rng.standard_normal(WIDTH)
    assert shown_change.fitting(factors, bias + factors.noise * noise) is not None
    assert shown_change.fitting(factors, bias + 4 * factors.noise * noise) is None
    # Of a kernel without noise: the same bias is no sum of its rows.
    clean = change_factors.factorize(_change())
    inside = clean.right.T @ (clean.right @ bias)
    rest = 0.1 * np.linalg.norm(inside) / np.sqrt(WIDTH) * noise
    assert shown_change.fitting(clean, inside) is not None
    assert shown_change.fitting(clean, inside + rest) is None


def _verdict(victim):
    found = closed_units.reconstruct_gradient(
        victim.params_0, victim.params_t, key=KEY, image_shape=SMALL, max_rounds=3
    )
    assert found.message.endswith(".")
    return found


def test_the_verdict_says_what_was_done_and_what_helps():
    cut = next(client_victims.treated(1, client_victims.top_k, low=-0.3, high=-0.3))
    found = _verdict(cut)
    assert not found.certified.any()
    assert "only the largest were sent (top-k)" in found.verdict.reason
    assert "ask for a gradient without sparsification" in found.verdict.reason
    found = _verdict(next(client_victims.private(1, low=0.0, high=0.0)))
    assert "spectrum of independent noise" in found.message
    assert "take one without noise" in found.message


def test_what_is_certified_needs_no_remedy():
    fine = {"low": np.log10(12), "high": np.log10(12)}
    found = _verdict(next(client_victims.treated(1, client_victims.quantised, **fine)))
    assert found.certified.all()
    assert "(12 bits with the sign): it was quantised" in found.verdict.reason
    assert "ask for" not in found.verdict.reason


def test_stated_errors_are_no_smaller_than_the_rounding_to_16_bits():
    # One of bfloat16, sent as such, and sent as float32.
    seeds = {"low": 0.0, "high": 0.0, "count": 3}
    stored = next(client_victims.treated(treat=client_victims.halved, **seeds))
    wide = stored._replace(
        params_t=jax.tree.map(lambda g: g.astype(jnp.float32), stored.params_t)
    )
    found = [_verdict(victim) for victim in (stored, wide)]
    assert found[0].certified.all()
    np.testing.assert_allclose(found[0].errors, found[1].errors)
    assert found[1].errors.min() >= 2 * float(jnp.finfo(jnp.bfloat16).eps)
    assert "a number of bfloat16" in found[1].verdict.reason
    # As evidence it is read as it came, not as weights rounded it.
    known = evidence.of_gradient(
        MLP((16,)), stored.params_0, stored.params_t, image_shape=SMALL
    )
    told = closed_units.from_evidence(known, key=KEY)
    np.testing.assert_allclose(
        np.sort(told.errors), np.sort(found[1].errors), rtol=1e-3
    )
    assert "a number of bfloat16" in told.verdict.reason
