"""Experts: what is stored is what training gives; resumed, damaged, left out."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.models import ConvNet
from ntk_privacy.training import classification, trajectories

KEY = jax.random.key(0)
MODEL = ConvNet(2, 2, 1)
SHAPE = (4, 4, 1)
OPTIONS = {"batch_size": 4, "operations": ("flip",), "learning_rate": 0.1}


def _data():
    x = np.random.default_rng(0).normal(size=(7, *SHAPE))
    return jnp.asarray(x), jnp.arange(7, dtype=jnp.int32) % 2


def _record(folder, **changes):
    options = {"num_experts": 3, "num_epochs": 2, "at_once": 2, **OPTIONS, **changes}
    return trajectories.record(folder, *_data(), model=MODEL, key=KEY, **options)


def _load(folder, **options):
    return trajectories.load(folder, model=MODEL, image_shape=SHAPE, **options)


def _bytes(folder):
    files = (path for path in folder.iterdir() if path.is_file())
    return {path.name: path.read_bytes() for path in files}


def test_snapshots_are_those_of_plain_training(tmp_path):
    _record(tmp_path)
    experts = _load(tmp_path)
    assert experts.files == tuple(f"expert_000{i}.npy" for i in range(3))
    assert not experts.left_out
    for i in range(3):
        for epoch in range(3):
            plain = classification.train(
                *_data(),
                model=MODEL,
                keys=jax.random.fold_in(KEY, i)[None],
                num_epochs=epoch,
                chunk=2,
                momentum=0.0,
                weight_decay=0.0,
                **OPTIONS,
            )
            chex.assert_trees_all_close(
                jax.tree.map(lambda leaf, at=(i, epoch): leaf[at], experts.params),
                jax.tree.map(lambda leaf: leaf[0], plain.params),
                rtol=1e-12,
            )
    few = _load(tmp_path, num_epochs=1)
    chex.assert_trees_all_equal(
        few.params, jax.tree.map(lambda leaf: leaf[:, :2], experts.params)
    )
    together = _record(tmp_path / "vmap", parallel=True)
    chex.assert_trees_all_close(_load(together).params, experts.params, rtol=1e-9)


class _Killed(BaseException):
    """Nothing may catch it."""


def test_killed_after_any_epoch_it_ends_with_the_same_bytes(tmp_path):
    whole = _bytes(_record(tmp_path / "whole"))
    calls = []

    def die(step, state, metrics):
        calls.append((metrics["expert"], step))
        if len(calls) in (1, 3):
            raise _Killed

    for _ in range(2):
        with pytest.raises(_Killed):
            _record(tmp_path / "cut", callback=die)
    assert _bytes(_record(tmp_path / "cut", callback=die)) == whole
    # No epoch is done twice.
    assert calls == [(0, 1), (0, 2), (2, 1), (2, 2)]
    assert not list((tmp_path / "cut").glob("unfinished*"))
    calls.clear()
    _record(tmp_path / "cut", callback=die)
    assert not calls


def test_killed_among_others_an_expert_is_not_taken_for_another(tmp_path):
    whole = _bytes(_record(tmp_path))

    def die(step, state, metrics):
        raise _Killed

    for i in (0, 2):
        (tmp_path / f"expert_000{i}.npy").unlink()
    with pytest.raises(_Killed):
        _record(tmp_path, callback=die)
    (tmp_path / "expert_0002.npy").write_bytes(whole["expert_0002.npy"])
    (tmp_path / "expert_0001.npy").unlink()
    assert _bytes(_record(tmp_path)) == whole


def test_more_experts_join_those_there(tmp_path):
    _record(tmp_path / "few", num_experts=2)
    before = _bytes(tmp_path / "few")
    after = _bytes(_record(tmp_path / "few"))
    assert after.items() >= {k: v for k, v in before.items() if "npy" in k}.items()
    assert after == _bytes(_record(tmp_path / "all"))


def test_damaged_and_missing_files_are_named_and_the_others_used(tmp_path):
    whole = _bytes(_record(tmp_path))
    broken = bytearray(whole["expert_0001.npy"])
    broken[-3] ^= 1
    (tmp_path / "expert_0001.npy").write_bytes(bytes(broken))
    (tmp_path / "expert_0000.npy").unlink()
    told = "expert_0000.npy is missing; expert_0001.npy is damaged"
    with pytest.warns(UserWarning, match=told):
        experts = _load(tmp_path)
    assert experts.files == ("expert_0002.npy",)
    assert jax.tree.leaves(experts.params)[0].shape[0] == 1
    with pytest.raises(ValueError, match=f"1 sound experts of 3, not 2: {told}"):
        _load(tmp_path, at_least=2)
    # Asked for again, these two alone are trained again.
    assert _bytes(_record(tmp_path)) == whole


@pytest.mark.parametrize(
    "fault",
    [
        {"learning_rate": -1.0},
        {"momentum": -0.5},
        {"momentum": 1.5},
        {"batch_size": 0},
        {"operations": ("turn",)},
    ],
)
def test_a_recipe_that_cannot_be_trained_is_not_kept(tmp_path, fault):
    with pytest.raises(ValueError, match=next(iter(fault))):
        _record(tmp_path / "new", **fault)
    assert not (tmp_path / "new").exists()


def test_experts_that_diverge_are_not_kept(tmp_path):
    with pytest.raises(ValueError, match=r"not finite after 2 epochs with learning_ra"):
        _record(tmp_path, learning_rate=10.0, weight_decay=1e308)
    assert trajectories.recorded(tmp_path) == ()
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_what_does_not_belong_together_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        _load(tmp_path)
    _record(tmp_path, num_experts=1, num_epochs=1)
    with pytest.raises(ValueError, match=r"learning_rate: 0\.1 there, 0\.2 asked"):
        _record(tmp_path, num_epochs=1, learning_rate=0.2)
    with pytest.raises(ValueError, match="experts of another network"):
        trajectories.load(tmp_path, model=ConvNet(2, 3, 1), image_shape=SHAPE)
    with pytest.raises(ValueError, match="experts of 1 epochs, not 2"):
        _load(tmp_path, num_epochs=2)
    name = tmp_path / "manifest.json"
    manifest = json.loads(name.read_text())
    assert trajectories.recorded(tmp_path) == ("expert_0000.npy",)
    assert trajectories.recorded(tmp_path / "nowhere") == ()
    damaged = ({"experts": []}, {"recipe": {}}, {"layout": []}, {"layout": [[1, 2]]})
    for text in (
        *("{", "[]", json.dumps({"recipe": manifest["recipe"]})),
        *(json.dumps(manifest | change) for change in damaged),
    ):
        name.write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
            _load(tmp_path)
