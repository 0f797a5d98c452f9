"""What is told of a training reaches the attacks, or the page says that it does not."""

import json

import jax
import numpy as np
import pytest

import ntk_privacy
from ntk_privacy import auditing
from ntk_privacy.auditing import recipes, statement
from ntk_privacy.auditing.attack import Attacked
from ntk_privacy.auditing.recipes import KnownTraining
from ntk_privacy.auditing.statement import Counts
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import Evidence, Reconstruction
from ntk_privacy.reconstruction.result import uncertain
from ntk_privacy.reconstruction.verdict import Verdict

NET = MLP((6,))
KEYS = jax.random.split(jax.random.key(0), 2)
BEFORE, AFTER = (NET.init_params(key, (2, 2, 1)) for key in KEYS)
NONE = Counts(0, 0, None)
TOLD = {
    "loss": "mse",
    "dynamics": "linearized",
    "num_images": 3,
    "labels": [-0.5, 0.5],
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "batch_size": 2,
    "weight_decay": 0.0,
    "epochs": 5,
}


def _known(**given):
    return Evidence(
        **{"network": NET, "params_t": AFTER, "params_0": BEFORE} | given,
        image_shape=(2, 2, 1),
    )


def _attacked(word, known=None, count=None):
    found = Reconstruction(
        images=np.zeros((0, 2, 2, 1)),
        duals=np.zeros((1, 0, 1)),
        losses=np.zeros(0),
        verdict=Verdict(word, "It is so."),
        sources=(),
        estimated_num_images=count,
        **uncertain(0),
    )
    return Attacked(found, known or _known(), ("reading",), ())


def _stated(word, training, **about):
    return statement.state(_attacked(word, **about), NONE, None, training)


def test_files_and_values_tell_the_same(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(TOLD))
    lines = (f"{name} = {json.dumps(value)}" for name, value in TOLD.items())
    (tmp_path / "a.toml").write_text("\n".join(lines))
    ones = [recipes.read(s) for s in (TOLD, tmp_path / "a.json", tmp_path / "a.toml")]
    assert ones[0] == ones[1] == ones[2]
    assert ones[0].told() == TOLD
    assert recipes.read(ones[0]) is ones[0]


def test_what_is_told_reaches_the_evidence(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(TOLD))
    given = {"before": BEFORE, "image_shape": (2, 2, 1)}
    known = auditing.case(AFTER, recipe=path, **given).evidence
    assert (known.objective, known.dynamics) == ("mse", "linearized")
    assert known.num_images == 3
    assert known.codes().ravel().tolist() == [-0.5, 0.5]
    assert auditing.case(AFTER, **given).evidence.dynamics == "standard"
    with pytest.raises(ValueError, match=r"num_images=4, and the recipe says 3"):
        auditing.case(AFTER, recipe=TOLD, num_images=4, **given)


