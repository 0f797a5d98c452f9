"""The initialisation need not be given: people seed with 0, 1, 42, 1234.

The weights that a network was trained from are a function of one small number. Trained
weights still correlate with them, at 0.8 after hundreds of steps, and with those of any
other seed only as chance allows, so a few entries of one layer tell the seed, and the
seed tells all weights before training, which exact attacks need.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ntk_privacy import _checks, resume
from ntk_privacy._types import Params
from ntk_privacy.reconstruction import leaf_names, result, unit_verdict
from ntk_privacy.reconstruction.evidence import Evidence
from ntk_privacy.reconstruction.torch_linear import TorchLinear
from ntk_privacy.reconstruction.verdict import Verdict
from ntk_privacy.resume import Stage, straight

__all__ = ["SeedFound", "TorchLinear", "find_seed", "guessed", "unknown"]

_ENTRIES = 1024  # of a layer, to tell nearly all seeds apart
_FEW = 256  # will do, where more take
_LARGE = 2**14  # or larger layers
_AT_ONCE = 4096  # seeds
_FINALISTS = 4
_LARGEST = 2**18  # entries of a layer that is drawn for every seed
_MOST = 2**16  # of each layer, that finalists are compared by
_WRONG, _FEWER = 64, 24  # seeds that tell what chance gives; of large networks
_WHOLE = 2**17  # entries from which a network is one
_BATCH = 256
_CHANCE = 4.0  # deviations that a wrong layer's correlation stays below
_CLIP = 3.0  # deviations: beyond, an entry of trained weights counts as that
_LAST = 2**31 - 1


class SeedFound(NamedTuple):
    """The seed that explains trained weights best, and how surely.

    Attributes:
      seed: None where no seed stands out from chance.
      best: the seed of the largest correlation, whether it stands out or not.
      correlation: of its weights with the trained ones, over all layers that are drawn.
      runner_up: the next of the few seeds that were compared in full.
      p_value: the chance that any of so many wrong seeds would correlate as well.
      num_seeds: that were tried.
      unexplained: large layers that correlate no more than by chance: another order of
        layers, or another draw between them; params_0 is wrong there.
      params_0: the weights of that seed; None without.
    """

    seed: int | None
    best: int
    correlation: float
    runner_up: float
    p_value: float
    num_seeds: int
    unexplained: tuple[str, ...]
    params_0: Params | None


def find_seed(
    init_fn: Callable[[Int[jax.Array, ""]], Params] | TorchLinear,
    params_t: Params,
    *,
    seeds: Iterable[int] = range(100_000),
    significance: float = 1e-6,
) -> SeedFound:
    """Returns the seed from whose initial weights a network was trained.

    A first pass compares a thousand entries of the smallest layers with those of every
    seed, a second one 65,536 of every layer, of the best seeds. Seeds beyond those that
    are tried tell how wrong ones correlate: hence the p-value (Student's t). Where the
    smallest layers tell nothing, larger ones are compared by turns, which takes longer:
    a head may have been replaced.

    Args:
      init_fn: from a seed (a traced integer) to parameters of the structure of
        params_t: `lambda seed: net.init(jax.random.key(seed), x)["params"]`, or, of
        NNX, `lambda seed: nnx.state(Net(nnx.Rngs(jax.random.key(seed))), nnx.Param)`;
        or a `TorchLinear`, whose names params_t then has.
      params_t: after training; a state_dict too.
      seeds: to try, from 0 to 2^31 - 1.
      significance: p-value below which a seed counts as found.

    Raises:
      ValueError: no seeds, a seed out of range, parameters of another structure or not
        finite, or an initialisation that draws nothing at random.

    Warns:
      UserWarning: the seed does not explain all layers.

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
      >>> found.seed, found.p_value < 1e-20
      (42, True)
    """
    _checks.positive(significance=significance)
    tried = _checked(seeds)
    torch = isinstance(init_fn, TorchLinear)
    init = init_fn if torch else jax.jit(init_fn)
    trained, one = _leaves("params_t", params_t), int(tried[0])
    _checks.finite(params_t=trained)
    try:
        pair = [_leaves("init_fn", init(k)) for k in (one, (one + 1) % _LAST)]
    except (TypeError, jax.errors.JAXTypeError) as error:
        raise ValueError(
            "init_fn does not take a traced integer "
            f"({str(error).splitlines()[0][:99]}): use jax.random.key(seed) in it, of "
            "NNX nnx.Rngs(jax.random.key(seed)); for PyTorch give a TorchLinear."
        ) from error
    _check_same(trained, pair[0])
    random = [k for k, leaf in pair[0].items() if np.any(leaf != pair[1][k])]
    if not random:
        raise ValueError(
            "init_fn gives the same parameters for two seeds: let it draw them from "
            "the seed that it is given."
        )
    target = _standardised(_joined(trained, random, _MOST))

    def scored(seed: int) -> float:
        drawn = _leaves("init_fn", init(seed))
        return float(target @ _standardised(_joined(drawn, random, _MOST))) / len(
            target
        )

    count = _WRONG if len(target) < _WHOLE else _FEWER
    beyond = np.setdiff1d(np.arange(_LAST - 2 * count, _LAST), tried)[-count:]
    wrong = np.array([scored(k) for k in beyond.tolist()])
    from scipy import stats  # slow to import

    spread = max(float(np.std(wrong, ddof=1)), 1e-12) * np.sqrt(1 + 1 / len(wrong))
    scores: dict[int, float] = {}
    seed, others, p_value, chance = one, [], 1.0, ()
    for names in _passes(init_fn, {name: pair[0][name].size for name in random}):
        entries = _standardised(_joined(trained, names, _ENTRIES)[:_ENTRIES])
        for k in _finalists(_scorer(init_fn, names, entries), tried):
            scores[k] = scores[k] if k in scores else scored(k)
        seed, *others = sorted(scores, key=lambda k: -scores[k])
        z = (scores[seed] - np.mean(wrong)) / spread
        chances = len(tried) * stats.t.sf(z, len(wrong) - 1)
        p_value = float(min(1.0, chances))
        if p_value < significance:
            chance = _unexplained(trained, _leaves("init_fn", init(seed)), random)
            if not chance:
                break
    sure = p_value < significance
    if sure and chance:
        warnings.warn(
            f"Seed {seed} does not explain {', '.join(chance)}: params_0 is right in "
            "the other layers alone. Were these made in another order, or was anything "
            "else drawn between them?",
            stacklevel=2,
        )
    return SeedFound(
        seed if sure else None,
        seed,
        scores[seed],
        scores[others[0]] if others else 0.0,
        p_value,
        len(tried),
        chance if sure else (),
        init(seed) if sure else None,
    )


def _passes(init_fn, sizes: dict[str, int]) -> list[list[str]]:
    """Layers that are compared first, and then, where these tell nothing, by turns.

    Those of a head may have been replaced; a whole layer is drawn for every seed.
    """
    if isinstance(init_fn, TorchLinear):
        return [init_fn.order()]
    first = _smallest(sizes)
    rest = sorted(set(sizes) - set(first), key=lambda name: sizes[name])
    return [first, *([k] for k in rest if _FEW <= sizes[k] <= _LARGEST)]


def _finalists(score, tried: np.ndarray) -> list[int]:
    parts = np.split(tried, range(_AT_ONCE, len(tried), _AT_ONCE))
    first = np.concatenate([score(part) for part in parts])
    return tried[np.argsort(-first)[:_FINALISTS]].tolist()


def _checked(seeds: Iterable[int]) -> np.ndarray:
    """Seeds in order, each once."""
    if not hasattr(seeds, "__iter__"):
        raise ValueError(f"seeds={seeds!r}: give several, such as range(100_000).")
    given = np.asarray(seeds if hasattr(seeds, "__len__") else list(seeds))
    if not given.size:
        raise ValueError("seeds is empty: give some, such as range(100_000).")
    if given.dtype.kind not in "iu":
        raise ValueError(f"seeds are of dtype {given.dtype}: give integers.")
    tried = np.unique(given)
    if tried[0] < 0 or tried[-1] > _LAST:
        outside = tried[0] if tried[0] < 0 else tried[-1]
        raise ValueError(
            f"seeds hold {outside}: give integers from 0 to {_LAST} = 2^31 - 1."
        )
    return tried


def _check_same(trained: dict[str, np.ndarray], drawn: dict[str, np.ndarray]) -> None:
    """Raises ValueError unless names and shapes agree."""
    if trained.keys() != drawn.keys():
        only = [
            sorted(a.keys() - b.keys()) for a, b in ((trained, drawn), (drawn, trained))
        ]
        told = [", ".join(names[:4]) or "nothing" for names in only]
        raise ValueError(
            f"params_t alone has {told[0]}, init_fn's parameters alone {told[1]}: give "
            "both the same names and layers, without what is not drawn (of a "
            "checkpoint its state_dict)."
        )
    for name, leaf in trained.items():
        if leaf.shape != drawn[name].shape:
            turned = leaf.ndim > 1 and leaf.shape == drawn[name].shape[::-1]
            remedy = "transpose it" if turned else "give the network that was trained"
            raise ValueError(
                f"{name} has shape {leaf.shape} in params_t and {drawn[name].shape} in "
                f"init_fn's parameters: {remedy}; PyTorch keeps (outputs, inputs)."
            )


def _unexplained(
    trained: dict[str, np.ndarray], drawn: dict[str, np.ndarray], random: list[str]
) -> tuple[str, ...]:
    """Large layers that correlate with the drawn ones as by chance."""
    found = []
    for name in random:
        a, b = (_standardised(leaves[name].ravel()) for leaves in (trained, drawn))
        if len(a) >= _FEW and a @ b / np.sqrt(len(a)) < _CHANCE:
            found.append(name)
    return tuple(found)


def _leaves(where: str, params: Params) -> dict[str, np.ndarray]:
    """Leaves by name, on the host in float64; what counts or keeps keys is left out."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = ".".join(leaf_names.names(path))
        if hasattr(leaf, "detach"):
            leaf = np.asarray(leaf.detach().cpu().float().tolist())
        if not hasattr(leaf, "dtype"):
            raise ValueError(
                f"{where} has {leaf!r} at {name or 'its top'}: give arrays alone."
            )
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            found[name] = np.asarray(leaf).astype(np.float64)
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
        chance = np.asarray(" ".join(found.unexplained))
        return {"found": np.asarray(found.seed is not None), "chance": chance, **told}

    arrays = resume.once(stage, "seed", make)
    told = {name: arrays[name].item() for name in names}
    told["unexplained"] = tuple(str(arrays["chance"]).split())
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
        f"{found.best}, which chance gives with a probability of {found.p_value:.2g}. "
        "Try more seeds; the initialisation may be another one, or something else may "
        "have drawn random numbers before it. Where biases began at zero, known_start "
        "reads one image like their mean without it."
    )
    nothing = unit_verdict.nothing(known.image_shape, Verdict("nothing found", reason))
    return nothing._replace(duals=np.zeros((1, 0, known.num_outputs)))


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
            ".".join(leaf_names.names(path)): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(init_fn(seed))
        }
        parts = []
        for name in names:
            part = leaves[name].ravel()[:_ENTRIES].astype(jnp.float32)
            parts.append(part / jnp.maximum(jnp.std(part), 1e-30))
        return jnp.concatenate(parts)[:_ENTRIES]

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
