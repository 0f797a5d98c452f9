"""A method's record: presets, what is given, what is refused."""

import dataclasses

import pytest

from ntk_privacy import method


@dataclasses.dataclass(frozen=True)
class Config:
    num_steps: int = method.field(3, "Steps.")
    rate: float = method.field(0.5, "Step size.")


def _short(**given):
    return Config(**({"num_steps": 1} | given))


TOY = method.Method(
    name="toy",
    about="Does nothing.",
    config=Config,
    presets={"cpu": _short, "paper": Config},
    run=lambda problem, config, *, key: (problem, config, key),
)


def test_the_first_preset_is_taken_and_given_values_win():
    assert TOY.configured() == Config(num_steps=1)
    assert TOY.configured("paper") == Config()
    assert TOY.configured(num_steps=7, rate=1.0) == Config(num_steps=7, rate=1.0)


def test_what_suits_a_problem_stands_between_the_preset_and_what_is_given():
    def suited(preset, problem):
        return {"rate": problem} if preset == "cpu" else {}

    row = dataclasses.replace(TOY, suited=suited)
    assert row.configured(problem=0.1) == Config(num_steps=1, rate=0.1)
    assert row.configured(problem=0.1, rate=0.2) == Config(num_steps=1, rate=0.2)
    assert row.configured("paper", 0.1) == Config()
    assert row.configured() == TOY.configured(problem=0.1) == Config(num_steps=1)


@pytest.mark.parametrize(
    ("preset", "given", "told"),
    [
        ("gpu", {}, "preset='gpu' is unknown to toy: use one of cpu, paper"),
        (None, {"steps": 1}, "toy takes no steps: it has num_steps, rate"),
    ],
)
def test_what_a_method_does_not_have_is_refused(preset, given, told):
    with pytest.raises(ValueError, match=told):
        TOY.configured(preset, **given)


def test_two_methods_of_one_name_are_refused():
    assert method.by_name(TOY)["toy"] is TOY
    with pytest.raises(ValueError, match="two methods are named toy"):
        method.by_name(TOY, dataclasses.replace(TOY, about="Another."))


def test_fields_carry_their_help_and_what_older_folders_meant():
    entry = dataclasses.fields(Config)[0]
    assert entry.metadata["help"] == "Steps."
    assert method.field(1, "A.", before=2).metadata["before"] == 2
