"""Kernels streamed to a file: equal to the whole, resumable, refused if foreign."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import several

from ntk_privacy.kernels import blockwise, infinite


def images(n, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, 3, 3, 1))


KERNEL = infinite.mlp(1)


@pytest.mark.parametrize("block_size", [1, 3, 7, 50])
def test_file_equals_the_kernel(tmp_path, block_size):
    x1, x2 = images(7), images(5, 1)
    path = tmp_path / "deep" / "k.npy"
    got = blockwise.stream(KERNEL, x1, x2, path, block_size=block_size)
    assert isinstance(got, np.memmap)
    chex.assert_trees_all_close(np.asarray(got), KERNEL(x1, x2), rtol=1e-12)
    chex.assert_trees_all_equal(np.load(path, allow_pickle=False), np.asarray(got))


def test_half_of_a_symmetric_kernel_is_computed(tmp_path):
    steps = []
    x = np.asarray(images(7))
    got = blockwise.stream(
        KERNEL,
        x,
        None,
        tmp_path / "k.npy",
        block_size=2,
        callback=lambda step, state, metrics: steps.append((step, dict(metrics))),
    )
    chex.assert_trees_all_close(
        np.asarray(got), KERNEL(images(7), images(7)), rtol=1e-7
    )
    chex.assert_trees_all_close(np.asarray(got), np.asarray(got).T, rtol=1e-12)
    assert steps == [(i, {"num_blocks": 10}) for i in range(1, 11)]


def test_an_interrupted_run_goes_on(tmp_path):
    x1, x2 = images(7), images(5, 1)
    seen = []

    def kernel_fn(a, b):
        jax.debug.callback(lambda: seen.append(1))
        return KERNEL(a, b)

    class Stop(Exception):
        pass

    def stop(step, state, metrics):
        if step == 4:
            raise Stop

    path = tmp_path / "k.npy"
    with pytest.raises(Stop):
        blockwise.stream(kernel_fn, x1, x2, path, block_size=2, callback=stop)
    jax.effects_barrier()
    assert len(seen) == 4
    got = blockwise.stream(kernel_fn, x1, x2, path, block_size=2)
    jax.effects_barrier()
    assert len(seen) == 12 + 1  # the first block once more, to see it is the same
    chex.assert_trees_all_close(np.asarray(got), KERNEL(x1, x2), rtol=1e-12)


def test_it_stops_when_asked_and_goes_on(tmp_path):
    x, path = images(7), tmp_path / "k.npy"
    seen = []

    def stop(step, state, metrics):
        seen.append(step)
        return step == 4

    blockwise.stream(KERNEL, x, None, path, block_size=2, callback=stop)
    assert seen == [1, 2, 3, 4]
    got = blockwise.stream(KERNEL, x, None, path, block_size=2, callback=stop)
    assert seen == list(range(1, 11))
    chex.assert_trees_all_close(np.asarray(got), KERNEL(x, x), rtol=1e-7)


def test_blocks_fit_the_budget():
    x = jax.numpy.zeros((500, 8, 8, 1), jax.numpy.float32)
    assert blockwise.size_within(KERNEL, x, 2**30) == 500
    size = blockwise.size_within(KERNEL, x, 2**19)
    assert 100 < size < 400
    block = jax.ShapeDtypeStruct((size, 8, 8, 1), x.dtype)
    memory = jax.jit(KERNEL).lower(block, block).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 2**19
    with pytest.raises(ValueError, match="smaller than one block of one image"):
        blockwise.size_within(KERNEL, x, 100)


def test_a_nan_in_an_image_is_named_and_not_written(tmp_path):
    x = images(5).at[3, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="kernel of image 3 of x1 with images 0 to 1"):
        blockwise.stream(KERNEL, x, images(4, 1), tmp_path / "k.npy", block_size=2)


def test_a_foreign_file_is_refused(tmp_path):
    x1, x2 = images(4), images(3, 1)
    path = tmp_path / "k.npy"
    before = blockwise.stream(KERNEL, x1, x2, path, block_size=2)
    with pytest.raises(ValueError, match="other images or another block_size"):
        blockwise.stream(KERNEL, x1 + 1, x2, path, block_size=2)
    with pytest.raises(ValueError, match="other images or another block_size"):
        blockwise.stream(KERNEL, x1, x2, path, block_size=1)
    with pytest.raises(ValueError, match="another kernel of these images"):
        blockwise.stream(infinite.mlp(2), x1, x2, path, block_size=2)
    # Even one that is hardly another.
    nearly = infinite.mlp(1, weight_std=1 + 1e-6)
    with pytest.raises(ValueError, match="another kernel of these images"):
        blockwise.stream(nearly, x1, x2, path, block_size=2)
    with pytest.raises(ValueError, match="block_size=0 must be at least 1"):
        blockwise.stream(KERNEL, x1, x2, path, block_size=0)
    (tmp_path / "k.npy.done.npy").unlink()
    with pytest.raises(ValueError, match="no kernel under way"):
        blockwise.stream(KERNEL, x1, x2, path, block_size=2)
    chex.assert_trees_all_close(np.asarray(before), KERNEL(x1, x2), rtol=1e-12)


EIGHT = """
import sys
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
from ntk_privacy import sharding
from ntk_privacy.kernels import blockwise, empirical, infinite
from ntk_privacy.models import MLP

