"""Closed units on networks that were trained in ordinary ways, on real images.

    python -m benchmarks.bench_closed_units --rows=mnist_20,wd_20 --seeds=0,1,2

Needs NTK_PRIVACY_DATA. Every row trains a victim, reads it twice (the first call
compiles) and compares with the truth: images found below a squared distance of 1e-3 on
the [0, 1] scale, those certified, certified ones that are not within their stated
error, the largest squared distance, and seconds of the second call.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _measure
from ntk_privacy import data
from ntk_privacy.evaluation.kernel_distance import kernel_distance
from ntk_privacy.kernels import structured
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import closed_units
from ntk_privacy.training import classification, victim

_FLOW = {"kind": "flow", "width": 1024, "depth": 2}
# A fifteenth of the steps of the flow, which drown wide layers in rounding of float32.
_BALL = {**_FLOW, "width": 4096, "schedule": "heavy_ball"}
_BATCHES = {**_FLOW, "batch": 5, "steps": 1000}
_MSE = {**_BATCHES, "kind": "mse", "rate": 0.03}
_LOGISTIC = {**_BATCHES, "kind": "logistic", "rate": 0.05}
# At 0.05, 50 images diverge.
_CLASSES = {**_BATCHES, "kind": "classes", "rate": 0.02}
_DECAY = {**_BATCHES, "kind": "mse", "rate": 0.01, "steps": 2000, "decay": 5e-4}
_DEEP = {**_BATCHES, "kind": "mse", "rate": 0.01, "depth": 4}
SPEAR = {"kind": "gradient", "dataset": "cifar10", "width": 200, "depth": 6}
_SHALLOW = {**SPEAR, "depth": 2}

ROWS = {
    "mnist_20": {**_FLOW, "n": 20},
    "mnist_50": {**_FLOW, "n": 50},
    "mnist_100": {**_FLOW, "n": 100},
    "mnist_20_256": {**_FLOW, "n": 20, "width": 256},
    "mnist_20_4096_flow": {**_FLOW, "n": 20, "width": 4096},
    "mnist_20_4096": {**_BALL, "n": 20},
    "mnist_100_4096": {**_BALL, "n": 100},
    "mnist_200_4096": {**_BALL, "n": 200},
    "cifar_50": {**_FLOW, "n": 50, "dataset": "cifar10"},
    "cifar_100_4096": {**_BALL, "n": 100, "dataset": "cifar10"},
    "batches_20": {**_MSE, "n": 20},
    "batches_50": {**_MSE, "n": 50},
    "logistic_20": {**_LOGISTIC, "n": 20},
    "logistic_50": {**_LOGISTIC, "n": 50},
    "decay_20": {**_DECAY, "n": 20},
    "decay_50": {**_DECAY, "n": 50},
    "deep_20": {**_DEEP, "n": 20},
    "deep_50": {**_DEEP, "n": 50},
    "classes_20": {**_CLASSES, "n": 20},
    "classes_50": {**_CLASSES, "n": 50},
    "spear_20": {**SPEAR, "n": 20},
    "gradient_50_1000": {**SPEAR, "n": 50, "width": 1000},
    "gradient_100_1000": {**SPEAR, "n": 100, "width": 1000},
    "gradient_60_512": {**_SHALLOW, "n": 60, "width": 512},
    "gradient_100_1024": {**_SHALLOW, "n": 100, "width": 1024},
    "gradient_200_2048": {**_SHALLOW, "n": 200, "width": 2048},
    "gradient_500_4096": {**_SHALLOW, "n": 500, "width": 4096},
    "gradient_1000_8192": {**_SHALLOW, "n": 1000, "width": 8192},
    "learnt_200_2048": {**_SHALLOW, "n": 200, "width": 2048, "logits": 1.2},
}
_DEFAULT = (
    "mnist_20,mnist_50,mnist_100,mnist_20_256,mnist_20_4096,mnist_100_4096,"
    "mnist_200_4096,cifar_50,cifar_100_4096,batches_20,batches_50,"
    "logistic_20,logistic_50,decay_20,decay_50,deep_20,deep_50,classes_20,classes_50,"
    "spear_20,gradient_50_1000,gradient_100_1000"
)


def _margin(model, params, images):
    """One output for two classes, which the trainer counts as two."""
    outputs = model.apply_fn(params, images)
    return outputs[:, 1] - outputs[:, 0]


def _mean_squared(model):
    def losses(params, images, labels):
        return 0.5 * (_margin(model, params, images) - (2.0 * labels - 1)) ** 2

    return lambda _: losses


def _logistic(model):
    def losses(params, images, labels):
        return jax.nn.softplus((1 - 2.0 * labels) * _margin(model, params, images))

    return lambda _: losses


def _loaded(row, seed):
    """Images, targets, labels and the set."""
    name = row.get("dataset", "mnist")
    two = "animal_vehicle" if name == "cifar10" else "odd_even"
    task = "all_classes" if row["kind"] in ("classes", "gradient") else two
    found = data.load(name, task=task, num_train=row["n"], key=jax.random.key(seed))
    y = np.asarray(found.y_train)
    labels = y.argmax(1) if y.shape[1] > 1 else (y[:, 0] > 0).astype(int)
    return found, jnp.asarray(found.x_train), jnp.asarray(y), jnp.asarray(labels)


def victim_of(row, seed):
    """Trains; returns network, weights before and after or a gradient, and the set."""
    dataset, x, y, labels = _loaded(row, seed)
    key = jax.random.key(1000 + seed)
    widths = (row["width"],) * row["depth"]
    if row["kind"] == "flow":
        trained = victim.train(
            x, y, key=key, width=row["width"], depth=row["depth"],
            dynamics="standard", schedule=row.get("schedule", "flow"),
        )  # fmt: skip
        return trained.model, trained.params_0, trained.params_t, dataset
    model = MLP(widths, 10 if row["kind"] in ("classes", "gradient") else 2)
    if row["kind"] == "gradient":
        params = model.init_params(key, x.shape[1:])
        if "logits" in row:
            # As large as those of a network that has learnt.
            last = params[f"Dense_{row['depth']}"]
            size = jnp.std(model.apply_fn(params, x))
            last = {**last, "kernel": last["kernel"] * row["logits"] / size}
            params = {**params, f"Dense_{row['depth']}": last}

        def loss(p):
            logits = model.apply_fn(p, x)
            return jnp.mean(
                optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            )

        return model, params, jax.grad(loss)(params), dataset
    losses = {"mse": _mean_squared, "logistic": _logistic}.get(row["kind"])
    keys = jax.random.split(key, 1)
    before = classification.init(x, model=model, keys=keys)
    after = classification.train(
        x,
        labels,
        model=model,
        keys=keys,
        num_epochs=-(-row["steps"] * row["batch"] // row["n"]),
        learning_rate=row["rate"],
        weight_decay=row.get("decay", 0.0),
        batch_size=row["batch"],
        operations=(),
        regularize=None if losses is None else losses(model),
    )
    first, last = (
        jax.tree.map(lambda leaf: leaf[0], state.params) for state in (before, after)
    )
    return model, first, last, dataset


def read(row, model, before, after, shape):
    """Reads the images; returns the result and the seconds it took."""
    del model
    start = time.perf_counter()
    gradient = row["kind"] == "gradient"
    attack = closed_units.reconstruct_gradient if gradient else closed_units.reconstruct
    found = attack(before, after, key=jax.random.key(7), image_shape=shape)
    return found, time.perf_counter() - start


def figures(found, x):
    """Compares with the truth."""
    truth = np.asarray(x, np.float64).reshape(len(x), -1)
    images = np.asarray(found.images, np.float64).reshape(-1, truth.shape[1])
    if not len(images):
        return {"found": 0, "certified": 0, "false": 0, "largest": None}
    squared = np.stack([((each - images) ** 2).sum(-1) for each in truth])
    nearest = squared.min(0)
    relative = np.sqrt(nearest) / np.linalg.norm(truth, axis=1)[squared.argmin(0)]
    stated, true = (np.asarray(e)[found.certified] for e in (found.errors, relative))
    return {
        "found": int((squared.min(1) < 1e-3).sum()),
        "certified": int(found.certified.sum()),
        "false": int((found.certified & (relative > found.errors)).sum()),
        "largest": float(squared.min(1).max()),
        "median": float(np.median(squared.min(1))),
        "largest_stated": float(stated.max(initial=0)),
        "largest_true": float(true.max(initial=0)),
    }


def main() -> None:
    options = _measure.arguments(rows=_DEFAULT, seeds="0,1,2")
    rows = []
    for name in _measure.chosen(options.rows, ROWS):
        for seed in map(int, options.seeds.split(",")):
            row = ROWS[name]
            model, before, after, dataset = victim_of(row, seed)
            moved = 0.0
            if row["kind"] != "gradient":
                x = jnp.asarray(dataset.x_train)
                kernels = [structured.ntk(model, p, x) for p in (before, after)]
                moved = float(kernel_distance(*kernels))
            shape = dataset.x_train.shape[1:]
            _, first = read(row, model, before, after, shape)
            found, second = read(row, model, before, after, shape)
            rows.append(
                {
                    "case": name,
                    "seed": seed,
                    "N": row["n"],
                    **figures(found, dataset.x_train),
                    "word": found.verdict.word,
                    "kernel_distance": moved,
                    "s": second,
                    "s_with_compile": first,
                }
            )
            _measure.report("closed_units", rows[-1:], None)
    _measure.report("closed_units", rows, options.out)


if __name__ == "__main__":
    main()
