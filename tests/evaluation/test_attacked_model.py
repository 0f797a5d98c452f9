"""The contract of every way to a model under attack."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import data
from ntk_privacy.data import ArgumentError
from ntk_privacy.evaluation import attacked_model
from ntk_privacy.evaluation.attacked_model import MODELS
from ntk_privacy.evasion import ThreatModel
from ntk_privacy.models import ConvNet, saved

SMALL = {"width": 4, "num_epochs": 1, "train_batch_size": 20, "train_attack_steps": 1}


@pytest.fixture(scope="module")
def images():
    return data.load_set("digits").subset(num_train=40, num_test=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, images):
    place, model = tmp_path_factory.mktemp("saved") / "model", ConvNet(10, 4)
    params = model.init_params(jax.random.key(5), images.image_shape, jnp.float32)
    normal = images.normal._asdict()
    saved.save(place, model, params, image_shape=images.image_shape, **normal)
    return str(place)


@pytest.mark.parametrize("name", MODELS)
def test_every_way_gives_logits_of_images_fixed_by_its_key(images, folder, name):
    row = MODELS[name]
    assert (row.name, row.about[-1]) == (name, ".")
    names = {entry.name for entry in dataclasses.fields(row.config)}
    given = {k: v for k, v in {**SMALL, "model": folder}.items() if k in names}
    config = row.configured(**given)

    def logits(seed):
        found = row.run(
            images,
            config,
            key=jax.random.key(seed),
            threat_model=ThreatModel(eps=0.1),
        )
        return np.asarray(found.logits_fn(jnp.asarray(images.x_test)))

    first = logits(0)
    assert first.shape == (10, 10)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, logits(0))
    assert np.array_equal(first, logits(1)) == (name == "none")


def test_a_model_that_is_not_named_is_told_in_words_of_arguments(images):
    row = MODELS["none"]
    with pytest.raises(ArgumentError, match="model=None: give a model") as caught:
        row.check(None, row.configured())
    assert "--" not in str(caught.value)
    narrow = attacked_model.Model(lambda x: jnp.zeros((len(x), 3)), {})
    with pytest.raises(ArgumentError, match="has 3 classes"):
        attacked_model.check(narrow, images, 4)
