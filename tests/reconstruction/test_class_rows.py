"""Rows of a new network, class by class: exact, of one image each, or none."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import (
    algebraic,
    auto,
    class_rows,
    closed_units,
    evidence,
    gated_rows,
    layer_inversion,
    low_rank,
    several_outputs,
)

SHAPE = (10, 10, 1)
CLASSES = 4
NET = MLP((320, 320), CLASSES)


def _one_hot(labels):
    return jax.nn.one_hot(labels, CLASSES, dtype=jnp.float32)


def _cross_entropy(logits, labels):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def _centred(logits, labels):
    return jnp.mean((logits - _one_hot(labels) + 1 / CLASSES) ** 2)


def _zero_or_one(logits, labels):
    return jnp.mean((logits - _one_hot(labels)) ** 2)


def _shared(loss, n, *, scale=1.0):
    """A network of small outputs, its images, and one gradient of their loss."""
    keys = jax.random.split(jax.random.key(2), 2)
    x = jax.random.normal(keys[0], (n, *SHAPE), jnp.float32)
    params = NET.init_params(keys[1], SHAPE)
    out = params["Dense_2"]
    params["Dense_2"] = {**out, "kernel": 0.2 * scale * out["kernel"]}
    labels = jnp.arange(n) % CLASSES
    gradient = jax.grad(lambda p: loss(NET.apply_fn(p, x), labels))(params)
    return params, gradient, x


def _space(params, gradient):
    factors = low_rank.factorize(
        jnp.concatenate(
            [gradient["Dense_1"]["kernel"], gradient["Dense_1"]["bias"][None]]
        ),
        key=jax.random.key(0),
    )
    kernel = np.asarray(params["Dense_2"]["kernel"])
    change = np.asarray(gradient["Dense_2"]["bias"])
    return class_rows.make(factors, kernel, change)


def _find(params, gradient, space):
    first, second = params["Dense_0"], params["Dense_1"]
    return class_rows.find(
        space,
        functools.partial(
            layer_inversion.activations_of, [first["kernel"]], [first["bias"]]
        ),
        (second["kernel"], second["bias"]),
        gradient["Dense_0"]["kernel"],
        key=jax.random.key(1),
        num_starts=None,
        max_rounds=10,
    )


def _gates(params, x):
    first, second = params["Dense_0"], params["Dense_1"]
    flat = jnp.asarray(x.reshape(len(x), -1))
    hidden = layer_inversion.activations_of([first["kernel"]], [first["bias"]], flat)
    scales = jnp.ones(len(x), x.dtype)
    return np.asarray(
        layer_inversion.gates_of(second["kernel"], second["bias"], hidden, scales)
    )


def _open(rows):
    return np.abs(rows) > 1e-3 * np.abs(rows).max(1, keepdims=True)


@pytest.fixture(scope="module")
def shared():
    params, gradient, x = _shared(_cross_entropy, 16)
    space = _space(params, gradient)
    return params, gradient, x, space, _find(params, gradient, space)


def test_every_row_is_open_where_its_own_image_is(shared):
    params, _, x, _, found = shared
    agree = np.mean(_open(found.rows)[:, None] == _gates(params, x)[None], axis=2)
    assert found.rows.shape == (16, 320)
    assert sorted(agree.argmax(1)) == list(range(16))
    assert agree.max(1).min() > 0.98
    assert np.all(found.residuals < 1e-3)
    np.testing.assert_allclose(np.linalg.norm(found.rows, axis=1), 1.0, atol=1e-5)


def test_gates_that_are_a_little_wrong_lead_to_the_exact_row(shared):
    params, _, x, space, _ = shared
    gates = _gates(params, x)[0, space.columns[0]]
    row, size = class_rows._exact(space, 0, gates)
    spoilt = gates.copy()
    spoilt[np.flatnonzero(gates)[:3]] = False
    again, spoilt_size = class_rows._exact(space, 0, spoilt)
    assert abs(row @ again) > 1 - 1e-6
    assert max(size, spoilt_size) < 1e-4


def test_a_row_of_no_single_image_is_none(shared):
    params, _, x, space, _ = shared
    gates = _gates(params, x)[:, space.columns[0]]
    # Image 4 is of the class of image 0: what both close, two directions leave out.
    assert class_rows._exact(space, 0, gates[0] | gates[4]) is None
    random = np.random.default_rng(0).random(gates.shape[1]) < 0.5
    assert class_rows._exact(space, 0, random) is None
    few = np.ones(gates.shape[1], bool)
    few[:10] = False
    assert class_rows._exact(space, 0, few) is None
    # The row of image 0 vanishes here, and on as many units that are told open.
    more = gates[0].copy()
    more[np.flatnonzero(~more)[:50]] = True
    assert np.sum(~more) > 16 + class_rows._SPARE
    assert class_rows._exact(space, 0, more) is None


def test_more_images_than_there_are_leave_directions_of_nothing_finite():
    params, gradient, _ = _shared(_cross_entropy, 8)
    left, values, right = np.linalg.svd(
        np.asarray(gradient["Dense_1"]["kernel"], np.float64), full_matrices=False
    )
    values[8:] = 0.0
    factors = low_rank.Factors(
        jnp.asarray(left[:, :20], jnp.float32),
        values[:20],
        jnp.asarray(right[:20], jnp.float32),
        1.0,
    )
    kernel = np.asarray(params["Dense_2"]["kernel"])
    space = class_rows.make(factors, kernel, np.asarray(gradient["Dense_2"]["bias"]))
    for divided in space.factors:
        assert np.all(divided.values >= 0.9e-8 * divided.values[0])
        assert np.all(np.isfinite(np.asarray(divided.right)))
        assert np.all(np.isfinite(np.asarray(divided.left)))


def test_few_images_through_many_layers_are_searched_by_class_first(monkeypatch):
    asked = []

    def find(space, *_, **__):
        asked.append(space.basis.shape[0])
        raise low_rank.RankHiddenError(1.0, 1, 1)

    monkeypatch.setattr(class_rows, "find", find)
    for depth in (2, 3):
        net = MLP((48,) * depth, CLASSES)
        params = net.init_params(jax.random.key(0), (4, 4, 1))
        x = jax.random.normal(jax.random.key(1), (5, 4, 4, 1), jnp.float32)
        gradient = jax.grad(
            lambda p, net=net, x=x: _cross_entropy(
                net.apply_fn(p, x), jnp.arange(5) % CLASSES
            )
        )(params)
        known = evidence.of_gradient(net, params, gradient, image_shape=(4, 4, 1))
        algebraic.from_evidence(
            known, algebraic.Config(max_rounds=1), key=jax.random.key(0)
        )
    assert asked == [5]


@pytest.mark.parametrize(
    ("loss", "subtracted"),
    [(_cross_entropy, True), (_centred, True), (_zero_or_one, False)],
)
def test_the_direction_of_a_class_is_that_of_its_duals(loss, subtracted):
    params, gradient, x = _shared(loss, 8, scale=0.1)
    space = _space(params, gradient)
    kernel = np.asarray(params["Dense_2"]["kernel"], np.float64)
    duals = jax.grad(
        lambda out: loss(out, jnp.arange(8) % CLASSES), argnums=0
    )(NET.apply_fn(params, x))  # fmt: skip
    mean = kernel.mean(1) if subtracted else np.zeros(len(kernel))
    for i in range(8):
        units, direction = (
            space.columns[i % CLASSES],
            space.directions[i % CLASSES],
        )
        drawn = kernel[units, i % CLASSES] - mean[units]
        np.testing.assert_allclose(direction, drawn, atol=1e-6)
        true = kernel[units] @ np.asarray(duals[i], np.float64)
        cosine = abs(true @ direction) / np.linalg.norm(true)
        assert cosine > 0.99 * np.linalg.norm(direction)


def test_many_images_are_decoded_by_their_classes_alone(monkeypatch):
    params, gradient, x = _shared(_cross_entropy, several_outputs.MANY)

    def never(*_, **__):
        raise AssertionError("rows were left to the search by zeros")

    monkeypatch.setattr(gated_rows, "find_gated_rows", never)
    monkeypatch.setattr(closed_units, "from_evidence", never)
    known = evidence.of_gradient(
        NET, params, gradient, image_shape=SHAPE, bounds=(-5.0, 5.0)
    )
    found = auto.reconstruct(known, key=jax.random.key(0))
    assert found.verdict.word == "exact"
    assert bool(np.all(found.certified))
    distance = np.sum(
        (np.asarray(x)[:, None] - np.asarray(found.images)[None]) ** 2, axis=(2, 3, 4)
    )
    assert distance.min(1).max() < 1e-6
    assert sorted(distance.argmin(1)) == list(range(len(x)))


def test_rows_of_classes_are_where_the_search_by_zeros_begins(monkeypatch):
    params, gradient, _ = _shared(_cross_entropy, several_outputs.MANY)
    real, given = class_rows.find, {}

    def few(*args, **options):
        found = real(*args, **options)
        given["rows"] = found.rows[:-2]
        return gated_rows.GatedRows(found.rows[:-2], found.residuals[:-2], 1)

    def search(*_, known, **__):
        given["known"] = known and known.rows
        raise low_rank.RankHiddenError(1.0, 1, 1)

    monkeypatch.setattr(class_rows, "find", few)
    monkeypatch.setattr(gated_rows, "find_gated_rows", search)
    known = evidence.of_gradient(NET, params, gradient, image_shape=SHAPE)
    algebraic.from_evidence(known, key=jax.random.key(0))
    np.testing.assert_array_equal(given["known"], given["rows"])
    fewer = dataclasses.replace(known, num_images=several_outputs.MANY - 1)
    given.clear()
    algebraic.from_evidence(fewer, key=jax.random.key(0))
    assert given["known"] is None


def test_pruned_output_weights_are_passed_over(shared):
    params, gradient, *_ = shared
    out = params["Dense_2"]
    pruned = out["kernel"].at[:200, 0].set(0.0)
    alike = jnp.tile(out["kernel"][:, :1], (1, CLASSES))
    ones = {**gradient, "Dense_2": {"bias": jnp.ones(CLASSES)}}
    fewer = _space({**params, "Dense_2": {**out, "kernel": pruned}}, ones)
    assert len(fewer.columns) == CLASSES - 1
    none = _space({**params, "Dense_2": {**out, "kernel": alike}}, gradient)
    assert len(none.columns) == 0
    assert len(_find(params, gradient, none).rows) == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_step_of_a_gradient_is_not_rounded_to_16_bits(dtype):
    params = {"w": jnp.ones((4, 4), dtype)}
    gradient = {"w": jnp.linspace(1.0, 1.1, 16).reshape(4, 4).astype(dtype)}
    known = evidence.of_gradient(NET, params, gradient, image_shape=(2, 2, 1))
    assert known.params_0["w"].dtype == jnp.float32
    change = known.params_0["w"] - known.params_t["w"]
    np.testing.assert_array_equal(change, gradient["w"].astype(jnp.float32))
    further = known.params_0["w"] - evidence.far(known)["w"]
    np.testing.assert_allclose(further, 256 * change, rtol=1e-5)


def test_a_layer_of_small_gradient_is_hardly_rounded():
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=(8, 8)).astype(np.float32) for name in "ab"}
    large, small = (rng.normal(size=(8, 8)).astype(np.float32) for _ in range(2))
    gradient = {"a": large, "b": 1e-4 * small}
    known = evidence.of_gradient(NET, params, gradient, image_shape=(8, 1, 1))

    def error(params_t):
        change = np.float64(params_t["b"]) - np.float64(params["b"])
        change = change / np.linalg.norm(change)
        return np.linalg.norm(change + small / np.linalg.norm(small))

    assert error(evidence.far(known)) < error(known.params_t) / 50
    whole = dataclasses.replace(known, step=None)
    assert evidence.far(whole) is known.params_t
