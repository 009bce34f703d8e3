"""A Merkle log over receipts: roots, inclusion proofs and consistency proofs of RFC 9162, section 2.1.

Guarantees, as long as SHA-256 resists collisions: a root binds every leaf and their order; an
inclusion proof that holds shows that a leaf stands at its place in the log of that root; a
consistency proof that holds shows that the log of the newer root begins with the log of the older
one, so that nothing was removed, changed or put in. A leaf is the bytes of a receipt's file.

    leaf hash  = SHA-256(0x00 || file)          node = SHA-256(0x01 || left || right)
    root of n  = node(root of the first k, root of the rest), k the largest power of two below n

By hand, of three leaves a, b, c: the root is node(node(a, b), c); the proof that b stands in it is
[a, c]; the proof that it begins with the log of a and b, whose root is node(a, b), is [c].

Does not guarantee: that whoever shows a root shows everybody the same one. Compare saved heads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import reduce

EMPTY = hashlib.sha256().digest()
"""The root of a log without leaves."""


def leaf_hash(data: bytes) -> bytes:
    """The hash (32 bytes) of one leaf."""
    return hashlib.sha256(b"\x00" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(size: int) -> int:
    """The largest power of two smaller than `size`, which is 2 or more."""
    return 1 << (size - 1).bit_length() - 1


class Tree:
    """A log that only grows: appending and asking for the root take time logarithmic in its size."""

    def __init__(self, leaves: Sequence[bytes] = ()) -> None:
        self.leaves: list[bytes] = []
        self._peaks: list[bytes] = []  # roots of the complete subtrees, largest first
        for leaf in leaves:
            self.append(leaf)

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash."""
        size, merged = len(self.leaves), leaf
        while size & 1:
            merged = _node(self._peaks.pop(), merged)
            size >>= 1
        self._peaks.append(merged)
        self.leaves.append(leaf)

    def root(self) -> bytes:
        """The root (32 bytes) of everything so far."""
        if not self._peaks:
            return EMPTY
        return reduce(lambda right, left: _node(left, right), reversed(self._peaks))


def root(leaves: Sequence[bytes]) -> bytes:
    """The root of leaf hashes, by the definition (section 2.1.1)."""
    if not leaves:
        return EMPTY
    if len(leaves) == 1:
        return leaves[0]
    k = _split(len(leaves))
    return _node(root(leaves[:k]), root(leaves[k:]))


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The proof that leaf `index`, from 0, stands in the log of these leaf hashes (2.1.3.1)."""
    if len(leaves) == 1:
        return []
    k = _split(len(leaves))
    if index < k:
        return [*inclusion_proof(leaves[:k], index), root(leaves[k:])]
    return [*inclusion_proof(leaves[k:], index - k), root(leaves[:k])]


def included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], top: bytes) -> bool:
    """Whether a proof shows that a leaf hash stands at `index` in the log of `size` and root `top`.

    The algorithm of section 2.1.3.2.
    """
    if not 0 <= index < size:
        return False
    fn, sn, found = index, size - 1, leaf
    for step in proof:
        if not sn:
            return False
        if fn & 1 or fn == sn:
            found = _node(step, found)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            found = _node(found, step)
        fn, sn = fn >> 1, sn >> 1
    return not sn and found == top


def consistency_proof(leaves: Sequence[bytes], old: int) -> list[bytes]:
    """The proof that the log of these leaf hashes begins with that of the first `old` (2.1.4.1).

    `old` is from 1 to their number.
    """
    return _subproof(leaves, old, whole=True)


def _subproof(leaves: Sequence[bytes], old: int, *, whole: bool) -> list[bytes]:
    if old == len(leaves):
        return [] if whole else [root(leaves)]
    k = _split(len(leaves))
    if old <= k:
        return [*_subproof(leaves[:k], old, whole=whole), root(leaves[k:])]
    return [*_subproof(leaves[k:], old - k, whole=False), root(leaves[:k])]


def consistent(old: int, before: bytes, new: int, after: bytes, proof: Sequence[bytes]) -> bool:
    """Whether a proof shows that the log (`new`, `after`) begins with the log (`old`, `before`).

    The algorithm of section 2.1.4.2.
    """
    if not 0 < old <= new:
        return False
    if old == new:
        return not proof and before == after
    path = list(proof) if old & (old - 1) else [before, *proof]
    if not path:
        return False
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    first = second = path[0]
    for step in path[1:]:
        if not sn:
            return False
        if fn & 1 or fn == sn:
            first, second = _node(step, first), _node(step, second)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            second = _node(second, step)
        fn, sn = fn >> 1, sn >> 1
    return not sn and first == before and second == after
