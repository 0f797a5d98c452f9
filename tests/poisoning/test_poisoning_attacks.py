"""What the attacks lower, and which images they take."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from ntk_privacy.data import augmentation
from ntk_privacy.models import ConvNet
from ntk_privacy.poisoning import direct, distribution_matching, gradient_matching
from ntk_privacy.poisoning.distribution_matching import MeanFeature, Target
from ntk_privacy.poisoning.gradient_matching import Alignment

KEY = jax.random.key(0)
MODEL = ConvNet(3, 4, 1)
SHAPE = (6, 6, 3)
OPERATIONS = ("flip",)


def _bytes(seed, n, dtype=np.float64):
    whole = np.random.default_rng(seed).integers(0, 256, (n, *SHAPE))
    return jnp.asarray(whole.astype(dtype) / dtype(255))


def _target(dtype=jnp.float64):
    mean, deviation = (
        jnp.array([0.5, 0.4, 0.3], dtype),
        jnp.array([0.2, 0.2, 0.1], dtype),
    )
    return Target(_bytes(1, 1)[0].astype(dtype), mean, deviation)


def _networks(count=2):
    keys = jax.random.split(jax.random.key(5), count)
    return [MODEL.init_params(k, SHAPE, jnp.float64) for k in keys]


def test_dm_poisoning_is_equation_5_with_one_augmentation_for_all():
    images, target = _bytes(2, 5), _target()
    objective = MeanFeature(MODEL, OPERATIONS)
    found = jax.jit(objective)(images, KEY, target)
    key_network, key_augment = jax.random.split(KEY)
    params = MODEL.init_params(key_network, SHAPE, jnp.float64)

    @jax.jit
    def feature(images):
        images = (images - target.mean.reshape(1, 1, 1, 3)) / target.deviation.reshape(
            1, 1, 1, 3
        )
        augmented = augmentation.augment(
            key_augment, images, operations=OPERATIONS, siamese=True
        )
        return MODEL.embed_fn(params, augmented)

    gap = feature(target.image[None])[0] - feature(images).mean(0)
    chex.assert_trees_all_close(found, jnp.sum(gap**2), rtol=1e-10)
    copies = direct.poison(target.image, num_poisons=5)
    assert float(jax.jit(objective)(copies, KEY, target)) < 1e-20


def test_gradient_matching_is_one_less_the_cosine_over_all_parameters():
    images, target = _bytes(2, 5), _target()
    networks = _networks()
    ensemble = gradient_matching.prepare(
        networks, target, model=MODEL, adversarial_class=1
    )
    found = jax.jit(Alignment(MODEL, ()))(images, KEY, ensemble)

    @jax.jit
    def flat(params, images):
        def loss(params):
            images_ = (images - target.mean.reshape(1, 1, 1, 3)) / (
                target.deviation.reshape(1, 1, 1, 3)
            )
            logits = MODEL.apply_fn(params, images_)
            ones = jnp.ones(len(images), jnp.int32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, ones).mean()

        return jax.flatten_util.ravel_pytree(jax.grad(loss)(params))[0]

    values = []
    for params in networks:
        a, b = flat(params, target.image[None]), flat(params, images)
        values.append(1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    chex.assert_trees_all_close(found, jnp.asarray(np.mean(values)), rtol=1e-9)
    copies = direct.poison(target.image, num_poisons=3)
    assert abs(float(jax.jit(Alignment(MODEL, ()))(copies, KEY, ensemble))) < 1e-12


@dataclasses.dataclass(frozen=True)
class _Faint:
    """The network whose logits, and so gradients, are scaled."""

    scale: float
    num_outputs: int = 3

    def apply_fn(self, params, x):
        return MODEL.apply_fn(params, x) * jnp.asarray(self.scale, x.dtype)


@pytest.mark.parametrize("scale", [1e-25, 1e-30])
def test_the_cosine_of_gradients_is_right_at_any_size(scale, monkeypatch):
    """Their squares leave float32: 0 over 0, and a target that was refused."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    images, target = _bytes(2, 3, np.float32), _target(jnp.float32)
    networks = [jax.tree.map(lambda a: a.astype(jnp.float32), _networks(1)[0])]
    found = []
    for model in (_Faint(1e-6), _Faint(scale)):
        data = gradient_matching.prepare(
            networks, target, model=model, adversarial_class=1
        )
        objective = functools.partial(Alignment(model, ()), key=KEY, data=data)
        found.append(jax.jit(jax.value_and_grad(objective))(images))
    chex.assert_trees_all_close(*found, rtol=1e-3, atol=1e-6)


