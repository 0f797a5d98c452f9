"""A head on a known trunk, from the command line."""

import json

import jax
import numpy as np

from experiments import _flags, reconstruct
from ntk_privacy import data
from ntk_privacy.reconstruction import known_trunk, result, verdict


def raises():
    def embed(images):
        raise KeyError(images.shape)

    return embed


def halves():
    """A trunk of the user's own: 8 x 8 digits to 128 numbers, none lost."""

    def embed(images):
        flat = images.reshape(len(images), -1)
        return jax.numpy.concatenate([jax.nn.relu(flat), jax.nn.relu(-flat)], axis=1)

    return embed


number = 3


def _run(capsys, folder, *flags):
    given = [
        "--evidence=head", "--dataset=digits", "--num_train=6", "--width=256",
        "--depth=1", "--noprogress", f"--workdir={folder}", *flags,
    ]  # fmt: skip
    with jax.numpy_dtype_promotion("standard"):
        code = _flags.call(reconstruct.main, reconstruct.PROGRAM.parse, given)
    return code, " ".join("".join(capsys.readouterr()).split())


def test_embeddings_are_certified_and_images_are_not(tmp_path, capsys):
    code, told = _run(capsys, tmp_path, f"--embed_fn={__name__}:halves")
    assert code == 0, told
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["evidence"] == "head"
    assert results["embeddings"]["length"] == 128
    assert results["embeddings"]["num_certified"] == 6
    assert max(results["embeddings"]["squared_distances"]) < 1e-6
    assert "embeddings are within" in results["embeddings"]["verdict"]["reason"]
    assert "image" not in results["embeddings"]["verdict"]["reason"]
    assert results["num_certified"] == 0
    assert results["verdict"]["word"] == "approximate"
    # Nothing is lost in this trunk.
    assert all(results["is_only"])
    assert max(results["squared_distances"]) < 1e-4
    assert (tmp_path / "gallery.png").exists()


def test_a_trunk_that_is_none_is_one_sentence(tmp_path, capsys):
    for flags, sentence in (
        ([f"--embed_fn={__name__}:missing"], "cannot be had"),
        ([f"--embed_fn={__name__}:number"], "cannot be had"),
        ([f"--embed_fn={__name__}:raises"], "does not take images of shape"),
        (["--embed_fn=nothing"], "is no module:function"),
        (["--method=kkt"], "use one of auto, closed_units"),
    ):
        code, told = _run(capsys, tmp_path, *flags)
        assert code != 0
        assert sentence in told
    assert not (tmp_path / "results.json").exists()


def test_the_default_trunk_is_always_the_same():
    known_trunk._random.cache_clear()
    x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1), jax.numpy.float32)
    first = known_trunk.named(None, (8, 8, 1))(x)
    known_trunk._random.cache_clear()
    second = known_trunk.named(None, (8, 8, 1))(x)
    np.testing.assert_array_equal(first, second)


def test_what_was_not_read_stays_so_whatever_is_pictured():
    digits = data.load("digits", num_train=4, key=jax.random.key(0))
    seen = known_trunk.embedded(digits, halves())
    read = result.Reconstruction(
        images=np.asarray(seen.x_train), duals=np.zeros((1, 4, 1)), losses=np.zeros(0),
        verdict=verdict.Verdict("nothing found", "No image closes a unit."),
        sources=("closed units",) * 4, message="", **result.uncertain(4),
    )  # fmt: skip
    with jax.numpy_dtype_promotion("standard"):
        found, told = known_trunk.pictured(
            read, halves(), digits, key=jax.random.key(0), num_steps=20
        )
    assert found.verdict.word == "nothing found"
    assert found.verdict.reason.startswith("No embedding closes a unit; ")
    assert told["embeddings"]["verdict"]["reason"] == "No embedding closes a unit."
