"""What a network trained on a distilled set is worth: accuracy, attacks, curvature."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments._flags import UsageError
from experiments._image_sets import Images
from experiments._sre2l_config import ATTACKS
from experiments._workdir import Workdir, read_arrays
from ntk_privacy import curvature
from ntk_privacy.evaluation import named_attacks
from ntk_privacy.evaluation import robust_accuracy as robust
from ntk_privacy.evasion import ThreatModel
from ntk_privacy.models import ResNet18, saved
from ntk_privacy.reports import curvature_plots
from ntk_privacy.training import squeeze

_ATTACK_BATCH = 50
_NUM_EIGENVALUES = 128
# More than the classes, of which a network of ReLUs has at most as many eigenvalues.
_EXTRA_MATVECS = 2


def _losses(model: ResNet18, network: Any, x: Any, labels: Any) -> Any:
    params, stats = network
    return squeeze.cross_entropies(model.eval_fn(params, stats, x), labels)


@functools.cache
def _losses_of(model: ResNet18) -> Callable[..., Any]:
    return functools.partial(_losses, model)


def accuracy(images: Images, model: ResNet18, network: tuple[Any, Any]) -> float:
    """Returns the share of test images that a network reads rightly."""
    read = squeeze.predict(*network, images.normalised(images.x_test), model=model)
    return float(np.mean(read == images.class_test))


def eigenvalues(
    images: Images, model: ResNet18, network: tuple[Any, Any], key: Any
) -> np.ndarray:
    """Returns the top eigenvalue of the loss's Hessian at real training images."""
    # Evenly from all: folders hold one class after the other.
    count = min(_NUM_EIGENVALUES, len(images.x))
    few = np.arange(count) * len(images.x) // count
    x, classes = images.normalised(images.x[few]), jnp.asarray(images.classes[few])
    found = curvature.top_eigenvalues(
        _losses_of(model),
        network,
        x,
        classes,
        key=key,
        num_matvecs=min(images.num_classes + _EXTRA_MATVECS, x[0].size),
    )
    return np.asarray(found)


def _steps(name: str, config: Any) -> int | None:
    """Those of pgd100 are its name."""
    return None if name == "pgd100" else config.attack_steps


def column(name: str, config: Any) -> str:
    """Returns an attack's name, and what of it is not as the name tells.

    Args:
      name: of `ATTACKS`.
      config: has attack_steps and num_queries.
    """
    return named_attacks.honest_name(
        ATTACKS[name],
        shown=name,
        num_steps=_steps(name, config),
        num_queries=config.num_queries,
    )


def attack(
    config: Any,
    workdir: Workdir,
    images: Images,
    model: ResNet18,
    network: tuple[Any, Any],
    key: Any,
) -> tuple[dict[str, float], dict]:
    """Returns accuracy by attack, each named by `column`, and what stages left."""
    params, stats = network
    logits_fn = saved.logits_fn(
        model, params, stats=stats, mean=images.mean, deviation=images.deviation
    )
    accuracy: dict[str, float] = {}
    left: dict[str, Any] = {}
    # One at a time: what is known of a killed run is read back.
    for name in config.attacks:
        attack = ATTACKS[name]
        about = workdir.checkpoint_folder / f"attack_{config.judged_on}_{name}.json"
        path = str(about.relative_to(workdir.folder))
        given = [config.eps, config.attack_steps, config.num_queries]
        given.append(len(images.x_test))
        if about.exists():
            told = workdir.read_json(path)
            if told["given"] == given:
                accuracy |= told["accuracy"]
                left |= told["left"]
                continue
        found = robust.robust_accuracy(
            logits_fn,
            images.x_test,
            images.class_test,
            key=key,
            attacks=(attack,),
            threat_model=ThreatModel(eps=config.eps),
            batch_size=_ATTACK_BATCH,
            num_steps=_steps(name, config),
            num_queries=config.num_queries,
        )
        called = column(name, config)
        told = {
            "given": given,
            "accuracy": {"clean": found.clean, called: found.accuracy[attack]},
            "left": {called: found.left[attack]} if found.left.get(attack) else {},
        }
        about.parent.mkdir(parents=True, exist_ok=True)
        workdir.write_json(path, told)
        accuracy |= told["accuracy"]
        left |= told["left"]
    return accuracy, left


def baseline(config: Any) -> np.ndarray | None:
    """Returns the eigenvalues of the student to draw beside, if one was given.

    Raises:
      UsageError: they are not there, or damaged.
    """
    if config.baseline is None:
        return None
    path = pathlib.Path(config.baseline) / "eigenvalues.npz"
    try:
        return read_arrays(path)["student"]
    except FileNotFoundError:
        told = "has no eigenvalues.npz"
    except (OSError, KeyError, ValueError):
        told = "has an eigenvalues.npz that cannot be read"
    raise UsageError(
        f"baseline={config.baseline} {told}: give the folder of a run that was "
        "evaluated."
    )


def draw(
    config: Any, workdir: Workdir, num_images: int, beside: np.ndarray | None
) -> None:
    """Draws those of the student, beside a baseline's or the squeezed network's."""
    found = workdir.read_arrays("eigenvalues.npz")
    shown = {f"{name} network": values for name, values in found.items()}
    told = f"Squeezed from {num_images} images of {config.dataset}, and its student"
    if beside is not None:
        own = f"regularizer {config.regularizer}"
        shown = {"baseline": beside, own: found["student"]}
        told = f"Students, distilled from {num_images} images of {config.dataset}"
    curvature_plots.eigenvalues(shown, workdir.path("eigenvalues.png"), title=told)
