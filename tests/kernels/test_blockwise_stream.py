"""Kernels streamed to a file: equal to the whole, resumable, refused if foreign."""

import os
import socket
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.kernels import blockwise, hosts, infinite


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
x1, x2 = (jax.random.normal(jax.random.key(i), (n, 3, 3, 1))
          for i, n in enumerate((19, 5)))
mesh = sharding.row_mesh()
for name, fn in kernels.items():
    one = np.asarray(blockwise.evaluate(fn, x1, x2, block_size=4))
    many = blockwise.evaluate(fn, x1, x2, block_size=4, mesh=mesh)
    np.testing.assert_allclose(np.asarray(many), one, rtol=1e-12)
    np.testing.assert_allclose(one, fn(x1, x2), rtol=1e-12)
    path = f"{sys.argv[1]}/{name}.npy"
    streamed = blockwise.stream(fn, x1, x2, path, block_size=10, mesh=mesh)
    np.testing.assert_allclose(streamed, one, rtol=1e-12)
print("equal")
"""


def test_eight_devices_equal_one(tmp_path):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", EIGHT, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | flags | {"JAX_PLATFORMS": "cpu"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "equal"


TWO_HOSTS = """
import sys
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[3]))
from ntk_privacy import sharding
from ntk_privacy.kernels import blockwise, infinite

assert (jax.device_count(), jax.local_device_count()) == (2, 1)
fn = infinite.mlp(1)
x = np.asarray(jax.random.normal(jax.random.key(0), (9, 3, 3, 1)))
mesh = sharding.row_mesh()
for _ in range(2):  # the second finds it done
    got = blockwise.stream(fn, x, None, f"{sys.argv[1]}/k.npy", block_size=4, mesh=mesh)
    np.testing.assert_allclose(got, fn(x), rtol=1e-12)
def stop(done, out, metrics):
    if done == 2 and jax.process_index() == 0:
        raise OSError("the disk is full")


def attempt(fn, name, **kwargs):
    try:
        path = f"{sys.argv[1]}/{name}.npy"
        blockwise.stream(fn, x, None, path, block_size=4, mesh=mesh, **kwargs)
    except (ValueError, OSError) as error:
        return str(error)
    raise AssertionError("no host may go on alone")


assert "holds another kernel" in attempt(infinite.mlp(2), "k")
if jax.process_index() == 0:
    open(f"{sys.argv[1]}/alone.npy", "w").close()
assert "no kernel under way" in attempt(fn, "alone")
assert "the disk is full" in attempt(fn, "full", callback=stop)
whole = blockwise.evaluate(fn, x, x, block_size=4, mesh=mesh)
for shard in whole.addressable_shards:
    want = fn(x, x.copy())[shard.index]
    np.testing.assert_allclose(shard.data, want, rtol=1e-12)
print("equal")
"""


@pytest.mark.slow
def test_two_hosts_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_HOSTS, str(tmp_path), port, str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for i in range(2)
    ]
    try:
        for host in hosts:
            told, error = host.communicate(timeout=120)
            assert host.returncode == 0, error[-2000:]
            assert told.strip().endswith("equal")
    finally:
        for host in hosts:
            host.kill()


def test_what_one_host_cannot_do_no_host_does(monkeypatch):
    sent = []

    def gather(codes):
        sent.append(codes)
        return np.stack([codes, sent[0]])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", gather)
    with hosts.all_fail_together():
        pass
    sent.clear()
    with pytest.raises(OSError, match="full"), hosts.all_fail_together():
        raise OSError("the disk is full")
    # A host that has done its part hears of it.
    message = "Host 1 stopped: the disk is full"
    with pytest.raises(ValueError, match=message), hosts.all_fail_together():
        pass


@pytest.mark.optimized
def test_float32_stays_float32_and_its_diagonal_exact(tmp_path):
    x = images(7)
    low = x.astype(jnp.float32)
    got = blockwise.stream(KERNEL, low, None, tmp_path / "k.npy", block_size=3)
    assert got.dtype == np.float32
    exact = np.asarray(KERNEL(x))
    np.testing.assert_allclose(np.diag(got), np.diag(exact), rtol=1e-6)
    np.testing.assert_allclose(got, exact, atol=1e-6 * exact.max())
