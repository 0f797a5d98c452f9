"""Flags from a frozen dataclass: one field, one flag, no global state.

Flags live on a private `FlagValues` made inside `run`, so that any number of binaries
can be imported by one process.

Exit codes: 0 done, 1 a file or its contents, 2 a flag, 130 interrupted. Errors are one
line on stderr.
"""

import contextlib
import dataclasses
import math
import os
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from absl import flags

Config = TypeVar("Config")

# Seeds and counters are 32 bits wide on devices.
_LARGEST_SEED, _LARGEST = 2**32 - 1, 10**9

_SCALARS = {int: "a whole number", float: "a number", str: "a text"}


class UsageError(ValueError):
    """A flag's value is at fault: raised by a `main` it ends with exit code 2."""


class _HelpAsked(Exception):
    """`--help` was given; the text is the argument."""


def _split_optional(hint: Any) -> tuple[Any, bool]:
    """Returns the type without None, and whether None was allowed."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(hint) if a is not types.NoneType]
        if len(rest) == 1:
            return rest[0], True
    return hint, False


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
                told = ", ".join(map(str, (*self.choices, *self.elsewhere)))
                raise ValueError(f"unknown: use one of {told}.")
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


def _help_text(config_class: type, hints: dict[str, Any]) -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = f"python -m {spec.name}" if spec else "program"
    about = (config_class.__doc__ or "").split("\n\n")[0]
    lines = [f"usage: {program} [--flag=value ...]", "", " ".join(about.split()), ""]
    for field in dataclasses.fields(config_class):
        default = _default(field)
        if hints[field.name] is bool:
            lines.append(f"  --[no]{field.name}")
        else:
            word = _Parser(hints[field.name], field.metadata).flag_type()
            lines.append(f"  --{field.name}={word}")
        tail = (
            "(required)"
            if default is dataclasses.MISSING
            else f"(default: {_shown(default)})"
        )
        text = f"{field.metadata.get('help', '')} {tail}".strip()
        lines += textwrap.wrap(
            text, 78, initial_indent=" " * 8, subsequent_indent=" " * 8
        )
    return "\n".join(lines)


def _check_size(name: str, value: Any) -> None:
    limit = _LARGEST_SEED if name.endswith("seed") else _LARGEST
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int) and number > limit:
            raise UsageError(f"{name}={number} is too large: use at most {limit}.")


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
    hints = typing.get_type_hints(config_class)
    values = flags.FlagValues()
    fields = dataclasses.fields(config_class)
    for field in fields:
        default = _default(field)
        given = None if default is dataclasses.MISSING else default
        text = field.metadata.get("help", "")
        if hints[field.name] is bool:
            flags.DEFINE_boolean(field.name, given, text, flag_values=values)
        else:
            parser = _Parser(hints[field.name], field.metadata)
            flag = flags.Flag(
                parser, flags.ArgumentSerializer(), field.name, None, text
            )
            # Set past the parser: defaults are values already, tuples among them.
            flag.default = flag.value = given
            flag.using_default_value = True
            values[field.name] = flag
    flags.DEFINE_boolean(
        "help", False, "Shows this text.", flag_values=values, short_name="h"
    )
    try:
        positional = values(["program", *arguments])[1:]
    except flags.Error as error:
        raise UsageError(f"{error} (--help lists the flags)") from error
    if values["help"].value:
        raise _HelpAsked(_help_text(config_class, hints))
    if positional:
        raise UsageError(
            f"unexpected argument {positional[0]!r}: write --flag=value "
            "(--help lists the flags)"
        )
    for field in fields:
        if _default(field) is dataclasses.MISSING and not values[field.name].present:
            raise UsageError(f"--{field.name} is required (--help lists the flags)")
    for field in fields:
        _check_size(field.name, values[field.name].value)
    try:
        config = config_class(**{f.name: values[f.name].value for f in fields})
    except ValueError as error:
        raise UsageError(str(error)) from error
    given = [field.name for field in fields if values[field.name].present]
    refuse_passed_over(config, given)
    return config


def refuse_passed_over(config: Any, given: Sequence[str]) -> None:
    """Refuses flags that were given and would have no effect.

    Args:
      config: may have a method `passed_over`, which returns the names of the fields
        that it does not read, each with the choice that makes it so.
      given: the flags that stand on the command line, whatever their values.

    Raises:
      UsageError: names the first such flag.
    """
    reasons = config.passed_over() if hasattr(config, "passed_over") else {}
    for name in given:
        if name in reasons:
            raise UsageError(
                f"--{name} has no effect with {reasons[name]}: leave it out."
            )


def call(
    main: Callable[[Config], Any], config_class: type[Config], arguments: Sequence[str]
) -> int:
    """Parses, calls `main(config)` and returns the exit code; errors go to stderr.

    From `main`, a UsageError means 2; OSError and any other ValueError, which is what
    loaders raise for a broken file, mean 1. Other exceptions are faults of the program
    and keep their traceback.
    """
    try:
        main(parse(config_class, arguments))
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


def run(main: Callable[[Config], Any], config_class: type[Config]) -> NoReturn:
    """Runs a binary from the command line; call it under `__main__` only.

    Args:
      main: takes the config.
      config_class: see `parse`.
    """
    sys.exit(call(main, config_class, sys.argv[1:]))
