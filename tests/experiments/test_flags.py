"""Fields become flags; every mistake is one line and the right exit code."""

import dataclasses
import importlib
import pathlib
import subprocess
import sys
from typing import Literal

import pytest
from absl import flags as absl_flags

from experiments import _flags
from experiments._kinds import Kind
from experiments._program import Program
from ntk_privacy.method import Method


@dataclasses.dataclass(frozen=True)
class Config:
    """A toy.

    More words that the help leaves out.
    """

    width: int = dataclasses.field(default=1024, metadata={"help": "Hidden units."})
    rate: float = 0.5
    dataset: str = dataclasses.field(
        default="digits", metadata={"choices": ("digits", "mnist")}
    )
    mode: Literal["fast", "paper"] = "fast"
    data_dir: str | None = None
    time: float | None = 2.5
    download: bool = False
    hidden: tuple[int, ...] = (8, 8)
    span: tuple[float, float] = (0.0, 1.0)
    seed: int = 0

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width={self.width} must be at least 1.")


@dataclasses.dataclass(frozen=True)
class Other:
    """Another binary with a flag of the same name."""

    width: int = 2


def _parse(config):
    """What reads a command line of a binary with one method."""
    about = config.__doc__.split("\n")[0]
    row = Method("toy", about, config, {"cpu": config}, print)
    kind = Kind(groups=(), told=lambda *_: "")
    return Program(about, {"toy": row}, lambda _: kind, "toy").parse


def _config(config, arguments):
    return _parse(config)(arguments).config


def test_defaults_are_those_of_the_dataclass():
    assert _config(Config, []) == Config()


def test_each_type_is_read():
    arguments = [
        "--width=7", "--rate", "1e-3", "--dataset=mnist", "--mode=paper",
        "--data_dir=/a b", "--time=none", "--download", "--hidden=1,2,3",
        "--span=-1,2.5",
    ]  # fmt: skip
    assert _config(Config, arguments) == Config(
        7, 1e-3, "mnist", "paper", "/a b", None, True, (1, 2, 3), (-1.0, 2.5)
    )
    assert _config(Config, ["--hidden="]).hidden == ()
    assert not _config(Config, ["--nodownload"]).download
    assert type(_config(Config, ["--rate=1"]).rate) is float


@dataclasses.dataclass(frozen=True)
class Choosy:
    """A binary whose modes read some flags only."""

    mode: Literal["fast", "paper"] = "fast"
    steps: int = 3
    loud: bool = True

    def passed_over(self):
        return {"steps": "--mode=fast", "loud": "it"} if self.mode == "fast" else {}


def test_flags_without_effect_are_refused_whatever_their_value(capsys):
    for given, name in (("--steps=3", "steps"), ("--noloud", "loud")):
        assert _flags.call(print, _parse(Choosy), [given]) == 2
        told = capsys.readouterr().err
        assert f"--{name} has no effect with" in told
        assert told.count("\n") == 1
    assert _config(Choosy, ["--mode=paper", "--steps=3"]) == Choosy("paper")
    assert _config(Choosy, []) == Choosy()


