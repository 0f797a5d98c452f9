"""Embeddings read from heads, and images through a trunk that the attacker knows.

    python -m benchmarks.bench_heads --out=results/benchmarks/heads.json

Needs NTK_PRIVACY_DATA. CIFAR-10, ten classes, cross-entropy, float32. Embeddings are
those of a ConvNet of three blocks, 48 channels, 768 features after ReLU and average
pooling, at PyTorch's initialisation, with instance normalisation; "layer norm" are the
same, normalised; "unnormalised" those of a ConvNet without normalisation, scaled to a
standard deviation of one, which are almost parallel. A trained head saw 200 steps of
momentum 0.9 at a rate of 0.01 on batches of 20. lenet: two convolutions of stride 2,
ReLU, a dense layer of 512 and the logits; one gradient at initialisation.
Columns: embeddings within a squared distance of 1e-6 (found), their largest squared
distance, certificates, false ones (an error above the stated bound), seconds with
compilation; of images, PSNR (a range of 1) and misfit of their embeddings.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _measure
from ntk_privacy import data
from ntk_privacy.models import MLP, ConvNet
from ntk_privacy.reconstruction import heads, through_trunk
from ntk_privacy.training import recipe as recipes

_LENGTH, _WIDTH, _N = 768, 2048, 100
_SHAPE = (32, 32, 3)
_RECIPE = recipes.Recipe(
    loss="cross_entropy",
    optimizer="momentum",
    batch_size=20,
    num_epochs=40,
    learning_rate=0.01,
)


def images(n: int, seed: int):
    """Images and their labels, and the range of intensities."""
    balanced = -(-n // 10) * 10
    found = data.load(
        "cifar10", task="all_classes", num_train=balanced, key=jax.random.key(seed)
    )
    return jnp.asarray(found.x_train[:n]), jnp.asarray(found.y_train[:n]), found.bounds


def embeddings(x, seed: int, kind: str):
    norm = "none" if kind == "unnormalised" else "instance"
    trunk = ConvNet(10, width=48, depth=3, norm=norm, pooling="avg")
    made = trunk.embed_fn(trunk.init_params(jax.random.key(100 + seed), _SHAPE), x)
    if kind == "layer norm":
        made = made - made.mean(1, keepdims=True)
        return made / made.std(1, keepdims=True)
    return made / jnp.std(made) if kind == "unnormalised" else made


def judged(found: heads.Embeddings, truth) -> dict[str, Any]:
    """What was read, beside the truth."""
    truth = np.asarray(truth, np.float64)
    told = {"word": found.verdict.word, "reason": found.verdict.reason}
    if not len(found.rows):
        return {"found": 0, "worst": None, "certified": 0, "false": 0, **told}
    squares = ((truth[:, None] - found.rows[None]) ** 2).sum(-1)
    errors = np.sqrt(squares.min(0)) / np.linalg.norm(truth[squares.argmin(0)], axis=1)
    return {
        "found": int((squares.min(1) < 1e-6).sum()),
        "worst": float(squares.min(1).max()),
        "certified": int(found.certified.sum()),
        "false": int((found.certified & (errors > found.errors)).sum()),
        **told,
    }


def head(seed: int, kind: str, depth: int, trained: bool, n: int = _N):
    """A head over embeddings: one gradient, or trained."""
    x, y, _ = images(n, seed)
    rows = embeddings(x, seed, kind)
    inputs = rows.reshape(n, _LENGTH, 1, 1)
    model = MLP((_WIDTH,) * depth, 10)
    params = model.init_params(jax.random.key(seed), (_LENGTH, 1, 1))
    given = {"length": _LENGTH, "key": jax.random.key(7)}

    def loss(p):
        return recipes.mean_loss(model, p, inputs, y, loss="cross_entropy")

    if trained:
        state = recipes.train(
            model, params, inputs, y, _RECIPE, key=jax.random.key(3), stop_loss=1e-9
        )
        begin = time.perf_counter()
        found = heads.decode(params, state.params, **given)
    else:
        gradient = jax.jit(jax.grad(loss))(params)
        begin = time.perf_counter()
        found = heads.decode_gradient(params, gradient, **given)
    return judged(found, rows) | {"s": time.perf_counter() - begin}


def lenet(params, x):
    """Features of two convolutions of stride 2, with ReLU."""
    for name in ("Conv_0", "Conv_1"):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        x = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + bias[None, None, None])
    return x.reshape(len(x), -1)


def lenet_params(key, channels=(12, 24), width=512):
    names = jax.random.split(key, 3)
    sizes = [(5, 5, 3, channels[0]), (5, 5, *channels)]
    trunk = {
        f"Conv_{i}": {
            "kernel": jax.random.normal(k, s) * float(np.sqrt(2 / np.prod(s[:3]))),
            "bias": jnp.zeros(s[3]),
        }
        for i, (k, s) in enumerate(zip(names[:2], sizes, strict=True))
    }
    features = 8 * 8 * channels[1]
    top = MLP((width,), 10).init_params(names[2], (features, 1, 1))
    return {"trunk": trunk, "head": top}


def end_to_end(seed: int, n: int = 5) -> list[dict[str, Any]]:
    """A LeNet-shaped network: features of one gradient, then images."""
    x, y, bounds = images(n, seed)
    params, top = lenet_params(jax.random.key(seed)), MLP((512,), 10)

    def loss(p):
        features = lenet(p["trunk"], x)
        inputs = features.reshape(n, -1, 1, 1)
        return recipes.mean_loss(top, p["head"], inputs, y, loss="cross_entropy")

    gradient = jax.jit(jax.grad(loss))(params)
    truth = lenet(params["trunk"], x)
    begin = time.perf_counter()
    found = heads.decode_gradient(
        params, gradient, length=truth.shape[1], key=jax.random.key(7)
    )
    row = judged(found, truth) | {"s": time.perf_counter() - begin}
    rows = [{"what": "lenet features", **row}]
    if len(found.rows) != n:
        return rows
    trunk_fn = functools.partial(lenet, params["trunk"])
    equations = through_trunk.kernel_equations(
        lenet, params["trunk"], found.backward, gradient["trunk"]
    )
    for what, more in (("features", None), ("features and kernels", equations)):
        begin = time.perf_counter()
        made = through_trunk.invert(
            trunk_fn, found.rows, key=jax.random.key(8), image_shape=_SHAPE,
            bounds=bounds, equations=more,
        )  # fmt: skip
        rows.append(
            {"what": f"lenet images, {what}", **pictured(made, found.rows, x, truth)}
            | {"s": time.perf_counter() - begin}
        )
    return rows


def pictured(made, rows, x, truth) -> dict[str, Any]:
    """PSNR of images beside those whose embeddings are nearest."""
    squares = ((rows[:, None] - np.asarray(truth)[None]) ** 2).sum(-1)
    mse = ((made.images - np.asarray(x)[squares.argmin(1)]) ** 2).mean((1, 2, 3))
    psnr = -10 * np.log10(np.maximum(mse, 1e-30))
    return {
        "psnr_median": float(np.median(psnr)),
        "psnr_least": float(psnr.min()),
        "misfit_largest": float(made.misfits.max()),
        "only": int(made.is_only.sum()),
    }


def trunk(seed: int, n: int = 3) -> list[dict[str, Any]]:
    """Images from true embeddings, through trunks that lose nothing, some and much."""
    x, _, bounds = images(n, seed)
    rows = []
    for what, options in (
        ("8 channels, stride 1, 8192 features", {"width": 8, "pooling": "none"}),
        ("16 channels, pooled, 4096 features", {"width": 16, "pooling": "avg"}),
        ("3 blocks, 768 features", {"width": 48, "depth": 3, "norm": "instance"}),
    ):
        net = ConvNet(10, **{"depth": 1, "norm": "none", **options})
        fn = functools.partial(net.embed_fn, net.init_params(jax.random.key(1), _SHAPE))
        truth = np.asarray(fn(x))
        begin = time.perf_counter()
        made = through_trunk.invert(
            fn, truth, key=jax.random.key(8), image_shape=_SHAPE, bounds=bounds
        )
        made = through_trunk.solve(fn, truth, made, bounds=bounds)
        told = pictured(made, truth, x, truth)
        squares = ((made.images - np.asarray(x)) ** 2).sum((1, 2, 3))
        told |= {"worst": float(squares.max()), "s": time.perf_counter() - begin}
        rows.append({"what": f"trunk, {what}", **told})
    return rows


def _head_rows(seed: int, kind: str, n: int = _N):
    for depth in (1, 2):
        for trained in (False, True):
            what = "trained" if trained else "one gradient"
            name = f"{what}, {depth} hidden, {kind}"
            yield {"what": name, "N": n, **head(seed, kind, depth, trained, n)}


ROWS = {
    "after_relu": lambda seed: _head_rows(seed, "after ReLU"),
    "layer_norm": lambda seed: _head_rows(seed, "layer norm"),
    "unnormalised": lambda seed: _head_rows(seed, "unnormalised", 50),
    "lenet": end_to_end,
    "trunk": trunk,
}


def main() -> None:
    options = _measure.arguments(rows=",".join(ROWS), seeds="0,1,2")
    rows = [] if options.out is None else _measure.read(options.out)
    done = {(row["group"], row["seed"]) for row in rows}
    for name in _measure.chosen(options.rows, ROWS):
        for seed in map(int, options.seeds.split(",")):
            if (name, seed) in done:
                continue
            new = [{"group": name, "seed": seed, **row} for row in ROWS[name](seed)]
            rows += new
            shown = [{k: v for k, v in r.items() if k != "reason"} for r in new]
            _measure.report("heads", shown, None)
            if options.out is not None:
                _measure.write("heads", rows, options.out)


if __name__ == "__main__":
    main()
