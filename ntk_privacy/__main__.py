"""The commands of an installation: `ntk-privacy reconstruct --flags`.

`python -m ntk_privacy` is the same; without a name both list the commands. In a
checkout the binaries are `experiments`, in an installation `ntk_privacy.experiments`.
"""

import importlib
import importlib.util
import pathlib
import sys

__all__ = ["main"]

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def _commands() -> str:
    """Returns the name of the module that runs commands."""
    if (_ROOT / "experiments" / "_program.py").is_file():
        sys.path.insert(0, str(_ROOT))
        return "experiments.__main__"
    return "ntk_privacy.experiments.__main__"


def main() -> None:
    """Runs a command and exits with its code."""
    commands = importlib.import_module(_commands())
    commands.leave(commands.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
