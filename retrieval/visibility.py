"""Who may see which documents: masks over index entries, made before the search, not after it.

Guarantees: a mask allows exactly the entries whose every attribute passes its test. Values are
interned while some entry has them and forgotten with the last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Test = Callable[[Hashable], bool]
Wanted = frozenset[Any]  # the values that pass


class Attribute:
    """One attribute of every entry, by entry number, with its distinct values counted."""

    def __init__(self) -> None:
        self._code_of: dict[Hashable, int] = {}
        self._values: list[Hashable] = []
        self._counts: list[int] = []
        self._free: list[int] = []
        self._codes = np.full(64, -1, np.int32)

    def put(self, number: int, value: Hashable) -> None:
        """Give the entry `number` a value."""
        code = self._code_of.get(value)
        if code is None:
            code = self._free.pop() if self._free else len(self._values)
            if code == len(self._values):
                self._values.append(value)
                self._counts.append(0)
            self._values[code], self._code_of[value] = value, code
        self._counts[code] += 1
        if number >= len(self._codes):
            more = np.full(max(number + 1, 2 * len(self._codes)), -1, np.int32)
            more[: len(self._codes)] = self._codes
            self._codes = more
        self._codes[number] = code

    def drop(self, number: int) -> None:
        """Forget the entry `number`, and its value when nobody else has it."""
        code = int(self._codes[number])
        self._codes[number] = -1
        self._counts[code] -= 1
        if not self._counts[code]:
            del self._code_of[self._values[code]]
            self._values[code] = None
            self._free.append(code)

    def values(self) -> list[Hashable]:
        """The distinct values."""
        return list(self._code_of)

    def mask(self, size: int, test: Test | Wanted) -> NDArray[np.bool_] | None:
        """The entries below `size` whose value passes; None when all do."""
        if isinstance(test, frozenset):
            passing = [self._code_of[value] for value in test if value in self._code_of]
        else:
            passing = [code for value, code in self._code_of.items() if test(value)]
        if len(passing) == len(self._code_of):
            return None
        allowed = np.zeros(len(self._values) + 1, np.bool_)  # the last stands for "no entry"
        allowed[passing] = True
        mask: NDArray[np.bool_] = allowed[self._codes[:size]]
        return mask


def combine(
    attributes: Mapping[str, Attribute], tests: Mapping[str, Test | Wanted], size: int
) -> NDArray[np.bool_] | None:
    """The entries that pass every test; None when all do."""
    combined: NDArray[np.bool_] | None = None
    for name, test in tests.items():
        mask = attributes[name].mask(size, test)
        if mask is not None:
            combined = mask if combined is None else combined & mask
    return combined


def any_of(wanted: Collection[str]) -> Test:
    """The test of an attribute with several values: whether one of them is wanted."""
    allowed = frozenset(wanted)

    def test(values: Hashable) -> bool:
        assert isinstance(values, frozenset | tuple)
        return not allowed.isdisjoint(values)

    return test