@pytest.mark.parametrize(
    ("program", "flags", "refused"),
    [
        ("reconstruct", "--method=algebraic --num_steps=7", "num_steps"),
        ("reconstruct", "--method=algebraic --replays=2", "replays"),
        ("reconstruct", "--method=kkt --auxiliary=none", "auxiliary"),
        ("reconstruct", "--method=max_margin --schedule=paper", "schedule"),
        ("reconstruct", "--method=max_margin --dynamics=standard", "dynamics"),
        ("reconstruct", "--replays=2", "replays"),
        ("reconstruct", "--max_train_steps=9", "max_train_steps"),
        ("reconstruct", "--early_stop_loss=1e-2 --stop_loss=1e-3", "stop_loss"),
        ("reconstruct", "--sweep=cpu --width=64", "width"),
        ("reconstruct", "--sweep=cpu --known_num_images=4", "known_num_images"),
        ("kernel", "--kernel=infinite_mlp --head=flatten", "head"),
        ("kernel", "--kernel=infinite_mlp --stop_loss=0.5", "stop_loss"),
        ("kernel", "--kernel=empirical_mlp --notrain --stop_loss=0.5", "stop_loss"),
        ("distill", "--method=rkip_finite --num_steps=7", "num_steps"),
        ("distill", "--method=rkip --max_train_steps=9", "max_train_steps"),
        ("distill", "--method=full --num_distilled=20", "num_distilled"),
        ("distill", "--method=dc --num_distilled=20", "num_distilled"),
        ("distill", "--table --methods=kip --attack_steps=9", "attack_steps"),
        ("poison", "--attack=direct --num_restarts=9", "num_restarts"),
        ("poison", "--attack=dm --num_clean=2", "num_clean"),
        ("poison", "--attack=none --nocontrol", "control"),
        ("distill", "--method=sre2l --attack_steps=3", "attack_steps"),
        ("distill", "--method=cda --attacks=mim", "attacks"),
        ("evade", "--train=plain --attacks=pgd --num_queries=7", "num_queries"),
        ("evade", "--train=plain --attacks=square --attack_steps=7", "attack_steps"),
        ("evade", "--model=x --width=64", "width"),
        ("evade", "--train=plain --train_attack_steps=7", "train_attack_steps"),
        ("compare", "--num_seeds=1", "num_seeds"),
        ("compare", "--methods=dc --num_targets=100", "num_targets"),
    ],
)
def test_no_binary_passes_over_a_flag(program, flags, refused):
    module = importlib.import_module(f"experiments.{program}")
    with pytest.raises(_flags.UsageError, match=f"--{refused} has no effect with"):
        module.PROGRAM.parse(flags.split())


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("reconstruct", "--dynamics=standard --replays=2 --max_train_steps=9"),
        ("reconstruct", "--method=algebraic --known_num_images=2 --num_images=2"),
        ("reconstruct", "--sweep=cpu --method=kkt --num_steps=7 --seed=3"),
        ("kernel", "--kernel=infinite_mlp --parametrization=standard --width=64"),
        ("kernel", "--kernel=infinite_convnet --head=global_pool --pooling=avg"),
        ("distill", "--table --methods=full --max_train_steps=200 --stop_loss=1e-3"),
        ("distill", "--method=rkip --evaluate --num_runs=2 --max_train_steps=9"),
        ("distill", "--method=rkip --attack --attack_steps=9 --dynamics=standard"),
        ("poison", "--attack=gradient --num_clean=2 --bound=8"),
        ("evade", "--train=adversarial --train_attack_steps=3 --width=8"),
        ("compare", "--judge=attacks --num_seeds=2"),
    ],
)
def test_flags_that_have_an_effect_are_taken(program, flags):
    module = importlib.import_module(f"experiments.{program}")
    assert module.PROGRAM.parse(flags.split())


@pytest.mark.parametrize(
    ("program", "former", "today"),
    [
        ("reconstruct", "--num_images=4", "--num_train=4"),
        ("kernel", "--num_images 7", "--num_train=7"),
        ("distill", "--method=dm --num_images=30", "--method=dm --num_train=30"),
        ("distill", "--table --num_images=30", "--table --num_train=30"),
        ("poison", "--first_seed=3", "--seed=3"),
        ("compare", "--num_images=30 --attacks=none", "--num_train=30"),
        ("compare", "--attacks=all", "--judge=attacks"),
        ("distill", "--table --num_runs=2", "--method=table --num_runs=2"),
        ("distill", "--defence=true", "--method=defence"),
        (
            "compare",
            "--attacks all --num_attacked=3",
            "--judge=attacks --num_attacked=3",
        ),
        (
            "evade",
            "--train=plain --num_images=40 --num_steps=3 --num_train=9",
            "--train=plain --num_attacked=40 --attack_steps=3 --num_train=9",
        ),
    ],
)
def test_former_names_are_understood_and_not_listed(capsys, program, former, today):
    module = importlib.import_module(f"experiments.{program}")
    flags = module.PROGRAM

    def told(words):
        return flags.parse(words.split()).flat()

    assert told(former) == told(today)
    assert _flags.call(print, flags.parse, [*former.split(), "--help"]) == 0
    listed = capsys.readouterr().out
    names = {word.partition("=")[0] for word in former.split() if word[:2] == "--"}
    for name in names - {word.partition("=")[0] for word in today.split()}:
        assert f"  {name}=" not in listed


