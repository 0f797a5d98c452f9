"""Saved networks: the same logits, no pickle, and faults in one sentence."""

import io
import json
import os
import pickle
import zipfile

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ntk_privacy import checkpoint
from ntk_privacy.models import MLP, ConvNet, ResNet18, saved

SHAPE = (8, 8, 2)
X = np.random.default_rng(0).uniform(size=(5, *SHAPE)).astype(np.float32)
NETWORKS = [
    ConvNet(3, 4, depth=2, norm="group", precision=jax.lax.Precision.HIGHEST),
    MLP((6, 5), 3, use_bias=(True, False, True)),
]


def _save(folder, model, **changes):
    params = model.init_params(jax.random.key(0), SHAPE)
    given = {"image_shape": SHAPE, "mean": (0.4, 0.5), "deviation": (0.2, 0.3)}
    saved.save(folder, model, params, **{**given, **changes})
    return params


@pytest.mark.parametrize("model", NETWORKS, ids=["ConvNet", "MLP"])
def test_what_comes_back_is_what_went(tmp_path, model):
    params = _save(tmp_path, model, class_names="abc", about={"width": 4})
    found = saved.load(tmp_path)
    assert found.model == model
    chex.assert_trees_all_equal(found.params, params)
    assert found.class_names == ("a", "b", "c")
    assert (found.image_shape, found.about) == (SHAPE, {"width": 4})
    normalised = (X - np.float32([0.4, 0.5])) / np.float32([0.2, 0.3])
    expected = model.apply_fn(params, jnp.asarray(normalised))
    chex.assert_trees_all_close(found.logits_fn(jnp.asarray(X)), expected, atol=1e-5)
    # Of the dtype of the images.
    assert found.logits_fn(jnp.asarray(X, jnp.float64)).dtype == jnp.float64


def test_running_statistics_are_kept(tmp_path):
    net = ResNet18(3, width=2, blocks=(1, 1))
    stats = jax.tree.map(lambda v: v + 0.5, net.init_stats())
    params = _save(tmp_path, net, stats=stats, mean=None, deviation=None)
    found = saved.load(tmp_path)
    assert found.model == net
    chex.assert_trees_all_equal(found.stats, stats)
    expected = net.eval_fn(params, stats, jnp.asarray(X))
    chex.assert_trees_all_close(found.logits_fn(jnp.asarray(X)), expected, atol=1e-5)
    with pytest.raises(ValueError, match="params has nothing at stats/0/mean, not"):
        _save(tmp_path, net)


def test_defaults_and_a_second_save(tmp_path):
    _save(tmp_path, NETWORKS[1], mean=None, deviation=None)
    found = saved.load(tmp_path)
    assert found.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(found.mean, [0, 0])
    np.testing.assert_array_equal(found.deviation, [1, 1])
    _save(tmp_path, NETWORKS[0])
    assert saved.load(tmp_path).model == NETWORKS[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "params.npz"]
    assert saved.is_saved(tmp_path)
    assert not saved.is_saved(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"mean": (0.1,)}, r"mean has shape \(1,\): give \(2,\)"),
        ({"deviation": (0.1, 0.0)}, "least_deviation=0.0 must be above 0"),
        ({"class_names": "ab"}, r"class_names has shape \(2,\): give \(3,\)"),
        ({"image_shape": (4, 8, 2)}, "params has .* at params/Dense_0/kernel, not"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, text):
    with pytest.raises(ValueError, match=text):
        _save(tmp_path, NETWORKS[1], **change)
    assert not list(tmp_path.iterdir())


def test_other_networks_and_parameters_are_refused(tmp_path):
    with pytest.raises(ValueError, match="architecture='dict' is unknown"):
        saved.save(tmp_path, {}, {}, image_shape=SHAPE)
    with pytest.raises(ValueError, match="num_outputs=1 must be at least 2"):
        _save(tmp_path, MLP((4,), 1))
    params = NETWORKS[1].init_params(jax.random.key(0), SHAPE)
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    with pytest.raises(ValueError, match="NaN or infinite"):
        saved.save(tmp_path, NETWORKS[1], params, image_shape=SHAPE)


def test_nan_in_a_file_is_one_sentence_with_its_name(tmp_path):
    _save(tmp_path, NETWORKS[1])
    path = tmp_path / "params.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    next(iter(arrays.values())).flat[0] = np.nan
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"params\.npz: params.* has 1 values"):
        saved.load(tmp_path)


