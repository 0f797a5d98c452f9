"""Parameters from real libraries and real files: the same numbers, or one sentence."""

import io
import json
import pathlib
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax import linen as nn
from flax import nnx
from flax.training import train_state

from ntk_privacy import _files, checkpoint
from ntk_privacy.models import MLP, published, saved, weight_files

eqx = pytest.importorskip("equinox", reason="weights as Equinox holds them")
hk = pytest.importorskip("haiku", reason="weights as Haiku holds them")
torch = pytest.importorskip("torch", reason="weights as PyTorch holds them")
torch_files = pytest.importorskip("safetensors.torch")

KEY = jax.random.key(0)
KERNEL = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
BIAS = np.arange(3, dtype=np.float32)
PLAIN = {"Dense_0": {"kernel": KERNEL, "bias": BIAS}}


def _leaves(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _same(found, kernel="Dense_0.kernel", bias="Dense_0.bias", *, turned=False):
    leaves = _leaves(found)
    assert all(isinstance(leaf, np.ndarray) for leaf in leaves.values())
    np.testing.assert_array_equal(
        leaves[kernel].T if turned else leaves[kernel], KERNEL
    )
    np.testing.assert_array_equal(leaves[bias], BIAS)


def _torch():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor(KERNEL.T.copy()))
        net[1].bias.copy_(torch.tensor(BIAS))
    return net


