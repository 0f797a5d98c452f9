"""MTT and TESLA: students written out, both gradients, memory, resuming, faults."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy import _tree
from ntk_privacy.distillation import student, tesla
from ntk_privacy.distillation import trajectory_matching as mtt
from ntk_privacy.distillation.student import StudentPart, student_loss, student_parts
from ntk_privacy.models import ConvNet

KEY = jax.random.key(0)
MODEL = ConvNet(3, 4, 1, activation="swish")
SHAPE = (4, 4, 1)


def _data():
    x = jax.random.normal(KEY, (12, *SHAPE), jnp.float64)
    return x, jnp.arange(12, dtype=jnp.int32) % 3


def _experts(k=2, epochs=4, model=MODEL):
    """Networks that wander; nothing here asks that they learn."""

    def one(key):
        first = model.init_params(key, SHAPE, jnp.float64)
        drift = model.init_params(jax.random.fold_in(key, 1), SHAPE, jnp.float64)
        return jax.tree.map(
            lambda p, d: jnp.stack([p + 0.05 * i * d for i in range(epochs + 1)]),
            first,
            drift,
        )

    parts = [one(key) for key in jax.random.split(KEY, k)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)


def _problem():
    experts = _experts()
    start, end = (jax.tree.map(lambda leaf, i=i: leaf[0, i], experts) for i in (0, 2))
    images = jax.random.normal(jax.random.key(3), (6, *SHAPE), jnp.float64)
    targets = jnp.repeat(jnp.eye(3), 2, axis=0)
    return images, targets, jnp.asarray(0.3), start, end


OPTIONS = {"model": MODEL, "key": KEY, "student_steps": 3, "operations": ("crop",)}


def _by_hand(images, targets, step_size, start, end, *, batch, constant):
    """The student as a Python loop; `constant` is TESLA's treatment of gradients."""
    parts = student_parts(KEY, 6, student_steps=3, batch_size=batch)
    params = start
    for i in range(3):
        at = jax.lax.stop_gradient(params) if constant else params
        part = StudentPart(*(leaf[i] for leaf in parts))
        grads = jax.grad(student_loss)(
            at, images, targets, part, model=MODEL, operations=("crop",)
        )
        params = jax.tree.map(lambda p, g: p - step_size * g, params, grads)
    far, gap = (
        sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(_tree.sub(end, other)))
        for other in (start, params)
    )
    return gap / far


def test_tesla_is_autodiff_under_its_own_treatment_and_mtt_under_none():
    batch, problem = 4, _problem()
    options = {**OPTIONS, "student_batch_size": batch}
    plain = {}
    for constant in (False, True):

        def value(images, step_size, constant=constant):
            rest = (problem[1], step_size, *problem[3:])
            return _by_hand(images, *rest, batch=batch, constant=constant)

        slope = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))
        plain[constant] = slope(problem[0], problem[2])
    found = jax.jit(lambda *p: tesla.slope(*p, **options))(*problem)
    chex.assert_trees_all_close(found, plain[True], rtol=1e-9, atol=1e-14)
    for slope in (mtt._slope, mtt._lean_slope):
        found = jax.jit(lambda *p, slope=slope: slope(*p, **options))(*problem)
        chex.assert_trees_all_close(found, plain[False], rtol=1e-9, atol=1e-14)
    # The two differ: the test would see one in place of the other.
    gap = jnp.abs(plain[True][1][0] - plain[False][1][0]).max()
    assert gap > 1e-4 * jnp.abs(plain[True][1][0]).max()


def test_mtt_has_the_gradient_of_finite_differences():
    images, targets, step_size, start, end = _problem()
    direction = jax.random.normal(KEY, images.shape)

    @jax.jit
    def value(images, step_size):
        return mtt.loss(images, targets, step_size, start, end, **OPTIONS)

    grads = jax.grad(value, argnums=(0, 1))(images, step_size)
    h = 1e-5
    moved = [value(images + s * h * direction, step_size) for s in (1, -1)]
    slope = (moved[0] - moved[1]) / (2 * h)
    np.testing.assert_allclose(jnp.vdot(grads[0], direction), slope, rtol=1e-6)
    moved = [value(images, step_size + s * h) for s in (1, -1)]
    np.testing.assert_allclose(grads[1], (moved[0] - moved[1]) / (2 * h), rtol=1e-6)


