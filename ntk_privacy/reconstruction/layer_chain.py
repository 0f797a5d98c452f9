"""The order of dense layers, from the images to the outputs, by names and shapes."""

import itertools
from collections.abc import Sequence

from ntk_privacy.reconstruction import leaf_names

__all__ = ["orders"]


def orders(
    names: Sequence[str], sizes: Sequence[tuple[int, int]], pixels: int | None
) -> list[tuple[int, ...]]:
    """Returns the order in which layers follow each other.

    Names that count are believed if shapes agree, else shapes alone decide.

    Args:
      names: of the layers, in the order of storing.
      sizes: (inputs, outputs) of each.
      pixels: values of an image; None takes the first layer's word.

    Returns:
      One order, of positions in `names`; none where shapes fit in no order; two of them
      where they fit in more than one.
    """
    stored = tuple(range(len(names)))
    natural = tuple(sorted(stored, key=lambda i: leaf_names.natural(names[i])))
    # Stored in the order of the alphabet, as JAX leaves dicts, says nothing.
    tried = [natural] if list(names) == sorted(names) else [stored, natural]
    for order in tried:
        if _chains([sizes[i] for i in order], pixels):
            return [order]
    return _all(sizes, pixels)


def _chains(sizes: Sequence[tuple[int, int]], pixels: int | None) -> bool:
    if pixels not in (None, sizes[0][0]):
        return False
    return all(a[1] == b[0] for a, b in itertools.pairwise(sizes))


def _all(sizes: Sequence[tuple[int, int]], pixels: int | None) -> list[tuple[int, ...]]:
    """Returns up to two orders in which shapes fit, by depth-first search."""
    found: list[tuple[int, ...]] = []

    def extend(chain, rest):
        if len(found) > 1:
            return
        if not rest:
            found.append(chain)
        for i in rest:
            size = sizes[chain[-1]][1] if chain else pixels
            if size is None or sizes[i][0] == size:
                extend((*chain, i), [j for j in rest if j != i])

    extend((), list(range(len(sizes))))
    return found
