"""Flags from frozen dataclasses: one field, one flag, no global state.

Field metadata: `help`, a sentence; `choices`, the values allowed; `former`, names that
the flag had, still understood. Types are bool, int, float, str, Literal, optionals of
these, and tuples of numbers or texts (between commas on the command line). Flags live
on a private `FlagValues`, so that one process can import any number of binaries.

Exit codes: 0 done, 1 a file or its contents, 2 a flag, 130 interrupted. Errors are one
line on stderr; lines to be pasted stand below it.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import signal
import sys
import textwrap
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from absl import flags

from ntk_privacy import _checks, hosts

from ._interrupt import interrupted

# Seeds and counters are 32 bits wide on devices.
_LARGEST_SEED, _LARGEST = 2**32 - 1, 10**9
_INTERRUPTED = 130

_SCALARS = {int: "a whole number", float: "a number", str: "a text"}


class UsageError(ValueError):
    """A flag's value is at fault: raised by a `main` it ends with exit code 2."""


@contextlib.contextmanager
def usage(kind: type[Exception] = ValueError) -> Iterator[None]:
    """Takes errors of the library within the block for faults of flags.

    `data.ArgumentError` is the kind where files are read, which may be damaged.
    """
    try:
        yield
    except kind as error:
        raise UsageError(str(error)) from error


class _HelpAsked(Exception):
    """`--help` was given; the text is the argument."""


def _split_optional(hint: Any) -> tuple[Any, bool]:
    """Returns the type without None, and whether None was allowed."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        args = typing.get_args(hint)
        rest = [kind for kind in args if kind is not types.NoneType]
        if len(rest) == 1 or str in rest:  # a number is a text, such as a fraction
            return (str if str in rest else rest[0]), types.NoneType in args
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


class _Parser(flags.ArgumentParser):
    """Parses int, float, str, Literal, their optionals, and tuples of them."""

    def __init__(self, hint: Any, metadata: Mapping[str, Any]) -> None:
        super().__init__()
        self.hint, self.optional = _split_optional(hint)
        self.choices = metadata.get("choices")
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
            if self.choices is not None and value not in self.choices:
                raise ValueError(_checks.unknown(argument, self.choices))
            return value
        parts = [part.strip() for part in argument.split(",")] if argument else []
        if self.length is not None and len(parts) != self.length:
            raise ValueError(f"expected {self.length} values between commas.")
        return tuple(_parse_scalar(self.kind, part) for part in parts)

    def flag_type(self) -> str:
        """Returns the word that `--help` shows after the equals sign."""
        if self.choices is not None:
            return "|".join(map(str, self.choices))
        word = {int: "INT", float: "FLOAT", str: "TEXT"}[self.kind]
        if self.is_tuple:
            word = (
                f"{word},..." if self.length is None else ",".join([word] * self.length)
            )
        return f"{word}|none" if self.optional else word


def shown(value: Any) -> str:
    """Returns a value as a command line has it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "empty"
    # By identity of type: 0 and 1 equal False and True.
    return str(value).lower() if isinstance(value, bool | None) else str(value)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A flag: its field, type and group, and its defaults by preset."""

    field: dataclasses.Field
    hint: Any
    group: str
    presets: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the flag and of its field."""
        return self.field.name

    def told_default(self) -> str:
        """Returns what `--help` says of it."""
        told = {name: shown(value) for name, value in self.presets.items()}
        if len(set(told.values())) > 1:
            return ", ".join(f"{name}: {value}" for name, value in told.items())
        return f"default: {next(iter(told.values()))}"


def entries(config_class: type, group: str, presets: Mapping[str, Any]) -> list[Entry]:
    """Returns the flags of a config, given what presets make of it, by name."""
    hints = typing.get_type_hints(config_class)
    return [
        Entry(
            field,
            hints[field.name],
            group,
            {name: getattr(config, field.name) for name, config in presets.items()},
        )
        for field in dataclasses.fields(config_class)
    ]


