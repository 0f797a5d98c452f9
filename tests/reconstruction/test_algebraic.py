import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import (
    algebraic,
    certificate,
    layer_inversion,
    low_rank,
    one_output,
)

SHAPE = (8, 8, 1)


@functools.cache
def problem(dtype="float32", *, widths=(256, 256), n=8, progress=None, bias=0.0):
    """Images, exact duals, and the parameters of linearized training on them."""
    key_x, key_p, key_b = jax.random.split(jax.random.key(7), 3)
    x = jax.random.uniform(key_x, (n, *SHAPE), jnp.float64) - 0.4
    y = jnp.where(jnp.arange(n) < n // 2, -1.0, 1.0)
    model = MLP(widths=widths)
    params_0 = model.init_params(key_p, SHAPE, jnp.float64)
    for i, name in enumerate(sorted(params_0)):
        shape = params_0[name]["bias"].shape
        noise = bias * jax.random.normal(jax.random.fold_in(key_b, i), shape)
        params_0[name]["bias"] = noise
    params_0 = jax.tree.map(lambda p: p.astype(dtype), params_0)
    wide = jax.tree.map(lambda p: p.astype("float64"), params_0)
    flat, unravel = jax.flatten_util.ravel_pytree(wide)
    jacobian = jax.jacrev(lambda p: model.apply_fn(unravel(p), x)[:, 0])(flat)
    values, vectors = jnp.linalg.eigh(jacobian @ jacobian.T)
    gap = vectors.T @ (y - model.apply_fn(wide, x)[:, 0])
    reach = 1.0 if progress is None else -jnp.expm1(-values * progress / values[-1])
    duals = vectors @ (reach * gap / values)
    params_t = unravel(flat + jacobian.T @ duals)
    params_t = jax.tree.map(lambda p: p.astype(dtype), params_t)
    return x, duals[:, None], params_0, params_t


def decode(params_0, params_t, **kwargs):
    return algebraic.reconstruct(
        params_0, params_t, key=jax.random.key(0), image_shape=SHAPE, **kwargs
    )


def distances(x, images):
    """Squared distances (truth, decoded)."""
    a, b = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (x, images))
    return ((a[:, None] - b[None]) ** 2).sum(-1)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-7), ("float64", 1e-18)]
)
def test_every_image_dual_and_gate_is_exact(dtype, tolerance):
    x, duals, params_0, params_t = problem(dtype)
    out = decode(params_0, params_t)
    assert out.estimated_num_images == len(x)
    assert out.rank_gap > 100
    assert bool(out.certified.all())
    assert out.images.dtype == dtype
    chex.assert_shape(out.images, x.shape)
    found = distances(x, out.images)
    assert found.min(1).max() < tolerance
    match = found.argmin(1)
    assert len(set(match)) == len(x)
    chex.assert_trees_all_close(
        np.asarray(out.duals, np.float64)[match],
        duals,
        rtol=1e-2 * tolerance**0.5 + 1e-4,
    )
    hidden = x.reshape(len(x), -1)
    for i in range(2):
        layer = jax.tree.map(lambda p: p.astype("float64"), params_0[f"Dense_{i}"])
        before = hidden @ layer["kernel"] + layer["bias"][None]
        if i == 0:
            hidden = jnp.maximum(before, 0.0)
    assert np.mean(np.asarray(out.gates)[match] != np.asarray(before > 0)) < 1e-3
    error = np.asarray(out.activations)[match] - np.asarray(hidden)
    assert np.abs(error).max() < 1e-3


@pytest.mark.parametrize(
    "options",
    [{"progress": 3.0}, {"bias": 0.05}, {"widths": (256, 256, 256)}],
    ids=["stopped-early", "initial-biases", "three-hidden-layers"],
)
def test_images_are_exact_when(options):
    x, _, params_0, params_t = problem("float64", **options)
    out = decode(params_0, params_t)
    assert bool(out.certified.all())
    assert distances(x, out.images).min(1).max() < 1e-10


def test_fewer_units_than_pixels_are_enough():
    x, _, params_0, params_t = problem("float64", widths=(48, 256), n=4)
    out = decode(params_0, params_t)
    assert bool(out.certified.all())
    assert distances(x, out.images).min(1).max() < 1e-10