assert jax.device_count() == 8
model = MLP((6,), 2)
params = model.init_params(jax.random.key(0), (3, 3, 1), jax.numpy.float64)
kernels = {
    "infinite": infinite.mlp(1),
    "empirical": lambda a, b: empirical.ntk(model.apply_fn, params, a, b),
}
x1, x2, v = (
    jax.random.normal(jax.random.key(i), shape)
    for i, shape in enumerate(((19, 3, 3, 1), (5, 3, 3, 1), (5, 2)))
)
mesh = sharding.row_mesh()
for name, fn in kernels.items():
    one = np.asarray(blockwise.evaluate(fn, x1, x2, block_size=4))
    many = blockwise.evaluate(fn, x1, x2, block_size=4, mesh=mesh)
    # 19 rows do not divide: filled up, so that no device has more than its share.
    assert {shard.data.shape for shard in many.addressable_shards} == {(3, 5)}
    np.testing.assert_allclose(np.asarray(many)[:19], one, rtol=1e-12)
    np.testing.assert_allclose(one, fn(x1, x2), rtol=1e-12)
    product = blockwise.product(fn, x1, x2, v, block_size=4, mesh=mesh)
    np.testing.assert_allclose(product, one @ v, rtol=1e-12)
    path = f"{sys.argv[1]}/{name}.npy"
    streamed = blockwise.stream(fn, x1, x2, path, block_size=10, mesh=mesh)
    np.testing.assert_allclose(streamed, one, rtol=1e-12)
print("equal")
"""


def test_eight_devices_equal_one(tmp_path):
    assert several.on_devices(EIGHT, str(tmp_path)) == "equal"


HOSTS = """
import numpy as np
jax.config.update("jax_enable_x64", True)
from ntk_privacy import sharding
from ntk_privacy.kernels import blockwise, infinite

assert jax.local_device_count() == 1
fn, mesh = infinite.mlp(1), sharding.all_devices()
assert mesh.size == int(sys.argv[2])
x = np.asarray(jax.random.normal(jax.random.key(0), (9, 3, 3, 1)))
v = np.asarray(jax.random.normal(jax.random.key(1), (9, 2)))
want = fn(x, x.copy())
whole = blockwise.evaluate(fn, x, x, block_size=4, mesh=mesh)
assert {shard.data.shape for shard in whole.addressable_shards} == {(SHARE, 9)}
np.testing.assert_allclose(sharding.on_host(whole)[:9], want, rtol=1e-12)
product = blockwise.product(fn, x, x, v, block_size=4, mesh=mesh)
np.testing.assert_allclose(product, want @ v, rtol=1e-12)
print("equal")
"""


def test_two_hosts_share_a_kernel():
    assert several.on_hosts(HOSTS.replace("SHARE", "6")) == ["equal"] * 2


@pytest.mark.slow
def test_four_hosts_share_a_kernel():
    assert several.on_hosts(HOSTS.replace("SHARE", "3"), count=4) == ["equal"] * 4


STREAMED = """
import numpy as np
jax.config.update("jax_enable_x64", True)
from ntk_privacy import sharding
from ntk_privacy.kernels import blockwise, infinite

fn = infinite.mlp(1)
x = np.asarray(jax.random.normal(jax.random.key(0), (9, 3, 3, 1)))
mesh = sharding.row_mesh()
folder = sys.argv[4]
for _ in range(2):  # the second finds it done
    got = blockwise.stream(fn, x, None, f"{folder}/k.npy", block_size=4, mesh=mesh)
    np.testing.assert_allclose(got, fn(x), rtol=1e-12)


def stop(done, out, metrics):
    if done == 2 and jax.process_index() == 0:
        raise OSError("the disk is full")


def attempt(fn, name, **kwargs):
    try:
        path = f"{folder}/{name}.npy"
        blockwise.stream(fn, x, None, path, block_size=4, mesh=mesh, **kwargs)
    except (ValueError, OSError) as error:
        return str(error)
    raise AssertionError("no host may go on alone")


assert "holds another kernel" in attempt(infinite.mlp(2), "k")
if jax.process_index() == 0:
    open(f"{folder}/alone.npy", "w").close()
assert "no kernel under way" in attempt(fn, "alone")
assert "the disk is full" in attempt(fn, "full", callback=stop)
print("equal")
"""


@pytest.mark.slow
def test_two_hosts_stream_a_kernel(tmp_path):
    assert several.on_hosts(STREAMED, str(tmp_path)) == ["equal"] * 2


@pytest.mark.optimized
def test_float32_stays_float32_and_its_diagonal_exact(tmp_path):
    x = images(7)
    low = x.astype(jnp.float32)
    got = blockwise.stream(KERNEL, low, None, tmp_path / "k.npy", block_size=3)
    assert got.dtype == np.float32
    exact = np.asarray(KERNEL(x))
    np.testing.assert_allclose(np.diag(got), np.diag(exact), rtol=1e-6)
    np.testing.assert_allclose(got, exact, atol=1e-6 * exact.max())
