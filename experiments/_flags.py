"""Flags from frozen dataclasses: one field, one flag, no global state.

A `Program` has groups of flags and a table of methods: a command line has the flags of
the method that it names, and of no other. Flags live on a private `FlagValues` made
inside `run`, so that any number of binaries can be imported by one process.

Exit codes: 0 done, 1 a file or its contents, 2 a flag, 130 interrupted. Errors are one
line on stderr.
"""

import contextlib
import dataclasses
import difflib
import math
import os
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

from absl import flags

Config = TypeVar("Config")
Asked = TypeVar("Asked", covariant=True)

# Seeds and counters are 32 bits wide on devices.
_LARGEST_SEED, _LARGEST = 2**32 - 1, 10**9

_SCALARS = {int: "a whole number", float: "a number", str: "a text"}


class UsageError(ValueError):
    """A flag's value is at fault: raised by a `main` it ends with exit code 2."""


@contextlib.contextmanager
def usage(
    kind: type[ValueError] = ValueError, *, train: str = "num_images"
) -> Iterator[None]:
    """Takes errors of the library within the block for faults of flags.

    Args:
      kind: of the errors; `data.ArgumentError` where files are read, which may be
        damaged.
      train: the flag that is the library's num_train.

    Raises:
      UsageError: one was raised; its words name flags.
    """
    try:
        yield
    except kind as error:
        raise UsageError(str(error).replace("num_train", train)) from error


class _HelpAsked(Exception):
    """`--help` was given; the text is the argument."""


