"""Images and class numbers at every door: one sentence, before anything is traced."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ntk_privacy import _class_checks, curvature
from ntk_privacy.distillation import (
    cda,
    distribution_matching,
    gradient_matching,
    robust_mean,
    sre2l,
    tesla,
    trajectory_matching,
)
from ntk_privacy.evaluation import protocol
from ntk_privacy.models import MLP, ResNet18
from ntk_privacy.training import (
    adversarial,
    classification,
    soft_labels,
    squeeze,
    trajectories,
)

KEY = jax.random.key(0)
SHAPE = (4, 4, 1)
X = np.random.default_rng(0).normal(size=(12, *SHAPE)).astype(np.float32)
Y = np.arange(12) % 2


class Untouched:
    """A network of two classes that must not be looked into."""

    num_outputs = 2

    def _traced(self, *args, **options):
        raise AssertionError("traced before the input was checked")

    init_params = apply_fn = embed_fn = init_stats = _traced
    train_fn = eval_fn = moments_fn = _traced


NET = Untouched()
MATCH = {"model": NET, "key": KEY, "images_per_class": 1, "num_steps": 1}
FEW = {**MATCH, "batch_size": 2}
FLAT = functools.partial(curvature.regularize, weight=1.0)
PLAIN = {"model": NET, "keys": KEY[None], "num_epochs": 1}
STATS = {"mean": (0.5,), "deviation": (0.3,)}


def _squeeze(loss):
    return lambda x, y, _: squeeze.train(x, y, model=NET, key=KEY, loss=loss)


def _record(x, y, folder):
    try:
        trajectories.record(folder / "experts", x, y, model=NET, key=KEY)
    finally:
        assert not list(folder.iterdir())


def _evaluate(x, y, x_test, y_test):
    protocol.evaluate(x, y, x_test, y_test, model=NET, key=KEY, num_networks=1)


# Name to `(x, y, folder)` -> anything.
DOORS = {
    "classification": lambda x, y, _: classification.train(x, y, **PLAIN),
    "curvature": lambda x, y, _: classification.train(x, y, **PLAIN, regularize=FLAT),
    "staggered": lambda x, y, _: classification.staggered(x, y, model=NET, key=KEY),
    "squeeze": _squeeze(squeeze.cross_entropy),
    "squeeze, curvature": _squeeze(squeeze.Regularized(FLAT)),
    "squeeze, pgd": _squeeze(adversarial.PGD(**STATS)),
    "squeeze, trades": _squeeze(adversarial.TRADES(**STATS)),
    "experts": _record,
    "dc": lambda x, y, _: gradient_matching.distill(x, y, **FEW),
    "dsa": lambda x, y, _: gradient_matching.distill(
        x, y, **FEW, operations=("crop",), initial="real"
    ),
    "dm": lambda x, y, _: distribution_matching.distill(x, y, **FEW),
    "rdm-dc": lambda x, y, _: distribution_matching.distill(
        x, y, **FEW, mean_fn=robust_mean.calibrated(rate=0.1)
    ),
    "mtt": lambda x, y, _: trajectory_matching.distill(x, y, **MATCH, experts={}),
    "tesla": lambda x, y, _: tesla.distill(x, y, **MATCH, experts={}),
    "evaluation, set": lambda x, y, _: _evaluate(x, y, X, Y),
    "evaluation, test": lambda x, y, _: _evaluate(X, Y, x, y),
}
NAN = X.copy()
NAN[3, 1, 2, 0] = np.nan
FAULTS = {
    "more classes": (X, np.arange(12) % 3, r"lies in \[0, 2\].* 2 outputs, for classes "
                     r"0 to 1: build it with num_outputs=3"),
    "negative": (X, Y - 1, r"lies in \[-1, 0\], but classes are numbered from 0"),
    "floats": (X, Y.astype(np.float32), r"float32 of shape \(12,\): give class numbers "
               "as integers"),
    "one-hot": (X, np.eye(2)[Y], r"shape \(12, 2\), rows rather.*argmax\(axis=1\)"),
    "a column": (X, Y[:, None], r"shape \(12, 1\): give one class number per image"),
    "bytes": (np.zeros((12, *SHAPE), np.uint8), Y, "dtype uint8: convert it to float"),
    "nan": (NAN, Y, "NaN or infinite values in 1 rows, first in row 3"),
    "infinite": (X * np.inf, Y, "NaN or infinite values in 12 rows"),
    "lengths": (X, Y[:-1], "Lengths differ: .* has 12 rows, .* has 11 rows"),
    "nothing": (X[:0], Y[:0], "at least one image"),
    "no channel": (X[..., 0], Y, r"shape \(12, 4, 4\): give at least one"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _as_installed(monkeypatch):
    """Annotations are checked in tests alone: people meet the library's own words."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("door", DOORS)
