"""The initialisation need not be given: people seed with 0, 1, 42, 1234.

The weights that a network was trained from are a function of one small number. Trained
weights still correlate with them, at 0.8 after hundreds of steps, and with those of any
other seed only as chance allows, so a few entries of one layer tell the seed, and the
seed tells all weights before training, which exact attacks need.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from ntk_privacy import _checks, resume
from ntk_privacy._types import Params
from ntk_privacy.reconstruction import leaf_names, result
from ntk_privacy.reconstruction.evidence import Evidence
from ntk_privacy.reconstruction.verdict import Verdict
from ntk_privacy.resume import Stage, straight

__all__ = ["SeedFound", "TorchLinear", "find_seed", "guessed", "unknown"]

_ENTRIES = 1024  # of a layer, to tell nearly all seeds apart
_FEW = 256  # will do, where more take
_LARGE = 2**14  # or larger layers
_AT_ONCE = 4096  # seeds
_FINALISTS = 4
_BATCH = 256
_CLIP = 3.0  # deviations: beyond, an entry of trained weights counts as that
_LAST = 2**31 - 1


class SeedFound(NamedTuple):
    """The seed that explains trained weights best, and how surely.

    Attributes:
      seed: None where no seed stands out from chance.
      best: the seed of the largest correlation, whether it stands out or not.
      correlation: of its weights with the trained ones, all that are drawn at random.
      runner_up: the largest of any other seed.
      p_value: the chance that any of so many wrong seeds would correlate as well.
      num_seeds: that were tried.
      params_0: the weights of that seed; None without.
    """

    seed: int | None
    best: int
    correlation: float
    runner_up: float
    p_value: float
    num_seeds: int
    params_0: Params | None


@dataclasses.dataclass(frozen=True)
class TorchLinear:
    """PyTorch's own initialisation of `torch.nn.Linear` layers, made in this order.

    After `torch.manual_seed(seed)` on a CPU: uniform in +-1/sqrt(inputs), the weight
    before the bias, from the Mersenne Twister; equal to PyTorch's to rounding. Nothing
    else may have drawn random numbers before.

    Attributes:
      layers: name of each layer and its (inputs, outputs).

    Example:
      >>> from ntk_privacy.reconstruction import initialisation
      >>> init = initialisation.TorchLinear({"fc1": (7, 5), "fc2": (5, 2)})
      >>> {name: leaf.shape for name, leaf in init(42).items()}["fc1.weight"]
      (5, 7)
    """

    layers: Mapping[str, tuple[int, int]]

    def __post_init__(self):
        if not self.layers:
            raise ValueError("layers={} is empty: give name: (inputs, outputs).")
        for name, sizes in self.layers.items():
            _checks.at_least(1, **{f"layers[{name!r}]": min(sizes)})

    def __call__(self, seed: int) -> dict[str, Float[np.ndarray, "..."]]:
        """Returns a state_dict of that seed, as NumPy arrays of float32."""
        draw, found = np.random.RandomState(seed), {}
        for name, (inputs, outputs) in self.layers.items():
            bound = np.float32(1 / np.sqrt(inputs))
            weight = _uniform(draw, inputs * outputs, bound)
            found[f"{name}.weight"] = weight.reshape(outputs, inputs)
            found[f"{name}.bias"] = _uniform(draw, outputs, bound)
        return found

    def first(self, seed: int, count: int) -> Float[np.ndarray, " k"]:
        """Returns the first numbers of the first weight, up to their scale."""
        inputs, outputs = next(iter(self.layers.values()))
        count = min(count, inputs * outputs)
        return _uniform(np.random.RandomState(seed), count, np.float32(1))


def _uniform(draw: np.random.RandomState, count: int, bound) -> np.ndarray:
    """As PyTorch does it: 24 bits of every 32 that the generator gives."""
    bits = draw.randint(0, 2**32, size=count, dtype=np.uint32) & np.uint32(2**24 - 1)
    unit = bits.astype(np.float32) * np.float32(2.0**-24)
    return unit * (bound - -bound) - bound


def find_seed(
    init_fn: Callable[[Int[jax.Array, ""]], Params] | TorchLinear,
    params_t: Params,
    *,
    seeds: Iterable[int] = range(100_000),
    significance: float = 1e-6,
) -> SeedFound:
    """Returns the seed from whose initial weights a network was trained.

    A first pass compares a thousand entries of the smallest layers with those of every
    seed, a second one all entries of the best seeds. Correlations of wrong seeds are
    normal, of variance 1 / entries whatever the trained weights are: hence the p-value.

    Args:
      init_fn: from a seed (a traced integer) to parameters of the structure of
        params_t: `lambda seed: net.init(jax.random.key(seed), x)["params"]`, or, of
        NNX, `lambda seed: nnx.state(Net(rngs=nnx.Rngs(jax.random.key(seed))))`; or a
        `TorchLinear`, whose names params_t then has.
      params_t: after training.
      seeds: to try, from 0 to 2^31 - 1.
      significance: p-value below which a seed counts as found.

    Raises:
      ValueError: no seeds, a seed out of range, parameters of another structure or not
        finite, or an initialisation that draws nothing at random.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from ntk_privacy import models
      >>> from ntk_privacy.reconstruction import initialisation
      >>> net = models.MLP(widths=(32, 32))
      >>> init = lambda seed: net.init_params(jax.random.key(seed), (8, 8, 1))
      >>> noise = net.init_params(jax.random.key(10**6), (8, 8, 1))
      >>> trained = jax.tree.map(lambda a, b: a + 0.5 * b, init(42), noise)
      >>> found = initialisation.find_seed(init, trained, seeds=range(1000))
      >>> found.seed, found.p_value < 1e-100
      (42, True)
    """
    _checks.positive(significance=significance)
    tried = np.unique(np.fromiter(seeds, np.int64))
    if not len(tried):
        raise ValueError("seeds is empty: give some, such as range(100_000).")
    if tried[0] < 0 or tried[-1] > _LAST:
        outside = tried[0] if tried[0] < 0 else tried[-1]
        raise ValueError(
            f"seeds hold {outside}: give integers from 0 to {_LAST} = 2^31 - 1."
        )
    torch = isinstance(init_fn, TorchLinear)
    init = init_fn if torch else jax.jit(init_fn)
    trained, one = _leaves(params_t), int(tried[0])
    pair = [_leaves(init(seed)) for seed in (one, (one + 1) % _LAST)]
    for name in sorted(trained.keys() ^ pair[0].keys()):
        where = "params_t" if name in trained else "init_fn's parameters"
        raise ValueError(
            f"{name} stands in {where} alone: give an init_fn whose parameters have "
            "the structure of params_t."
        )
    for name, leaf in trained.items():
        if leaf.shape != pair[0][name].shape:
            raise ValueError(
                f"{name} has shape {leaf.shape} in params_t and {pair[0][name].shape} "
                "in init_fn's parameters: give the network that was trained."
            )
    _checks.finite(params_t=list(trained.values()))
    random = [
        name
        for name, leaf in pair[0].items()
        if leaf.size > 1 and np.mean(leaf != pair[1][name]) > 0.5
    ]
    if not random:
        raise ValueError(
            "init_fn gives the same parameters for two seeds: let it draw them from "
            "the seed that it is given."
        )
    if torch:
        names = [f"{next(iter(init_fn.layers))}.weight"]
    else:
        names = _smallest({name: pair[0][name].size for name in random})
    target = _standardised(_joined(trained, names, _ENTRIES))
    score = _scorer(init_fn, names, target)
    parts = np.split(tried, range(_AT_ONCE, len(tried), _AT_ONCE))
    first = np.concatenate([score(part) for part in parts])
    best = tried[np.argsort(-first)[:_FINALISTS]]
    target = _standardised(_joined(trained, random))
    whole = [_standardised(_joined(_leaves(init(s)), random)) for s in best.tolist()]
    scores = np.array([target @ entries for entries in whole]) / len(target)
    order = np.argsort(-scores)
    correlation = float(scores[order[0]])
    # Those that the first pass left out had less than chance leaves there.
    others = float(scores[order[1]]) if len(scores) > 1 else 0.0
    z = correlation * np.sqrt(len(target))
    p_value = float(min(1.0, len(tried) * scipy.stats.norm.sf(z)))
    seed = int(best[order[0]])
    sure = p_value < significance
    return SeedFound(
        seed if sure else None,
        seed,
        correlation,
        others,
        p_value,
        len(tried),
        init(seed) if sure else None,
    )


def _leaves(params: Params) -> dict[str, np.ndarray]:
    """Leaves by name, on the host in float64."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if hasattr(leaf, "detach"):
            leaf = leaf.detach().cpu().float()
        found[".".join(leaf_names.names(path))] = np.asarray(leaf, np.float64)
    return found


