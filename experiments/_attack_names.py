"""What a table may call an attack: one with fewer steps is never the standard."""

from ntk_privacy.evaluation import named_attacks


def honest(
    name: str, shown: str, *, num_steps: int | None = None, num_queries: int = 5000
) -> str:
    """Returns what is shown, and what of it is not as the name promises.

    As "AutoAttack (20 steps, 300 queries)"; what is shown alone where all is as the
    name stands for.

    Args:
      name: of `named_attacks.ATTACKS`.
      shown: in its place.
      num_steps: see `named_attacks.plan`.
      num_queries: see `named_attacks.plan`.
    """
    told = named_attacks.settings(name, num_steps=num_steps, num_queries=num_queries)
    _, but, changed = told.partition("; but with ")
    each = [text.split("=") for text in changed.split(" and ")] if but else []
    called = ", ".join(f"{value} {what.removeprefix('num_')}" for what, value in each)
    return f"{shown} ({called})" if called else shown
