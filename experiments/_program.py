"""A binary's command line: shared groups of flags, and those of one method."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from experiments import _flags, _listed
from ntk_privacy.method import Method

Config = TypeVar("Config")
Group = TypeVar("Group")


@dataclasses.dataclass(frozen=True)
class Asked(Generic[Config]):
    """What a command line asks of a program: a method, its config, and the groups."""

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
        flat = _flags.of_today(self.program.entries(self.method), flat)
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
      about, methods: one sentence for --help; records by name.
      groups: classes of a method's other flags; the docstring's first line is a title.
      default: the method unless one is named.
      passed_over: flags that are not read, each with the choice that makes it so.
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
        """Returns what flags ask for, given from Python by name.

        Without a method it is the default, without a preset the first; where the flag
        that names the method is called otherwise, it may be among the others.

        Raises:
          ValueError: a name or value that is refused.
        """
        flat = self.today({self.flag: method, **flat} if method else flat)
        chosen = self._method(flat.pop(self.flag))
        for name in flat:
            if name not in self.names(chosen):
                told = _listed.foreign(self, chosen, name)
                raise ValueError(told or f"{name} is no flag of {chosen.name}.")
        named = preset or next(iter(chosen.presets))

        def made(kind: type, given: Mapping[str, Any]) -> Any:
            return kind(**{**_listed.sizes(kind, named, chosen), **_own(kind, given)})

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
        name = _listed.named(self, arguments)
        chosen = self.methods[name if name in self.methods else self.default]
        entries = self.entries(chosen)
        text = functools.partial(_listed.text, self, chosen, entries)
        foreign = functools.partial(_listed.foreign, self, chosen)
        given = _flags.given(entries, arguments, text, foreign)
        with _flags.usage():
            asked = self.asked(**given)
        _flags.refuse_passed_over(given, asked.parts(), self.passed_over(asked))
        return asked

    def _method(self, name: str) -> Method[Any]:
        if name in self.methods:
            return self.methods[name]
        told = _flags.unknown(name, (*self.methods, *self.beside))
        raise ValueError(f"{self.flag}={name!r} is {told}")

    def entries(self, method: Method[Any]) -> list[_flags.Entry]:
        """Returns the flags of a method, with their types, texts and defaults."""
        return _listed.entries(self, method)

    def names(self, method: Method[Any] | str) -> set[str]:
        """Returns the flags of a method, given by its name or itself."""
        chosen = self._method(method) if isinstance(method, str) else method
        kinds = (chosen.config, *self.groups(chosen))
        return {entry.name for kind in kinds for entry in dataclasses.fields(kind)}


def _own(kind: type, flat: Mapping[str, Any]) -> dict[str, Any]:
    names = {entry.name for entry in dataclasses.fields(kind)}
    return {name: value for name, value in flat.items() if name in names}
