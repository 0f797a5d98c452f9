"""The methods behind `experiments.distill --method=...`, resumable."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool

from experiments import _attacks, _progress, _victim, reconstruct
from experiments._flags import UsageError
from experiments._progress import Progress
from experiments._workdir import Workdir
from ntk_privacy import data, kip, rkip, sharding
from ntk_privacy._types import KernelFn
from ntk_privacy.kernels import conjugate_gradients, infinite, regression, structured
from ntk_privacy.reconstruction import kkt
from ntk_privacy.resume import Every, Timer
from ntk_privacy.training import distillation

SEARCHED = ("kip", "rkip", "rkip_noise")
METHODS = (*SEARCHED, "rkip_finite", "random", "full")
_CHUNK = 500
# Targets beyond which their whole kernel is not formed.
_DENSE = 5000
# Products with the kernel, at most, for the duals of so many.
_MAX_PRODUCTS = 500


class Distilled(NamedTuple):
    """images, labels: what to train on. losses: of the search, one per step."""

    images: np.ndarray
    labels: np.ndarray
    losses: np.ndarray


def images_per_class(config: Any, dataset: data.Dataset) -> int:
    """Returns how many distilled images each class has.

    Raises:
      UsageError: num_distilled is out of range or does not split evenly.
    """
    n, c = dataset.y_train.shape
    classes, m = 2 if c == 1 else c, config.num_distilled
    if not 1 <= m <= n:
        raise UsageError(
            f"num_distilled={m} must lie between {classes} and num_images={n}."
        )
    if m % classes:
        raise UsageError(
            f"num_distilled={m} does not split evenly into the {classes} classes: use "
            f"a multiple of {classes}."
        )
    return m // classes


def check(config: Any, dataset: data.Dataset) -> None:
    """Raises UsageError where flags do not fit the images, before anything is made."""
    if config.method != "full":
        images_per_class(config, dataset)
    if config.batch_size is not None and config.method in SEARCHED:
        try:
            distillation.class_order(jnp.asarray(dataset.y_train), config.batch_size)
        except ValueError as error:
            raise UsageError(str(error)) from error


def noise_ratio(config: Any) -> float:
    """Returns the share of entries that are noise for good; 5% for rkip_noise."""
    if config.noise_ratio is not None:
        return config.noise_ratio
    return 0.05 if config.method == "rkip_noise" else 0.0


def kernel_fn(config: Any) -> KernelFn:
    """Returns the infinite-width kernel, published or that of the networks."""
    return _kernel_fn(config.kernel, config.depth, config.width)


# One object for all runs of a study: compiled programs are looked up by it.
@functools.cache
def _kernel_fn(kind: Literal["ntk", "standard"], depth: int, width: int) -> KernelFn:
    if kind == "ntk":
        return infinite.mlp(depth=depth)
    return infinite.mlp(depth=depth, parametrization=kind, width=width)


@functools.cache
def _adam(learning_rate: float) -> optax.GradientTransformation:
    return optax.adam(learning_rate)


def network_config(config: Any, num_images: int, **options: Any) -> reconstruct.Config:
    """Returns the config of a network to train and attack, as `reconstruct` has it."""
    return reconstruct.Config(
        num_images=num_images,
        num_steps=config.attack_steps,
        **options,
        **{
            name: getattr(config, name)
            for name in (
                *("dataset", "task", "width", "depth", "dynamics", "stop_loss"),
                *("max_train_steps", "seed", "precision", "data_dir", "download"),
                *("checkpoint_seconds", "progress"),
            )
        },
    )


def distill(
    config: Any, workdir: Workdir, dataset: data.Dataset, key: jax.Array, timer: Timer
) -> Distilled:
    """Runs the method, or reads back what an earlier start of this run finished.

    Args:
      config: of `experiments.distill`.
      workdir: keeps the checkpoints, and the set in arrays.npz.
      dataset: the targets.
      key: of the initial images, or of the network that is attacked.
      timer: of the distillation.

    Raises:
      ValueError: a kernel is singular, or the loss is not finite.
    """
    about = workdir.checkpoint_folder / "distilled.json"
    name = str(about.relative_to(workdir.folder))
    # Both: a set that was deleted, because it was damaged, is made again.
    if about.exists() and workdir.path("arrays.npz").exists():
        told, stored = workdir.read_json(name), workdir.read_arrays("arrays.npz")
        timer.run, timer.compile = told["seconds"]
        return Distilled(stored["images"], stored["labels"], stored["losses"])
    if config.method == "full":
        made = Distilled(dataset.x_train, dataset.y_train, np.zeros(0))
    elif config.method == "random":
        made = _random(config, dataset, key)
    elif config.method == "rkip_finite":
        made = _finite(config, workdir, dataset, key, timer)
    else:
        made = _search(config, workdir, dataset, key, timer)
    workdir.write_arrays("arrays.npz", mean=dataset.mean, **made._asdict())
    about.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json(name, {"seconds": [timer.run, timer.compile]})
    return made


def _random(config, dataset, key) -> Distilled:
    each = images_per_class(config, dataset)
    labels = jnp.asarray(dataset.y_train)
    order, sizes = distillation.class_order(labels, config.num_distilled)
    chosen, offset = [], 0
    for place, size in enumerate(sizes):
        drawn = jax.random.permutation(jax.random.fold_in(key, place), size)[:each]
        chosen.append(order[offset + np.sort(np.asarray(drawn))])
        offset += size
    rows = np.concatenate(chosen)
    return Distilled(dataset.x_train[rows], dataset.y_train[rows], np.zeros(0))


def _arguments(config, dataset, key) -> tuple[Any, Any, dict[str, Any]]:
    dtype = jnp.dtype(config.precision)
    shared = {
        "key": key,
        "images_per_class": images_per_class(config, dataset),
        "noise_ratio": noise_ratio(config),
        "learn_labels": config.learn_labels,
        "optimizer": _adam(config.learning_rate),
    }
    x, y = (jnp.asarray(a, dtype) for a in (dataset.x_train, dataset.y_train))
    return x, y, shared


def noise_mask(
    config: Any, dataset: data.Dataset, key: jax.Array
) -> Bool[np.ndarray, "m h w c"] | None:
    """Returns the entries that are noise for good; None without any."""
    if noise_ratio(config) == 0:
        return None
    x, y, shared = _arguments(config, dataset, key)
    return np.asarray(distillation.init(x, y, **shared).noise)


def _search(config, workdir, dataset, key, timer) -> Distilled:
    """KIP or RKIP from the last checkpoint."""
    x, y, shared = _arguments(config, dataset, key)
    state = distillation.init(x, y, **shared)
    kernel = kernel_fn(config)
    method: Any = kip if config.method == "kip" else rkip
    options = {}
    if method is rkip and len(x) > _DENSE:
        options["target"] = _target_duals(config, workdir, x, y, kernel, timer)

    def go(state, done, callback):
        del done  # the state knows
        return method.distill(
            x,
            y,
            kernel_fn=kernel,
            num_steps=config.num_steps,
            diag_reg=config.diag_reg,
            batch_size=config.batch_size,
            state=state,
            chunk=_CHUNK,
            callback=callback,
            **shared,
            **options,
        )

    stage = _progress.stage(
        config, workdir.checkpoint_folder, timer, description=config.method
    )
    ran = stage("distill", state, go, config.num_steps)
    result = ran.result
    labels = result.labels
    if config.label_solve and not bool(result.nonfinite):
        with timer():
            # Of RKIP's options only the duals of the targets are known to both.
            labels = method.label_solve(
                result.images,
                x,
                y,
                kernel_fn=kernel,
                diag_reg=config.diag_reg,
                **options,
            )
    images, labels = np.asarray(result.images), np.asarray(labels)
    if bool(result.nonfinite):
        workdir.write_arrays("last_good.npz", images=images, labels=labels)
        raise ValueError(_lost(config, workdir, int(result.state.steps)))
    return Distilled(images, labels, ran.losses.astype(x.dtype))


def _target_duals(config, workdir, x, y, kernel, timer) -> rkip.TargetDuals:
    """Those of many targets: read back, else solved on from the last checkpoint."""
    folder = workdir.checkpoint_folder
    state_name, duals_name = (
        str((folder / f"target_{part}.npz").relative_to(workdir.folder))
        for part in ("state", "duals")
    )
    is_solved, state = workdir.path(duals_name).exists(), None
    if is_solved or workdir.path(state_name).exists():
        stored = workdir.read_arrays(duals_name if is_solved else state_name)
        seconds = stored.pop("seconds")
        timer.run, timer.compile = map(float, seconds)
        if is_solved:
            return rkip.TargetDuals(**jax.tree.map(jnp.asarray, stored))
        state = conjugate_gradients.CGState(**stored)
    folder.mkdir(parents=True, exist_ok=True)
    every = Every(config.checkpoint_seconds)
    first = 0 if state is None else int(state.steps)
    with (
        timer(),
        Progress(
            _MAX_PRODUCTS,
            description="target duals",
            first_step=first,
            loss="residual",
            show=config.progress,
        ) as bar,
    ):

        def callback(step, state, metrics):
            bar(step, state, metrics)
            if int(state.steps) > first and every():
                write(state_name, state._asdict())

        def write(name, entries):
            seconds = np.asarray([timer.elapsed(), timer.compile])
            workdir.write_arrays(name, seconds=seconds, **entries)

        try:
            target = rkip.target_duals(
                x,
                y,
                kernel_fn=kernel,
                diag_reg=config.diag_reg,
                max_steps=_MAX_PRODUCTS,
                mesh=sharding.row_mesh() if jax.device_count() > 1 else None,
                state=state,
                callback=callback,
            )
        except rkip.NotConvergedError as error:
            ridge = regression.larger_ridge(config.diag_reg)
            raise ValueError(
                f"The duals of the {len(x)} targets have a residual of "
                f"{error.residual:.1e} after {error.steps} steps: raise diag_reg="
                f"{config.diag_reg}, such as {ridge}, or use precision=float64."
            ) from error
        write(duals_name, target._asdict())
    workdir.path(state_name).unlink(missing_ok=True)
    # From the host, as when they are read back: on whatever devices they were.
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), target)


def _lost(config, workdir, steps) -> str:
    return (
        f"The loss is not finite after {steps} steps; the images before it are in "
        f"{workdir.path('last_good.npz')}: lower learning_rate="
        f"{config.learning_rate}, or raise diag_reg={config.diag_reg}."
    )


def _finite(config, workdir, dataset, key, timer) -> Distilled:
    """Trains a network on all images and attacks it for fewer: RKIP-finite."""
    images_per_class(config, dataset)
    spec = network_config(config, config.num_images, method="kkt")
    with Workdir(
        workdir.checkpoint_folder / "finite", spec, ignore=reconstruct.NOT_RESULTS
    ) as inner:
        victim = _victim.make(spec, inner, dataset, key, timer)
        settings, points = kkt.plan(_attacks.method_config(spec), spec.dynamics)
        if config.dynamics == "standard":
            # The labels belong to one kernel: that of the trained network.
            points = kkt.parse_points("final")
        params = victim.params_0 if points == (0.0,) else victim.params_t

        def attack(num_images):
            ready = kkt.prepare(
                victim.model,
                victim.params_0,
                victim.params_t,
                key=jax.random.fold_in(key, 1),
                image_shape=dataset.x_train.shape[1:],
                num_images=num_images,
                bounds=dataset.bounds,
                points=points,
                settings=settings,
            )
            stage = _progress.stage(spec, inner.checkpoint_folder, timer)
            return kkt.run_staged(ready, stage=stage, name="rkip_finite")

        result = rkip.distill_finite(
            attack,
            kernel_fn=functools.partial(
                structured.ntk, victim.model, params, trace_outputs=False
            ),
            num_images=config.num_distilled,
        )
    made = Distilled(
        np.asarray(result.images), np.asarray(result.labels), np.asarray(result.losses)
    )
    if bool(result.nonfinite):
        workdir.write_arrays("last_good.npz", images=made.images, labels=made.labels)
        raise ValueError(
            "The loss of the attack on the trained network is not finite; the images "
            f"before it are in {workdir.path('last_good.npz')}: try another seed, or "
            "precision=float64."
        )
    return made
