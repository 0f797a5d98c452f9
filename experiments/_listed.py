"""What a command line may say of a method, and what `--help` says of it."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from experiments import _flags
from ntk_privacy.method import Method

if TYPE_CHECKING:
    from experiments._program import Program


def entries(program: "Program", method: Method[Any]) -> list[_flags.Entry]:
    """Returns the flags of a method, with their types, texts and defaults."""
    presets = tuple(method.presets)
    made = {name: method.configured(name) for name in presets}
    told = "One of the values below; each has flags of its own."
    was = {"former": (program.former,), "former_values": program.former_names}
    names, preset = Literal[*program.methods], "What flags are unless given."
    choice = dataclasses.make_dataclass(
        "Choice",
        [
            (program.flag, names, _choice(program.default, told, **was)),
            ("preset", Literal[*presets], _choice(presets[0], preset)),
        ],
    )
    found = _flags.entries(choice, program.flag)
    found += _flags.entries(method.config, f"flags of {method.name}", made)
    for kind in program.groups(method):
        known = {entry.name for entry in found}
        title = (kind.__doc__ or kind.__name__).split("\n")[0].rstrip(".")
        sized = {name: kind(**sizes(kind, name, method)) for name in presets}
        more = _flags.entries(kind, title, sized)
        found += [entry for entry in more if entry.name not in known]
    return found


def named(program: "Program", arguments: Sequence[str]) -> str:
    """Returns the method that a command line names, known or not."""
    found, names = program.default, {program.flag, program.former or program.flag}
    for place, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag.startswith("-") and flag.lstrip("-") in names:
            found = value or "".join(arguments[place + 1 : place + 2])
            break
    return program.former_names.get(found, found)


def text(
    program: "Program",
    method: Method[Any],
    entries: list[_flags.Entry],
    is_short: bool,
) -> str:
    """Returns what `--help` prints, or `--helpshort`."""
    short = (program.flag, f"flags of {method.name}")
    entries = [e for e in entries if not is_short or e.group in short]
    rows = [f"  {name}: {other.about}" for name, other in program.methods.items()]
    if program.beside:
        rows.append(f"  with flags of their own: {', '.join(program.beside)}")
    about = f"{program.about}\n--{program.flag}={method.name}: {method.about}"
    more = ["", f"values of --{program.flag}:", *rows]
    return _flags.help_text(about, entries, more)


def foreign(program: "Program", method: Method[Any], name: str) -> str | None:
    """Returns why a flag that other methods have is refused; None if none has."""
    holders = [
        other.name
        for other in program.methods.values()
        if {name, name.removeprefix("no")} & program.names(other)
    ]
    if not holders:
        return None
    return (
        f"--{name} has no effect with --{program.flag}={method.name}: leave it out "
        f"(it is a flag of {', '.join(holders)})."
    )


def sizes(kind: type, preset: str, method: Method[Any]) -> dict[str, Any]:
    """Returns what a preset says of a group, which may have a method `sizes`."""
    return kind.sizes(preset, method) if hasattr(kind, "sizes") else {}  # pyright: ignore


def _choice(default: str, text: str, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, **more})
