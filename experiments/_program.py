"""A binary's command line: shared groups of flags, and those of one method."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

from experiments import _flags
from experiments._flags import UsageError
from ntk_privacy.method import Method

Config = TypeVar("Config")
Group = TypeVar("Group")


@dataclasses.dataclass(frozen=True)
class Asked(Generic[Config]):
    """What a command line asks for.

    Attributes:
      method: the chosen one.
      preset: its name.
      config: of the method.
      groups: of the program, one instance each.
      flag: that names the method.
    """

    method: Method[Config]
    preset: str
    config: Config
    groups: tuple[Any, ...]
    flag: str = "method"

    def group(self, kind: type[Group]) -> Group:
        """Returns a group of flags by its class, or by one that it inherits from."""
        return next(group for group in self.groups if isinstance(group, kind))

    def flat(self) -> dict[str, Any]:
        """Returns every flag's value by name, as config.json holds them."""
        told = {self.flag: self.method.name, "preset": self.preset}
        for part in self.parts():
            told |= {
                entry.name: getattr(part, entry.name)
                for entry in dataclasses.fields(part)
            }
        return told

    def parts(self) -> tuple[Any, ...]:
        """Returns the dataclasses whose fields are the flags."""
        return (self.config, *self.groups)

    def replaced(self, **flat: Any) -> "Asked[Config]":
        """Returns the same with other values of some flags.

        Args:
          **flat: by name.
        """
        config, *groups = (
            dataclasses.replace(part, **_split(type(part), flat)[0])
            for part in self.parts()
        )
        return dataclasses.replace(self, config=config, groups=tuple(groups))


def _no_reason(asked: Asked[Any]) -> dict[str, str]:
    del asked
    return {}


def _fits(asked: Asked[Any]) -> None:
    del asked


