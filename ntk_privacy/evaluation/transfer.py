"""What a set to regress on is worth: the kernel of it, and networks trained on it.

Source: Loo et al., ICLR 2024 (arXiv:2302.01428), Table 1.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks, resume
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import kernel_methods
from ntk_privacy.distillation.networks import NetworkConfig
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.evaluation import rates
from ntk_privacy.evaluation.judged import Judged, has_classes
from ntk_privacy.kernels import regression
from ntk_privacy.method import Method, field
from ntk_privacy.models import MLP
from ntk_privacy.resume import Stage, straight
from ntk_privacy.training import victim
from ntk_privacy.training.victim import Dynamics

__all__ = ["JUDGE", "KINDS", "Config", "accuracy", "finite", "infinite"]

KINDS = ("infinite", "standard", "linearized")
"""What is trained: the kernel of infinite width, a network, its Taylor model."""

_BLOCK = 1000
# Accuracy asks for no gradient flow: half the fastest eigenvalue's own pace.
_FRACTION = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(NetworkConfig):
    """Networks trained on the set.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, distillation, evaluation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images, key = data.ImageSet.from_arrays(grey, [0, 1] * 4), jax.random.key(0)
      >>> row = distillation.METHODS["random"]
      >>> some = row.run(images, row.configured(num_distilled=2), key=key)
      >>> judge = evaluation.JUDGES["transfer"]
      >>> config = judge.configured(width=16, depth=1, max_train_steps=2)
      >>> found = judge.run(images, some, config, key=key)
      >>> sorted(found.figures)
      ['accuracy', 'runs']
    """

    num_runs: int = field(1, "Networks per dynamics.")
    num_finite_runs: int | None = field(
        None, "Of the runs, how many train networks; none is all."
    )
    kernel: Literal["ntk", "standard"] = field(
        "ntk",
        "Parametrisation of the infinite-width kernel: the published one without "
        "biases, or that of the networks, with biases and at their width.",
    )
    diag_reg: float = field(1e-5, "Ridge relative to the kernel's mean diagonal.")

    def __post_init__(self):
        super().__post_init__()
        _checks.at_least(1, num_runs=self.num_runs)
        _checks.at_least(0, diag_reg=self.diag_reg)
        if self.num_finite_runs is not None:
            _checks.in_range(0, self.num_runs, num_finite_runs=self.num_finite_runs)

    @property
    def num_trained(self) -> int:
        """Networks per dynamics."""
        return self.num_runs if self.num_finite_runs is None else self.num_finite_runs


def accuracy(
    outputs: Float[np.ndarray, "n c"],
    y: Float[np.ndarray, "n c"],
    *,
    classes: Int[np.ndarray, " n"] | None = None,
    released_fault: Sequence[int] = (),
) -> float:
    """Returns the share of images whose class the outputs tell.

    Args:
      outputs: one row per image.
      y: targets; of one column the sign is the class.
      classes: of the images, for released_fault.
      released_fault: classes that released code scores as -1 (trucks as animals).

    Raises:
      ValueError: outputs are not finite: the largest of NaNs is the first.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.evaluation import transfer
      >>> transfer.accuracy(np.array([[0.2], [-3.0]]), np.array([[1.0], [1.0]]))
      0.5
    """
    _checks.finite_data(outputs=outputs)
    if y.shape[1] > 1:
        return float(np.mean(outputs.argmax(1) == y.argmax(1)))
    if released_fault and classes is not None:
        y = np.where(np.isin(classes, released_fault)[:, None], np.float32(-1), y)
    return float(np.mean(np.sign(outputs) == np.sign(y)))


def infinite(
    images: Float[Array, "m h w d"],
    labels: Float[Array, "m c"],
    x_test: Float[Array, "n h w d"],
    config: Config,
) -> Float[np.ndarray, "n c"]:
    """Returns what a network of infinite width trained on a set makes of test images.

    Args:
      images: of the set.
      labels: their targets.
      x_test: test images, preprocessed alike.
      config: kernel, depth, width and ridge.

    Raises:
      ValueError: the kernel of the set is singular.
    """
    kernel_fn = kernel_methods.kernel_fn(
        config.kernel, depth=config.depth, width=config.width
    )
    duals = regression.duals(kernel_fn, images, labels, diag_reg=config.diag_reg)
    return np.asarray(regression.predict(kernel_fn, images, duals, x_test))


def finite(
    images: Float[Array, "m h w d"],
    labels: Float[Array, "m c"],
    config: Config,
    *,
    key: Array,
    dynamics: Dynamics,
    stage: Stage = straight,
    name: str | None = None,
) -> victim.Victim:
    """Returns a network that was trained on a set.

    Args:
      images: of the set.
      labels: their targets.
      config: depth, width, and where to stop.
      key: of the initial weights.
      dynamics: train the network, or its Taylor model in closed form.
      stage: runs the training.
      name: of the stage.
    """
    model = MLP((config.width,) * config.depth, labels.shape[1])
    return victim.fit(
        model,
        model.init_params(key, images.shape[1:], images.dtype),
        images,
        labels,
        dynamics=dynamics,
        stop_loss=config.stop_loss,
        max_steps=config.max_train_steps,
        fraction=_FRACTION,
        # The closed form is no loop.
        stage=stage if dynamics == "standard" else straight,
        name=name,
    )


def _outputs(trained: victim.Victim, x: np.ndarray) -> np.ndarray:
    blocks = np.array_split(x, max(1, round(len(x) / _BLOCK)))
    return np.concatenate([np.asarray(victim.outputs(trained, b)) for b in blocks])


def _run(
    images: ImageSet,
    distilled: Distilled,
    config: Config,
    *,
    key: jax.Array,
    stage: Stage = straight,
) -> Judged:
    if has_classes(distilled):
        raise ValueError(
            "labels are classes: give a set with targets to regress on, or use the "
            "judge students."
        )
    dataset = images.regression(config.task)
    binary = images.binary.get(config.task or images.tasks[0])
    fault = binary.released_fault if binary else ()
    dtype = jnp.dtype(config.precision)
    x, y = (jnp.asarray(a, dtype) for a in (distilled.images, distilled.labels))

    def told(outputs: np.ndarray, **figures: Any) -> dict[str, Any]:
        about = {"accuracy": accuracy(outputs, dataset.y_test)}
        if fault:
            about["accuracy_released_label_fault"] = accuracy(
                outputs,
                dataset.y_test,
                classes=dataset.class_test,
                released_fault=fault,
            )
        return figures | about

    def kernel() -> dict[str, Any]:
        return told(infinite(x, y, jnp.asarray(dataset.x_test, dtype), config))

    def network(dynamics: Dynamics, run: int) -> dict[str, Any]:
        trained = finite(
            x,
            y,
            config,
            key=jax.random.fold_in(key, run),
            dynamics=dynamics,
            stage=stage,
            name=f"{dynamics}_{run}",
        )
        outputs = _outputs(trained, dataset.x_test)
        return told(outputs, loss=trained.loss, steps=trained.steps or 0)

    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    runs["infinite"].append(_kept(stage, "infinite_told", kernel))
    dynamics: tuple[Dynamics, ...] = ("linearized", "standard")
    for run in range(config.num_trained):
        for kind in dynamics:
            name = f"{kind}_{run}_told"
            found = _kept(stage, name, lambda kind=kind, run=run: network(kind, run))
            runs[kind].append(found)
    figures: dict[str, Any] = {"runs": runs}
    for entry in ("accuracy", "accuracy_released_label_fault"):
        if entry in runs["infinite"][0]:
            figures[entry] = means(runs, entry)
    return Judged(figures)


def _kept(
    stage: Stage, name: str, make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Returns figures that are made once, whatever kills the process."""
    found = resume.once(
        stage, name, lambda: {k: np.asarray(v) for k, v in make().items()}
    )
    return {name: value.item() for name, value in found.items()}


def means(runs: dict[str, list[dict[str, Any]]], entry: str) -> dict[str, float | None]:
    """Returns mean and sample deviation of every kind; None without a run.

    Args:
      runs: figures of each network, by kind.
      entry: which of them.
    """
    out: dict[str, float | None] = {}
    for kind, found in runs.items():
        values = [told[entry] for told in found]
        rate = rates.mean_and_deviation(values) if values else (None, None)
        out[kind], out[f"{kind}_deviation"] = rate
    return out


JUDGE = Method(
    name="transfer",
    about="trains networks of infinite and of finite width on the set and tests them "
    "(Loo et al., ICLR 2024).",
    config=Config,
    presets={"paper": Config},
    run=_run,
)