def test_networks_and_images_that_do_not_fit_are_one_sentence(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    wide = ConvNet(3, 5, 1).init_params(KEY, SHAPE, jnp.float64)
    prepare = functools.partial(gradient_matching.prepare, target=TARGET, **PREPARE)
    with pytest.raises(ValueError, match=r"networks\[1\] .* do not fit the network"):
        prepare([*_networks(1), wide])
    with pytest.raises(ValueError, match="one network: give a list"):
        prepare(_networks(1)[0])
    ensemble = prepare(_networks(1))
    for images in (np.zeros((2, 9, 9, 3)), np.zeros((2, 6, 6, 1))):
        with pytest.raises(ValueError, match=r"ensemble\.params and images .* not fit"):
            gradient_matching.poison(images, ensemble, model=MODEL, key=KEY)
    with pytest.raises(ValueError, match="key=0 is no key"):
        gradient_matching.poison(_bytes(2, 2), ensemble, model=MODEL, key=0)
    with pytest.raises(ValueError, match="bound='8/255' must be one number"):
        distribution_matching.poison(
            _bytes(2, 2), TARGET, model=MODEL, key=KEY, bound="8/255"
        )


def test_gradient_matching_augments_each_poison_on_its_own(monkeypatch):
    target, seen, augment = _target(), [], augmentation.augment
    ensemble = gradient_matching.Ensemble(
        jax.tree.map(lambda a: a[None], _networks(1)[0]),
        jax.tree.map(lambda a: a[None], _networks(1)[0]),
        jnp.int32(1),
        target.mean,
        target.deviation,
    )

    def watched(*args, **options):
        seen.append(options)
        return augment(*args, **options)

    monkeypatch.setattr(augmentation, "augment", watched)
    copies = direct.poison(target.image, num_poisons=6)
    jax.eval_shape(Alignment(MODEL, OPERATIONS), copies, KEY, ensemble)
    assert seen[0]["operations"] == OPERATIONS
    assert not seen[0].get("siamese", False)


@pytest.mark.parametrize("attack", ["dm", "gradient"])
def test_the_attacks_lower_their_objective_within_the_bound(attack):
    images = _bytes(2, 4, np.float32)
    target = _target(jnp.float32)
    options = {
        "key": KEY,
        "operations": ("flip",),
        "num_steps": 25,
        "num_restarts": 1,
        "num_draws": 2,
        "chunk": 25,
        "bound": 64 / 255,
    }
    if attack == "dm":
        out = distribution_matching.poison(images, target, model=MODEL, **options)
        objective, data = MeanFeature(MODEL, ("flip",)), target
    else:
        cast = [jax.tree.map(lambda a: a.astype(jnp.float32), p) for p in _networks(1)]
        data = gradient_matching.prepare(cast, target, model=MODEL, adversarial_class=1)
        out = gradient_matching.poison(images, data, model=MODEL, **options)
        objective = Alignment(MODEL, ("flip",))
    keys = jax.random.split(jax.random.key(9), 8)
    mean = jax.jit(lambda x: jax.lax.map(lambda k: objective(x, k, data), keys).mean())
    assert float(mean(out.images)) < 0.8 * float(mean(images))
    assert float(jnp.abs(out.images - images).max()) <= 64 / 255 + 1e-7
    assert out.images.dtype == jnp.float32


def test_a_network_that_learns_nothing_of_the_target_is_refused():
    flat = jax.tree.map(lambda a: a * jnp.nan, _networks(1))
    options = {"model": MODEL, "adversarial_class": 1}
    with pytest.raises(ValueError, match="gradient on the target is zero or not"):
        gradient_matching.prepare(flat, _target(), **options)
    with pytest.raises(ValueError, match="networks is empty"):
        gradient_matching.prepare([], _target(), **options)


def test_poisons_come_from_the_adversarial_class_and_keep_the_set_s_size():
    classes = jnp.arange(30) % 3
    options = {"key": KEY, "adversarial_class": 2, "target_class": 0}
    where = direct.choose(classes, num_poisons=4, **options)
    assert len(set(where)) == 4
    assert (np.asarray(classes)[where] == 2).all()
    other = direct.choose(
        classes, num_poisons=4, **(options | {"key": jax.random.key(1)})
    )
    assert set(other) != set(where)
    images = _bytes(3, 30)
    target = _target().image
    mixed = direct.replace(images, direct.poison(target, num_poisons=4), where)
    chex.assert_equal_shape([mixed, images])
    assert (mixed[where] == target[None]).all()
    rest = np.setdiff1d(np.arange(30), where)
    chex.assert_trees_all_equal(mixed[rest], images[rest])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversarial_class": 7}, r"adversarial_class=7 must lie in \[0, 2\]"),
        ({"adversarial_class": -1}, r"adversarial_class=-1 must lie in \[0, 2\]"),
        ({"target_class": -1}, "target_class=-1 must be at least 0"),
        ({"target_class": 2}, "adversarial_class=2 is the target's own"),
        ({"num_poisons": 11}, r"num_poisons=11 must lie in \[1, 10\]: class 2 has 10"),
        ({"num_poisons": 0}, r"num_poisons=0 must lie in \[1, 10\]"),
    ],
)
def test_impossible_choices_are_refused(options, message):
    defaults = {
        "key": KEY,
        "adversarial_class": 2,
        "target_class": 0,
        "num_poisons": 3,
    }
    with pytest.raises(ValueError, match=message):
        direct.choose(jnp.arange(30) % 3, **(defaults | options))