@dataclasses.dataclass(frozen=True)
class Program:
    """The flags of a binary.

    Attributes:
      about: one sentence, for --help.
      methods: by name.
      groups: the classes of a method's other flags, frozen dataclasses; the first line
        of their docstring is the title.
      default: the method unless one is named.
      passed_over: the flags that are not read, each with the choice that makes it so.
      check: raises ValueError where values do not go together.
      beside: other configs of the binary, by what chooses them.
      flag: the flag that names the method.
    """

    about: str
    methods: Mapping[str, Method[Any]]
    groups: Callable[[Method[Any]], Sequence[type]]
    default: str
    passed_over: Callable[[Asked[Any]], dict[str, str]] = _no_reason
    check: Callable[[Asked[Any]], None] = _fits
    beside: Mapping[str, type] = dataclasses.field(default_factory=dict)
    flag: str = "method"

    def asked(
        self, method: str | None = None, preset: str | None = None, **flat: Any
    ) -> Asked[Any]:
        """Returns what flags ask for, given from Python.

        Args:
          method: name of the method; None is the default.
          preset: of its values; None is its first.
          **flat: flags by name, of the method or of any group; among them the one that
            names the method, where it is called otherwise.

        Raises:
          ValueError: a name or value that is refused.
        """
        chosen = self._method(method or flat.pop(self.flag, None) or self.default)
        for name in flat:
            if name not in self.names(chosen):
                told = self._foreign(chosen, name)
                raise ValueError(told or f"{name} is no flag of {chosen.name}.")
        named = preset or next(iter(chosen.presets))
        kinds = self.groups(chosen)
        # What is known of the problem tells more of the config.
        early = {
            kind: kind(**(_sizes(kind, named, chosen) | _split(kind, flat)[0]))
            for kind in kinds
            if hasattr(kind, "foretold")
        }
        known = next((group.foretold() for group in early.values()), None)
        config = chosen.configured(preset, known, **_split(chosen.config, flat)[0])
        # A flag that several parts have is one flag.
        shared = flat | {
            entry.name: getattr(config, entry.name)
            for entry in dataclasses.fields(config)
        }
        groups = tuple(
            early.get(kind)
            or kind(**(_sizes(kind, named, chosen) | _split(kind, shared)[0]))
            for kind in kinds
        )
        asked = Asked(chosen, named, config, groups, self.flag)
        self.check(asked)
        return asked

    def parse(self, arguments: Sequence[str]) -> Asked[Any]:
        """Returns what a command line asks for.

        Args:
          arguments: without the program's name.

        Raises:
          UsageError: an unknown flag, a wrong value, or a flag without effect.
        """
        name = self.named(arguments)
        chosen = self.methods.get(name) or self.methods[self.default]
        entries = self.entries(chosen)
        given = _flags.given(
            entries,
            arguments,
            functools.partial(self._text, chosen, entries),
            functools.partial(self._foreign, chosen),
        )
        try:
            asked = self.asked(**given)
        except ValueError as error:
            raise UsageError(str(error)) from error
        reasons = dict(self.passed_over(asked))
        for part in asked.parts():
            reasons |= part.passed_over() if hasattr(part, "passed_over") else {}
        _flags.refuse_passed_over(reasons, list(given))
        return asked

    def named(self, arguments: Sequence[str]) -> str:
        """Returns the method that a command line names, known or not.

        Args:
          arguments: without the program's name.
        """
        for place, argument in enumerate(arguments):
            flag, _, value = argument.partition("=")
            if flag in (f"--{self.flag}", f"-{self.flag}"):
                return value or "".join(arguments[place + 1 : place + 2])
        return self.default

    def _elsewhere(self) -> tuple[str, ...]:
        """Returns the methods whose flags another config holds."""
        return tuple(name for name in self.beside if not name.startswith("--"))

    def _method(self, name: str) -> Method[Any]:
        if name not in self.methods:
            known = (*self.methods, *self.beside)
            raise ValueError(
                f"{self.flag}={name!r} is unknown{_flags.nearest(name, known)} one of "
                f"{', '.join(known)}."
            )
        return self.methods[name]

    def entries(self, method: Method[Any]) -> list[_flags.Entry]:
        """Returns the flags of a method, with their types, texts and defaults."""
        presets = tuple(method.presets)
        made = {name: method.configured(name) for name in presets}
        choice = dataclasses.make_dataclass(
            "Choice",
            [
                (
                    self.flag,
                    Literal[*self.methods],
                    _choice(
                        self.default,
                        "One of the values below; each has flags of its own.",
                        elsewhere=self._elsewhere(),
                    ),
                ),
                (
                    "preset",
                    Literal[*presets],
                    _choice(presets[0], "What flags are unless given."),
                ),
            ],
        )
        entries = _flags.entries(choice, self.flag)
        entries += _flags.entries(method.config, f"flags of {method.name}", made)
        for kind in self.groups(method):
            known = {entry.field.name for entry in entries}
            sized = {name: kind(**_sizes(kind, name, method)) for name in presets}
            entries += [
                entry
                for entry in _flags.entries(kind, _title(kind), sized)
                if entry.field.name not in known
            ]
        return entries

    def _text(
        self, method: Method[Any], entries: list[_flags.Entry], is_short: bool
    ) -> str:
        if is_short:
            entries = [
                e for e in entries if e.group in (self.flag, f"flags of {method.name}")
            ]
        rows = [f"  {name}: {other.about}" for name, other in self.methods.items()]
        if self.beside:
            rows.append(f"  with flags of their own: {', '.join(self.beside)}")
        about = f"{self.about}\n--{self.flag}={method.name}: {method.about}"
        return _flags.help_text(
            about, entries, ["", f"values of --{self.flag}:", *rows]
        )

    def _foreign(self, method: Method[Any], name: str) -> str | None:
        """Returns why a flag that other methods have is refused; None if none has."""
        holders = [
            other.name
            for other in self.methods.values()
            if name.removeprefix("no") in self.names(other) or name in self.names(other)
        ]
        if not holders:
            return None
        return (
            f"--{name} has no effect with --{self.flag}={method.name}: leave it out "
            f"(it is a flag of {', '.join(holders)})."
        )

    def names(self, method: Method[Any] | str) -> set[str]:
        """Returns the flags of a method, given by its name or itself."""
        chosen = self._method(method) if isinstance(method, str) else method
        kinds = (chosen.config, *self.groups(chosen))
        return {entry.name for kind in kinds for entry in dataclasses.fields(kind)}


def _choice(default: str, text: str, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, **more})


def _title(kind: type) -> str:
    return (kind.__doc__ or kind.__name__).split("\n")[0].rstrip(".")


def _sizes(kind: type, preset: str, method: Method[Any]) -> dict[str, Any]:
    """Returns what a preset says of a group, which may have a method `sizes`."""
    return kind.sizes(preset, method) if hasattr(kind, "sizes") else {}  # pyright: ignore


def _split(kind: type, flat: Mapping[str, Any]) -> tuple[dict, dict]:
    names = {entry.name for entry in dataclasses.fields(kind)}
    mine = {name: value for name, value in flat.items() if name in names}
    return mine, {name: value for name, value in flat.items() if name not in names}
