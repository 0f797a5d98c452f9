"""The flags of `experiments.distill`: which methods take them, and their defaults."""

import dataclasses
from typing import Any, Literal

from experiments import _condensed, _distillation, _image_sets, _sre2l_config
from ntk_privacy import _checks

# What None stands for with the methods of kernels.
_KERNEL_DEFAULTS: dict[str, Any] = {
    "num_images": 500,
    "num_steps": 50_000,
    "learning_rate": 1e-3,
    "width": 4096,
    "batch_size": None,
}
_KERNEL_ONLY = (
    *("task", "num_distilled", "noise_ratio", "kernel", "diag_reg", "learn_labels"),
    *("num_runs", "num_finite_runs", "attack", "attack_steps", "table", "defence"),
    *(
        "label_solve",
        "methods",
        "depth",
        "dynamics",
        "stop_loss",
        "max_train_steps",
        "precision",
    ),
)
# What some method of condensation takes.
_CONDENSING = tuple(
    dict.fromkeys(
        name
        for method in _condensed.METHODS.values()
        for flags in method.presets.values()
        for name in flags
    )
)
_RATES = (
    *("learning_rate", "train_learning_rate", "step_size", "step_size_rate"),
    "expert_learning_rate",
)
_PENALTY = ("penalty_weight", "penalty_step")
_NOT_COUNTS = ("rate", "experts", *_RATES, *_PENALTY)


