"""Training images among 99 decoys of their class, by what each kind of evidence shows.

    python -m benchmarks.bench_identification --seeds=0,1,2

Needs NTK_PRIVACY_DATA. Candidates are ranked by the distance to the nearest certified
image. Controls: the same decoys where the network was trained on other images (by
chance one in a hundred is first), and weights of two networks that do not belong
together, of which nothing may be certified.
"""

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import _measure
from ntk_privacy import data
from ntk_privacy.evaluation import identification
from ntk_privacy.reconstruction import algebraic, closed_units, evidence, initialisation
from ntk_privacy.training import victim

_POOL = 3000  # images, from which decoys are drawn too
_SEED = 42  # of initial weights, that an attacker guesses


class Row(NamedTuple):
    """A network, its data, and how it is attacked."""

    dataset: str
    n: int
    width: int
    kind: str  # weights, decoded weights, final weights, gradient, gradient by class


ROWS = {
    "weights": Row("mnist", 20, 512, "weights"),
    "decoded_weights": Row("mnist", 20, 1024, "decoded weights"),
    "final_weights": Row("cifar10", 20, 512, "final weights"),
    "gradient": Row("cifar10", 20, 512, "gradient"),
    "gradient_by_class": Row("cifar10", 60, 1024, "gradient by class"),
}


_GRADIENTS = ("gradient", "gradient by class")


def trained(row: Row, x, y, seed: int) -> victim.Victim:
    """A network whose weights were drawn from a seed, trained on these images."""
    given: dict[str, Any] = {"key": jax.random.key(seed), "width": row.width}
    if row.kind in _GRADIENTS:
        return victim.one_gradient(x, y, loss="cross_entropy", **given)
    if row.kind == "decoded weights":
        return victim.train(x, y, stop_loss=1e-6, **given)
    given |= {"dynamics": "standard", "schedule": "heavy_ball", "stop_loss": 1e-4}
    return victim.train(x, y, **given)


def certified(row: Row, known: evidence.Evidence) -> np.ndarray:
    """Images that the attack certifies; it may have to guess the weights' seed."""
    if row.kind == "final weights":
        net = known.mlp("this benchmark")

        def init(seed):
            return net.init_params(jax.random.key(seed), known.image_shape)

        known = dataclasses.replace(known, params_0=None)
        known, guess = initialisation.guessed(known, init, seeds=range(1000))
        if guess.seed is None:
            return np.zeros((0, *known.image_shape))
    decodes = row.kind in ("decoded weights", "gradient by class")
    attack = algebraic if decodes else closed_units
    found = attack.from_evidence(known, key=jax.random.key(7))
    return np.asarray(found.images)[np.asarray(found.certified)]


def measured(name: str, seed: int) -> dict[str, Any]:
    """A row: how many of the training images come first, and the controls."""
    row = ROWS[name]
    loaded = data.load(
        row.dataset, task="all_classes", num_train=_POOL, key=jax.random.key(seed)
    )
    x, y = np.asarray(loaded.x_train), np.asarray(loaded.y_train)
    order = np.random.default_rng(seed).permutation(len(x))
    own, other, rest = order[: row.n], order[row.n : 2 * row.n], order[2 * row.n :]
    classes = y.argmax(1)
    rows = identification.choose_decoys(classes[own], classes[rest], seed=seed)
    decoys = x[rest][rows]
    begin = time.perf_counter()
    this = evidence.of(trained(row, x[own], y[own], _SEED + seed))
    images = certified(row, this)
    seconds = time.perf_counter() - begin
    that = evidence.of(trained(row, x[other], y[other], _SEED + seed))
    control = certified(row, that)
    # Initial weights of another seed; an attacker who guesses finds the right ones.
    wrong = evidence.of(trained(row, x[own], y[own], _SEED + 500 + seed))
    told = dataclasses.replace(this, params_0=wrong.params_0)
    if row.kind in _GRADIENTS:
        moved = jax.tree.map(
            lambda a, b, c: a + (b - c), wrong.params_0, this.params_t, this.params_0
        )
        told = dataclasses.replace(told, params_t=moved)
    guessless = row._replace(
        kind="weights" if row.kind == "final weights" else row.kind
    )
    ranks = identification.rank_among(images, x[own], decoys)
    by_chance = identification.rank_among(control, x[own], decoys)
    return {
        "case": name,
        **row._asdict(),
        "seed": seed,
        "certified": len(images),
        "first_of_100": int(np.sum(ranks == 1)),
        "worst_rank": int(ranks.max()),
        "other_set_certified": len(control),
        "other_set_first_of_100": int(np.sum(by_chance == 1)),
        "wrong_weights_certified": len(certified(guessless, told)),
        "s": seconds,
    }


def main() -> None:
    options = _measure.arguments(rows=",".join(ROWS), seeds="0,1,2")
    made = []
    for name in _measure.chosen(options.rows, ROWS):
        for seed in map(int, options.seeds.split(",")):
            made.append(measured(name, seed))
            _measure.report("identification", made[-1:], None)
            if options.out is not None:
                _measure.write("identification", made, options.out)


if __name__ == "__main__":
    main()
