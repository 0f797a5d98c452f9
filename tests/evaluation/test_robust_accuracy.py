"""Robust accuracy: closed form, survivors, batches, devices, resume, faults."""

import functools
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import several

from ntk_privacy import checkpoint
from ntk_privacy.evaluation import named_attacks, robust_accuracy
from ntk_privacy.evaluation.robust_accuracy import RobustnessWarning
from ntk_privacy.evasion import METHODS, Adversarial, ThreatModel, pgd, threat_model

KEY = jax.random.key(5)
EPS = 0.02
_RNG = np.random.default_rng(0)
W = _RNG.normal(size=(36, 4))
W = W - W.mean(axis=0)  # else the mean image has a class
X = _RNG.uniform(0.3, 0.7, size=(50, 6, 6, 1))
MISREAD = (0, 7, 30)


def linear(x):
    return x.reshape(len(x), -1) @ jnp.asarray(W, x.dtype)


Z = X.reshape(50, -1) @ W
Y = Z.argmax(1).astype(np.int32)
Y[list(MISREAD)] = (Y[list(MISREAD)] + 1) % 4


def _distances(norm):
    """To the nearest other class, exactly; 0 where it is misread."""
    gaps = Z[np.arange(50), Y][:, None] - Z
    across = W[:, Y].T[:, :, None] - W[None]
    size = np.abs(across).sum(1) if norm == "linf" else np.linalg.norm(across, axis=1)
    gaps[np.arange(50), Y] = np.inf
    return np.maximum((gaps / np.maximum(size, 1e-9)).min(1), 0)


def _quiet(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RobustnessWarning)
        return robust_accuracy.robust_accuracy(*args, **options)


evaluate = functools.partial(
    _quiet,
    linear,
    X,
    Y,
    key=KEY,
    threat_model=ThreatModel("linf", EPS),
    batch_size=16,
    num_steps=20,
    num_queries=30,
)


@pytest.fixture(scope="module")
def alone():
    return evaluate(attacks=("square", "pgd", "apgd_t", "cw"), survivors_only=False)


def test_a_linear_model_has_its_accuracy_in_closed_form(alone):
    distance = _distances("linf")
    assert np.abs(distance - EPS).min() > 1e-4  # nothing hangs by a thread
    np.testing.assert_array_equal(alone.survived["apgd_t"], distance > EPS)
    assert alone.accuracy["apgd_t"] == np.mean(distance > EPS)
    assert np.all(alone.survived["pgd"][distance > EPS])
    assert alone.accuracy["pgd"] <= alone.accuracy["apgd_t"] + 0.1
    assert alone.clean == 47 / 50
    assert 0.1 < alone.ensemble < 0.8
    np.testing.assert_array_equal(np.flatnonzero(~alone.correct), MISREAD)


def test_the_ensemble_is_no_better_than_each_and_counts_only_the_threat_model(alone):
    inside = ("square", "pgd", "apgd_t")
    assert all(alone.ensemble <= alone.accuracy[name] for name in inside)
    together = np.all([alone.survived[name] for name in inside], axis=0)
    assert alone.ensemble == together.mean()
    assert alone.accuracy["square"] > alone.ensemble
    assert alone.accuracy["square"] < alone.clean
    # CW has no bound here: it does not count, and its distances are in l_2.
    assert np.nanmin(alone.distance["cw"]) >= _distances("l2")[alone.correct].min()
    found = ~np.isnan(alone.distance["cw"])
    np.testing.assert_array_equal(found, alone.correct & ~alone.survived["cw"])


def test_images_and_who_found_them(alone):
    images, by = alone.images, np.array(alone.found_by)
    inside = np.isin(by, ("square", "pgd", "apgd_t"))
    move = np.abs(images.astype(np.longdouble) - X).max(axis=(1, 2, 3))
    assert move[inside].max() <= EPS
    assert set(by[~inside]) <= {"", "cw"}
    np.testing.assert_array_equal(images[by == ""], X[by == ""])
    read = np.asarray(linear(jnp.asarray(images))).argmax(1)
    np.testing.assert_array_equal(read != Y, (by != "") | ~alone.correct)
    for name in ("square", "pgd", "apgd_t", "cw"):
        spent = alone.queries[name] > 0
        np.testing.assert_array_equal(spent, alone.correct)
    # Broken within the bound: that image is kept, though CW had found one too.
    broken = alone.correct & ~np.all(
        [alone.survived[n] for n in ("square", "pgd", "apgd_t")], axis=0
    )
    np.testing.assert_array_equal(inside, broken)


