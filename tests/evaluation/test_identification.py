"""A training image among decoys: first where it was reconstructed, last where not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy import data
from ntk_privacy.evaluation import identification
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import closed_units

N = 10


def test_ranks_are_those_of_the_nearest_reconstructed_image():
    truth = np.zeros((2, 1, 1, 1))
    truth[1] = 10.0
    decoys = np.asarray([[1.0, -1.0, 5.0], [9.0, 11.5, 30.0]]).reshape(2, 3, 1, 1, 1)
    images = np.asarray([0.4, 8.0]).reshape(2, 1, 1, 1)
    # 0 lies 0.4 off, 1.0 lies 0.6 off; 9.0 lies nearer to 8 than 10.0 does.
    assert identification.rank_among(images, truth, decoys).tolist() == [1, 2]


def test_a_tie_and_nothing_reconstructed_are_no_success():
    truth = np.zeros((1, 2, 2, 1))
    decoys = np.stack([truth, truth + 1], axis=1)
    rank = identification.rank_among(truth, truth, decoys)
    assert rank.tolist() == [2]
    assert identification.rank_among(truth[:0], truth, decoys).tolist() == [3]


def test_decoys_are_of_the_class_and_no_row_comes_twice():
    pool = np.repeat(np.arange(3), 5)
    rows = identification.choose_decoys(np.asarray([2, 0]), pool, count=4)
    assert np.all(pool[rows] == np.asarray([[2], [0]]))
    assert all(len(set(row)) == 4 for row in rows)


def test_bad_input_is_one_clear_sentence():
    one = np.zeros((1, 2, 2, 1))
    with pytest.raises(ValueError, match=r"give \(m, \*image\)"):
        identification.rank_among(one, one, one)
    with pytest.raises(ValueError, match=r"NaN|finite"):
        identification.rank_among(one, one * np.nan, one[None])
    with pytest.raises(ValueError, match="5 images of class 0: use fewer"):
        identification.choose_decoys(np.zeros(1, int), np.zeros(5, int), count=6)


def test_what_is_certified_tells_digits_from_99_of_their_class():
    loaded = data.load(
        "digits", task="all_classes", num_train=1200, key=jax.random.key(0)
    )
    x, classes = np.asarray(loaded.x_train), loaded.y_train.argmax(1)
    net = MLP((256, 64), 10)
    params = net.init_params(jax.random.key(1), x.shape[1:])

    @jax.jit
    def sent(p, images, labels):
        def loss(p):
            out = net.apply_fn(p, images)
            return optax.softmax_cross_entropy_with_integer_labels(out, labels).mean()

        return jax.grad(loss)(p)

    rows = identification.choose_decoys(classes[:N], classes[2 * N :])
    decoys = x[2 * N :][rows]

    def ranks(first, at):
        chosen = slice(first, first + N)
        gradient = sent(params, jnp.asarray(x[chosen]), jnp.asarray(classes[chosen]))
        found = closed_units.reconstruct_gradient(
            at, gradient, key=jax.random.key(2), image_shape=x.shape[1:]
        )
        sure = np.asarray(found.images)[np.asarray(found.certified)]
        return len(sure), identification.rank_among(sure, x[:N], decoys)

    count, own = ranks(0, params)
    assert count == N
    assert np.all(own == 1)
    _, others = ranks(N, params)  # of other images: no better than chance
    assert np.sum(others == 1) <= 2
    wrong = net.init_params(jax.random.key(3), x.shape[1:])
    assert ranks(0, wrong)[0] == 0
