"""One gradient of a batch: closed units beside an optimisation attack, alike in all.

    python -m benchmarks.bench_gradient_inversion --batches=1,4,20 --steps=4000

Needs NTK_PRIVACY_DATA. CIFAR-10 and six layers of width 200, the base setting of SPEAR
(NeurIPS 2024). The optimisation attack follows Geiping et al., "Inverting Gradients"
(NeurIPS 2020): images whose gradient has the direction of the one that was sent, and
little total variation, by Adam on the signs of its gradient with a decaying step,
within the box. It is told the labels and the number of images; closed units neither.
PSNR of every training image is that of the nearest one returned.

    python -m benchmarks.bench_gradient_inversion --success=gradient_100_1024 --draws=20

counts, instead, in how many draws of images and weights of a row of
`bench_closed_units` an attack returns every image below a squared distance of 1e-6, and
certifies it: decoding by classes, or closed units with `--attack=closed_units`. The
first draw is read twice, as its first call compiles.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _measure, bench_closed_units
from ntk_privacy import data
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import algebraic, closed_units, evidence

_DEVIATION = 0.25  # of a pixel of CIFAR-10, about: the unit of a step
_RATE = 0.1  # of that unit
_DECAYS = (3 / 8, 5 / 8, 7 / 8)  # of the steps: the rate falls to a tenth
_RECOVERED = 25.0  # dB
_MOST = 150.0  # dB: beyond it float32 images are equal
_EXACT = 1e-6  # squared distance
_MODEL = MLP((200,) * 6, 10)


def _total_variation(images):
    across = jnp.mean(jnp.abs(jnp.diff(images, axis=1)))
    return across + jnp.mean(jnp.abs(jnp.diff(images, axis=2)))


def _distance(a, b):
    """One less the cosine of the angle between two gradients."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    inner = sum(jnp.vdot(u, v) for u, v in pairs)
    sizes = [jnp.sqrt(sum(jnp.vdot(p[i], p[i]) for p in pairs)) for i in range(2)]
    return 1 - inner / (sizes[0] * sizes[1])


def _loss(params, images, labels):
    logits = _MODEL.apply_fn(params, images)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


@functools.partial(jax.jit, static_argnames="steps")
def optimise(params, sent, labels, box, start, variation, *, steps):
    """Returns images, and the distance of their gradient from the one sent.

    Args:
      params: at which the gradient was taken.
      sent: the gradient.
      labels: (n,) classes of the images.
      box: least and largest value of a pixel, per channel.
      start: (n, h, w, c) in units of `_DEVIATION`.
      variation: weight of total variation.
      steps: of Adam.
    """

    def objective(z):
        images = z * _DEVIATION
        away = _distance(jax.grad(_loss)(params, images, labels), sent)
        return away + variation * _total_variation(z), away

    rates = optax.piecewise_constant_schedule(
        _RATE, {int(share * steps): 0.1 for share in _DECAYS}
    )
    rule = optax.adam(rates)

    def step(carry, _):
        z, state = carry
        grads, away = jax.grad(objective, has_aux=True)(z)
        updates, state = rule.update(jnp.sign(grads), state)
        z = jnp.clip(z + updates, box[0] / _DEVIATION, box[1] / _DEVIATION)
        return (z, state), away

    (z, _), away = jax.lax.scan(step, (start, rule.init(start)), length=steps)
    return z * _DEVIATION, away[-1]


def quality(images, truth, mean) -> dict[str, float]:
    """PSNR of each training image against the nearest one returned."""
    clipped = np.clip(np.asarray(images, np.float64) + mean, 0, 1)
    clipped = clipped.reshape(len(images), -1)
    truth = (np.asarray(truth, np.float64) + mean).reshape(len(truth), -1)
    squared = ((truth[:, None] - clipped[None]) ** 2).mean(-1).min(1)
    psnr = np.minimum(-10 * np.log10(np.maximum(squared, 1e-30)), _MOST)
    return {
        "recovered": int((psnr >= _RECOVERED).sum()),
        "psnr_least": float(psnr.min()),
        "psnr_mean": float(psnr.mean()),
    }


def _drawn(n: int, seed: int):
    """Weights, the gradient, images, labels, the mean that was taken off, the box."""
    found = data.load(
        "cifar10", task="all_classes", num_train=20, key=jax.random.key(seed)
    )
    chosen = np.random.default_rng(seed).permutation(20)[:n]
    x, labels = found.x_train[chosen], found.y_train[chosen].argmax(1)
    params = _MODEL.init_params(jax.random.key(1000 + seed), x.shape[1:])
    box = tuple(jnp.asarray(side) for side in found.bounds)
    x, labels = jnp.asarray(x), jnp.asarray(labels)
    sent = jax.jit(jax.grad(_loss))(params, x, labels)
    return params, sent, x, labels, found.mean, box


