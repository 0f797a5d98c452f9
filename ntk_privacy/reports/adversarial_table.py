"""What attacks left of a model's accuracy, as a table of text."""

from collections.abc import Mapping
from typing import Any

__all__ = ["table"]


def table(results: Mapping[str, Any]) -> str:
    """Returns a short table for the terminal.

    Args:
      results: `figures` and `settings` of `evaluation.attacked_set`, as stored.
    """
    share = results["accuracy"]
    rows = [("attack", "accuracy %", "queries", "seconds")]
    rows.append(("none", f"{100 * share['clean']:.2f}", "", ""))
    for name in results["settings"]:
        spent = results["seconds"]["attacks"][name]
        queries = f"{results['queries'][name]:.0f}"
        # Older results do not have it.
        called = results.get("names", {}).get(name, name)
        rows.append((called, f"{100 * share[name]:.2f}", queries, f"{spent:.1f}"))
        for part, left in results["left"].get(name, {}).items():
            rows.append((f"  after {part}", f"{100 * left:.2f}", "", ""))
    rows.append(("all within eps", f"{100 * share['ensemble']:.2f}", "", ""))
    size = max(len(row[0]) for row in rows)
    lines = [f"{a:<{size}}  {b:>10}  {c:>8}  {d:>8}".rstrip() for a, b, c, d in rows]
    return "\n".join([*lines, *(f"warning: {w}" for w in results["warnings"])])
