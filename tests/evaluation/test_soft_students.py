"""Students of soft labels: attacks kept by what they are, eigenvalues, refusals."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ntk_privacy import checkpoint, curvature, data, resume
from ntk_privacy.evaluation import robust_accuracy as robust
from ntk_privacy.evaluation import soft_students
from ntk_privacy.evaluation.soft_students import Config, Network
from ntk_privacy.models import ResNet18

KEY = jax.random.key(0)
MODEL = ResNet18(4, 1, blocks=(1,))
NETWORK = Network(None, None)


def _images(classes, num_test=4):
    rng = np.random.default_rng(0)
    x = rng.random((len(classes), 2, 2, 1)).astype(np.float32)
    return data.ImageSet.from_arrays(x, classes, x[:num_test], classes[:num_test])


def test_eigenvalues_are_of_images_of_all_classes(monkeypatch):
    """Folders hold one class after the other."""
    seen = []

    def told(loss_fn, params, x, classes, **options):
        seen.append((np.asarray(classes), options["num_matvecs"]))
        return np.zeros(len(x))

    monkeypatch.setattr(curvature, "top_eigenvalues", told)
    images = _images(np.repeat(np.arange(4), 100))
    assert soft_students.eigenvalues(images, MODEL, NETWORK, key=KEY).shape == (128,)
    np.testing.assert_array_equal(np.bincount(seen[0][0]), [32] * 4)
    few = _images(np.arange(7) % 4)
    soft_students.eigenvalues(few, MODEL, NETWORK, key=KEY)
    np.testing.assert_array_equal(seen[1][0], few.class_train)
    # Of four pixels there are four eigenvalues.
    assert seen[1][1] == 4


def test_attacks_are_kept_by_their_numbers_and_images(monkeypatch, tmp_path):
    asked = []

    def attacked(logits_fn, x, y, *, attacks, num_steps, num_queries, **options):
        name, eps = attacks[0], options["threat_model"].eps
        asked.append((name, num_steps, num_queries, float(eps), len(x)))
        left = {name: {"square": 0.2}} if name == "autoattack" else {}
        return SimpleNamespace(clean=0.5, accuracy={name: 0.25}, left=left)

    monkeypatch.setattr(robust, "robust_accuracy", attacked)
    monkeypatch.setattr(soft_students.saved, "logits_fn", lambda *_, **__: None)
    stage = resume.resumed(tmp_path, timer=resume.Timer())
    classes = np.arange(12) % 4

    def run(num_test=4, **given):
        images, config = _images(classes, num_test), Config(**given)
        return soft_students.attacked(
            images, MODEL, NETWORK, config, key=KEY, stage=stage
        )

    # With 2 steps and 5 queries nothing but pgd100 is what its name tells.
    found = run(attack_steps=2, num_queries=5)
    names = ("square (5 queries)", "autoattack (2 steps, 5 queries)")
    assert found.accuracy == {"clean": 0.5} | dict.fromkeys(
        ("pgd100", *names, "cw (2 steps)", "mim (2 steps)"), 0.25
    )
    assert found.left == {names[1]: {"square": 0.2}}
    assert asked == [
        (name, None if name == "pgd100" else 2, 5, 1 / 255, 4)
        for name in ("pgd100", "square_rescaled", "autoattack", "cw_guard", "mim")
    ]
    # What is known is read back; of other numbers or images it is not.
    assert run(attack_steps=2, num_queries=5) == found
    assert len(asked) == 5
    for changes in ({"num_test": 3}, {"eps": 0.1}, {"attack_steps": 3}):
        run(**{"attacks": ("mim",), "attack_steps": 2, "num_queries": 5, **changes})
    assert [call[0] for call in asked[5:]] == ["mim"] * 3
    assert len(set(asked)) == 8
    assert checkpoint.latest_step(next(tmp_path.glob("attack_pgd100_*"))) == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"attacks": ("mimi",)},
            "is unknown, did you mean mim. Use one of pgd1",
        ),
        ({"attacks": ("mim", "mim")}, "names mim twice: name it once"),
        ({"attack_steps": 0}, "attack_steps=0 must be at least 1"),
        ({"num_queries": 0}, "num_queries=0 must be at least 1"),
        ({"eps": 0.0}, "eps=0.0 must be above 0"),
        ({"eps": 2.0}, "eps=2.0 is more than the box from 0.0 to 1.0 is wide"),
    ],
)
def test_what_flags_refuse(given, told):
    with pytest.raises(ValueError, match=told):
        Config(**given)
    assert Config(**soft_students.SMALL, num_queries=7) == Config(
        attacks=("pgd100", "mim", "apgd_t"), num_queries=7
    )