def test_one_gradient_has_no_dynamics():
    shape = {"image_shape": (2, 2, 1), "recipe": TOLD | {"dynamics": "standard"}}
    known = auditing.case(before=BEFORE, gradient=AFTER, **shape).evidence
    assert known.is_gradient
    assert known.dynamics == "linearized"
    notes = recipes.unused(recipes.read(TOLD), known)
    assert len(notes) == 1
    assert "num_images" not in notes[0]
    assert all(name in notes[0] for name in TOLD if name != "num_images")


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"los": "mse"}, "key 'los' is unknown, did you mean loss?"),
        ({"lr": 0.1}, "key 'lr' is unknown"),
        ({"loss": "hinge"}, "loss='hinge' is unknown: use one of mse"),
        ({"loss": ["mse"]}, "unknown"),
        ({"optimizer": "adamW"}, "did you mean adam"),
        ({"dynamics": "ntk"}, "use one of linearized, standard"),
        ({"num_images": 0}, "num_images=0 must be a whole number, at least 1"),
        ({"num_images": 2.5}, "num_images=2.5 must be a whole number"),
        ({"epochs": 1.5}, "epochs=1.5 must be a whole number"),
        ({"batch_size": True}, "batch_size=True"),
        ({"learning_rate": -1}, "learning_rate=-1 must be above 0"),
        ({"learning_rate": "fast"}, "must be one number"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be at least 0"),
        ({"weight_decay": float("nan")}, "weight_decay=nan"),
        ({"labels": [[1, 0], [1]]}, "the values that labels take"),
        ({"labels": ["cat"]}, "the values that labels take"),
        ({"labels": []}, "the values that labels take"),
    ],
)
def test_bad_values_are_one_sentence(told, sentence):
    with pytest.raises(ValueError, match="recipe") as error:
        recipes.read(told)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.json", "{", "is no JSON"),
        ("a.json", "[" * 100_000, "is no JSON"),
        ("a.toml", "loss = mse", "is no TOML"),
        ("a.json", "3", "must hold values by name"),
        ("a.yaml", "loss: mse", "must be a .json or a .toml file"),
        ("a.json", "x" * 1_000_001, "is larger than"),
    ],
)
def test_bad_files_are_one_sentence(name, text, sentence, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=sentence) as error:
        recipes.read(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_told():
    with pytest.raises(FileNotFoundError, match=r"absent\.toml"):
        recipes.read("absent.toml")


@pytest.mark.parametrize("name", ["adam", "adamw", "lion"])
def test_entrywise_steps_break_what_is_assumed_and_nothing_found_means_nothing(name):
    training = KnownTraining(optimizer=name)
    nothing = _stated("nothing found", training)
    assert f"optimizer={name}" in nothing.contradicted[0]
    assert "says nothing of what the weights hold" in nothing.contradicted[0]
    # What is contradicted is not assumed as well.
    assert not any("without Adam" in text for text in nothing.assumed)
    exact = _stated("exact", training)
    assert "the recipe is wrong" in exact.contradicted[0]
    assert exact.supported


def test_other_optimizers_and_gradients_contradict_nothing():
    assert not _stated("nothing found", KnownTraining(optimizer="sgd")).contradicted
    one = _known(dynamics="linearized", is_gradient=True)
    told = _stated("nothing found", KnownTraining(optimizer="adam"), known=one)
    assert not told.contradicted
    assert any("without Adam" in text for text in told.assumed)


def test_the_number_of_images_is_held_against_the_weights():
    told = _stated("exact", KnownTraining(num_images=5), count=4)
    assert told.contradicted == ("The recipe says num_images=5: the weights show 4.",)
    assert not _stated("exact", KnownTraining(num_images=4), count=4).contradicted


def test_a_search_near_the_margin_is_told_its_loss():
    after = _known(params_0=None)
    cross, squares, open_ = (
        _stated("nothing found", KnownTraining(loss=loss), known=after)
        for loss in ("cross_entropy", "mse", None)
    )
    assert "cross-entropy" in open_.assumed[0]
    assert "cross-entropy" not in cross.assumed[0]
    assert not cross.contradicted
    assert "loss=mse" in squares.contradicted[0]


def test_what_no_attack_uses_is_said():
    training = recipes.read(TOLD | {"dynamics": "standard"})
    of_squares = " ".join(recipes.unused(training, _known()))
    for name in ("learning_rate", "batch_size", "weight_decay", "epochs"):
        assert f"{name}=" in of_squares
    for name in ("loss", "labels", "optimizer", "num_images", "dynamics"):
        assert f"{name}=" not in of_squares
    other = " ".join(recipes.unused(training, _known(objective="cross_entropy")))
    assert "loss=" in other
    assert "labels=" in other
    assert recipes.unused(KnownTraining(loss="mse", optimizer="adam"), _known()) == ()


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_the_audit_says_what_it_was_told(num_outputs):
    def applied(params, x):
        return x.reshape(len(x), -1) @ params["w"]

    rng = np.random.default_rng(0)
    before, after = ({"w": rng.normal(size=(4, num_outputs))} for _ in range(2))
    found = ntk_privacy.audit(
        after,
        before=before,
        network=applied,
        image_shape=(2, 2, 1),
        recipe={"optimizer": "adam", "learning_rate": 0.001},
    )
    assert found.settings["recipe"] == "optimizer=adam, learning_rate=0.001"
    assert any("learning_rate=0.001 is not used" in note for note in found.notes)
    assert any("optimizer=adam" in text for text in found.verdict.contradicted)
    assert "safe" not in repr(found.verdict).lower()