def test_auxiliary_images_start_the_search_and_change_nothing_else():
    x, _, params_0, params_t = problem()
    auxiliary = jax.random.uniform(jax.random.key(3), (64, *SHAPE), jnp.float32) - 0.4
    out = decode(params_0, params_t, auxiliary=auxiliary, num_starts=64)
    assert bool(out.certified.all())
    assert distances(x, out.images).min(1).max() < 1e-7


def test_the_same_key_gives_the_same_bits():
    _, _, params_0, params_t = problem()
    first, second = decode(params_0, params_t), decode(params_0, params_t)
    chex.assert_trees_all_equal(first.images, second.images)


def noisy(params, scale):
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    noise = [p + scale * jax.random.normal(k, p.shape, p.dtype) for p, k in pairs]
    return jax.tree.unflatten(treedef, noise)


def spoil(params, layer, column):
    kernel = params[layer]["kernel"].at[:, column].set(0.3)
    return {**params, layer: {**params[layer], "kernel": kernel}}


@pytest.mark.parametrize("layer", ["Dense_0", "Dense_1"])
@pytest.mark.parametrize("damage", ["column", "faint", "strong", "unrelated"])
def test_what_is_certified_is_true_whatever_was_done_to_the_weights(layer, damage):
    x, _, params_0, params_t = problem()
    if damage == "column":
        bad = spoil(params_t, layer, 11)
    elif damage == "unrelated":
        bad = {**params_t, layer: noisy(params_t, 1.0)[layer]}
    else:
        bad = {
            **params_t,
            layer: noisy(params_t, 1e-5 if damage == "faint" else 3e-3)[layer],
        }
    out = decode(params_0, bad, num_images=len(x), max_rounds=4)
    sure = np.asarray(out.certified)
    nearest = distances(x, out.images).min(0)
    size = float(jnp.mean(jnp.sum(x**2, axis=(1, 2, 3))))
    assert np.all(nearest[sure] < 0.1 * size)
    if damage == "faint":
        assert sure.any()
    if damage in ("strong", "unrelated"):
        assert not sure.all()
    assert f"{sure.sum()} of {len(x)} images certified" in out.message


def test_the_size_of_the_training_set_is_known_where_features_moved():
    x, _, params_0, _ = problem("float64", widths=(64, 64), n=6)
    y = jnp.where(jnp.arange(6) < 3, -1.0, 1.0)[:, None]
    model = MLP(widths=(64, 64))

    def step(params, _):
        grads = jax.grad(lambda p: jnp.mean((model.apply_fn(p, x) - y) ** 2))(params)
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, grads), None

    params_t, _ = jax.lax.scan(step, params_0, length=400)
    key = jax.random.key(3)
    assert algebraic.count_images(params_0, params_t, key=key) == 6
    found = decode(params_0, params_t)
    assert found.rank_gap < low_rank.CLEAR_GAP
    assert found.estimated_num_images == 6
    # More images than pixels: the rank says nothing.
    wide = noisy(params_0, 0.1)
    assert algebraic.count_images(params_0, wide, key=key) is None


def test_a_failed_search_says_what_is_missing():
    _, _, params_0, params_t = problem()
    out = decode(params_0, params_t, num_starts=2, max_rounds=1)
    assert "not found in 1 rounds" in out.message
    assert not bool(out.certified[-1])


def replaced(params, name, **leaves):
    return {**params, name: {**params[name], **leaves}}


