"""SRe2L and CDA as methods: published recipes, losses, crops, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import data
from ntk_privacy.distillation import METHODS, cda, squeezed, sre2l
from ntk_privacy.training import adversarial, squeeze

SRE2L = METHODS["sre2l"]


@pytest.fixture(scope="module")
def images():
    return data.load_set("digits").subset(num_train=100, num_test=20)


@pytest.mark.parametrize(
    ("kin", "side", "stem", "squeezing", "rest"),
    [
        (
            *("cifar10", 32, "cifar", (200, 0.1, 128, 5e-4, 0)),
            (1000, 0.25, 0.01, 4, False, 400, 128, 30),
        ),
        (
            *("tiny_imagenet", 64, "cifar", (50, 0.2, 256, 1e-4, 5)),
            (4000, 0.1, 1.0, 4, True, 300, 100, 20),
        ),
        *(
            (
                *("imagenet", side, stem, (50, 0.025, 32, 1e-4, 0)),
                (2000, 0.25, 0.01, jitter, False, 300, 100, 20),
            )
            for side, stem, jitter in ((64, "cifar", 4), (224, "imagenet", 32))
        ),
    ],
)
def test_the_paper_preset_is_the_published_recipe(
    monkeypatch, kin, side, stem, squeezing, rest
):
    config = SRE2L.configured("paper", data.Foretold(kin, side))
    assert rest == (
        *(config.num_steps, config.learning_rate, config.bn_weight),
        *(config.jitter, config.signed_jitter, config.num_epochs),
        *(config.batch_size, config.temperature),
    )
    assert config.width == 64
    classes = [0, 1, 2] * 3
    of_size = data.ImageSet.from_arrays(np.zeros((9, side, side)), classes)
    assert squeezed.network(of_size, config).stem == stem
    told = {}

    def train(x, labels, **options):
        told.update(options)
        raise InterruptedError

    monkeypatch.setattr(squeeze, "init", lambda x, **options: None)
    monkeypatch.setattr(squeeze, "train", train)
    small = np.random.default_rng(0).random((9, 4, 4))
    grey = data.ImageSet.from_arrays(small, classes)
    with pytest.raises(InterruptedError):
        SRE2L.run(grey, config, key=jax.random.key(0))
    names = ("num_epochs", "learning_rate", "batch_size", "weight_decay")
    assert tuple(told[name] for name in (*names, "warmup_epochs")) == squeezing
    assert told["flip"] is False


def test_cda_has_its_own_rates_for_tiny_imagenet_and_given_values_win():
    tiny = data.Foretold("tiny_imagenet", 64)
    cda_paper = METHODS["cda"].configured("paper", tiny)
    assert (cda_paper.learning_rate, cda_paper.bn_weight) == (0.4, 0.05)
    assert METHODS["cda"].configured("paper", tiny, bn_weight=2.0).bn_weight == 2.0
    small = SRE2L.configured("cpu", tiny)
    assert (small.num_steps, small.squeeze_warmup) == (120, 0.0)
    assert small.signed_jitter


def test_the_weight_is_that_of_the_regulariser_and_the_preset():
    def weight(preset, **given):
        return SRE2L.configured(preset, **given).penalty_weight

    assert [
        weight("paper", regularizer=kind) for kind in ("curvature", "gradient")
    ] == [
        100.0,
        1.0,
    ]
    assert weight("cpu", regularizer="curvature") == 1.0
    assert weight("cpu", regularizer="curvature", penalty_weight=None) == 1.0
    assert weight("cpu", regularizer="curvature", penalty_weight=7.0) == 7.0
    assert weight("cpu") is None
    assert weight("paper", regularizer="adversarial") is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"penalty_weight": 3.0}, "penalty_weight=3.0 is for a penalty"),
        (
            {"penalty_weight": 0.0, "regularizer": "curvature"},
            "penalty_weight=0.0 must be above 0",
        ),
        ({"penalty_share": 2.0}, r"penalty_share=2.0 must lie in \[0, 1\]"),
        ({"squeeze_warmup": 2.0}, r"squeeze_warmup=2.0 must lie in \[0, 1\]"),
        ({"blocks": ()}, "blocks=0 must be at least 1"),
        ({"blocks": (1, 0)}, "blocks=0 must be at least 1"),
        ({"jitter": -1}, "jitter=-1 must be at least 0"),
    ],
)
def test_what_a_config_refuses(given, told):
    with pytest.raises(ValueError, match=told):
        squeezed.Config(**given)


def test_each_regulariser_is_the_loss_it_names_and_one_object(images):
    def loss(**given):
        return squeezed.batch_loss(images, squeezed.Config(**given))

    assert loss() is squeeze.cross_entropy
    attacked = loss(regularizer="adversarial", eps=0.5)
    assert isinstance(attacked, adversarial.PGD)
    assert attacked.eps == 0.5
    np.testing.assert_allclose(attacked.deviation, images.normal.deviation)
    flat = loss(regularizer="curvature", penalty_share=0.5, penalty_step=2.0)
    assert flat.share == 0.5
    assert flat.transform.keywords == {
        "mode": "curvature",
        "weight": 100.0,
        "step": 2.0,
    }
    again = loss(regularizer="curvature", penalty_share=0.5, penalty_step=2.0)
    # Compiled programs are looked up by it.
    assert flat == again
    assert hash(flat) == hash(again)


def test_crops_of_small_images_are_none_or_large(monkeypatch):
    part = jnp.asarray(1.0)
    seen = {
        (name, side): METHODS[name].run.args[0](side)
        for name in ("sre2l", "cda")
        for side in (32, 64)
    }
    assert seen["sre2l", 32] is None
    assert seen["sre2l", 64] is sre2l.constant_crop()
    assert seen["cda", 32] is cda.curriculum(low=0.4)
    assert float(seen["cda", 64](part)) == pytest.approx(0.08)


def test_a_loss_that_is_lost_is_told_by_its_loop(images, monkeypatch):
    def train(x, labels, *, callback, **options):
        callback(7, None, {"loss": np.full(2, np.nan)})
        raise AssertionError("it went on")

    monkeypatch.setattr(squeeze, "train", train)
    config = SRE2L.configured(width=1, blocks=(1,))
    with pytest.raises(ValueError, match="loss of squeeze is not finite after 7 steps"):
        SRE2L.run(images, config, key=jax.random.key(0))
