r"""The KKT attack: training images from the weights before and after training.

At convergence of a linearized network $\theta_t - \theta_0 = \sum_i \alpha_i \nabla
f(x_i)$: images and duals that satisfy it are looked for by gradient descent on the
squared residual (`kernels.stationarity`) plus a penalty that keeps pixels in range.

Source: Loo et al., ICLR 2024 (arXiv:2302.01428), section 4. Beyond the paper:

* Candidates move in the column space of the first layer's change only. Each gradient
  of that layer is a sum of outer products with training images, so under full-batch
  training of any kind the images lie in that space, exactly.
* The loss is quadratic in the duals: they are solved for at every step (variable
  projection), and the search is over images alone.
* The first layer's equations are left out after that: what is left still has far more
  equations than unknowns, and half the cost.
* The loss is evaluated in its kernel form; the features are taken at any points of the
  segment from $\theta_0$ to $\theta_t$; steps decay by a cosine, and the sharpness of
  the smoothed ReLU rises geometrically over the first part of the run.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from ntk_privacy import _checks, _loop, _tree, sharding
from ntk_privacy._types import ApplyFn, Callback, Params
from ntk_privacy.kernels import stationarity
from ntk_privacy.method import Method, field
from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction import explanation, judging, result, staged
from ntk_privacy.reconstruction.evidence import Dynamics, Evidence
from ntk_privacy.reconstruction.kkt_attack import Attack as Attack
from ntk_privacy.reconstruction.kkt_attack import prepare as prepare
from ntk_privacy.reconstruction.kkt_step import AttackState as AttackState
from ntk_privacy.reconstruction.settings import FAST as FAST
from ntk_privacy.reconstruction.settings import PAPER as PAPER
from ntk_privacy.reconstruction.settings import POLISH as POLISH
from ntk_privacy.reconstruction.settings import REPLAYED as REPLAYED
from ntk_privacy.reconstruction.settings import STANDARD as STANDARD
from ntk_privacy.reconstruction.settings import Settings as Settings
from ntk_privacy.reconstruction.settings import parse_points as parse_points
from ntk_privacy.reconstruction.verdict import Verdict
from ntk_privacy.resume import Stage, straight

__all__ = [
    "FAST",
    "METHOD",
    "PAPER",
    "POLISH",
    "REPLAYED",
    "STANDARD",
    "Attack",
    "AttackState",
    "Config",
    "Reconstruction",
    "Settings",
    "from_evidence",
    "parse_points",
    "plan",
    "prepare",
    "reconstruct",
    "run",
    "run_staged",
]


class Reconstruction(NamedTuple):
    """What a search found, and whether that is anything.

    Attributes:
      images: candidates, mean-subtracted like the training set.
      duals: multipliers, one set per point.
      losses: before every step of this call, without the box penalty.
      state: to continue from.
      nonfinite: the loss became NaN or infinite.
      verdict: what the evidence says of all images together (`judging.of_search`).
      contributions: share of the squared change that no other candidate makes up for,
        one per image; near 0 for images that explain nothing or that are there twice.
    """

    images: Float[Array, "m h w d"]
    duals: Float[Array, "q m c"]
    losses: Float[Array, " steps"]
    state: AttackState
    nonfinite: bool
    verdict: Verdict
    contributions: Float[np.ndarray, " m"]


def run(
    attack: Attack,
    *,
    first_step: int = 0,
    chunk: int = 100,
    callback: Callback | None = None,
    mesh: Mesh | None = None,
) -> Reconstruction:
    """Runs a search from `attack.state` to its last step.

    Args:
      attack: from `prepare`; replace its state to continue an earlier run.
      first_step: the number of steps that the state has behind it.
      chunk: steps between calls of `callback`.
      callback: `(steps, state, metrics)` after each chunk.
      mesh: of `sharding.row_mesh`, whose devices share the candidates.
    """
    losses = []

    def after_chunk(done, state, metrics):
        losses.append(np.asarray(metrics["loss"]))
        stop = _loop.asks_to_stop(callback, done, state, metrics)
        return stop or not np.isfinite(losses[-1][-1])

    state, _ = _loop.run(
        attack.step if mesh is None else dataclasses.replace(attack.step, mesh=mesh),
        # A checkpoint may have left it on the host.
        jax.tree.map(jnp.asarray, attack.state),
        attack.problem,
        num_steps=attack.step.settings.num_steps,
        first_step=first_step,
        chunk=chunk,
        callback=after_chunk,
        mesh=mesh,
    )
    history = np.concatenate(losses) if losses else np.zeros(0, state.latents.dtype)
    m, c = state.duals.shape[1:]
    pixels = attack.step.pixels(state.latents, attack.problem)
    images, duals = pixels.reshape(m, *attack.image_shape), state.duals / (m * c)
    # Of an earlier call too: a search that was lost stays so.
    lost = not bool(np.isfinite(history).all() and jnp.isfinite(state.latents).all())
    found = None if lost else _explained(attack, images, duals)
    return Reconstruction(
        images=images,
        duals=duals,
        losses=jnp.asarray(history),
        state=state,
        nonfinite=not bool(np.isfinite(history).all()),
        verdict=judging.of_search(found),
        contributions=np.zeros(m) if found is None else found.contributions,
    )


def _explained(attack: Attack, images, duals) -> explanation.Explained | None:
    judged = attack.judged
    features = judged.features or stationarity.features(
        judged.params_0, judged.params_t, judged.points
    )
    return explanation.measure(
        attack.step.network,
        features,
        _tree.sub(judged.params_t, judged.params_0),
        images,
        duals,
        bounds=judged.bounds,
    )


def reconstruct(
    network: MLP | ApplyFn,
    params_0: Params,
    params_t: Params,
    *,
    key: Array,
    image_shape: tuple[int, int, int],
    num_images: int,
    bounds: tuple[Any, Any],
    num_outputs: int = 1,
    points: str | Sequence[float] = "midpoint",
    features: Sequence[Params] | None = None,
    settings: Settings = FAST,
    initial_images: Float[Array | np.ndarray, "m h w d"] | None = None,
    initial_duals: Float[Array | np.ndarray, "q m c"] | None = None,
    movable: Bool[Array | np.ndarray, " m"] | None = None,
    chunk: int = 100,
    callback: Callback | None = None,
    mesh: Mesh | None = None,
) -> Reconstruction:
    r"""Recovers training images from parameters before and after training.

    Minimises $\|\theta_t - \theta_0 - \frac1{mc}\sum_{q,j,c} a_{q,j}^c \nabla_\theta
    f^c_{\theta(s_q)}(x_j)\|^2 + \text{box}$ over images $x_j$ and duals $a$
    (arXiv:2302.01428, Eq. 7; $s = 1$ in the released code, $s = 0$ in print).

    Args:
      network: an `MLP`, or any `apply_fn(params, images)`; the latter needs
        `settings.form="parameter"` and `project=False`.
      params_0: parameters before training.
      params_t: parameters after training.
      key: typed key; fixes the initial images and duals.
      image_shape: (height, width, depth) in pixels.
      num_images: candidates m, usually twice the training set.
      bounds: smallest and largest intensity, scalar or per channel, in the units
        that the network takes: (-mean, 1 - mean).
      num_outputs: c, for an `apply_fn`; an `MLP` knows its own.
      points: "final", "init", "midpoint", "both", "three" (0, 1/2, 1) or s in [0, 1],
        each with its own duals. For linearized training use "init", where its gradients
        were; for standard training "both", with `settings=STANDARD`.
      features: parameters at which gradients are taken, each with its own duals, in
        place of `points`: from `replay.replay`.
      settings: `FAST`, or `PAPER` for the published search.
      initial_images: to start from, in place of noise.
      initial_duals: multipliers to start from, one set per point.
      movable: False where an initial image is held fixed.
      chunk: steps between calls of `callback`.
      callback: `(steps, state, metrics)` after each chunk. To resume, give a saved
        state to `prepare(...)._replace(state=...)` and call `run`.
      mesh: of `sharding.row_mesh`, whose devices share the candidates.

    Raises:
      ValueError: the parameters differ in structure or not at all, hold a NaN, do not
        fit the images, or a number is out of range.

    Example:
      >>> import dataclasses
      >>> import jax
      >>> import ntk_privacy
      >>> from ntk_privacy.reconstruction import kkt
      >>> key = jax.random.key(0)
      >>> digits = ntk_privacy.data.load("digits", num_train=2, key=key)
      >>> victim = ntk_privacy.training.victim.train(
      ...     digits.x_train, digits.y_train, width=64, key=key
      ... )
      >>> found = kkt.reconstruct(
      ...     victim.model,
      ...     victim.params_0,
      ...     victim.params_t,
      ...     key=key,
      ...     image_shape=(8, 8, 1),
      ...     num_images=4,
      ...     bounds=digits.bounds,
      ...     points="init",
      ...     settings=dataclasses.replace(kkt.FAST, num_steps=20),
      ... )
      >>> found.images.shape
      (4, 8, 8, 1)
    """
    attack = prepare(
        network,
        params_0,
        params_t,
        key=key,
        image_shape=image_shape,
        num_images=num_images,
        bounds=bounds,
        num_outputs=num_outputs,
        points=points,
        features=features,
        settings=settings,
        initial_images=initial_images,
        initial_duals=initial_duals,
        movable=movable,
    )
    return run(attack, chunk=chunk, callback=callback, mesh=mesh)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How the attack searches, where evidence says what for.

    Attributes: see the help of each field.
    """

    settings: Literal["fast", "paper"] = field(
        "fast", "Of the search: ours, which depend on the dynamics, or the published."
    )
    points: str | None = field(
        None,
        "Where features are taken: final, init, midpoint, both, three, or numbers in "
        "[0, 1] between commas; none is what suits settings and dynamics.",
    )
    num_candidates: int | None = field(
        None, "Images searched for; none is twice those of the training set."
    )
    num_steps: int | None = field(
        None, "Steps of the search; none is what the settings say."
    )
    learning_rate: float | None = field(
        None, "Step size of the images (intensity); none is what the settings say."
    )

    def __post_init__(self):
        _checks.one_of(("fast", "paper"), settings=self.settings)
        if self.points is not None:
            parse_points(self.points)
        for name in ("num_candidates", "num_steps"):
            if getattr(self, name) is not None:
                _checks.at_least(1, **{name: getattr(self, name)})
        if self.learning_rate is not None:
            _checks.positive(learning_rate=self.learning_rate)