def test_only_survivors_go_on(alone):
    found = evaluate(attacks=("square", "pgd", "apgd_t", "cw"))
    left = found.correct
    for name in ("square", "pgd", "apgd_t"):
        np.testing.assert_array_equal(found.queries[name] > 0, left)
        assert not np.any(found.survived[name] & ~left)
        left = found.survived[name]
    assert found.ensemble == found.accuracy["apgd_t"] == alone.ensemble
    np.testing.assert_array_equal(found.queries["cw"] > 0, found.correct)
    np.testing.assert_array_equal(found.survived["square"], alone.survived["square"])


def test_an_attack_does_not_depend_on_the_others(alone):
    single = evaluate(attacks=("square",))
    np.testing.assert_array_equal(single.survived["square"], alone.survived["square"])
    chex.assert_trees_all_equal(single.distance["square"], alone.distance["square"])
    other = evaluate(attacks=("square",), key=jax.random.key(6))
    assert not np.array_equal(
        other.distance["square"], single.distance["square"], equal_nan=True
    )


def _own(calls, share):
    """An attack that breaks what is brighter than a share of all images."""
    bright = np.quantile(X.mean((1, 2, 3)), 1 - share)

    def attack(logits_fn, x, y, *, key, threat_model):
        calls.append(
            (x.shape, np.asarray(jnp.argmax(logits_fn(x), axis=1).astype(y.dtype) == y))
        )
        hit = jnp.mean(x, axis=(1, 2, 3)) > bright
        return Adversarial(x, hit, jnp.ones(len(x), jnp.int32), jnp.zeros(len(x)))

    return attack


def test_batches_have_one_shape_and_are_filled_up_with_misread_images():
    calls, more = [], []
    found = evaluate(attacks={"half": _own(calls, 0.5), "most": _own(more, 0.8)})
    assert {shape for shape, _ in calls + more} == {(16, 6, 6, 1)}
    assert [int(right.sum()) for _, right in calls] == [16, 16, 15]
    left = round(50 * found.accuracy["half"])
    assert sum(int(right.sum()) for _, right in more) == left
    assert 20 <= left <= 25
    assert found.ensemble == found.accuracy["most"] < found.accuracy["half"]


def _moved(by, keep=lambda out: out):
    def attack(logits_fn, x, y, *, key, threat_model):
        del logits_fn, y, key, threat_model
        ones = jnp.ones(len(x), jnp.int32)
        return keep(Adversarial(x + by, ones > 0, ones, jnp.zeros(len(x))))

    return attack


@pytest.mark.parametrize(
    ("attack", "told"),
    [
        (_moved(3 * EPS), r"mine returned images up to 0\.\d+ .linf. away, beyond eps"),
        (_moved(jnp.nan), "up to nan .linf. away"),
        (_moved(0, lambda out: out.images), r"return an evasion\.Adversarial with"),
        (_moved(0, lambda out: out._replace(success=True)), "three numbers for each"),
    ],
)
def test_an_attack_of_one_s_own_keeps_the_threat_model(attack, told):
    """What it breaks by going further says nothing of the model."""
    with pytest.raises(ValueError, match=told):
        evaluate(attacks={"mine": attack})


def test_one_name_is_no_list_of_names():
    with pytest.raises(ValueError, match=r"attacks='pgd' is one name: give \('pgd',\)"):
        named_attacks.plan("pgd", threat_model=ThreatModel(), num_classes=3)


