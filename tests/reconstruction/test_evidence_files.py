"""Networks that others trained, read from their files: images, or one sentence."""

import doctest
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
import safetensors.torch
from flax import linen as nn
from sklearn.datasets import load_digits

from ntk_privacy import _versions
from ntk_privacy.models import MLP, ConvNet, published, saved
from ntk_privacy.reconstruction import adapter as adapter_attack
from ntk_privacy.reconstruction import (
    auto,
    closed_units,
    evidence_files,
    foreign_mlp,
    named_network,
    precision,
)
from ntk_privacy.training import adapter_victim

torch = pytest.importorskip("torch", reason="weights as PyTorch holds them")

KEY = jax.random.key(0)
N = 8
BOUNDS = (-0.5, 1.0)


def _digits():
    digits = load_digits()
    rows = [int(np.flatnonzero(digits.target == c)[0]) for c in range(N)]
    return (digits.images[rows] / 16 - 0.3).astype(np.float32), np.arange(N)


def _loss(net, x, y):
    return torch.nn.functional.cross_entropy(net(x), y)


def _train_torch(images, labels, width, steps=100):
    """Plain gradient descent on a plain MLP; images (n, c, h, w)."""
    torch.manual_seed(0)
    pixels = int(np.prod(images.shape[1:]))
    net = torch.nn.Sequential(
        torch.nn.Flatten(),
        *(torch.nn.Linear(pixels, width), torch.nn.ReLU()),
        *(torch.nn.Linear(width, width), torch.nn.ReLU()),
        torch.nn.Linear(width, 10),
    )
    before = {name: leaf.clone() for name, leaf in net.state_dict().items()}
    x, y = torch.tensor(images), torch.tensor(labels)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        _loss(net, x, y).backward()
        optimizer.step()
    return before, {k: v.clone() for k, v in net.state_dict().items()}


@pytest.fixture(scope="module")
def trained():
    """Images, and PyTorch's weights before and after they were trained on."""
    images, labels = _digits()
    return images, *_train_torch(images[:, None], labels, 192)


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch")
    for name, state in zip(("before", "after"), trained[1:], strict=True):
        safetensors.torch.save_file(state, folder / f"{name}.safetensors")
    return folder


def _errors(found, images):
    """Of certified images: distance from the nearest true one, over its norm."""
    truth = images.reshape(len(images), -1)
    kept = np.asarray(found.images)[found.certified].reshape(-1, truth.shape[1])
    distances = np.linalg.norm(kept[:, None] - truth[None], axis=2)
    assert len(set(distances.argmin(1))) == len(kept)
    return distances.min(1) / np.linalg.norm(truth[distances.argmin(1)], axis=1)


def _all_found(found, images, tolerance=1e-4):
    assert int(found.certified.sum()) == len(images)
    errors = _errors(found, images)
    assert errors.max() < tolerance
    assert np.all(errors <= found.errors[found.certified])


