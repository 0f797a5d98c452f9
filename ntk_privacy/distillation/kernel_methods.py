"""KIP and RKIP as methods: flags, the kernel, records.

Sources: Nguyen, Chen & Lee, ICLR 2021 (arXiv:2011.00050); Loo et al., ICLR 2024
(arXiv:2302.01428).
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ntk_privacy import _checks, resume, sharding
from ntk_privacy._types import AtMost, KernelFn
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import kip, rkip, search
from ntk_privacy.distillation.regressed import TaskConfig, images_per_class, targets
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.kernels import conjugate_gradients, infinite, regression
from ntk_privacy.method import Method, field
from ntk_privacy.resume import Stage, straight

__all__ = [
    "METHODS",
    "Config",
    "KipConfig",
    "NoisyConfig",
    "kernel_fn",
    "noise",
    "start",
]

_CHUNK = 500
# Targets beyond which their whole kernel is not formed.
_DENSE = 5000
# Products with the kernel, at most, for the duals of so many.
_MAX_PRODUCTS = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
    """Flags of both.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, distillation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images = data.ImageSet.from_arrays(grey, [0, 1] * 4)
      >>> row = distillation.METHODS["rkip"]
      >>> config = row.configured(num_distilled=2, num_steps=2, depth=1)
      >>> row.run(images, config, key=jax.random.key(0)).images.shape
      (2, 8, 8, 1)
    """

    num_distilled: int = field(20, "Distilled images, balanced over the classes.")
    num_steps: int = field(50_000, "Steps of the search.")
    learning_rate: float = field(1e-3, "Of Adam, in intensity per step.")
    batch_size: int | None = field(None, "Targets that a step sees; none is all.")
    kernel: Literal["ntk", "standard"] = field(
        "ntk",
        "Parametrisation of the infinite-width kernel: the published one without "
        "biases, or that of the networks, with biases and at their width.",
    )
    width: int = field(4096, "Units of every hidden layer.")
    depth: int = field(2, "Hidden layers, of networks and of the kernel.")
    diag_reg: float = field(1e-5, "Ridge relative to the kernel's mean diagonal.")
    learn_labels: bool = field(False, "Let the labels descend too.")
    label_solve: bool = field(
        False, "Put the labels of least loss in place of the last ones, at the end."
    )

    def __post_init__(self):
        _checks.at_least(
            1,
            num_distilled=self.num_distilled,
            num_steps=self.num_steps,
            width=self.width,
            depth=self.depth,
            batch_size=1 if self.batch_size is None else self.batch_size,
        )
        _checks.at_least(0, diag_reg=self.diag_reg)
        _checks.positive(learning_rate=self.learning_rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisyConfig(Config):
    """Flags of a search whose images may keep noise.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, distillation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images = data.ImageSet.from_arrays(grey, [0, 1] * 4)
      >>> row = distillation.METHODS["rkip_noise"]
      >>> config = row.configured(num_distilled=2, num_steps=2, depth=1)
      >>> row.run(images, config, key=jax.random.key(0)).images.shape
      (2, 8, 8, 1)
    """

    noise_ratio: float = field(0.05, "Share of entries that stay noise.")

    def __post_init__(self):
        super().__post_init__()
        _checks.in_range(0, 1, noise_ratio=self.noise_ratio)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KipConfig(NoisyConfig):
    """Flags of KIP, whose images keep no noise unless asked (KIP_rho).

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, distillation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images = data.ImageSet.from_arrays(grey, [0, 1] * 4)
      >>> row = distillation.METHODS["kip"]
      >>> config = row.configured(num_distilled=2, num_steps=2, depth=1)
      >>> row.run(images, config, key=jax.random.key(0)).images.shape
      (2, 8, 8, 1)
    """

    noise_ratio: float = field(0.0, "Share of entries that stay noise.")


# One object for all runs: compiled programs are looked up by it.
@functools.cache
def kernel_fn(kernel: str, *, depth: int, width: int) -> KernelFn:
    """Returns the infinite-width kernel, published or that of the networks.

    Args:
      kernel: "ntk" or "standard".
      depth: hidden layers.
      width: of networks, which "standard" depends on.
    """
    if kernel == "ntk":
        return infinite.mlp(depth=depth)
    return infinite.mlp(depth=depth, parametrization="standard", width=width)


@functools.cache
def _adam(learning_rate: float) -> optax.GradientTransformation:
    return optax.adam(learning_rate)


def _check(images: ImageSet, config: Config) -> None:
    _, y = targets(images, config)
    images_per_class(y, config.num_distilled)
    if config.batch_size is not None:
        search.class_order(y, config.batch_size)


def start(x: Any, y: Any, config: Config, key: jax.Array) -> search.DistillState:
    """Returns the state before the first step.

    Args:
      x: images of `regressed.targets`.
      y: their targets.
      config: of the method.
      key: of the method.
    """
    return search.init(x, y, **_shared(y, config, key))


def noise(images: ImageSet, config: TaskConfig, key: jax.Array) -> np.ndarray | None:
    """Returns the entries that are noise for good; None without any.

    Args:
      images: to distil.
      config: of a method of a task, this one's or another's.
      key: of the method.
    """
    if not isinstance(config, NoisyConfig) or not config.noise_ratio:
        return None
    return np.asarray(start(*targets(images, config), config, key).noise)


def _shared(y: Any, config: Config, key: jax.Array) -> dict[str, Any]:
    return {
        "key": key,
        "images_per_class": images_per_class(y, config.num_distilled),
        "noise_ratio": getattr(config, "noise_ratio", 0.0),
        "learn_labels": config.learn_labels,
        "optimizer": _adam(config.learning_rate),
    }


def _run(
    objective: Any,
    images: ImageSet,
    config: Config,
    *,
    key: jax.Array,
    stage: Stage = straight,
    chunk: int = _CHUNK,
    folder: Path | None = None,
) -> Distilled:
    del folder
    x, y = targets(images, config)
    kernel = kernel_fn(config.kernel, depth=config.depth, width=config.width)
    known: dict[str, Any] = {}
    own = {"mesh": sharding.all_devices()} if objective is rkip else {}
    if objective is rkip and len(x) > _DENSE:
        known["target"] = _target_duals(x, y, kernel, config.diag_reg, stage)

    def go(state, done, callback):
        del done  # the state knows
        return objective.distill(
            x,
            y,
            kernel_fn=kernel,
            num_steps=config.num_steps,
            diag_reg=config.diag_reg,
            batch_size=config.batch_size,
            state=state,
            chunk=chunk,
            callback=callback,
            **_shared(y, config, key),
            **known,
            **own,
        )

    ran = stage("distill", start(x, y, config, key), go, config.num_steps)
    result = ran.result._replace(losses=ran.losses.astype(x.dtype))
    if not config.label_solve or bool(result.nonfinite):
        return result

    def solve():
        # Of RKIP's options only the duals of the targets are known to both.
        labels = objective.label_solve(
            result.images, x, y, kernel_fn=kernel, diag_reg=config.diag_reg, **known
        )
        return {"labels": np.asarray(labels)}

    return result._replace(
        labels=jnp.asarray(resume.once(stage, "label_solve", solve)["labels"])
    )


def _target_duals(
    x: jax.Array, y: jax.Array, kernel: KernelFn, diag_reg: float, stage: Stage
) -> rkip.TargetDuals:
    """Returns those of many targets, through stages that keep them."""
    mesh = sharding.all_devices()

    def solve() -> dict[str, np.ndarray]:
        def go(state, done, callback):
            return rkip.target_duals(
                x,
                y,
                kernel_fn=kernel,
                diag_reg=diag_reg,
                max_steps=_MAX_PRODUCTS,
                mesh=mesh,
                state=state if done else None,
                callback=callback,
            )

        start = conjugate_gradients.blank(x, y, mesh=mesh)
        try:
            found = stage("target_duals", start, go, AtMost(_MAX_PRODUCTS)).result
        except rkip.NotConvergedError as error:
            ridge = regression.larger_ridge(diag_reg)
            raise ValueError(
                f"The duals of the {len(x)} targets have a residual of "
                f"{error.residual:.1e} after {error.steps} steps: raise diag_reg="
                f"{diag_reg}, such as {ridge}, or use precision=float64."
            ) from error
        return {name: np.asarray(leaf) for name, leaf in found._asdict().items()}

    # From the host, as when they are read back: on whatever devices they were.
    found = resume.once(stage, "target_duals_found", solve)
    return rkip.TargetDuals(**{name: jnp.asarray(a) for name, a in found.items()})


def _method(name: str, about: str, config: type[Config], objective: Any) -> Method:
    presets: dict[str, Callable[..., Config]] = {"paper": config}
    return Method(
        name=name,
        about=about,
        config=config,
        presets=presets,
        run=functools.partial(_run, objective),
        check=_check,
    )


METHODS = (
    _method("kip", "matches predictions (Nguyen et al., ICLR 2021).", KipConfig, kip),
    _method("rkip", "matches regressors (Loo et al., ICLR 2024).", Config, rkip),
    _method(
        "rkip_noise", "is RKIP with pixels that stay noise (ibid.).", NoisyConfig, rkip
    ),
)
