"""The regulariser against its equations, and against the exact Hessian."""

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from ntk_privacy import curvature
from ntk_privacy.curvature import regularizer
from ntk_privacy.models import softplus

N, SHAPE, CLASSES = 5, (3, 2, 1), 3
SIZE = 6


def logits_fn(params, x):
    h = softplus(x.reshape(len(x), -1) @ params["w"] + params["b"][None], 4.0)
    return h @ params["v"]


def loss_fn(params, x, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits_fn(params, x), labels)


@pytest.fixture(scope="module")
def setting():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "w": jax.random.normal(keys[0], (SIZE, 7)),
        "b": jax.random.normal(keys[1], (7,)),
        "v": jax.random.normal(keys[2], (7, CLASSES)),
    }
    x = jax.random.normal(keys[3], (N, *SHAPE))
    return params, x, jnp.arange(N, dtype=jnp.int32) % CLASSES


def one_gradient(params, image, label):
    """Of a single image, by itself."""
    return jax.grad(lambda u: loss_fn(params, u[None], label[None])[0])(image)


def twin(params, x, labels, mode, step, offset=0.0):
    """Image by image, as the equations stand."""
    rows = []
    for image, label in zip(x, labels, strict=True):
        g = one_gradient(params, image, label)
        z = step * (g + offset) / (jnp.sqrt(jnp.sum(g**2)) + offset)
        if mode == "gradient":
            rows.append(jnp.sqrt(jnp.sum(g**2)))
        elif mode == "loss_difference":
            pair = jnp.stack([image, image + z])
            one = loss_fn(params, pair, jnp.stack([label, label]))
            rows.append(one[1] - one[0])
        else:
            d = one_gradient(params, image + z, label) - g
            square = jnp.sum(d**2)
            rows.append(square if mode == "curvature" else jnp.sqrt(square))
    rows = jnp.stack(rows)
    if mode == "loss_difference":
        return jnp.full(len(x), jnp.abs(rows.mean()))
    return rows


@pytest.mark.parametrize("mode", curvature.MODES)
def test_equals_the_equations_image_by_image(setting, mode):
    params, x, labels = setting
    made = curvature.regularize(loss_fn, step=0.7, weight=2.5, mode=mode)
    want = loss_fn(*setting) + 2.5 * twin(params, x, labels, mode, 0.7)
    chex.assert_trees_all_close(jax.jit(made)(*setting), want, rtol=1e-10)


def test_small_steps_give_the_exact_hessian(setting):
    params, x, labels = setting
    step = 1e-4
    found = curvature.penalty(loss_fn, step=step)(*setting) / step**2
    for i in range(N):
        g = one_gradient(params, x[i], labels[i]).reshape(-1)
        hessian = jax.hessian(
            lambda u, i=i: loss_fn(params, u.reshape(1, *SHAPE), labels[i : i + 1])[0]
        )(x[i].reshape(-1))
        # Checked itself, by differences of the gradient.
        unit, eps = g / jnp.linalg.norm(g), 1e-5
        image = x[i].reshape(-1)
        differences = [
            one_gradient(params, (image + s * eps * unit).reshape(SHAPE), labels[i])
            for s in (1, -1)
        ]
        slope = (differences[0] - differences[1]).reshape(-1) / (2 * eps)
        chex.assert_trees_all_close(hessian @ unit, slope, rtol=1e-5, atol=1e-8)
        want = jnp.sum((hessian @ unit) ** 2)
        assert float(found[i]) == pytest.approx(float(want), rel=2e-3)


@pytest.mark.parametrize("mode", curvature.MODES)
def test_only_z_is_constant(setting, mode):
    """The gradient by differences, with z of the parameters before they move."""
    params, x, labels = setting
    made = curvature.penalty(loss_fn, step=0.7, mode=mode)
    grads = jax.grad(lambda p: made(p, x, labels).mean())(params)
    g = jax.vmap(lambda u, k: one_gradient(params, u, k))(x, labels)
    z = 0.7 * g / jnp.sqrt(jnp.sum(g**2, axis=(1, 2, 3), keepdims=True))

    def frozen(p):
        near = jax.vmap(lambda u, k: one_gradient(p, u, k))(x, labels)
        if mode == "gradient":
            return jnp.sqrt(jnp.sum(near**2, axis=(1, 2, 3))).mean()
        if mode == "loss_difference":
            gap = loss_fn(p, x + z, labels) - loss_fn(p, x, labels)
            return jnp.abs(gap.mean())
        d = jax.vmap(lambda u, k: one_gradient(p, u, k))(x + z, labels) - near
        square = jnp.sum(d**2, axis=(1, 2, 3))
        return (square if mode == "curvature" else jnp.sqrt(square)).mean()

    def waves(leaf):
        return jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)

    direction = jax.tree.map(waves, params)
    eps = 1e-5
    ahead, behind = (
        frozen(jax.tree.map(lambda p, v, s=s: p + s * eps * v, params, direction))
        for s in (1, -1)
    )
    along = sum(
        jnp.vdot(a, b)
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
    )
    assert float(along) == pytest.approx(float(ahead - behind) / (2 * eps), rel=1e-5)
    assert float(jnp.abs(along)) > 1e-3


