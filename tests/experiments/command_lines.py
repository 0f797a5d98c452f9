"""Command lines of toy size for tests of the binaries."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import _flags, distill
from ntk_privacy import distillation


def command_line(
    config_class: Any,
    sizes: Mapping[str, Any],
    *flags: str,
    workdir: Path,
    **changes: Any,
) -> list[str]:
    """Returns arguments: a test's own, and those of `sizes` that have an effect then.

    Toy sizes are one list for all methods, which none of them reads in full; and flags
    that are not read are refused. What a test gives itself is never left out.

    Args:
      config_class: of the binary.
      sizes: flags by name.
      *flags: of the test, as they are written.
      workdir: of the run.
      **changes: of the test, by name, in place of what `sizes` has.
    """
    own = [*_written({"workdir": workdir, **changes}), *flags]
    sizes = {name: size for name, size in sizes.items() if name not in changes}
    while True:
        arguments = [*_written(sizes), *own]
        try:
            config_class.parse(arguments)
        except _flags.UsageError as error:
            found = re.match(r"--(\w+) has no effect with ", str(error))
            if found and found[1] in sizes:
                del sizes[found[1]]
                continue
        return arguments


def asked(sizes: Mapping[str, Any], **changes: Any) -> Any:
    """Returns what is asked of `distill`: a test's own flags, and sizes that it takes.

    Args:
      sizes: flags by name, for all methods.
      **changes: of the test.
    """
    studies = [name for name in ("table", "defence") if changes.get(name)]
    method = (studies or [changes.get("method", sizes.get("method", "rkip"))])[0]
    names = distill.PROGRAM.names(method)
    own = {k: v for k, v in sizes.items() if k in names or k == "method"}
    return distill.PROGRAM.asked(**{**own, **changes})


def summary(results: Mapping[str, Any]) -> str:
    """Returns what the terminal is told of results of `distill`."""
    asked = distill.PROGRAM.asked(results["method"])
    return asked.kind.told(asked, results)


def chunks(monkeypatch: Any, size: int) -> None:
    """Makes all methods of distillation tell their stage every so many steps.

    Args:
      monkeypatch: the fixture.
      size: steps of a chunk.
    """
    for name, method in list(distillation.METHODS.items()):
        run = functools.partial(method.run, chunk=size)
        short = dataclasses.replace(method, run=run)
        monkeypatch.setitem(distillation.METHODS, name, short)


def _written(values: Mapping[str, Any]) -> list[str]:
    texts = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
    }
    # A path keeps its capitals.
    return [
        f"--{name}={text if name in ('workdir', 'model') else text.lower()}"
        for name, text in texts.items()
    ]