def _split_optional(hint: Any) -> tuple[Any, bool]:
    """Returns the type without None, and whether None was allowed."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(hint) if a is not types.NoneType]
        if len(rest) == 1:
            return rest[0], True
    return hint, False


def allows_none(hint: Any) -> bool:
    """Whether a flag of this type may be none."""
    return _split_optional(hint)[1]


def _parse_scalar(kind: type, text: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if value != value:
        raise ValueError(f"expected {_SCALARS[kind]}, not {text!r}.")
    return value


def nearest(name: str, known: Sequence[str]) -> str:
    """Returns ", did you mean ...? Use", or ": use" where nothing is near."""
    found = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {found[0]}? Use" if found else ": use"


class _Parser(flags.ArgumentParser):
    """Parses int, float, str, Literal, their optionals, and tuples of them."""

    def __init__(self, hint: Any, metadata: Mapping[str, Any]) -> None:
        super().__init__()
        self.hint, self.optional = _split_optional(hint)
        self.choices = metadata.get("choices")
        self.elsewhere = metadata.get("elsewhere", ())
        if typing.get_origin(self.hint) is typing.Literal:
            self.choices = self.choices or typing.get_args(self.hint)
            self.hint = type(self.choices[0])
        self.is_tuple = typing.get_origin(self.hint) is tuple
        kinds = typing.get_args(self.hint) if self.is_tuple else (self.hint,)
        self.length = None if kinds[-1:] == (Ellipsis,) else len(kinds)
        self.kind = kinds[0]
        if self.kind not in _SCALARS:
            raise TypeError(f"no flag can hold {hint}.")

    def parse(self, argument: str) -> Any:
        if self.optional and argument.lower() == "none":
            return None
        if not self.is_tuple:
            value = _parse_scalar(self.kind, argument)
            if value in self.elsewhere:
                raise ValueError("has flags of its own, which do not go with these.")
            if self.choices is not None and value not in self.choices:
                known = [str(choice) for choice in (*self.choices, *self.elsewhere)]
                raise ValueError(
                    f"unknown{nearest(argument, known)} one of {', '.join(known)}."
                )
            return value
        parts = [part.strip() for part in argument.split(",")] if argument else []
        if self.length is not None and len(parts) != self.length:
            raise ValueError(f"expected {self.length} values between commas.")
        return tuple(_parse_scalar(self.kind, part) for part in parts)

    def flag_type(self) -> str:
        """Returns the word that `--help` shows after the equals sign."""
        if self.choices is not None:
            return "|".join(map(str, (*self.choices, *self.elsewhere)))
        word = {int: "INT", float: "FLOAT", str: "TEXT"}[self.kind]
        if self.is_tuple:
            word = (
                f"{word},..." if self.length is None else ",".join([word] * self.length)
            )
        return f"{word}|none" if self.optional else word


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "empty"
    # By identity of type: 0 and 1 equal False and True.
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


@dataclasses.dataclass(frozen=True)
class Entry:
    """A flag: its field, type and group; the defaults of presets where they differ."""

    field: dataclasses.Field
    hint: Any
    group: str
    presets: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def entries(
    config_class: type, group: str = "", presets: Mapping[str, Any] | None = None
) -> list[Entry]:
    hints = typing.get_type_hints(config_class)
    return [
        Entry(
            entry,
            hints[entry.name],
            group,
            {name: getattr(made, entry.name) for name, made in (presets or {}).items()},
        )
        for entry in dataclasses.fields(config_class)
    ]


def _told_default(entry: Entry) -> str:
    shown = {name: _shown(value) for name, value in entry.presets.items()}
    if len(set(shown.values())) > 1:
        return ", ".join(f"{name}: {value}" for name, value in shown.items())
    default = _default(entry.field)
    if shown:
        return f"default: {next(iter(shown.values()))}"
    if default is dataclasses.MISSING:
        return "required"
    return f"default: {_shown(default)}"


def help_text(about: str, entries: Sequence[Entry], more: Sequence[str] = ()) -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = f"python -m {spec.name}" if spec else "program"
    lines = [f"usage: {program} [--flag=value ...]", ""]
    for paragraph in about.splitlines():
        lines += [*textwrap.wrap(paragraph, 88), ""]
    group = ""
    for entry in entries:
        if entry.group != group:
            group = entry.group
            lines += [f"{group}:"]
        name = entry.field.name
        if entry.hint is bool:
            lines.append(f"  --[no]{name}")
        else:
            lines.append(
                f"  --{name}={_Parser(entry.hint, entry.field.metadata).flag_type()}"
            )
        text = f"{entry.field.metadata.get('help', '')} ({_told_default(entry)})"
        lines += textwrap.wrap(
            text.strip(), 78, initial_indent=" " * 8, subsequent_indent=" " * 8
        )
    return "\n".join([*lines, *more])


def _check_size(name: str, value: Any) -> None:
    limit = _LARGEST_SEED if name.endswith("seed") else _LARGEST
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int) and number > limit:
            raise UsageError(f"{name}={number} is too large: use at most {limit}.")


def _defined(entries: Sequence[Entry]) -> flags.FlagValues:
    values = flags.FlagValues()
    for entry in entries:
        default = _default(entry.field)
        given = None if default is dataclasses.MISSING else default
        name, text = entry.field.name, entry.field.metadata.get("help", "")
        if entry.hint is bool:
            flags.DEFINE_boolean(name, given, text, flag_values=values)
            continue
        parser = _Parser(entry.hint, entry.field.metadata)
        flag = flags.Flag(parser, flags.ArgumentSerializer(), name, None, text)
        # Set past the parser: defaults are values already, tuples among them.
        flag.default = flag.value = given
        flag.using_default_value = True
        values[name] = flag
    flags.DEFINE_boolean(
        "help", False, "Shows this text.", flag_values=values, short_name="h"
    )
    flags.DEFINE_boolean("helpshort", False, "Shows less.", flag_values=values)
    return values


def given(
    entries: Sequence[Entry],
    arguments: Sequence[str],
    text: Callable[[bool], str],
    unknown: Callable[[str], str | None] | None = None,
) -> dict[str, Any]:
    """Returns the values of the flags that stand on a command line.

    Args:
      entries: all flags.
      arguments: without the program's name.
      text: of --help, and, given True, of --helpshort.
      unknown: what to say of a flag that is none of these, if anything.

    Raises:
      UsageError: an unknown flag, a wrong type, a required flag that is missing.
    """
    values = _defined(entries)
    try:
        positional = values(["program", *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        told = unknown(error.flagname) if unknown else None
        told = told or str(error)
        raise UsageError(f"{told} (--help lists the flags)") from error
    except flags.Error as error:
        told = ": ".join(map(str, error.args))
        raise UsageError(f"{told} (--help lists the flags)") from error
    if values["help"].value or values["helpshort"].value:
        raise _HelpAsked(text(not values["help"].value))
    if positional:
        raise UsageError(
            f"unexpected argument {positional[0]!r}: write --flag=value "
            "(--help lists the flags)"
        )
    given = {}
    for entry in entries:
        name = entry.field.name
        if values[name].present:
            given[name] = values[name].value
            _check_size(name, given[name])
        elif _default(entry.field) is dataclasses.MISSING:
            raise UsageError(f"--{name} is required (--help lists the flags)")
    return given


def parse(config_class: type[Config], arguments: Sequence[str]) -> Config:
    """Returns the config that command line arguments ask for.

    Args:
      config_class: a frozen dataclass; fields are bool, int, float, str, Literal,
        optionals of these, or tuples of numbers (between commas on the command line).
        Field metadata: `help`, a sentence; `choices`, the values allowed; `elsewhere`,
        values that another config of the same program takes. A method `passed_over`
        names the flags that would have no effect: see `refuse_passed_over`.
      arguments: without the program's name.

    Raises:
      UsageError: an unknown flag, a wrong type, a value that the config refuses, or a
        flag that would have no effect.
    """
    about = " ".join((config_class.__doc__ or "").split("\n\n")[0].split())
    found = entries(config_class)
    values = given(found, arguments, lambda _: help_text(about, found))
    try:
        config = config_class(**values)
    except ValueError as error:
        raise UsageError(str(error)) from error
    reasons = config.passed_over() if hasattr(config, "passed_over") else {}  # pyright: ignore
    refuse_passed_over(reasons, list(values))
    return config


def refuse_passed_over(reasons: Mapping[str, str], given: Sequence[str]) -> None:
    """Refuses flags that were given and would have no effect.

    Args:
      reasons: names of the flags that are not read, each with the choice that makes it
        so.
      given: the flags that stand on the command line, whatever their values.

    Raises:
      UsageError: names the first such flag.
    """
    for name in given:
        if name in reasons:
            raise UsageError(
                f"--{name} has no effect with {reasons[name]}: leave it out."
            )


class Parser(Protocol[Asked]):
    """What makes of a command line what a binary's `main` takes."""

    def parse(self, arguments: Sequence[str]) -> Asked:
        """Raises UsageError where flags are at fault."""
        ...


