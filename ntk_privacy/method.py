"""A method is one record: all that a binary, a table or a contract test needs of it.

A kind of methods (distillation, reconstruction, poisoning, evasion) has one contract
and one table, `METHODS`; a method's record stands in the file of the method.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

__all__ = ["Method", "by_name", "field"]

Config = TypeVar("Config")


def field(default: Any, text: str, **more: Any) -> Any:
    """Returns a field of a config, which is a flag of the method, with its help text.

    Args:
      default: its value unless given.
      text: one sentence, for `--help`.
      **more: further metadata: `choices`, the values allowed; `before`, what it was in
        folders that were written before the field was there, where the default changes
        what is computed; `former`, names that it had; `means`, a function by which
        two values are told to be the same.

    Example:
      >>> import dataclasses
      >>> from ntk_privacy import method
      >>> @dataclasses.dataclass
      ... class Config:
      ...     width: int = method.field(8, "Units of each layer.")
      >>> Config()
      Config(width=8)
    """
    return dataclasses.field(default=default, metadata={"help": text, **more})


def _anything_goes(problem: object, config: object) -> None:
    del problem, config


def _suits_all(preset: str, problem: Any) -> dict[str, Any]:
    del preset, problem
    return {}


@dataclasses.dataclass(frozen=True)
class Method(Generic[Config]):
    """What is known of a method.

    Attributes:
      name: the field's term, as on the command line.
      about: one sentence, and the source.
      config: a frozen dataclass that checks itself; its fields are the flags of this
        method and of no other.
      presets: by name, `preset(**given)`: the config with these values, and the
        preset's for the rest. The first is what is taken unless one is named.
      run: `run(problem, config, *, key, stage=straight)`; problem and result are those
        of the kind.
      check: `check(problem, config)` raises ValueError where the two do not fit, before
        anything is computed.
      loss: what its losses are, for a plot.
      suited: `suited(preset, problem)` returns the values that differ from the
        preset's for this problem, of which less may be known than `run` is given.
      wants: what it takes that not every method of its kind does, a word each; the kind
        says which there are.

    Example:
      >>> import dataclasses
      >>> from ntk_privacy import method
      >>> @dataclasses.dataclass(frozen=True)
      ... class Config:
      ...     num_images: int = method.field(10, "Images to return.")
      >>> def first(images, config, *, key):
      ...     return images[: config.num_images]
      >>> presets = {"cpu": Config}
      >>> row = method.Method("first", "The first ones.", Config, presets, first)
      >>> row.configured(num_images=3)
      Config(num_images=3)
    """

    name: str
    about: str
    config: type[Config]
    presets: Mapping[str, Callable[..., Config]]
    run: Callable[..., Any]
    check: Callable[[Any, Any], None] = _anything_goes
    loss: str = "loss"
    suited: Callable[[str, Any], Mapping[str, Any]] = _suits_all
    wants: tuple[str, ...] = ()

    def configured(
        self, preset: str | None = None, problem: Any = None, **given: Any
    ) -> Config:
        """Returns a config.

        Args:
          preset: name of a preset; None is the first.
          problem: that it is for, or what is known of it (see `suited`); None is any.
          **given: values of fields, instead of the preset's.

        Raises:
          ValueError: no such preset or field, or a value that the config refuses.
        """
        name = next(iter(self.presets)) if preset is None else preset
        if name not in self.presets:
            raise ValueError(
                f"preset={name!r} is unknown to {self.name}: use one of "
                f"{', '.join(self.presets)}."
            )
        names = [entry.name for entry in dataclasses.fields(self.config)]  # pyright: ignore
        for other in given:
            if other not in names:
                raise ValueError(
                    f"{self.name} takes no {other}: it has {', '.join(names)}."
                )
        suited = {} if problem is None else self.suited(name, problem)
        return self.presets[name](**{**suited, **given})


def by_name(*methods: Method[Any]) -> dict[str, Method[Any]]:
    """Returns a table of methods.

    Args:
      *methods: in the order of the table.

    Raises:
      ValueError: two have one name.
    """
    table = {method.name: method for method in methods}
    if len(table) < len(methods):
        names = [method.name for method in methods]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two methods are named {twice}: rename one.")
    return table
