"""Several orders of one shard's slices, so that a deletion leaves one of them mostly standing (S3T).

Chowdhury et al. 2025 (S3T, ICLR 2025, arXiv 2406.16257) train a shard in several orders of its slices. A
deletion makes an order worthless from its slice on; that slice comes late in another order, which
serves, and nothing has to be trained at once. The orders are rotations of one another, begun as far apart
as can be: for deletions of equal chance this spreads the first slices, and an order survives as
long as its first slice does.

By hand, 4 slices: one order 0123; two orders 0123 and 2301; after a deletion in slice 1 the first serves
slice 0 alone, the second 2, 3 and 0.

How long a shard serves: with R slices, B orders that begin with B different slices, and deletions that
fall on any slice alike, nothing serves once each of those B slices was hit. The next of j slices not hit
yet takes R / j deletions on average, so it is R (1 + 1/2 + ... + 1/B) in all: R = 4: 4 deletions with one
order, 6 with two, 8 1/3 with four.

Guarantees: a pure function of the settings, of no document. With slices by risk each class of risk is
rotated in itself, so that likely slices come last in every order.
"""

from __future__ import annotations

from collections.abc import Sequence


def slice_orders(slices: int, count: int, bands: Sequence[int] = ()) -> tuple[tuple[int, ...], ...]:
    """`count` orders of `slices` slices, the first one ascending.

    >>> slice_orders(4, 2)
    ((0, 1, 2, 3), (2, 3, 0, 1))
    >>> slice_orders(5, 2, (3, 2))
    ((0, 1, 2, 3, 4), (1, 2, 0, 4, 3))

    Args:
        bands: sizes of the classes of risk, which sum to `slices`; empty for one class.

    Raises:
        ValueError: there are not so many different ones.
    """
    sizes = tuple(bands) or (slices,)
    if not 1 <= count <= max(sizes):
        raise ValueError(
            f"{count} different orders of {slices} slices cannot be made; choose 1 to {max(sizes)}"
        )
    made = []
    for order in range(count):
        placed: list[int] = []
        for size in sizes:
            start, turn = len(placed), order * size // count
            placed += [start + (turn + i) % size for i in range(size)]
        made.append(tuple(placed))
    return tuple(made)


def deletions_survived(slices: int, orders: int) -> float:
    """Expected deletions until no order of a shard serves: R (1 + 1/2 + ... + 1/B).

    >>> round(deletions_survived(4, 4), 3)
    8.333
    """
    return slices * sum(1 / j for j in range(1, orders + 1))
