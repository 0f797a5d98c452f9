"""Parameters in every form they come in: the same layers, or one sentence."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

from ntk_privacy.reconstruction import mlp_layers

SIZES = (6, 5, 5, 5, 2)


def _network(seed: int) -> dict[str, dict[str, jax.Array]]:
    rng = np.random.default_rng(seed)
    return {
        f"Dense_{i}": {
            "kernel": jnp.asarray(rng.standard_normal((a, b)), jnp.float32),
            "bias": jnp.asarray(rng.standard_normal(b), jnp.float32),
        }
        for i, (a, b) in enumerate(itertools.pairwise(SIZES))
    }


def _renamed(names):
    return lambda p: dict(zip(names, p.values(), strict=True))


def _torch(p):
    flat = {}
    for i, layer in enumerate(p.values()):
        flat[f"net.{2 * i}.weight"] = np.asarray(layer["kernel"]).T
        flat[f"net.{2 * i}.bias"] = np.asarray(layer["bias"])
    return flat


def _nnx(p):
    class Mlp(nnx.Module):
        def __init__(self):
            for i, (a, b) in enumerate(itertools.pairwise(SIZES)):
                setattr(self, f"layer{i}", nnx.Linear(a, b, rngs=nnx.Rngs(0)))

    model = Mlp()
    for i, layer in enumerate(p.values()):
        getattr(model, f"layer{i}").kernel = nnx.Param(layer["kernel"])
        getattr(model, f"layer{i}").bias = nnx.Param(layer["bias"])
    return nnx.state(model, nnx.Param)


FORMS = {
    "plain": lambda p: p,
    "frozen": freeze,
    "numpy": lambda p: jax.tree.map(np.asarray, p),
    "float64": lambda p: jax.tree.map(lambda a: np.asarray(a, np.float64), p),
    "nested": lambda p: {"params": p},
    "beside a counter": lambda p: {"params": p, "step": np.int32(3)},
    "own names": _renamed(["input", "hidden_b", "hidden_a", "head"]),
    "numbers of two digits": _renamed([f"layers_{i}" for i in (2, 8, 10, 12)]),
    "sorted as text": lambda p: dict(
        sorted(_renamed([f"layers_{i}" for i in (2, 8, 10, 12)])(p).items())
    ),
    "a list": lambda p: list(p.values()),
    "PyTorch": _torch,
    "NNX": _nnx,
}


@pytest.mark.parametrize("form", list(FORMS))
def test_layers_are_read_in_order_from_every_form(form):
    before, after = _network(0), _network(1)
    layers, _ = mlp_layers.read(FORMS[form](before), FORMS[form](after), pixels=6)
    for i, (a, b) in enumerate(zip(before.values(), after.values(), strict=True)):
        np.testing.assert_array_equal(layers.kernels[i], a["kernel"])
        np.testing.assert_array_equal(layers.biases[i], a["bias"])
        change = np.asarray(b["kernel"], np.float64) - np.asarray(a["kernel"])
        np.testing.assert_array_equal(layers.kernel_changes[i], change)


def test_half_precision_is_read_in_float32_and_its_roundoff_told():
    half = [jax.tree.map(lambda a: a.astype(jnp.bfloat16), _network(i)) for i in (0, 1)]
    layers, roundoff = mlp_layers.read(*half, pixels=6)
    assert layers.kernels[0].dtype == np.float32
    assert roundoff == 2.0**-8


def test_shapes_that_fit_in_several_orders_are_refused():
    names = ["first", "second", "third", "fourth"]
    sizes = [_renamed(names)(_network(i)) for i in (0, 1)]
    shuffled = [{k: p[k] for k in sorted(names)} for p in sizes]
    with pytest.raises(ValueError, match="more than one order"):
        mlp_layers.read(*shuffled, pixels=6)


def test_what_is_no_mlp_is_one_sentence():
    before, after = _network(0), _network(1)
    norm = {"LayerNorm_0": {"scale": jnp.ones(5), "bias": jnp.ones(5)}}
    with pytest.raises(ValueError, match=r"LayerNorm_0 holds .*scale.*kkt"):
        mlp_layers.read({**before, **norm}, {**after, **norm}, pixels=6)
    bare = [{k: {"kernel": v["kernel"]} for k, v in p.items()} for p in (before, after)]
    with pytest.raises(ValueError, match=r"only up to its scale.*kkt"):
        mlp_layers.read(*bare, pixels=6)
    with pytest.raises(ValueError, match="image_shape has 7 values"):
        mlp_layers.read(before, after, pixels=7)
    with pytest.raises(ValueError, match="differ in structure"):
        mlp_layers.read(before, {k: after[k] for k in list(after)[:3]}, pixels=6)
    wavy = [jax.tree.map(lambda a: a.astype(jnp.complex64), p) for p in (before, after)]
    with pytest.raises(ValueError, match=r"complex64.*real"):
        mlp_layers.read(*wavy, pixels=6)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_numbers_whose_squares_are_none_are_told(scale):
    """Their decompositions have no eigenvalues, or none that converge."""
    pair = [jax.tree.map(lambda a: a * scale, _network(seed)) for seed in (0, 1)]
    with pytest.raises(ValueError, match="whose square leaves float32"):
        mlp_layers.read(*pair, pixels=6)
    near = jax.tree.map(lambda a: a * (1 + 1e-3), _network(0))
    mlp_layers.read(_network(0), near, pixels=6)


def test_a_last_layer_that_moves_alone_is_no_network_without_biases():
    """So it is where every image is zero: no gate is open."""
    before = _network(0)
    after = before | {"Dense_3": _network(1)["Dense_3"]}
    with pytest.raises(ValueError, match=r"Only Dense_3 moved: .* all zero"):
        mlp_layers.read(before, after, pixels=6)
