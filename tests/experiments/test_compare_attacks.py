"""`experiments.compare --attacks=all`: the table, its parts, going on, refusals."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_lines import command_line

from experiments import _flags, compare
from ntk_privacy import curvature, data, resume
from ntk_privacy.data.image_set import ImageSet, Statistics
from ntk_privacy.distillation import METHODS, Distilled, dc, timed
from ntk_privacy.distillation.search import Kept
from ntk_privacy.evaluation import JUDGES, protocol, robust_accuracy, set_attacks
from ntk_privacy.models import ConvNet
from ntk_privacy.reports import comparison, plots, tables
from ntk_privacy.reports.loops import Loops
from ntk_privacy.reports.workdir import Workdir

TOY = {
    "attacks": "all",
    "dataset": "digits",
    "methods": ("rdm", "rdm_curvature"),
    "images_per_class": 1,
    "seconds": 0.01,
    "width": 4,
    "num_targets": 100,
    "num_networks": 2,
    "num_epochs": 2,
    # Of every class at least a batch of 128.
    "num_images": 1400,
    "num_test": 40,
    "num_attacked": 10,
    "attack_steps": 2,
    "num_queries": 5,
    "progress": False,
}
NOT_OF_ATTACKS = {
    *("dataset", "images_per_class", "seconds", "width", "num_networks", "num_epochs"),
    *("num_images", "num_test", "progress"),
}
KEYS = ("method", "accuracy", "pgd", "autoattack", "attack_success", "recovered")


def _config(folder, **changes):
    return compare.PROGRAM.asked(**{**TOY, "workdir": str(folder), **changes})


def _set(images, noise=None):
    return Distilled(
        images=jnp.asarray(images, jnp.float32),
        labels=jnp.arange(len(images), dtype=jnp.int32),
        losses=np.zeros(0),
        state=Kept(noise=noise),
        nonfinite=jnp.asarray(False),
    )


@pytest.fixture
def attacked(monkeypatch):
    """AutoAttack's programs take longer to compile than all the rest."""
    asked = []

    def evaluate(logits_fn, x, y, *, attacks, threat_model, **options):
        assert 0 <= x.min() < x.max() <= 1
        assert logits_fn(jnp.asarray(x)).shape == (len(y), 10)
        asked.append((x, attacks, float(threat_model.eps), options["num_steps"]))
        accuracy = dict(zip(attacks, (0.5, 0.25), strict=True))
        return SimpleNamespace(clean=0.75, accuracy=accuracy, warnings=("weak",))

    monkeypatch.setattr(robust_accuracy, "robust_accuracy", evaluate)
    return asked


def test_a_table_has_a_row_per_method_and_goes_on(tmp_path, attacked, monkeypatch):
    results = compare.run(_config(tmp_path))
    table = results["table"]
    assert [row["method"] for row in table] == ["random", *TOY["methods"]]
    for row in table:
        assert set(row) >= set(KEYS)
        assert (row["pgd"], row["autoattack"], row["num_decisions"]) == (0.5, 0.25, 2)
    random, rdm, flat = table
    # Real images are recovered, noise that five steps moved is not.
    assert (random["recovered"], rdm["recovered"], random["steps"]) == (1, 0, 0)
    assert float(random["best_psnr"]) > 60 > rdm["best_psnr"]
    # The networks differ, the set does not.
    assert (flat["steps"], flat["best_psnr"]) == (rdm["steps"], rdm["best_psnr"])
    assert flat["steps"] == timed.CHUNK
    sets = {path.name for path in tmp_path.glob("set_*.npz")}
    assert sets == {
        f"set_0_{n}_{k}.npz" for n in ("random", "rdm") for k in ("clean", "poisoned")
    }
    made = []
    for told in ("clean", "poisoned"):
        with np.load(tmp_path / f"set_0_rdm_{told}.npz") as stored:
            made.append(stored["images"])
    assert np.any(made[0] != made[1])
    assert len((tmp_path / "table.md").read_text().splitlines()) == 5
    assert results["markdown"].count("| rdm_curvature |") == 1
    assert (tmp_path / "set_0_rdm_clean.png").read_bytes()[:4] == b"\x89PNG"
    # The same images for all; within 1/255.
    assert len(attacked) == 3
    for x, names, eps, steps in attacked:
        np.testing.assert_array_equal(x, attacked[0][0])
        assert (len(x), names, steps) == (10, ("pgd", "autoattack"), 2)
        assert eps == 1 / 255
    # As if killed before the last cell.
    for name in ("cell_0_rdm_curvature.json", "results.json"):
        (tmp_path / name).unlink()
    monkeypatch.setattr(timed, "make", None)
    assert compare.run(_config(tmp_path))["table"] == table
    assert len(attacked) == 4


