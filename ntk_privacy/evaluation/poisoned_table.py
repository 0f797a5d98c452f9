"""How often an attacker gets his way, out of the entries of `poisoned_sets.study`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ntk_privacy.evaluation import poisoned_means, rates

__all__ = ["Entry", "row", "stride", "table", "text"]

Entry = dict[str, Any]
"""Of one condensation, as results.json has it."""


def stride(num_steps: int) -> int:
    """Returns how many steps stand between the losses that an entry keeps.

    Args:
      num_steps: of the loop.
    """
    return max(1, num_steps // 100)


def _hits(entries: Sequence[Entry], name: str) -> list[bool]:
    """Returns the decisions for the attacker, of all networks that were asked."""
    return [
        found == entry["adversarial_class"]
        for entry in entries
        for found in entry.get(name, ())
    ]


def row(method: str, attack: str, entries: Sequence[Entry]) -> Entry:
    """Returns a row of the table: means over a method's scenes, runs and networks.

    Args:
      method: whose.
      attack: its name.
      entries: of `poisoned_sets.study`, other methods' among them.
    """
    mine = [entry for entry in entries if entry["method"] == method]
    accuracy = rates.mean_and_deviation(
        np.array([value for entry in mine for value in entry["accuracies"]])
    )
    hits = _hits(mine, "target_classes")
    success = rates.mean_and_deviation(hits)
    without = _hits(mine, "target_classes_without_attack")
    return {
        "method": method,
        "attack": attack,
        "accuracy": accuracy.mean,
        "accuracy_std": accuracy.deviation,
        "attack_success": success.mean,
        "attack_success_std": success.deviation,
        "num_decisions": len(hits),
        "success_without_attack": float(np.mean(without)) if without else None,
        **{
            name: None
            if mine[0][name] is None
            else float(np.mean([entry[name] for entry in mine]))
            for name in poisoned_means.Deviation._fields
        },
    }


def table(entries: Sequence[Entry], *, attack: str) -> list[Entry]:
    """Returns a row for each way to condense.

    Args:
      entries: of `poisoned_sets.study`.
      attack: its name.
    """
    names = dict.fromkeys(entry["method"] for entry in entries)
    return [row(name, attack, entries) for name in names]


def text(rows: Sequence[Entry]) -> str:
    """Returns a table for the terminal, in percent.

    Args:
      rows: of `table`.
    """
    lines = ["method        accuracy %      attack success %  without attack %"]
    for each in rows:
        accuracy = rates.Rate(each["accuracy"], each["accuracy_std"]).scaled(100)
        success = rates.Rate(each["attack_success"], each["attack_success_std"])
        without = each["success_without_attack"]
        told = "-" if without is None else f"{100 * without:.2f}"
        lines.append(
            f"{each['method']:<13} {format(accuracy, '.2f'):<15} "
            f"{format(success.scaled(100), '.2f'):<17} {told}"
        )
    return "\n".join(lines)