def plan(config: Config, dynamics: Dynamics) -> tuple[Settings, tuple[float, ...]]:
    """Returns the settings of the search, and the points of its features.

    Args:
      config: what is asked.
      dynamics: of the training under attack.

    Raises:
      ValueError: points where a linearized network has no gradients.
    """
    if config.settings == "paper":
        settings, points = PAPER, "final"
    elif dynamics == "standard":
        settings, points = STANDARD, "both"
    else:
        settings, points = FAST, "init"
    given = {"num_steps": config.num_steps, "learning_rate": config.learning_rate}
    given = {name: value for name, value in given.items() if value is not None}
    if dynamics == "linearized":
        # The gradients of a linearized network are those at theta_0, everywhere.
        if config.points not in (None, "init"):
            raise ValueError(
                f"points={config.points!r}: the gradients of a linearized network are "
                "those at initialisation; leave the flag out."
            )
        points = "init"
    elif config.points is not None:
        points = config.points
    return dataclasses.replace(settings, **given), parse_points(points)


def run_staged(
    attack: Attack, *, stage: Stage = straight, name: str = "attack", chunk: int = 50
) -> Reconstruction:
    """Runs a search as a stage; its losses are those of all steps, before a kill too.

    Args:
      attack: from `prepare`.
      stage: runs its loop.
      name: of the loop.
      chunk: steps between calls of the stage's callback.
    """

    def go(state, done, callback):
        return run(
            attack._replace(state=state),
            first_step=done,
            chunk=chunk,
            callback=callback,
            mesh=sharding.all_devices(),
        )

    ran = staged.search(stage, name, attack.state, go, attack.step.settings.num_steps)
    found = ran.result
    losses = jnp.asarray(ran.losses, found.images.dtype)
    if not ran.lost:
        return found._replace(losses=losses, nonfinite=False)
    # In an earlier start of this run, perhaps.
    verdict = judging.of_search(None)
    return found._replace(losses=losses, nonfinite=True, verdict=verdict)


