"""Distribution of whole models over the accelerators of a pod, which the operator plans and a stage carries out."""

from __future__ import annotations

from collections.abc import Sequence


def spread(sizes: Sequence[int], places: int) -> tuple[int, ...]:
    """Return the place of each model: the largest first, each where the fewest bytes are so far.

    Of equal models the earlier one comes first, of equal places the first.
    """
    loads, found = [0] * places, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda each: (-sizes[each], each)):
        found[index] = min(range(places), key=lambda place: (loads[place], place))
        loads[found[index]] += sizes[index]
    return tuple(found)
