"""Lists the commands, and runs one: `python -m experiments reconstruct --flags`."""

import ast
import difflib
import importlib
import pathlib
import sys
from collections.abc import Sequence

from . import _flags
from ._flags import leave

__all__ = ["leave", "main", "names"]

_HERE = pathlib.Path(__file__).parent


def names() -> dict[str, str]:
    """Returns the commands, and what each of them does."""
    found = {}
    for path in sorted(_HERE.glob("[a-z]*.py")):
        told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem] = told.splitlines()[0]
    return found


def _listed() -> str:
    width = max(map(len, names()))
    rows = [f"  {name:<{width}}  {about}" for name, about in names().items()]
    first = "usage: ntk-privacy COMMAND [--flag=value ...]"
    last = "ntk-privacy COMMAND --help lists the flags of one."
    return "\n".join([first, "", *rows, "", last])


def main(arguments: Sequence[str]) -> int:
    """Runs a command; returns the exit code.

    Args:
      arguments: its name and its flags; none, or --help, lists the commands.
    """
    if not arguments or arguments[0] in ("help", "-h", "--help"):
        print(_listed())
        return 0
    name, *flags = arguments
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        offer = f"; did you mean {near[0]}?" if near else "."
        told = f"{name!r} is no command: use one of {', '.join(names())}{offer}"
        print("error:", told, file=sys.stderr)
        return 2
    binary = importlib.import_module(f"{__package__}.{name}")
    return _flags.call(binary.main, binary.PROGRAM.parse, flags)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
