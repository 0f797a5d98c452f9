"""How flags read the folders of older versions of a binary."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments import _flags
from experiments._program import Asked, Program
from ntk_privacy.method import Method


def completed(
    program: Program, asked: Asked[Any], stored: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns every flag as an older folder had it: what it lacks, by the preset.

    Args:
      program: of the binary.
      asked: of this start.
      stored: the folder's flags.
    """
    names = program.names(asked.method)
    known = {k: _tupled(v) for k, v in stored.items() if k in names}
    try:
        return program.asked(asked.method.name, asked.preset, **known).flat()
    except ValueError:  # of another method: it will be refused
        return asked.flat()


def never_none(program: Program, method: Method[Any]) -> set[str]:
    """Returns the flags of a method whose value cannot be none.

    Args:
      program: of the binary.
      method: of the run.
    """
    found = program.entries(method)
    return {e.field.name for e in found if not _flags.allows_none(e.hint)}


def foreign(program: Program, method: Method[Any]) -> set[str]:
    """Returns the flags that some method has and this one has not.

    Args:
      program: of the binary.
      method: of the run.
    """
    every = {name for one in program.methods.values() for name in program.names(one)}
    every |= {
        e.name for kind in program.beside.values() for e in dataclasses.fields(kind)
    }
    return every - program.names(method)


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