def test_networks_go_on_with_the_set_that_they_were_trained_on(tmp_path, monkeypatch):
    # A set that is made again in the same seconds is another set.
    short = {"attacks": "none", "methods": ("rdm",), "architectures": ("MLP",)}
    own = {k: v for k, v in TOY.items() if k in NOT_OF_ATTACKS}
    asked = compare.PROGRAM.asked(**{**own, **short, "workdir": str(tmp_path)})
    write, made = Workdir.write_arrays, []

    def full_disk(self, name, **arrays):
        made.append(name)
        if name == "rdm.npz" and made.count(name) == 1:
            raise OSError("no space")
        write(self, name, **arrays)

    monkeypatch.setattr(Workdir, "write_arrays", full_disk)
    with pytest.raises(OSError, match="no space"):
        compare.run(asked)
    kept = np.load(tmp_path / "checkpoints" / "rdm" / "set.npz")
    first = kept["images"], int(kept["steps"])
    results = compare.run(asked)
    assert sum(name.endswith("rdm/set.npz") for name in made) == 1
    assert results["rows"]["rdm"]["steps"] == first[1]
    with np.load(tmp_path / "rdm.npz") as stored:
        np.testing.assert_array_equal(stored["images"], first[0])
    assert not (tmp_path / "checkpoints" / "rdm").exists()


@pytest.mark.slow
def test_every_kind_of_method_is_attacked_in_earnest(tmp_path):
    methods = ("rkip_noise", "dc_curvature", "dm")
    results = compare.run(_config(tmp_path, methods=methods, num_seeds=2))
    assert [row["method"] for row in results["table"]] == ["random", *methods]
    assert len(results["runs"]) == 8
    for row in results["table"]:
        assert 0 <= row["autoattack"] <= row["pgd"] <= row["accuracy_attacked"] <= 1
        assert row["num_decisions"] == 4
    with np.load(tmp_path / "set_1_rkip_noise_clean.npz") as stored:
        assert 0 < stored["noise"].mean() < 0.1


def test_the_regulariser_is_where_the_method_has_a_place_for_it(
    tmp_path, attacked, monkeypatch
):
    made, trained = {}, {}

    def make(method, config, images, *, folder, **options):
        x = images.normalised(images.x_train)
        made[folder.parent.name] = (x, config)
        return timed.TimedSet(_set(np.zeros((10, 8, 8, 1))), 3, 1.0)

    def evaluate(images, labels, x_test, class_test, *, key, regularize, **options):
        (target,) = options["targets"]
        trained.setdefault(str(jax.random.key_data(key)), []).append(regularize)
        params = ConvNet(10, 4).init_params(key, (8, 8, 1))
        state = SimpleNamespace(params=jax.tree.map(lambda leaf: leaf[None], params))
        asked.append(np.asarray(target))
        return protocol.Evaluated(np.ones(1), np.array([[3]]), state)

    asked = []
    monkeypatch.setattr(timed, "make", make)
    monkeypatch.setattr(plots, "pictures", lambda *args, **kwargs: None)
    monkeypatch.setattr(protocol, "evaluate", evaluate)
    methods = ("rdm", "rdm_curvature", "dc", "dc_curvature")
    results = compare.run(_config(tmp_path, methods=methods, rate=0.02))
    for told in ("clean", "poisoned"):
        x, config = made.pop(f"set_0_rdm_{told}")
        assert config.rate == 0.02
        assert made.pop(f"set_0_dc_{told}")[1].penalty_weight is None
        curved = made.pop(f"set_0_dc_curvature_{told}")[1]
        assert (curved.penalty_weight, curved.penalty_step) == (10.0, 3.0)
        # What is poisoned: 2% of the images, all copies of the target.
        same = np.all(np.abs(np.asarray(x) - asked[0][None]) < 1e-6, axis=(1, 2, 3))
        assert same.sum() == (28 if told == "poisoned" else 0)
    assert not made
    (regularizers,) = trained.values()
    # random, rdm, rdm_curvature, dc, dc_curvature; clean and poisoned.
    flat = [regularize is not None for regularize in regularizers]
    assert flat == [False] * 4 + [True] * 2 + [False] * 4
    hit = results["runs"][0]["adversarial_class"] == 3
    assert {row["attack_success"] for row in results["table"]} == {float(hit)}


