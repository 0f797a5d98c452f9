"""One image from trained weights alone, where biases began at zero; and its error bar.

    python -m benchmarks.bench_known_start --out=results/benchmarks/known_start.json

Needs NTK_PRIVACY_DATA. Ten classes, cross-entropy, an MLP of a first layer of the width
given and a second one of 256, at Flax's initialisation, trained by momentum 0.9 at a
rate of 0.01 (Adam at 0.001) on batches of half of the images until the loss is below
0.01. "random biases": they began uniformly in 1 / sqrt(pixels), as PyTorch's do, which
is the control. Columns: share of units that opened; the bound on the angle between two
images and the truth; of the best reading its trait, p-value, the cosine that its share
states, and the true ones: to the span of the images, to the mean of their directions
and to the nearest image; classes told, of those present, and told wrongly.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _measure
from ntk_privacy import data
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import known_start
from ntk_privacy.training import recipe as recipes

_SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
# name: data, width, optimizer, whether biases began at random
ROWS = {
    "digits": ("digits", 1024, "momentum", False),
    "digits_adam": ("digits", 1024, "adam", False),
    "digits_random_biases": ("digits", 1024, "momentum", True),
    "mnist": ("mnist", 4096, "momentum", False),
    "cifar10": ("cifar10", 2048, "momentum", False),
    "cifar10_wide": ("cifar10", 8192, "momentum", False),
}


def _trained(name: str, n: int, seed: int):
    dataset, width, optimizer, random = ROWS[name]
    found = data.load(
        dataset, task="all_classes", num_train=20, key=jax.random.key(seed)
    )
    chosen = np.random.default_rng(seed).permutation(20)[:n]
    x, y = (jnp.asarray(part[chosen]) for part in (found.x_train, found.y_train))
    model = MLP((width, 256), 10)
    params = model.init_params(jax.random.key(100 + seed), x.shape[1:])
    if random:
        bias = params["Dense_0"]["bias"]
        bound = 1 / np.sqrt(np.prod(x.shape[1:]))
        bias = jax.random.uniform(
            jax.random.key(seed), bias.shape, bias.dtype, -bound, bound
        )
        params["Dense_0"]["bias"] = bias
    recipe = recipes.Recipe(
        loss="cross_entropy", optimizer=optimizer, batch_size=max(n // 2, 1)
    )
    state = recipes.train(
        model, params, x, y, recipe, key=jax.random.key(3), stop_loss=0.01
    )
    return state.params, np.asarray(x, np.float64).reshape(n, -1), np.asarray(y)


def row(name: str, n: int, seed: int):
    """What is read of one network, beside the truth."""
    params, x, y = _trained(name, n, seed)
    begin = time.perf_counter()
    found = known_start.read(params, image_shape=_SHAPES[ROWS[name][0]])
    seconds = time.perf_counter() - begin
    best = found.readings[0]
    image = best.image.ravel() / np.linalg.norm(best.image)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    mean = unit.mean(0) / np.linalg.norm(unit.mean(0))
    present, told = set(y.argmax(1).tolist()), set(found.classes or ())
    return {
        "case": name, "width": ROWS[name][1], "N": n, "seed": seed,
        "word": found.verdict.word, "opened": float(found.opened.mean()),
        "largest_angle": found.largest_angle,
        "true_angle": float(np.arccos(np.clip((unit @ unit.T).min(), -1, 1))),
        "trait": best.trait, "p_value": best.p_value,
        "stated": float(np.sqrt(best.share)),
        "span": float(np.linalg.norm(np.linalg.qr(x.T)[0].T @ image)),
        "mean": float(mean @ image), "nearest": float((unit @ image).max()),
        "classes": len(told & present), "present": len(present),
        "wrong": len(told - present), "reason": found.verdict.reason, "s": seconds,
    }  # fmt: skip


def main() -> None:
    options = _measure.arguments(rows="", sizes="1,2,4,8", seeds="0,1,2")
    made = []
    for name in _measure.chosen(options.rows, ROWS) or ROWS:
        for n in map(int, options.sizes.split(",")):
            for seed in map(int, options.seeds.split(",")):
                made.append(row(name, n, seed))
                _measure.report("known_start", made[-1:], None)
                if options.out is not None:
                    _measure.write("known_start", made, options.out)


if __name__ == "__main__":
    main()
