"""Losses against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from ntk_privacy.evasion import losses

LOGITS = jnp.asarray([[4.0, 1.0, 3.0, 0.0, -1.0], [0.0, 2.0, 8.0, 4.0, 1.0]])
Y = jnp.asarray([0, 3])
T = jnp.asarray([1, 1])


def test_margin_and_ratios_by_hand():
    np.testing.assert_allclose(losses.margin(LOGITS, Y), [1.0, -4.0])
    # Sorted: 4 3 1 0 -1 and 8 4 2 1 0.
    np.testing.assert_allclose(losses.dlr(LOGITS, Y, T), [-1 / 3, 4 / 6])
    np.testing.assert_allclose(
        losses.targeted_dlr(LOGITS, Y, T), [-3 / 3.5, -2 / 6.5], rtol=1e-12
    )
    np.testing.assert_allclose(
        losses.cross_entropy(LOGITS, Y, T),
        -jax.nn.log_softmax(LOGITS)[jnp.arange(2), Y],
    )
    np.testing.assert_array_equal(losses.misread(LOGITS, Y), [False, True])


def test_a_sure_answer_has_a_loss_of_full_precision():
    logits = jnp.asarray([[1000.0, 990.0, 0.0]], jnp.float32)
    loss = losses.cross_entropy(logits, jnp.asarray([0]), jnp.asarray([1]))
    np.testing.assert_allclose(loss, np.log1p(np.exp(-10)), rtol=2e-3)


def test_ratios_do_not_see_the_scale_of_logits():
    for loss in (losses.dlr, losses.targeted_dlr):
        np.testing.assert_allclose(
            loss(1e-3 * LOGITS, Y, T), loss(1e3 * LOGITS, Y, T), rtol=1e-8
        )


def test_nan_is_no_class():
    logits = LOGITS.at[:, 0].set(jnp.nan)
    np.testing.assert_array_equal(losses.misread(logits, Y), [True, True])