def test_the_loss_is_0_at_the_end_and_1_without_a_step():
    images, targets, step_size, start, end = _problem()
    assert mtt.loss(images, targets, step_size * 0, start, end, **OPTIONS) == 1
    one = {**OPTIONS, "student_steps": 1, "operations": ()}
    parts = student_parts(KEY, 6, student_steps=1, batch_size=6)
    part = StudentPart(*(leaf[0] for leaf in parts))
    grads = jax.grad(student_loss)(
        start, images, targets, part, model=MODEL, operations=()
    )
    there = _tree.axpy(-0.3, grads, start)
    assert mtt.loss(images, targets, step_size, start, there, **one) < 1e-20


def test_a_student_sees_the_set_whole_before_it_sees_an_image_again():
    rows, weights, keys = student_parts(KEY, 7, student_steps=8, batch_size=3)
    assert len(np.unique(keys, axis=0)) == 8
    for first in (0, 3):
        seen = rows[first : first + 3].ravel()[:7]
        np.testing.assert_array_equal(np.sort(seen), np.arange(7))
    assert (rows[:3] != rows[3:6]).any()
    np.testing.assert_array_equal(weights.sum(1), [3, 3, 1, 3, 3, 1, 3, 3])
    rows, weights, _ = student_parts(KEY, 4, student_steps=2, batch_size=None)
    np.testing.assert_array_equal(rows, [[0, 1, 2, 3]] * 2)
    assert weights.min() == 1


def _memory(slope, student_steps):
    # As an operation of its own, else XLA would fold constants.
    options = {**OPTIONS, "student_steps": student_steps}
    compiled = jax.jit(lambda *p: slope(*p, **options)).lower(*_problem()).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_the_memory_of_tesla_does_not_grow_with_the_steps():
    assert _memory(tesla.slope, 50) <= 1.1 * _memory(tesla.slope, 5)


def test_products_are_kept_unless_memory_is_to_be_low():
    def convolutions(slope):
        return str(jax.make_jaxpr(slope)(*_problem())).count("= convolve_3x3[")

    kept, lean = (
        convolutions(lambda *p, slope=slope: slope(*p, **OPTIONS))
        for slope in (mtt._slope, mtt._lean_slope)
    )
    # The network has one convolution, which the students' training runs anyway.
    assert lean == kept + 1
    assert _memory(mtt._lean_slope, 30) < _memory(mtt._slope, 30)


def _distill(module=mtt, **kwargs):
    defaults = {
        "experts": _experts(),
        "model": MODEL,
        "key": KEY,
        "images_per_class": 2,
        "num_steps": 4,
        "student_steps": 3,
        "max_start_epoch": 2,
        "operations": (),
        "step_size": 0.3,
        "optimizer": optax.sgd(1.0, momentum=0.5),
        "step_size_optimizer": optax.sgd(1e-3, momentum=0.5),
        "chunk": 2,
    }
    return module.distill(*_data(), **(defaults | kwargs))


@pytest.mark.parametrize("module", [mtt, tesla])
def test_each_step_follows_a_drawn_expert_and_learns_both(module):
    out = _distill(module, num_steps=1)
    start = mtt.init(*_data(), key=KEY, images_per_class=2, step_size=0.3)
    keys = jax.random.split(jax.random.fold_in(KEY, 0), 3)
    expert = jax.random.randint(keys[0], (), 0, 2)
    epoch = jax.random.randint(keys[1], (), 0, 2)
    experts = _experts()
    ends = [jax.tree.map(lambda p, e=e: p[expert, epoch + e], experts) for e in (0, 2)]
    slope = tesla.slope if module is tesla else mtt._slope
    value, grads = slope(
        start.images,
        jax.nn.one_hot(start.labels, 3, dtype=jnp.float64),
        start.step_size,
        *ends,
        model=MODEL,
        key=keys[2],
        student_steps=3,
        operations=(),
    )
    chex.assert_trees_all_close(out.losses[0], value, rtol=1e-9)
    chex.assert_trees_all_close(out.images, start.images - grads[0], rtol=1e-9)
    moved = start.step_size - 1e-3 * grads[1]
    chex.assert_trees_all_close(out.state.step_size, moved, rtol=1e-9)


