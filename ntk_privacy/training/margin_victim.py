"""The network that the max-margin attack is tried on: logistic, from a tiny layer.

Source: Haim et al., NeurIPS 2022 (arXiv:2206.07758), see `training.logistic`.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks
from ntk_privacy._types import AtMost
from ntk_privacy.resume import Stage, straight
from ntk_privacy.training import logistic
from ntk_privacy.training.victim import Victim

__all__ = ["STOP_LOSS", "train"]

STOP_LOSS = 1e-3
"""Mean logistic loss at which training ends by default; published runs do not stop."""


def train(
    x_train: Float[Array | np.ndarray, "n h w d"],
    y_train: Float[Array | np.ndarray, "n 1"],
    *,
    key: Array,
    width: int = 1000,
    stop_loss: float = STOP_LOSS,
    max_steps: int = 1_000_000,
    dtype: Any = None,
    stage: Stage = straight,
) -> Victim:
    """Trains the published network on images less their mean image.

    Args:
      x_train: images; a mean per channel may be subtracted from them already. The
        network takes what `logistic.preprocess` makes of them.
      y_train: labels, 0/1 or -1/+1.
      key: typed key of the initial weights.
      width: units of both hidden layers.
      stop_loss: mean logistic loss at which training ends; 0 trains for all epochs.
      max_steps: epochs at most.
      dtype: of everything; None is that of the images. The paper works in float64.
      stage: runs the training, as "train".

    Raises:
      ValueError: see `logistic.train`.

    Example:
      >>> import jax
      >>> from ntk_privacy import data
      >>> from ntk_privacy.training import margin_victim
      >>> key = jax.random.key(0)
      >>> digits = data.load("digits", num_train=4, key=key)
      >>> victim = margin_victim.train(
      ...     digits.x_train, digits.y_train, width=16, max_steps=50, key=key
      ... )
      >>> victim.steps
      50
    """
    _checks.typed_key(key=key)
    _checks.at_least(1, width=width, max_steps=max_steps)
    x, centre = logistic.preprocess(x_train)
    model = logistic.network(width)
    dtype = jnp.dtype(x.dtype if dtype is None else dtype)
    params_0 = logistic.init_params(model, key, x.shape[1:], dtype=dtype)

    def go(state, done, callback):
        del done  # the state knows
        return logistic.train(
            model,
            params_0,
            x,
            y_train,
            max_epochs=max_steps,
            stop_loss=stop_loss,
            chunk=500,
            state=state,
            callback=callback,
        )

    start = logistic.init(model, params_0, x, y_train)
    trained = stage("train", start, go, AtMost(max_steps)).result
    return Victim(
        model=model,
        params_0=params_0,
        params_t=trained.params,
        image_shape=tuple(x.shape[1:]),
        dynamics="standard",
        duals=None,
        loss=trained.loss,
        steps=trained.epochs,
        centre=centre,
        is_logistic=True,
    )
