"""Interop with neural-tangents: its kernels here, and ours there, on current JAX.

neural-tangents 0.6.5 (Novak et al., ICLR 2020; arXiv:2206.08720) is its last release
and imports on no JAX from 0.6 on. `load` imports it through a small layer: names that
JAX moved are set only while it is imported, and what changed meaning is replaced in
neural-tangents' own modules. Nothing else in this package needs it.
"""

# Names of foreign modules are set here, which no stub of them declares.
# pyright: reportAttributeAccessIssue=false

import contextlib
import functools
import importlib
import importlib.metadata
import math
import re
import sys
import types
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.core
import jax.extend as jex
import jax.extend.linear_util
import jax.extend.source_info_util
import numpy as np
from jax.interpreters import ad
from jaxtyping import Array, Float

from ntk_privacy import _checks
from ntk_privacy._types import KernelFn
from ntk_privacy.kernels import blockwise

__all__ = ["as_kernel_fn", "as_neural_tangents", "load"]

INSTALL = "pip install frozendict && pip install --no-deps neural-tangents==0.6.5"
_TESTED_VERSION = "0.6.5"
_TESTED_JAX = ((0, 7), (0, 12))


@functools.cache
def load() -> types.ModuleType:
    """Returns the module neural_tangents, imported without TensorFlow.

    `neural_tangents.experimental` is empty: it alone needs TensorFlow. Once loaded,
    `import neural_tangents` gives the same module.

    Raises:
      ImportError: neural-tangents or frozendict is not installed.

    Warns:
      UserWarning: a version of neural-tangents or JAX that the layer is not tested on.

    Example:
      >>> from ntk_privacy.kernels import neural_tangents
      >>> try:
      ...     told = neural_tangents.load().__name__
      ... except ImportError:  # which says how to install it
      ...     told = "neural_tangents"
      >>> told
      'neural_tangents'
    """
    loaded = sys.modules.get("neural_tangents")
    if loaded is not None:
        return loaded
    try:
        version = importlib.metadata.version("neural-tangents")
        importlib.import_module("frozendict")
    except ImportError as error:
        raise ImportError(
            f"neural-tangents is not installed ({error}): run `{INSTALL}`, which "
            "leaves TensorFlow out."
        ) from error
    jax_version = tuple(int(part) for part in re.findall(r"\d+", jax.__version__)[:2])
    if (
        version != _TESTED_VERSION
        or not _TESTED_JAX[0] <= jax_version <= _TESTED_JAX[1]
    ):
        low, high = (".".join(map(str, v)) for v in _TESTED_JAX)
        warnings.warn(
            f"neural-tangents {version} on jax {jax.__version__}: the layer is tested "
            f"with {_TESTED_VERSION} on jax {low} to {high}; compare a known kernel.",
            stacklevel=2,
        )
    with _names_that_moved(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module("neural_tangents")
    _repair_empirical(sys.modules["neural_tangents._src.empirical"])
    _repair_predict(sys.modules["neural_tangents._src.predict"])
    return module


def as_kernel_fn(
    nt_kernel_fn: Callable, *, get: Literal["ntk", "nngp"] = "ntk"
) -> KernelFn:
    """Returns `(x1, x2=None) -> (n1, n2)` from a kernel_fn of neural-tangents.

    Args:
      nt_kernel_fn: `(x1, x2, get)`, such as the third output of `stax.serial`; it says
        what image shapes it takes.
      get: which of its kernels.

    It runs with JAX's standard promotion rules, which neural-tangents relies on.

    Raises:
      ValueError: another `get`.
    """
    _checks.one_of(("ntk", "nngp"), get=get)

    def kernel_fn(
        x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."] | None = None
    ) -> Float[Array, "n1 n2"]:
        with lenient():
            return nt_kernel_fn(x1, x2, get)

    return kernel_fn


def as_neural_tangents(
    *, ntk: KernelFn | None = None, nngp: KernelFn | None = None
) -> Callable:
    """Returns `(x1, x2=None, get=None)` as neural-tangents' functions take a kernel.

    Args:
      ntk: kernel of this package, `(x1, x2)`, for get="ntk".
      nngp: the same for get="nngp".

    A tuple `get` gives a named tuple in its order; None gives all there are.

    Raises:
      ValueError: neither is given; the result does, for a `get` that is not there.
    """
    given = {"nngp": nngp, "ntk": ntk}
    kernels = {name: fn for name, fn in given.items() if fn is not None}
    if not kernels:
        raise ValueError("ntk=None and nngp=None: give at least one kernel.")

    def kernel_fn(x1, x2=None, get: str | Sequence[str] | None = None, **_):
        names = tuple(kernels) if get is None else get
        for name in [names] if isinstance(names, str) else names:
            _checks.one_of(kernels, get=name)
        if isinstance(names, str):
            if x2 is None:
                return blockwise.self_kernel(kernels[names], x1)
            return kernels[names](x1, x2)
        values = [kernel_fn(x1, x2, name) for name in names]
        return namedtuple("AnalyticKernel", names)(*values)

    return kernel_fn


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """Lets ranks and dtypes promote as neural-tangents expects."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@contextlib.contextmanager
def _names_that_moved() -> Iterator[None]:
    """Sets the names that neural-tangents imports, and takes them back."""
    util = types.ModuleType("jax.util")
    util.safe_map, util.safe_zip = _safe_map, _safe_zip
    experimental = types.ModuleType("neural_tangents.experimental")
    core = jax.core
    names = ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")
    wanted = [(core, name, getattr(jex.core, name)) for name in names]
    wanted.append((ad, "zeros_like_p", jex.core.Primitive("zeros_like")))
    old_util = sys.modules.get("jax.util")
    # What a module has keeps its meaning: older JAX has some of these names.
    before = [(m, name) for m, name, _ in wanted if name not in vars(m)]
    try:
        sys.modules["jax.util"] = util
        sys.modules["neural_tangents.experimental"] = experimental
        for module, name, value in wanted:
            if (module, name) in before:
                setattr(module, name, value)
        yield
    finally:
        for module, name in before:
            delattr(module, name)
        if old_util is None:
            del sys.modules["jax.util"]
        else:
            sys.modules["jax.util"] = old_util


def _safe_zip(*sequences):
    return list(zip(*map(list, sequences), strict=True))


def _safe_map(fn, *sequences):
    return [fn(*arguments) for arguments in _safe_zip(*sequences)]


class _Proxy(types.ModuleType):
    """A module with some names replaced; the module itself stays as it is."""

    def __init__(self, module: Any, **replaced: Any):
        super().__init__(f"proxy of {module.__name__}")
        self.__dict__.update(replaced, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)


def _repair_empirical(empirical: types.ModuleType) -> None:
    empirical.ad = _Proxy(
        ad,
        linearize=_linearize,
        source_info_util=jex.source_info_util,
        config=types.SimpleNamespace(jax_enable_checks=False),
    )
    empirical.core = _Proxy(
        jax.core, Var=jex.core.Var, DShapedArray=type("DShapedArray", (), {})
    )
    # Two calls that current JAX warns it will refuse.
    empirical.lu = _Proxy(empirical.lu, wrap_init=_wrap_init)
    empirical.jnp = _Proxy(empirical.jnp, size=_size)
    empirical._get_flops = _get_flops
    empirical._eqn_vjp_fn = _transpose_equation


class _Unknown:
    """The partial value of an output that depends on the inputs."""

    def is_known(self) -> bool:
        return False


def _linearize(fn, *primals, has_aux: bool = False):
    """As JAX's internal function once did: (outputs, partial values, jaxpr, consts)."""
    del has_aux
    outputs, linear = jax.linearize(fn.call_wrapped, *primals)
    closed = jax.make_jaxpr(linear)(*primals)
    return outputs, [_Unknown() for _ in outputs], closed.jaxpr, closed.consts


def _wrap_init(fn: Callable):
    info = jax.api_util.debug_info("neural_tangents", fn, (), {})
    return jex.linear_util.wrap_init(fn, debug_info=info)


def _size(x: Any) -> int:
    return math.prod(x.shape)


def _get_flops(fn: Callable, optimize: bool, *args, **kwargs) -> float:
    lowered = jax.jit(fn).lower(*args, **kwargs)
    analysis: Any = (lowered.compile() if optimize else lowered).cost_analysis()
    return (analysis if isinstance(analysis, dict) else analysis[0])["flops"]


def _transpose_equation(eqn, cotangents, *inputs):
    """Pulls cotangents of one linear equation back to its undefined inputs."""
    if eqn is None:  # the identity
        return (cotangents,)
    rule = ad.primitive_transposes.get(eqn.primitive)
    if rule is not None and not eqn.primitive.call_primitive:
        return rule(cotangents, *inputs, **eqn.params)
    bound = eqn.primitive.get_bind_params(dict(eqn.params))
    # (functions, params) up to some version of JAX, params alone since.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    outs = cotangents if eqn.primitive.multiple_results else [cotangents]
    linear = [i for i, x in enumerate(inputs) if ad.is_undefined_primal(x)]
    if all(type(ct) is ad.Zero for ct in outs):
        return [ad.Zero(x.aval) if i in linear else None for i, x in enumerate(inputs)]

    def apply(*arguments):
        full = list(inputs)
        for i, argument in zip(linear, arguments, strict=True):
            full[i] = argument
        return eqn.primitive.bind(*functions, *full, **params)

    avals = [inputs[i].aval for i in linear]
    outs = [ad.instantiate_zeros(ct) for ct in outs]
    transpose = jax.linear_transpose(apply, *avals)
    pulled = transpose(outs if eqn.primitive.multiple_results else outs[0])
    result: list[Any] = [None] * len(inputs)
    for i, ct in zip(linear, pulled, strict=True):
        result[i] = ct
    return result


def _repair_predict(predict: types.ModuleType) -> None:
    # _cached enters the context itself, when there is no tracer to keep out.
    core = _Proxy(jax.core, eval_context=contextlib.nullcontext)
    predict.jax = _Proxy(jax, core=core)
    predict.lru_cache = _cached
    linalg = predict.sp.linalg
    linalg = _Proxy(linalg, eigvalsh=functools.partial(_eigvalsh, linalg.eigvalsh))
    predict.sp = _Proxy(predict.sp, linalg=linalg)


def _cached(size: int) -> Callable:
    """As functools.lru_cache, but runs a function that closes over tracers afresh."""

    def decorate(fn: Callable) -> Callable:
        @functools.lru_cache(size)
        def cached(*args):
            with jax.core.eval_context():
                return fn(*args)

        @functools.wraps(fn)
        def call(*args):
            closed_over = [c.cell_contents for c in fn.__closure__ or () if _filled(c)]
            leaves = jax.tree.leaves(closed_over)
            traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
            return (fn if traced else cached)(*args)

        return call

    return decorate


def _filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _eigvalsh(eigvalsh: Callable, a, eigvals=None, **kwargs) -> np.ndarray:
    if eigvals is not None:
        kwargs["subset_by_index"] = eigvals
    return eigvalsh(a, **kwargs)