def test_each_door_tells_each_fault_before_it_traces(door, fault, tmp_path):
    x, y, told = FAULTS[fault]
    with pytest.raises(ValueError, match=told) as caught:
        DOORS[door](jnp.asarray(x), jnp.asarray(y), tmp_path)
    assert "\n" not in str(caught.value)


def test_arrays_of_numpy_are_told_alike(tmp_path):
    for door, call in DOORS.items():
        with pytest.raises(ValueError, match="2 outputs, for classes"):
            call(X, np.arange(12) % 3, tmp_path)
        with pytest.raises(ValueError, match="in 1 rows, first in row 3"):
            call(NAN, Y, tmp_path)
        assert door


def test_targets_to_classify_are_images():
    options = {"model": NET, "key": KEY, "num_networks": 1}
    with pytest.raises(ValueError, match="targets has NaN or infinite values"):
        protocol.evaluate(X, Y, X, Y, targets=NAN, **options)
    with pytest.raises(ValueError, match="x has dtype uint8"):
        classification.predict({}, (9 * X).astype(np.uint8), model=NET)
    with pytest.raises(ValueError, match="x has NaN or infinite"):
        squeeze.predict({}, (), NAN, model=NET)


@pytest.mark.parametrize("num_classes", [3, 6])
@pytest.mark.parametrize("crop", [None, cda.curriculum()], ids=["sre2l", "cda"])
def test_recovery_asks_for_no_more_classes_than_there_are(num_classes, crop):
    options = {"key": KEY, "image_shape": SHAPE, "num_classes": num_classes, **STATS}
    with pytest.raises(ValueError, match=f"num_classes={num_classes} but .* 2 outputs"):
        sre2l.recover({}, (), model=NET, min_share=crop, **options)


def test_statistics_in_bytes_are_no_intensities():
    options = {"key": KEY, "image_shape": SHAPE, "num_classes": 2, "deviation": (63.0,)}
    with pytest.raises(ValueError, match=r"mean=125\.3 must lie in \[0, 1\]"):
        sre2l.recover({}, (), model=NET, mean=(125.3,), **options)
    with pytest.raises(ValueError, match=r"mean=125\.3 must lie in \[0, 1\]"):
        adversarial.PGD(mean=(125.3,), deviation=(63.0,))
    with pytest.raises(ValueError, match=r"eps=8 must lie in \(0, 1\].*eps=8/255"):
        adversarial.TRADES(**STATS, eps=8)


def test_teacher_labels_and_student_have_the_same_classes():
    net = ResNet18(2, width=2, blocks=(1,))
    x = jnp.asarray(X)
    options = {"key": KEY, "num_epochs": 1, "batch_size": 4}
    with pytest.raises(ValueError, match="num_outputs=3 but the network has 2 outputs"):
        soft_labels.relabel(x, {}, (), model=net, num_outputs=3, **options)
    labels = soft_labels.init_labels(x, num_outputs=3, **options)
    labels = labels._replace(steps=jnp.int32(len(labels.order)))
    with pytest.raises(ValueError, match="classes=3 but the network has 2 outputs"):
        soft_labels.post_train(x, labels, model=net, key=KEY, num_epochs=1)
    with pytest.raises(ValueError, match="images has NaN or infinite"):
        soft_labels.relabel(NAN, {}, (), model=net, num_outputs=2, **options)


