"""Where a computation runs, which decides between ways that compute the same."""

import jax

__all__ = ["name"]


def name() -> str:
    """Returns "cpu", "gpu" or "tpu": of the device that is chosen now, if one is.

    `jax.default_backend` is the best device of the machine, whatever `with
    jax.default_device(...)` says.

    It is asked while a program is traced, where arrays do not tell of their device: of
    those that were put on a processor beside an accelerator (`jax.device_put`, a mesh
    of processors), the accelerator's branch is taken. It computes the same there, and
    is slower; `with jax.default_device("cpu")` says what is meant.
    """
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if chosen is None:
        return jax.default_backend()
    if isinstance(chosen, str):
        return {"cuda": "gpu", "rocm": "gpu"}.get(chosen, chosen)
    return chosen.platform
