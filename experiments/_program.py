"""A binary's command line: shared groups of flags, and those of one method."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

from experiments import _flags
from ntk_privacy.method import Method

Config = TypeVar("Config")
Group = TypeVar("Group")


@dataclasses.dataclass(frozen=True)
class Asked(Generic[Config]):
    """What a command line asks of a program.

    Attributes:
      method: the chosen one.
      preset: its name.
      config: of the method.
      groups: of the program, one instance each.
    """

    program: "Program"
    method: Method[Config]
    preset: str
    config: Config
    groups: tuple[Any, ...]

    def group(self, kind: type[Group]) -> Group:
        """Returns a group of flags by its class, or by one that it inherits from."""
        return next(group for group in self.groups if isinstance(group, kind))

    def parts(self) -> tuple[Any, ...]:
        """Returns the dataclasses whose fields are the flags."""
        return (self.config, *self.groups)

    def flat(self) -> dict[str, Any]:
        """Returns every flag's value by name, as config.json holds them."""
        told = {self.program.flag: self.method.name, "preset": self.preset}
        return told | {k: v for part in self.parts() for k, v in vars(part).items()}

    def replaced(self, **flat: Any) -> "Asked[Config]":
        """Returns the same with other values of some flags, checked likewise."""
        config, *groups = (
            dataclasses.replace(part, **_own(type(part), flat)) for part in self.parts()
        )
        new = dataclasses.replace(self, config=config, groups=tuple(groups))
        self.program.check(new)
        return new


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
      former: a name that this flag had; former_names: what methods were called.
    """

    about: str
    methods: Mapping[str, Method[Any]]
    groups: Callable[[Method[Any]], Sequence[type]]
    default: str
    passed_over: Callable[[Asked[Any]], Mapping[str, str]] = lambda _: {}
    check: Callable[[Asked[Any]], None] = lambda _: None
    beside: Mapping[str, type] = dataclasses.field(default_factory=dict)
    flag: str = "method"
    former: str = ""
    former_names: Mapping[str, str] = dataclasses.field(default_factory=dict)

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
        flat = self.today({self.flag: method, **flat} if method else flat)
        chosen = self._method(flat.pop(self.flag))
        for name in flat:
            if name not in self.names(chosen):
                told = self._foreign(chosen, name)
                raise ValueError(told or f"{name} is no flag of {chosen.name}.")
        named = preset or next(iter(chosen.presets))

        def made(kind: type, given: Mapping[str, Any]) -> Any:
            return kind(**{**_sizes(kind, named, chosen), **_own(kind, given)})

        kinds = self.groups(chosen)
        # What is known of the problem tells more of the config.
        early = {kind: made(kind, flat) for kind in kinds if hasattr(kind, "foretold")}
        known = next((group.foretold() for group in early.values()), None)
        config = chosen.configured(preset, known, **_own(chosen.config, flat))
        # A flag that several parts have is one flag.
        shared = flat | vars(config)
        groups = tuple(early.get(kind) or made(kind, shared) for kind in kinds)
        asked = Asked(self, chosen, named, config, groups)
        self.check(asked)
        return asked

    def today(self, flat: Mapping[str, Any]) -> dict[str, Any]:
        """Returns flags by the names of today, the method among them."""
        flat = dict(flat)
        name = flat.pop(self.former, None) or self.default
        name = flat.pop(self.flag, name)
        name = self.former_names.get(name, name)
        entries = self.entries(self._method(name))
        return {self.flag: name, **_flags.of_today(entries, flat)}

    def parse(self, arguments: Sequence[str]) -> Asked[Any]:
        """Returns what a command line asks for, or raises UsageError."""
        chosen = self.methods.get(self.named(arguments)) or self.methods[self.default]
        entries = self.entries(chosen)
        given = _flags.given(
            entries,
            arguments,
            functools.partial(self._text, chosen, entries),
            functools.partial(self._foreign, chosen),
        )
        with _flags.usage():
            asked = self.asked(**given)
        _flags.refuse_passed_over(given, asked.parts(), self.passed_over(asked))
        return asked

    def named(self, arguments: Sequence[str]) -> str:
        """Returns the method that a command line names, known or not."""
        found, names = self.default, {self.flag, self.former or self.flag}
        for place, argument in enumerate(arguments):
            flag, _, value = argument.partition("=")
            if flag.startswith("-") and flag.lstrip("-") in names:
                found = value or "".join(arguments[place + 1 : place + 2])
                break
        return self.former_names.get(found, found)

    def _method(self, name: str) -> Method[Any]:
        if name not in self.methods:
            told = _flags.unknown(name, (*self.methods, *self.beside))
            raise ValueError(f"{self.flag}={name!r} is {told}")
        return self.methods[name]

    def entries(self, method: Method[Any]) -> list[_flags.Entry]:
        """Returns the flags of a method, with their types, texts and defaults."""
        presets = tuple(method.presets)
        made = {name: method.configured(name) for name in presets}
        told = "One of the values below; each has flags of its own."
        was = {"former": (self.former,), "former_values": self.former_names}
        preset = _choice(presets[0], "What flags are unless given.")
        choice = dataclasses.make_dataclass(
            "Choice",
            [
                (self.flag, Literal[*self.methods], _choice(self.default, told, **was)),
                ("preset", Literal[*presets], preset),
            ],
        )
        entries = _flags.entries(choice, self.flag)
        entries += _flags.entries(method.config, f"flags of {method.name}", made)
        for kind in self.groups(method):
            known = {entry.name for entry in entries}
            title = (kind.__doc__ or kind.__name__).split("\n")[0].rstrip(".")
            sized = {name: kind(**_sizes(kind, name, method)) for name in presets}
            found = _flags.entries(kind, title, sized)
            entries += [entry for entry in found if entry.name not in known]
        return entries

    def _text(
        self, method: Method[Any], entries: list[_flags.Entry], is_short: bool
    ) -> str:
        short = (self.flag, f"flags of {method.name}")
        entries = [e for e in entries if not is_short or e.group in short]
        rows = [f"  {name}: {other.about}" for name, other in self.methods.items()]
        if self.beside:
            rows.append(f"  with flags of their own: {', '.join(self.beside)}")
        about = f"{self.about}\n--{self.flag}={method.name}: {method.about}"
        more = ["", f"values of --{self.flag}:", *rows]
        return _flags.help_text(about, entries, more)

    def _foreign(self, method: Method[Any], name: str) -> str | None:
        """Returns why a flag that other methods have is refused; None if none has."""
        holders = [
            other.name
            for other in self.methods.values()
            if {name, name.removeprefix("no")} & self.names(other)
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


def _sizes(kind: type, preset: str, method: Method[Any]) -> dict[str, Any]:
    """Returns what a preset says of a group, which may have a method `sizes`."""
    return kind.sizes(preset, method) if hasattr(kind, "sizes") else {}  # pyright: ignore


def _own(kind: type, flat: Mapping[str, Any]) -> dict[str, Any]:
    names = {entry.name for entry in dataclasses.fields(kind)}
    return {name: value for name, value in flat.items() if name in names}
