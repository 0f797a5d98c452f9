"""DM and RDM-DC: the step written out, resuming, initial images, faults."""

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from ntk_privacy.data import augmentation
from ntk_privacy.distillation import distribution_matching as dm
from ntk_privacy.distillation import robust_mean, synthetic_set
from ntk_privacy.models import ConvNet

KEY = jax.random.key(0)
MODEL = ConvNet(3, 4, 1)
SHAPE = (6, 6, 1)
OPERATIONS = ("flip",)
SIZES = (9, 12, 7)


def _data(dtype=jnp.float64):
    """Three classes of unequal size, shuffled."""
    random = np.random.default_rng(0)
    classes = random.permutation(np.repeat(np.arange(3), SIZES)).astype(np.int32)
    x = random.normal(size=(len(classes), *SHAPE)) + classes[:, None, None, None]
    return jnp.asarray(x, dtype), jnp.asarray(classes)


def _distill(x, classes, **kwargs):
    defaults = {
        "model": MODEL,
        "key": KEY,
        "images_per_class": 2,
        "num_steps": 4,
        "batch_size": 5,
        "operations": OPERATIONS,
        "chunk": 2,
    }
    return dm.distill(x, classes, **(defaults | kwargs))


def _by_hand(x, classes, start, num_steps, mean_fn):
    """The published loop: one class after the other, SGD with momentum by hand."""
    sizes = np.asarray(SIZES)
    order = np.argsort(np.asarray(classes), kind="stable")
    images, velocity, losses = start.images, 0, []

    @jax.jit
    def value(images, params, batches, keys):
        total = 0
        for c in range(3):
            augmented, synthetic = (
                augmentation.augment(keys[c], a, operations=OPERATIONS, siamese=True)
                for a in (batches[c], images[2 * c : 2 * c + 2])
            )
            real = MODEL.embed_fn(params, augmented)
            gap = mean_fn(real) - MODEL.embed_fn(params, synthetic).mean(0)
            total += jnp.sum(gap**2)
        return total

    slope = jax.jit(jax.value_and_grad(value))
    for step in range(num_steps):
        keys = jax.random.split(jax.random.fold_in(KEY, step), 3)
        params = MODEL.init_params(keys[0], SHAPE, jnp.float64)
        draw = jax.random.uniform(keys[1], (3, 12), jnp.float32)
        batches = []
        for c in range(3):
            best = np.argsort(-np.asarray(draw[c, : sizes[c]]), kind="stable")[:5]
            batches.append(x[order[sizes[:c].sum() + best]])
        loss, grads = slope(images, params, batches, jax.random.split(keys[2], 3))
        velocity = 0.5 * velocity + grads
        images = images - velocity
        losses.append(loss)
    return images, jnp.stack(losses)


@pytest.mark.parametrize(
    "mean_fn",
    [robust_mean.mean, robust_mean.calibrated(rate=0.1)],
    ids=["dm", "rdm"],
)
def test_the_batched_step_is_the_published_loop(mean_fn):
    x, classes = _data()
    start = dm.init(x, classes, key=KEY, images_per_class=2)
    out = _distill(x, classes, mean_fn=mean_fn)
    images, losses = _by_hand(x, classes, start, 4, mean_fn)
    chex.assert_trees_all_close(out.images, images, rtol=1e-9)
    chex.assert_trees_all_close(out.losses, losses, rtol=1e-9)
    chex.assert_trees_all_equal(out.labels, jnp.array([0, 0, 1, 1, 2, 2], jnp.int32))
    assert int(out.state.steps) == 4


def test_the_plain_mean_is_dm_to_the_bit_and_the_calibrated_is_not():
    x, classes = _data(jnp.float32)
    plain = _distill(x, classes)
    same = _distill(x, classes, mean_fn=robust_mean.mean)
    chex.assert_trees_all_equal(plain.images, same.images)
    robust = _distill(x, classes, mean_fn=robust_mean.calibrated(rate=0.1))
    assert (robust.images != plain.images).any()
    assert plain.images.dtype == jnp.float32
    assert jnp.isfinite(robust.losses).all()


def test_no_gradient_passes_through_the_real_side():
    x, _ = _data()
    params = MODEL.init_params(KEY, SHAPE, jnp.float64)
    keys = jax.random.split(KEY, 3)

    @jax.jit
    def slopes(real, synthetic):
        def value(real, synthetic):
            return dm.loss(
                real,
                synthetic,
                model=MODEL,
                params=params,
                keys=keys,
                operations=OPERATIONS,
            )

        return jax.grad(value, argnums=(0, 1))(real, synthetic)

    real, synthetic = slopes(x[:12].reshape(3, 4, *SHAPE), x[:3].reshape(3, 1, *SHAPE))
    assert not real.any()
    assert synthetic.any()