def from_evidence(
    evidence: Evidence,
    config: Config = Config(),
    *,
    key: Array,
    starts: Float[np.ndarray, "k h w d"] | None = None,
    stage: Stage = straight,
) -> result.Reconstruction:
    """Searches for the images that evidence speaks of, from noise.

    Args:
      evidence: network, weights before and after, image shape and bounds; the number of
        images unless `config.num_candidates` is given.
      config: of the search.
      key: typed key; fixes the initial images and duals.
      starts: images that the first candidates begin from, in place of noise.
      stage: runs the loop "attack".

    Raises:
      ValueError: something is not known that is needed; else see `reconstruct`.

    Example:
      >>> import jax
      >>> from ntk_privacy import data, reconstruction
      >>> from ntk_privacy.training import victim
      >>> key = jax.random.key(0)
      >>> digits = data.load("digits", num_train=2, key=key)
      >>> trained = victim.train(digits.x_train, digits.y_train, width=32, key=key)
      >>> known = reconstruction.evidence.of(trained, bounds=digits.bounds)
      >>> row = reconstruction.METHODS["kkt"]
      >>> found = row.run(known, row.configured(num_steps=2, num_candidates=4), key=key)
      >>> found.images.shape
      (4, 8, 8, 1)
    """
    evidence.needs("kkt", "params_0", "bounds")
    settings, points = plan(config, evidence.dynamics)
    network = (evidence.network, evidence.params_0, evidence.params_t)
    given: dict[str, Any] = {
        "num_images": config.num_candidates or evidence.num_candidates(),
        "num_outputs": evidence.num_outputs,
        "points": points,
        "settings": settings,
        **evidence.common(key),
    }
    attack = prepare(*network, **given)
    if starts is not None and len(starts):
        noise = attack.step.pixels(attack.state.latents, attack.problem)
        images = np.array(noise).reshape(-1, *evidence.image_shape)
        some = starts[: len(images)]
        images[: len(some)] = some
        attack = prepare(*network, initial_images=images, **given)
    found = run_staged(attack, stage=stage)
    m = len(found.images)
    return result.Reconstruction(
        images=np.asarray(found.images),
        duals=np.asarray(found.duals),
        losses=np.asarray(found.losses),
        verdict=found.verdict,
        sources=("kkt",) * m,
        contributions=found.contributions,
        nonfinite=found.nonfinite,
        **result.uncertain(m),
    )


def _check(evidence: Evidence, config: Config) -> None:
    plan(config, evidence.dynamics)


def _paper(**given: Any) -> Config:
    return Config(**{"settings": "paper", **given})


METHOD = Method(
    name="kkt",
    about="Gradient search for images that explain the change of the weights (Loo et "
    "al., ICLR 2024, arXiv:2302.01428).",
    config=Config,
    presets={"fast": Config, "paper": _paper},
    run=from_evidence,
    check=_check,
)
