"""What a distilled set is worth: test accuracy of those trained on it.

Source: Loo et al., ICLR 2024 (arXiv:2302.01428), Table 1.
"""

import shutil
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _progress
from experiments._made import Made
from experiments._workdir import Workdir
from ntk_privacy import data
from ntk_privacy.distillation import kernel_methods
from ntk_privacy.evaluation import rates
from ntk_privacy.kernels import regression
from ntk_privacy.models import MLP
from ntk_privacy.resume import Timer
from ntk_privacy.training import victim

_BLOCK = 1000
# Accuracy asks for no gradient flow: half the fastest eigenvalue's own pace.
_FRACTION = 0.5


def accuracy(
    outputs: np.ndarray, dataset: data.Dataset, *, released_fault: Sequence[int] = ()
) -> float:
    """Returns the share of test images whose class the outputs tell.

    Args:
      outputs: one row per test image.
      dataset: gives the test labels.
      released_fault: classes that released code scores as -1 (trucks as animals).
    """
    y = dataset.y_test
    if y.shape[1] > 1:
        return float(np.mean(outputs.argmax(1) == y.argmax(1)))
    if released_fault:
        wrong = np.isin(dataset.class_test, released_fault)[:, None]
        y = np.where(wrong, np.float32(-1), y)
    return float(np.mean(np.sign(outputs) == np.sign(y)))


def num_finite_runs(config: Any) -> int:
    """Returns how many networks per dynamics are asked for."""
    asked = config.num_finite_runs
    return config.num_runs if asked is None else asked


def evaluate(
    config: Any,
    workdir: Workdir,
    dataset: data.Dataset,
    distilled: Made,
    key: jax.Array,
    timer: Timer,
) -> dict[str, Any]:
    """Trains on the set and returns entries of results.json; each value is kept.

    Args:
      config: of `experiments.distill`.
      workdir: keeps what is known so far, and checkpoints of training.
      dataset: of the test images.
      distilled: to train on.
      key: of the networks.
      timer: of the evaluation.

    Raises:
      ValueError: the kernel of the set is singular.
    """
    name = str(
        (workdir.checkpoint_folder / "evaluation.json").relative_to(workdir.folder)
    )
    known: dict[str, list[dict[str, Any]]] = {}
    if workdir.path(name).exists():
        stored = workdir.read_json(name)
        timer.run, timer.compile = stored.pop("seconds")
        known = stored
    workdir.checkpoint_folder.mkdir(parents=True, exist_ok=True)
    finite = num_finite_runs(config)
    wanted = [("infinite", 0)]
    wanted += [(kind, r) for r in range(finite) for kind in ("linearized", "standard")]
    fault = _released_fault(config)
    for kind, run in wanted:
        if len(known.setdefault(kind, [])) > run:
            continue
        with timer():
            if kind == "infinite":
                told, outputs = {}, _infinite(config, dataset, distilled)
            else:
                told, outputs = _finite(
                    config, workdir, dataset, distilled, key, kind, run
                )
            told["accuracy"] = accuracy(outputs, dataset)
            if fault:
                told["accuracy_released_label_fault"] = accuracy(
                    outputs, dataset, released_fault=fault
                )
        known[kind].append(told)
        workdir.write_json(name, {**known, "seconds": [timer.run, timer.compile]})
    for kind in ("linearized", "standard"):
        known[kind] = known.get(kind, [])
    out = {"accuracy": _means(known, "accuracy"), "runs": known}
    if "accuracy_released_label_fault" in known["infinite"][0]:
        out["accuracy_released_label_fault"] = _means(
            known, "accuracy_released_label_fault"
        )
    return out


def _released_fault(config: Any) -> tuple[int, ...]:
    """Returns the classes whose test labels released code has wrong in the task."""
    about = data.SETS.get(config.dataset)
    if about is None:
        return ()
    binary = about.binary.get(config.task or about.tasks[0])
    return binary.released_fault if binary else ()


def _means(known, entry) -> dict[str, float | None]:
    """Returns mean and deviation of every kind; None without a run."""
    out = {}
    for kind in ("infinite", "standard", "linearized"):
        values = [told[entry] for told in known[kind]]
        rate = rates.mean_and_deviation(values) if values else (None, None)
        out[kind], out[f"{kind}_deviation"] = rate
    return out


def _infinite(config, dataset, distilled) -> np.ndarray:
    dtype = jnp.dtype(config.precision)
    x, y = (jnp.asarray(a, dtype) for a in (distilled.images, distilled.labels))
    kernel_fn = kernel_methods.kernel_fn(
        config.kernel, depth=config.depth, width=config.width
    )
    duals = regression.duals(kernel_fn, x, y, diag_reg=config.diag_reg)
    x_test = jnp.asarray(dataset.x_test, dtype)
    return np.asarray(regression.predict(kernel_fn, x, duals, x_test))


def _finite(config, workdir, dataset, distilled, key, kind, run):
    """Returns loss and steps, and outputs on the test images, of one network."""
    dtype = jnp.dtype(config.precision)
    x, y = (jnp.asarray(a, dtype) for a in (distilled.images, distilled.labels))
    model = MLP((config.width,) * config.depth, y.shape[1])
    params_0 = model.init_params(jax.random.fold_in(key, run), x.shape[1:], dtype)
    given: dict[str, Any] = {
        "dynamics": kind,
        "stop_loss": config.stop_loss,
        "max_steps": config.max_train_steps,
        "fraction": _FRACTION,
    }
    if kind == "standard":
        given["name"] = f"standard_{run}"
        given["stage"] = _progress.stage(
            config, workdir.checkpoint_folder, Timer(), description="train"
        )
    trained = victim.fit(model, params_0, x, y, **given)
    # Its accuracy is kept instead.
    shutil.rmtree(workdir.checkpoint_folder / f"standard_{run}", ignore_errors=True)
    outputs = [
        np.asarray(victim.outputs(trained, block))
        for block in np.array_split(
            dataset.x_test, max(1, round(len(dataset.x_test) / _BLOCK))
        )
    ]
    told = {"loss": trained.loss, "steps": trained.steps or 0}
    return told, np.concatenate(outputs)