def _field(default: Any, text: str, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, **more})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Distils a small training set, evaluates training on it, and attacks that."""

    method: Literal[
        *("kip", "rkip", "rkip_noise", "rkip_finite", "random", "full"),
        *("dm", "rdm", "dm_truncated", "dm_trimmed", "dm_median", "dm_entropy"),
        *("dc", "dsa", "mtt", "tesla"),
    ] = _field(
        "rkip",
        "kip matches predictions, rkip regressors, rkip_noise with pixels that stay "
        "noise, rkip_finite attacks a trained network; random and full are real "
        "images, some or all. dm matches mean features in random ConvNets, rdm and "
        "the others with a mean that some poison does not move; dc gradients, dsa of "
        "augmented images; mtt and tesla trajectories of networks in training. sre2l "
        "and cda have other flags: --method=sre2l --help.",
        elsewhere=_sre2l_config.METHODS,
    )
    dataset: str = _image_sets.dataset_field("digits")
    image_size: int | None = _image_sets.size_field()
    task: str | None = _field(
        None,
        "odd_even, animal_vehicle, two_classes or all_classes; none is the set's "
        "binary task, if it has one.",
    )
    num_images: int | None = _field(
        None,
        "Images to distil; none is 500, balanced over the classes, or all with dm and "
        "its kind.",
    )
    num_distilled: int = _field(20, "Distilled images, balanced over the classes.")
    num_steps: int | None = _field(
        None, "Steps of the search; none is 50,000, or what the preset says."
    )
    learning_rate: float | None = _field(
        None,
        "Of Adam, in intensity per step, none is 0.001; of SGD with dm and its kind, "
        "none is what the preset says.",
    )
    noise_ratio: float | None = _field(
        None,
        "Share of entries that stay noise, for rkip_noise and kip, in a study for "
        "rkip_noise alone; none is 0.05 and 0.",
    )
    kernel: Literal["ntk", "standard"] = _field(
        "ntk",
        "Parametrisation of the infinite-width kernel: the published one without "
        "biases, or that of the networks, with biases and at their width.",
    )
    diag_reg: float = _field(1e-5, "Ridge relative to the kernel's mean diagonal.")
    learn_labels: bool = _field(False, "Let the labels descend too.")
    label_solve: bool = _field(
        False, "Put the labels of least loss in place of the last ones, at the end."
    )
    batch_size: int | None = _field(
        None,
        "Targets that a step sees, none is all of them; with dm and its kind images of "
        "each class, none is what the preset says.",
    )
    evaluate: bool = _field(
        False,
        "Test accuracy at infinite width and of networks trained on the set, with "
        "linearized and with standard dynamics.",
    )
    num_runs: int = _field(
        1,
        "Networks per dynamics of --evaluate; with --table or --defence, repeats of "
        "everything, one seed each.",
    )
    num_finite_runs: int | None = _field(
        None, "Of the runs, how many train networks; none is all."
    )
    attack: bool = _field(
        False, "Attack a network trained on the set; compare with the original images."
    )
    attack_steps: int | None = _field(
        None, "Steps of the attack's search; none is its own default."
    )
    table: bool = _field(
        False, "Evaluate --methods over --num_runs seeds: the paper's Table 1."
    )
    defence: bool = _field(
        False, "Attack --methods over --num_runs seeds: the paper's defence figures."
    )
    methods: tuple[str, ...] = _field(
        (), "Of --table and --defence, between commas; empty is all that apply."
    )
    width: int | None = _field(
        None,
        "Units of every hidden layer, none is 4096; channels of ConvNets, none is what "
        "the preset says.",
    )
    depth: int = _field(2, "Hidden layers, of networks and of the kernel.")
    dynamics: Literal["linearized", "standard"] = _field(
        "linearized", "Training of the networks that are attacked."
    )
    stop_loss: float = _field(1e-10, "Mean of (f - y)^2 / 2 at which training ends.")
    max_train_steps: int = _field(5000, "Limit of iterative training.")
    preset: Literal["paper", "cpu"] | None = _field(
        None, "Of dm and its kind: sizes of the paper, or for two cores (none)."
    )
    images_per_class: int | None = _field(
        None, "Condensed images of each class (dm and its kind)."
    )
    outer_steps: int | None = _field(None, "Moves of the images per network (dc, dsa).")
    inner_epochs: int | None = _field(
        None, "Of training a network on the images between two moves (dc, dsa)."
    )
    penalty_weight: float | None = _field(
        None, "Of the curvature in the loss of real images (dc, dsa); none is 0."
    )
    penalty_step: float | None = _field(
        None, "Length of the step that tells the curvature (dc, dsa); none is 3."
    )
    student_steps: int | None = _field(
        None, "Steps on the condensed set that follow an expert (mtt, tesla)."
    )
    expert_epochs: int | None = _field(
        None, "Epochs of the expert that a student is to catch up with (mtt, tesla)."
    )
    max_start_epoch: int | None = _field(
        None, "Students start at an epoch below it (mtt, tesla)."
    )
    step_size: float | None = _field(
        None, "Of the student at first; it is learnt (mtt, tesla)."
    )
    step_size_rate: float | None = _field(
        None, "Step at which it is learnt (mtt, tesla)."
    )
    num_experts: int | None = _field(
        None, "Networks trained on the real images (mtt, tesla)."
    )
    expert_learning_rate: float | None = _field(None, "Of their training.")
    experts: str | None = _field(
        None, "Folder of experts to use, or to make; none is in the workdir."
    )
    rate: float | None = _field(
        None, "Poison to expect, as a share of all images (robust means)."
    )
    num_networks: int | None = _field(
        None, "ConvNets that --evaluate trains on the set (dm and its kind)."
    )
    num_epochs: int | None = _field(None, "Of their training.")
    train_learning_rate: float | None = _field(None, "Of their training.")
    num_test: int | None = _field(
        None, "Test images (dm and its kind); none is all of them."
    )
    seed: int = _field(0, "Fixes images, initialisation and searches.")
    precision: Literal["float32", "float64"] = _field("float32", "Of everything.")
    data_dir: str | None = _field(
        None, "Folder of the image sets; none: NTK_PRIVACY_DATA, else the cache."
    )
    download: bool = _field(False, "Fetch the image set if it is not there.")
    fingerprint: str | None = _image_sets.fingerprint_field()
    workdir: str = _field("runs/distill", "Folder of the results.")
    checkpoint_seconds: float = _field(30.0, "Time between checkpoints.")
    progress: bool = _field(True, "Show a progress bar.")

    def __post_init__(self):
        _image_sets.complete(self)
        self._fill_in()
        for name in ("num_images", "num_test", *_CONDENSING):
            if getattr(self, name) is not None and name not in _NOT_COUNTS:
                _checks.at_least(1, **{name: getattr(self, name)})
        _checks.at_least(
            1,
            num_distilled=self.num_distilled,
            num_steps=self.num_steps,
            num_runs=self.num_runs,
            width=self.width,
            depth=self.depth,
            max_train_steps=self.max_train_steps,
        )
        _checks.at_least(
            0,
            diag_reg=self.diag_reg,
            seed=self.seed,
            checkpoint_seconds=self.checkpoint_seconds,
        )
        _checks.positive(stop_loss=self.stop_loss)
        for name in (*_RATES, *_PENALTY):
            if getattr(self, name) is not None:
                _checks.positive(**{name: getattr(self, name)})
        for name, least in (("attack_steps", 1), ("batch_size", 1)):
            if getattr(self, name) is not None:
                _checks.at_least(least, **{name: getattr(self, name)})
        if self.penalty_step is not None and self.penalty_weight is None:
            raise ValueError(
                f"penalty_step={self.penalty_step} has no effect without "
                "penalty_weight: give that too, or leave it out."
            )
        if self.num_finite_runs is not None:
            _checks.in_range(0, self.num_runs, num_finite_runs=self.num_finite_runs)
        if self.noise_ratio is not None:
            _checks.in_range(0, 1, noise_ratio=self.noise_ratio)
            if self.method not in ("kip", "rkip_noise") and not self.is_study:
                raise ValueError(
                    f"noise_ratio={self.noise_ratio} is for rkip_noise and kip: leave "
                    f"it out for method={self.method!r}."
                )
        if self.is_study:
            self._check_study()
        elif self.methods:
            raise ValueError("methods is for --table and --defence: use --method.")
        elif self.method not in (*_distillation.SEARCHED, *_condensed.METHODS):
            for name in ("batch_size", "learn_labels", "label_solve"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name}={getattr(self, name)} is for kip, rkip and "
                        f"rkip_noise: leave it out for method={self.method!r}."
                    )
        if self.method == "full" and self.attack:
            raise ValueError(
                "method='full' is no distilled set: attack a network trained on all "
                "images with experiments.reconstruct."
            )

    def _check_study(self) -> None:
        """Refuses what a study would pass over in silence."""
        if self.table and self.defence:
            raise ValueError("table and defence are two studies: ask for one.")
        if self.table and self.attack:
            raise ValueError(
                "attack is no part of --table: ask for --defence, which may have the "
                "same workdir."
            )
        if self.method != "rkip":
            raise ValueError(
                f"method={self.method!r} is not that of a study: use "
                f"methods={self.method}."
            )
        for name in self.methods:
            _checks.one_of(_distillation.METHODS, methods=name)
            if self.methods.count(name) > 1:
                raise ValueError(f"methods names {name} twice: name it once.")
        if self.defence and "full" in self.methods:
            raise ValueError(
                "methods has full, which is no distilled set for --defence to attack: "
                "leave it out, or use experiments.reconstruct."
            )
        noisy = not self.methods or "rkip_noise" in self.methods
        if self.noise_ratio is not None and not noisy:
            raise ValueError(
                f"noise_ratio={self.noise_ratio} is for rkip_noise, which is not among "
                f"methods={','.join(self.methods)}: leave it out, or add rkip_noise."
            )

    def _fill_in(self) -> None:
        """Puts the method's values in place of None; refuses flags it does not take."""
        if self.method in _condensed.METHODS:
            for field in dataclasses.fields(self):
                name = field.name
                if name in _KERNEL_ONLY and getattr(self, name) != field.default:
                    raise ValueError(
                        f"method={self.method!r} takes no {name}: leave "
                        f"{name}={getattr(self, name)} out."
                    )
            values = _condensed.resolved(self, _CONDENSING)
        else:
            for name in ("preset", "num_test", *_CONDENSING):
                if name not in _KERNEL_DEFAULTS and getattr(self, name) is not None:
                    raise ValueError(
                        f"{name}={getattr(self, name)} is for dm and its kind: leave "
                        f"it out for method={self.method!r}."
                    )
            values = {
                name: value
                for name, value in _KERNEL_DEFAULTS.items()
                if getattr(self, name) is None
            }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        why = f"--method={self.method}"
        if self.method in _condensed.METHODS:
            out = dict.fromkeys(_KERNEL_ONLY, why)
            if not self.evaluate:
                told = ("num_networks", "num_epochs", "train_learning_rate")
                out |= dict.fromkeys(told, "a set that is not evaluated")
            return out
        if self.is_study:
            finite = not self.methods or "rkip_finite" in self.methods
            if self.table and not finite:
                return dict.fromkeys(("attack_steps", "dynamics"), "--table")
            return {}
        out = {}
        if self.method not in _distillation.SEARCHED:
            unread = ("num_steps", "learning_rate", "batch_size")
            out |= dict.fromkeys((*unread, "learn_labels", "label_solve"), why)
            if not self.evaluate:
                out["kernel"] = why
        if self.method == "full":
            out["num_distilled"] = why
        if not self.evaluate:
            alone = "a set that is not evaluated"
            out |= dict.fromkeys(("num_runs", "num_finite_runs"), alone)
        attacked = self.attack or self.method == "rkip_finite"
        if not attacked:
            out["attack_steps"] = "no attack"
            out["dynamics"] = "no network that is attacked"
        if not (attacked or self.evaluate):
            out["stop_loss"] = "no network that is trained"
            if self.kernel != "standard":
                out["width"] = "no network and --kernel=ntk"
        if not self.evaluate and not (attacked and self.dynamics == "standard"):
            out["max_train_steps"] = "no network that is trained step by step"
        return out

    @property
    def is_study(self) -> bool:
        """Whether several methods or seeds are asked for."""
        return self.table or self.defence