def read(kind: type[Config] | Parser[Config], arguments: Sequence[str]) -> Config:
    """Returns what a command line asks for.

    Args:
      kind: see `parse`; or something that parses, such as a `Program`.
      arguments: without the program's name.

    Raises:
      UsageError: see `parse`.
    """
    if isinstance(kind, type):
        return parse(kind, arguments)
    return kind.parse(arguments)


def call(
    main: Callable[[Config], Any],
    config_class: type[Config] | Parser[Config],
    arguments: Sequence[str],
) -> int:
    """Parses, calls `main(config)` and returns the exit code; errors go to stderr.

    From `main`, a UsageError means 2; OSError and any other ValueError, which is what
    loaders raise for a broken file, mean 1. Other exceptions are faults of the program
    and keep their traceback.
    """
    try:
        main(read(config_class, arguments))
    except _HelpAsked as asked:
        with contextlib.suppress(BrokenPipeError):  # `--help | head`
            print(asked, flush=True)
            return 0
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UsageError as error:
        return _fail(error, 2)
    except (OSError, ValueError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted.", 130)
    return 0


def _fail(error: Exception | str, code: int) -> int:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        error = f"{error.filename}: {error.strerror}."
    print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
    return code


def run(
    main: Callable[[Config], Any], config_class: type[Config] | Parser[Config]
) -> NoReturn:
    """Runs a binary from the command line; call it under `__main__` only.

    Args:
      main: takes the config.
      config_class: see `parse`; or something that parses, such as a `Program`.
    """
    sys.exit(call(main, config_class, sys.argv[1:]))