def test_matching_trajectories_descends_and_resumes_to_the_bit():
    options = {"num_steps": 20, "max_start_epoch": 1, "chunk": 10}
    options["experts"] = _experts(k=1)
    options["optimizer"] = optax.sgd(30.0, momentum=0.5)
    options["step_size_optimizer"] = optax.sgd(1e-5, momentum=0.5)
    whole = _distill(**options)
    assert whole.losses[-5:].mean() < 0.9 * whole.losses[:5].mean()
    half = _distill(**(options | {"num_steps": 10}))
    rest = _distill(**options, state=half.state)
    chex.assert_trees_all_equal(rest.state, whole.state)


def test_a_teacher_labels_the_images_anew_at_every_step():
    seen = []
    out = _distill(
        tesla,
        teacher_labels=True,
        num_steps=2,
        chunk=1,
        callback=lambda step, state, metrics: seen.append(state),
    )
    assert out.labels.shape == (6, 3)
    chex.assert_trees_all_close(out.labels.sum(1), jnp.ones(6), rtol=1e-6)
    assert (seen[0].labels != seen[1].labels).any()
    keys = jax.random.split(jax.random.fold_in(KEY, 1), 3)
    expert = jax.random.randint(keys[0], (), 0, 2)
    epoch = jax.random.randint(keys[1], (), 0, 2)
    teacher = jax.tree.map(lambda p: p[expert, epoch + 2], _experts())
    told = jax.nn.softmax(MODEL.apply_fn(teacher, seen[0].images))
    chex.assert_trees_all_close(out.labels, told, rtol=1e-9)


MANY = _experts()
SINGLE = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), MANY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expert_epochs": 4}, "experts have 4 epochs, but .* ask for 5"),
        ({"experts": _experts(model=ConvNet(3, 5, 1))}, "experts.* has shape"),
        (
            {"experts": jax.tree.map(lambda leaf: leaf.at[1, 2].set(jnp.nan), MANY)},
            r"experts\['Conv_0'\]\['bias'\] has 4 values that are NaN",
        ),
        ({"experts": SINGLE}, "experts are float32 but the images float64: convert"),
        ({"experts": _experts(model=ConvNet(3, 4, 2))}, "differ in structure"),
        ({"student_steps": 0}, "student_steps=0 must be at least 1"),
        ({"student_batch_size": 0}, "student_batch_size=0 must be at least 1"),
        ({"step_size": 0.0}, "step_size=0.0 must be above 0"),
        ({"images_per_class": 5}, "images_per_class=5 is more than the 4 images"),
    ],
)
def test_what_cannot_be_followed_is_named_with_its_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        _distill(**options)


# name -> step of the optimizer of step sizes, and what is told.
LEARNT = {
    "negative": (2.0, r"Step 1: The learnt step size .* is not above 0 \(it began"),
    "vanishing": (None, r"Step 1: The learnt step size .* has vanished \(it began at"),
}


@pytest.mark.parametrize("module", [mtt, tesla])
@pytest.mark.parametrize("kind", LEARNT)
def test_a_step_size_with_which_none_can_learn_is_told_at_once(module, kind):
    rate, told = LEARNT[kind]
    # Whatever the gradient: one step to far below zero, or to nearly nothing.
    moved = optax.stateless(
        lambda grads, sizes: jax.tree.map(
            lambda s: -s * (1 - 1e-6) if rate is None else -s * rate, sizes
        )
    )
    seen = []
    with pytest.warns(UserWarning, match=told) as caught:
        out = _distill(
            module,
            num_steps=3,
            chunk=1,
            step_size_optimizer=moved,
            callback=lambda step, state, metrics: seen.append(int(state.backward)),
        )
    assert len(caught) == 1
    # A negative one is positive again after the next step; the count remains.
    assert seen == [1, 1 if rate else 2, 2 if rate else 3]
    assert int(out.state.backward) == seen[-1]
    fault = student.step_size_fault(float(out.state.step_size), 0.3)
    assert "no network learns from these images" in fault


def test_a_step_size_above_zero_is_no_fault():
    for size in (0.01, 1e-4, 3.0):
        assert student.step_size_fault(size, 0.01) is None
    for size, told in ((0.0, "is not above 0"), (-1.0, "is not above 0")):
        assert told in student.step_size_fault(size, 0.01)
    assert "is not finite" in student.step_size_fault(float("nan"), 0.01)
    assert "has vanished" in student.step_size_fault(9e-6, 0.01)