class TestTrainedElsewhere:
    def test_images_of_a_pytorch_network_are_read_from_two_files(self, trained, files):
        after, before = (files / f"{n}.safetensors" for n in ("after", "before"))
        known, notes = evidence_files.from_file(
            str(after), before=before, bounds=BOUNDS
        )
        assert known.network == MLP((192, 192), 10)
        assert known.image_shape == (8, 8, 1)
        assert any("64 -> 192 -> 192 -> 10" in note for note in notes)
        found = auto.reconstruct(known, key=KEY)
        assert found.verdict.word == "exact"
        _all_found(found, trained[0])

    def test_and_from_memory_the_same(self, trained, files):
        both = [
            evidence_files.from_file(after, before=before).evidence
            for after, before in (
                (files / "after.safetensors", files / "before.safetensors"),
                (trained[2], trained[1]),
            )
        ]
        jax.tree.map(np.testing.assert_array_equal, both[0].params_t, both[1].params_t)
        jax.tree.map(np.testing.assert_array_equal, both[0].params_0, both[1].params_0)

    def test_images_of_three_channels_come_back_in_our_order(self):
        rng = np.random.default_rng(0)
        images = rng.uniform(-1, 1, size=(4, 5, 5, 3)).astype(np.float32)
        before, after = _train_torch(
            images.transpose(0, 3, 1, 2).copy(), np.arange(4), 128
        )
        known, _ = evidence_files.from_file(after, before=before)
        assert known.image_shape == (5, 5, 3)
        _all_found(closed_units.from_evidence(known, key=KEY), images)

    @pytest.mark.parametrize("form", ["dict", "list", "file"])
    def test_one_gradient_of_pytorch(self, trained, form, tmp_path):
        images, before, _ = trained
        net = torch.nn.Sequential(
            torch.nn.Flatten(),
            *(torch.nn.Linear(64, 192), torch.nn.ReLU()),
            *(torch.nn.Linear(192, 192), torch.nn.ReLU()),
            torch.nn.Linear(192, 10),
        )
        net.load_state_dict(before)
        x, y = torch.tensor(images[:, None]), torch.arange(N)
        gradient = torch.autograd.grad(_loss(net, x, y), list(net.parameters()))
        if form != "list":
            gradient = dict(zip(before, gradient, strict=True))
        if form == "file":
            safetensors.torch.save_file(gradient, tmp_path / "g.safetensors")
            gradient = tmp_path / "g.safetensors"
        known, notes = evidence_files.from_file(
            before=before, gradient=gradient, bounds=BOUNDS
        )
        assert known.is_gradient
        assert any("in the order of before" in n for n in notes) == (form == "list")
        jax.tree.map(
            lambda leaf: np.testing.assert_array_equal(np.isfinite(leaf), True),
            known.step,
        )
        scale = known.step["Dense_2"]["bias"][0] / float(
            gradient[-1][0] if form == "list" else published.read(gradient)["5.bias"][0]
        )
        step = published.read(list(gradient.values()) if form == "dict" else gradient)
        first = step[0] if isinstance(step, list | tuple) else step["1.weight"]
        np.testing.assert_allclose(
            known.step["Dense_0"]["kernel"], scale * first.T, rtol=1e-6, atol=1e-9
        )
        if form == "file":
            _all_found(closed_units.from_evidence(known, key=KEY), images)

    @pytest.mark.parametrize("store", ["orbax", "npz", "memory"])
    def test_images_of_a_flax_network(self, tmp_path, store):
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = x.reshape(len(x), -1)
                for _ in range(2):
                    x = nn.relu(nn.Dense(128)(x))
                return nn.Dense(10)(x)

        images, labels = _digits()
        x, net = jnp.asarray(images)[:, :, :, None], Net()
        before = after = net.init(KEY, x)
        if store == "memory":

            def loss(variables):
                logits = net.apply(variables, x)
                return optax.softmax_cross_entropy_with_integer_labels(
                    logits, jnp.asarray(labels)
                ).mean()

            @jax.jit
            def step(variables):
                return jax.tree.map(
                    lambda p, g: p - 0.1 * g, variables, jax.grad(loss)(variables)
                )

            for _ in range(100):
                after = step(after)
        else:
            after = jax.tree.map(lambda leaf: leaf + 1e-3, before)
        given = []
        for name, variables in (("after", after), ("before", before)):
            path = tmp_path / name
            if store == "orbax":
                with ocp.StandardCheckpointer() as writer:
                    writer.save(path, variables)
                    writer.wait_until_finished()
            elif store == "npz":
                flat = jax.tree_util.tree_leaves_with_path(variables)
                path = path.with_suffix(".npz")
                named = {
                    jax.tree_util.keystr(way, simple=True, separator="/"): leaf
                    for way, leaf in flat
                }
                np.savez(path, **named)
            given.append(variables if store == "memory" else path)
        known, _ = evidence_files.from_file(given[0], before=given[1], bounds=BOUNDS)
        jax.tree.map(
            np.testing.assert_array_equal, known.params_t, dict(after["params"])
        )
        if store == "memory":
            _all_found(auto.reconstruct(known, key=KEY), images)


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("upcast", [False, True])
    def test_16_bits_get_bounds_that_hold(self, trained, dtype, upcast):
        images, *states = trained
        written = torch.float32 if upcast else dtype
        coarse = [{k: v.to(dtype).to(written) for k, v in s.items()} for s in states]
        known, notes = evidence_files.from_file(coarse[1], before=coarse[0])
        name = str(dtype).removeprefix("torch.")
        assert sum(f"numbers of {name}" in note for note in notes) == 2
        assert known.params_t["Dense_0"]["kernel"].dtype == jnp.float32
        found = closed_units.from_evidence(known, key=KEY)
        errors = _errors(found, images)
        assert np.all(errors <= found.errors[found.certified])
        floor = 2 * float(jnp.finfo(dtype and name).eps)
        assert found.errors.min() >= floor
        if dtype == torch.float16:
            assert found.certified.sum() == N

    def test_what_was_once_coarse_is_seen_in_any_dtype(self):
        values = np.random.default_rng(0).standard_normal((9, 9))
        for coarse in ("bfloat16", "float16", "float32"):
            for fine in ("float32", "float64"):
                stored = values.astype(jnp.dtype(coarse)).astype(fine)
                assert precision.kind(stored) == jnp.dtype(coarse)
        assert precision.kind(values) == np.float64
        assert precision.kind(values.astype(np.float32)) == np.float32

    @pytest.mark.parametrize("values", [np.zeros((9, 9)), np.ones(40), np.eye(9)])
    def test_few_numbers_tell_nothing(self, values):
        assert precision.kind(values.astype(np.float32)) == np.float32

    def test_forms_may_differ_where_names_agree(self, trained):
        _, before, after = trained
        nested = {}
        for name, leaf in after.items():
            layer, last = name.split(".")
            nested.setdefault(int(layer), {})[last] = leaf
        known, _ = evidence_files.from_file(nested, before=before)
        plain, _ = evidence_files.from_file(after, before=before)
        jax.tree.map(np.testing.assert_array_equal, known.params_t, plain.params_t)

    def test_formats_are_made_one(self, trained):
        _, before, after = trained
        wide = {name: leaf.double() for name, leaf in after.items()}
        known, notes = evidence_files.from_file(wide, before=before)
        kinds = {
            leaf.dtype for leaf in jax.tree.leaves((known.params_0, known.params_t))
        }
        assert kinds == {np.dtype("float64")}
        assert any("read as float64" in note for note in notes)

    def test_float64_is_kept_where_jax_has_no_room_for_it(self, trained):
        wide = [{k: v.double() for k, v in s.items()} for s in trained[1:]]
        with _versions.enable_x64(False):
            known, _ = evidence_files.from_file(wide[1], before=wide[0])
            assert known.params_t["Dense_0"]["kernel"].dtype == np.float64


