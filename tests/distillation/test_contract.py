"""What every `distill` of this project promises, over the table of all methods."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy import kip, rkip
from ntk_privacy.distillation import (
    distribution_matching,
    gradient_matching,
    robust_mean,
    tesla,
    trajectory_matching,
)
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.kernels import infinite
from ntk_privacy.models import ConvNet

KEY = jax.random.key(0)
MODEL = ConvNet(3, 2, 1)
SHAPE = (4, 4, 1)
EACH = 2


def _experts():
    def one(key):
        first = MODEL.init_params(key, SHAPE, jnp.float64)
        return jax.tree.map(lambda p: jnp.stack([p, 0.9 * p, 0.8 * p, 0.7 * p]), first)

    parts = [one(key) for key in jax.random.split(KEY, 2)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)


KERNEL = {"kernel_fn": infinite.mlp(depth=1)}
NETWORK = {"model": MODEL, "batch_size": 4}
SIAMESE = {"operations": ("crop",), "initial": "real"}
GRADIENTS = {**NETWORK, "outer_steps": 2, "inner_epochs": 1}
STUDENT = {
    "model": MODEL,
    "experts": _experts(),
    "student_steps": 2,
    "max_start_epoch": 2,
}
# Name to module, options and whether targets are classes rather than rows.
METHODS = {
    "kip": (kip, KERNEL, False),
    "rkip": (rkip, KERNEL, False),
    "dm": (distribution_matching, NETWORK, True),
    "rdm-dc": (
        distribution_matching,
        {**NETWORK, "mean_fn": robust_mean.calibrated(rate=0.1)},
        True,
    ),
    "dc": (gradient_matching, GRADIENTS, True),
    "dsa": (gradient_matching, {**GRADIENTS, **SIAMESE}, True),
    "mtt": (trajectory_matching, STUDENT, True),
    "tesla": (tesla, STUDENT, True),
}
# Where two methods have an option of one of these names it means the same.
SHARED = {
    *("key", "images_per_class", "num_steps", "optimizer", "state", "chunk"),
    "callback",
}
MATCHING = {"model", "num_classes", "operations", "initial"}


@pytest.fixture(params=METHODS, scope="module")
def method(request):
    return request.param


def _distill(method, dtype=jnp.float64, **changes):
    module, options, by_class = METHODS[method]
    random = np.random.default_rng(0)
    classes = np.arange(18, dtype=np.int32) % 3
    x = random.normal(size=(18, *SHAPE)) + classes[:, None, None, None]
    rows = np.eye(3)[classes] - 1 / 3
    options = {"key": KEY, "images_per_class": EACH, "num_steps": 3, **options}
    if dtype != jnp.float64 and "experts" in options:
        as_asked = jax.tree.map(lambda leaf: leaf.astype(dtype), options["experts"])
        options["experts"] = as_asked
    target = jnp.asarray(classes) if by_class else jnp.asarray(rows, dtype)
    return module.distill(
        jnp.asarray(x, dtype), target, **(options | {"chunk": 1} | changes)
    )


@pytest.fixture(scope="module")
def whole(method):
    """A run of three steps, and what its callback was told."""
    calls = []
    out = _distill(method, callback=lambda *told: calls.append(told))
    return out, calls


def test_data_come_first_and_options_have_one_name(method):
    module, _, by_class = METHODS[method]
    parameters = inspect.signature(module.distill).parameters
    kinds = {name: p.kind for name, p in parameters.items()}
    data = ["x_target", "class_target" if by_class else "y_target"]
    assert list(parameters)[:2] == data
    assert {kinds[name] for name in data} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    rest = {kind for name, kind in kinds.items() if name not in data}
    assert rest == {inspect.Parameter.KEYWORD_ONLY}
    assert set(parameters) >= (SHARED | MATCHING if by_class else SHARED)
    for name in ("optimizer", "state", "callback"):
        assert parameters[name].default is None
    assert parameters["key"].default is inspect.Parameter.empty
    assert module.Distilled is Distilled
    for name in (*SHARED, "Raises:", "Example:"):
        assert name in module.distill.__doc__


def test_the_result_has_the_set_its_labels_its_losses_and_a_state(method, whole):
    out, _ = whole
    assert type(out) is Distilled
    assert out.images.shape == (3 * EACH, *SHAPE)
    assert len(out.labels) == 3 * EACH
    by_class = METHODS[method][2]
    classes = out.labels if by_class else out.labels.argmax(1)
    np.testing.assert_array_equal(classes, np.repeat(np.arange(3), EACH))
    assert out.losses.shape == (3,)
    assert out.nonfinite.shape == ()
    assert not out.nonfinite
    chex.assert_tree_all_finite((out.images, out.losses))
    state = out.state
    assert int(state.steps) == 3
    assert not state.nonfinite
    chex.assert_trees_all_equal(state.images, out.images)
    chex.assert_trees_all_equal(state.labels, out.labels)
    # What a checkpoint can hold: arrays alone.
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_the_callback_is_told_steps_state_and_losses(whole):
    out, calls = whole
    assert [step for step, _, _ in calls] == [1, 2, 3]
    assert [int(state.steps) for _, state, _ in calls] == [1, 2, 3]
    told = jnp.concatenate([metrics["loss"] for _, _, metrics in calls])
    chex.assert_trees_all_equal(told, out.losses)
    assert (calls[0][1].images != calls[1][1].images).any()


def test_it_goes_on_from_any_state_to_the_same_bits(method, whole):
    out, calls = whole
    for done in (1, 2):
        rest = _distill(method, state=calls[done - 1][1])
        chex.assert_trees_all_equal(rest.state, out.state)
        chex.assert_trees_all_equal(rest.losses, out.losses[done:])
    none_left = _distill(method, state=out.state)
    chex.assert_trees_all_equal(none_left.state, out.state)
    assert none_left.losses.shape == (0,)


def test_another_key_makes_another_set(method, whole):
    other = _distill(method, key=jax.random.key(1), num_steps=1)
    assert (other.images != whole[1][0][1].images).any()


def test_dtypes_are_kept_and_a_lost_step_ends_in_the_last_good_state(method):
    # In float32: one compilation tells of both.
    out = _distill(method, jnp.float32, optimizer=optax.sgd(float("inf")))
    assert out.images.dtype == out.losses.dtype == jnp.float32
    assert out.nonfinite
    assert out.state.nonfinite
    assert int(out.state.steps) == 0
    assert out.losses.shape == (1,)
    assert jnp.isfinite(out.images).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images_per_class": 0}, "images_per_class=0"),
        ({"num_steps": -1}, "num_steps=-1 must be at least 0"),
        ({"chunk": 0}, "chunk=0 must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_named(method, changes, message):
    with pytest.raises(ValueError, match=message):
        _distill(method, **changes)


def test_a_state_of_other_shapes_is_refused(method, whole):
    with pytest.raises(ValueError, match="repeat the options"):
        _distill(method, state=whole[0].state, images_per_class=1)


def test_one_row_too_few_is_refused(method):
    module, options, by_class = METHODS[method]
    x = jnp.ones((4, *SHAPE))
    target = jnp.arange(3, dtype=jnp.int32) if by_class else jnp.eye(3)
    # The annotation of the signature may say it before the library does.
    with pytest.raises(Exception, match=r"Lengths differ|[Tt]ype-check|violates"):
        module.distill(x, target, key=KEY, **options)
