"""Seeds from trained weights: found where they are, and only there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ntk_privacy import data, models, training
from ntk_privacy.reconstruction import closed_units, initialisation

SHAPE = (4, 4, 1)
NET = models.MLP(widths=(24, 24), num_outputs=3)
# After torch.manual_seed(42): torch.nn.Linear(7, 5), then torch.nn.Linear(5, 3).
TORCH_42 = {
    "a.weight": [0.2889684, 0.3137135, -0.0885467, 0.3472024],
    "a.bias": [0.2335631, 0.0589061, 0.3053814, 0.0413190],
    "b.weight": [0.1201590, -0.1212751, 0.1882132, 0.3992822],
}


def _init(seed):
    return NET.init_params(jax.random.key(seed), SHAPE, jnp.float32)


def _trained(seed, size=1.0):
    """Weights that moved away from those of a seed, as far as they are large."""
    other = _init(10**8 + 1)
    return jax.tree.map(lambda a, b: a + size * b, _init(seed), other)


@pytest.mark.parametrize("seed", [0, 42, 1234])
def test_the_seed_is_found_and_gives_the_weights(seed):
    found = initialisation.find_seed(_init, _trained(seed), seeds=range(2000))
    assert (found.seed, found.best, found.num_seeds) == (seed, seed, 2000)
    assert found.p_value < 1e-20
    assert found.correlation > 0.5 > 3 * found.runner_up
    for ours, theirs in zip(
        jax.tree.leaves(found.params_0), jax.tree.leaves(_init(seed)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_another_seed_is_no_find():
    """None of 12 searches without the seed is called a find; p-values are even."""
    values, trained = [], _trained(3)
    for k in range(12):
        seeds = range(100 * k + 5, 100 * k + 100)
        found = initialisation.find_seed(_init, trained, seeds=seeds)
        assert found.seed is None
        assert found.params_0 is None
        values.append(found.p_value)
    # Of the largest of 95, as Bonferroni bounds it: half lie above 0.5.
    assert np.min(values) > 1e-4
    assert np.median(values) > 0.1


def test_nnx_keeps_its_seed_too():
    class Net(nnx.Module):
        def __init__(self, rngs):
            kinds = {"rngs": rngs, "param_dtype": jnp.float32}
            self.first = nnx.Linear(16, 24, **kinds)
            self.last = nnx.Linear(24, 3, **kinds)

    def init(seed):
        return nnx.state(Net(nnx.Rngs(jax.random.key(seed))), nnx.Param)

    trained = jax.tree.map(lambda a, b: a + 0.5 * b, init(7), init(10**6))
    assert initialisation.find_seed(init, trained, seeds=range(500)).seed == 7


def test_linear_layers_are_drawn_as_pytorch_draws_them():
    found = initialisation.TorchLinear({"a": (7, 5), "b": (5, 3)})(42)
    assert found["a.weight"].shape == (5, 7)
    for name, numbers in TORCH_42.items():
        ours = found[name].ravel()[: len(numbers)]
        np.testing.assert_allclose(ours, numbers, atol=1e-7)


def test_images_are_read_from_final_weights_alone():
    digits = data.load("digits", num_train=8, key=jax.random.key(0))
    x, y = digits.x_train, digits.y_train

    def init(seed):
        return models.MLP((192, 64), y.shape[1]).init_params(
            jax.random.key(seed), x.shape[1:], jnp.float32
        )

    made = training.victim.fit(
        models.MLP((192, 64), y.shape[1]),
        init(42),
        jnp.asarray(x),
        jnp.asarray(y),
        dynamics="standard",
        schedule="heavy_ball",
        stop_loss=1e-4,
    )
    guess = initialisation.find_seed(init, made.params_t, seeds=range(300))
    assert guess.seed == 42
    found = closed_units.reconstruct(
        guess.params_0, made.params_t, key=jax.random.key(0), image_shape=x.shape[1:]
    )
    assert found.certified.all()
    assert len(found.images) == 8
    flat = np.asarray(found.images).reshape(8, -1)
    truth = np.asarray(x).reshape(8, -1)
    nearest = ((truth[:, None] - flat[None]) ** 2).sum(-1).min(1)
    assert nearest.max() < 1e-4


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seeds": []}, "seeds is empty: give some, such as"),
        ({"seeds": [3, -1]}, "seeds hold -1: give integers from 0 to"),
        ({"seeds": [2**31]}, f"seeds hold {2**31}: give integers"),
        ({"significance": 0.0}, "significance"),
        ({"params_t": {"a": np.ones(3)}}, "params_t alone has a, init_fn's param"),
        ({"params_t": {"a": "mlp"}}, "params_t has 'mlp' at a: give arrays alone"),
        ({"init_fn": lambda _: _init(0)}, "same parameters for two seeds"),
        ({"init_fn": lambda seed: _init(int(seed))}, "does not take a traced integer"),
        (
            {"params_t": jax.tree.map(lambda a: a * np.nan, _init(0))},
            "params_t",
        ),
        (
            {"params_t": models.MLP((24, 24), 2).init_params(jax.random.key(0), SHAPE)},
            r"has shape .* in params_t and .* in init_fn's parameters",
        ),
    ],
)
def test_bad_input_gets_a_sentence(change, told):
    given = {"init_fn": _init, "params_t": _init(1), "seeds": range(9), **change}
    with pytest.raises(ValueError, match=told):
        initialisation.find_seed(**given)


def test_layers_of_nothing_are_refused():
    with pytest.raises(ValueError, match=r"layers=\{\}: give a dict of name"):
        initialisation.TorchLinear({})
    for sizes in ((0, 3), (3, -1)):
        with pytest.raises(ValueError, match=r"layers\['a'\]=.*two integers"):
            initialisation.TorchLinear({"a": sizes})


def test_layers_in_another_order_are_told():
    """The first one tells the seed, and the others are not what it gives."""
    sizes = {"a": (16, 24), "b": (24, 30), "c": (30, 12)}
    true = initialisation.TorchLinear(sizes)
    trained = {k: v + 0.3 * v.std() for k, v in true(9).items()}
    trained["steps"] = np.asarray(7)  # what counts is no weight
    assert initialisation.find_seed(true, trained, seeds=range(50)).unexplained == ()
    turned = initialisation.TorchLinear({k: sizes[k] for k in "acb"})
    with pytest.warns(UserWarning, match=r"Seed 9 does not explain b.weight"):
        found = initialisation.find_seed(turned, trained, seeds=range(50))
    assert found.seed == 9
    assert set(found.unexplained) == {"b.weight", "c.weight"}
    trained["b.weight"] = trained["b.weight"].T
    with pytest.raises(ValueError, match="transpose it; PyTorch keeps"):
        initialisation.find_seed(true, trained, seeds=range(50))


def _uneven(seed):
    """Entries of very unlike sizes, a fixed part, and layers that one key drew."""
    key = jax.random.key(seed)
    one = jax.random.normal(key, (32, 32), jnp.float32)
    tied = {f"tied{k}": one for k in range(6)}
    scale = jnp.asarray(np.where(np.arange(32) < 2, 1.0, 0.01), jnp.float32)
    eye = jnp.eye(32, dtype=jnp.float32)
    return {**tied, "rows": one * scale[:, None], "eye": eye + 0.01 * one}


def test_no_seed_is_found_whatever_the_layers_are():
    for k in range(3):
        trained = _uneven(10**6 + k)
        found = initialisation.find_seed(_uneven, trained, seeds=range(2000))
        assert found.seed is None, found
    found = initialisation.find_seed(_uneven, _uneven(77), seeds=range(300))
    assert found.seed == 77


def test_a_head_that_was_replaced_hides_no_seed():
    """It is the first layer to be compared, and tells nothing, or of another seed."""
    net = models.MLP(widths=(128, 128), num_outputs=10)

    def init(seed):
        return net.init_params(jax.random.key(seed), SHAPE, jnp.float32)

    for other in (10**6, 7):
        trained = {**init(42), "Dense_2": init(other)["Dense_2"]}
        with pytest.warns(UserWarning, match="Seed 42 does not explain Dense_2.kernel"):
            found = initialisation.find_seed(init, trained, seeds=range(200))
        assert found.seed == 42
        assert found.unexplained == ("Dense_2.kernel",)