@pytest.fixture(scope="module")
def victim():
    """A network whose adapter was trained."""
    images, labels = _digits()
    y = np.eye(N, dtype=np.float32)[labels] - 1 / N
    return adapter_victim.train(
        images[:4, :, :, None], y[:4, :1] * 2, width=256, rank=8, key=KEY
    )


class TestAdapters:
    def test_peft_folders_are_read_with_their_scale(self, victim, tmp_path):
        made = victim.adapter
        stem = "base_model.model.Dense_0"
        for name, a, b in (
            ("adapter_model", made.a_t, made.b_t),
            ("start/adapter_model", made.a_0, np.zeros_like(made.b_t)),
        ):
            path = tmp_path / f"{name}.safetensors"
            path.parent.mkdir(exist_ok=True)
            leaves = {
                f"{stem}.lora_A.weight": np.ascontiguousarray(np.asarray(a).T),
                f"{stem}.lora_B.weight": np.ascontiguousarray(np.asarray(b).T),
                "base_model.model.Dense_1.lora_A.weight": np.ones((8, 64), np.float32),
                "base_model.model.Dense_1.lora_B.weight": np.ones((64, 8), np.float32),
            }
            if made.bias_t is not None:
                leaves[f"{stem}.bias"] = np.asarray(made.bias_t)
            safetensors.numpy.save_file(leaves, path)
        config = {"r": 8, "lora_alpha": 8 * made.scale}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        known, notes = evidence_files.from_file(
            before=victim.params_0,
            adapter=tmp_path,
            adapter_before=tmp_path / "start",
            bounds=BOUNDS,
        )
        assert known.is_adapter
        for name in ("a_t", "b_t", "a_0", "bias_t"):
            wanted = getattr(made, name)
            if wanted is not None:
                np.testing.assert_array_equal(getattr(known.adapter, name), wanted)
        assert known.adapter.b_0 is None
        assert known.adapter.scale == made.scale
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            known.params_t,
            victim.params_t,
        )
        assert any("Dense_1 are not read" in note for note in notes)
        found = adapter_attack.from_evidence(known, key=KEY)
        assert len(found.images) == 4

    def test_our_own_record_and_nnx_names(self, victim):
        known, _ = evidence_files.from_file(
            before=victim.params_0, adapter=victim.adapter
        )
        assert known.adapter is victim.adapter
        tree = {"Dense_0": {"lora_a": victim.adapter.a_t, "lora_b": victim.adapter.b_t}}
        known, notes = evidence_files.from_file(before=victim.params_0, adapter=tree)
        np.testing.assert_array_equal(known.adapter.a_t, victim.adapter.a_t)
        assert known.adapter.a_0 is None
        assert any("scale 1, for none is told" in note for note in notes)

    def test_factors_of_another_layer_are_one_sentence(self, victim):
        tree = {"x": {"lora_A": np.ones((3, 2)), "lora_B": np.ones((2, 3))}}
        with pytest.raises(
            ValueError, match=r"no lora_A and lora_B of the first layer"
        ):
            evidence_files.from_file(before=victim.params_0, adapter=tree)


