"""How PyTorch draws linear layers, without PyTorch."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

__all__ = ["TorchLinear"]


@dataclasses.dataclass(frozen=True)
class TorchLinear:
    """PyTorch's own initialisation of `torch.nn.Linear` layers, made in this order.

    After `torch.manual_seed(seed)` on a CPU: uniform in +-1/sqrt(inputs), the weight
    before the bias, from the Mersenne Twister; equal to PyTorch's to rounding. Nothing
    else may have drawn random numbers before, or between them.

    Attributes:
      layers: name of each layer and its (inputs, outputs), as in the state_dict and in
        the order in which they were made.

    Raises:
      ValueError: no layers, or sizes that are no two positive integers.

    Example:
      >>> from ntk_privacy.reconstruction import initialisation
      >>> init = initialisation.TorchLinear({"fc1": (7, 5), "fc2": (5, 2)})
      >>> {name: leaf.shape for name, leaf in init(42).items()}["fc1.weight"]
      (5, 7)
    """

    layers: Mapping[str, tuple[int, int]]

    def __post_init__(self):
        if not isinstance(self.layers, Mapping) or not self.layers:
            raise ValueError(
                f"layers={self.layers!r}: give a dict of name: (inputs, outputs), with "
                "a layer at least."
            )
        for name, sizes in self.layers.items():
            whole = isinstance(sizes, Sequence) and len(sizes) == 2
            if not whole or not all(isinstance(n, int) and n > 0 for n in sizes):
                raise ValueError(
                    f"layers[{name!r}]={sizes!r}: give (inputs, outputs), two integers "
                    "of at least 1."
                )

    def __call__(self, seed: int) -> dict[str, Float[np.ndarray, "..."]]:
        """Returns a state_dict of that seed, as NumPy arrays of float32."""
        draw, found = np.random.RandomState(seed), {}
        for name, (inputs, outputs) in self.layers.items():
            bound = np.float32(1 / np.sqrt(inputs))
            weight = _uniform(draw, inputs * outputs, bound)
            found[f"{name}.weight"] = weight.reshape(outputs, inputs)
            found[f"{name}.bias"] = _uniform(draw, outputs, bound)
        return found

    def order(self) -> list[str]:
        """Returns names of weights and biases, in the order in which they are drawn."""
        return [f"{name}.{leaf}" for name in self.layers for leaf in ("weight", "bias")]

    def first(self, seed: int, count: int) -> Float[np.ndarray, " k"]:
        """Returns the first numbers of all, each up to the scale of its layer."""
        return _uniform(np.random.RandomState(seed), count, np.float32(1))


def _uniform(draw: np.random.RandomState, count: int, bound) -> np.ndarray:
    """As PyTorch does it: 24 bits of every 32 that the generator gives."""
    bits = draw.randint(0, 2**32, size=count, dtype=np.uint32) & np.uint32(2**24 - 1)
    unit = bits.astype(np.float32) * np.float32(2.0**-24)
    return unit * (bound - -bound) - bound