def test_autoattack_is_told_stage_by_stage_and_keeps_its_order():
    plan = functools.partial(
        named_attacks.plan, threat_model=ThreatModel("linf", EPS), num_classes=10
    )
    stages, said = plan(("pgd", "autoattack"))
    labels = ["pgd", *(f"autoattack/{p}" for p in ("apgd-ce", "apgd-t", "fab-t"))]
    assert [s.label for s in stages] == [*labels, "autoattack/square"]
    assert not said
    stages, said = plan(("autoattack",), num_classes=3)
    assert [s.part for s in stages] == ["apgd-ce", "fab-t", "square"]
    assert "The model has 3 classes, fewer than 10: autoattack with 2 of 9" in said[0]
    # 5000 queries of Square, unless said; 10 steps in torchattacks.
    stages, _ = plan(("autoattack_torchattacks10",))
    assert stages[0].run.keywords["stage"].keywords["num_steps"] == 10
    (square,), _ = plan(("square",))
    assert square.run.keywords["config"].num_queries == 5000
    (cw,), _ = plan(("cw",))
    assert (cw.threat_model.norm, cw.threat_model.eps, cw.within) == (
        "l2",
        float("inf"),
        False,
    )
    (cw,), _ = plan(("cw",), threat_model=ThreatModel("l2", 0.5))
    assert (cw.threat_model.eps, cw.within) == (0.5, True)


def test_zero_eps_returns_the_input():
    found = evaluate(attacks=("pgd", "square"), threat_model=ThreatModel("linf", 0))
    assert found.clean == found.ensemble == found.accuracy["pgd"] == 47 / 50
    np.testing.assert_array_equal(found.images, X)


def test_a_stopped_evaluation_goes_on_to_the_bit(tmp_path, alone):
    attacks = ("square", "pgd", "apgd_t", "cw")
    seen = []

    def save(done, state, metrics):
        seen.append((done, metrics["attack"]))
        checkpoint.save(tmp_path / str(len(seen)), 0, state)

    whole = evaluate(attacks=attacks, survivors_only=False, callback=save)
    assert len(seen) == 4 * 3
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (4 * 50, "cw")
    stages, _ = named_attacks.plan(
        attacks, threat_model=ThreatModel("linf", EPS), num_classes=4
    )
    like = robust_accuracy.init(X, stages=stages)
    for place in (1, 5, 9):
        state = checkpoint.restore(tmp_path / str(place), 0, like)
        state = robust_accuracy.RobustState(*map(np.asarray, state))
        again = evaluate(attacks=attacks, survivors_only=False, state=state)
        chex.assert_trees_all_equal(again, whole)
    with pytest.raises(ValueError, match=r"state\.success has shape .* start anew"):
        evaluate(attacks=("pgd",), state=state)
    assert whole.accuracy == alone.accuracy


_GRADIENT = ("pgd", "mim", "apgd_ce", "fab_t", "cw")


def _nan_off_the_grid(x):
    """Finite on images in steps of 1/64, NaN between them."""
    off = jnp.max(jnp.abs(64 * x - jnp.round(64 * x)), axis=(1, 2, 3)) > 0.3
    return jnp.where(off[:, None], jnp.nan, linear(x))


@pytest.mark.parametrize(
    "name", ["square", *(pytest.param(n, marks=pytest.mark.slow) for n in _GRADIENT)]
)
def test_nan_where_an_attack_came_is_one_sentence(name):
    x = np.round(X * 64) / 64
    y = np.asarray(linear(jnp.asarray(x))).argmax(1).astype(np.int32)
    with pytest.raises(ValueError, match="returned NaN") as caught:
        _quiet(
            _nan_off_the_grid,
            x,
            y,
            key=KEY,
            attacks=(name,),
            threat_model=ThreatModel("linf", 0.01),
            batch_size=16,
            num_steps=2,
            num_queries=3,
        )
    assert f"at points that {name} reached" in str(caught.value)