def of_today(entries: Sequence[Entry], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values by the names that flags have, given by names that they had."""
    names = _former(entries)
    return {names.get(name, name): value for name, value in given.items()}


def _former(entries: Sequence[Entry]) -> dict[str, str]:
    known = {entry.name for entry in entries}
    return {
        former: entry.name
        for entry in entries
        for former in entry.field.metadata.get("former", ())
        if former not in known
    }


def _program() -> str:
    """Returns how the program was called."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = spec.name if spec else pathlib.Path(sys.argv[0]).name
    if name.endswith("__main__") or name == "ntk-privacy":
        return " ".join(["ntk-privacy", *sys.argv[1:2]])
    return f"python -m {name}" if spec else "program"


def help_text(about: str, entries: Sequence[Entry], more: Sequence[str] = ()) -> str:
    """Returns what `--help` prints: a flag of one value is no choice, and left out."""
    lines = [f"usage: {_program()} [--flag=value ...]", ""]
    for paragraph in about.splitlines():
        lines += [*textwrap.wrap(paragraph, 88), ""]
    group = ""
    for entry in entries:
        if entry.group != group:
            group = entry.group
            lines += [f"{group}:"]
        if entry.hint is bool:
            lines.append(f"  --[no]{entry.name}")
        else:
            parser = _Parser(entry.hint, entry.field.metadata)
            if parser.choices is not None and len(parser.choices) == 1:
                continue
            lines.append(f"  --{entry.name}={parser.flag_type()}")
        text = f"{entry.field.metadata.get('help', '')} ({entry.told_default()})"
        indent = " " * 8
        lines += textwrap.wrap(
            text.strip(), 78, initial_indent=indent, subsequent_indent=indent
        )
    return "\n".join([*lines, *more])


def check_seeds(first: int, **counts: int) -> None:
    """Raises ValueError unless every count is at least 1 and its seeds have 32 bits."""
    _checks.at_least(1, **counts)
    for name, count in counts.items():
        if first + count - 1 > _LARGEST_SEED:
            raise ValueError(
                f"seed={first} and {name}={count} go on beyond {_LARGEST_SEED}, where "
                "seeds begin at 0 again: use a smaller seed."
            )


def _check_size(name: str, value: Any) -> None:
    limit = _LARGEST_SEED if name.endswith("seed") else _LARGEST
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int) and number > limit:
            raise UsageError(f"{name}={number} is too large: use at most {limit}.")


def _defined(entries: Sequence[Entry]) -> flags.FlagValues:
    values = flags.FlagValues()
    for entry in entries:
        if entry.hint is bool:
            flags.DEFINE_boolean(entry.name, None, "", flag_values=values)
            continue
        parser = _Parser(entry.hint, entry.field.metadata)
        serializer = flags.ArgumentSerializer()
        values[entry.name] = flags.Flag(parser, serializer, entry.name, None, "")
    for name, short in (("help", "h"), ("helpshort", None)):
        flags.DEFINE_boolean(name, False, "", flag_values=values, short_name=short)
    return values


def given(
    entries: Sequence[Entry],
    arguments: Sequence[str],
    text: Callable[[bool], str],
    foreign: Callable[[str], str | None],
) -> dict[str, Any]:
    """Returns the values of the flags that stand on a command line.

    Args:
      entries: all flags.
      arguments: without the program's name.
      text: of --help, and, given True, of --helpshort.
      foreign: what to say of a flag that is none of these, if anything.

    Raises:
      UsageError: an unknown flag, or a value of a wrong type.
    """
    values, former = _defined(entries), _former(entries)
    try:
        now = (_renamed(argument, former) for argument in arguments)
        positional = values(["program", *now])[1:]
    except flags.Error as error:
        told = ": ".join(map(str, error.args))
        if isinstance(error, flags.UnrecognizedFlagError):
            told = foreign(error.flagname) or str(error)
        raise UsageError(f"{told} (--help lists the flags)") from error
    if values["help"].value or values["helpshort"].value:
        raise _HelpAsked(text(not values["help"].value))
    if positional:
        raise UsageError(
            f"unexpected argument {positional[0]!r}: write --flag=value "
            "(--help lists the flags)"
        )
    found = {e.name: values[e.name].value for e in entries if values[e.name].present}
    for name, value in found.items():
        _check_size(name, value)
    return found


def _renamed(argument: str, former: Mapping[str, str]) -> str:
    flag, equals, value = argument.partition("=")
    name = flag.lstrip("-")
    known = name in former and name != flag
    return f"--{former[name]}{equals}{value}" if known else argument


def call(
    main: Callable[[Any], Any],
    parse: Callable[[Sequence[str]], Any],
    arguments: Sequence[str],
) -> int:
    """Calls `main(parse(arguments))`, returns the exit code; errors go to stderr.

    From `main`, a UsageError means 2; OSError and any other ValueError, which is what
    loaders raise for a broken file, mean 1. Other exceptions are faults of the program
    and keep their traceback. Of several hosts one that fails ends the others.
    """
    try:
        if signal.getsignal(signal.SIGINT) is interrupted:
            # From here on what there is can be kept.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main(parse(arguments))
    except _HelpAsked as asked:
        with contextlib.suppress(BrokenPipeError):  # `--help | head`
            print(asked, flush=True)
            return 0
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UsageError as error:
        return _fail(error, 2)
    except (OSError, ValueError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted.", _INTERRUPTED)
    except BaseException:
        hosts.fail(traceback.format_exc(), 1)
        raise
    return 0


def _fail(error: Exception | str, code: int) -> int:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        error = f"{error.filename}: {error.strerror}."
    told, _, lines = str(error).partition(":\n")
    text = " ".join(told.split())
    if lines:  # to be pasted, such as those that export a pickle
        text = f"{text}:\n{lines}"
    hosts.fail(f"error: {text}", code)
    print("error:", text, file=sys.stderr, flush=True)
    return code


def run(main: Callable[[Any], Any], parse: Callable[[Sequence[str]], Any]) -> NoReturn:
    """Runs a binary from the command line; call it under `__main__` only."""
    leave(call(main, parse, sys.argv[1:]))


def leave(code: int) -> NoReturn:
    """Ends the process; an interrupted one at once, for XLA may be compiling still."""
    if code == _INTERRUPTED:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)
