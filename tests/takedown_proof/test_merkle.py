"""RFC 9162's log: roots by definition, proofs that hold, and any other that does not."""

from __future__ import annotations

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from llm_unlearn.takedown.merkle import (
    EMPTY,
    Tree,
    consistency_proof,
    consistent,
    included,
    inclusion_proof,
    leaf_hash,
    root,
)

# Certificate Transparency's own test vectors (google/certificate-transparency, merkletree tests).
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def _leaves(size: int) -> list[bytes]:
    return [leaf_hash(str(n).encode()) for n in range(size)]


def test_the_roots_of_certificate_transparency() -> None:
    hashes = [leaf_hash(leaf) for leaf in LEAVES]
    tree = Tree()
    assert tree.root() == root([]) == EMPTY == hashlib.sha256().digest()
    for size, wanted in enumerate(ROOTS, 1):
        tree.append(hashes[size - 1])
        assert tree.root().hex() == root(hashes[:size]).hex() == wanted


def test_three_leaves_by_hand() -> None:
    a, b, c = _leaves(3)
    both = hashlib.sha256(b"\1" + a + b).digest()
    whole = hashlib.sha256(b"\1" + both + c).digest()
    assert root([a, b, c]) == whole
    assert inclusion_proof([a, b, c], 1) == [a, c]
    assert consistency_proof([a, b, c], 2) == [c]
    assert consistent(2, both, 3, whole, [c])


def test_every_proof_of_small_logs_holds() -> None:
    for size in range(1, 18):
        leaves = _leaves(size)
        top = root(leaves)
        for index in range(size):
            assert included(leaves[index], index, size, inclusion_proof(leaves, index), top)
        for old in range(1, size + 1):
            proof = consistency_proof(leaves, old)
            assert consistent(old, root(leaves[:old]), size, top, proof)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.data())
def test_any_other_claim_is_refused(size: int, data: st.DataObject) -> None:
    leaves = _leaves(size)
    top, index = root(leaves), data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(leaves, index)
    other = data.draw(st.integers(0, size + 1).filter(lambda n: n != index))
    assert not included(leaves[index], other, size, proof, top)
    assert not included(leaf_hash(b"other"), index, size, proof, top)
    assert not included(leaves[index], index, size, [*proof, EMPTY], top)
    old = data.draw(st.integers(1, size))
    path = consistency_proof(leaves, old)
    forked = [*leaves[: old - 1], leaf_hash(b"forked")]
    assert not consistent(old, root(forked), size, top, path)
    assert not consistent(old, root(leaves[:old]), size, EMPTY, path)
    assert not consistent(old, root(leaves[:old]), size, top, [*path, EMPTY])
    assert not consistent(size + 1, top, size, top, path)
    for place in range(len(path)):
        changed = [*path]
        changed[place] = EMPTY
        assert not consistent(old, root(leaves[:old]), size, top, changed)
