"""Takes one gradient over 16 pictures, as a client of federated learning shares it.

    python -m examples.make_gradient runs/gradient

The folder gets the pictures, `before.safetensors` (the weights that all clients have)
and `gradient.safetensors` (what one of them sends).
"""

import pathlib
import sys

import jax
import optax
from safetensors.numpy import save_file

from examples import make_images
from examples.make_flax_mlp import Net, named


def main(folder: str) -> None:
    """Makes pictures, and the gradient."""
    images, classes = make_images.make(folder)
    net = Net()
    params = net.init(jax.random.key(0), images)["params"]

    def loss(params):
        logits = net.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()

    gradient = jax.grad(loss)(params)
    for name, saved in (("before", params), ("gradient", gradient)):
        save_file(
            {k: jax.device_get(v) for k, v in named(saved).items()},
            pathlib.Path(folder, f"{name}.safetensors"),
        )
    print(f"before and gradient are in {folder}")


if __name__ == "__main__":
    main(sys.argv[1])
