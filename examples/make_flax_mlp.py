"""Trains a Flax MLP on 16 pictures by plain SGD, and saves it before and after.

    python -m examples.make_flax_mlp runs/flax

The folder gets the pictures, `before.safetensors` and `after.safetensors`.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from examples import make_images


class Net(nn.Module):
    """Two hidden layers of 256 units."""

    @nn.compact
    def __call__(self, x):
        """Returns a logit per class."""
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(256)(x))
        return nn.Dense(len(make_images.CLASSES))(x)


def named(params):
    """Returns arrays by names such as "Dense_0.kernel"."""
    return {name: jnp.asarray(a) for name, a in flatten_dict(params, sep=".").items()}


def main(folder: str) -> None:
    """Makes pictures, trains and saves."""
    images, classes = make_images.make(folder)
    net, optimizer = Net(), optax.sgd(0.1)
    before = params = net.init(jax.random.key(0), images)["params"]

    def loss(params):
        logits = net.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    for _ in range(300):
        params, state, value = step(params, state)
    for name, saved in (("before", before), ("after", params)):
        save_file(
            {k: jax.device_get(v) for k, v in named(saved).items()},
            pathlib.Path(folder, f"{name}.safetensors"),
        )
    print(f"loss {float(value):.4f}; before and after are in {folder}")


if __name__ == "__main__":
    main(sys.argv[1])
