"""A binary's command line: shared groups of flags, and those of one method."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from ntk_privacy import _checks, hosts
from ntk_privacy.method import Method

from . import _flags, _listed
from ._kinds import Kind

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

    @property
    def kind(self) -> Kind:
        """What is done with the method."""
        return self.program.kind(self.method)

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
        flat = _flags.of_today(_listed.entries(self.program, self.method), flat)
        config, *groups = [
            dataclasses.replace(part, **_listed.own(type(part), flat))
            for part in self.parts()
        ]
        new = dataclasses.replace(self, config=config, groups=tuple(groups))
        self.kind.check(new)
        return new


@dataclasses.dataclass(frozen=True)
class Program:
    """The flags of a binary.

    Attributes:
      about, methods: one sentence for --help; records by name.
      kind: what is done with a method, and its other flags: the first line of a group's
        docstring is its title.
      default, flag: the method unless one is named; the flag that names it.
      former: methods by flags that named them, (name, value).
    """

    about: str
    methods: Mapping[str, Method[Any]]
    kind: Callable[[Method[Any]], Kind]
    default: str
    flag: str = "method"
    former: Mapping[tuple[str, Any], str] = dataclasses.field(default_factory=dict)

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
        named, kind = preset or next(iter(chosen.presets)), self.kind(chosen)
        usual = kind.defaults(chosen, named)

        def made(group: type, given: Mapping[str, Any]) -> Any:
            return group(**_listed.own(group, {**usual, **given}))

        # What is known of the problem tells more of the config.
        early = {g: made(g, flat) for g in kind.groups if hasattr(g, "foretold")}
        known = next((group.foretold() for group in early.values()), None)
        config = chosen.configured(preset, known, **_listed.own(chosen.config, flat))
        # A flag that several parts have is one flag.
        shared = flat | vars(config)
        groups = tuple(early.get(g) or made(g, shared) for g in kind.groups)
        asked = Asked(self, chosen, named, config, groups)
        kind.check(asked)
        return asked

    def today(self, flat: Mapping[str, Any]) -> dict[str, Any]:
        """Returns flags by the names of today, the method among them."""
        named = [m for (flag, v), m in self.former.items() if flat.get(flag) == v]
        name = _listed.the_one(self, named) or flat.get(self.flag, self.default)
        entries = _listed.entries(self, self._method(name))
        gone = {flag for flag, _ in self.former} - self.names(name)
        kept = {k: v for k, v in flat.items() if k not in gone}
        return {**_flags.of_today(entries, kept), self.flag: name}

    def parse(self, arguments: Sequence[str]) -> Asked[Any]:
        """Returns what a command line asks for, or raises UsageError."""
        arguments = _listed.of_today(self, arguments)
        name = [self.default, *_listed.named(self, arguments)][-1]
        chosen = self.methods.get(name, self.methods[self.default])
        entries = _listed.entries(self, chosen)
        text = functools.partial(_listed.text, self, chosen, entries)
        foreign = functools.partial(_listed.foreign, self, chosen)
        given = _flags.given(entries, arguments, text, foreign)
        with _flags.usage():
            if given.get("distributed") and self.kind(chosen).joins:
                hosts.join()  # before JAX computes
            asked = self.asked(**given)
        unread = dict(asked.kind.passed_over(asked))
        for part in asked.parts():
            unread |= part.passed_over() if hasattr(part, "passed_over") else {}
        for name in given:
            if name in unread:
                told = f"--{name} has no effect with {unread[name]}: leave it out."
                raise _flags.UsageError(told)
        return asked

    def _method(self, name: str) -> Method[Any]:
        _checks.one_of(tuple(self.methods), **{self.flag: name})
        return self.methods[name]

    def names(self, method: Method[Any] | str) -> set[str]:
        """Returns the flags of a method, given by its name or itself."""
        chosen = self._method(method) if isinstance(method, str) else method
        kinds = (chosen.config, *self.kind(chosen).groups)
        return {entry.name for kind in kinds for entry in dataclasses.fields(kind)}
