"""Exact decoding against the published search, on real images.

    python -m benchmarks.bench_algebraic --out=results/benchmarks/algebraic.json

Needs NTK_PRIVACY_DATA. Every row trains a linearized network in closed form, decodes
twice (the first call compiles) and compares with the truth. The published search is
timed in the same run on the first row's network, over a stretch of its 80,000 steps.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _measure
from experiments import reconstruct
from ntk_privacy import _loop
from ntk_privacy.data import choice
from ntk_privacy.evaluation import reconstruction_curve
from ntk_privacy.reconstruction import algebraic, kkt, victims

ROWS = {
    "mnist_20_1024": {"dataset": "mnist", "num_images": 20, "width": 1024},
    "cifar10_20_1024": {"dataset": "cifar10", "num_images": 20, "width": 1024},
    "cifar10_20_4096": {"dataset": "cifar10", "num_images": 20, "width": 4096},
    "mnist_20_1024_early": {
        "dataset": "mnist",
        "num_images": 20,
        "width": 1024,
        "early_stop_loss": 1e-2,
    },
    "mnist_100_4096": {"dataset": "mnist", "num_images": 100, "width": 4096},
    "mnist_200_4096": {"dataset": "mnist", "num_images": 200, "width": 4096},
    "cifar10_200_4096": {"dataset": "cifar10", "num_images": 200, "width": 4096},
    "mnist_10way_50_4096": {
        "dataset": "mnist",
        "task": "all_classes",
        "num_images": 50,
        "width": 4096,
    },
    "mnist_500_4096": {"dataset": "mnist", "num_images": 500, "width": 4096},
}


def victim_of(row, seed):
    """Trains the row's network as `experiments.reconstruct` does; its images too."""
    asked = reconstruct.PROGRAM.asked(**row, seed=seed)
    dataset, key = asked.group(choice.TaskImages).load(seed)
    network = asked.group(victims.Trained)
    return network.train(dataset, key), dataset


def decode(victim, seed):
    """Decodes; returns the result and the seconds it took."""
    start = time.perf_counter()
    found = jax.block_until_ready(
        algebraic.reconstruct(
            victim.params_0,
            victim.params_t,
            key=jax.random.fold_in(jax.random.key(1), seed),
            image_shape=victim.image_shape,
        )
    )
    return found, time.perf_counter() - start


def published(victim, dataset, steps):
    """Seconds per step of the published search."""
    attack = kkt.prepare(
        victim.model,
        victim.params_0,
        victim.params_t,
        key=jax.random.key(0),
        image_shape=victim.image_shape,
        num_images=2 * len(dataset.x_train),
        bounds=dataset.bounds,
        points="init",
        settings=kkt.PAPER,
    )

    def side():
        return _loop.run(
            attack.step, attack.state, attack.problem, num_steps=steps, chunk=steps
        )

    return _measure.interleaved({"paper": side}, repeats=3)["paper"]["run"] / steps


def main() -> None:
    options = _measure.arguments(rows=",".join(ROWS), seed=0, steps=50)
    rows = []
    for name in options.rows.split(","):
        victim, dataset = victim_of(ROWS[name], options.seed)
        _, first = decode(victim, options.seed)
        found, second = decode(victim, options.seed)
        figures = reconstruction_curve.evaluate(
            jnp.asarray(dataset.x_train), found.images, mean=dataset.mean
        )
        squared = np.asarray(figures.squared_distances)
        row = {
            "case": name,
            "estimated_N": int(found.estimated_num_images),
            "certified": int(found.certified.sum()),
            "exact": int((squared < 1e-6).sum()),
            "psnr_25dB": figures.num_recovered,
            "largest": float(squared.max()),
            "median": float(np.median(squared)),
            "s": second,
            "s_with_compile": first,
        }
        if not rows:
            step = published(victim, dataset, options.steps)
            row["published_s_of_80000_steps"] = 80_000 * step
        rows.append(row)
        _measure.report("algebraic", rows[-1:], None)
    _measure.report("algebraic", rows, options.out)


if __name__ == "__main__":
    main()