def test_few_classes_and_masked_gradients_are_said():
    def stairs(x):
        return jnp.round(linear(x)[:, :2] * 4) / 4

    y = np.asarray(stairs(jnp.asarray(X))).argmax(1).astype(np.int32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = robust_accuracy.robust_accuracy(
            stairs,
            X,
            y,
            key=KEY,
            threat_model=ThreatModel("linf", 0.1),
            batch_size=25,
            num_steps=5,
            num_queries=30,
        )
    assert [str(w.message) for w in caught] == list(found.warnings)
    said = " ".join(found.warnings)
    assert "2 classes, fewer than 10: autoattack with 1 of 9 targets" in said
    assert "The gradient (ce) vanishes for 25 of 25 images" in said
    left = found.left["autoattack"]
    broken = round(50 * (left["apgd-ce"] - left["square"]))
    assert broken > 1
    assert f"Square broke {broken} of 50 images" in said
    assert found.ensemble == left["square"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"attacks": ()}, "num_attacks=0 must be at least 1"),
        ({"attacks": ("best",)}, "attacks='best' is unknown: use one of pgd"),
        ({"attacks": ("pgd", "pgd")}, "attacks names pgd twice"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"num_queries": 0}, "num_queries=0 must be at least 1"),
        ({"attacks": {"a/b": pgd.attack}}, "use one without '/'"),
        ({"threat_model": ThreatModel("linf", float("inf"))}, "eps=inf bounds nothing"),
        ({"threat_model": ThreatModel(low=0.5, high=0.6)}, "outside the box"),
    ],
)
def test_bad_settings_are_one_sentence(change, text):
    with pytest.raises(ValueError, match=text.replace("(", r"\(")):
        evaluate(**{"attacks": ("pgd",), **change})


def test_a_model_of_one_class_has_no_attack():
    with pytest.raises(ValueError, match="num_classes=1 must be at least 2"):
        named_attacks.plan(("pgd",), threat_model=ThreatModel(), num_classes=1)


def test_bad_data_and_models_are_one_sentence():
    def call(logits_fn=linear, x=X, y=Y, attacks=("pgd",)):
        _quiet(logits_fn, x, y, key=KEY, attacks=attacks, batch_size=16)

    with pytest.raises(ValueError, match="Lengths differ"):
        call(y=Y[:3])
    with pytest.raises(ValueError, match=r"y spans \[\d, 4\] but the model has 4"):
        call(y=np.where(Y == 0, 4, Y))
    with pytest.raises(ValueError, match="NaN or infinite values in 1 rows"):
        call(x=np.where(np.arange(50)[:, None, None, None] == 4, np.nan, X))
    with pytest.raises(ValueError, match=r"returned \(16,\): return an array \(16, c"):
        call(lambda x: linear(x)[:, 0])
    with pytest.raises(ValueError, match="apgd_t needs 4 classes but the model has 3"):
        call(lambda x: linear(x)[:, :3], y=np.minimum(Y, 2), attacks=("apgd_t",))
    with pytest.raises(ValueError, match="returned NaN for 16 of 16"):
        call(lambda x: linear(x) * jnp.nan)


EIGHT = """
import warnings
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)
warnings.simplefilter("ignore")
from ntk_privacy import sharding
from ntk_privacy.evaluation import robust_accuracy
from ntk_privacy.evasion import ThreatModel

assert jax.device_count() == 8
rng = np.random.default_rng(0)
params = [jnp.asarray(rng.normal(size=s)) for s in ((36, 12), (12, 5))]

def apply(params, x):
    return jnp.tanh(x.reshape(len(x), -1) @ params[0]) @ params[1]

logits_fn = jax.tree_util.Partial(apply, params)
x = rng.uniform(0.2, 0.8, size=(45, 6, 6, 1))
y = np.asarray(logits_fn(jnp.asarray(x))).argmax(1).astype(np.int32)
found = [
    robust_accuracy.robust_accuracy(
        logits_fn, x, y, key=jax.random.key(0), attacks=("pgd", "square"),
        threat_model=ThreatModel("linf", 0.01), batch_size=20, num_steps=8,
        num_queries=20, mesh=mesh, survivors_only=False)
    for mesh in (None, sharding.row_mesh())
]
for name in found[0].survived:
    np.testing.assert_array_equal(found[0].survived[name], found[1].survived[name])
    np.testing.assert_array_equal(found[0].queries[name], found[1].queries[name])
np.testing.assert_allclose(found[0].images, found[1].images, atol=1e-12)
assert 0 < found[0].ensemble < found[0].clean
try:
    robust_accuracy.robust_accuracy(
        lambda x: jnp.where(x[:, 0, 0] == x0, 1, jnp.nan) * logits_fn(x), x, y,
        key=jax.random.key(0), attacks=("pgd",), num_steps=2, batch_size=20,
        threat_model=ThreatModel("linf", 0.01), mesh=sharding.row_mesh())
except (ValueError, NameError) as error:
    print(type(error).__name__)
print("equal")
"""


