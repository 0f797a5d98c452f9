"""Anybody's dense layers as our MLP: the same function, or one sentence."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from ntk_privacy.models import MLP, published
from ntk_privacy.reconstruction import foreign_mlp
from ntk_privacy.reconstruction.evidence_files import as_apply_fn, as_mlp

eqx = pytest.importorskip("equinox", reason="weights as Equinox holds them")
hk = pytest.importorskip("haiku", reason="weights as Haiku holds them")
torch = pytest.importorskip("torch", reason="weights as PyTorch holds them")

KEY = jax.random.key(0)
SHAPE = (2, 2, 3)
SIZES = (12, 7, 5, 4)
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((6, *SHAPE)).astype(np.float32)
FLAT = IMAGES.reshape(6, -1)
LAYERS = [
    (
        RNG.standard_normal((a, b)).astype(np.float32),
        RNG.standard_normal(b).astype(np.float32),
    )
    for a, b in itertools.pairwise(SIZES)
]


def _dense(sizes=SIZES, names="Dense_{}", kernel="kernel", bias="bias"):
    rng = np.random.default_rng(1)
    return {
        names.format(i): {
            kernel: rng.standard_normal((a, b)).astype(np.float32),
            bias: rng.standard_normal(b).astype(np.float32),
        }
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    }


def _outputs(source, **given):
    model, params, notes = as_mlp(source, **given)
    dtype = params["Dense_0"]["kernel"].dtype
    params = jax.tree.map(jnp.asarray, params)
    return model.apply_fn(params, jnp.asarray(IMAGES, dtype)), notes


class _Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        for size in SIZES[1:-1]:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(SIZES[-1])(x)


class _Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        pairs = itertools.pairwise(SIZES)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in pairs])

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


def _torch_net(*, flatten=True):
    torch.manual_seed(0)
    layers = [torch.nn.Flatten()] * flatten
    for i, (a, b) in enumerate(itertools.pairwise(SIZES)):
        layers += [torch.nn.ReLU()] * (i > 0) + [torch.nn.Linear(a, b)]
    return torch.nn.Sequential(*layers)


def _close(found, wanted):
    np.testing.assert_allclose(found, np.asarray(wanted), rtol=1e-4, atol=1e-5)


class TestLibraries:
    """What their own function makes of images is what our MLP makes of them."""

    def test_linen(self):
        variables = _Linen().init(KEY, FLAT)
        for source in (variables, variables["params"]):
            found, _ = _outputs(source, image_shape=SHAPE)
            _close(found, _Linen().apply(variables, FLAT))

    def test_nnx(self):
        net = _Nnx()
        for source in (net, nnx.state(net, nnx.Param)):
            _close(_outputs(source, image_shape=SHAPE)[0], net(jnp.asarray(FLAT)))

    def test_equinox(self):
        net = eqx.nn.MLP(12, 4, 7, 3, key=KEY, dtype=jnp.float32)
        chw = IMAGES.transpose(0, 3, 1, 2).reshape(6, -1)
        found, notes = _outputs(net, image_shape=SHAPE)
        _close(found, jax.vmap(net)(jnp.asarray(chw)))
        assert any("channel by channel" in note for note in notes)
        found, _ = _outputs(net, image_shape=SHAPE, channels_first=False)
        _close(found, jax.vmap(net)(jnp.asarray(FLAT)))

    def test_haiku(self):
        net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP(SIZES[1:])(x)))
        params = net.init(jax.random.PRNGKey(0), jnp.asarray(FLAT))
        _close(_outputs(params, image_shape=SHAPE)[0], net.apply(params, FLAT))

    @pytest.mark.parametrize("first", [True, False])
    def test_pytorch_sees_channels_first(self, first):
        net = _torch_net()
        images = IMAGES.transpose(0, 3, 1, 2) if first else IMAGES
        wanted = net(torch.tensor(images.copy())).detach().numpy()
        given = {} if first else {"channels_first": False}
        found, notes = _outputs(net.state_dict(), image_shape=SHAPE, **given)
        _close(found, wanted)
        assert any(f"channels_first={not first} otherwise" in note for note in notes)

    def test_one_channel_has_one_order(self):
        net = _torch_net()
        model, params, notes = as_mlp(net, image_shape=(4, 3, 1))
        _close(params["Dense_0"]["kernel"].T, net[1].weight.detach())
        assert model == MLP((7, 5), 4)
        assert not any("channels_first" in note for note in notes)


def _relu_chain():
    x = FLAT
    for i, (kernel, bias) in enumerate(LAYERS):
        x = x @ kernel + bias
        x = np.maximum(x, 0) if i < len(LAYERS) - 1 else x
    return x


PLAIN = {
    "a list of pairs": LAYERS,
    "a flat list": [leaf for pair in LAYERS for leaf in pair],
    "numbered names": {
        f"{kind}{i}": leaf
        for i, pair in enumerate(LAYERS)
        for kind, leaf in zip("Wb", pair, strict=True)
    },
    "a list of dicts": [{"w": w, "b": b} for w, b in LAYERS],
    "other names": {
        name: {"kernel": w, "bias": b}
        for name, (w, b) in zip(("stem", "body", "head"), LAYERS, strict=True)
    },
    "shuffled": {
        name: {"kernel": LAYERS[i][0], "bias": LAYERS[i][1]}
        for name, i in (("x", 2), ("y", 0), ("z", 1))
    },
    "two digits": {
        f"layers.{n}": {"kernel": w, "bias": b}
        for n, (w, b) in zip((2, 10, 11), LAYERS, strict=True)
    },
}


@pytest.mark.parametrize("form", list(PLAIN))
def test_plain_trees_are_the_same_network(form):
    _close(_outputs(PLAIN[form], image_shape=SHAPE)[0], _relu_chain())


class TestTransposes:
    @pytest.mark.parametrize("bias", [True, False])
    def test_kernels_that_lie_the_other_way_are_turned(self, bias):
        tree = {
            f"Dense_{i}": {"kernel": w.T} | ({"bias": b} if bias else {})
            for i, (w, b) in enumerate(LAYERS)
        }
        model, params, notes = as_mlp(tree, image_shape=SHAPE)
        for i, (w, _) in enumerate(LAYERS):
            np.testing.assert_array_equal(params[f"Dense_{i}"]["kernel"], w)
        assert any("kernels look transposed" in note for note in notes)
        assert model.use_bias is True if bias else model.use_bias == (False,) * 3

    def test_weights_that_lie_as_jax_has_them_are_turned_back(self):
        tree = {f"{i}.weight": w for i, (w, _) in enumerate(LAYERS)}
        tree |= {f"{i}.bias": b for i, (_, b) in enumerate(LAYERS)}
        given = {"image_shape": SHAPE, "channels_first": False}
        _close(_outputs(tree, **given)[0], _relu_chain())

    @pytest.mark.parametrize("name", ["kernel", "weight"])
    def test_square_matrices_follow_the_convention_of_their_name(self, name):
        rng = np.random.default_rng(0)
        square = [rng.standard_normal((4, 4)) for _ in range(3)]
        tree = {f"l{i}": {name: w, "bias": w[0]} for i, w in enumerate(square)}
        _, params, notes = as_mlp(tree, image_shape=(2, 2, 1))
        for i, w in enumerate(square):
            wanted = w.T if name == "weight" else w
            np.testing.assert_array_equal(params[f"Dense_{i}"]["kernel"], wanted)
        assert not any("transposed" in note for note in notes)

    def test_a_square_matrix_lies_as_those_around_it(self):
        tree = {
            k: {**v, "kernel": v["kernel"].T} for k, v in _dense((6, 5, 5, 2)).items()
        }
        _, params, notes = as_mlp(tree, image_shape=(3, 2, 1))
        np.testing.assert_array_equal(
            params["Dense_1"]["kernel"], tree["Dense_1"]["kernel"].T
        )
        assert any("Dense_0, Dense_1, Dense_2" in note for note in notes)

    def test_one_kernel_that_its_bias_contradicts_is_turned_alone(self):
        tree = _dense((6, 5, 5, 2))
        tree["Dense_0"]["kernel"] = tree["Dense_0"]["kernel"].T
        _, params, notes = as_mlp(tree, image_shape=(3, 2, 1))
        np.testing.assert_array_equal(
            params["Dense_1"]["kernel"], tree["Dense_1"]["kernel"]
        )
        assert params["Dense_0"]["kernel"].shape == (6, 5)
        assert any("transposed (Dense_0)" in note for note in notes)


class TestWhatIsInferred:
    @pytest.mark.parametrize(
        ("pixels", "shape"), [(64, (8, 8, 1)), (784, (28, 28, 1)), (192, (8, 8, 3))]
    )
    def test_a_square_image_needs_no_telling(self, pixels, shape):
        found = foreign_mlp.layout(published.read(_dense((pixels, 3, 2))))
        assert found.image_shape == shape
        assert f"taken as {shape}" in found.notes[0]

    def test_one_matrix_is_one_layer(self):
        model, _, notes = as_mlp(np.ones((16, 3), np.float32))
        assert model == MLP((), 3, use_bias=(False,))
        assert "params: one dense layer, 16 -> 3" in notes

    def test_another_image_does(self):
        with pytest.raises(ValueError, match="takes 60 values, which are no square"):
            as_mlp(_dense((60, 3, 2)))

    def test_a_missing_bias_is_none_in_the_mlp(self):
        tree = _dense((16, 5, 2))
        del tree["Dense_0"]["bias"]
        model, params, notes = as_mlp(tree)
        assert model == MLP((5,), 2, use_bias=(False, True))
        assert set(params["Dense_0"]) == {"kernel"}
        assert any("known up to their scale" in note for note in notes)
        like = model.init_params(KEY, (4, 4, 1))
        assert jax.tree.structure(like) == jax.tree.structure(params)

    def test_the_second_file_is_read_as_the_first(self):
        square = {
            f"l{i}": {"kernel": w.T, "bias": b} for i, (w, b) in enumerate(LAYERS)
        }
        other = jax.tree.map(lambda leaf: 2 * leaf, square)
        _, params, _ = as_mlp(other, like=square, image_shape=SHAPE)
        np.testing.assert_array_equal(params["Dense_1"]["kernel"], 2 * LAYERS[1][0])

    def test_a_wrong_pair_is_told_by_its_first_leaf(self):
        with pytest.raises(ValueError, match=r"Dense_1\.kernel has shape \(5, 5\) in"):
            as_mlp(_dense((16, 5, 4, 2)), like=_dense((16, 5, 5, 2)))
        with pytest.raises(
            ValueError, match=r"Dense_2\.kernel has no such leaf in like"
        ):
            as_mlp(_dense((16, 5, 4, 2)), like=_dense((16, 5, 4)))


def _conv():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(4, 2))
    return net.state_dict()


def _haiku_conv():
    net = hk.transform(lambda x: hk.Conv2D(3, 3)(x))
    return net.init(jax.random.PRNGKey(0), jnp.zeros((1, 8, 8, 1), jnp.float32))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            _conv(),
            r": 0\.weight, of shape \(4, 1, 3, 3\), is a convolution",
        ),
        (_haiku_conv(), r"conv2_d\.w, of shape \(3, 3, 1, 3\), is a convolution"),
        (torch.nn.MultiheadAttention(4, 2), "in_proj_weight, of shape"),
        (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)), "1.weight"),
        (torch.nn.LSTM(4, 4), "weight_ih_l0, of shape"),
        ({"q_proj": {"weight": np.ones((4, 4))}}, r"part of another layer \(q_proj\)"),
        (
            {"d": {"kernel": np.ones((4, 4)), "scale": np.ones(4), "bias": np.ones(4)}},
            "d.scale, of shape",
        ),
        ({"d": {"kernel": np.ones(4), "bias": np.ones(4)}}, "is no matrix"),
        ([np.ones((4, 3)), np.ones(3), np.ones((3, 2))], "1 vectors beside 2 matrices"),
        ({"embedding": np.ones((10, 4))}, "embed"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_other_networks_are_named_by_their_leaf(source, told):
    with pytest.raises(ValueError, match=told) as caught:
        as_mlp(source)
    assert 'network="module:function"' in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "given", "told"),
    [
        (_dense(), {"image_shape": (4, 4, 1)}, "has 16 values but the first layer of"),
        (_dense(), {"image_shape": (4, 4)}, r"must be \(height, width, depth\)"),
        (_dense(), {"image_shape": (4, 4, 0)}, "whole numbers above 0"),
        ({"a": {"kernel": np.ones((0, 3))}}, {}, r"a\.kernel, of .* is empty"),
        (np.float32(3) * np.ones(()), {}, "its array, of shape"),
        (
            {**_dense((16, 5)), **_dense((16, 7), "Dense_1{}")},
            {},
            "fit in no order, kernels as they are or transposed",
        ),
        (
            {
                name: {"kernel": np.ones(shape)}
                for name, shape in (("a", (4, 5)), ("b", (4, 4)), ("c", (5, 4)))
            },
            {},
            "fit in more than one order",
        ),
        (
            {"a": {"kernel": np.ones((16, 5)), "bias": np.ones(4)}},
            {},
            r"the bias a\.bias has shape \(4,\) and its kernel \(16, 5\)",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(source, given, told):
    with pytest.raises(ValueError, match=told) as caught:
        as_mlp(source, **given)
    assert "\n" not in str(caught.value)


def our_function(params, images):
    return images.reshape(len(images), -1) @ params["w"]


linen_network = _Linen()
haiku_network = hk.transform(lambda x: hk.nets.MLP([3])(x.reshape(len(x), -1)))
mlp_network = MLP((5,), 2)
number = 3


def of_one(params):
    return params


class TestNamedFunctions:
    def test_a_function_is_itself(self):
        assert as_apply_fn(f"{__name__}:our_function") is our_function

    def test_a_linen_module_takes_its_parameters(self):
        variables = _Linen().init(KEY, FLAT)
        found = as_apply_fn(f"{__name__}:linen_network")(variables["params"], FLAT)
        _close(found, _Linen().apply(variables, FLAT))

    def test_haiku_needs_no_key(self):
        images = jnp.asarray(IMAGES)
        params = haiku_network.init(jax.random.PRNGKey(0), images)
        found = as_apply_fn(f"{__name__}:haiku_network")(params, images)
        _close(found, haiku_network.apply(params, None, images))

    def test_our_networks_give_their_apply_fn(self):
        params = mlp_network.init_params(KEY, SHAPE)
        found = as_apply_fn(f"{__name__}:mlp_network")(params, jnp.asarray(IMAGES))
        _close(found, mlp_network.apply_fn(params, jnp.asarray(IMAGES)))

    @pytest.mark.parametrize(
        ("spec", "told"),
        [
            ("nothing", "is no module:function"),
            ("a b:c", "is no module:function"),
            ("no_such_module:f", "cannot be had"),
            (f"{__name__}:missing", "cannot be had"),
            (f"{__name__}:number", "is a int: name a function"),
            (f"{__name__}:of_one", r"does not take \(params, images\)"),
        ],
    )
    def test_another_name_is_one_sentence(self, spec, told):
        with pytest.raises(ValueError, match=told) as caught:
            as_apply_fn(spec)
        assert "\n" not in str(caught.value)