class TestMemory:
    def test_linen_variables_lose_their_other_collections(self):
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))

        variables = Net().init(KEY, jnp.zeros((1, 4), jnp.float32))
        assert set(variables) == {"params", "batch_stats"}
        found = published.opened(variables)
        assert set(found.params) == {"Dense_0", "BatchNorm_0"}
        assert found.notes == ("params: batch_stats beside params is left out",)
        bare = published.opened(variables["params"])
        assert bare.notes == ()
        np.testing.assert_array_equal(
            bare.params["Dense_0"]["kernel"], variables["params"]["Dense_0"]["kernel"]
        )

    def test_a_training_state_gives_its_parameters(self):
        import optax

        state = train_state.TrainState.create(
            apply_fn=lambda p, x: x, params=PLAIN, tx=optax.adam(1e-3)
        )
        _same(published.read(state))

    @pytest.mark.parametrize("as_state", [False, True])
    def test_nnx_gives_parameters_and_nothing_else(self, as_state):
        class Net(nnx.Module):
            def __init__(self, rngs):
                self.Dense_0 = nnx.Linear(4, 3, rngs=rngs)
                self.norm = nnx.BatchNorm(3, rngs=rngs)
                self.drop = nnx.Dropout(0.1, rngs=rngs)

        net = Net(nnx.Rngs(0))
        net.Dense_0.kernel = nnx.Param(jnp.asarray(KERNEL))
        net.Dense_0.bias = nnx.Param(jnp.asarray(BIAS))
        found = published.opened(nnx.state(net) if as_state else net)
        assert set(found.params) == {"Dense_0", "norm"}
        assert set(found.params["norm"]) == {"scale", "bias"}
        _same(found.params)
        assert "BatchStat" in found.notes[0]
        assert "left out" in found.notes[0]

    def test_equinox_modules_stay_modules_without_their_functions(self):
        net = eqx.nn.MLP(4, 2, 5, 1, key=KEY)
        found = published.opened(net)
        wanted = eqx.partition(net, eqx.is_array)[0]
        assert jax.tree.structure(found.params) == jax.tree.structure(wanted)
        x = jnp.ones(4)
        again = eqx.combine(found.params, eqx.partition(net, eqx.is_array)[1])
        np.testing.assert_array_equal(again(x), net(x))
        assert found.notes == ()

    def test_haiku_keeps_its_names(self):
        net = hk.transform(lambda x: hk.nets.MLP([5, 2])(x))
        params = net.init(jax.random.PRNGKey(0), jnp.zeros((1, 4)))
        found = published.read(params)
        assert set(found) == {"mlp/~/linear_0", "mlp/~/linear_1"}
        np.testing.assert_array_equal(
            found["mlp/~/linear_0"]["w"], params["mlp/~/linear_0"]["w"]
        )

    @pytest.mark.parametrize(
        "form", ["module", "state_dict", "checkpoint", "beside", "arrays"]
    )
    def test_pytorch_in_all_its_forms(self, form):
        net = _torch()
        state = net.state_dict()
        source = {
            "module": net,
            "state_dict": state,
            "checkpoint": {"state_dict": state, "epoch": 3},
            "beside": {"model": state, "epoch": 3, "optimizer": {}},
            "arrays": {name: np.asarray(leaf) for name, leaf in state.items()},
        }[form]
        found = published.opened(source)
        _same(found.params, "1.weight", "1.bias", turned=True)
        assert any("epoch" in note for note in found.notes) == (
            form in ("checkpoint", "beside")
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_pytorch_numbers_are_kept_as_they_are(self, dtype):
        leaf = torch.tensor(KERNEL, requires_grad=True).to(dtype)
        found = published.read({"w": leaf})["w"]
        assert str(found.dtype) == str(dtype).removeprefix("torch.")
        np.testing.assert_array_equal(
            found.astype(np.float64), leaf.detach().double().numpy()
        )

    def test_counters_are_left_out_with_a_note(self):
        net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
        found = published.opened(net)
        assert "1.num_batches_tracked" not in found.params
        assert "1.running_mean" in found.params
        assert "num_batches_tracked is no weights and left out" in found.notes[0]

    def test_a_layer_that_is_called_model_is_a_layer(self):
        found = published.read({"model": PLAIN, "head": {"w": KERNEL}})
        assert set(found) == {"model", "head"}

    def test_lists_and_tuples_stay(self):
        found = published.read([(KERNEL, BIAS), (KERNEL.T, KERNEL[0])])
        assert isinstance(found[0], tuple)
        np.testing.assert_array_equal(found[1][0], KERNEL.T)

    def test_the_order_of_a_dict_stays(self):
        assert list(published.read({"second": KERNEL, "first": BIAS})) == [
            "second",
            "first",
        ]

    @pytest.mark.parametrize(
        ("source", "told"),
        [
            ({"w": np.ones((3, 2), np.int8)}, r"params\[w\] holds integers \(int8\)"),
            ({"w": np.ones((3, 2), bool)}, "holds integers"),
            ({"w": torch.ones(3, 2, dtype=torch.int64)}, r"integers \(int64\)"),
            ({"w": np.ones((3, 2), complex)}, "dtype complex128: give real"),
            ({"w": np.array([{}, 1], object)}, "dtype object: give real"),
            ({"w": jnp.ones((3, 2), jnp.float8_e4m3fn)}, "16 bits at least"),
            (
                {"a": {"w": KERNEL * np.nan}},
                r"\[a.w\] has 12 values that are NaN",
            ),
            ({"w": torch.tensor([1.0, float("inf")])}, "has 1 values that are NaN or"),
            ({"w": torch.ones(3, 2).to_sparse()}, "cannot be had as an array"),
            ({}, "params holds no arrays"),
            ({"step": 3}, "params holds no arrays"),
            (None, "params holds no arrays"),
            (3.0, "params holds no arrays"),
            (jax.nn.relu, "params holds no arrays"),
        ],
    )
    def test_what_is_no_weights_is_one_sentence(self, source, told):
        with pytest.raises(ValueError, match=told) as caught:
            published.read(source)
        assert "\n" not in str(caught.value)


def _orbax(folder, tree, form):
    if form == "standard":
        with ocp.StandardCheckpointer() as writer:
            writer.save(folder, tree)
            writer.wait_until_finished()
    elif form == "pytree":
        with ocp.PyTreeCheckpointer() as writer:
            writer.save(folder, tree)
    else:
        with ocp.CheckpointManager(folder) as manager:
            for step in (2, 11):
                now = jax.tree.map(lambda v, s=step: v if s == 11 else 0 * v, tree)
                item = ocp.args.StandardSave(now)
                if form == "items":
                    item = ocp.args.Composite(
                        state=item, told=ocp.args.JsonSave({"a": 1})
                    )
                manager.save(step, args=item)
            manager.wait_until_finished()


class TestFiles:
    @pytest.mark.parametrize("kind", [str, pathlib.Path])
    def test_npz(self, tmp_path, kind):
        path = tmp_path / "w.npz"
        np.savez(path, **{"Dense_0/kernel": KERNEL, "Dense_0/bias": BIAS})
        _same(published.read(kind(path)))

    def test_npz_of_bfloat16_which_numpy_has_no_word_for(self, tmp_path):
        coarse = KERNEL.astype(jnp.bfloat16)
        np.savez(tmp_path / "w.npz", w=coarse)
        found = published.read(tmp_path / "w.npz")["w"]
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, coarse)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_safetensors_of_pytorch(self, tmp_path, dtype):
        path = tmp_path / "w.safetensors"
        state = {k: v.to(dtype) for k, v in _torch().state_dict().items()}
        torch_files.save_file(state, path)
        found = published.read(path)
        for name, leaf in state.items():
            assert str(found[name].dtype) == str(dtype).removeprefix("torch.")
            np.testing.assert_array_equal(
                found[name].astype(np.float32), leaf.float().numpy()
            )

    def test_safetensors_in_parts(self, tmp_path):
        for name, leaf in (("1.weight", KERNEL.T.copy()), ("1.bias", BIAS)):
            safetensors.numpy.save_file({name: leaf}, tmp_path / f"{name}.safetensors")
        (tmp_path / "config.json").write_text("{}")
        _same(published.read(tmp_path), "1.weight", "1.bias", turned=True)
        safetensors.numpy.save_file({"1.bias": BIAS}, tmp_path / "z.safetensors")
        with pytest.raises(ValueError, match=r"holds 1\.bias in more than one file"):
            published.read(tmp_path)

    @pytest.mark.parametrize("form", ["standard", "pytree", "steps", "items"])
    def test_orbax(self, tmp_path, form):
        tree = {"params": jax.tree.map(jnp.asarray, PLAIN), "step": np.array(7)}
        _orbax(tmp_path / "c", tree, form)
        found = published.opened(tmp_path / "c")
        _same(found.params)
        assert "step beside params is left out" in found.notes[0]

    def test_our_own_checkpoints(self, tmp_path):
        checkpoint.save(tmp_path, 3, jax.tree.map(jnp.asarray, PLAIN))
        _same(published.read(tmp_path))

    def test_our_own_models_tell_their_surroundings(self, tmp_path):
        model = MLP((5,), 3, parametrization="ntk")
        params = model.init_params(KEY, (2, 2, 1))
        saved.save(
            tmp_path, model, params, image_shape=(2, 2, 1), mean=[0.5], deviation=[0.25]
        )
        found = published.opened(tmp_path)
        assert found.network == model
        assert found.image_shape == (2, 2, 1)
        np.testing.assert_array_equal(found.bounds, [[-2.0], [2.0]])
        np.testing.assert_array_equal(
            found.params["Dense_1"]["kernel"], params["Dense_1"]["kernel"]
        )

    @pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "pkl", "pickle", "ckpt"])
    def test_a_pickle_is_refused_and_its_export_told(self, tmp_path, suffix):
        path = tmp_path / f"w.{suffix}"
        torch.save(_torch().state_dict(), path)
        with pytest.raises(ValueError, match="is a pickle") as caught:
            published.read(path)
        sentence, *lines = str(caught.value).splitlines()
        assert sentence.count(". ") == 0
        assert len(lines) == 3
        # The lines do what they say.
        exec("\n".join(["import torch", *lines]), {})
        _same(
            published.read(tmp_path / "w.safetensors"),
            "1.weight",
            "1.bias",
            turned=True,
        )

    def test_no_pickle_is_opened_under_another_name(self, tmp_path):
        bad = tmp_path / "opened"

        class Trap:
            def __reduce__(self):
                return (bad.touch, ())

        (tmp_path / "a.npz").write_bytes(pickle.dumps(Trap()))
        np.savez(tmp_path / "b.npz", w=np.array([Trap()], object))
        (tmp_path / "c.safetensors").write_bytes(pickle.dumps(Trap()))
        bad.unlink(missing_ok=True)
        for name in ("a.npz", "b.npz", "c.safetensors"):
            with pytest.raises(ValueError, match=r"damaged|is object"):
                published.read(tmp_path / name)
        assert not bad.exists()

    @pytest.mark.parametrize("keep", [0, 5, 60, 0.5, 0.9])
    @pytest.mark.parametrize("kind", ["npz", "safetensors"])
    def test_a_truncated_file_is_one_sentence(self, tmp_path, kind, keep):
        path = tmp_path / f"w.{kind}"
        if kind == "npz":
            np.savez(path, w=KERNEL)
        else:
            safetensors.numpy.save_file({"w": KERNEL}, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
        with pytest.raises(ValueError, match="damaged") as caught:
            published.read(path)
        assert "\n" not in str(caught.value)

    # The event loop that it leaves behind is orbax's own.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_a_damaged_orbax_folder_is_one_sentence(self, tmp_path):
        _orbax(tmp_path / "c", jax.tree.map(jnp.asarray, PLAIN), "standard")
        for path in (tmp_path / "c").rglob("*"):
            if path.is_file() and path.parent.name == "d":
                path.write_bytes(path.read_bytes()[:-7])
        with pytest.raises(ValueError, match="cannot be restored as an orbax") as told:
            published.read(tmp_path / "c")
        assert "\n" not in str(told.value)

    def test_what_is_not_there_or_not_known(self, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "other" / "folder").mkdir(parents=True)
        (tmp_path / "w.h5").touch()
        for name, told in {
            "none.npz": "is missing",
            "none.pt": "is missing",
            "empty": "is an empty folder",
            "other": "holds no checkpoint",
            "w.h5": "ends in '.h5', which is not read",
        }.items():
            with pytest.raises(ValueError, match=told) as caught:
                published.read(tmp_path / name)
            assert "give an .npz or .safetensors file" in str(caught.value)
        for name in ("", "a\0b"):
            with pytest.raises(ValueError, match="is no path: give that of"):
                published.read(name)

    def test_absurd_sizes_take_no_memory(self, tmp_path, monkeypatch):
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10**9, 1000)}"
        header = header.replace(b"10**9", b"1000000000").ljust(117) + b"\n"
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.zeros(1, np.float32))
        with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
            magic = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
            archive.writestr("w.npy", magic + header + bytes(40))
        with pytest.raises(ValueError, match=r"announces 4e\+03 GB of weights"):
            published.read(tmp_path / "w.npz")
        told = {"w": {"dtype": "F32", "shape": [10**6, 10**6]}}
        told["w"]["data_offsets"] = [0, 4 * 10**12]
        head = json.dumps(told).encode()
        path = tmp_path / "w.safetensors"
        path.write_bytes(len(head).to_bytes(8, "little") + head)
        with pytest.raises(ValueError, match="damaged or no safetensors file"):
            published.read(path)
        # A file that is as large as it says, but takes no room: sparse.
        with path.open("r+b") as file:
            file.truncate(8 + len(head) + 4 * 10**12)
        with pytest.raises(ValueError, match=r"announces 4e\+03 GB of weights"):
            published.read(path)
        _orbax(tmp_path / "c", jax.tree.map(jnp.asarray, PLAIN), "standard")
        monkeypatch.setattr(_files, "memory", lambda: 100)
        with pytest.raises(ValueError, match="more than the 5e-08 GB"):
            published.read(tmp_path / "c")

    def test_peft_tells_its_scale_beside(self, tmp_path):
        assert weight_files.scale_beside(tmp_path) is None
        config = tmp_path / "adapter_config.json"
        config.write_text(json.dumps({"r": 4, "lora_alpha": 16}))
        assert weight_files.scale_beside(tmp_path) == 4.0
        config.write_text(json.dumps({"r": 4, "lora_alpha": 16, "use_rslora": True}))
        assert weight_files.scale_beside(tmp_path / "w.safetensors") == 8.0
        for text in (
            json.dumps({"r": 4, "lora_alpha": 1, "rank_pattern": {"fc1": 2}}),
            "{}",
            "[",
            '{"r": 0, "lora_alpha": 1}',
            '{"r": "a"}',
            "3",
        ):
            config.write_text(text)
            with pytest.raises(ValueError, match="does not tell r and lora_alpha"):
                weight_files.scale_beside(tmp_path)