def test_matching_descends():
    x, classes = _data()
    out = _distill(
        x,
        classes,
        num_steps=120,
        batch_size=7,
        chunk=60,
        optimizer=optax.sgd(3.0, momentum=0.5),
    )
    assert out.losses[-20:].mean() < 0.3 * out.losses[:5].mean()


def test_it_resumes_to_the_bit_and_calls_back():
    x, classes = _data()
    calls = []

    def callback(done, state, metrics):
        calls.append((done, int(state.steps), len(metrics["loss"])))

    whole = _distill(x, classes, callback=callback)
    assert calls == [(2, 2, 2), (4, 4, 2)]
    half = _distill(x, classes, num_steps=2)
    rest = _distill(x, classes, state=half.state)
    chex.assert_trees_all_equal(rest.state, whole.state)
    chex.assert_trees_all_equal(
        jnp.concatenate([half.losses, rest.losses]), whole.losses
    )
    with pytest.raises(ValueError, match="repeat the options"):
        _distill(x, classes, state=half.state, images_per_class=3)


def test_a_batch_has_each_image_of_its_class_once_at_most():
    x, classes = _data()
    names = jnp.arange(len(x), dtype=x.dtype).reshape(-1, 1, 1, 1)
    order = np.argsort(np.asarray(classes), kind="stable")
    sizes = jnp.asarray(SIZES, jnp.int32)
    data = synthetic_set.ClassData(names[order], jnp.cumsum(sizes) - sizes, sizes, None)
    seen = np.zeros(len(x))
    for key in jax.random.split(KEY, 20):
        batch = synthetic_set.class_batch(data, key, batch_size=7, largest=12)
        batch = np.asarray(batch).reshape(3, 7).astype(int)
        for c, row in enumerate(batch):
            assert len(set(row)) == 7
            assert (np.asarray(classes)[row] == c).all()
        seen[batch] += 1
    assert (seen > 0).all()


def test_initial_images_are_standard_noise_or_real():
    x, classes = jnp.zeros((60, 20, 20, 1)), jnp.arange(60) % 3
    noise = dm.init(x, classes, key=KEY, images_per_class=10)
    np.testing.assert_allclose(
        [noise.images.mean(), noise.images.std()], [0, 1], atol=0.05
    )
    x, classes = _data()
    real = dm.init(x, classes, key=KEY, images_per_class=3, initial="real")
    where = (real.images[:, None] == x[None]).all((2, 3, 4))
    assert (where.sum(1) == 1).all()
    assert len(set(np.asarray(where.argmax(1)))) == 9
    chex.assert_trees_all_equal(classes[where.argmax(1)], real.labels)


def test_a_loss_that_is_not_finite_stops_it_at_the_last_good_state():
    x, classes = _data(jnp.float32)
    out = _distill(x, classes, optimizer=optax.sgd(float("inf")))
    assert out.nonfinite
    assert jnp.isfinite(out.images).all()
    assert len(out.losses) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 5}, "Class 3 of 5 has no images: leave"),
        ({"num_classes": 2}, r"class_target lies in \[0, 2\]"),
        ({"batch_size": 8}, "batch_size=8 is more than the 7 images of class 2"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"images_per_class": 0}, "images_per_class=0 must be at least 1"),
        (
            {"images_per_class": 8, "initial": "real"},
            "images_per_class=8 is more than the 7 images of class 2",
        ),
        ({"initial": "zero"}, "initial='zero' is unknown"),
        ({"operations": ("blur",)}, "operations='blur' is unknown"),
        (
            {"mean_fn": robust_mean.calibrated(rate=0.3), "batch_size": 3},
            "drops 3 of 3 samples",
        ),
    ],
)
def test_bad_input_is_named_with_its_remedy(options, message):
    x, classes = _data()
    with pytest.raises(ValueError, match=message):
        _distill(x, classes, **options)


def test_lengths_must_agree_and_there_must_be_images():
    x, classes = _data()
    # The annotation of the signature says it before the library does.
    with pytest.raises((ValueError, jaxtyping.TypeCheckError)):
        _distill(x, classes[:-1])
    with pytest.raises(ValueError, match="at least one image"):
        _distill(x[:0], classes[:0])