def test_damaged_files_are_named(tmp_path):
    _save(tmp_path, NETWORKS[0])
    text = (tmp_path / "model.json").read_bytes()
    for name in ("model.json", "params.npz"):
        path = tmp_path / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=f"{name} is damaged .* save the model"):
            saved.load(tmp_path)
        path.write_bytes(whole)
    np.save(tmp_path / "other.npy", np.zeros(3))
    path.write_bytes((tmp_path / "other.npy").read_bytes())
    with pytest.raises(ValueError, match=r"params\.npz is damaged .* save"):
        saved.load(tmp_path)
    path.write_bytes(whole)
    path = tmp_path / "model.json"
    for content in (b"\xff\xfe\xff", b'{"format": 1, "architecture": "MLP"}', b"[]"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.json is damaged .* save"):
            saved.load(tmp_path)
    path.write_bytes(text)
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"fields": None}))
    with pytest.raises(ValueError, match=r"model\.json is damaged"):
        saved.load(tmp_path)
    path.write_text(json.dumps(told | {"format": 2}))
    with pytest.raises(ValueError, match="format=2 is unknown"):
        saved.load(tmp_path)
    path.write_text(json.dumps(told | {"fields": told["fields"] | {"width": 8}}))
    with pytest.raises(ValueError, match="of another model"):
        saved.load(tmp_path)
    (tmp_path / "params.npz").unlink()
    path.write_text(json.dumps(told))
    with pytest.raises(FileNotFoundError):
        saved.load(tmp_path)


SMALL = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz")


def _bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("dtype", [*SMALL, "float32", "float64"])
def test_every_dtype_comes_back_to_the_bit(tmp_path, dtype):
    net = NETWORKS[1]
    params = net.init_params(jax.random.key(0), SHAPE, jnp.float32)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    saved.save(tmp_path, net, params, image_shape=SHAPE)
    found = saved.load(tmp_path)
    assert _bits(found.params) == _bits(params)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found.params)} == {dtype}
    checkpoint.save(tmp_path / "checkpoint", 1, params)
    restored = checkpoint.restore(tmp_path / "checkpoint", 1, params)
    assert _bits(restored) == _bits(params)
    # Read in the dtype of the images, as the parameters themselves would be.
    cast = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    expected = net.apply_fn(cast, jnp.asarray(X))
    chex.assert_trees_all_close(found.logits_fn(jnp.asarray(X)), expected, atol=1e-5)


def test_parameters_and_statistics_may_have_dtypes_of_their_own(tmp_path):
    net = ResNet18(3, width=2, blocks=(1,))
    params = net.init_params(jax.random.key(0), SHAPE, jnp.bfloat16)
    stats = jax.tree.map(lambda v: v + 0.1, net.init_stats(jnp.float32))
    saved.save(tmp_path, net, params, stats=stats, image_shape=SHAPE)
    found = saved.load(tmp_path)
    assert _bits((found.params, found.stats)) == _bits((params, stats))
    chex.assert_trees_all_equal_dtypes((found.params, found.stats), (params, stats))


def test_models_that_earlier_versions_saved_are_read(tmp_path):
    """These noted one dtype for all, and left bfloat16 to NumPy as raw bytes."""
    for dtype in ("float32", "bfloat16"):
        params = NETWORKS[1].init_params(jax.random.key(0), SHAPE, jnp.dtype(dtype))
        saved.save(tmp_path, NETWORKS[1], params, image_shape=SHAPE)
        path = tmp_path / "model.json"
        told = json.loads(path.read_text())
        assert set(told.pop("dtypes").values()) == {dtype}
        path.write_text(json.dumps(told))
        flat = saved._flat(params, None)
        arrays = {name: np.asarray(leaf) for name, leaf in flat.items()}
        np.savez(tmp_path / "params.npz", **arrays)
        assert _bits(saved.load(tmp_path).params) == _bits(params)


def test_a_dtype_that_is_not_the_file_s_is_told(tmp_path):
    _save(tmp_path, NETWORKS[1])
    path = tmp_path / "model.json"
    text = path.read_text()
    for wrong in ("bfloat16", "float64"):
        path.write_text(text.replace('": "float32"', f'": "{wrong}"'))
        with pytest.raises(ValueError, match=f"an array is float32, not {wrong}"):
            saved.load(tmp_path)


def _npz(folder, **members):
    with zipfile.ZipFile(folder / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name.replace('__', '/')}.npy", content)


def _npy(shape, dtype="<f4", body=b""):
    out = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue() + body