conv = ConvNet(3, 8, depth=1)


def one_number(params, images):
    return jnp.sum(images)


class TestNetworks:
    @pytest.mark.parametrize("given", [conv.apply_fn, f"{__name__}:conv"])
    def test_another_network_comes_as_a_function(self, given):
        params = conv.init_params(KEY, (8, 8, 1))
        later = jax.tree.map(lambda leaf: leaf + 1e-3, params)
        known, notes = evidence_files.from_file(
            later, before=params, network=given, image_shape=(8, 8, 1)
        )
        assert known.num_outputs == 3
        jax.tree.map(np.testing.assert_array_equal, known.params_t, later)
        assert notes == ()

    def test_a_function_needs_a_shape_and_its_own_parameters(self):
        params = conv.init_params(KEY, (8, 8, 1))
        for given, told in (
            ({}, "image_shape is not told"),
            ({"image_shape": (8, 8, 3)}, "does not take these parameters"),
            ({"image_shape": (8, 8, 1), "network": one_number}, "one row of outputs"),
        ):
            with pytest.raises(ValueError, match=told):
                evidence_files.from_file(params, **{"network": conv.apply_fn, **given})

    def test_an_mlp_that_is_given_keeps_its_parametrisation(self):
        net = MLP((5,), 2, parametrization="ntk")
        params = net.init_params(KEY, (4, 4, 1))
        known, _ = evidence_files.from_file(params, network=net)
        assert known.network == net
        with pytest.raises(ValueError, match=r"network has widths=\(6,\)"):
            evidence_files.from_file(params, network=MLP((6,), 2))

    def test_our_saved_models_tell_what_surrounds_them(self, tmp_path):
        net = MLP((5,), 2, parametrization="ntk")
        for name, key in zip(("b", "a"), jax.random.split(KEY), strict=True):
            saved.save(
                *(tmp_path / name, net, net.init_params(key, (2, 8, 1))),
                image_shape=(2, 8, 1),
                mean=[0.25],
                deviation=[0.5],
            )
        known, notes = evidence_files.from_file(tmp_path / "a", before=tmp_path / "b")
        assert known.network == net
        assert known.image_shape == (2, 8, 1)
        np.testing.assert_array_equal(known.bounds, [[-0.5], [1.5]])
        assert any("tells its network" in note for note in notes)


def _mlp(seed, sizes=(16, 6, 2)):
    rng, tree = np.random.default_rng(seed), {}
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        tree[f"Dense_{i}"] = {
            "kernel": rng.standard_normal((a, b)).astype(np.float32),
            "bias": rng.standard_normal(b).astype(np.float32),
        }
    return tree