def test_one_meaning_has_one_name_in_every_binary():
    """Training images, attacked test images, the first seed, steps of an evasion."""
    every = set()
    for name in ("compare", "distill", "evade", "kernel", "poison", "reconstruct"):
        program = importlib.import_module(f"experiments.{name}").PROGRAM
        for method in program.methods:
            every |= program.names(method) | {program.flag}
    assert not every & {"num_images", "first_seed"}
    assert {"num_train", "num_test", "num_attacked", "seed", "eps"} <= every


def test_a_preset_that_is_the_only_one_is_no_choice_in_help(capsys):
    module = importlib.import_module("experiments.evade")
    assert module.PROGRAM.parse(["--model=x", "--preset=cpu"]).preset == "cpu"
    assert _flags.call(print, module.PROGRAM.parse, ["--help"]) == 0
    assert "--preset" not in capsys.readouterr().out


def test_flags_that_are_replaced_are_checked():
    module = importlib.import_module("experiments.distill")
    asked = module.PROGRAM.asked("full", num_images=7)
    assert asked.replaced(num_images=9).flat()["num_train"] == 9
    with pytest.raises(ValueError, match="is no distilled set"):
        asked.replaced(attack=True)


def test_two_binaries_live_in_one_process_and_leave_no_global_flag():
    assert _config(Other, ["--width=3"]).width == 3
    assert _config(Config, ["--width=4"]).width == 4
    assert "width" not in absl_flags.FLAGS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--widht=3"], "Unknown command line flag 'widht'. Did you mean: width"),
        (["--width=abc"], "flag --width=abc: expected a whole number, not 'abc'."),
        (["--width=1.5"], "flag --width=1.5: expected a whole number"),
        (["--rate=nan"], "flag --rate=nan: expected a number"),
        (
            ["--dataset=mnits"],
            "flag --dataset=mnits: unknown, did you mean mnist? Use one of digits, m",
        ),
        (["--mode=slow"], "use one of fast, paper."),
        (["--download=maybe"], "flag --download=maybe"),
        (["--hidden=1,x"], "flag --hidden=1,x: expected a whole number, not 'x'."),
        (["--span=1"], "flag --span=1: expected 2 values"),
        (["--width=0"], "width=0 must be at least 1."),
        (["4096"], "unexpected argument '4096': write --flag=value"),
        (["--width"], "Missing value for flag --width"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert (
        _flags.call(lambda _: pytest.fail("main ran"), _parse(Config), arguments) == 2
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "limit"),
    [
        ("--seed=4294967296", 4294967295),
        ("--width=1000000001", 10**9),
        ("--hidden=8,1000000001", 10**9),
    ],
)
def test_whole_numbers_fit_counters_of_a_device(flag, limit, capsys):
    assert _flags.call(print, _parse(Config), [flag]) == 2
    assert f"is too large: use at most {limit}." in capsys.readouterr().err
    assert _flags.call(print, _parse(Config), ["--seed=4294967295"]) == 0


