"""A traced network as one flat list of equations, and what they cost."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex_core
from jaxtyping import Array

__all__ = ["Equation", "Name", "bind", "flatten", "flops", "read"]

_INLINED = {
    *("pjit", "jit", "closed_call", "core_call", "remat", "remat2", "checkpoint"),
}
Name = int | jex_core.Literal
"""Of a value: a number, or a literal that stands for itself."""


class Equation(NamedTuple):
    """A primitive of JAX with its parameters, and what its values are named."""

    primitive: jex_core.Primitive
    params: dict[str, Any]
    inputs: list[Name]
    outputs: list[int]
    input_shapes: list[tuple[int, ...]]
    output_shapes: list[tuple[int, ...]]
    output_dtype: Any


def read(values: dict[int, Any], name: Name) -> Any:
    """Returns the value of that name.

    Args:
      values: by name.
      name: number of a value, or a literal.
    """
    return values[name] if isinstance(name, int) else name.val


def bind(equation: Equation, inputs: list[Any]) -> Sequence[Any]:
    """Returns the outputs of an equation at `inputs`.

    Args:
      equation: of a traced function.
      inputs: values of its inputs, in order.
    """
    if _is_plain_pooling(equation):
        return [_pooled(inputs[0], equation.params["window_dimensions"])]
    bound = equation.primitive.get_bind_params(dict(equation.params))
    # (functions, params) up to some version of JAX, params alone since.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    out = equation.primitive.bind(*functions, *inputs, **params)
    return out if equation.primitive.multiple_results else [out]


def _is_plain_pooling(e: Equation) -> bool:
    if e.primitive.name != "reduce_window_sum":
        return False
    p = e.params
    return (
        p["window_dimensions"] == p["window_strides"]
        and {*p["base_dilation"], *p["window_dilation"]} == {1}
        and not any(map(any, p["padding"]))
    )


def _pooled(x: Array, window: Sequence[int]) -> Array:
    """Sums windows that do not overlap; its transpose is a mere broadcast."""
    counts = [n // w for n, w in zip(x.shape, window, strict=True)]
    x = x[tuple(slice(m * w) for m, w in zip(counts, window, strict=True))]
    split = [size for pair in zip(counts, window, strict=True) for size in pair]
    return x.reshape(split).sum(tuple(range(1, 2 * x.ndim, 2)))


def flatten(closed, names, count, equations, constants) -> list[Name]:
    """Appends all equations, calls inlined; returns the names of the outputs.

    Args:
      closed: jaxpr with its constants.
      names: of its inputs.
      count: iterator of names that are not taken.
      equations: list that is appended to.
      constants: values by name, which is added to.
    """
    jaxpr = closed.jaxpr
    known: dict[Any, Name] = dict(zip(jaxpr.invars, names, strict=True))
    for var, value in zip(jaxpr.constvars, closed.consts, strict=True):
        known[var] = next(count)
        constants[known[var]] = value

    def name_of(atom) -> Name:
        return atom if isinstance(atom, jex_core.Literal) else known[atom]

    for eqn in jaxpr.eqns:
        inner = eqn.params.get("jaxpr")
        if eqn.primitive.name in _INLINED and inner is not None:
            if not isinstance(inner, jex_core.ClosedJaxpr):
                inner = jex_core.ClosedJaxpr(inner, ())
            inputs = [name_of(atom) for atom in eqn.invars]
            outs = flatten(inner, inputs, count, equations, constants)
            known |= dict(zip(eqn.outvars, outs, strict=True))
            continue
        outputs = [next(count) for _ in eqn.outvars]
        equations.append(
            Equation(
                eqn.primitive,
                eqn.params,
                [name_of(atom) for atom in eqn.invars],
                outputs,
                [getattr(atom.aval, "shape", ()) for atom in eqn.invars],
                [getattr(var.aval, "shape", ()) for var in eqn.outvars],
                getattr(eqn.outvars[0].aval, "dtype", None) if eqn.outvars else None,
            )
        )
        known |= dict(zip(eqn.outvars, outputs, strict=True))
    return [name_of(atom) for atom in jaxpr.outvars]


# Which array of `models.conv_primitive` has the axes that are summed, its second to
# fourth: the kernel, and the images.
_SUMMED = {"convolve_3x3": 1, "convolve_3x3_kernel": 0}


def flops(jaxpr) -> float:
    """Counts multiplications and additions of all equations, from shapes alone.

    Args:
      jaxpr: of a traced function, calls inlined or not.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        size = sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars)
        shapes: list[tuple[int, ...]] = [
            getattr(v.aval, "shape", ()) for v in eqn.invars
        ]
        if eqn.primitive.name == "dot_general":
            contracted = eqn.params["dimension_numbers"][0][0]
            total += 2.0 * size * math.prod(shapes[0][i] for i in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            channels = shapes[1][eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * size * math.prod(shapes[1]) / channels
        elif eqn.primitive.name in _SUMMED:
            total += 2.0 * size * math.prod(shapes[_SUMMED[eqn.primitive.name]][1:4])
        else:
            inner = [flops(j) for j in _inner_jaxprs(eqn)]
            repeats = eqn.params.get("length", 1) if inner else 1
            total += repeats * sum(inner) if inner else size
    return total


def _inner_jaxprs(eqn) -> list[Any]:
    found = []
    for value in jax.tree.leaves(
        list(eqn.params.values()),
        is_leaf=lambda v: isinstance(v, jex_core.Jaxpr | jex_core.ClosedJaxpr),
    ):
        if isinstance(value, jex_core.ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, jex_core.Jaxpr):
            found.append(value)
    return found