OTHER = np.zeros((4, 7, 7, 3))
TARGET = _target()
PREPARE = {"model": MODEL, "adversarial_class": 1}
UNFIT_TARGETS = {
    "batch": ({"image": _bytes(1, 2)}, r"shape \(2, 6, 6, 3\): give one image.*each"),
    "normalised": ({"image": TARGET.image * 4 - 2}, r"not in \[0, 1\]: give intensit"),
    "bytes": ({"image": np.zeros(SHAPE, np.uint8)}, "target_image has dtype uint8"),
    "nan": ({"image": TARGET.image * jnp.nan}, "target_image has NaN"),
    "mean of grey": (
        {"mean": TARGET.mean[:1]},
        r"mean has shape \(1,\): give",
    ),
    "deviation": ({"deviation": TARGET.deviation * 0}, "deviation=0.0 must be above 0"),
    "mean in bytes": ({"mean": TARGET.mean * 255}, r"mean=127\.5 must lie in \[0, 1\]"),
}


@pytest.mark.parametrize("fault", UNFIT_TARGETS)
def test_a_target_is_one_image_of_intensities(fault, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    changes, told = UNFIT_TARGETS[fault]
    target = TARGET._replace(**changes)
    with pytest.raises(ValueError, match=told):
        gradient_matching.prepare(_networks(1), target, **PREPARE)
    with pytest.raises(ValueError, match=told):
        distribution_matching.poison(_bytes(2, 2), target, model=MODEL, key=KEY)


@pytest.mark.parametrize("wrong", [3, 7, -1, 1.5, True, np.array([1, 2])])
def test_the_adversarial_class_is_one_of_the_network_s(wrong, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"whole number in \[0, 2\].* 3 outputs"):
        gradient_matching.prepare(
            _networks(1), TARGET, model=MODEL, adversarial_class=wrong
        )


@pytest.mark.parametrize("attack", ["dm", "gradient"])
@pytest.mark.parametrize("bound", [8, 64, 0.0, -0.1, 1.01])
def test_no_attack_takes_a_bound_that_is_none(attack, bound):
    options = {"model": MODEL, "key": KEY, "bound": bound}
    images, told = _bytes(2, 2), r"bound=.* must lie in \(0, 1\]"
    flat = jax.tree.map(lambda a: a[None], _networks(1)[0])
    ensemble = gradient_matching.Ensemble(flat, flat, jnp.int32(1), *TARGET[1:])
    poison, about = {
        "dm": (distribution_matching.poison, TARGET),
        "gradient": (gradient_matching.poison, ensemble),
    }[attack]
    with pytest.raises(ValueError, match=told):
        poison(images, about, **options)


def test_direct_poisons_are_copies_of_one_image_in_rows_that_exist(monkeypatch):
    with pytest.raises(ValueError, match=r"images have shape .* but target\.image"):
        distribution_matching.poison(
            jnp.asarray(OTHER), TARGET, model=MODEL, key=KEY, bound=8 / 255
        )
    images, poisons = _bytes(3, 6), _bytes(4, 2)
    plain = direct.replace(np.asarray(images), np.asarray(poisons), [1, 2])
    chex.assert_trees_all_equal(plain[1:3], poisons)
    chex.assert_trees_all_equal(direct.replace(images, poisons[:0], []), images)
    for where in ([4, 6], [-1, 2], [3, 3]):
        with pytest.raises(ValueError, match=r"different rows in \[0, 5\]"):
            direct.replace(images, poisons, np.array(where))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"poisons have shape \(7, 7, 3\) but"):
        direct.replace(images, jnp.asarray(OTHER[:2]), np.array([1, 2]))
    with pytest.raises(ValueError, match="poisons has dtype uint8"):
        direct.replace(images, np.zeros((1, *SHAPE), np.uint8), np.array([1]))
    with pytest.raises(ValueError, match=r"target has shape \(2, 6, 6, 3\): give one"):
        direct.poison(poisons, num_poisons=2)
    with pytest.raises(ValueError, match="target has dtype uint8"):
        direct.poison(np.zeros(SHAPE, np.uint8), num_poisons=2)
