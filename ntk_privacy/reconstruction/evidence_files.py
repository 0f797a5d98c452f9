"""One door for parameters: files or objects, as evidence of an MLP."""

import pathlib
import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction import evidence
from ntk_privacy.reconstruction.evidence import Evidence


class FromFile(NamedTuple):
    """evidence: of the network. notes: what was inferred, in sentences."""

    evidence: Evidence
    notes: tuple[str, ...] = ()


def _number(name: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", name))


def _params(given: Any) -> dict[str, Any]:
    if isinstance(given, dict):
        arrays = given
    elif not pathlib.Path(given).exists():
        raise FileNotFoundError(f"{given} is missing: name a file of weights.")
    else:
        path = pathlib.Path(given)
        arrays = load_file(path) if path.suffix == ".safetensors" else np.load(path)
    if "Dense_0" in arrays:
        return arrays
    found: dict[str, Any] = {}
    for name in sorted({n.rsplit(".", 1)[0] for n in arrays}, key=_number):
        layer = found.setdefault(f"Dense_{len(found)}", {})
        if f"{name}.weight" in arrays:
            layer["kernel"] = jnp.asarray(np.asarray(arrays[f"{name}.weight"]).T)
        else:
            layer["kernel"] = jnp.asarray(arrays[f"{name}.kernel"])
        layer["bias"] = jnp.asarray(arrays[f"{name}.bias"])
    return found


def from_file(
    after: Any = None,
    *,
    before: Any = None,
    gradient: Any = None,
    adapter: Any = None,
    network: Any = None,
    image_shape: tuple[int, int, int] | None = None,
    bounds: tuple[Any, Any] | None = None,
    **told: Any,
) -> FromFile:
    """Stand-in."""
    del adapter
    params = [None if g is None else _params(g) for g in (before, after, gradient)]
    params_0, params_t, sent = params
    one = params_t if params_0 is None else params_0
    assert one is not None
    sizes = [leaf["kernel"].shape for leaf in one.values()]
    net = network or MLP(tuple(s[1] for s in sizes[:-1]), num_outputs=sizes[-1][1])
    if image_shape is None:
        side = round(sizes[0][0] ** 0.5)
        if side * side != sizes[0][0]:
            raise ValueError(f"{sizes[0][0]} inputs: tell image_shape.")
        image_shape = (side, side, 1)
    about = {"image_shape": image_shape, "bounds": bounds, **told}
    if sent is not None:
        return FromFile(evidence.of_gradient(net, params_0, sent, **about))
    return FromFile(
        Evidence(network=net, params_0=params_0, params_t=params_t, **about)
    )
