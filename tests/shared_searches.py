"""Searches that several devices share: a program for `several`.

Run as a program: name of the search, sizes. It runs the search on one device and on all
of them, compares, and prints the bytes that a device needs for a chunk of steps.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from ntk_privacy import _loop, sharding
from ntk_privacy.distillation import (
    distribution_matching,
    gradient_matching,
    rkip,
    robust_mean,
    trajectory_matching,
)
from ntk_privacy.kernels import infinite
from ntk_privacy.models import MLP, ConvNet
from ntk_privacy.poisoning import distribution_matching as poison_dm
from ntk_privacy.poisoning import gradient_matching as poison_gradient
from ntk_privacy.reconstruction import kkt

KEY = jax.random.key(0)
MODEL = ConvNet(num_outputs=3, width=8, depth=1)


def images(count, *, side=8, key=0):
    """Returns random images and three classes in turn."""
    x = jax.random.uniform(jax.random.key(key), (count, side, side, 1), jnp.float64)
    return x, jnp.arange(count, dtype=jnp.int32) % 3


def dm(mesh, size, mean_fn=robust_mean.mean):
    x, y = images(3 * size + 1)
    return distribution_matching.distill(
        x - 0.5, y, model=MODEL, key=KEY, images_per_class=size // 2, num_steps=4,
        batch_size=size, mean_fn=mean_fn, chunk=2, mesh=mesh,
    ).images  # fmt: skip


def dc(mesh, size):
    x, y = images(3 * size + 1)
    return gradient_matching.distill(
        x - 0.5, y, model=MODEL, key=KEY, images_per_class=size // 4, num_steps=2,
        batch_size=size, outer_steps=2, inner_epochs=1, chunk=1, mesh=mesh,
    ).images  # fmt: skip


def mtt(mesh, size, student_batch_size=None):
    x, y = images(3 * size + 1)
    one = [MODEL.init_params(jax.random.key(i), (8, 8, 1), jnp.float64) for i in (1, 2)]
    far = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one)
    experts = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1], leaf]), far)
    return trajectory_matching.distill(
        x - 0.5, y, experts=experts, model=MODEL, key=KEY, images_per_class=size // 4,
        num_steps=2, student_steps=3, student_batch_size=student_batch_size,
        expert_epochs=1, max_start_epoch=1, chunk=1, mesh=mesh,
    ).images  # fmt: skip


def rkip_(mesh, size, batch_size=None):
    x, y = images(6 * size + 3)
    y = jax.nn.one_hot(y, 3, dtype=x.dtype) - 1 / 3
    return rkip.distill(
        x - 0.5, y, kernel_fn=infinite.mlp(depth=1), key=KEY, images_per_class=2,
        num_steps=4, batch_size=batch_size, chunk=2, mesh=mesh,
    ).images  # fmt: skip


def craft(attack, mesh, size):
    x, _ = images(size)
    x = jnp.round(x * 255) / 255
    target = poison_dm.Target(x[0], jnp.full(1, 0.5), jnp.full(1, 0.3))
    options = {"model": MODEL, "key": KEY, "num_steps": 3, "num_restarts": 1}
    options |= {"num_draws": 2, "chunk": 1, "mesh": mesh}
    if attack == "dm":
        return poison_dm.poison(x, target, **options).images
    networks = [MODEL.init_params(jax.random.key(3), (8, 8, 1), jnp.float64)]
    ensemble = poison_gradient.prepare(
        networks, target, model=MODEL, adversarial_class=1
    )
    return poison_gradient.poison(x, ensemble, **options).images


def search(mesh, size, settings=kkt.FAST):
    x, y = images(6)
    model = MLP((64, 64), 1)
    before = model.init_params(KEY, (8, 8, 1), jnp.float64)
    slope = jax.grad(lambda p: jnp.sum(model.apply_fn(p, x - 0.5)[:, 0] * (y - 1.0)))
    after = jax.tree.map(lambda p, g: p - 0.1 * g, before, slope(before))
    return kkt.reconstruct(
        model, before, after, key=KEY, image_shape=(8, 8, 1), num_images=size,
        bounds=(-0.5, 0.5), settings=settings, chunk=2, mesh=mesh,
    ).images  # fmt: skip


SEARCHES = {
    "dm": dm,
    "rdm": functools.partial(dm, mean_fn=robust_mean.calibrated(rate=0.1)),
    "dc": dc,
    "mtt": mtt,
    "mtt_batches": functools.partial(mtt, student_batch_size=6),
    "rkip": rkip_,
    "rkip_batches": functools.partial(rkip_, batch_size=9),
    "poison_dm": functools.partial(craft, "dm"),
    "poison_gradient": functools.partial(craft, "gradient"),
    "kkt": search,
}
STEPS = 4


def needed(run):
    """Returns what a search returns, and the bytes per device of its first chunk."""
    calls, whole = [], _loop._scan_chunk

    def watched(*args):
        calls.append(args)
        return whole(*args)

    _loop._scan_chunk = watched
    try:
        found = run()
    finally:
        _loop._scan_chunk = whole
    program = jax.jit(whole.__wrapped__, static_argnums=(0, 1, 2))
    memory = program.lower(*calls[0]).compile().memory_analysis()
    return found, memory.temp_size_in_bytes + memory.argument_size_in_bytes


def main(size, *names):
    import dataclasses

    jax.config.update("jax_enable_x64", True)
    for name in names or SEARCHES:
        run = SEARCHES[name]
        if name == "kkt":
            settings = dataclasses.replace(kkt.FAST, num_steps=STEPS)
            run = functools.partial(run, settings=settings)
        one, of_one = needed(lambda run=run: run(None, int(size)))
        all_, of_all = needed(lambda run=run: run(sharding.all_devices(), int(size)))
        gap = np.abs(sharding.on_host(all_) - np.asarray(one)).max()
        print(name, f"gap {gap:.1e} bytes {of_one} {of_all}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
