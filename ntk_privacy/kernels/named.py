"""Kernels by name, one record each: flags, and the kernel that they ask for.

`KERNELS["infinite_mlp"].run(problem, config, key=key).fn` is `(x1, x2=None) -> kernel`.
A record `wants` "training" where the kernel is of a network that can be trained.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

from jaxtyping import Array, Float

from ntk_privacy import _checks
from ntk_privacy._types import KernelFn, Params
from ntk_privacy.kernels import empirical, infinite, infinite_conv, neural_tangents
from ntk_privacy.method import Method, by_name, field
from ntk_privacy.models.mlp import MLP

__all__ = ["BUDGET", "KERNELS", "Kernel", "Network", "Problem", "bytes_of"]

BUDGET = 256.0
"""Working memory of a block unless told, MiB."""


class Problem(NamedTuple):
    """Images that a kernel is wanted of, and the outputs of a network for them.

    Example:
      >>> import jax
      >>> from ntk_privacy.kernels import named
      >>> x, key = jax.random.normal(jax.random.key(0), (3, 4, 4, 1)), jax.random.key(1)
      >>> row = named.KERNELS["infinite_mlp"]
      >>> kernel = row.run(named.Problem(x, 1), row.configured(), key=key)
      >>> kernel.fn(x).shape
      (3, 3)
    """

    images: Float[Array, "n h w d"]
    num_outputs: int


class Network(NamedTuple):
    """A finite network: module, parameters at initialisation, kernel at any others."""

    model: MLP
    params_0: Params
    kernel_at: Callable[[Params], KernelFn]


class Kernel(NamedTuple):
    """`fn(x1, x2=None) -> (n1, n2)`; the network whose it is, None of infinite ones.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.kernels import named
      >>> kernel = named.Kernel(lambda x1, x2=None: x1 @ (x1 if x2 is None else x2).T)
      >>> kernel.fn(jnp.ones((3, 2))).shape, kernel.network is None
      ((3, 3), True)
    """

    fn: KernelFn
    network: Network | None = None


def bytes_of(budget: float) -> int:
    """Returns a budget of MiB in bytes, at least one.

    Args:
      budget: memory, MiB.
    """
    return max(int(budget * 2**20), 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers:
    """Layers of infinite width in the NTK parametrisation.

    Example:
      >>> import jax
      >>> from ntk_privacy.kernels import named
      >>> row, key = named.KERNELS["neural_tangents_mlp"], jax.random.key(0)
      >>> problem = named.Problem(jax.random.normal(key, (3, 4, 4, 1)), 1)
      >>> try:
      ...     kernel = row.run(problem, row.configured(), key=key)
      ...     shape = kernel.fn(problem.images).shape
      ... except ImportError:  # neural-tangents is not installed
      ...     shape = (3, 3)
      >>> shape
      (3, 3)
    """

    depth: int = field(2, "Hidden layers.")
    activation: Literal["relu", "erf", "gelu"] = field("relu", "Of hidden layers.")
    weight_std: float = field(1.0, "Standard deviation of weights, times root fan-in.")
    bias_std: float = field(0.0, "Standard deviation of biases.")

    def __post_init__(self):
        _checks.at_least(1, depth=self.depth)
        _checks.at_least(0, weight_std=self.weight_std, bias_std=self.bias_std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Infinite(Layers):
    """Layers of infinite width in either parametrisation.

    Example:
      >>> import jax
      >>> from ntk_privacy.kernels.named import KERNELS, Problem
      >>> problem = Problem(jax.random.normal(jax.random.key(0), (3, 4, 4, 1)), 1)
      >>> row = KERNELS["infinite_mlp"]
      >>> kernel = row.run(problem, row.configured(depth=1), key=jax.random.key(1))
      >>> kernel.fn(problem.images).shape
      (3, 3)
    """

    parametrization: Literal["ntk", "standard"] = field("ntk", "Of the network.")
    width: int = field(1024, "Units of a hidden layer, where they count.")

    def __post_init__(self):
        super().__post_init__()
        _checks.at_least(1, width=self.width)

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        return {} if self.parametrization == "standard" else {"width": _NTK}


_NTK = "--parametrization=ntk"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfiniteConv(Infinite):
    """Convolutions of infinite width.

    Example:
      >>> import jax
      >>> from ntk_privacy.kernels.named import KERNELS, Problem
      >>> problem = Problem(jax.random.normal(jax.random.key(0), (3, 4, 4, 1)), 1)
      >>> row = KERNELS["infinite_convnet"]
      >>> kernel = row.run(problem, row.configured(depth=1), key=jax.random.key(1))
      >>> kernel.fn(problem.images).shape
      (3, 3)
    """

    head: Literal["flatten", "global_pool"] = field("flatten", "After the last block.")
    pooling: Literal["none", "avg"] = field("none", "After each block.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Empirical:
    """A network of some width, with Flax's initialisation and ReLU.

    Example:
      >>> import jax
      >>> from ntk_privacy.kernels.named import KERNELS, Problem
      >>> problem = Problem(jax.random.normal(jax.random.key(0), (3, 4, 4, 1)), 1)
      >>> row = KERNELS["empirical_mlp"]
      >>> kernel = row.run(problem, row.configured(width=8), key=jax.random.key(1))
      >>> kernel.fn(problem.images).shape
      (3, 3)
    """

    depth: int = field(2, "Hidden layers.")
    parametrization: Literal["standard", "ntk"] = field("standard", "Of the network.")
    width: int = field(1024, "Units of every hidden layer.")
    budget: float = field(BUDGET, "Working memory of a block, MiB.")

    def __post_init__(self):
        _checks.at_least(1, depth=self.depth, width=self.width)
        _checks.positive(budget=self.budget)


def _infinite_options(config: Infinite) -> dict:
    options = dataclasses.asdict(config)
    if config.parametrization == "ntk":
        options["width"] = None
    return options


def _infinite_mlp(problem: Problem, config: Infinite, *, key: Array) -> Kernel:
    del problem, key
    return Kernel(infinite.mlp(**_infinite_options(config)))


def _infinite_convnet(problem: Problem, config: InfiniteConv, *, key: Array) -> Kernel:
    del problem, key
    return Kernel(infinite_conv.convnet(**_infinite_options(config)))


def _empirical_mlp(problem: Problem, config: Empirical, *, key: Array) -> Kernel:
    """Raises ValueError where the budget is below one block of one image by one."""
    x, budget = problem.images, bytes_of(config.budget)
    model = MLP(
        widths=(config.width,) * config.depth,
        num_outputs=problem.num_outputs,
        parametrization=config.parametrization,
    )
    params_0 = model.init_params(key, x.shape[1:], x.dtype)
    try:
        empirical.plan(model.apply_fn, params_0, x, memory_budget=budget)
    except ValueError as error:
        raise ValueError(f"budget={budget / 2**20:.3g} MiB: {error}") from error

    def kernel_at(params):
        def fn(x1, x2=None):
            return empirical.ntk(model.apply_fn, params, x1, x2, memory_budget=budget)

        return fn

    return Kernel(kernel_at(params_0), Network(model, params_0, kernel_at))


def _neural_tangents_mlp(problem: Problem, config: Layers, *, key: Array) -> Kernel:
    """Raises ImportError where neural-tangents is not installed."""
    del problem, key
    stax = neural_tangents.load().stax
    dense = stax.Dense(1, W_std=config.weight_std, b_std=config.bias_std)
    activation = {"relu": stax.Relu, "erf": stax.Erf, "gelu": stax.Gelu}
    layers = [dense, activation[config.activation]()] * config.depth
    return Kernel(
        neural_tangents.as_kernel_fn(stax.serial(stax.Flatten(), *layers, dense)[2])
    )


def _kernel(name: str, about: str, config: type, run: Callable, *wants: str) -> Method:
    return Method(name, about, config, {"default": config}, run, wants=wants)


KERNELS = by_name(
    _kernel(
        "infinite_mlp",
        "Of fully connected layers, in closed form (Jacot et al., NeurIPS 2018).",
        Infinite,
        _infinite_mlp,
    ),
    _kernel(
        "infinite_convnet",
        "Of convolutions, in closed form (Arora et al., NeurIPS 2019).",
        InfiniteConv,
        _infinite_convnet,
    ),
    _kernel(
        "empirical_mlp",
        "Of a network at its initialisation, which may be trained.",
        Empirical,
        _empirical_mlp,
        "training",
    ),
    _kernel(
        "neural_tangents_mlp",
        "Of fully connected layers, by neural-tangents (Novak et al., ICLR 2020).",
        Layers,
        _neural_tangents_mlp,
    ),
)
"""One row a kernel; `run(problem, config, *, key) -> Kernel`."""
