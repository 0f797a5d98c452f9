"""Models whose batches count are refused; those that only round are not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.evasion import (
    ThreatModel,
    apgd,
    autoattack,
    cw,
    fab,
    losses,
    mim,
    pgd,
    reading,
    square,
)
from ntk_privacy.evasion import task as tasks

KEY = jax.random.key(3)
MODULES = {m.__name__.split(".")[-1]: m for m in (
    apgd, autoattack, cw, fab, mim, pgd, square,
)}  # fmt: skip


def _weights(dtype, scale=1.0):
    draw = np.random.default_rng(0)
    shapes = ((50, 32), (32, 32), (32, 5))
    return [jnp.asarray(scale * draw.normal(size=s) / 6, dtype) for s in shapes]


def _mlp(x, dtype=None, normalise=lambda h: h, scale=1.0):
    dtype = dtype or x.dtype
    one, two, three = _weights(dtype, scale)
    hidden = jnp.tanh(normalise(x.astype(dtype).reshape(len(x), -1) @ one))
    return jnp.tanh(hidden @ two) @ three


def _over_batch(h, share=1.0):
    mean, deviation = h.mean(0, keepdims=True), h.std(0, keepdims=True)
    return (1 - share) * h + share * (h - mean) / (deviation + 1e-5)


def _padded(x):
    filled = jnp.pad(x, ((0, -len(x) % 8), (0, 0), (0, 0), (0, 0)))
    return _mlp(filled, normalise=_over_batch)[: len(x)]


def _dropped(x):
    kept = jax.random.bernoulli(jax.random.key(0), 0.8, (len(x), 32))
    return _mlp(x, normalise=lambda h: jnp.where(kept, h / 0.8, 0))


def _placed(x):
    place = jnp.arange(len(x), dtype=x.dtype)[:, None]
    return _mlp(x) + 0.2 * jnp.sin(place + jnp.arange(5, dtype=x.dtype)[None])


def _slower(x):
    """Until the slowest image of the batch has come to rest, which is to 1e-6."""
    start = _mlp(x)

    def body(carry):
        z, _ = carry
        new = start + 0.3 * jnp.tanh(z)
        return new, jnp.max(jnp.abs(new - z))

    return jax.lax.while_loop(
        lambda c: c[1] > 1e-6, body, (start, jnp.asarray(1, x.dtype))
    )[0]


DEPEND = {
    "batch norm in training mode": functools.partial(_mlp, normalise=_over_batch),
    "a little of it": functools.partial(
        _mlp, normalise=functools.partial(_over_batch, share=0.02)
    ),
    "in bfloat16": functools.partial(_mlp, dtype="bfloat16", normalise=_over_batch),
    "through padding": _padded,
    "softmax over the batch": lambda x: jax.nn.log_softmax(_mlp(x), axis=0),
    "divided by the size of the batch": lambda x: _mlp(x) / len(x),
    "the image before": lambda x: _mlp(x) + 0.1 * jnp.roll(_mlp(x), 1, axis=0),
    "dropout by place": _dropped,
    "the place": _placed,
}
ALONE = {
    "as it is": _mlp,
    "bfloat16 inside": lambda x: _mlp(x, "bfloat16").astype(x.dtype),
    "float16 outside": lambda x: _mlp(x, "float16"),
    "less the greatest of the batch": lambda x: _mlp(x) - jnp.max(_mlp(x)) - 30,
    "classes masked": lambda x: jnp.where(jnp.arange(5)[None] < 3, _mlp(x), -1e9),
    "classes ruled out": lambda x: jnp.where(
        jnp.arange(5)[None] < 3, _mlp(x), -jnp.inf
    ),
    "small differences": lambda x: _mlp(x, scale=1 + 1e-5) - _mlp(x),
    "small numbers": lambda x: 1e-20 * _mlp(x),
    "a solver": _slower,
    "one image a time": lambda x: jax.lax.map(lambda v: _mlp(v[None])[0], x),
}


def _prepare(model, x):
    return tasks.prepare(
        model, x, jnp.zeros(len(x), jnp.int32), key=KEY, threat_model=ThreatModel()
    )


@pytest.mark.parametrize("kind", DEPEND)
@pytest.mark.parametrize("count", [1, 12])
def test_a_model_that_reads_by_its_batch_is_refused(toy, kind, count):
    with pytest.raises(ValueError, match=r"other outputs .* into evaluation mode"):
        _prepare(DEPEND[kind], toy.x[:count])


@pytest.mark.parametrize("kind", ALONE)
@pytest.mark.parametrize("count", [1, 12])
def test_a_model_that_reads_each_image_by_itself_is_not(toy, kind, count):
    _prepare(ALONE[kind], toy.x[:count])


def test_images_that_are_all_alike_hide_nothing(toy):
    same = jnp.repeat(toy.x[:1], 5, axis=0)
    with pytest.raises(ValueError, match="other images of its batch"):
        _prepare(DEPEND["batch norm in training mode"], same)


def test_a_random_model_may_draw_by_place_but_not_read_its_neighbours(toy):
    def noisy(x, *, key, inner):
        z = inner(x)
        return z + 0.1 * jax.random.normal(key, z.shape, z.dtype)

    _prepare(functools.partial(noisy, inner=_mlp), toy.x)
    with pytest.raises(ValueError, match="other images of its batch"):
        _prepare(functools.partial(noisy, inner=DEPEND["a little of it"]), toy.x)


def test_numbers_drawn_while_it_is_traced_are_refused(toy):
    """Two programs of it differ by all they are, so that rounding excused anything."""
    draw = np.random.default_rng(0)

    def model(x):
        kept = jnp.asarray(draw.uniform(size=(len(x), 32)) < 0.8)
        return _mlp(x, normalise=lambda h: jnp.where(kept, h / 0.8, 0))

    with pytest.raises(ValueError, match="other outputs at each call although it tak"):
        _prepare(model, toy.x)


def test_numbers_drawn_without_a_key_are_refused(toy):
    draw = np.random.default_rng(0)

    def noise():
        return draw.normal(size=5).astype(np.float32)

    def model(x):
        shape = jax.ShapeDtypeStruct((5,), jnp.float32)
        return _mlp(x) + jax.experimental.io_callback(noise, shape)[None]

    with pytest.raises(ValueError, match=r"other outputs at each call .* `key`"):
        _prepare(model, toy.x)


@pytest.mark.parametrize("name", MODULES)
def test_every_attack_refuses_batch_norm_in_training_mode(toy, name):
    norm = "l2" if name == "cw" else "linf"
    with pytest.raises(ValueError, match="evaluation mode"):
        MODULES[name].attack(
            DEPEND["batch norm in training mode"],
            toy.x,
            jnp.zeros(12, jnp.int32),
            key=KEY,
            threat_model=ThreatModel(norm, 0.01),
        )


def _unlucky(x, *, key, share):
    """Reads class 0 but for a share of the draws, whatever the image; or for all."""
    bad = jax.random.bernoulli(key, share, (len(x), 1))
    # An image that is dark is misread in most draws.
    dark = jnp.mean(x, axis=(1, 2, 3), keepdims=True)[:, :, 0, 0] < 0.4
    odd = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.9, (len(x), 1))
    wrong = jnp.where(bad | (dark & odd), 1.0, 0.0).astype(x.dtype)
    tilt = 0.1 * jnp.mean(x, axis=(1, 2, 3))[:, None]
    return jnp.concatenate([1 - wrong + tilt, wrong - tilt], axis=1)


@pytest.mark.parametrize("attack", [
    functools.partial(pgd.attack, num_steps=10),
    functools.partial(apgd.attack, num_steps=10),
    functools.partial(square.attack, num_queries=60),
    functools.partial(fab.attack, num_steps=10, num_targets=1),
])  # fmt: skip
def test_one_unlucky_draw_breaks_no_image(toy, attack):
    # Two images near the dark, which an attack can reach; the others are far.
    x = 0.6 + 0.3 * toy.x
    near = 0.401 + 0.02 * (toy.x - toy.x.mean(axis=(1, 2, 3), keepdims=True))
    x = x.at[3:5].set(near[3:5])
    model = functools.partial(_unlucky, share=0.15)
    y = jnp.zeros(12, jnp.int32)
    out = attack(model, x, y, key=KEY, threat_model=ThreatModel("linf", 0.05))
    found = np.flatnonzero(out.success)
    assert set(found) <= {3, 4}
    draws = jax.random.split(jax.random.key(99), 40)
    wrong = np.mean(
        [np.asarray(losses.misread(model(out.images, key=k), y)) for k in draws], 0
    )
    # What is said of an image holds over draws that nobody has seen.
    np.testing.assert_array_equal(out.success, wrong > 0.5)
    if attack.func is pgd.attack:
        assert list(found) == [3, 4]


def test_votes_are_counted_by_hand():
    def model(x, key):
        del key
        return x[:, :, 0, 0]

    rows = jnp.asarray([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [jnp.nan, 1.0, 0.0]])
    rows, keys = rows[:, :, None, None], jax.random.split(KEY, 5)
    count, wrong = reading.votes(model, rows, jnp.asarray([0, 0, 1]), keys)
    np.testing.assert_array_equal(count, [0, 5, 5])
    np.testing.assert_array_equal(wrong, [False, True, True])
