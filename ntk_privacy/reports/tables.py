"""Tables in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from ntk_privacy.evaluation import rates, set_attacks

__all__ = ["markdown", "of_architectures", "of_attacks"]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table.

    Args:
      head: names of the columns.
      rows: cells, as many as columns.

    Example:
      >>> from ntk_privacy.reports import tables
      >>> print(tables.markdown(["method", "steps"], [["dm", "3"]]))
      | method | steps |
      | --- | --- |
      | dm | 3 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def of_architectures(names: Sequence[str], rows: Mapping[str, Mapping]) -> str:
    """Returns a row per method, a column per architecture, in per cent.

    Args:
      names: of the architectures, that which condenses first.
      rows: by method: steps, seconds, and accuracy of each network by architecture.
    """
    head = ["method", "steps", "seconds", f"{names[0]} (condenses)", *names[1:]]
    cells = [
        [method, str(row["steps"]), f"{row['seconds']:.0f}"]
        + [rates.in_percent(row["accuracy"][name]) for name in names]
        for method, row in rows.items()
    ]
    return markdown(head, cells)


def of_attacks(rows: Mapping[str, Mapping[str, Any]], called: Sequence[str]) -> str:
    """Returns a row per method, a column per attack, in per cent.

    Args:
      rows: of `evaluation.set_attacks.row`, by method.
      called: the attacks of evasion, see `evaluation.set_attacks.names`.
    """
    head = ["method", "accuracy", "attacked images, clean", *called]
    head += ["poisoning succeeds", "without attack", "set recovers", "best PSNR, dB"]
    told = ("accuracy_attacked", *set_attacks.ATTACKS, "attack_success")
    told += ("success_without_attack", "recovered")
    cells = []
    for method, row in rows.items():
        rate = rates.Rate(row["accuracy"], row["accuracy_std"]).scaled(100)
        shares = [f"{100 * row[name]:.1f}" for name in told]
        cells.append([method, f"{rate:.1f}", *shares, f"{row['best_psnr']:.1f}"])
    return markdown(head, cells)
