"""Computes a kernel on real images: saved, drawn, and followed through training.

    python -m experiments.kernel --kernel=infinite_mlp --dataset=mnist \
        --num_images=500 --workdir=runs/kernel

Writes config.json, results.json, arrays.npz, kernel.png and spectrum.png to --workdir,
and distance.png for a network that is trained. With --stream the kernel goes to
kernel.npy, block by block, and need not fit in memory. Killed at any moment and started
again with the same --workdir, it goes on.
"""

import dataclasses
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _flags, _image_sets, _kernels, _victim
from experiments._workdir import Workdir, versions
from ntk_privacy import _checks
from ntk_privacy.reports import kernel_plots
from ntk_privacy.resume import Timer

MAX_SHOWN = 2000
"""Images of which a streamed kernel is drawn and its spectrum taken."""

NOT_RESULTS = ("workdir", "progress", "checkpoint_seconds", "data_dir", "download")


def _field(default: Any, text: str, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, **more})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Computes a kernel on real images, and its spectrum."""

    kernel: Literal[
        "infinite_mlp", "infinite_convnet", "empirical_mlp", "neural_tangents_mlp"
    ] = _field(
        "infinite_mlp",
        "Closed forms of infinite width, the NTK of a network of --width, or "
        "neural-tangents' own.",
    )
    dataset: str = _image_sets.dataset_field("digits")
    image_size: int | None = _image_sets.size_field()
    task: str | None = _field(
        None,
        "odd_even, animal_vehicle, two_classes or all_classes; none is the set's "
        "binary task, if it has one.",
    )
    num_images: int = _field(100, "Images N, balanced over the classes.")
    depth: int = _field(2, "Hidden layers.")
    activation: Literal["relu", "erf", "gelu"] = _field("relu", "Of infinite networks.")
    weight_std: float = _field(1.0, "Of infinite networks.")
    bias_std: float = _field(0.0, "Of infinite networks.")
    parametrization: Literal["standard", "ntk"] | None = _field(
        None, "None: standard for finite networks, ntk for infinite ones."
    )
    width: int = _field(1024, "Units of a hidden layer, where they count.")
    head: Literal["flatten", "global_pool"] = _field(
        "flatten", "Of the infinite ConvNet."
    )
    pooling: Literal["none", "avg"] = _field(
        "none", "Of the infinite ConvNet, after each block."
    )
    train: bool = _field(
        True, "Train a finite network, and measure how far its kernel moves."
    )
    stop_loss: float = _field(1e-3, "Mean of (f - y)^2 / 2 at which training ends.")
    max_train_steps: int = _field(2000, "Limit of training.")
    stream: bool = _field(
        False, "Write the kernel block by block to kernel.npy instead of arrays.npz."
    )
    budget: float | None = _field(
        None,
        "Working memory of a block, MiB, of --stream and of empirical kernels; none "
        "is 256.",
        was=256.0,
    )
    seed: int = _field(0, "Fixes images and initialisation.")
    precision: Literal["float32", "float64"] = _field("float32", "Of everything.")
    data_dir: str | None = _field(
        None, "Folder of the image sets; none: NTK_PRIVACY_DATA, else the cache."
    )
    download: bool = _field(False, "Fetch the image set if it is not there.")
    fingerprint: str | None = _image_sets.fingerprint_field()
    workdir: str = _field("runs/kernel", "Folder of the results.")
    checkpoint_seconds: float = _field(30.0, "Time between checkpoints of training.")
    progress: bool = _field(True, "Show a progress bar.")

    def __post_init__(self):
        _image_sets.complete(self)
        _checks.at_least(
            1,
            num_images=self.num_images,
            width=self.width,
            depth=self.depth,
            max_train_steps=self.max_train_steps,
        )
        _checks.positive(stop_loss=self.stop_loss)
        if self.budget is not None:
            _checks.positive(budget=self.budget)
        _checks.at_least(
            0,
            weight_std=self.weight_std,
            bias_std=self.bias_std,
            seed=self.seed,
            checkpoint_seconds=self.checkpoint_seconds,
        )
        finite = self.kernel == "empirical_mlp"
        if self.budget is not None and not (finite or self.stream):
            raise ValueError(
                f"budget={self.budget} bounds blocks, and kernel={self.kernel} is made "
                "in one: add --stream, or leave --budget out."
            )
        own = (self.weight_std, self.bias_std, self.activation)
        if finite and own != (1.0, 0.0, "relu"):
            raise ValueError(
                f"kernel={self.kernel} has Flax's initialisation and ReLU: leave "
                "--weight_std, --bias_std and --activation out."
            )
        if self.kernel == "neural_tangents_mlp" and self.parametrization == "standard":
            raise ValueError(
                "kernel=neural_tangents_mlp is in the NTK parametrisation here: use "
                "--kernel=infinite_mlp for the standard one."
            )
        if finite and self.stream and self.train:
            raise ValueError(
                "stream=true keeps no kernel in memory to compare with: add --notrain."
            )

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        why = f"--kernel={self.kernel}"
        finite = self.kernel == "empirical_mlp"
        out = {}
        if self.kernel != "infinite_convnet":
            out |= dict.fromkeys(("head", "pooling"), why)
        if not finite:
            out |= dict.fromkeys(("train", "stop_loss", "max_train_steps"), why)
            if self.parametrization != "standard":
                out["width"] = why + " in the NTK parametrisation"
        elif not self.train:
            out |= dict.fromkeys(("stop_loss", "max_train_steps"), "--notrain")
        return out


def run(config: Config) -> dict[str, Any]:
    """Runs one configuration; returns what results.json holds.

    Raises:
      UsageError: the folder belongs to another configuration, or the flags ask for
        what the image set does not have.
      OSError: a file is missing.
      ValueError: a file is damaged, or training cannot go on.
    """
    double = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]  # set at run time
    if config.precision == "float64" and not double:
        with jax.enable_x64(True):
            return _run(config)
    return _run(config)


def _run(config: Config) -> dict[str, Any]:
    # Before the folder is touched: images that cannot be had leave nothing behind.
    done = (pathlib.Path(config.workdir) / "results.json").exists()
    loaded = None if done else _prepare(config)
    ignore = _image_sets.not_results(config, NOT_RESULTS)
    with Workdir(config.workdir, config, ignore=ignore) as workdir:
        if workdir.is_done():
            return workdir.read_json("results.json")
        return _compute(config, workdir, *(loaded or _prepare(config)))


def _prepare(config: Config):
    dataset, key_init = _victim.load(config)
    dtype = jnp.dtype(config.precision)
    x, y = jnp.asarray(dataset.x_train, dtype), jnp.asarray(dataset.y_train, dtype)
    net = _kernels.network(config, key_init, x, y.shape[1])
    fn = _kernels.kernel_fn(config, net)
    _kernels.check_budget(config, net, fn, x)
    return dataset, x, y, net, fn


def _compute(config, workdir, dataset, x, y, net, fn) -> dict[str, Any]:
    computing, training = Timer(), Timer()
    # Images of one class stand together in the picture.
    order = np.argsort(dataset.class_train, kind="stable")
    x, y = x[order], y[order]
    arrays = {"labels": y, "classes": dataset.class_train[order]}
    if config.stream:
        kernel = _kernels.stream(config, workdir, fn, x, computing)
    else:
        with computing():
            kernel = np.asarray(jax.jit(fn)(x))
        arrays["kernel"] = kernel
    shown = np.linspace(0, len(x) - 1, min(len(x), MAX_SHOWN)).round().astype(int)
    part = kernel if len(shown) == len(x) else kernel[np.ix_(shown, shown)]
    eigenvalues = np.linalg.eigvalsh(np.asarray(part, np.float64))[::-1]
    arrays["eigenvalues"] = eigenvalues
    spectra = {"initialisation" if net else config.kernel: eigenvalues}
    extra: dict[str, Any] = {}
    if net is not None and config.train:
        moved = _kernels.train_and_look(
            config, workdir, net, jnp.asarray(kernel), x, y, training
        )
        after = np.linalg.eigvalsh(np.asarray(moved.kernel_t, np.float64))[::-1]
        spectra[f"after {moved.steps[-1]} steps"] = after
        arrays |= {"kernel_after": moved.kernel_t, "eigenvalues_after": after}
        extra = {
            "kernel_distance": moved.distances[-1],
            "train_steps": moved.steps[-1],
            "train_loss": moved.losses[-1],
            "converged": moved.converged,
            "steps": moved.steps,
            "losses": moved.losses,
            "kernel_distances": moved.distances,
        }
        kernel_plots.distances(
            moved.steps, moved.distances, moved.losses, workdir.path("distance.png")
        )
    _draw(config, workdir, part, spectra)
    workdir.write_arrays("arrays.npz", **arrays)
    results = {
        "kernel": config.kernel,
        "dataset": config.dataset,
        "num_images": config.num_images,
        "seed": config.seed,
        "spectrum_images": len(shown),
        **_numbers(np.asarray(part, np.float64), eigenvalues, np.asarray(y)[shown]),
        **extra,
        "seconds": {
            "compile": computing.compile + training.compile,
            "kernel": computing.run,
            "train": training.run,
        },
        "versions": versions(),
    }
    results["device"] = results["versions"].pop("device")
    # Last: its presence says that the run is whole.
    workdir.write_json("results.json", results)
    return workdir.read_json("results.json")


def _draw(config, workdir, part, spectra) -> None:
    n = len(part)
    chosen = f"{n} images" + f" of {config.num_images}" * (n < config.num_images)
    title = f"{config.kernel}, {config.dataset}, {chosen}"
    kernel_plots.picture(part, workdir.path("kernel.png"), title=title)
    largest = max(float(values[0]) for values in spectra.values())
    kernel_plots.spectrum(
        spectra,
        workdir.path("spectrum.png"),
        title=f"Spectrum: {title}",
        rounding=float(np.finfo(config.precision).eps) * largest,
    )


def _numbers(kernel, eigenvalues, y) -> dict[str, float]:
    trace, size = float(np.trace(kernel)), float(np.linalg.norm(kernel))
    largest, smallest = float(eigenvalues[0]), float(eigenvalues[-1])
    return {
        "trace": trace,
        "largest_eigenvalue": largest,
        "smallest_eigenvalue": smallest,
        "condition_number": largest / smallest if smallest > 0 else float("inf"),
        # As many equal eigenvalues would have this trace and this norm.
        "effective_rank": (trace / size) ** 2,
        # 1 for the kernel y y^T.
        "target_alignment": float(
            np.einsum("nc,nm,mc->", y, kernel, y) / (size * np.linalg.norm(y @ y.T))
        ),
    }


def summary(results: dict[str, Any]) -> str:
    """Returns a short table for the terminal."""
    seconds = results["seconds"]
    rows = [
        ("largest eigenvalue", f"{results['largest_eigenvalue']:.4g}"),
        ("smallest eigenvalue", f"{results['smallest_eigenvalue']:.4g}"),
        ("condition number", f"{float(results['condition_number']):.4g}"),
        ("effective rank", f"{results['effective_rank']:.4g}"),
        ("alignment with the targets", f"{results['target_alignment']:.4g}"),
    ]
    if "kernel_distance" in results:
        short = "" if results["converged"] else " (not reached what was asked)"
        rows += [
            ("training steps", str(results["train_steps"])),
            ("training loss", f"{results['train_loss']:.3g}{short}"),
            ("kernel distance after training", f"{results['kernel_distance']:.4g}"),
        ]
    told = ", ".join(f"{seconds[k]:.1f}" for k in ("compile", "kernel", "train"))
    rows.append(("seconds: compile, kernel, train", told))
    size = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{size}}  {value}" for name, value in rows)


def main(config: Config) -> None:
    """Runs and prints the summary."""
    print(summary(run(config)))
    print(f"kernel.png, spectrum.png and results.json are in {config.workdir}")


if __name__ == "__main__":
    _flags.run(main, Config)
