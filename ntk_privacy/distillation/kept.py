"""A distilled set as arrays, for a file, and back: to judge it later."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from ntk_privacy.distillation.search import Distilled, Kept

__all__ = ["arrays", "of_arrays"]


def arrays(made: Distilled) -> dict[str, np.ndarray]:
    """Returns what is kept of a set: images, labels, noise and step size if any.

    Args:
      made: of any method; losses, and what it would resume from, are left out.
    """
    found = {"images": made.images, "labels": made.labels, "noise": made.noise}
    found["step_size"] = getattr(made.state, "step_size", None)
    return {k: np.asarray(v) for k, v in found.items() if v is not None}


def of_arrays(stored: Mapping[str, np.ndarray]) -> Distilled:
    """Returns the set that arrays are of; its losses too, where they are kept.

    Args:
      stored: of `arrays`, and losses.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.distillation import kept
      >>> stored = {"images": np.zeros((2, 4, 4, 1)), "labels": np.arange(2)}
      >>> made = kept.of_arrays(stored)
      >>> made.images.shape, made.noise, sorted(kept.arrays(made))
      ((2, 4, 4, 1), None, ['images', 'labels'])
    """
    return Distilled(
        images=jnp.asarray(stored["images"]),
        labels=jnp.asarray(stored["labels"]),
        losses=stored.get("losses", np.zeros(0)),
        state=Kept(stored.get("noise"), stored.get("step_size")),
        nonfinite=jnp.asarray(False),
    )