@pytest.mark.slow
def test_eight_devices_equal_one():
    code = EIGHT.replace("x[:, 0, 0] == x0", "jnp.round(x[:, 0, 0], 6) == x[:, 0, 0]")
    code = code.replace("rng.uniform(0.2", "np.round(rng.uniform(0.2", 1)
    code = code.replace("(45, 6, 6, 1))", "(45, 6, 6, 1)), 6)", 1)
    assert several.on_devices(code).split() == ["ValueError", "equal"]


HOSTS = """
import jax.numpy as jnp, numpy as np, warnings
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)
warnings.simplefilter("ignore")
from ntk_privacy import sharding
from ntk_privacy.evaluation import robust_accuracy
from ntk_privacy.evasion import ThreatModel

rng = np.random.default_rng(0)
params = [jnp.asarray(rng.normal(size=s)) for s in ((36, 12), (12, 5))]


def apply(params, x):
    return jnp.tanh(x.reshape(len(x), -1) @ params[0]) @ params[1]


logits_fn = jax.tree_util.Partial(apply, params)
x = rng.uniform(0.2, 0.8, size=(13, 6, 6, 1))
y = np.asarray(logits_fn(jnp.asarray(x))).argmax(1).astype(np.int32)


def call(logits_fn, mesh, attacks):
    return robust_accuracy.robust_accuracy(
        logits_fn, x, y, key=jax.random.key(0), attacks=attacks,
        threat_model=ThreatModel("linf", 0.02), batch_size=8, num_steps=3,
        num_queries=5, mesh=mesh, survivors_only=False)


attacks, mesh = sys.argv[4].split(","), sharding.all_devices()
one, many = (call(logits_fn, mesh, attacks) for mesh in (None, mesh))
for name in one.survived:
    np.testing.assert_array_equal(one.survived[name], many.survived[name])
    np.testing.assert_array_equal(one.queries[name], many.queries[name])
np.testing.assert_allclose(one.images, many.images, atol=1e-12)
assert 0 < one.ensemble < one.clean


def fails_far_away(x):
    # On the images of the set itself, and so on what the attack begins with, a number.
    known = jnp.all(jnp.abs(x[:, None] - jnp.asarray(rows)[None]) < 1e-9, (2, 3, 4))
    return jnp.where(known.any(1)[:, None], 1, jnp.nan) * logits_fn(x)


rows = x
try:
    call(fails_far_away, mesh, ["square"])
except ValueError as error:
    assert "at points that square reached" in str(error), error
    print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_hosts_share_every_attack(count):
    names = [n for n in METHODS if not n.startswith(("cw", "autoattack_"))]
    told = several.on_hosts(HOSTS, ",".join(names), count=count)
    assert told == ["equal"] * count


@pytest.mark.slow
@pytest.mark.parametrize("version", ["plus", "torchattacks10", "standard", "rand"])
def test_every_version_of_autoattack(version):
    name = "autoattack" if version == "standard" else f"autoattack_{version}"
    found = evaluate(attacks=(name,), num_steps=None if "10" in version else 10)
    distance = _distances("linf")
    assert found.accuracy[name] == np.mean(distance > EPS)
    assert list(found.left[name].values()) == sorted(found.left[name].values())[::-1]


@pytest.mark.slow
@pytest.mark.parametrize("norm", threat_model.NORMS)
def test_every_name_runs(norm):
    names = [n for n in METHODS if not n.startswith("autoattack")]
    found = evaluate(
        attacks=names,
        survivors_only=False,
        threat_model=ThreatModel(norm, 0.02),
        num_steps=10,
    )
    assert set(found.accuracy) == set(names)
    for name in names:
        if not (name.startswith("cw") and norm == "linf"):
            least = np.mean(_distances(norm) > 0.02)
            assert least <= found.accuracy[name] <= found.clean