def test_bad_input_is_one_clear_sentence():
    _, _, params_0, params_t = problem()
    shallow = {k: params_0[k] for k in ("Dense_0", "Dense_1")}
    with pytest.raises(ValueError, match=r"two or more hidden layers.*kkt"):
        decode(shallow, {k: params_t[k] for k in shallow})
    renamed = [{"Conv_0": p["Dense_0"], **p} for p in (params_0, params_t)]
    with pytest.raises(ValueError, match=r"ReLU MLP.*kkt"):
        decode(*renamed)
    bare = [
        replaced({**p, "Dense_1": {}}, "Dense_1", kernel=p["Dense_1"]["kernel"])
        for p in (params_0, params_t)
    ]
    with pytest.raises(ValueError, match=r"scale.*kkt"):
        decode(*bare)
    with pytest.raises(ValueError, match="differ in structure"):
        decode(bare[0], params_t)
    fixed = replaced(params_t, "Dense_1", bias=params_0["Dense_1"]["bias"])
    with pytest.raises(ValueError, match=r"did not move.*kkt"):
        decode(params_0, fixed)
    with pytest.raises(ValueError, match="equal"):
        decode(params_0, params_0)
    broken = params_t["Dense_0"]["bias"].at[3].set(jnp.nan)
    with pytest.raises(ValueError, match="NaN"):
        decode(params_0, replaced(params_t, "Dense_0", bias=broken))
    with pytest.raises(ValueError, match=r"units of the last hidden layer.*kkt"):
        decode(params_0, params_t, num_images=250)
    with pytest.raises(ValueError, match="first layer takes 64"):
        algebraic.reconstruct(
            params_0, params_t, key=jax.random.key(0), image_shape=(28, 28, 1)
        )
    frozen = replaced(params_t, "Dense_0", kernel=params_0["Dense_0"]["kernel"])
    with pytest.raises(ValueError, match=r"hidden layer 1 did not move.*kkt"):
        decode(params_0, frozen)
    mute = replaced(
        params_0, "Dense_2", kernel=jnp.zeros_like(params_0["Dense_2"]["kernel"])
    )
    with pytest.raises(ValueError, match=r"output weights of zero.*kkt"):
        decode(mute, params_t)
    with pytest.raises(ValueError, match="auxiliary_images=0"):
        decode(params_0, params_t, auxiliary=np.zeros((0, *SHAPE), np.float32))


def test_copies_of_units_tell_no_images_apart():
    layers = layer_inversion.Layers(
        [np.tile(np.eye(3, 4), 16), np.random.default_rng(0).normal(size=(64, 8))],
        [np.zeros(64), np.zeros(8)],
        [],
        [],
    )
    # The fourth column is zero: such units are one.
    whole = layers._replace(
        kernels=[*layers.kernels, None], biases=[*layers.biases, None]
    )
    assert certificate._distinct_units(whole) == 4 + 8


def test_units_of_more_noise_than_others_stay_closed_and_one_wrong_gate_opens_none():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(50, 2000)) * rng.choice([1.0, 6.0], 2000, p=[0.95, 0.05])
    open_ = rng.random(noise.shape) < 0.5
    activations = np.where(open_, 1e4, 0.0) + noise
    floor = layer_inversion._noise_floor(activations)
    np.testing.assert_array_equal(activations > floor[:, None], open_)
    spoilt = np.where(open_, 1e4, 0.0) + rng.normal(size=noise.shape)
    spoilt[:, 0] = -1e6
    rms = np.sqrt(np.mean(np.where(spoilt < 0, spoilt, 0.0) ** 2, axis=1))
    assert np.all(layer_inversion._noise_floor(spoilt) < 40 * rms)
    assert layer_inversion._noise_floor(np.ones((2, 5))).tolist() == [0.0, 0.0]


def test_a_row_whose_bias_did_not_move_is_no_image_and_no_overflow():
    rng = np.random.default_rng(0)
    shapes = [(9, 12), (12, 20), (20, 1)]
    layers = layer_inversion.Layers(
        [rng.normal(size=s) for s in shapes],
        [np.zeros(s[1]) for s in shapes],
        [rng.normal(size=s) for s in shapes],
        [rng.normal(size=12), np.zeros(20), np.ones(1)],
    )
    rows = rng.normal(size=(3, 20)) * (rng.random((3, 20)) < 0.5)
    decoded = layer_inversion.peel(
        layers, rows, np.arange(20), span=None, dtype=np.dtype(np.float64)
    )
    assert np.all(decoded.forward_residuals > 0.1)
    rows[0] *= 1e-160
    layer_inversion.peel(
        layers, rows, np.arange(20), span=None, dtype=np.dtype(np.float64)
    )


def test_images_that_no_number_format_holds_are_left_out(monkeypatch):
    real = one_output.decode

    def spoilt(*args, **options):
        found = real(*args, **options)
        wild = found.decoded.inputs.copy()
        wild[0] *= 1e60
        residuals = found.residuals.copy()
        residuals[0] = 1e60
        decoded = found.decoded._replace(inputs=wild)
        return found._replace(decoded=decoded, residuals=residuals)

    monkeypatch.setattr(one_output, "decode", spoilt)
    x, _, params_0, params_t = problem()
    out = decode(params_0, params_t)
    assert len(out.images) == len(out.residuals) == len(x) - 1
    assert bool(jnp.all(jnp.isfinite(out.images)))
    assert not bool(out.certified.any())
    told = f"{len(x) - 1} decoded but not certified"
    assert "1 beyond all bounds and left out" in out.message
    assert told in out.message
