"""What poison is worth once the set is condensed: networks trained on it, and asked.

Each seed draws a scene and poisons it; each way to condense makes a small set of the
poisoned images, networks trained on that are tested, and asked what they take the
target for. The control condenses the clean images, too: how often the attacker gets his
way without an attack.

Source: the experiments of the RDM-DC paper.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import METHODS as DISTILLATION
from ntk_privacy.distillation import dm
from ntk_privacy.distillation.robust_mean import MeanFn
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.evaluation import poisoned_means, protocol, students
from ntk_privacy.evaluation.poisoned_table import Entry, stride
from ntk_privacy.method import Method, field
from ntk_privacy.models import ConvNet
from ntk_privacy.poisoning import Poisoned, Scene, scenes
from ntk_privacy.resume import Stage, straight

__all__ = [
    "Condenser",
    "Config",
    "Plan",
    "Trial",
    "condenser",
    "plan",
    "study",
    "trial",
]

DM_METHODS = tuple(method.name for method in dm.METHODS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(dm.RobustConfig):
    """Condensation."""

    methods: tuple[str, ...] = field(("dm", "rdm"), "Of " + ", ".join(DM_METHODS) + ".")
    rate: float = field(0.01, "Poison, as a share of the training set.")
    num_runs: int = field(1, "Condensations per seed and method.")

    def __post_init__(self):
        super().__post_init__()
        _checks.named(methods=self.methods)
        for name in self.methods:
            _checks.one_of(DM_METHODS, methods=name)
        _checks.at_least(1, num_runs=self.num_runs)


class Condenser(NamedTuple):
    """A way to condense.

    condense: `(images, *, key, stage) -> Distilled`. mean_fn: how it takes the mean of
    features. batch_size: images of each class that it sees at once.
    """

    condense: Callable[..., Distilled]
    mean_fn: MeanFn
    batch_size: int


class Trial(NamedTuple):
    """A condensed set, and what networks trained on it say."""

    condensed: Distilled
    found: protocol.Evaluated


@runtime_checkable
class Piece(Protocol):
    """Makes a part of a study, or knows it from an earlier process."""

    def __call__(self, name: str, make: Callable[[Stage], Entry]) -> Entry:
        """Returns what `make(stage)` returns: arrays alone, or what JSON can hold."""
        ...


@runtime_checkable
class Show(Protocol):
    """Shows what has been made: the poison of a scene, a condensed set."""

    def __call__(
        self, name: str, scene: Scene, made: Poisoned | Distilled, title: str
    ) -> None:
        """`name` is that of a file, without its ending."""
        ...


def _at_once(name: str, make: Callable[[Stage], Entry]) -> Entry:
    del name
    return make(straight)


def _unseen(name: str, scene: Scene, made: Poisoned | Distilled, title: str) -> None:
    del name, scene, made, title


def condenser(
    name: str, config: dm.RobustConfig, images: ImageSet, *, preset: str | None = None
) -> Condenser:
    """Returns DM or one of its robust kin, checked against the images.

    Args:
      name: of `distillation.dm.METHODS`.
      config: its flags; those that it has not are passed over.
      images: to condense.
      preset: of what the config has no value for.

    Raises:
      ValueError: the flags do not fit the images.
    """
    method = DISTILLATION[name]
    names = method.configured(preset).__dataclass_fields__
    own = method.configured(preset, **{name: getattr(config, name) for name in names})
    method.check(images, own)

    def condense(images: ImageSet, *, key: Array, stage: Stage = straight) -> Distilled:
        return method.run(images, own, key=key, stage=stage)

    mean_fn = dm.mean_fn(name, config.rate * images.num_classes)
    return Condenser(condense, mean_fn, config.batch_size)


def trial(
    images: ImageSet,
    condense: Callable[..., Distilled],
    config: students.Config,
    targets: Float[Array | np.ndarray, "t h w d"],
    *,
    key: Array,
    stage: Stage = straight,
) -> Trial:
    """Condenses a set, trains networks on the result, and asks them about images.

    Args:
      images: to condense, poisoned or not, and to test on.
      condense: see `Condenser`.
      config: of the networks.
      targets: to be classified, in [0, 1].
      key: typed key.
      stage: runs the loops.

    Raises:
      ValueError: the loss of the condensation is not finite.
    """
    made = condense(images, key=key, stage=stage)
    if bool(made.nonfinite):
        raise ValueError(
            f"The loss is not finite after {int(made.state.steps)} steps: lower "
            "learning_rate."
        )
    found = students.train(
        images,
        made,
        config,
        key=jax.random.fold_in(key, 1),
        stage=stage,
        targets=jnp.asarray(images.normalised(targets)),
        name="evaluate",
    )
    return Trial(made, found)


class Plan(NamedTuple):
    """A study, all of it checked before anything is computed.

    scenes: of one image set, by seed. attack, config: of `poisoning.METHODS`.
    condensers: by name. networks: trained on each condensed set; each decides about the
    target. num_runs: condensations of each scene. control: whether networks of clean
    images are asked about every target, too.
    """

    scenes: Mapping[int, Scene]
    attack: Method[Any]
    config: object
    condensers: Mapping[str, Condenser]
    networks: students.Config
    num_runs: int = 1
    control: bool = True


def plan(
    images: ImageSet,
    attack: Method[Any],
    config: object,
    condensing: Config,
    networks: students.Config,
    *,
    seeds: Sequence[int],
    control: bool = True,
    preset: str | None = None,
) -> Plan:
    """Draws the scenes of a study, and refuses what does not fit the images.

    Args:
      images: to poison.
      attack: of `poisoning.METHODS`.
      config: of the attack.
      condensing: what condenses, and how much is poison.
      networks: see `Plan`.
      seeds: one for each scene.
      control: see `Plan`.
      preset: of condensing methods, for what the config has no value for.

    Raises:
      ValueError: the images are too few, or too coarse for the bound.
    """
    condensers = {
        name: condenser(name, condensing, images, preset=preset)
        for name in condensing.methods
    }
    alone = attack.name == "none"
    drawn = {
        seed: scenes.scene(images, seed=seed, rate=condensing.rate, at_least_one=alone)
        for seed in seeds
    }
    for each in drawn.values():
        attack.check(each, config)
    return Plan(
        drawn,
        attack,
        config,
        condensers,
        networks,
        condensing.num_runs,
        control and not alone,
    )


def study(plan: Plan, *, piece: Piece = _at_once, show: Show = _unseen) -> list[Entry]:
    """Returns an entry for each scene, way to condense, and run.

    Args:
      plan: of what.
      piece: keeps what is made, for a process that goes on.
      show: sees what is made.

    Raises:
      ValueError: the attack fails, or a loss is not finite.

    Example:
      >>> from ntk_privacy import data, poisoning
      >>> from ntk_privacy.evaluation import poisoned_sets, students
      >>> images = data.load_set("digits").subset(num_train=300, num_test=50)
      >>> attack = poisoning.METHODS["direct"]
      >>> sizes = {"width": 4, "num_steps": 2, "batch_size": 8, "images_per_class": 1}
      >>> plan = poisoned_sets.plan(
      ...     images,
      ...     attack,
      ...     attack.configured(),
      ...     poisoned_sets.Config(methods=("rdm",), **sizes),
      ...     students.Config(width=4, num_networks=2, num_epochs=2),
      ...     seeds=[0],
      ...     control=False,
      ... )
      >>> entries = poisoned_sets.study(plan)
      >>> len(entries), len(entries[0]["target_classes"])
      (1, 2)
    """
    attack, networks = plan.attack, plan.networks
    first, entries = next(iter(plan.scenes.values())), []
    for seed, scene in plan.scenes.items():
        name = f"poisons_{seed}"
        made = piece(
            name,
            functools.partial(_craft, scene, attack, plan.config, show=show, name=name),
        )
        poisoned = scene.poisoned(made["poisons"])
        for method, each in plan.condensers.items():
            model = ConvNet(poisoned.num_classes, networks.width)
            measure = functools.partial(
                poisoned_means.deviation,
                *(scene, poisoned, each.mean_fn),
                model=model,
                batch_size=each.batch_size,
            )
            left = piece(
                f"deviation_{seed}_{method}", functools.partial(_left, measure)
            )
            for run in range(plan.num_runs):
                ask = functools.partial(_ask, each, networks, run)
                draw = functools.partial(
                    _unseen if run else show,
                    f"condensed_{seed}_{method}",
                    title=f"{method}, poisoned by {attack.name}",
                )
                entry = {"seed": seed, "method": method, "run": run}
                entry |= piece(
                    f"cell_{seed}_{method}_{run}",
                    functools.partial(_cell, ask, scene, poisoned, entry, draw),
                )
                entry |= {name: left[name] for name in poisoned_means.Deviation._fields}
                if plan.control:
                    classes = piece(
                        f"control_{method}_{run}",
                        functools.partial(_without_attack, ask, first),
                    )["classes"]
                    told = classes[:, scene.target].tolist()
                    entry["target_classes_without_attack"] = told
                entries.append(entry)
    return entries


def _left(measure: Callable[[], poisoned_means.Deviation], stage: Stage) -> Entry:
    del stage  # one program, no loop
    return measure()._asdict()


def _craft(
    scene: Scene,
    attack: Method[Any],
    config: object,
    stage: Stage,
    *,
    show: Show,
    name: str,
) -> Entry:
    made = attack.run(scene, config, key=scene.key, stage=stage)
    names = scene.images.class_names
    pair = names[scene.target_class], names[scene.adversarial_class]
    classes = f"class {pair[0]} to be taken for {pair[1]}"
    show(name, scene, made, title=f"{attack.name}: {classes}")
    return {"poisons": np.asarray(made.images), "where": scene.where}


def _ask(
    condenser: Condenser,
    networks: students.Config,
    run: int,
    images: ImageSet,
    targets: Float[np.ndarray, "t h w d"],
    key: Array,
    stage: Stage,
) -> Trial:
    """Returns one trial; its draws are of the run, alike for all ways to condense."""
    key = jax.random.fold_in(key, 100 + run)
    return trial(images, condenser.condense, networks, targets, key=key, stage=stage)


def _cell(
    ask: Callable[..., Trial],
    scene: Scene,
    poisoned: ImageSet,
    about: Entry,
    draw: Callable[..., None],
    stage: Stage,
) -> Entry:
    made, found = ask(poisoned, scene.target_image[None], scene.key, stage)
    draw(scene, made)
    return about | {
        "class": scene.target_class,
        "adversarial_class": scene.adversarial_class,
        "accuracies": found.accuracy.tolist(),
        "target_classes": found.target_classes[:, 0].tolist(),
        "losses": made.losses[:: stride(len(made.losses))].tolist(),
    }


def _without_attack(ask: Callable[..., Trial], first: Scene, stage: Stage) -> Entry:
    """Returns what networks of clean images take every test image for.

    They serve all targets. The draws are those of the first scene, so that poison is
    all that its own cell differs by.
    """
    images = first.images
    return {
        "classes": ask(images, images.x_test, first.key, stage).found.target_classes
    }