class TestClumsyInputs:
    def test_an_unrelated_network_leaves_nothing(self, trained):
        torch.manual_seed(77)
        _, before, after = trained
        other = {
            name: torch.randn_like(leaf) * before[name].std()
            for name, leaf in before.items()
        }
        known, _ = evidence_files.from_file(after, before=other)
        found = closed_units.from_evidence(known, key=KEY)
        assert found.verdict.word == "assumptions do not hold"
        assert len(found.images) == 0
        assert found.certified.sum() == 0

    def test_transposed_kernels_are_turned_in_all_files(self, trained):
        _, before, after = trained
        turned = [
            {name: leaf.T if leaf.ndim == 2 else leaf for name, leaf in part.items()}
            for part in (before, after)
        ]
        known, notes = evidence_files.from_file(turned[1], before=turned[0])
        plain, _ = evidence_files.from_file(after, before=before)
        for name in ("params_0", "params_t"):
            jax.tree.map(
                np.testing.assert_array_equal,
                getattr(known, name),
                getattr(plain, name),
            )
        assert any("kernels look transposed" in note for note in notes)

    def test_missing_biases_certify_nothing(self, trained):
        bare = [
            {k: v for k, v in s.items() if not k.endswith("bias")} for s in trained[1:]
        ]
        known, notes = evidence_files.from_file(bare[1], before=bare[0])
        assert known.network.use_bias == (False,) * 3
        assert any("without a bias" in note for note in notes)
        once = closed_units.Config(max_rounds=1)
        found = closed_units.from_evidence(known, once, key=KEY)
        assert found.certified.sum() == 0

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ({}, "Nothing given: give after"),
            ({"before": _mlp(0)}, "before alone was not trained on anything"),
            ({"after": _mlp(0), "gradient": _mlp(1)}, "after and gradient given: give"),
            ({"gradient": _mlp(1)}, "gradient given: give after; or before"),
            ({"after": _mlp(0), "before": _mlp(0)}, "before and after are equal"),
            (
                {"after": _mlp(0), "before": _mlp(1, (16, 7, 2))},
                r"not of one network: Dense_0\.kernel has shape \(16, 6\) in after",
            ),
            (
                {"before": _mlp(0), "gradient": _mlp(1, (16, 6, 3))},
                r"before and gradient are not of one network: Dense_1\.kernel",
            ),
            (
                {"before": _mlp(0), "gradient": [np.ones(3)]},
                "gradient is a list of 1 arrays",
            ),
            (
                {"before": _mlp(0), "gradient": jax.tree.map(np.zeros_like, _mlp(0))},
                "The gradient is zero",
            ),
            ({"after": _mlp(0), "image_shape": (5, 5, 1)}, "image_shape has 25 values"),
            ({"after": _mlp(0), "num_image": 3}, "did you mean num_images"),
            ({"after": jax.tree.map(lambda v: v * np.nan, _mlp(0))}, "NaN or infinite"),
            ({"after": {"w": np.ones((16, 3), np.int32)}}, "holds integers"),
            ({"after": conv.init_params(KEY, (8, 8, 1))}, "no plain MLP: .*kernel"),
        ],
    )
    def test_what_does_not_go_together_is_one_sentence(self, given, told):
        with pytest.raises(ValueError, match=told) as caught:
            evidence_files.from_file(**given)
        assert "\n" not in str(caught.value)

    def test_files_are_named(self, tmp_path):
        (tmp_path / "empty").mkdir()
        torch.save({}, tmp_path / "w.pt")
        np.savez(tmp_path / "w.npz", **{"a/kernel": np.ones((4, 3))})
        whole = (tmp_path / "w.npz").read_bytes()
        (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
        for name, told in {
            "empty": "empty is an empty folder",
            "w.pt": r"w\.pt is a pickle",
            "half.npz": r"half\.npz is damaged",
        }.items():
            with pytest.raises(ValueError, match=told):
                evidence_files.from_file(tmp_path / name)


@pytest.mark.parametrize(
    "module", [published, foreign_mlp, named_network, evidence_files]
)
def test_the_examples_print_what_they_say(module):
    with _versions.enable_x64(False):
        result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