WIDE = np.zeros((2, 8, 8, 1), np.float32)
SMALL, OTHER = MLP((3,), 2), MLP((4,), 2).init_params(KEY, SHAPE)
STACKED = jax.tree.map(lambda leaf: leaf[None], SMALL.init_params(KEY, SHAPE))
STUDY = {"model": SMALL, "key": KEY, "num_networks": 1}
RESNET = ResNet18(2, width=2, blocks=(1,))
NORMED = jax.eval_shape(lambda: RESNET.init_params(KEY, SHAPE))
NORMED = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), NORMED)
MOMENTS = RESNET.init_stats(np.float32)
RECOVER = {"model": RESNET, "key": KEY, "num_classes": 2, "image_shape": SHAPE, **STATS}
COLOURS = {"image_shape": (4, 4, 2), "mean": (0.5, 0.5), "deviation": (1.0, 1.0)}
READ = {"model": RESNET, "key": KEY, "num_outputs": 2, "num_epochs": 1}
MISFITS = {
    "predict, size": lambda: classification.predict(STACKED, WIDE, model=SMALL),
    "predict, network": lambda: classification.predict(
        jax.tree.map(lambda leaf: leaf[None], OTHER), X, model=SMALL
    ),
    "evaluate, test": lambda: protocol.evaluate(X, Y, WIDE, Y[:2], **STUDY),
    "evaluate, target": lambda: protocol.evaluate(X, Y, X, Y, targets=WIDE, **STUDY),
    "recover, channels": lambda: sre2l.recover(
        NORMED,
        MOMENTS,
        **(
            RECOVER
            | {"image_shape": (4, 4, 2), "mean": (0.5,) * 2, "deviation": (1, 1)}
        ),
    ),
    "recover, statistics": lambda: sre2l.recover(NORMED, None, **RECOVER),
    "squeeze": lambda: squeeze.predict(NORMED, None, X, model=RESNET),
    "relabel": lambda: soft_labels.relabel(jnp.asarray(X), OTHER, MOMENTS, **READ),
}


@pytest.mark.parametrize("door", MISFITS)
def test_parameters_and_images_of_two_networks_are_one_sentence(door):
    with pytest.raises(ValueError, match="do not fit the network, which fails") as told:
        MISFITS[door]()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("door", ["evaluate, test", "evaluate, target"])
def test_sizes_are_told_before_anything_is_trained(door, monkeypatch):
    def train(*args, **options):
        raise AssertionError("trained")

    monkeypatch.setattr(classification, "train", train)
    with pytest.raises(ValueError, match="a network for images of shape"):
        MISFITS[door]()


def test_networks_that_are_not_finite_give_no_images():
    lost = jax.tree.map(lambda leaf: leaf + np.nan, NORMED)
    with pytest.raises(ValueError, match=r"params\[.* NaN or infinite"):
        sre2l.recover(lost, MOMENTS, **RECOVER)


def test_outputs_are_counted_where_a_network_does_not_name_them():
    net = MLP((3,), 5)

    class Nameless:
        init_params, apply_fn = net.init_params, net.apply_fn

    class Remembering:
        """Of batch normalisation: evaluated with statistics."""

        init_params, init_stats = net.init_params, staticmethod(lambda dtype: ())
        eval_fn = staticmethod(lambda params, stats, x: net.apply_fn(params, x))

    for model in (net, Nameless(), Remembering()):
        assert _class_checks.num_outputs(model, SHAPE) == 5


def test_fewer_classes_than_outputs_are_no_fault():
    net = MLP((3,), 5)
    experts = net.init_params(KEY, SHAPE)
    experts = jax.tree.map(lambda p: jnp.stack([p, 0.9 * p])[None], experts)
    options = {"model": net, "key": KEY, "images_per_class": 1, "num_steps": 1}
    short = {"student_steps": 1, "expert_epochs": 1, "max_start_epoch": 1}
    for module, also in ((trajectory_matching, {}), (tesla, {})):
        out = module.distill(
            jnp.asarray(X), jnp.asarray(Y), experts=experts, **options, **short, **also
        )
        assert out.images.shape == (2, *SHAPE)
        assert np.isfinite(out.losses).all()
    with pytest.raises(ValueError, match="5 outputs but there are 2 classes"):
        tesla.distill(X, Y, experts=experts, **options, **short, teacher_labels=True)
