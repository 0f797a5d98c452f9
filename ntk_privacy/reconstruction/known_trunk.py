"""A head under attack: the trunk below it, what the head was fed, what is pictured."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_privacy import resume
from ntk_privacy.data.dataset import Dataset
from ntk_privacy.models.convnet import ConvNet
from ntk_privacy.reconstruction import heads, named_network, result, through_trunk
from ntk_privacy.reconstruction.through_trunk import EmbedFn
from ntk_privacy.resume import Stage, straight

__all__ = ["NUM_TESTED", "embedded", "named", "pictured"]

NUM_TESTED = 1000
"""Test images that are embedded."""

_BLOCK = 50  # images that are embedded at once


@functools.lru_cache(maxsize=4)
def _random(image_shape: tuple[int, int, int]) -> EmbedFn:
    net = ConvNet(width=48)
    params = net.init_params(jax.random.key(0), image_shape)
    return functools.partial(net.embed_fn, params)


@functools.lru_cache(maxsize=4)
def named(name: str | None, image_shape: tuple[int, int, int]) -> EmbedFn:
    """Returns a trunk: images (n, h, w, c), less their mean, to embeddings (n, length).

    Args:
      name: "module:function", which takes nothing and returns an embed_fn; None is a
        ConvNet of 48 channels and random weights, always the same ones.
      image_shape: (height, width, depth) in pixels.

    Raises:
      ValueError: there is no such module or function, or it returns no function of
        such images.

    Example:
      >>> from ntk_privacy.reconstruction import known_trunk
      >>> embed_fn = known_trunk.named(None, (8, 8, 1))
      >>> import jax.numpy as jnp
      >>> embed_fn(jnp.zeros((2, 8, 8, 1))).shape
      (2, 48)
    """
    if name is None:
        return _random(image_shape)
    wants = "a function of no arguments that returns an embed_fn of images"
    make = named_network.loaded(name, flag="embed_fn", wants=wants)
    try:
        embed_fn = make()
    except Exception as error:
        raise ValueError(
            f"embed_fn={name!r} cannot be had ({error}): name {wants}."
        ) from error
    if not callable(embed_fn):
        raise ValueError(  # noqa: TRY004
            f"embed_fn={name!r} returned {type(embed_fn).__name__}: return a function "
            "of images (n, height, width, depth)."
        )
    try:
        made = jax.eval_shape(
            embed_fn, jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
        )
    except Exception as error:
        raise ValueError(
            f"embed_fn={name!r} does not take images of shape (2, {image_shape}) "
            f"under jax.jit ({error}): return a jax function of such images."
        ) from error
    shape = getattr(made, "shape", ())
    if len(shape) != 2 or shape[0] != 2:
        raise ValueError(
            f"embed_fn={name!r} maps 2 images of {image_shape} to shape {shape}: "
            "return one row per image, (n, length)."
        )
    return embed_fn


def embedded(dataset: Dataset, embed_fn: EmbedFn) -> Dataset:
    """Returns what a head is trained on: embeddings (n, length, 1, 1) for images.

    Args:
      dataset: as `data.load` gives it; of its test images the first 1,000 are taken.
      embed_fn: the trunk.
    """
    apply = jax.jit(embed_fn)

    def rows(images):
        blocks = [
            np.asarray(apply(jnp.asarray(images[i : i + _BLOCK])), np.float32)
            for i in range(0, len(images), _BLOCK)
        ]
        flat = np.concatenate(blocks)
        return flat.reshape(*flat.shape, 1, 1)

    test = slice(None, NUM_TESTED)
    return dataset._replace(
        x_train=rows(dataset.x_train),
        x_test=rows(dataset.x_test[test]),
        y_test=dataset.y_test[test],
        class_test=dataset.class_test[test],
        mean=np.zeros(1, np.float32),
    )


def pictured(
    found: result.Reconstruction,
    embed_fn: EmbedFn,
    dataset: Dataset,
    *,
    key: jax.Array,
    num_steps: int = 1000,
    stage: Stage = straight,
) -> tuple[result.Reconstruction, dict[str, Any]]:
    """Turns embeddings that were read from a head into images, and tells of both.

    The certificates are those of the embeddings. No image has one.

    Args:
      found: embeddings, (m, length, 1, 1), as a method read them.
      embed_fn: the trunk.
      dataset: the images: their shape and bounds are the attacker's; the rest is for
        the figures alone.
      key: typed key of the search.
      num_steps: of the search.
      stage: keeps the images, as "through_trunk".

    Returns:
      The images, and figures by name: of the embeddings their verdict, certificates,
      errors and squared distances from the nearest true one; of the images misfits.
    """
    _, *sizes = dataset.x_train.shape
    shape = sizes[0], sizes[1], sizes[2]
    rows = found.images.reshape(len(found.images), -1)
    told: dict[str, Any] = {
        "evidence": "head",
        "embeddings": {
            "length": int(np.prod(found.images.shape[1:])),
            "verdict": found.verdict._asdict()
            | {"reason": heads.of_embeddings(found.verdict.reason)},
            "num_certified": int(found.certified.sum()),
            "certified": found.certified,
            "errors": found.errors,
            "squared_distances": _distances(rows, dataset, embed_fn),
        },
    }
    if not len(rows):
        return found._replace(images=np.zeros((0, *shape), np.float32)), told

    def make():
        start = through_trunk.invert(
            embed_fn, rows, key=key, image_shape=shape, bounds=dataset.bounds,
            num_steps=num_steps,
        )  # fmt: skip
        made = through_trunk.solve(embed_fn, rows, start, bounds=dataset.bounds)
        return {name: np.asarray(part) for name, part in made._asdict().items()}

    made = resume.once(stage, "through_trunk", make)
    told["misfits"], told["is_only"] = made["misfits"], made["is_only"]
    read = found.verdict
    exact = read.word == "exact"
    reason = "" if exact else f"{heads.of_embeddings(read.reason).rstrip('.')}; "
    reason += (
        f"{int(found.certified.sum())} of {len(rows)} embeddings are certified; the "
        f"images have them to within {made['misfits'].max():.1g} of their spread, and "
        f"{int(made['is_only'].sum())} of them are the only ones nearby that do: "
        "others may do as well, and none is certified."
    )
    m = len(rows)
    pictures = found._replace(
        images=made["images"].astype(np.float32),
        verdict=found.verdict._replace(
            word="approximate" if exact else read.word, reason=reason, num_certified=0
        ),
        sources=("closed units, through the trunk",) * m,
        message=reason,
        kept={**found.kept, "embeddings": rows},
        **result.uncertain(m),
    )
    return pictures, told


def _distances(rows, dataset: Dataset, embed_fn: EmbedFn) -> np.ndarray:
    """Squared distance of each true embedding from the nearest that was read."""
    truth = embedded(dataset, embed_fn).x_train.reshape(len(dataset.x_train), -1)
    if not len(rows):
        return np.full(len(truth), np.inf)
    differences = truth[:, None].astype(np.float64) - rows[None]
    return np.sum(differences**2, axis=-1).min(1)