def guessed(
    known: Evidence,
    init_fn: Callable[[Int[jax.Array, ""]], Params] | TorchLinear,
    *,
    seeds: Iterable[int] = range(100_000),
    stage: Stage = straight,
) -> tuple[Evidence, SeedFound]:
    """Returns evidence with the weights of the seed that is found, if one is.

    Args:
      known: of a network; what it says of the weights before training is not looked at.
      init_fn: see `find_seed`.
      seeds: to try.
      stage: keeps what was found, as "seed".

    Raises:
      ValueError: see `find_seed`.
    """
    names = ("best", "correlation", "runner_up", "p_value", "num_seeds")

    def make():
        found = find_seed(init_fn, known.params_t, seeds=seeds)
        told = {name: np.asarray(getattr(found, name)) for name in names}
        return {"found": np.asarray(found.seed is not None), **told}

    arrays = resume.once(stage, "seed", make)
    told = {name: arrays[name].item() for name in names}
    seed = told["best"] if arrays["found"] else None
    params_0 = None
    if seed is not None:
        init = init_fn if isinstance(init_fn, TorchLinear) else jax.jit(init_fn)
        params_0 = init(seed)
    found = SeedFound(seed=seed, params_0=params_0, **told)
    return dataclasses.replace(known, params_0=params_0), found


