"""What may stand above, and how the network may be trained: closed units all the same.

    python -m benchmarks.bench_closed_units_general --rows=cosine,dropout --seeds=0,1,2

Needs NTK_PRIVACY_DATA. 20 images of MNIST and a first layer of width 1024; every row
changes one thing about the network, its training or how the weights are stored. The
last rows break the form: their verdicts count. Columns as in `bench_closed_units`;
the kernel distance is that of one output, the loss that of the images read.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _general_networks as networks
from benchmarks import _measure
from benchmarks.bench_closed_units import figures
from ntk_privacy import data
from ntk_privacy.evaluation.kernel_distance import kernel_distance
from ntk_privacy.reconstruction import closed_units

_N, _BATCH, _MOMENTUM = 20, 5, 0.9
_START = 1000  # other images, for what was trained before
_FEATURES = 512
_SHIFT = 2  # pixels, at most
_NOISE = 0.5  # deviation of label noise

# loss: squares of odd against even (one output), or cross-entropy of ten classes.
_PLAIN = {
    "net": "plain",
    "optimizer": "momentum",
    "rate": 0.003,
    "loss": "squares",
    "steps": 500,
}
_CLASSES = {**_PLAIN, "loss": "classes", "rate": 0.01}
_ADAM = {**_PLAIN, "rate": 3e-4}
_GRADIENT = {**_CLASSES, "steps": 0}

ROWS = {
    "cosine": {**_PLAIN, "optimizer": "cosine"},
    "nesterov": {**_PLAIN, "optimizer": "nesterov"},
    "clipping": {**_PLAIN, "optimizer": "clipping"},
    "dropout": {**_PLAIN, "net": "dropout"},
    "label_noise": {**_PLAIN, "odd": "noise"},
    "residual": {**_PLAIN, "net": "residual", "rate": 2e-4},
    "layer_norm_after": {**_PLAIN, "net": "layer_norm_after"},
    "attention": {**_PLAIN, "net": "attention", "rate": 2e-4},
    "convolution": {**_PLAIN, "net": "convolution"},
    "flips": {**_PLAIN, "odd": "flips"},
    "six_layers": {**_CLASSES, "net": "six"},
    "fine_tuning": {**_CLASSES, "start": "trained"},
    "features": {**_CLASSES, "start": "features"},
    "bfloat16": {**_CLASSES, "stored": "bfloat16"},
    "float16": {**_CLASSES, "stored": "float16"},
    "gradient": _GRADIENT,
    "gradient_bfloat16": {**_GRADIENT, "stored": "bfloat16"},
    "gradient_float16": {**_GRADIENT, "stored": "float16"},
    "silu_100": {**_PLAIN, "net": "silu_100"},
    "silu_30": {**_PLAIN, "net": "silu_30"},
    "silu_10": {**_PLAIN, "net": "silu_10"},
    "silu": {**_PLAIN, "net": "silu"},
    "gelu_100": {**_PLAIN, "net": "gelu_100"},
    "gelu_30": {**_PLAIN, "net": "gelu_30"},
    "gelu_10": {**_PLAIN, "net": "gelu_10"},
    "gelu": {**_PLAIN, "net": "gelu"},
    "leaky": {**_PLAIN, "net": "leaky"},
    "adam": {**_ADAM, "optimizer": "adam"},
    "adamw": {**_ADAM, "optimizer": "adamw"},
    "batch_norm_before": {**_PLAIN, "net": "batch_norm_before"},
    "layer_norm_before": {**_PLAIN, "net": "layer_norm_before"},
    "augmentation": {**_PLAIN, "odd": "shifts"},
}


def _optimizer(name: str, rate: float, steps: int) -> optax.GradientTransformation:
    made = {
        "momentum": lambda: optax.sgd(rate, _MOMENTUM),
        "nesterov": lambda: optax.sgd(rate, _MOMENTUM, nesterov=True),
        "cosine": lambda: optax.sgd(
            optax.cosine_decay_schedule(rate, steps), _MOMENTUM
        ),
        "clipping": lambda: optax.chain(
            optax.clip_by_global_norm(1.0), optax.sgd(rate, _MOMENTUM)
        ),
        "adam": lambda: optax.adam(rate),
        "adamw": lambda: optax.adamw(rate, weight_decay=1e-2),
    }
    return made[name]()


def _losses(kind: str, outputs, y):
    if kind == "squares":
        return 0.5 * jnp.sum((outputs - y) ** 2, axis=1)
    return optax.softmax_cross_entropy(outputs, y)


def _pictures(x):
    side = round(x.shape[1] ** 0.5)
    return x.reshape(-1, side, side)


def _mirrored(x):
    return _pictures(x)[:, :, ::-1].reshape(x.shape)


def _flipped(x, key):
    """Every image mirrored or not."""
    return jnp.where(jax.random.bernoulli(key, 0.5, (len(x), 1)), _mirrored(x), x)


def _shifted(x, key):
    """Every image moved by up to two pixels, with edges carried round."""
    moves = jax.random.randint(key, (len(x), 2), -_SHIFT, _SHIFT + 1)
    images = _pictures(x)
    moved = jax.vmap(lambda image, by: jnp.roll(image, by, (0, 1)))(images, moves)
    return moved.reshape(x.shape)


_FORMS = {"flips": _flipped, "shifts": _shifted}


@functools.cache
def _trainer(net, optimizer, rate, loss, steps, batch=_BATCH, odd=""):
    """One compiled program that trains: (params, x, y, key) -> params."""
    apply = networks.NETWORKS[net].apply
    rule = _optimizer(optimizer, rate, steps)

    def mean(params, x, y, key):
        return jnp.mean(_losses(loss, apply(params, x, key), y))

    def train(params, x, y, key):
        each = -(-len(x) // batch)  # steps an epoch

        def step(carry, t):
            params, state = carry
            epoch = jax.random.fold_in(key, t // each)
            orders, wrong = jax.random.split(epoch)
            order = jax.random.permutation(orders, len(x))
            chosen = jax.lax.dynamic_slice(order, (t % each * batch,), (batch,))
            drop, move = jax.random.split(jax.random.fold_in(epoch, t))
            labels = y
            if odd == "noise":
                labels = y + _NOISE * jax.random.normal(wrong, y.shape)
            images = x[chosen]
            if odd in _FORMS:
                images = _FORMS[odd](images, move)
            grads = jax.grad(mean)(params, images, labels[chosen], drop)
            updates, state = rule.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = params, rule.init(params)
        return jax.lax.scan(step, carry, jnp.arange(steps))[0][0]

    return jax.jit(train)


@functools.cache
def _gradient(net, loss):
    apply = networks.NETWORKS[net].apply

    def mean(params, x, y):
        return jnp.mean(_losses(loss, apply(params, x, None), y))

    return jax.jit(jax.grad(mean))


@functools.cache
def _loaded(loss: str, seed: int):
    """Images and targets: the first 20 are read, the others train what came before."""
    task = "odd_even" if loss == "squares" else "all_classes"
    found = data.load(
        "mnist", task=task, num_train=_N + _START, key=jax.random.key(seed)
    )
    order = np.random.default_rng(seed).permutation(_N + _START)
    x = jnp.asarray(found.x_train)[order].reshape(len(order), -1)
    y = np.asarray(found.y_train)[order]
    # Targets of ten classes are centred.
    y = y if loss == "squares" else np.eye(y.shape[1])[y.argmax(1)]
    return x, jnp.asarray(y, jnp.float32)


def _features(x, y, key):
    """What a network that other images trained makes of all: features of norm ~ 10."""
    net = networks.NETWORKS["trunk"]
    params = net.init(key, x.shape[1], y.shape[1])
    train = _trainer("trunk", "momentum", 0.01, "classes", 100, 50)
    layer = train(params, x[_N:], y[_N:], key)["Dense_0"]
    made = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return made * 10 / jnp.mean(jnp.linalg.norm(made, axis=1))


def victim_of(row: dict, seed: int):
    """Trains; returns weights before, and after or a gradient, and images read."""
    x, y = _loaded(row["loss"], seed)
    keys = jax.random.split(jax.random.key(1000 + seed), 4)
    if row.get("start") == "features":
        x = _features(x, y, keys[0])
    net = networks.NETWORKS[row["net"]]
    params = net.init(keys[1], x.shape[1], y.shape[1])
    if row.get("start") == "trained":
        train = _trainer(row["net"], "momentum", 0.01, row["loss"], 200, 50)
        params = train(params, x[_N:], y[_N:], keys[2])
    if not row["steps"]:
        after = _gradient(row["net"], row["loss"])(params, x[:_N], y[:_N])
    else:
        told = (row[k] for k in ("net", "optimizer", "rate", "loss", "steps"))
        train = _trainer(*told, odd=row.get("odd", ""))
        after = train(params, x[:_N], y[:_N], keys[3])
    if "stored" in row:
        # The network goes on from weights as they are stored; a gradient is sent so.
        dtype = jnp.dtype(row["stored"])
        after = jax.tree.map(lambda leaf: leaf.astype(dtype), after)
        if row["steps"]:
            params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    x, y = x[:_N], y[:_N]
    if row.get("odd") == "flips":
        # Every form is an image of its own.
        x, y = jnp.concatenate([x, _mirrored(x)]), jnp.concatenate([y, y])
    return params, after, x, y


@functools.cache
def _kernel(net: str):
    """The tangent kernel of the first output: (params, x) -> (n, n)."""
    apply = networks.outputs(networks.NETWORKS[net])

    def one(params, image):
        return jax.grad(lambda p: apply(p, image[None])[0, 0])(params)

    def kernel(params, x):
        rows = jax.vmap(lambda image: one(params, image))(x)
        flat = [leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(rows)]
        return sum(leaf @ leaf.T for leaf in flat)

    return jax.jit(kernel)


def _moved(row: dict, before, after, x, y) -> tuple[float, float]:
    """Kernel distance, and the mean loss at the end."""
    wide = [
        jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        for params in (before, after)
    ]
    kernels = [_kernel(row["net"])(params, x) for params in wide]
    apply = networks.outputs(networks.NETWORKS[row["net"]])
    loss = jnp.mean(_losses(row["loss"], apply(wide[1], x), y))
    return float(kernel_distance(*kernels)), float(loss)


def read(row: dict, before, after, shape):
    """Reads the images; returns the result and the seconds it took."""
    start = time.perf_counter()
    once = not row["steps"]
    attack = closed_units.reconstruct_gradient if once else closed_units.reconstruct
    found = attack(before, after, key=jax.random.key(7), image_shape=shape)
    return found, time.perf_counter() - start


def main() -> None:
    options = _measure.arguments(rows=",".join(ROWS), seeds="0,1,2")
    rows = []
    for name in _measure.chosen(options.rows, ROWS):
        for seed in map(int, options.seeds.split(",")):
            row = ROWS[name]
            start = time.perf_counter()
            before, after, x, y = jax.block_until_ready(victim_of(row, seed))
            trained = time.perf_counter() - start
            moved, loss = 0.0, None
            if row["steps"] and row["net"] != "batch_norm_before":
                moved, loss = _moved(row, before, after, x, y)
            shape = (28, 28, 1) if x.shape[1] == 784 else (1, 1, x.shape[1])
            found, seconds = read(row, before, after, shape)
            rows.append(
                {
                    "case": name,
                    "seed": seed,
                    "N": len(x),
                    **figures(found, x),
                    "word": found.verdict.word,
                    "gap": float(found.verdict.gap or 0.0),
                    "kernel_distance": moved,
                    "loss": loss,
                    "s": seconds,
                    "s_train": trained,
                }
            )
            _measure.report("closed_units_general", rows[-1:], None)
            print("   ", found.verdict.reason, flush=True)
    _measure.report("closed_units_general", rows, options.out)


if __name__ == "__main__":
    main()
