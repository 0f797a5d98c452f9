"""Soft labels: what is stored is what the student sees."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.models import MLP, ResNet18
from ntk_privacy.training import soft_labels

MODEL = ResNet18(3, 2, blocks=(1,))


@pytest.fixture(scope="module")
def labelled():
    images = jax.random.normal(jax.random.key(0), (7, 6, 6, 3))
    params = MODEL.init_params(jax.random.key(1), (6, 6, 3), jnp.float64)
    stats = MODEL.init_stats(jnp.float64)
    options = {
        "model": MODEL, "key": jax.random.key(2), "num_outputs": 3,
        "num_epochs": 4, "batch_size": 3,
    }  # fmt: skip
    states = []
    labels = soft_labels.relabel(
        images, params, stats, chunk=3,
        callback=lambda step, state, metrics: states.append(state), **options,
    )  # fmt: skip
    return images, params, stats, options, states, labels


def test_logits_are_those_of_the_stored_views_alone(labelled):
    images, params, stats, options, states, labels = labelled
    assert labels.logits.shape == (8, 3, 3)  # 2 batches of an epoch; one image is left
    for epoch in range(4):
        seen = np.asarray(labels.order[2 * epoch : 2 * epoch + 2]).reshape(-1)
        assert len(set(seen)) == 6
    assert len(np.unique(np.asarray(labels.boxes).reshape(-1, 4), axis=0)) > 10
    assert 2 < np.asarray(labels.flips).sum() < 22
    view = soft_labels.view(images, *(leaf[5] for leaf in labels[:5]))
    read = jax.jit(MODEL.eval_fn)
    for i in range(3):
        # One by one: evaluation mode mixes no images.
        one = read(params, stats, view[i : i + 1])[0]
        chex.assert_trees_all_close(
            labels.logits[5, i], one.astype(jnp.float16), rtol=2e-3, atol=1e-3
        )
    # From the middle it goes on to the same bits.
    again = soft_labels.relabel(
        images, params, stats, chunk=3, state=states[0], **options
    )
    chex.assert_trees_all_equal(again, labels)


def test_divergence_is_that_of_softened_distributions():
    teacher = jnp.asarray([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]])
    student = jnp.asarray([[0.3, 0.1, 0.2], [1.0, -1.0, 0.0]])
    p, q = (jax.nn.softmax(z / 4.0) for z in (teacher, student))
    want = jnp.sum(p * jnp.log(p / q), axis=1)
    found = soft_labels.divergence(teacher, student, temperature=4.0)
    chex.assert_trees_all_close(found, want, rtol=1e-10)
    zero = soft_labels.divergence(teacher, teacher, temperature=4.0)
    chex.assert_trees_all_close(zero, jnp.zeros(2), atol=1e-12)


def test_the_student_takes_adamws_step_and_goes_on(labelled):
    images, *_, labels = labelled
    options = {"model": MODEL, "key": jax.random.key(3), "num_epochs": 4}
    options |= {"temperature": 2.0, "weight_decay": 0.1, "chunk": 4}
    states = []
    found = soft_labels.post_train(
        images, labels, callback=lambda *a: states.append(a[1]), **options
    )
    again = soft_labels.post_train(images, labels, state=states[0], **options)
    chex.assert_trees_all_equal(found, again)
    start = soft_labels.init_student(images, model=MODEL, key=jax.random.key(3))
    options["chunk"] = 1
    one = soft_labels.post_train(
        images, labels, callback=lambda *a: states.append(a[1]), **options
    )
    chex.assert_trees_all_close(one.params, found.params, rtol=1e-6, atol=1e-9)
    first = states[2]

    def loss(params):
        x = soft_labels.view(images, *(leaf[0] for leaf in labels[:5]))
        logits, _ = MODEL.train_fn(params, start.stats, x)
        teacher = labels.logits[0].astype(x.dtype)
        return soft_labels.divergence(teacher, logits, temperature=2.0).mean()

    grads = jax.jit(jax.grad(loss))(start.params)

    def adamw(p, g):
        # Adam's first step is the sign of the gradient.
        decay = 0.1 if p.ndim > 1 else 0.0
        return p - 1e-3 * (g / (jnp.abs(g) + 1e-8) + decay * p)

    want = jax.tree.map(adamw, start.params, grads)
    chex.assert_trees_all_close(first.params, want, rtol=1e-6, atol=1e-7)


def test_refusals(labelled):
    images, params, stats, options, states, labels = labelled
    with pytest.raises(ValueError, match="MLP has no batch normalisation"):
        soft_labels.relabel(images, params, stats, **{**options, "model": MLP()})
    with pytest.raises(ValueError, match="Only 3 of 8 batches have labels"):
        soft_labels.post_train(
            images, states[0], model=MODEL, key=jax.random.key(0), num_epochs=4
        )
    for few, num_epochs in ((images, 3), (images, 2), (images[:5], 4)):
        told = f"8 batches, which are not num_epochs={num_epochs} of {len(few)} images"
        with pytest.raises(ValueError, match=told):
            soft_labels.post_train(
                few, labels, model=MODEL, key=jax.random.key(0), num_epochs=num_epochs
            )