def test_the_real_loss_is_the_mean_of_the_regularised_one():
    model = ConvNet(3, 2, depth=1)
    x = jax.random.normal(jax.random.key(0), (4, 4, 4, 1))
    labels = jnp.arange(4, dtype=jnp.int32) % 3
    params = model.init_params(jax.random.key(1), (4, 4, 1), x.dtype)

    def losses(params, x, labels):
        log = jax.nn.log_softmax(model.apply_fn(params, x))
        return -jnp.take_along_axis(log, labels[:, None], axis=1)[:, 0]

    penalties = curvature.penalty(losses, step=0.5)(params, x, labels)
    expected = jnp.mean(losses(params, x, labels) + 2.0 * penalties)
    found = dc.real_loss(model, 2.0, 0.5)(params, x, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert penalties.min() > 0
    # One object for all calls, by which compiled loops are found.
    again = dc.real_loss(ConvNet(3, 2, depth=1), 2.0, 0.5)
    assert again is dc.real_loss(model, 2.0, 0.5)


def test_copies_are_found_in_a_set_also_under_noise():
    rng = np.random.default_rng(0)
    real = rng.uniform(0.2, 0.8, (5, 8, 8, 1)).astype(np.float32)
    normal = Statistics(np.float32([0.4]), np.float32([0.25]))
    both = (real, [0, 1, 0, 1, 0])
    images = ImageSet.from_arrays(*both, *both).replaced(real)
    images = dataclasses.replace(images, normaliser=normal)
    copy = real[3] + rng.normal(scale=0.03, size=real[3].shape)  # 30 dB
    blurred = real[1] + rng.normal(scale=0.1, size=real[1].shape)  # 20 dB
    made = (np.stack([copy, blurred]) - normal.mean) / normal.deviation
    found = set_attacks.recovered(images, _set(made))
    assert found["recovered"] == 0.5
    np.testing.assert_allclose(found["psnr"], [30.5, 20], atol=1.5)
    noise = rng.uniform(size=made.shape) < 0.1
    hidden = np.where(noise, 3.0, made)
    assert set_attacks.recovered(images, _set(hidden))["recovered"] == 0
    assert set_attacks.recovered(images, _set(hidden, noise))["recovered"] == 0.5


def test_a_row_is_the_mean_over_seeds():
    one = {
        "accuracies": [0.2, 0.4],
        "accuracies_poisoned": [0.1, 0.3],
        "adversarial_class": 2,
        "target_classes": [2, 0],
        "target_classes_clean": [0, 1],
        "psnr": [20.0, "inf"],
        **{"accuracy_attacked": 0.5, "pgd": 0.4, "autoattack": 0.2, "recovered": 0.5},
        **{"steps": 10, "seconds": 1.0},
    }
    two = {**one, "adversarial_class": 0, "target_classes": [0, 0], "pgd": 0.2}
    row = set_attacks.row([one, two])
    assert row["accuracy"] == pytest.approx(0.3)
    # Of a sample: 0.2, 0.4, 0.2, 0.4.
    assert row["accuracy_std"] == pytest.approx((0.04 / 3) ** 0.5)
    assert row["accuracy_poisoned"] == pytest.approx(0.2)
    assert (row["attack_success"], row["num_decisions"]) == (0.75, 4)
    assert row["pgd"] == pytest.approx(0.3)
    assert row["best_psnr"] == float("inf")
    # One of four without an attack: the second seed's target, its class 0.
    assert (row["success_without_attack"], row["num_targets"]) == (0.25, 2)
    called = set_attacks.names(set_attacks.Config())
    told = tables.of_attacks({"dm": row}, called)
    assert "| dm | 30.0 +- 11.5 | 50.0 | 30.0 | 20.0 | 75.0 | 25.0 | 50.0 | inf |" in (
        told
    )
    assert "| PGD | AutoAttack | poisoning succeeds | without attack |" in told
    told = set_attacks.names(set_attacks.Config(attack_steps=10, num_queries=300))
    assert told == ["PGD (10 steps)", "AutoAttack (10 steps, 300 queries)"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--attacks=none"], "no effect with --judge=architectures: leave it out"),
        (["--methods=rdm_flat"], "methods='rdm_flat' is unknown"),
        (["--eps=x"], "eps='x' is no number"),
        (["--num_seeds=0"], "num_seeds=0 must be at least 1"),
        (["--rate=0"], "rate=0.0 must be above 0"),
        (["--rate=0.0001"], "is no poison at all"),
        (["--penalty_weight=0"], "penalty_weight=0.0 must be above 0"),
        (["--architectures=MLP"], "--architectures has no effect with --judge=attacks"),
        (["--num_images=100"], "num_train=100: rdm: batch_size=128 is more than"),
        (["--methods=rkip_curvature", "--num_targets=5"], "is 0 of each class"),
        (["--methods=dc", "--images_per_class=900"], "images_per_class=900 is more"),
    ],
)
def test_faults_are_one_line_and_leave_nothing(tmp_path, capsys, flags, message):
    parse, folder = compare.PROGRAM.parse, tmp_path / "run"
    arguments = command_line(compare.PROGRAM, TOY, *flags, workdir=folder)
    if "--attacks=none" in flags:  # with flags of the attacks
        arguments.append("--num_attacked=3")
    assert _flags.call(compare.main, parse, arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_configs_at_a_budget_take_what_is_theirs():
    images = data.load_set("digits").subset(num_train=300, num_test=50)
    budget = timed.Budget(methods=("dc", "dc_curvature", "rkip"), num_targets=100)
    given = {"width": 4, "batch_size": 8, "penalty_weight": 10.0}
    found = timed.at_budget(images, budget, "cpu", **given)
    assert list(found) == list(budget.methods)
    weights = [getattr(found[name], "penalty_weight", 0) for name in found]
    assert weights == [None, 10.0, 0]
    assert (found["dc"].width, found["rkip"].num_targets) == (4, 100)
    with pytest.raises(ValueError, match="num_train=300: dc: batch_size=400 is more"):
        timed.at_budget(images, budget, "cpu", **{**given, "batch_size": 400})


def test_curvature_is_for_the_attacks_alone():
    with pytest.raises(ValueError, match="methods='rdm_curvature' is unknown"):
        compare.PROGRAM.asked(methods=("rdm_curvature",))
    assert compare.PROGRAM.asked(methods=("rkip_noise",)).method.name == (
        "architectures"
    )


def test_a_timed_method_shows_its_seconds(monkeypatch, tmp_path):
    shown = []

    class Bar:
        def __init__(self, total, **_):
            shown.append(total)

        def __call__(self, done, *_):
            shown.append(done)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    state = SimpleNamespace(
        images=np.zeros((1, 2)), labels=np.zeros(1, int), steps=7, nonfinite=False
    )

    def run(images, config, *, key, stage, chunk, folder):
        def go(start, done, callback):
            for step in range(100, 200):
                if callback(step, state, {}):
                    break

        stage("distill", None, go, config.num_steps)
        return _set(state.images[:, :, None, None])._replace(state=state)

    clock = itertools.chain([1.2, 1.2], itertools.repeat(2.6))

    known = dataclasses.replace(METHODS["dm"], run=run)
    monkeypatch.setattr(comparison, "Progress", Bar)
    monkeypatch.setattr(resume.Timer, "elapsed", lambda _: next(clock))
    # Of a run that was killed: the time they took is not known.
    (tmp_path / "experts").mkdir()
    monkeypatch.setitem(METHODS, "dm", known)
    assert timed.configured(known, "cpu", width=4, unheard=3).width == 4
    images = data.load_set("digits")
    with Workdir(tmp_path, {}) as workdir:
        made = comparison.Comparison(
            images=images,
            configs={"dm": timed.configured(known, "cpu")},
            judge=JUDGES["architectures"],
            judging=JUDGES["architectures"].configured(),
            budget=timed.Budget(images_per_class=1, seconds=2.5),
            dataset="digits",
            loops=Loops(workdir),
        ).made_or_kept("dm", images, jax.random.key(0), "set", folder=".")
    assert (made.steps, shown) == (7, [3, 1, 3])
    assert not (tmp_path / "experts").exists()