def unknown(known: Evidence, found: SeedFound) -> result.Reconstruction:
    """Returns no image, for no seed explains the weights.

    Args:
      known: of the network.
      found: by `guessed`, without a seed.
    """
    reason = (
        f"None of {found.num_seeds} seeds stands out as that of the weights before "
        f"training: the largest correlation is {found.correlation:.2g}, of seed "
        f"{found.best}, which chance gives with a probability of {found.p_value:.2g}."
    )
    return result.Reconstruction(
        images=np.zeros((0, *known.image_shape)),
        duals=np.zeros((1, 0, known.num_outputs)),
        losses=np.zeros(0),
        verdict=Verdict("nothing found", reason),
        sources=(),
        message=f"0 images: {reason}",
        **result.uncertain(0),
    )


def _smallest(sizes: dict[str, int]) -> list[str]:
    """Layers that tell seeds apart: small ones, for a whole layer is drawn a seed."""
    order, count = sorted(sizes, key=lambda name: sizes[name]), 0
    chosen = []
    for name in order:
        if count >= _ENTRIES or (count >= _FEW and sizes[name] > _LARGE):
            break
        chosen.append(name)
        count += min(sizes[name], _ENTRIES)
    return chosen


def _joined(
    leaves: dict[str, np.ndarray], names: list[str], count: int | None = None
) -> np.ndarray:
    """Entries of layers, each of unit deviation, so that none outweighs another."""
    parts = [leaves[name].ravel()[:count] for name in names]
    return np.concatenate([p / max(float(np.std(p)), 1e-300) for p in parts])


def _standardised(entries: np.ndarray) -> np.ndarray:
    """Of mean 0 and variance 1, without outliers that would stand for all."""
    for _ in range(2):
        entries = entries - np.mean(entries)
        entries = entries / max(float(np.std(entries)), 1e-300)
        entries = np.clip(entries, -_CLIP, _CLIP)
    return entries / max(float(np.sqrt(np.mean(entries**2))), 1e-300)


def _correlations(xp, drawn, target):
    drawn = drawn - xp.mean(drawn, axis=1, keepdims=True)
    size = xp.sqrt(xp.mean(drawn**2, axis=1))
    return drawn @ target / len(target) / xp.maximum(size, 1e-30)


def _scorer(init_fn, names: list[str], target: np.ndarray):
    """Returns what correlates the first entries of many seeds with the trained ones."""
    if isinstance(init_fn, TorchLinear):

        def of_torch(seeds):
            drawn = np.stack([init_fn.first(int(seed), len(target)) for seed in seeds])
            return _correlations(np, drawn, target)

        return of_torch

    def drawn(seed):
        leaves = {
            ".".join(leaf_names.names(path)): leaf.ravel()[:_ENTRIES]
            for path, leaf in jax.tree_util.tree_leaves_with_path(init_fn(seed))
        }
        parts = [leaves[name] for name in names]
        return jnp.concatenate([p / jnp.maximum(jnp.std(p), 1e-30) for p in parts])

    @jax.jit
    def scores(seeds):
        # What is not compared is not drawn: the compiler drops it.
        entries = jax.lax.map(drawn, seeds, batch_size=_BATCH)
        return _correlations(jnp, entries, jnp.asarray(target, jnp.float32))

    def of_jax(seeds):
        # One program, whatever is left for the last part.
        filled = np.resize(seeds, _AT_ONCE).astype(np.int32)
        return np.asarray(scores(filled))[: len(seeds)]

    return of_jax