def test_what_headers_announce_is_looked_at_before_it_is_read(tmp_path):
    """Objects are pickles; a header may announce a terabyte, or fewer than there is."""
    net = MLP((2,), 2, use_bias=False)
    params = net.init_params(jax.random.key(0), (1, 1, 3))
    saved.save(tmp_path, net, params, image_shape=(1, 1, 3))
    first, second = "params__Dense_0__kernel", "params__Dense_1__kernel"
    sound = {first: _npy((3, 2), body=bytes(24))}
    sound[second] = _npy((2, 2), body=bytes(16))
    _npz(tmp_path, **sound)
    assert not np.any(saved.load(tmp_path).params["Dense_0"]["kernel"])
    for content, told in (
        (_npy((3, 2), "|O", pickle.dumps([1])), "is object of shape"),
        (_npy((10**9, 10**4)), r"has \(1000000000, 10000\) at"),
        (_npy((3, 2), body=bytes(23)), "24 bytes but holds only 23"),
        (_npy((3, 2), body=bytes(10**8)), "24 bytes but holds more"),
        (b"\x93NUMPY\x09\x00" + bytes(40), "version"),
        (b"text", "damaged or of another kind"),
    ):
        _npz(tmp_path, **(sound | {first: content}))
        with pytest.raises(ValueError, match=told) as caught:
            saved.load(tmp_path)
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith("save the model again.")


@pytest.mark.parametrize("name", ["model.json", "params.npz"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, name):
    _save(tmp_path, NETWORKS[1])
    path = tmp_path / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{name} is a named pipe, not a regular file"):
        saved.load(tmp_path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=f"{name} is a device, not a regular file"):
        saved.load(tmp_path)


@pytest.mark.parametrize("noted", [True, False], ids=["dtypes noted", "as of old"])
@pytest.mark.parametrize("kind", ["U3", "S2", "M8[s]", "c8", "i4", "?"])
def test_arrays_of_no_parameters_are_told(tmp_path, kind, noted):
    _save(tmp_path, NETWORKS[1])
    path, name = tmp_path / "model.json", "params/Dense_0/kernel"
    arrays = dict(np.load(tmp_path / "params.npz"))
    arrays[name] = np.zeros(arrays[name].shape, kind)
    np.savez(tmp_path / "params.npz", **arrays)
    told = json.loads(path.read_text())
    told["dtypes"] = {name: str(arrays[name].dtype)} if noted else {}
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"params\.npz is damaged .* save") as caught:
        saved.load(tmp_path)
    assert f"{name} is an array of" in str(caught.value) or noted


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"mean": [0.1]}, r"mean has shape \(1,\): give \(2,\)"),
        ({"mean": [0.1, float("nan")]}, "mean has entries that are NaN"),
        ({"deviation": [0.2, 0.0]}, "least_deviation=0.0 must be above 0"),
        ({"class_names": ["a"]}, "class_names has shape"),
        ({"image_shape": [8, 16]}, "must be .height, width, channels."),
        ({"about": "x"}, "dictionary"),
    ],
)
def test_what_stands_beside_the_network_must_fit_it(tmp_path, change, text):
    """It would be read with other numbers than those of its training."""
    _save(tmp_path, NETWORKS[1])
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=rf"model\.json is damaged.*{text}"):
        saved.load(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"model\.json is damaged"):
        saved.load(tmp_path)


def _with_kernel(kernel):
    params = NETWORKS[1].init_params(jax.random.key(0), SHAPE)
    return params | {"Dense_0": params["Dense_0"] | {"kernel": kernel}}


@pytest.mark.parametrize(
    ("params", "change", "text"),
    [
        (_with_kernel(np.zeros((128, 6), "U1")), {}, "Dense_0/kernel is an array of <"),
        (_with_kernel(jax.random.key(0)), {}, "Dense_0/kernel is an array of key"),
        (
            _with_kernel(np.zeros((128, 6), int)),
            {},
            "Dense_0/kernel is an array of int",
        ),
        (_with_kernel(np.zeros((128, 6)) + 0j), {}, "kernel is an array of complex"),
        (_with_kernel([[0.0]]), {}, "Dense_0/kernel/0/0 is a float: give"),
        (None, {}, "params has nothing at params/Dense_0/bias"),
        (..., {"image_shape": 128}, "image_shape=128 must be .height, width"),
        (..., {"image_shape": (8, 8)}, "must be .height, width, channels., whole"),
        (..., {"mean": (np.nan, 0)}, "mean has entries that are NaN or infinite"),
        (..., {"about": {"loss": jnp.ones(2)}}, "about cannot be written as JSON"),
    ],
)
def test_what_cannot_be_read_back_is_not_saved(
    tmp_path, params, change, text, monkeypatch
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    params = _with_kernel(np.zeros((128, 6))) if params is ... else params
    with pytest.raises(ValueError, match=text):
        saved.save(tmp_path, NETWORKS[1], params, **({"image_shape": SHAPE} | change))
    assert not list(tmp_path.iterdir())
