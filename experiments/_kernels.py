"""The kernels that `experiments.kernel` computes, and the training of finite ones."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _progress
from experiments._flags import UsageError
from experiments._progress import Progress
from experiments._workdir import Workdir
from ntk_privacy import sharding
from ntk_privacy.evaluation.kernel_distance import kernel_distance
from ntk_privacy.kernels import (
    blockwise,
    empirical,
    infinite,
    infinite_conv,
    neural_tangents,
)
from ntk_privacy.models import MLP
from ntk_privacy.resume import Timer
from ntk_privacy.training import train

DEFAULT_BUDGET = 256.0  # MiB
CHUNK = 10  # training steps between looks at the loss
_MAX_SNAPSHOTS = 64


class Network(NamedTuple):
    """A finite network: the module and its parameters at initialisation."""

    model: MLP
    params_0: Any


def network(config: Any, key_init: jax.Array, x: jax.Array, num_outputs: int):
    """Returns the finite network of the config, None if its kernel has none."""
    if config.kernel != "empirical_mlp":
        return None
    model = MLP(
        widths=(config.width,) * config.depth,
        num_outputs=num_outputs,
        parametrization=config.parametrization or "standard",
    )
    return Network(model, model.init_params(key_init, x.shape[1:], x.dtype))


def kernel_fn(config: Any, net: Network | None) -> Callable:
    """Returns the `(x1, x2=None) -> (n1, n2)` that the config asks for.

    Raises:
      UsageError: the kernel needs neural-tangents, which is not installed.
    """
    if net is not None:
        return of_params(config, net, net.params_0)
    parametrization = config.parametrization or "ntk"
    options = {
        "weight_std": config.weight_std,
        "bias_std": config.bias_std,
        "activation": config.activation,
        "parametrization": parametrization,
        "width": config.width if parametrization == "standard" else None,
    }
    if config.kernel == "infinite_mlp":
        return infinite.mlp(config.depth, **options)
    if config.kernel == "infinite_convnet":
        return infinite_conv.convnet(
            config.depth, pooling=config.pooling, head=config.head, **options
        )
    return _of_neural_tangents(config)


def of_params(config: Any, net: Network, params: Any) -> Callable:
    """Returns the empirical kernel of the network at `params`."""
    budget = memory_budget(config)

    def fn(x1, x2=None):
        return empirical.ntk(net.model.apply_fn, params, x1, x2, memory_budget=budget)

    return fn


def memory_budget(config: Any) -> int:
    """Returns the budget in bytes."""
    budget = DEFAULT_BUDGET if config.budget is None else config.budget
    return max(int(budget * 2**20), 1)


def check_budget(config: Any, net: Network | None, fn: Callable, x: jax.Array) -> None:
    """Raises UsageError if the budget is below one block of one image by one."""
    if net is not None:
        try:
            empirical.plan(
                net.model.apply_fn, net.params_0, x, memory_budget=memory_budget(config)
            )
        except ValueError as error:
            budget = memory_budget(config) / 2**20
            raise UsageError(f"budget={budget:.3g} MiB: {error}") from error
    if config.stream:
        block_size(fn, x[:1], memory_budget(config))


def _of_neural_tangents(config: Any) -> Callable:
    try:
        stax = neural_tangents.load().stax
    except ImportError as error:
        raise UsageError(f"kernel={config.kernel}: {error}") from error
    dense = stax.Dense(1, W_std=config.weight_std, b_std=config.bias_std)
    activation = {"relu": stax.Relu, "erf": stax.Erf, "gelu": stax.Gelu}
    layers = [dense, activation[config.activation]()] * config.depth
    layers = stax.serial(stax.Flatten(), *layers, dense)
    return neural_tangents.as_kernel_fn(layers[2])


def block_size(fn: Callable, x: jax.Array, budget: int) -> int:
    """Returns how many images on either side of a block fit into `budget` bytes.

    Asked of the compiled program: arguments, block and working memory.

    Raises:
      UsageError: not even one image by one fits.
    """
    size = min(len(x), max(math.isqrt(budget // (4 * x.dtype.itemsize)), 1))
    while True:
        block = jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)
        memory: Any = jax.jit(fn).lower(block, block).compile().memory_analysis()
        needed = (
            memory.temp_size_in_bytes
            + memory.argument_size_in_bytes
            + memory.output_size_in_bytes
        )
        if needed <= budget:
            return size
        if size == 1:
            raise UsageError(
                f"budget={budget / 2**20:.3g} MiB is smaller than one block of one "
                f"image by one, {needed / 2**20:.3g} MiB: give at least that."
            )
        # A little less than memory in proportion to entries would say.
        size = max(min(int(0.9 * size * math.sqrt(budget / needed)), size - 1), 1)


def stream(
    config: Any, workdir: Workdir, fn: Callable, x: jax.Array, timer: Timer
) -> np.memmap:
    """Writes kernel.npy block by block; killed and called again, it goes on.

    Raises:
      UsageError: the budget is too small.
    """
    with timer():
        size = block_size(fn, x, memory_budget(config))
        count = -(-len(x) // size)
        mesh = sharding.row_mesh() if jax.device_count() > 1 else None
        with Progress(
            count * (count + 1) // 2, description="blocks", show=config.progress
        ) as bar:
            return blockwise.stream(
                fn,
                x,
                None,
                workdir.path("kernel.npy"),
                block_size=size,
                mesh=mesh,
                callback=bar,
            )


class Moved(NamedTuple):
    """The kernel during training.

    steps, losses, distances: at each look; the first is before training.
    kernel_t: after training. converged: the loss fell below `stop_loss`.
    """

    steps: np.ndarray
    losses: np.ndarray
    distances: np.ndarray
    kernel_t: np.ndarray
    converged: bool


def train_and_look(
    config: Any,
    workdir: Workdir,
    net: Network,
    kernel_0: jax.Array,
    x: jax.Array,
    y: jax.Array,
    timer: Timer,
) -> Moved:
    """Trains, and measures the kernel after 10, 20, 40, ... steps and at the end.

    Killed and called again it goes on to the same numbers.

    Args:
      config: of `experiments.kernel`.
      workdir: keeps the checkpoints.
      net: the network.
      kernel_0: its kernel at initialisation.
      x: images.
      y: targets.
      timer: of the training and the kernels.
    """
    apply_fn = net.model.apply_fn
    square = _square(apply_fn, net.params_0, x)
    optimizer = train.stable_optimizer(float(jnp.linalg.eigvalsh(square)[-1]), y.size)
    state = train.init(apply_fn, net.params_0, x, y, optimizer=optimizer)
    looks = {
        "rows": np.zeros((_MAX_SNAPSHOTS, 3)),
        "count": np.zeros((), np.int64),
    }
    looks["rows"][0] = (0, float(state.loss), 0.0)
    looks["count"] += 1

    def kernel_at(params):
        return of_params(config, net, params)(x)

    def go(start, done, callback):
        del done  # the state knows
        looks = jax.tree.map(np.array, start["looks"])

        def look(steps, state, metrics):
            if steps >= CHUNK * 2 ** (int(looks["count"]) - 1):
                distance = float(kernel_distance(kernel_0, kernel_at(state.params)))
                looks["rows"][looks["count"]] = (steps, float(state.loss), distance)
                looks["count"] += 1
            return callback(steps, {"state": state, "looks": looks}, metrics)

        trained = train.full_batch(
            apply_fn,
            net.params_0,
            x,
            y,
            optimizer=optimizer,
            max_steps=config.max_train_steps,
            stop_loss=config.stop_loss,
            chunk=CHUNK,
            state=start["state"],
            callback=look,
        )
        return trained, kernel_at(trained.params), looks

    stage = _progress.stage(config, workdir.checkpoint_folder, timer)
    start = {"state": state, "looks": looks}
    ran = stage("train", start, go, config.max_train_steps)
    trained, kernel_t, looks = ran.result
    kernel_t = np.asarray(kernel_t)
    rows = looks["rows"][: int(looks["count"])]
    if rows[-1, 0] < trained.steps:
        last = float(kernel_distance(kernel_0, jnp.asarray(kernel_t)))
        rows = np.vstack([rows, (trained.steps, trained.loss, last)])
    return Moved(
        steps=rows[:, 0].astype(np.int64),
        losses=rows[:, 1],
        distances=rows[:, 2],
        kernel_t=kernel_t,
        converged=trained.converged,
    )


def _square(apply_fn, params, x):
    """The kernel of all outputs as one matrix."""
    full = empirical.ntk(apply_fn, params, x, trace_outputs=False)
    n, c = full.shape[0], full.shape[2]
    return full.transpose(0, 2, 1, 3).reshape(n * c, n * c)
