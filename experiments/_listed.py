"""What a command line may say of a method, and what `--help` says of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ntk_privacy.method import Method, field

from . import _flags

if TYPE_CHECKING:
    from ._program import Program


def own(kind: type, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that are fields of a dataclass."""
    names = {entry.name for entry in dataclasses.fields(kind)}
    return {name: value for name, value in flat.items() if name in names}


def entries(program: "Program", method: Method[Any]) -> list[_flags.Entry]:
    """Returns the flags of a method, with their types, texts and defaults."""
    presets, kind = tuple(method.presets), program.kind(method)
    told = "One of the values below; each has flags of its own."
    names, preset = Literal[*program.methods], "What flags are unless given."
    choice = dataclasses.make_dataclass(
        "Choice",
        [
            (program.flag, names, field(program.default, told)),
            ("preset", Literal[*presets], field(presets[0], preset)),
        ],
    )
    found = _flags.entries(choice, program.flag, {"": choice()})
    made = {name: method.configured(name) for name in presets}
    found += _flags.entries(method.config, f"flags of {method.name}", made)
    usual = {name: kind.defaults(method, name) for name in presets}
    for group in kind.groups:
        title = (group.__doc__ or group.__name__).split("\n")[0].rstrip(".")
        made = {name: group(**own(group, flat)) for name, flat in usual.items()}
        found += _flags.entries(group, title, made)
    # A flag that several parts have is one flag, told where it stands first.
    first = {entry.name: entry for entry in reversed(found)}
    return [entry for entry in found if first[entry.name] is entry]


def of_today(program: "Program", arguments: Sequence[str]) -> list[str]:
    """Returns arguments that name the method as it is named today."""
    valued = {f"--{flag}" for flag, value in program.former if value is not True}
    names = {
        spelt: method
        for (flag, value), method in program.former.items()
        for spelt in (f"--{flag}={value}".lower(), f"--{flag}")
        if spelt not in valued
    }
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in valued:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    chosen = {a.partition("=")[0]: names[a] for a in joined if a in names}
    if chosen:
        with _flags.usage():
            the_one(program, [*chosen.values(), *named(program, joined)[-1:]])
    return [f"--{program.flag}={names[a]}" if a in names else a for a in joined]


def named(program: "Program", arguments: Sequence[str]) -> list[str]:
    """Returns the methods that a command line names, known or not: the last counts."""
    return [
        value or "".join(arguments[place + 1 : place + 2])
        for place, argument in enumerate(arguments)
        for flag, _, value in [argument.partition("=")]
        if flag.startswith("-") and flag.lstrip("-") == program.flag
    ]


def the_one(program: "Program", methods: Sequence[str]) -> str | None:
    """Returns the method that is named, if any; raises ValueError for two."""
    if len(set(methods)) > 1:
        told = f"{' and '.join(methods)} are two values of --{program.flag}"
        raise ValueError(f"{told}: ask for one.")
    return methods[0] if methods else None


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
