"""Adapters: identities of their factors, images, the law, and what is refused."""

import dataclasses

import adapter_law
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import _versions, data
from ntk_privacy.models.adapter import Adapter
from ntk_privacy.reconstruction import (
    adapter,
    adapter_factors,
    adapter_replay,
    evidence,
)
from ntk_privacy.training import adapter_victim

D, R, M = 30, 9, 40
SHAPE = (5, 6, 1)


@pytest.fixture(scope="module")
def nets():
    """A frozen layer, and a head above it."""
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(D, M)) / np.sqrt(D), 0.1 * rng.normal(size=M)
    return kernel, bias, rng.normal(size=(M, 3)) / np.sqrt(M)


def _trained(nets, n, *, steps=40, seed=1, freeze=False, decay=0.0):
    """Adapts it by minibatches with momentum; returns the adapter and its images."""
    kernel, bias, head = nets
    rng = np.random.default_rng(seed)
    x, targets = rng.normal(size=(n, D)), rng.normal(size=(n, 3))
    a_0 = rng.normal(size=(D, R)) / np.sqrt(D)
    a, b, c = a_0.copy(), np.zeros((R, M)), np.zeros(M)
    pace = [np.zeros_like(leaf) for leaf in (a, b, c)]
    for _ in range(steps):
        some = rng.permutation(n)[: max(n // 2, 1)]
        z = x[some] @ kernel + bias + 2 * (x[some] @ a) @ b + c
        out = (np.maximum(z, 0) @ head - targets[some]) @ head.T * (z > 0)
        slopes = (2 * x[some].T @ out @ b.T, 2 * (x[some] @ a).T @ out, out.sum(0))
        decayed = (decay * a, decay * b, 0.0)
        slopes = tuple(g + w for g, w in zip(slopes, decayed, strict=True))
        pace = [0.9 * v + g for v, g in zip(pace, slopes, strict=True)]
        a, b, c = (
            a - 0.002 * (not freeze) * pace[0],
            b - 0.002 * pace[1],
            c - 0.002 * pace[2],
        )
    made = Adapter(a_t=a, b_t=b, a_0=a_0, bias_t=bias + c, scale=2.0)
    return made, x


@pytest.mark.parametrize("n", [1, 4, 8])
def test_factors_tell_size_span_and_equations_after_any_gradient_descent(nets, n):
    made, x = _trained(nets, n)
    seen = adapter_factors.num_images(made)
    assert (seen.rank, seen.hidden) == (n, False)
    basis = adapter_factors.span(made)
    np.testing.assert_allclose(x @ basis @ basis.T, x, atol=1e-7)
    # Neither the start of A nor its own change is needed for these.
    unknown = dataclasses.replace(made, a_0=None)
    assert adapter_factors.equations(unknown).shape == (R - n, D)
    assert adapter_factors.residuals(unknown, x.reshape(n, *SHAPE)).max() < 1e-9
    other = np.random.default_rng(5).normal(size=(20, *SHAPE))
    assert adapter_factors.residuals(unknown, other).min() > 1e-3


def test_decay_leaves_size_and_equations_and_no_span(nets, victim):
    made, x = _trained(nets, 4, decay=0.1)
    assert adapter_factors.num_images(made).rank == 4
    assert adapter_factors.residuals(made, x.reshape(4, *SHAPE)).max() < 1e-9
    # The change of A is that of another start.
    assert adapter_factors.span_gap(made, rank=4) < 5
    assert adapter_factors.span_gap(_trained(nets, 4)[0], rank=4) > 1e6
    start = np.random.default_rng(0).permutation(victim.adapter.a_0)
    found = _read(victim, dataclasses.replace(victim.adapter, a_0=start))
    assert found.verdict.word == "assumptions do not hold"
    assert (
        "B shows 6 images, and the change of A does not have as many"
        in found.verdict.reason
    )


def test_more_images_than_the_rank_leave_a_part_of_their_span(nets):
    made, x = _trained(nets, R + 4)
    assert adapter_factors.num_images(made).hidden
    basis = adapter_factors.span(made)
    images = np.linalg.qr(x.T)[0]
    assert basis.shape == (D, R)
    np.testing.assert_allclose(images @ (images.T @ basis), basis, atol=1e-9)
    with pytest.raises(ValueError, match="full rank 9: they were trained on as many"):
        adapter_factors.equations(made)


def test_a_frozen_a_makes_b_a_sketch_that_the_span_undoes(nets):
    made, x = _trained(nets, 4, freeze=True)
    whole = adapter_factors.change(made, np.linalg.qr(x.T)[0], point=0.0)
    np.testing.assert_allclose(2 * made.a_0.T @ whole, made.b_t, atol=1e-12)
    # Each row of signals vanishes where its image closes throughout.
    signals = np.linalg.lstsq(x.T, whole, rcond=None)[0]
    np.testing.assert_allclose(signals.sum(0), made.bias_t - nets[1], atol=1e-12)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", num_train=6, key=jax.random.key(0))


def _victim(digits, **given):
    return adapter_victim.train(
        digits.x_train, digits.y_train, width=256, rank=12, key=jax.random.key(1),
        **given,
    )  # fmt: skip


@pytest.fixture(scope="module")
def victim(digits):
    return _victim(digits, num_steps=50)


def _fine(digits, steps):
    """Of float64, where rounding hides nothing that the way of A does."""
    with _versions.enable_x64(True):
        return _victim(digits, num_steps=steps, dtype=np.float64)


def _errors(images, truth):
    flat, true = (np.asarray(a, float).reshape(len(a), -1) for a in (images, truth))
    distances = np.linalg.norm(flat[:, None] - true[None], axis=2)
    return distances / np.linalg.norm(true, axis=1)


def _read(victim, made=None, public=None, **given):
    return adapter.reconstruct(
        public or victim.params_0, made or victim.adapter, key=jax.random.key(0),
        image_shape=(8, 8, 1), **given,
    )  # fmt: skip


def test_images_of_a_short_training_are_read_and_not_certified(digits):
    found = _read(_fine(digits, 10))
    assert (found.verdict.word, found.verdict.num_certified) == ("approximate", 0)
    assert not found.certified.any()
    assert "none is certified" in found.verdict.reason
    assert _errors(found.images, digits.x_train).min(axis=1).max() < 1e-3


def test_units_that_no_image_opens_leave_the_number_of_images_as_it_is():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, d, a = (rng.normal(size=s) for s in ((4, 64), (4, 24), (64, 16)))
        d[:, 14:] = 0
        moved = (a.T @ x.T @ d).astype(np.float32)
        noise = 1 + 1e-7 * rng.normal(size=moved.shape).astype(np.float32)
        made = Adapter(a_t=a.astype(np.float32), b_t=moved * noise)
        seen = adapter_factors.num_images(made)
        assert (seen.rank, seen.hidden) == (4, False)
        made.b_t[:, 3:] = 0  # fewer units than images: their zeros are no gap
        assert adapter_factors.num_images(made) == (3, True, 1.0)


def test_evidence_of_an_adapter_is_for_methods_that_read_one(digits, victim):
    told = evidence.of(victim, bounds=digits.bounds)
    assert told.is_adapter
    with pytest.raises(ValueError, match="method=closed_units reads whole layers"):
        told.needs("closed_units")


@pytest.mark.parametrize("kind", ["start", "public", "release"])
def test_a_wrong_start_network_or_release_is_not_certified(victim, kind):
    rng = np.random.default_rng(3)
    made, public = victim.adapter, victim.params_0
    if kind == "start":
        noise = rng.normal(size=made.a_0.shape).astype(np.float32) / 8
        made = dataclasses.replace(made, a_0=noise)
    elif kind == "public":
        public = victim.model.init_params(jax.random.key(9), (8, 8, 1))
    else:
        turned = rng.permutation(made.shape[1])
        made = dataclasses.replace(made, b_t=made.b_t[:, turned])
    found = _read(victim, made, public, max_rounds=2)
    assert not found.certified.any()


def test_one_gradient_of_the_factors_is_read_exactly(digits, victim):
    made, kernels = victim.adapter, victim.params_0["Dense_0"]

    def loss(factors):
        a, b, bias = factors
        kernel = kernels["kernel"] + a @ b
        params = {**victim.params_0, "Dense_0": {"kernel": kernel, "bias": bias}}
        out = victim.model.apply_fn(params, jnp.asarray(digits.x_train))
        return jnp.mean((out - digits.y_train) ** 2)

    at = tuple(jnp.asarray(leaf) for leaf in (made.a_t, made.b_t, made.bias_t))
    gradient = jax.grad(loss)(at)
    now = Adapter(a_t=made.a_t, b_t=made.b_t, bias_t=made.bias_t)
    given = {"key": jax.random.key(0), "image_shape": (8, 8, 1)}
    found = adapter.reconstruct_gradient(victim.params_0, now, gradient, **given)
    assert int(found.certified.sum()) == 6
    errors = _errors(found.images, digits.x_train).min(axis=1)
    assert (errors < found.errors).all()
    assert errors.max() < 1e-3
    zero = tuple(jnp.zeros_like(leaf) for leaf in gradient)
    with pytest.raises(ValueError, match="did not move"):
        adapter.reconstruct_gradient(victim.params_0, now, zero, **given)


@pytest.mark.parametrize(
    ("kind", "limit"), [(adapter_law.cross_entropy, 5), (adapter_law.squares, 6)]
)
def test_images_are_determined_up_to_the_budget_and_not_beyond(kind, limit):
    r, n, m = 5, 3, 4
    below, error = adapter_law.case(limit - 1, r, n, m, kind=kind)
    assert adapter_replay.budget(_release(kind, r, n, m), n) == limit
    assert (below.verdict.word, error < 1e-9) == ("exact", True)
    assert below.condition > 1e-6
    beyond, error = adapter_law.case(limit + 1, r, n, m, kind=kind)
    assert not beyond.certified.any()
    assert beyond.condition < 1e-12
    assert error > 1e-3


def _release(kind, r, n, m):
    rng = np.random.default_rng(0)
    x, a, w = (rng.normal(size=s) / 5 for s in ((n, 24), (24, r), (24, m)))
    return adapter_replay.trained(x, a, kind(n, m), adapter_law.PLAN, kernel=w)


def test_another_release_never_gives_these_images():
    found, error = adapter_law.case(4, 5, 3, 4, wrong=True, starts=1)
    # What it certifies, if anything, are the images of that release.
    assert not found.certified.any() or error < 1e-9


def _made(**changed):
    rng = np.random.default_rng(0)
    given = {"a_t": rng.normal(size=(64, 4)), "b_t": rng.normal(size=(4, 8))}
    return Adapter(**{**given, **changed})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"b_t": np.ones((8, 4))}, "PEFT keeps the transposes"),
        ({"a_t": np.ones(4)}, r"a_t has shape \(4,\): give a matrix"),
        ({"a_0": np.ones((64, 5))}, r"a_0 has shape \(64, 5\), the trained factors"),
        ({"bias_t": np.full(8, np.nan)}, "bias_t has 8 values that are NaN"),
        ({"scale": 0.0}, "scale=0.0 must be above 0"),
    ],
)
def test_factors_that_do_not_fit_are_refused(changed, told):
    with pytest.raises(ValueError, match=told):
        _made(**changed)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"b_t": np.zeros((4, 8)), "a_0": np.ones((64, 4))},
            "b_t did not move from its start",
        ),
        ({}, "a_0 is not known: give A before training, or draw it from its seed"),
        ({"a_t": np.ones((64, 4)), "a_0": np.ones((64, 4))}, "a_t did not move"),
    ],
)
def test_factors_that_tell_no_span_are_refused(changed, told):
    with pytest.raises(ValueError, match=told):
        adapter_factors.span(_made(**changed))


def test_layers_and_images_that_do_not_fit_are_refused(victim):
    wide = _made(b_t=np.ones((4, 9)))
    with pytest.raises(ValueError, match=r"kernel of shape \(64, 256\), the factors m"):
        _read(victim, wide)
    with pytest.raises(ValueError, match="has 64 values, the adapter 30 inputs"):
        _read(victim, _made(a_t=np.ones((30, 4))))
    with pytest.raises(ValueError, match="method=adapter reads low-rank factors alone"):
        adapter.METHOD.check(
            evidence.Evidence(network=victim.model, params_t={}, image_shape=(8, 8, 1)),
            adapter.Config(),
        )
    full = dataclasses.replace(
        victim.adapter, b_t=np.random.default_rng(0).normal(size=(12, 256))
    )
    found = _read(victim, full)
    assert (found.verdict.word, len(found.images)) == ("nothing found", 0)
    assert "full rank 12" in found.verdict.reason
