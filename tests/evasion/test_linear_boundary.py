"""A linear classifier: an attack succeeds exactly where the boundary is in reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.evasion import ThreatModel, apgd, cw, pgd


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_success_exactly_when_the_ball_reaches_the_boundary(line, norm, name):
    far = line.distances[norm]
    eps = float(np.median(far))
    assert np.min(np.abs(far / eps - 1)) > 0.02, "a distance too near eps to tell"
    options = {"loss": "targeted-dlr", "num_targets": 3} if name == "apgd" else {}
    attack = {"pgd": pgd.attack, "apgd": apgd.attack}[name]
    out = attack(
        line.logits_fn,
        line.x,
        line.y,
        key=jax.random.key(0),
        threat_model=ThreatModel(norm, eps),
        num_steps=60,
        **options,
    )
    assert not np.any(np.asarray(out.success) & (far > eps))
    # Cross-entropy may climb to another class than the nearest; targets may not.
    missed = int(np.sum(~np.asarray(out.success) & (far < eps)))
    assert missed <= (1 if name == "pgd" else 0)


def test_the_search_for_a_constant_finds_the_distance(line):
    out = cw.attack(
        line.logits_fn,
        line.x,
        line.y,
        key=jax.random.key(0),
        form="original",
        num_steps=300,
        constant=1e-2,
    )
    assert bool(jnp.all(out.success))
    ratio = np.asarray(out.distance) / line.distances["l2"]
    assert ratio.min() >= 1 - 1e-9
    assert ratio.max() <= 1.05