def _raise(error):
    def main(_):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            _flags.UsageError("num_images=9 is too many."),
            2,
            "num_images=9 is too many.",
        ),
        (FileNotFoundError(2, "No such file", "/x/y"), 1, "/x/y: No such file."),
        (PermissionError("no"), 1, "no"),
        (ValueError("two\nlines"), 1, "two lines"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_main_raises_decides_the_exit_code(error, code, message, capsys):
    assert _flags.call(_raise(error), _parse(Config), []) == code
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_faults_of_the_program_keep_their_traceback():
    with pytest.raises(KeyError):
        _flags.call(_raise(KeyError("x")), _parse(Config), [])


def test_help_names_every_flag_with_type_and_default(capsys):
    assert _flags.call(print, _parse(Config), ["--help"]) == 0
    text = capsys.readouterr().out
    assert "A toy." in text
    assert "More words" not in text
    for line in (
        "--width=INT\n        Hidden units. (default: 1024)",
        "--dataset=digits|mnist\n        (default: digits)",
        "--data_dir=TEXT|none\n        (default: none)",
        "--[no]download\n        (default: false)",
        "--hidden=INT,...\n        (default: 8,8)",
        "--span=FLOAT,FLOAT\n        (default: 0.0,1.0)",
        "--seed=INT\n        (default: 0)",
    ):
        assert line in text


def test_run_works_as_a_module(tmp_path):
    (tmp_path / "toy.py").write_text(
        "import dataclasses\nfrom experiments import _flags\n"
        "from experiments._kinds import Kind\n"
        "from experiments._program import Program\n"
        "from ntk_privacy.method import Method\n"
        "@dataclasses.dataclass(frozen=True)\nclass Config:\n    width: int = 1\n"
        "row = Method('toy', 'A toy.', Config, {'cpu': Config}, print)\n"
        "kind = Kind(groups=(), told=lambda *_: '')\n"
        "program = Program('A toy.', {'toy': row}, lambda _: kind, 'toy')\n"
        "if __name__ == '__main__':\n"
        "    _flags.run(lambda asked: print(asked.config.width), program.parse)\n"
    )

    def shell(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "toy", *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": f"{tmp_path}:{_ROOT}"},
            capture_output=True,
            text=True,
        )

    good, bad = shell("--width=4096"), shell("--depth=1")
    assert (good.returncode, good.stdout) == (0, "4096\n")
    assert bad.returncode == 2
    assert "usage: python -m toy" in shell("--help").stdout


_ROOT = _flags.__file__.rsplit("/", 2)[0]


@pytest.mark.parametrize(
    ("program", "flags", "told"),
    [
        ("poison", "--seed=4294967290 --num_seeds=7", "num_seeds=7 go on beyond"),
        (
            "compare",
            "--judge=attacks --methods=dc --seed=4294967295 --num_seeds=2",
            "num_seeds=2 go on beyond",
        ),
        (
            "distill",
            "--table --seed=4294967295 --num_runs=2",
            "num_runs=2 go on beyond",
        ),
        ("compare", "--methods=dc,dm,dc", "methods names dc twice: name it once"),
    ],
)
def test_seeds_that_wrap_and_names_that_repeat_are_told(program, flags, told):
    """Seed 2**32 is seed 0 again: a second run of it would pass for another."""
    known = importlib.import_module(f"experiments.{program}").PROGRAM
    with pytest.raises(_flags.UsageError, match=told):
        known.parse(flags.split())
    fits = flags.replace("429496729", "42949672").replace(",dc", "")
    assert known.parse(fits.split())


def test_lines_to_be_pasted_stay_lines(tmp_path, capsys):
    (tmp_path / "net.pt").write_bytes(b"\x80\x04K\x01.")
    words = [f"--after={tmp_path / 'net.pt'}", f"--workdir={tmp_path / 'work'}"]
    audit = importlib.import_module("experiments.audit")
    assert _flags.call(audit.main, audit.PROGRAM.parse, words) == 1
    first, *lines = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ")
    assert first.endswith("in three lines:")
    assert len(lines) == 3
    compile("\n".join(lines), "pasted", "exec")


def _ran(program):
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(__file__).parents[2],
    )


def test_an_interrupt_while_a_binary_imports_is_one_line():
    program = (
        "import os, signal, sys; sys.argv = ['-m']; "
        # What a shell starts in the background ignores it.
        "signal.signal(signal.SIGINT, signal.default_int_handler); import experiments; "
        "signal.raise_signal(signal.SIGINT); print('goes on')"
    )
    done = _ran(program)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "error: interrupted.\n"


def test_an_interrupted_process_ends_at_once_with_what_it_said():
    """Threads that compile still would crash it while the interpreter ends."""
    program = (
        "import atexit; from experiments import _flags\n"
        "def main(_): print('begun'); raise KeyboardInterrupt\n"
        "atexit.register(print, 'late'); _flags.run(main, list)"
    )
    done = _ran(program)
    assert (done.returncode, done.stdout) == (130, "begun\n")
    assert done.stderr == "error: interrupted.\n"