def _timed(call):
    """What a call gives, and its seconds; it was compiled before."""
    begin = time.perf_counter()
    made = jax.block_until_ready(call())
    return made, time.perf_counter() - begin


def _both(n: int, seed: int, steps: int, variations: list[float]):
    """A row of closed units, and one of the optimisation with each weight."""
    params, sent, x, labels, mean, box = _drawn(n, seed)
    told = {"N": n, "seed": seed}
    read = functools.partial(
        closed_units.reconstruct_gradient,
        params,
        sent,
        key=jax.random.key(7),
        image_shape=x.shape[1:],
    )
    read()
    found, seconds = _timed(read)
    made = quality(found.images, x, mean)
    certified = int(found.certified.sum())
    yield {**told, "method": "closed units", **made, "certified": certified} | {
        "s": seconds
    }
    start = jax.random.normal(jax.random.key(seed), x.shape)
    run = functools.partial(optimise, params, sent, labels, box, start)
    for variation in variations:
        weight = jnp.float32(variation)
        program = optimise.lower(*run.args, weight, steps=steps).compile()
        (images, away), seconds = _timed(functools.partial(program, *run.args, weight))
        made = quality(images, x, mean)
        yield {**told, "method": "optimisation", **made, "certified": 0} | {
            "s": seconds,
            "total_variation": variation,
            "steps": steps,
            "cosine_distance": float(away),
        }


def _by_classes(row, model, params, sent, image_shape):
    """What decoding reads of one gradient, and its seconds."""
    del row
    begin = time.perf_counter()
    known = evidence.of_gradient(model, params, sent, image_shape=image_shape)
    found = algebraic.from_evidence(known, key=jax.random.key(7))
    return found, time.perf_counter() - begin


_ATTACKS = {"classes": _by_classes, "closed_units": bench_closed_units.read}


def _success(name: str, attack: str, first: int, draws: int):
    """A row a draw, and one of them all."""
    row, made, begin = bench_closed_units.ROWS[name], [], time.perf_counter()
    for seed in range(first, first + draws):
        model, params, sent, dataset = bench_closed_units.victim_of(row, seed)
        read = functools.partial(
            _ATTACKS[attack], row, model, params, sent, dataset.x_train.shape[1:]
        )
        if not made:
            read()
        found, seconds = read()
        told = bench_closed_units.figures(found, dataset.x_train)
        exact = told["largest"] is not None and told["largest"] < _EXACT
        exact = exact and len(found.images) == row["n"]
        made.append(
            {"case": name, "attack": attack, "N": row["n"], "width": row["width"]}
            | {"seed": seed, **told}
            | {"success": exact and told["certified"] == row["n"], "s": seconds}
        )
        yield made[-1]
    times = [each["s"] for each in made]
    yield {
        "case": name,
        "attack": attack,
        "draws": draws,
        "successes": sum(each["success"] for each in made),
        "false": sum(each["false"] for each in made),
        "images_per_s": bench_closed_units.ROWS[name]["n"] / float(np.median(times)),
        "peak_gb": _measure.peak_memory(),
        "s_median": float(np.median(times)),
        "s_largest": max(times),
        "s_of_all": time.perf_counter() - begin,
    }


def main() -> None:
    options = _measure.arguments(
        batches="1,4,20", seeds="0,1,2", steps=4000, variations="0,1e-4,1e-2",
        success="", attack="classes", draws=20, first=0,
    )  # fmt: skip
    if options.success:
        rows = []
        for name in _measure.chosen(options.success, bench_closed_units.ROWS):
            for row in _success(name, options.attack, options.first, options.draws):
                rows.append(row)
                _measure.report("gradient_success", [row], None)
                if options.out is not None:
                    _measure.write("gradient_success", rows, options.out)
        return
    weights = [float(v) for v in options.variations.split(",")]
    rows = []
    for n in map(int, options.batches.split(",")):
        for seed in map(int, options.seeds.split(",")):
            for row in _both(n, seed, options.steps, weights):
                rows.append(row)
                _measure.report("gradient_inversion", [row], None)
    _measure.report("gradient_inversion", rows, options.out)


if __name__ == "__main__":
    main()
