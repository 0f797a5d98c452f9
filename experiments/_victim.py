"""The network under attack: data, initialisation and training, resumable."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _image_sets, _progress
from experiments._flags import UsageError
from experiments._workdir import Workdir
from ntk_privacy import checkpoint, data, resume
from ntk_privacy.evaluation.kernel_distance import kernel_distance
from ntk_privacy.kernels import structured
from ntk_privacy.models import MLP
from ntk_privacy.resume import Timer
from ntk_privacy.training import linearized, subspace, train


class Victim(NamedTuple):
    """What an attack gets, params_0 and params_t, and what it is judged by.

    duals: of the training images, known for linearized dynamics. loss: at params_t.
    """

    dataset: data.Dataset
    model: MLP
    params_0: Any
    params_t: Any
    duals: np.ndarray | None
    loss: float
    steps: int | None
    kernel_distance: float
    test_accuracy: float


def load(config: Any) -> tuple[data.Dataset, jax.Array]:
    """Returns the images that the config asks for, and the key of the parameters.

    Raises:
      UsageError: a flag does not fit the image set.
      OSError, ValueError: see `data.load`.
    """
    key_data, key_init = jax.random.split(
        jax.random.fold_in(jax.random.key(0), config.seed)
    )
    try:
        dataset = data.load(
            **_image_sets.source(config),
            task=config.task,
            num_train=config.num_images,
            key=key_data,
        )
    except data.ArgumentError as error:
        raise UsageError(str(error).replace("num_train", "num_images")) from error
    return dataset, key_init


def make(
    config: Any,
    workdir: Workdir,
    dataset: data.Dataset,
    key_init: jax.Array,
    timer: Timer,
) -> Victim:
    """Trains on the images; a finished training is read back.

    Args:
      config: of `experiments.reconstruct`.
      workdir: keeps checkpoints of the training and the trained network.
      dataset: from `load`.
      key_init: from `load`.
      timer: of the training.
    """
    dtype = jnp.dtype(config.precision)
    x = jnp.asarray(dataset.x_train, dtype)
    y = jnp.asarray(dataset.y_train, dtype)
    model = MLP(
        widths=(config.width,) * config.depth,
        num_outputs=y.shape[1],
        parametrization=config.parametrization,
    )
    params_0 = model.init_params(key_init, x.shape[1:], dtype)
    folder = workdir.checkpoint_folder / "victim"
    like = {
        "params": params_0,
        "duals": jnp.zeros(y.shape, dtype),
        "loss": jnp.zeros((), dtype),
        "steps": jnp.zeros((), jnp.int32),
        "seconds": np.zeros(2),
    }
    if checkpoint.latest_step(folder) is None:
        with timer():
            if config.dynamics == "linearized":
                trained = fit_linearized(config, model, params_0, x, y)
            else:
                states = workdir.checkpoint_folder / "train_coordinates"
                trained = fit_standard(config, states, model, params_0, x, y)
            jax.block_until_ready(trained)
        trained["seconds"] = np.asarray([timer.run, timer.compile])
        checkpoint.save(folder, 0, trained)
    else:
        trained = checkpoint.restore(folder, 0, like)
        timer.run, timer.compile = map(float, trained["seconds"])
    params_t = trained["params"]
    is_linear = config.dynamics == "linearized"
    return Victim(
        dataset=dataset,
        model=model,
        params_0=params_0,
        params_t=params_t,
        duals=np.asarray(trained["duals"]) if is_linear else None,
        loss=float(trained["loss"]),
        steps=None if is_linear else int(trained["steps"]),
        # A linearized model keeps its kernel by definition.
        kernel_distance=0.0
        if is_linear
        else float(
            kernel_distance(
                structured.ntk(model, params_0, x), structured.ntk(model, params_t, x)
            )
        ),
        test_accuracy=_accuracy(config, dataset, model, params_0, params_t, dtype),
    )


@functools.partial(jax.jit, static_argnums=0)
def _kernel_and_outputs(model, params_0, x):
    kernel = structured.ntk(model, params_0, x, trace_outputs=False)
    return kernel, model.apply_fn(params_0, x)


def fit_linearized(config, model, params_0, x, y):
    """Returns parameters, duals, loss and steps (0) of linearized training."""
    kernel, outputs = _kernel_and_outputs(model, params_0, x)
    spectrum = linearized.decompose(kernel, outputs, y)
    loss = config.early_stop_loss or config.stop_loss
    if config.schedule == "flow":
        gain = linearized.gradient_flow(linearized.time_at_loss(spectrum, loss))
    else:
        steps = linearized.steps_at_loss(
            spectrum,
            loss,
            learning_rate=config.num_images * 2e-7 / y.size,
            momentum=0.9,
            max_steps=config.max_train_steps,
        )
        gain = linearized.gradient_descent(
            steps, learning_rate=config.num_images * 2e-7 / y.size, momentum=0.9
        )
    duals = linearized.duals(spectrum, gain)
    params = linearized.params_at(model.apply_fn, params_0, x, duals)
    final = linearized.apply_linearized(model.apply_fn, params_0, params, x)
    return {
        "params": params,
        "duals": duals,
        "loss": 0.5 * jnp.mean((final - y) ** 2),
        "steps": jnp.zeros((), jnp.int32),
    }


def fit_standard(config, folder, model, params_0, x, y, *, fraction=0.02):
    """Returns parameters, loss and steps of standard training, resumed from `folder`.

    `fraction` is the step size of the flow schedule, in 1 / largest eigenvalue.
    """
    if config.schedule == "paper":
        optimizer = train.paper_optimizer(config.num_images)
    else:
        kernel, _ = _kernel_and_outputs(model, params_0, x)
        m = y.size
        square = kernel.transpose(0, 2, 1, 3).reshape(m, m)
        optimizer = train.stable_optimizer(
            float(jnp.linalg.eigvalsh(square)[-1]), m, fraction=fraction
        )
    stop = config.early_stop_loss or config.stop_loss
    # Fewer numbers to move at every step: the first layer moves in the images' span.
    small = subspace.to_coordinates(params_0, x, parametrization=config.parametrization)
    state = train.init(
        model.apply_fn, small.params, small.images, y, optimizer=optimizer
    )

    def go(state, done, callback):
        del done  # the state knows
        return train.full_batch(
            model.apply_fn,
            small.params,
            small.images,
            y,
            optimizer=optimizer,
            max_steps=config.max_train_steps,
            stop_loss=stop,
            chunk=20,
            state=state,
            callback=callback,
        )

    stage = _progress.stage(config, folder.parent, resume.Timer(), description="train")
    trained = stage(folder.name, state, go, config.max_train_steps).result
    params = small.restore(trained.params)
    return {
        "params": params,
        "duals": jnp.zeros_like(y),
        # Of the network itself: in the images' coordinates it was rounded otherwise.
        "loss": 0.5 * jnp.mean((model.apply_fn(params, x) - y) ** 2),
        "steps": jnp.asarray(trained.steps, jnp.int32),
    }


def _accuracy(config, dataset, model, params_0, params_t, dtype):
    """Share of test images that the trained network, linearized or not, gets right."""
    count = min(len(dataset.x_test), 1000)
    x = jnp.asarray(dataset.x_test[:count], dtype)
    y = dataset.y_test[:count]
    if config.dynamics == "linearized":
        outputs = linearized.apply_linearized(model.apply_fn, params_0, params_t, x)
    else:
        outputs = model.apply_fn(params_t, x)
    outputs = np.asarray(outputs)
    if y.shape[1] == 1:
        return float(np.mean(np.sign(outputs) == np.sign(y)))
    return float(np.mean(outputs.argmax(1) == y.argmax(1)))
