"""Which rows the table of lowered programs must have: all that the source compiles."""

import ast
import pathlib
import re
from collections.abc import Iterable, Iterator

_PACKAGE = pathlib.Path(__file__).parents[1] / "ntk_privacy"

# What may be missing, and why.
EXCEPTED: dict[str, str] = {
    "ntk_privacy.evasion.pool._fewer": "processors alone give up places",
}

# What may call the host: the listener of `robust_accuracy`, for random models and for
# attacks of the caller's own, is traced within these.
HOSTED = frozenset(
    {
        "ntk_privacy.evasion.apgd._ascend",
        "ntk_privacy.evasion.reading.read",
        "ntk_privacy.evasion.task._finish",
        "ntk_privacy.evasion.task._judged",
    }
)

# Steps that share a compiled function and differ in what it is made of.
NAMED: tuple[str, ...] = (
    r"search\._Step\(kip\._Objective",
    r"search\._Step\(rkip\._Objective",
    r"distribution_matching\._Step\(.*robust_mean\.mean",
    r"distribution_matching\._Step\(.*_Calibrated",
    r"gradient_matching\._Step\(.*layerwise\)",  # DC
    r"gradient_matching\._Step\(.*layerwise, .*crop",  # DSA
    r"trajectory_matching\._Step\(trajectory_matching\._slope",
    r"trajectory_matching\._Step\(tesla\.slope",
    r"robust_mean\.median",
    r"robust_mean\._Truncated",
    r"robust_mean\._Trimmed",
    r"robust_mean\._QuantumEntropy",
)


def _compiles(node: ast.AST) -> bool:
    """Whether it is a function that is jitted, or a step of the loop."""
    if isinstance(node, ast.FunctionDef):
        told = [ast.unparse(decorator) for decorator in node.decorator_list]
        return any("jax.jit" in each or "_programs.jit" in each for each in told)
    if not isinstance(node, ast.ClassDef) or not node.name.endswith("Step"):
        return False
    return any(getattr(each, "name", "") == "__call__" for each in node.body)


def _found(node: ast.AST, prefix: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield from _found(child, prefix)
            continue
        name = prefix + child.name
        if _compiles(child):
            yield name
        inner = "." if isinstance(child, ast.ClassDef) else ".<locals>."
        yield from _found(child, name + inner)


def compiled() -> set[str]:
    """Returns the names of all functions and steps that the package compiles."""
    names = set()
    for path in sorted(_PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts)
        module = module.removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        names.update(f"{module}.{name}" for name in _found(tree, ""))
    # The loop is known by its steps.
    return names - {"ntk_privacy._loop._scan_chunk"}


def missing(lowered: Iterable[str]) -> list[str]:
    """Returns what is wanting in a table, a sentence each.

    Args:
      lowered: names of rows; of a step, what it is made of follows in brackets.
    """
    lowered = set(lowered)
    rows = {row.partition("(")[0] for row in lowered}
    names = compiled()
    told = [f"{n} was not lowered" for n in sorted(names - rows - set(EXCEPTED))]
    told += [f"{n} is excepted, and was lowered" for n in sorted(rows & set(EXCEPTED))]
    told += [
        f"{n} is excepted, and is not there" for n in sorted(set(EXCEPTED) - names)
    ]
    told += [
        f"no row is like {pattern!r}"
        for pattern in NAMED
        if not any(re.search(pattern, row) for row in lowered)
    ]
    return told
