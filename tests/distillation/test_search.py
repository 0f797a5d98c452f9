"""What KIP and RKIP promise alike: options, resuming, kernels, faults."""

import functools
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from ntk_privacy import checkpoint, kip, rkip
from ntk_privacy.distillation import search
from ntk_privacy.kernels import (
    empirical,
    infinite,
    infinite_conv,
    neural_tangents,
    structured,
)
from ntk_privacy.models import MLP

KERNEL = infinite.mlp(depth=1)
KEY = jax.random.key(0)
N = 12

both = pytest.mark.parametrize("method", [kip, rkip], ids=["kip", "rkip"])


def _targets(c=1, dtype=jnp.float64):
    x = jax.random.normal(jax.random.key(1), (N, 4, 4, 1), dtype)
    return x, search.balanced_labels(N // max(c, 2), c, dtype)


def _distill(method, x, y, **kwargs):
    defaults = {
        "kernel_fn": KERNEL,
        "key": KEY,
        "images_per_class": 1,
        "num_steps": 6,
        "chunk": 2,
    }
    return method.distill(x, y, **(defaults | kwargs))


def _same_bits(a, b):
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert u.dtype == v.dtype
        np.testing.assert_array_equal(np.asarray(u), np.asarray(v))


@both
@pytest.mark.parametrize("c", [1, 3])
def test_it_descends_the_loss_from_the_published_start(method, c):
    x, y = _targets(c)
    fast = optax.adam(0.02)
    out = _distill(method, x, y, images_per_class=2, num_steps=60, optimizer=fast)
    start = search.init(x, y, key=KEY, images_per_class=2)
    kwargs = {"kernel_fn": KERNEL}
    first = method.loss(start.images, start.labels, x, y, **kwargs)
    np.testing.assert_allclose(out.losses[0], first, rtol=1e-9)
    assert method.loss(out.images, out.labels, x, y, **kwargs) < 0.9 * first
    chex.assert_shape(out.losses, (60,))
    chex.assert_trees_all_equal(out.labels, start.labels)
    assert not out.nonfinite
    assert out.state.steps == 60


def test_the_start_is_small_noise_with_balanced_labels():
    x, y = jnp.zeros((1000, 5, 4, 1)), jnp.zeros((1000, 1))
    start = search.init(x, y, key=KEY, images_per_class=50)
    assert abs(float(jnp.std(start.images)) - 0.2) < 0.01
    chex.assert_trees_all_equal(
        start.labels[:, 0], jnp.repeat(jnp.array([-1.0, 1]), 50)
    )
    three = search.balanced_labels(2, 3, jnp.float32)
    chex.assert_trees_all_close(jnp.sum(three, axis=1), jnp.zeros(6), atol=1e-6)
    chex.assert_trees_all_equal(
        jnp.argmax(three, axis=1), jnp.array([0, 0, 1, 1, 2, 2])
    )
    assert three.dtype == jnp.float32


@both
def test_float32_stays_float32(method):
    x, y = _targets(2, jnp.float32)
    out = _distill(method, x, y, learn_labels=True, noise_ratio=0.1)
    for leaf in (out.images, out.labels, out.losses):
        assert leaf.dtype == jnp.float32


@both
@pytest.mark.parametrize("pause", [4])
@pytest.mark.parametrize(
    "options", [{}, {"learn_labels": True, "noise_ratio": 0.2}, {"batch_size": 4}],
    ids=["plain", "options", "batches"],
)  # fmt: skip
def test_a_resumed_run_ends_with_the_same_bits(method, options, pause, tmp_path):
    x, y = _targets()
    whole = _distill(method, x, y, num_steps=10, **options)
    first = _distill(method, x, y, num_steps=pause, **options)
    # Through a checkpoint: the state is arrays alone.
    checkpoint.save(tmp_path, pause, first.state)
    state = checkpoint.restore(tmp_path, pause, first.state)
    rest = _distill(method, x, y, num_steps=10, state=state, **options)
    _same_bits(rest.state, whole.state)
    _same_bits(jnp.concatenate([first.losses, rest.losses]), whole.losses)


@both
def test_the_callback_sees_every_chunk(method):
    x, y = _targets()
    seen = []
    out = _distill(
        method, x, y, num_steps=6, chunk=2,
        callback=lambda step, state, metrics: seen.append((step, state, metrics)),
    )  # fmt: skip
    assert [step for step, _, _ in seen] == [2, 4, 6]
    assert [int(state.steps) for _, state, _ in seen] == [2, 4, 6]
    losses = jnp.concatenate([metrics["loss"] for _, _, metrics in seen])
    _same_bits(losses, out.losses)
    _same_bits(seen[-1][1].images, out.images)


@both
def test_chunks_change_no_bit(method):
    x, y = _targets()
    _same_bits(
        _distill(method, x, y, num_steps=6).state,
        _distill(method, x, y, num_steps=6, chunk=100).state,
    )


@both
def test_noise_stays_and_the_rest_moves(method):
    x, y = _targets()
    options = {"noise_ratio": 0.3, "images_per_class": 6}
    start = _distill(method, x, y, num_steps=0, **options)
    weight_decay = optax.adamw(0.01, weight_decay=0.1)
    out = _distill(method, x, y, optimizer=weight_decay, **options)
    noise = np.asarray(out.state.noise)
    assert 0.15 < noise.mean() < 0.45
    np.testing.assert_array_equal(out.images[noise], start.images[noise])
    assert (out.images[~noise] != start.images[~noise]).all()
    # N(0, 1), not the 0.2 of the other entries.
    assert np.std(start.images[noise]) > 0.6 > 0.4 > np.std(start.images[~noise])


@both
def test_learned_labels_move_and_lower_the_loss(method):
    x, y = _targets(3)
    options = {"optimizer": optax.sgd(1e-3)}
    fixed = _distill(method, x, y, **options)
    learned = _distill(method, x, y, learn_labels=True, **options)
    assert learned.losses[-1] < fixed.losses[-1]
    assert (learned.labels != fixed.labels).all()


@both
def test_a_given_set_is_where_it_starts(method):
    x, y = _targets()
    rows = jnp.array([0, 4, 8])
    out = _distill(
        method, x, y, num_steps=0, initial_images=x[rows], initial_labels=y[rows]
    )
    _same_bits((out.images, out.labels), (x[rows], y[rows]))


def test_batches_are_balanced_and_without_replacement():
    y = jnp.where(jnp.arange(N) % 3 == 0, 1.0, -1.0)[:, None]
    order, sizes = search.class_order(y, 6)
    assert sizes == (8, 4)
    step = search._Step(lambda *_: 0, optax.adam(1.0), False, 6, sizes)
    rows = jnp.asarray(order)
    draws = [
        np.asarray(step.batch(rows, jax.random.key_data(KEY), jnp.int32(i)))
        for i in range(40)
    ]
    for draw in draws:
        assert len(set(draw)) == 6
        assert int(jnp.sum(y[draw])) == 0
    assert set(np.concatenate(draws)) == set(range(N))
    assert len({tuple(draw) for draw in draws}) > 30


def test_a_full_batch_is_the_loss_of_all_targets():
    x, y = _targets(3)
    for method in (kip, rkip):
        whole = _distill(method, x, y).losses
        chex.assert_trees_all_close(
            _distill(method, x, y, batch_size=N).losses, whole, rtol=1e-8
        )


@both
def test_an_empirical_kernel_distils(method):
    x, y = _targets(2)
    model = MLP((8,), num_outputs=2)
    params = model.init_params(KEY, (4, 4, 1), jnp.float64)
    runs = [
        _distill(method, x, y, num_steps=2, kernel_fn=functools.partial(ntk, *args))
        for ntk, args in (
            (structured.ntk, (model, params)),
            (empirical.ntk, (model.apply_fn, params)),
        )
    ]
    chex.assert_trees_all_close(runs[0].losses, runs[1].losses, rtol=1e-7)


@both
def test_a_neural_tangents_kernel_distils_alike(method, nt):
    dense = functools.partial(nt.stax.Dense, W_std=1.0, b_std=None)
    layers = [dense(1), nt.stax.Relu(), dense(1)]
    *_, kernel_fn = nt.stax.serial(nt.stax.Flatten(), *layers)
    x, y = _targets()
    theirs = _distill(
        method, x, y, kernel_fn=neural_tangents.as_kernel_fn(kernel_fn), num_steps=2
    )
    chex.assert_trees_all_close(
        theirs.losses, _distill(method, x, y, num_steps=2).losses, rtol=1e-5
    )
    with pytest.raises(ValueError, match="as_kernel_fn"):
        _distill(method, x, y, kernel_fn=kernel_fn)


@both
def test_a_kernel_that_needs_both_arguments_distils_alike(method):
    x, y = _targets()
    out = _distill(method, x, y, kernel_fn=lambda a, b: KERNEL(a, b))
    chex.assert_trees_all_close(out.losses, _distill(method, x, y).losses, rtol=1e-6)


@both
def test_a_nonfinite_loss_stops_at_the_last_good_state(method):
    x, y = _targets()
    wild = optax.sgd(lambda step: jnp.where(step < 5, 1e-6, jnp.inf))
    out = _distill(method, x, y, num_steps=30, optimizer=wild)
    good = _distill(method, x, y, num_steps=5, optimizer=wild)
    assert out.nonfinite
    assert out.state.steps == 5
    assert len(out.losses) == 6
    _same_bits(out.images, good.images)
    assert not good.nonfinite


@both
def test_the_step_is_compiled_once_for_the_default_optimizer(method):
    x, y = _targets()
    calls = []

    def kernel_fn(x1, x2):
        calls.append(1)
        return KERNEL(x1, x2)

    options = {"kernel_fn": kernel_fn, "chunk": 3}
    _distill(method, x, y, num_steps=3, **options)
    first = len(calls)
    out = _distill(method, x + 1, y, num_steps=3, **options)
    # Only the checks before the loop call it again.
    assert len(calls) - first <= 3
    assert out.state.steps == 3


BAD = [
    ({"images_per_class": 0}, "images_per_class=0 makes 0 images of 12"),
    ({"images_per_class": 7}, "between 1 and 6"),
    ({"initial_images": jnp.zeros((2, 4, 4, 1))}, "no labels"),
    ({"initial_images": jnp.zeros((2, 4, 5, 1)), "initial_labels": jnp.zeros((2, 1))},
     "of shape"),
    ({"initial_images": jnp.zeros((13, 4, 4, 1)), "initial_labels": jnp.zeros((13, 1))},
     "between 1 and 12"),
    ({"initial_labels": jnp.zeros((2, 3))}, "as wide as the targets"),
    ({"noise_ratio": 1.5}, "noise_ratio"),
    ({"diag_reg": -1.0}, "diag_reg"),
    ({"batch_size": 5}, "batch_size=5"),
    ({"batch_size": 14}, "at most 12"),
    ({"num_steps": -1}, "num_steps"),
    ({"kernel_fn": lambda a, b: KERNEL(a, b)[..., None, None]}, "trace over outputs"),
]  # fmt: skip


@both
@pytest.mark.parametrize(("kwargs", "message"), BAD)
def test_bad_input_is_told(method, kwargs, message):
    x, y = _targets()
    with pytest.raises(ValueError, match=message):
        _distill(method, x, y, **kwargs)


@both
def test_bad_lengths_and_widths_are_told(method):
    x, y = _targets()
    # Whichever sees it first: jaxtyping, in tests, or the library.
    told = pytest.raises((ValueError, jaxtyping.TypeCheckError), match=r"n=12|Lengths")
    with told:
        _distill(method, x, y[:5])
    with pytest.raises(ValueError, match="Widths differ"):
        method.loss(x[:2], jnp.zeros((2, 3)), x, y, kernel_fn=KERNEL)


FAULTS = """
import jax, jax.numpy as jnp, numpy as np
from ntk_privacy import kip, rkip
from ntk_privacy.kernels import infinite
x = jax.random.normal(jax.random.key(1), (12, 4, 4, 1))
y = jnp.tile(jnp.array([[-1.0], [1.0]]), (6, 1))
cases = {
    "one column per output": (x, y[:, 0]),
    "y_target has dtype int32": (x, y.astype(jnp.int32)),
    "x_target has dtype uint8": (x.astype(jnp.uint8), y),
    "x_target has NaN or infinite values in 1 rows": (x.at[3].set(jnp.nan), y),
    "y_target has NaN or infinite values in 1 rows": (x, y.at[5].set(jnp.inf)),
}
for method in (kip, rkip):
    for told, (images, targets) in cases.items():
        for learn_labels in (False, True):
            try:
                method.distill(
                    images, targets, kernel_fn=infinite.mlp(depth=1), num_steps=1,
                    key=jax.random.key(0), images_per_class=1,
                    learn_labels=learn_labels,
                )
            except ValueError as error:
                assert told in str(error), (told, error)
            else:
                raise AssertionError(told)
"""


def test_targets_that_do_not_fit_are_told_without_type_checks():
    # In a process of its own: here the shape checks of the tests would see them first.
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@both
def test_a_conv_kernel_distils(method):
    x, y = _targets(3)
    kernel_fn = infinite_conv.convnet(depth=1)
    out = _distill(method, x, y, kernel_fn=kernel_fn, num_steps=20)
    first, last = (
        method.loss(images, labels, x, y, kernel_fn=kernel_fn)
        for images, labels in (
            search.init(x, y, key=KEY, images_per_class=1)[:2],
            (out.images, out.labels),
        )
    )
    np.testing.assert_allclose(out.losses[0], first, rtol=1e-6)
    assert last < first


@both
def test_duplicates_without_a_ridge_name_the_ridge(method):
    x, y = _targets(dtype=jnp.float32)
    twice = {"initial_images": x[jnp.array([0, 0])], "initial_labels": y[:2]}
    with pytest.raises(ValueError, match=r"diag_reg=0\.0 .images 0 and 1 coin"):
        _distill(method, x, y, diag_reg=0.0, **twice)
    _distill(method, x, y, diag_reg=1e-5, **twice)
    with pytest.raises(ValueError, match="singular"):
        method.label_solve(
            twice["initial_images"], x, y, kernel_fn=KERNEL, diag_reg=0.0
        )


def test_duplicate_targets_without_a_ridge_name_the_ridge():
    x, y = _targets(dtype=jnp.float32)
    with pytest.raises(ValueError, match="x_target is singular"):
        _distill(rkip, x.at[1].set(x[0]), y, diag_reg=0.0)


@both
def test_a_state_of_another_run_is_refused(method):
    x, y = _targets()
    out = _distill(method, x, y)
    with pytest.raises(ValueError, match="repeat the options"):
        _distill(method, x, y, images_per_class=3, state=out.state)
    with pytest.raises(ValueError, match="repeat the options"):
        _distill(method, x, y, learn_labels=True, state=out.state)
    with pytest.raises(ValueError, match="first_step=6 is above num_steps=2"):
        _distill(method, x, y, num_steps=2, state=out.state)
