"""The KKT attack: recovers, is what was published, resumes, holds, and refuses."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_privacy
from ntk_privacy import _tree
from ntk_privacy.evaluation import match
from ntk_privacy.kernels import structured
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import kkt
from ntk_privacy.reconstruction.projection import project
from ntk_privacy.training import linearized, train

SHAPE = (4, 4, 1)
BOUNDS = (-0.5, 0.5)
KEY = jax.random.key(7)


@functools.cache
def _victim(width=24, num_outputs=1, n=4, dtype=jnp.float64, shape=SHAPE):
    model = MLP((width, width), num_outputs)
    params_0 = model.init_params(jax.random.key(0), shape, dtype)
    x = jax.random.uniform(jax.random.key(1), (n, *shape), dtype, -0.5, 0.5)
    y = jax.random.normal(jax.random.key(2), (n, num_outputs), dtype)
    kernel = structured.ntk(model, params_0, x, trace_outputs=False)
    spectrum = linearized.decompose(kernel, model.apply_fn(params_0, x), y)
    duals = linearized.duals(spectrum, linearized.gradient_flow(jnp.inf))
    params_t = linearized.params_at(model.apply_fn, params_0, x, duals)
    return model, params_0, params_t, x, duals


def _settings(num_steps=6, **changes):
    return dataclasses.replace(kkt.FAST, num_steps=num_steps, **changes)


PAPER_SHORT = dataclasses.replace(kkt.PAPER, num_steps=6)


def _reconstruct(model, params_0, params_t, **changes):
    given = {
        "key": KEY,
        "image_shape": SHAPE,
        "num_images": 5,
        "bounds": BOUNDS,
        "settings": _settings(),
    }
    return kkt.reconstruct(model, params_0, params_t, **{**given, **changes})


def test_a_tiny_training_set_is_recovered_from_noise():
    model, params_0, params_t, x, _ = _victim(width=128)
    found = ntk_privacy.reconstruction.kkt.reconstruct(
        model,
        params_0,
        params_t,
        key=KEY,
        image_shape=SHAPE,
        num_images=8,
        bounds=BOUNDS,
        points="init",
        settings=_settings(1500),
    )
    assert not found.nonfinite
    pairs = match(x, found.images)
    # Noise is at about 2 * 16 / 12.
    assert (pairs.squared_distances < 0.02).all(), pairs.squared_distances
    assert found.losses[-1] < 1e-3 * found.losses[0]
    chex.assert_shape(found.duals, (1, 8, 1))


def test_the_paper_sharpness_is_11_20_110_200():
    model, params_0, params_t, _, _ = _victim()
    attack = kkt.prepare(
        model,
        params_0,
        params_t,
        key=KEY,
        image_shape=SHAPE,
        num_images=8,
        bounds=BOUNDS,
        points="final",
        settings=kkt.PAPER,
    )
    steps = (0, 20_000, 40_000, 45_500, 45_600, 79_999)
    got = [float(attack.step.sharpness(jnp.asarray(i), jnp.float64)) for i in steps]
    np.testing.assert_allclose(got, [11, 20, 110, 10 + 10**2.275, 200, 200], rtol=1e-9)
    # The initial point and the constants of section 9.3.
    images, duals = attack.state.latents, attack.state.duals
    assert images.shape == (8, 16)
    assert duals.shape == (1, 8, 1)
    assert (jnp.abs(duals) <= 0.5).all()
    assert duals.min() < 0 < duals.max()
    big = kkt.prepare(
        model,
        params_0,
        params_t,
        key=KEY,
        image_shape=SHAPE,
        num_images=2000,
        bounds=BOUNDS,
        settings=kkt.PAPER,
    ).state
    np.testing.assert_allclose(big.latents.std(), 0.2, rtol=0.02)
    np.testing.assert_allclose(big.duals.mean(), 0.0, atol=0.02)
    np.testing.assert_allclose(big.duals.std(), 12**-0.5, rtol=0.03)
    assert kkt.PAPER.num_steps == 80_000
    assert attack.step.learning_rate == kkt.PAPER.dual_learning_rate == 0.02


def _published_loss(model, params_0, params_t, images, duals, sharpness, mean):
    """Section 9.3 of the published attack, word for word."""
    m = len(duals)

    def inner(params):
        return jnp.mean(duals * model.apply_fn(params, images, sharpness))

    gradient = jax.grad(inner)(params_t)
    residual = jax.tree.map(lambda t, o, g: t - o - g, params_t, params_0, gradient)
    stationary = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(residual))
    above = jax.nn.relu(images - (1 - mean)) ** 2
    below = jax.nn.relu(-mean - images) ** 2
    return stationary + 0.1 * m * jnp.mean(above + below), stationary


def test_paper_settings_are_the_published_attack_step_by_step():
    num_outputs = 3
    model, params_0, params_t, _, _ = _victim(num_outputs=num_outputs)
    mean = 0.3
    found = _reconstruct(
        model,
        params_0,
        params_t,
        bounds=(-mean, 1 - mean),
        points="final",
        settings=PAPER_SHORT,
    )
    start = kkt.prepare(
        model,
        params_0,
        params_t,
        key=KEY,
        image_shape=SHAPE,
        num_images=5,
        bounds=(-mean, 1 - mean),
        points="final",
        settings=PAPER_SHORT,
    ).state
    images = 3 * start.latents.reshape(5, *SHAPE)  # so that the box is left
    again = _reconstruct(
        model,
        params_0,
        params_t,
        bounds=(-mean, 1 - mean),
        points="final",
        settings=PAPER_SHORT,
        initial_images=images,
        initial_duals=start.duals / (5 * num_outputs),
    )
    for found_, first in ((found, start.latents.reshape(5, *SHAPE)), (again, images)):
        variables = (first, start.duals[0])
        adam = optax.adam(0.02)
        state = adam.init(variables)
        losses = []

        @jax.jit
        def step(variables, state, sharpness, adam=adam):
            grads, loss = jax.grad(
                lambda v: _published_loss(
                    model, params_0, params_t, *v, sharpness, mean
                ),
                has_aux=True,
            )(variables)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = adam.update(grads, state)
            return optax.apply_updates(variables, updates), state, loss

        for i in range(6):
            sharpness = jnp.asarray(min(10 + 10 ** (i / 20_000), 200.0))
            variables, state, loss = step(variables, state, sharpness)
            losses.append(float(loss))
        np.testing.assert_allclose(found_.losses, losses, rtol=1e-8)
        chex.assert_trees_all_close(found_.images, variables[0], rtol=1e-6, atol=1e-9)
        chex.assert_trees_all_close(
            found_.duals[0] * 5 * num_outputs, variables[1], rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("points", ["both", "midpoint"])
def test_kernel_form_walks_the_path_of_the_parameter_form(points):
    model, params_0, params_t, _, _ = _victim(num_outputs=3)
    common = {"points": points, "bounds": (-0.05, 0.05)}
    slow = _settings(duals="adam", form="parameter", project=False)
    fast = _settings(duals="adam", form="kernel", project=False)
    a = _reconstruct(model, params_0, params_t, settings=slow, **common)
    b = _reconstruct(model, params_0, params_t, settings=fast, **common)
    chex.assert_trees_all_close(a[:3], b[:3], rtol=1e-6, atol=1e-9)
    # So do the projected ones, and those that count all layers.
    for change in ({"project": True}, {"first_layer": True}):
        slow, fast = (dataclasses.replace(s, **change) for s in (slow, fast))
        a = _reconstruct(model, params_0, params_t, settings=slow, **common)
        b = _reconstruct(model, params_0, params_t, settings=fast, **common)
        chex.assert_trees_all_close(a[:3], b[:3], rtol=1e-6, atol=1e-9)


def test_one_hidden_layer_keeps_the_first_layer():
    # Its last layer alone says nothing of single images.
    model = MLP((24,), 1)
    params_0 = model.init_params(jax.random.key(0), SHAPE, jnp.float64)
    x = jax.random.uniform(jax.random.key(1), (4, *SHAPE), jnp.float64, -0.5, 0.5)
    duals = jnp.ones((4, 1), jnp.float64)
    params_t = linearized.params_at(model.apply_fn, params_0, x, duals)
    few, all_ = (
        _reconstruct(model, params_0, params_t, settings=_settings(first_layer=layer))
        for layer in (False, True)
    )
    chex.assert_trees_all_equal(few.images, all_.images)
    chex.assert_trees_all_equal(few.losses, all_.losses)


def test_solved_duals_are_the_least_loss_and_the_truth_stays_put():
    model, params_0, params_t, x, duals = _victim()
    found = _reconstruct(
        model,
        params_0,
        params_t,
        num_images=4,
        points="init",
        settings=_settings(3, ridge=0.0, start_sharpness=1e9, max_sharpness=1e9),
        initial_images=x,
    )
    assert found.losses[0] < 1e-12 * _tree.squared_norm(_tree.sub(params_t, params_0))
    at_start = kkt.reconstruct(
        model,
        params_0,
        params_t,
        key=KEY,
        image_shape=SHAPE,
        num_images=4,
        bounds=BOUNDS,
        points="init",
        settings=_settings(1, ridge=0.0, start_sharpness=1e9, max_sharpness=1e9),
        initial_images=x,
    )
    chex.assert_trees_all_close(at_start.duals[0], duals, rtol=1e-6)


def _standard_run(dtype):
    model = MLP((64, 64))
    params_0 = model.init_params(jax.random.key(0), (8, 8, 1), dtype)
    x = jax.random.uniform(jax.random.key(1), (5, 8, 8, 1), dtype, -0.5, 0.5)
    y = jnp.asarray([-1, -1, 1, 1, 1], dtype)[:, None]
    largest = float(jnp.linalg.eigvalsh(structured.ntk(model, params_0, x))[-1])
    trained = train.full_batch(
        model.apply_fn,
        params_0,
        x,
        y,
        optimizer=train.stable_optimizer(largest, 5),
        max_steps=500,
    )
    return params_0, trained.params, x


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_images_lie_in_the_projection_after_standard_training(dtype):
    params_0, params_t, x = _standard_run(dtype)
    (small_0, small_t), basis = project(params_0, params_t)
    assert basis.dtype == dtype
    assert basis.shape[1] < 64
    if dtype == jnp.float64:
        assert basis.shape[1] == 5
    chex.assert_trees_all_close(
        basis.T @ basis, jnp.eye(basis.shape[1], dtype=dtype), atol=1e-5
    )
    flat = x.reshape(5, -1)
    chex.assert_trees_all_close(flat @ basis @ basis.T, flat, atol=2e-3)
    # On its coordinates the smaller network does what the whole one does.
    model = MLP((64, 64))
    for small, whole in ((small_0, params_0), (small_t, params_t)):
        chex.assert_trees_all_close(
            model.apply_fn(small, flat @ basis), model.apply_fn(whole, x), atol=5e-3
        )


def test_the_projection_keeps_an_image_whose_dual_is_tiny():
    model, params_0, _, x, duals = _victim(width=64, dtype=jnp.float32)
    duals = duals.at[1].mul(1e-4)
    params_t = linearized.params_at(model.apply_fn, params_0, x, duals)
    _, basis = project(params_0, params_t)
    assert basis.shape[1] == 4
    flat = x.reshape(4, -1)
    chex.assert_trees_all_close(flat @ basis @ basis.T, flat, atol=0.05)


@pytest.mark.parametrize("settings", [_settings(), PAPER_SHORT])
def test_held_images_do_not_move(settings):
    model, params_0, params_t, x, _ = _victim()
    noise = jax.random.normal(KEY, (3, *SHAPE))
    start = jnp.concatenate([x[:2], noise])
    movable = np.array([False, False, True, True, True])
    found = _reconstruct(
        model,
        params_0,
        params_t,
        settings=settings,
        initial_images=start,
        movable=movable,
    )
    chex.assert_trees_all_close(found.images[:2], x[:2], atol=1e-9)
    assert (jnp.abs(found.images[2:] - start[2:]).max((1, 2, 3)) > 1e-2).all()


@pytest.mark.parametrize("settings", [_settings(), PAPER_SHORT])
def test_resumed_at_any_chunk_it_ends_with_the_same_bits(settings):
    model, params_0, params_t, _, _ = _victim(dtype=jnp.float32)
    attack = kkt.prepare(
        model,
        params_0,
        params_t,
        key=KEY,
        image_shape=SHAPE,
        num_images=5,
        bounds=BOUNDS,
        settings=settings,
    )
    saved = {}

    def keep(step, state, metrics):
        saved[step] = jax.tree.map(np.asarray, state)

    whole = kkt.run(attack, chunk=2, callback=keep)
    assert sorted(saved) == [2, 4, 6]
    chex.assert_type([whole.images, whole.duals, whole.losses], jnp.float32)
    for step in (2, 4, 6):
        rest = kkt.run(attack._replace(state=saved[step]), first_step=step, chunk=2)
        chex.assert_trees_all_equal(rest.state, whole.state)
        chex.assert_trees_all_equal(rest.images, whole.images)
        chex.assert_trees_all_equal(rest.losses, whole.losses[step:])


def test_a_lost_search_says_so_and_leaves_its_last_finite_state():
    model, params_0, params_t, _, _ = _victim()
    start = jax.random.normal(KEY, (5, *SHAPE))
    found = _reconstruct(
        model,
        params_0,
        params_t,
        settings=dataclasses.replace(PAPER_SHORT, learning_rate=1e200, num_steps=10),
        initial_images=start,
        chunk=4,
    )
    assert found.nonfinite
    assert len(found.losses) == 4  # it stopped after the chunk
    chex.assert_tree_all_finite(found.state)
    chex.assert_tree_all_finite(found.images)
    found = _reconstruct(
        model, params_0, params_t, initial_images=start.at[0, 0].set(jnp.nan)
    )
    assert found.nonfinite


def test_any_flax_network_goes_in_the_parameter_form():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Conv(3, (3, 3), param_dtype=x.dtype)(x))
            return nn.Dense(2, param_dtype=x.dtype)(x.reshape(len(x), -1))

    net = Net()
    x = jax.random.normal(KEY, (3, *SHAPE))
    params_0 = net.init(jax.random.key(0), x)["params"]

    def apply_fn(params, x):
        return net.apply({"params": params}, x)

    params_t = linearized.params_at(apply_fn, params_0, x, jnp.ones((3, 2)))
    common = {"num_outputs": 2, "points": "init", "num_images": 3}
    settings = dataclasses.replace(PAPER_SHORT, num_steps=200, learning_rate=1e-3)
    found = _reconstruct(
        apply_fn,
        params_0,
        params_t,
        settings=settings,
        initial_images=x + 0.05,
        initial_duals=jnp.ones((1, 3, 2)),
        bounds=(-9.0, 9.0),
        **common,
    )
    assert found.losses[-1] < 0.1 * found.losses[0]
    exact = _reconstruct(
        apply_fn,
        params_0,
        params_t,
        settings=PAPER_SHORT,
        initial_images=x,
        initial_duals=jnp.ones((1, 3, 2)),
        bounds=(-9.0, 9.0),
        **common,
    )
    assert exact.losses[0] < 1e-20
    # Parameters are any pytree.
    as_list = [jax.tree.leaves(params) for params in (params_0, params_t)]
    structure = jax.tree.structure(params_0)
    listed = _reconstruct(
        lambda params, x: apply_fn(jax.tree.unflatten(structure, params), x),
        *as_list,
        settings=PAPER_SHORT,
        initial_images=x,
        initial_duals=jnp.ones((1, 3, 2)),
        bounds=(-9.0, 9.0),
        **common,
    )
    assert listed.losses[0] < 1e-20
    for settings in (
        _settings(),
        dataclasses.replace(PAPER_SHORT, project=True),
        dataclasses.replace(PAPER_SHORT, first_layer=False),
    ):
        with pytest.raises(ValueError, match='for an MLP; use form="parameter"'):
            _reconstruct(apply_fn, params_0, params_t, settings=settings, **common)


def test_points_are_parsed_or_refused():
    assert kkt.parse_points("both") == (0.0, 1.0)
    assert kkt.parse_points("three") == (0.0, 0.5, 1.0)
    assert kkt.parse_points("0,0.25, 1") == (0.0, 0.25, 1.0)
    assert kkt.parse_points([0.5]) == (0.5,)
    for bad, message in (
        ("middle", "points='middle' is unknown: use final, init, midpoint, both, "),
        ("0,2", r"points=2.0 must lie in \[0, 1\]"),
        ([float("nan")], r"points=nan must lie in \[0, 1\]"),
        ((), r"points=\(\) is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            kkt.parse_points(bad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"learning_rate": 0.0}, r"learning_rate=0.0 must be above 0"),
        ({"box_weight": -1.0}, r"box_weight=-1.0 must be at least 0"),
        ({"max_sharpness": 5.0}, r"max_sharpness=5.0 must be at least 10"),
        ({"form": "parameter", "duals": "solve"}, '"solve" needs the kernel form'),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(kkt.FAST, **changes)


def test_bad_arguments_are_refused_in_one_sentence():
    model, params_0, params_t, _, _ = _victim()
    broken = jax.tree.map(lambda a: a, params_t)
    broken["Dense_1"]["kernel"] = broken["Dense_1"]["kernel"].at[0, 0].set(jnp.nan)
    wider = MLP((25, 24)).init_params(KEY, SHAPE, jnp.float64)
    frozen = {**params_t, "Dense_0": params_0["Dense_0"]}
    cases = [
        (
            (params_0, broken),
            {},
            r"params_t\['Dense_1'\]\['kernel'\] has 1 values that are NaN",
        ),
        (
            (params_0, {"Dense_0": params_t["Dense_0"]}),
            {},
            r"params_t holds \['Dense_0'\], but an MLP of 2 hidden layers has Dense_0,",
        ),
        (
            (params_0, wider),
            {},
            r"params_t\['Dense_0'\]\['kernel'\] has shape \(16, 25\), the network",
        ),
        ((params_0, params_0), {}, "are equal: nothing was learnt"),
        ((params_0, frozen), {}, "have the same first layer"),
        (
            (params_0, params_t),
            {"image_shape": (5, 4, 1)},
            r"image_shape=\(5, 4, 1\) has 20 pixels, the network takes 16",
        ),
        ((params_0, params_t), {"points": [1.5]}, r"points=1.5 must lie in \[0, 1\]"),
        ((params_0, params_t), {"num_images": 0}, "num_images=0 must be at least 1"),
        ((params_0, params_t), {"bounds": (0.5, -0.5)}, r"bounds=\(0.5, -0.5\): give"),
        ((params_0, params_t), {"bounds": (float("nan"), 1.0)}, r"bounds=\(nan, 1.0\)"),
        (
            (params_0, params_t),
            {"bounds": (np.zeros(3), np.ones(3))},
            "one number each or one per channel",
        ),
        # Four numbers go into the pixels, not into the channels.
        (
            (params_0, params_t),
            {"bounds": (np.zeros(4), np.ones(4))},
            "one number each or one per channel",
        ),
        (
            (params_0, params_t),
            {"initial_images": np.zeros((4, *SHAPE))},
            r"initial_images has shape \(4, 4, 4, 1\), the search needs \(5, 4, 4, 1\)",
        ),
        (
            (params_0, params_t),
            {"initial_duals": np.zeros((2, 5, 1))},
            r"initial_duals has shape \(2, 5, 1\), the search needs \(1, 5, 1\)",
        ),
        (
            (params_0, params_t),
            {"movable": np.ones(3, bool)},
            r"movable has shape \(3,\), the search needs \(5,\)",
        ),
    ]
    for params, changes, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            _reconstruct(model, *params, **changes)
        assert "\n" not in str(caught.value)


def test_bounds_go_by_channel():
    model = MLP((8, 8))
    shape = (2, 2, 3)
    params_0 = model.init_params(jax.random.key(0), shape, jnp.float64)
    params_t = jax.tree.map(lambda a: a + 0.1, params_0)
    low = np.asarray([-0.1, -0.2, -0.3])
    attack = kkt.prepare(
        model,
        params_0,
        params_t,
        key=KEY,
        image_shape=shape,
        num_images=2,
        bounds=(low, low + 1),
    )
    tiled = attack.problem.bounds[0].reshape(shape)
    chex.assert_trees_all_equal(tiled, jnp.broadcast_to(low, shape))