def released(params, x, labels, *, lamda=None, beta=None, h=3.0):
    """FACTS 7.2, term by term: z, then the terms of both scripts."""

    def mean_loss(images):
        return loss_fn(params, images, labels).mean()

    g = jax.grad(mean_loss)(x)
    norm = jnp.sqrt(jnp.sum(g**2, axis=(1, 2, 3), keepdims=True))
    z = jax.lax.stop_gradient(h * (g + 1e-7) / (norm + 1e-7))
    if beta is not None:
        return beta * jnp.abs(mean_loss(x + z) - mean_loss(x))
    d = jax.grad(mean_loss)(x + z) - jax.grad(mean_loss)(x)
    return jnp.mean(lamda * jnp.sqrt(jnp.sum(d**2, axis=(1, 2, 3))))


def test_released_forms(setting):
    params, x, labels = setting
    clean = loss_fn(*setting).mean()
    # A mean loss has gradients of 1/N: the weight and the offset say so.
    forms = (
        ({"lamda": 100.0}, {"mode": "curvature_norm", "weight": 100.0 / N}),
        ({"beta": 1e-4}, {"mode": "loss_difference", "weight": 1e-4}),
    )
    for theirs, ours in forms:
        made = curvature.regularize(loss_fn, step=3.0, offset=1e-7 * N, **ours)

        def mean(p, made=made):
            return made(p, x, labels).mean()

        def want(p, theirs=theirs):
            return loss_fn(p, x, labels).mean() + released(p, x, labels, **theirs)

        assert float(mean(params) - clean) != 0
        chex.assert_trees_all_close(mean(params), want(params), rtol=1e-9)
        chex.assert_trees_all_close(
            jax.grad(mean)(params), jax.grad(want)(params), rtol=1e-7, atol=1e-10
        )
    # The offset of 1e-7 is not nothing where the gradient is small.
    small = jnp.full((1, *SHAPE), 1e-9)
    with_offset = regularizer.perturbation(small, step=3.0, offset=1e-7)
    chex.assert_trees_all_close(
        with_offset, 3.0 * (small + 1e-7) / (jnp.sqrt(6.0) * 1e-9 + 1e-7)
    )


@pytest.mark.parametrize("mode", curvature.MODES)
def test_a_loss_that_is_flat_adds_nothing_and_no_nan(setting, mode):
    params, x, labels = setting
    dead = jax.tree.map(jnp.zeros_like, params)
    made = curvature.regularize(loss_fn, weight=1.0, mode=mode)
    chex.assert_trees_all_close(made(dead, x, labels), loss_fn(dead, x, labels))
    grads = jax.grad(lambda p: made(p, x, labels).sum())(dead)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_under_vmap_over_networks(setting):
    params, x, labels = setting
    made = curvature.regularize(loss_fn, weight=1.0, step=0.5)
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    both = jax.jit(jax.vmap(made, in_axes=(0, None, None)))(two, x, labels)
    chex.assert_trees_all_close(both[0], made(params, x, labels), rtol=1e-10)
    assert both.shape == (2, N)


def test_the_penalty_may_be_of_another_loss(setting):
    made = curvature.regularize(
        lambda *a: 0 * loss_fn(*a), weight=3.0, step=0.5, penalty_loss_fn=loss_fn
    )
    want = 3 * curvature.penalty(loss_fn, step=0.5)(*setting)
    chex.assert_trees_all_close(made(*setting), want, rtol=1e-12)


def test_refusals(setting):
    with pytest.raises(ValueError, match=r"weight is missing and has no default.*100"):
        curvature.regularize(loss_fn)
    with pytest.raises(ValueError, match=r"weight=-1.* must be above 0"):
        curvature.regularize(loss_fn, weight=-1)
    with pytest.raises(ValueError, match="step=0 must be above 0"):
        curvature.regularize(loss_fn, weight=1, step=0)
    with pytest.raises(ValueError, match="mode='flat' is unknown: use one of curvatu"):
        curvature.regularize(loss_fn, weight=1, mode="flat")
    mean = curvature.regularize(lambda *a: loss_fn(*a).mean(), weight=1.0)
    with pytest.raises(ValueError, match=r"returned a scalar for 5 images.*its mean"):
        mean(*setting)


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e20, 1e36])
def test_no_gradient_is_too_small_or_too_large_for_float32(scale):
    gradient = jax.random.normal(jax.random.key(0), (4, *SHAPE), jnp.float32)
    found = regularizer.perturbation(scale * gradient, step=3.0)
    want = np.asarray(gradient, np.float64)
    want = 3 * want / np.sqrt(np.sum(want**2, axis=(1, 2, 3), keepdims=True))
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


def test_a_perturbation_of_integers_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="gradient has dtype int"):
        regularizer.perturbation(jnp.ones((2, 3), int), step=1.0)


def test_a_perturbation_of_what_is_no_number_is_none():
    gradient = jnp.ones((2, *SHAPE)).at[1, 0, 0, 0].set(jnp.nan)
    found = regularizer.perturbation(gradient, step=3.0)
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


def test_a_flat_loss_is_penalised_at_any_scale(setting):
    """Norms of gradients below 1e-19: their squares are none in float32."""
    low = jax.tree.map(
        lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, setting
    )

    def scaled(*a):
        return jnp.asarray(1e-25, jnp.float32) * loss_fn(*a)

    for mode in ("curvature_norm", "gradient"):
        one = curvature.penalty(loss_fn, step=0.5, mode=mode)(*low)
        made = curvature.penalty(scaled, step=0.5, mode=mode)
        np.testing.assert_allclose(made(*low) / 1e-25, one, rtol=1e-3)
        slope = jax.grad(lambda p, made=made: made(p, *low[1:]).sum())(low[0])
        assert all(np.abs(leaf).max() > 1e-28 for leaf in jax.tree.leaves(slope))
