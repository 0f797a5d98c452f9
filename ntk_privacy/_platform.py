"""Where a computation runs, which decides between ways that compute the same."""

import jax

__all__ = ["name"]


def name() -> str:
    """Returns "cpu", "gpu" or "tpu": of the device that is chosen now, if one is.

    `jax.default_backend` is the best device of the machine, whatever `with
    jax.default_device(...)` says.
    """
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if chosen is None:
        return jax.default_backend()
    if isinstance(chosen, str):
        return {"cuda": "gpu", "rocm": "gpu"}.get(chosen, chosen)
    return chosen.platform
