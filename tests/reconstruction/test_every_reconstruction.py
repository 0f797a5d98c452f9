"""One contract for every reconstruction attack, a toy of the test's own among them."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from experiments import _flags, reconstruct
from ntk_privacy import _checks, data, method, resume
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import (
    METHODS,
    Reconstruction,
    evidence,
    max_margin,
)
from ntk_privacy.reconstruction.verdict import Verdict
from ntk_privacy.training import adapter_victim, logistic, margin_victim, victim
from ntk_privacy.training.recipe import Recipe

# So narrow that decoding leaves images to search for, however it rounds.
N, WIDTH, EPOCHS = 6, 16, 20
_TITLES = ["Images:", "The network:", "What the attacker knows:", "The run:"]


@dataclasses.dataclass(frozen=True)
class _Config:
    num_steps: int = method.field(3, "Steps.")
    num_candidates: int = method.field(2, "Images.")

    def __post_init__(self):
        _checks.at_least(
            1, num_steps=self.num_steps, num_candidates=self.num_candidates
        )


def _noise(known, config, *, key, stage=resume.straight):
    """Halves noise at every step: an attack that finds nothing."""
    known.needs("toy", "params_0", "bounds")
    shape = (config.num_candidates, *known.image_shape)

    def go(images, done, callback):
        for step in range(done, config.num_steps):
            images = images / 2
            if callback(step + 1, images, {"loss": np.ones(1)}):
                break
        return images

    start = jax.random.normal(key, shape, np.float32)
    ran = stage("attack", start, go, config.num_steps)
    m = len(start)
    return Reconstruction(
        images=np.asarray(ran.result),
        duals=np.zeros((1, m, 1)),
        losses=ran.losses[np.isfinite(ran.losses)],
        verdict=Verdict("nothing found", "It is noise."),
        sources=("toy",) * m,
        certified=np.zeros(m, bool),
        residuals=np.full(m, np.nan),
        errors=np.full(m, np.inf),
    )


TOY = method.Method("toy", "Noise.", _Config, {"fast": _Config}, _noise)

# What makes each of them short, as flags; two chunks of its loop at least.
SHORT = {
    "auto": {"num_steps": 70},
    "algebraic": {},
    "closed_units": {},
    "adapter": {},
    "kkt": {"num_steps": 70, "num_candidates": 3},
    "max_margin": {"num_steps": 600, "num_candidates": 4},
    "unrolled": {"num_steps": 2},
    "toy": {"num_steps": 3, "num_candidates": 4},
}
# Loops that each goes through, in order.
STAGES = {
    "auto": ["decoded", "fill"],
    "algebraic": ["decoded"],
    "closed_units": ["closed_units"],
    "adapter": ["adapter"],
    "kkt": ["attack"],
    "max_margin": ["attack"],
    "unrolled": ["attack"],
    "toy": ["attack"],
}


@pytest.fixture(autouse=True)
def with_toy(monkeypatch):
    """One row in the table is all that a method takes."""
    monkeypatch.setitem(METHODS, "toy", TOY)


def _problem(name):
    """What the binary makes of `--num_images=6 --width=16`; and what to add again."""
    key, key_init = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    digits = data.load("digits", num_train=N, key=key)
    made = {"key": key_init, "width": WIDTH}
    if name == "max_margin":
        trained = margin_victim.train(
            digits.x_train, digits.y_train, max_steps=EPOCHS, **made
        )
        _, centre = logistic.preprocess(digits.x_train)
        return evidence.of(trained), centre
    if name == "adapter":
        trained = adapter_victim.train(digits.x_train, digits.y_train, **made)
        return evidence.of(trained, bounds=digits.bounds), 0
    if name == "unrolled":
        made |= {"dynamics": "standard", "recipe": Recipe(num_epochs=EPOCHS)}
    trained = victim.train(digits.x_train, digits.y_train, **made)
    return evidence.of(trained, bounds=digits.bounds, labels=digits.y_train), 0


@pytest.fixture(params=[*METHODS, "toy"], scope="module")
def case(request):
    """A method, its problem and config, and what it returns."""
    name = request.param
    row = {**METHODS, "toy": TOY}[name]
    known, centre = _problem(name)
    given = {"num_candidates": 2 * N, **SHORT[name]}
    names = {entry.name for entry in dataclasses.fields(row.config)}
    config = row.configured(**{k: v for k, v in given.items() if k in names})

    def run(stage=resume.straight, known=known):
        key = jax.random.fold_in(jax.random.key(1), 0)
        return row.run(known, config, key=key, stage=stage)

    return name, row, known, centre, run, run()


def _assert_same(one, other):
    for field in ("images", "duals", "losses", "certified", "errors", "residuals"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), field)
    assert one.verdict == other.verdict
    assert one.sources == other.sources


def test_the_result_has_one_row_per_image(case):
    *_, known, _, _, found = case
    m = len(found.images)
    assert found.images.shape == (m, *known.image_shape)
    assert found.duals.shape[1:] == (m, known.num_outputs)
    for field in ("sources", "certified", "errors", "residuals"):
        assert len(getattr(found, field)) == m, field
    assert found.contributions is None or len(found.contributions) == m
    assert found.verdict.reason.endswith(".")


def test_the_key_fixes_it(case):
    *_, run, found = case
    _assert_same(run(), found)


def test_it_stops_when_asked(case):
    name, *_, run, found = case
    part = run(resume.watched(lambda *_: True))
    if name in ("algebraic", "closed_units", "adapter"):
        # Decoding is one piece: it cannot be cut short.
        _assert_same(part, found)
    else:
        assert 0 < len(part.losses) < len(found.losses)
        assert np.isfinite(part.losses).all()
        assert not part.nonfinite


class _Killed(Exception):
    pass


def test_killed_at_any_chunk_it_ends_with_the_same_bits(case, tmp_path):
    name, *_, run, found = case
    options = {"timer": resume.Timer(), "seconds": 0.0}
    seen = []
    resumed = resume.resumed(
        tmp_path / "whole", stop=lambda step, *_: seen.append(step), **options
    )
    _assert_same(run(resumed), found)
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == STAGES[name]

    def kill_at(chunk):
        left = iter(range(chunk))

        def callback(*_):
            if next(left, None) is None:
                raise _Killed

        return callback

    for chunk in range(len(seen)):
        folder = tmp_path / str(chunk)
        with pytest.raises(_Killed):
            run(resume.resumed(folder, stop=kill_at(chunk), **options))
        _assert_same(run(resume.resumed(folder, **options)), found)


def test_bad_input_is_refused_in_a_sentence(case):
    name, row, known, _, run, _ = case
    spoilt = jax.tree.map(lambda leaf: leaf * np.nan, known.params_t)
    with pytest.raises(ValueError, match=r"params_t.* NaN or infinite: .*\."):
        run(known=dataclasses.replace(known, params_t=spoilt))
    if name != "max_margin":
        with pytest.raises(ValueError, match=f"params_0 is not known: {name} needs"):
            run(known=dataclasses.replace(known, params_0=None))
    for entry in dataclasses.fields(row.config):
        if entry.type in (int, int | None, "int", "int | None"):
            with pytest.raises(ValueError, match=f"{entry.name}=-1 must be at least"):
                row.configured(**{entry.name: -1})


def test_the_binary_finds_the_same(case, tmp_path, capsys):
    name, _, _, centre, _, found = case
    flags = {
        **{"num_images": N, "width": WIDTH, "method": name, "workdir": str(tmp_path)},
        **SHORT[name],
    }
    if name == "max_margin":
        flags |= {"max_train_steps": EPOCHS}
    if name == "unrolled":
        flags |= {"num_epochs": EPOCHS}
    given = [*(f"--{flag}={value}" for flag, value in flags.items()), "--noprogress"]
    told = _flags.call(reconstruct.main, reconstruct.PROGRAM.parse, given)
    assert told == 0, capsys.readouterr().err
    with np.load(tmp_path / "arrays.npz") as stored:
        images, losses = stored["reconstructions"], stored["losses"]
    np.testing.assert_array_equal(images, found.images + centre)
    np.testing.assert_array_equal(losses, found.losses)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_shape": (8, 0, 1)}, "image_shape=0 must be at least 1"),
        ({"num_images": 0}, "num_images=0 must be at least 1"),
        ({"num_outputs": 0}, "num_outputs=0 must be at least 1"),
        ({"labels": np.ones((2, 3))}, r"labels have shape \(2, 3\), the network has 1"),
    ],
)
def test_evidence_checks_itself(changes, told):
    given = {"network": lambda params, x: x, "params_t": {}, "image_shape": (8, 8, 1)}
    with pytest.raises(ValueError, match=told):
        evidence.Evidence(**{**given, **changes})


def test_what_is_told_of_labels_has_a_default():
    def known(**given):
        return evidence.Evidence(
            network=lambda params, x: x, params_t={}, image_shape=(8, 8, 1), **given
        )

    np.testing.assert_array_equal(known().codes(), [[-1.0], [1.0]])
    np.testing.assert_allclose(known(num_outputs=4).codes().sum(0), 0, atol=1e-12)
    told = np.asarray([[1.0], [-0.5], [1.0]])
    np.testing.assert_array_equal(known(labels=told).codes(), [[-0.5], [1.0]])
    with pytest.raises(ValueError, match="num_images is not told: tell it, or give"):
        known().num_candidates()


def _call(capsys, *flags):
    code = _flags.call(reconstruct.main, reconstruct.PROGRAM.parse, flags)
    return code, "".join(capsys.readouterr())


def test_help_has_the_flags_of_the_method_in_groups(capsys):
    def flags(*given):
        code, told = _call(capsys, *given)
        assert code == 0
        lines = told.split("\nvalues of --method:")[0].splitlines()
        names = re.findall(r"^  --(?:\[no\])?(\w+)", told, re.MULTILINE)
        return [line for line in lines if re.match(r"\w.*:$", line)], set(names), told

    titles, names, told = flags("--method=toy", "--help")
    assert "--method=auto|algebraic|closed_units|kkt|max_margin|adapter|" in told
    assert "toy: Noise." in told
    own = ["method:", "flags of toy:"]
    assert titles == [*own, *_TITLES]
    assert {"num_steps", "num_candidates", "dynamics", "known_num_images"} < names
    assert not {"replays", "settings", "points", "auxiliary", "num_starts"} & names
    titles, names, _ = flags("--method=toy", "--helpshort")
    assert titles == own
    assert names == {"method", "num_steps", "num_candidates"}
    assert {"replays", "auxiliary"} < flags("--help")[1]
    assert "auxiliary" in flags("--method=algebraic", "--help")[1]
    _, names, told = flags("--method=max_margin", "--help")
    assert not {"dynamics", "schedule", "stop_loss", "depth", "points"} & names
    assert "(fast: 0.001, paper: 0.0)" in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--method=toy", "--replays=1"], "--replays has no effect with --method=toy"),
        (["--method=toys"], "did you mean toy? Use one of auto, algebraic, closed_u"),
        (["--method=kkt", "--auxiliary=none"], "(it is a flag of auto, algebraic)"),
        (["--method=max_margin", "--depth=2"], "--depth has no effect with --method=m"),
        (["--method=algebraic", "--num_steps=5"], "(it is a flag of auto, kkt, max_ma"),
        (["--replays=1"], "no effect with --dynamics=linearized"),
        (["--max_train_steps=9"], "no effect with the closed form of --dynamics=linea"),
        (["--early_stop_loss=1", "--stop_loss=2"], "must be above stop_loss=2.0"),
        (["--early_stop_loss=1", "--stop_loss=.1"], "no effect with --early_stop_loss"),
        (["--sweep=smoke", "--width=9"], "--width has no effect with --sweep=smoke"),
        (["--sweep=smok"], "did you mean smoke? Use one of full, cpu, smoke"),
        (
            ["--method=kkt", "--num_candidates=3", "--known_num_images=2"],
            "--known_num_images has no effect with --num_candidates",
        ),
        (["--method=max_margin", "--released=magic"], "use one of cifar10_b"),
    ],
)
def test_what_is_not_read_is_refused(capsys, flags, told):
    code, found = _call(capsys, *flags)
    assert (code, told in found, found.count("\n")) == (2, True, 1), found


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("algebraic", {"network": MLP((9,), 1)}, "algebraic takes two or more hidden"),
        (
            "algebraic",
            {"network": MLP((9, 9), 1, parametrization="ntk")},
            "hidden layers in the standard parametrisation; use kkt",
        ),
        ("max_margin", {"network": MLP((9, 9), 3)}, "max_margin takes two classes"),
        ("kkt", {"dynamics": "linearized"}, "points='final': the gradients of a lin"),
        ("auto", {"dynamics": "linearized"}, "points='final': the gradients of a lin"),
    ],
)
def test_a_network_that_a_method_does_not_take_is_refused_before_training(
    name, changes, told
):
    row = METHODS[name]
    points = {"points": "final"} if name in ("kkt", "auto") else {}
    given = {"network": MLP((9, 9), 1), "params_t": {}, "image_shape": (8, 8, 1)}
    with pytest.raises(ValueError, match=told):
        row.check(evidence.Evidence(**{**given, **changes}), row.configured(**points))
    row.check(evidence.Evidence(**given, dynamics="standard"), row.configured())


def test_released_settings_follow_the_channels_unless_one_is_named():
    rates = {
        depth: max_margin.plan(max_margin.Config(), depth).image_learning_rate
        for depth in (1, 3)
    }
    assert rates == {1: 0.2821, 3: 0.5549}
    named = max_margin.Config(released="mnist_kcf9bhbi")
    assert max_margin.plan(named, 3).image_learning_rate == 3.052e-2
    with pytest.raises(ValueError, match="released='magic'"):
        max_margin.Config(released="magic")
