"""Low-rank adapters of a dense layer (LoRA): its kernel stays, a product is learnt.

Source: Hu et al., ICLR 2022 (arXiv:2106.09685): y = x (W + scale A B), of which W is
frozen, A random and B zero at the start.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks

__all__ = ["Adapter"]


def _wide(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).astype(np.float64)


def _shape(name: str, leaf: Any) -> tuple[int, int]:
    shape = np.shape(leaf)
    if len(shape) != 2:
        raise ValueError(f"{name} has shape {shape}: give a matrix.")
    return shape[0], shape[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """The factors of one dense layer, y = x W + scale (x A) B + bias.

    PyTorch's PEFT keeps the transposes: give `lora_A.weight.T` and `lora_B.weight.T`,
    and scale = lora_alpha / r.

    Attributes:
      a_t: (d, r) after training.
      b_t: (r, m) after it.
      a_0: (d, r) before it; None where neither it nor its seed is known.
      b_0: (r, m) before it; None is zero.
      bias_t: (m,) of the layer, after training; None if it stayed as it was.
      scale: of the product.

    Raises:
      ValueError: shapes that do not fit, or entries that are not finite.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.models.adapter import Adapter
      >>> Adapter(a_t=np.ones((6, 2)), b_t=np.ones((2, 4))).shape
      (6, 4)
    """

    a_t: Float[Array | np.ndarray, "..."]
    b_t: Float[Array | np.ndarray, "..."]
    a_0: Float[Array | np.ndarray, "..."] | None = None
    b_0: Float[Array | np.ndarray, "..."] | None = None
    bias_t: Float[Array | np.ndarray, "..."] | None = None
    scale: _checks.Number = 1.0

    def __post_init__(self):
        _checks.positive(scale=self.scale)
        (d, r), (rows, m) = _shape("a_t", self.a_t), _shape("b_t", self.b_t)
        if r != rows:
            raise ValueError(
                f"a_t has shape {(d, r)}, b_t {(rows, m)}: give (inputs, rank) and "
                "(rank, units); PEFT keeps the transposes of both."
            )
        leaves = {"a_t": (d, r), "b_t": (r, m)}
        leaves |= {"a_0": (d, r), "b_0": (r, m), "bias_t": (m,)}
        for name, shape in leaves.items():
            leaf = getattr(self, name)
            if leaf is None:
                continue
            if np.shape(leaf) != shape:
                raise ValueError(
                    f"{name} has shape {np.shape(leaf)}, the trained factors ask for "
                    f"{shape}: give it of the same layer and rank."
                )
            _checks.finite(**{name: leaf})

    @property
    def rank(self) -> int:
        """Columns of A."""
        return np.shape(self.a_t)[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the kernel that they adapt, (d, m)."""
        return np.shape(self.a_t)[0], np.shape(self.b_t)[1]

    @property
    def roundoff(self) -> float:
        """Unit roundoff of the stored factors."""
        dtypes = (np.asarray(leaf).dtype for leaf in (self.a_t, self.b_t))
        return max(float(jnp.finfo(dtype).eps) for dtype in dtypes) / 2

    @property
    def product(self) -> Float[np.ndarray, "d m"]:
        """What training added to the kernel, in float64, if B began at zero."""
        return self.scale * _wide(self.a_t) @ _wide(self.b_t)

    @property
    def moved_a(self) -> Float[np.ndarray, "d r"] | None:
        """Change of A, in float64; None where its start is not known."""
        return None if self.a_0 is None else _wide(self.a_t) - _wide(self.a_0)

    @property
    def moved_b(self) -> Float[np.ndarray, "r m"]:
        """Change of B, in float64."""
        wide = _wide(self.b_t)
        return wide if self.b_0 is None else wide - _wide(self.b_0)

    def a_at(self, point: float) -> Float[np.ndarray, "d r"]:
        """A at a share of its way, in float64; after training without its start."""
        moved = self.moved_a
        wide = _wide(self.a_t)
        return wide if moved is None else wide - (1 - point) * moved
