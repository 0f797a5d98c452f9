"""Large N: blocks, devices and conjugate gradients against the dense path."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import several

from ntk_privacy import data, rkip, sharding
from ntk_privacy.distillation import coincident_targets
from ntk_privacy.kernels import blockwise, conjugate_gradients, infinite, regression

KERNEL = infinite.mlp(depth=1)
X = jax.random.normal(jax.random.key(0), (50, 4, 4, 1), jnp.float64)
Y = jax.random.normal(jax.random.key(1), (50, 2), jnp.float64)


@pytest.mark.parametrize("mesh", [None, sharding.row_mesh()], ids=["none", "mesh"])
@pytest.mark.parametrize("block_size", [7, 1000])
def test_blocks_equal_the_whole_kernel(block_size, mesh):
    whole = KERNEL(X[:23] + 1, X)
    options = {"block_size": block_size, "mesh": mesh}
    out = blockwise.evaluate(KERNEL, X[:23] + 1, X, **options)
    chex.assert_trees_all_close(out, whole, rtol=1e-12)
    product = blockwise.product(KERNEL, X[:23] + 1, X, Y, **options)
    chex.assert_trees_all_close(product, whole @ Y, rtol=1e-10)


def test_the_diagonal_is_that_of_the_kernel():
    chex.assert_trees_all_close(
        blockwise.diagonal(KERNEL, X), jnp.diagonal(KERNEL(X)), rtol=1e-13
    )


def test_regression_solves_and_predicts():
    k = np.asarray(KERNEL(X))
    slow = np.linalg.inv(k + 1e-3 * np.trace(k) / 50 * np.eye(50)) @ Y
    duals = regression.duals(KERNEL, X, Y, diag_reg=1e-3)
    np.testing.assert_allclose(duals, slow, rtol=1e-8)
    predicted = regression.predict(KERNEL, X, duals, X[:9] + 1, block_size=4)
    np.testing.assert_allclose(predicted, KERNEL(X[:9] + 1, X) @ slow, rtol=1e-8)
    # Without a ridge it interpolates.
    duals = regression.duals(KERNEL, X, Y, diag_reg=0.0)
    np.testing.assert_allclose(regression.predict(KERNEL, X, duals, X), Y, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 50])
def test_duals_equal_the_dense_ones(rank):
    found = rkip.target_duals(
        X, Y, kernel_fn=KERNEL, diag_reg=1e-3, rank=rank, tolerance=1e-10, block_size=16
    )
    dense = regression.duals(KERNEL, X, Y, diag_reg=1e-3)
    np.testing.assert_allclose(found.duals, dense, atol=1e-8)
    np.testing.assert_allclose(
        found.energy, jnp.sum(dense * (KERNEL(X) @ dense)), rtol=1e-9
    )


def test_a_preconditioner_of_high_rank_saves_steps():
    options = {"diag_reg": 1e-4, "tolerance": 1e-10}
    few, many = (
        conjugate_gradients.solve(KERNEL, X, Y, rank=rank, **options).steps
        for rank in (50, 1)
    )
    assert few < 0.7 * many


def test_it_resumes_where_a_callback_left_it():
    states = []
    whole = conjugate_gradients.solve(
        KERNEL, X, Y, rank=5, chunk=4,
        callback=lambda step, state, metrics: states.append((step, state)),
    )  # fmt: skip
    step, state = states[0]
    assert step == state.steps == 4
    assert len(states) > 2
    again = conjugate_gradients.solve(KERNEL, X, Y, rank=5, chunk=4, state=state)
    chex.assert_trees_all_equal(again.duals, whole.duals)
    assert again.steps == whole.steps


def test_true_from_the_callback_stops_and_its_state_goes_on_to_the_same_bits():
    whole = conjugate_gradients.solve(KERNEL, X, Y, rank=5, chunk=4)
    states = []

    def stop(step, state, metrics):
        states.append(state)
        return step >= 8

    part = conjugate_gradients.solve(KERNEL, X, Y, rank=5, chunk=4, callback=stop)
    assert part.steps == 8 < whole.steps
    assert part.residual > whole.residual
    rest = conjugate_gradients.solve(KERNEL, X, Y, rank=5, chunk=4, state=states[-1])
    chex.assert_trees_all_equal(rest.duals, whole.duals)


@pytest.mark.slow
def test_it_resumes_to_the_bit_after_the_recursion_was_started_anew():
    # Float32 and near-duplicates: the recursion drifts, and is started anew.
    x = jnp.tile(X[:40].astype(jnp.float32), (5, 1, 1, 1))
    x += 1e-3 * jax.random.normal(jax.random.key(2), x.shape, jnp.float32)
    y = jnp.sign(jax.random.normal(jax.random.key(3), (200, 1), jnp.float32))
    options = {"rank": 50, "tolerance": 1e-5}
    states = []
    whole = conjugate_gradients.solve(
        KERNEL, x, y, callback=lambda *told: states.append(told[1]), **options
    )
    starts = {float(state.last) for state in states}
    assert len(starts) > 1, "no restart: another problem is needed"
    for state in states:
        # As from a file: host arrays.
        held = jax.tree.map(np.asarray, state)
        again = conjugate_gradients.solve(KERNEL, x, y, state=held, **options)
        assert again.steps == whole.steps
        chex.assert_trees_all_equal(again.duals, whole.duals)
        chex.assert_trees_all_equal(again.energy, whole.energy)


@pytest.mark.optimized
def test_float32_defaults_equal_the_dense_path():
    images = data.load("digits", num_train=400, key=jax.random.key(0))
    x, y = jnp.asarray(images.x_train), jnp.asarray(images.y_train)
    kernel_fn = infinite.mlp(depth=2)
    found = rkip.target_duals(x, y, kernel_fn=kernel_fn)
    assert found.duals.dtype == jnp.float32
    dense = regression.duals(kernel_fn, x, y)
    error = jnp.linalg.norm(found.duals - dense) / jnp.linalg.norm(dense)
    assert error < 1e-4


def test_known_target_duals_change_nothing():
    y = jnp.sign(Y[:, :1])
    options = {"kernel_fn": KERNEL, "key": jax.random.key(0), "num_steps": 5}
    target = rkip.target_duals(X, y, kernel_fn=KERNEL, tolerance=1e-11, rank=30)
    dense = rkip.distill(X, y, **options)
    known = rkip.distill(X, y, target=target, **options)
    chex.assert_trees_all_close(known.images, dense.images, atol=1e-8)
    chex.assert_trees_all_close(known.losses, dense.losses, rtol=1e-6)
    with pytest.raises(ValueError, match="duals of shape"):
        rkip.distill(X[:48], y[:48], target=target, **options)


@pytest.mark.slow
def test_target_duals_of_a_mesh_distil_alike():
    y = jnp.sign(Y[:, :1])
    options = {"kernel_fn": KERNEL, "key": jax.random.key(0), "num_steps": 3}
    target = rkip.target_duals(X, y, kernel_fn=KERNEL, mesh=sharding.row_mesh())
    alone = rkip.target_duals(X, y, kernel_fn=KERNEL)
    for batch_size in (None, 10):
        shared, one = (
            rkip.distill(X, y, target=t, batch_size=batch_size, **options)
            for t in (target, alone)
        )
        chex.assert_trees_all_close(shared.images, one.images, atol=1e-8)


def test_target_duals_of_others_are_refused():
    y = jnp.sign(Y[:, :1])
    options = {"kernel_fn": KERNEL, "key": jax.random.key(0), "num_steps": 1}
    target = rkip.target_duals(X, y, kernel_fn=KERNEL)
    for x_other, y_other, more in (
        (X.at[3, 0, 0, 0].add(1e-6), y, {}),
        (X[::-1], y, {}),
        (X, -y, {}),
        (X, y, {"diag_reg": 1e-4}),
    ):
        with pytest.raises(ValueError, match="belongs to other images"):
            rkip.distill(x_other, y_other, target=target, **options, **more)
    with pytest.raises(ValueError, match="belongs to other images"):
        rkip.label_solve(X[:3], X + 1, y, kernel_fn=KERNEL, target=target)


def test_images_that_are_not_finite_are_named():
    bad = X.at[7].set(jnp.nan)
    with pytest.raises(ValueError, match=r"in 1 rows, first in row 7: repair or"):
        rkip.target_duals(bad, Y, kernel_fn=KERNEL)


def _coarse(x1, x2=None):
    near = [None if x is None else jnp.round(x, 2) for x in (x1, x2)]
    return KERNEL(*near)


@pytest.mark.parametrize("diag_reg", [0.0, 1e-9])
def test_duplicates_that_contradict_each_other_name_the_ridge(diag_reg):
    x = X.astype(jnp.float32).at[1].set(X[0].astype(jnp.float32))
    y = jnp.sign(Y[:, :1]).astype(jnp.float32).at[0].set(-1).at[1].set(1)
    told = r"images 0 and 1 coincide.: raise diag_reg, such as 1e-5"
    options = {"diag_reg": diag_reg, "max_steps": 60}
    with pytest.raises(ValueError, match=told):
        rkip.target_duals(x, y, kernel_fn=KERNEL, **options)
    # Nor those that are duplicates to the kernel alone; no step is taken to find out.
    x = x.at[1, 0, 0, 0].add(1e-5)
    with pytest.raises(ValueError, match=told):
        rkip.target_duals(x, y, kernel_fn=_coarse, block_size=7, **options)
    far = x.at[1].set(x[0]).at[1, 0, 0, 0].add(0.1)
    found = rkip.target_duals(far, y, kernel_fn=_coarse, **options)
    assert np.isfinite(found.duals).all()


def test_a_kernel_that_is_blunt_near_coincidence_needs_more_ridge():
    # As an arccos of a correlation rounded to 1 - eps would have it.
    def blunt(x1, x2=None):
        if x2 is None:
            return KERNEL(x1)
        k = KERNEL(x1, x2)
        eye = jnp.sum((x1[:, None] - x2[None]) ** 2, axis=(2, 3, 4)) < 1e-8
        return jnp.where(eye, 0.9997 * k, k)

    x = X.astype(jnp.float32).at[1].set(X[0].astype(jnp.float32))
    y = jnp.sign(Y[:, :1]).astype(jnp.float32).at[0].set(-1).at[1].set(1)
    assert 1e-4 < coincident_targets.kernel_error(blunt, x) < 1e-3
    assert coincident_targets.kernel_error(KERNEL, x) < 8 * np.finfo(np.float32).eps
    with pytest.raises(ValueError, match="images 0 and 1 coincide"):
        rkip.target_duals(x, y, kernel_fn=blunt)
    # Those that are apart bear it.
    found = rkip.target_duals(x.at[1].add(1.0), y, kernel_fn=blunt, diag_reg=1e-4)
    assert np.isfinite(found.duals).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"diag_reg": -1.0}, "diag_reg"),
        ({"rank": 0}, "rank=0"),
        ({"tolerance": 0.0}, "tolerance=0.0 must be above 0"),
        ({"max_steps": 2, "rank": 1}, "raise max_steps, rank or tolerance"),
        ({"block_size": 0}, "block_size=0"),
    ],
)
def test_bad_input_is_told(kwargs, message):
    with pytest.raises(ValueError, match=message):
        rkip.target_duals(X, Y, kernel_fn=KERNEL, **kwargs)


def test_a_state_of_other_images_is_refused():
    state = conjugate_gradients.solve(KERNEL, X, Y, max_steps=1).state
    with pytest.raises(ValueError, match="repeat the arguments"):
        conjugate_gradients.solve(KERNEL, X[:20], Y[:20], state=state)


EIGHT = """
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from ntk_privacy import rkip, sharding
from ntk_privacy.kernels import blockwise, infinite
assert jax.device_count() == 8
mesh, kernel_fn = sharding.row_mesh(), infinite.mlp(depth=1)
x = jax.random.normal(jax.random.key(0), (50, 16))
y = jax.random.normal(jax.random.key(1), (50, 2))
k = blockwise.evaluate(kernel_fn, jnp.concatenate([x, x[:6]]), x, mesh=mesh)
shapes = {shard.data.shape for shard in k.addressable_shards}
assert shapes == {(7, 50)}, shapes
options = dict(kernel_fn=kernel_fn, diag_reg=1e-3, rank=20, block_size=4)
one = rkip.target_duals(x, y, tolerance=1e-11, **options)
states = []
eight = rkip.target_duals(
    x, y, tolerance=1e-11, mesh=mesh, **options,
    callback=lambda step, state, _: states.append(jax.tree.map(np.asarray, state)),
)
for state in states:
    again = rkip.target_duals(x, y, tolerance=1e-11, mesh=mesh, state=state, **options)
    np.testing.assert_array_equal(again.duals, eight.duals)
np.testing.assert_allclose(eight.duals, one.duals, atol=1e-9)
np.testing.assert_allclose(eight.energy, one.energy, rtol=1e-9)
"""


@pytest.mark.slow
def test_eight_devices_give_what_one_gives():
    several.on_devices(EIGHT)


@pytest.mark.slow
def test_two_thousand_images_equal_the_dense_path():
    centres = jax.random.normal(jax.random.key(2), (2000, 8), jnp.float64)
    x = centres @ jax.random.normal(jax.random.key(3), (8, 100), jnp.float64)
    y = jnp.sign(x[:, :1])
    kernel_fn = infinite.mlp(depth=2)
    found = rkip.target_duals(x, y, kernel_fn=kernel_fn, tolerance=1e-9, rank=500)
    dense = regression.duals(kernel_fn, x, y)
    error = jnp.linalg.norm(found.duals - dense) / jnp.linalg.norm(dense)
    assert error < 1e-6
