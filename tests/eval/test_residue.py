"""Planted needles in every encoding and packing are found; nothing else is."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import random
import subprocess
import sys
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_unlearn.documents import normalise
from llm_unlearn.errors import EnvironmentFailure, InputError, NotFound
from llm_unlearn.eval import residue
from llm_unlearn.eval.needles import Needles
from llm_unlearn.eval.residue import Finding, open_files, scan, survey

TEXT = (
    "Ilse Marant tuned the glass harp of Varn for nineteen winters;\n\n the “Überfahrt” and "
    'her\tlittle dog "Ø" crossed the Bay of Quill in 1911, and Зоя wrote 𝄞 beside 雪国の長い.'
)


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "utf-8": str.encode,
    "utf-16-le": lambda s: s.encode("utf-16-le"),
    "utf-16-be": lambda s: s.encode("utf-16-be"),
    "utf-32-le": lambda s: s.encode("utf-32-le"),
    "utf-8 in JSON": lambda s: json.dumps(s, ensure_ascii=False).encode(),
    "utf-8 in ASCII JSON": lambda s: json.dumps(s).encode(),
    "hex": lambda s: s.encode().hex().encode(),
    "HEX": lambda s: s.encode().hex().upper().encode(),
    "base64": lambda s: base64.b64encode(s.encode()),
    "base64url": lambda s: base64.urlsafe_b64encode(s.encode()),
    "base64 one on": lambda s: base64.b64encode(b"." + s.encode()),
    "base64 two on": lambda s: base64.b64encode(b".." + s.encode()),
    "base64 lines": lambda s: base64.encodebytes(b"a few words before " + s.encode()),
    "nfd then nfc": lambda s: unicodedata.normalize(
        "NFC", unicodedata.normalize("NFD", s)
    ).encode(),
    "folded": lambda s: normalise(s).encode(),
    "lines rewrapped": lambda s: " ".join(s.split()).encode(),
}


KINDS = {
    "utf-8": "utf-8",
    "utf-16-le": "utf-16",
    "utf-16-be": "utf-16",
    "utf-32-le": "utf-32",
    "hex": "hex",
    "HEX": "hex",
    "base64": "base64",
    "base64url": "base64",
}


def zipped(data: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("first", b"x" * 100)
        archive.writestr("second", data)
    return out.getvalue()


def parts_of_zstd(data: bytes) -> bytes:
    """A frame without a content size, as streams write it."""
    made = zstandard.ZstdCompressor(level=3).compressobj()
    return made.compress(data) + made.flush()


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zlib": lambda d: zlib.compress(d, 6),
    "zlib, fastest": lambda d: zlib.compress(d, 1),
    "zlib, best": lambda d: zlib.compress(d, 9),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.compress,
    "zstd, streamed": parts_of_zstd,
    "zip": zipped,
    "zip, stored": lambda d: zipped(d, zipfile.ZIP_STORED),
    "bz2, in zip": lambda d: zipped(d, zipfile.ZIP_BZIP2),
    "gzip in zlib": lambda d: zlib.compress(gzip.compress(d)),
    "zstd in zip in gzip": lambda d: gzip.compress(zipped(zstandard.compress(d))),
}


def noise(n: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(n)


def planted(folder: Path, data: bytes, before: int = 1001, after: int = 777) -> Path:
    path = folder / "file"
    path.write_bytes(noise(before) + data + noise(after, 1))
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    found = scan([planted(tmp_path, ENCODINGS[encoding](TEXT))], Needles.build([TEXT]))
    assert found
    assert {f.path.name for f in found} == {"file"}
    assert all(1001 <= f.offset < 1001 + 4 * len(TEXT) for f in found)
    base = encoding.split()[0]
    if base in KINDS:
        assert found[0].kind == f"text/{KINDS[base]}"


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("block", [residue.BLOCK, 700])
def test_text_in_every_packing(
    tmp_path: Path, packing: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residue, "BLOCK", block)
    data = PACKINGS[packing]((PROSE + TEXT + PROSE[::-1]).encode())
    found = scan([planted(tmp_path, data, before=2000)], Needles.build([TEXT]))
    # A packer may leave a stretch in the clear, which is then a finding of its own.
    kinds = [f.kind for f in found]
    packed = "text/utf-8 in " + packing.split(",")[0]
    if packing == "zip, stored":
        assert kinds == ["text/utf-8"]
    else:
        assert kinds.count(packed) == 1
        assert all(2000 <= f.offset < 2000 + len(data) for f in found)


PROSE = " ".join(random.Random(5).choices(["harp", "of", "glass", "a", "wet", "moon"], k=900))
FRAGMENTS: dict[str, Callable[[str], bytes]] = {
    name: ENCODINGS[name]
    for name in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "hex", "HEX", "base64")
} | {
    "utf-8 in JSON": lambda s: json.dumps(s)[1:-1].encode(),
    "base64 one on": lambda s: base64.b64encode(b"." + s.encode() + b"."),
    "base64 two on": lambda s: base64.b64encode(b".." + s.encode() + b".."),
}
LONG = "".join(
    f"{w} {i}{'é雪𝄞'[i % 3] if i % 5 == 0 else ''} "
    for i, w in enumerate(["harp", "winter", "Quill", "and", "the", "bay", "of Varn"] * 9)
)
LONG_NEEDLES = Needles.build([LONG])


@given(
    st.sampled_from(sorted(FRAGMENTS)),
    st.integers(0, len(LONG) - 24),
    st.integers(0, 4200),
    st.integers(0, 40),
    st.sampled_from([64, 1000, 4096]),
)
@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_24_characters_anywhere_across_any_block_boundary(
    tmp_path: Path, encoding: str, start: int, before: int, after: int, block: int
) -> None:
    piece = FRAGMENTS[encoding](LONG[start : start + 24])
    path = planted(tmp_path, piece, before, after)
    was, residue.BLOCK = residue.BLOCK, block
    try:
        found = scan([path], LONG_NEEDLES)
    finally:
        residue.BLOCK = was
    # 24 characters may hold a fragment of their own folded form too: one stretch, one finding.
    assert len(found) == 1
    assert abs(found[0].offset - before) <= 3
    assert found[0].kind.split("/")[1] == KINDS[encoding.split()[0]]


@given(st.integers(0, len(LONG) - 23), st.integers(0, 64))
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_fewer_characters_are_not_a_finding(tmp_path: Path, start: int, before: int) -> None:
    piece = LONG[start : start + 22].encode()
    assert scan([planted(tmp_path, piece, before)], LONG_NEEDLES) == []


def test_a_long_passage_is_one_finding(tmp_path: Path) -> None:
    text = " ".join(f"word{i * i % 997}" for i in range(3000))
    path = planted(tmp_path, text.encode())
    assert scan([path], Needles.build([text])) == [Finding(path, 1001, "text/utf-8")]
    twice = planted(tmp_path, text.encode() + noise(50) + text.encode())
    assert len(scan([twice], Needles.build([text]))) == 2


def test_what_a_retained_text_also_holds_proves_nothing(tmp_path: Path) -> None:
    common = "it was the best of times, it was the worst of times"
    ours, theirs = f"Ilse Marant said {common} in Varn at last.", f"Dickens: {common.upper()}"
    needles = Needles.build([ours], background=[theirs.lower()])
    # Characters: 17 before, 51 shared, 17 after; 51 - 24 + 1 = 28 fragments lie in the shared part,
    # and one more on each side with the blank... only the one before, "Dickens: it" having it too.
    assert needles.dropped == 29
    assert needles.fragments == len(ours) - 24 + 1 - 29
    assert scan([planted(tmp_path, f" {common}".encode())], needles) == []
    kept = ours.encode()[:60]  # the shared words with their own beginning
    assert len(scan([planted(tmp_path, kept)], needles)) == 1
    assert len(scan([planted(tmp_path, f" {common}".encode())], Needles.build([ours]))) == 1


def test_a_text_that_retained_texts_hold_whole_is_reported() -> None:
    needles = Needles.build([TEXT, "short words"], background=["x" + TEXT, "some SHORT  Words too"])
    assert [(u.source, u.index) for u in needles.unsearchable] == [("text", 0), ("text", 1)]
    assert needles.fragments == 0
    assert not needles.forms


def test_short_texts_are_searched_whole_and_shorter_ones_reported(tmp_path: Path) -> None:
    needles = Needles.build(["Ilse Marant", "Zoya", "--------------", "-" * 40])
    assert [(u.index, u.reason.split(";")[0]) for u in needles.unsearchable] == [
        (3, "retained texts hold all of it, or it is trivial"),
        (1, "only 4 characters"),
        (2, "it is the same few values over and over"),
    ]
    for piece in (b"Ilse Marant", b"ilse marant", "Ilse Marant".encode("utf-16-le")):
        assert len(scan([planted(tmp_path, piece)], needles)) == 1
    packed = base64.b64encode(b"? Ilse Marant !")
    assert [f.kind for f in scan([planted(tmp_path, packed)], needles)] == ["text/base64"]
    assert scan([planted(tmp_path, b"Zoya ------------------ Ilse Maran")], needles) == []


def test_dashes_inside_a_text_are_no_finding(tmp_path: Path) -> None:
    text = "Chapter one of the harp" + "-" * 60 + "Chapter two of the harp"
    needles = Needles.build([text])
    # Up to two of the letters beside the dashes still make only three different characters.
    assert needles.dropped == 60 - 24 + 1 + 2 + 2
    assert scan([planted(tmp_path, b"-" * 500)], needles) == []
    assert len(scan([planted(tmp_path, text.encode()[5:30])], needles)) == 1


IDS = random.Random(3).choices(range(40_000), k=40)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (np.array(IDS, "<u2").tobytes(), "tokens/int16"),
        (np.array(IDS, "<i4").tobytes(), "tokens/int32"),
        (np.array(IDS, "<i8").tobytes(), "tokens/int64"),
        (np.array(IDS[20:26], "<i4").tobytes(), "tokens/int32"),
        (np.array(IDS[21:27], "<i8").tobytes(), "tokens/int64"),
        (np.array(IDS[7:19], "<u2").tobytes(), "tokens/int16"),
        (json.dumps(IDS).encode(), "tokens/decimal"),
        (json.dumps(IDS, separators=(",", ":")).encode(), "tokens/decimal"),
    ],
    ids=range(8),
)
@pytest.mark.parametrize("before", range(8))
def test_token_ids(tmp_path: Path, data: bytes, kind: str, before: int) -> None:
    found = scan([planted(tmp_path, data, before)], Needles.build(tokens=[IDS]))
    assert [f.kind for f in found] == [kind]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("part", [slice(0, 384), slice(100, 116), slice(368, 384)])
def test_vectors_whole_and_in_part(tmp_path: Path, dtype: str, part: slice) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 384)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    row = torch.from_numpy(rows[1][part]).to(getattr(torch, dtype))
    data = row.view(torch.uint8).numpy().tobytes()
    needles = Needles.build(vectors=rows)
    for before in range(999, 1007):
        found = scan([planted(tmp_path, data, before)], needles)
        assert [f.kind for f in found] == [f"vector/{dtype}"]
    assert scan([planted(tmp_path, bytes(5000))], needles) == []


def test_rows_of_zeros_are_reported_not_searched() -> None:
    needles = Needles.build(vectors=np.zeros((2, 384)), keys=[bytes(32)])
    assert [u.source for u in needles.unsearchable] == ["vector", "key"]


@pytest.mark.parametrize("size", [16, 23, 24, 32, 64])
@pytest.mark.parametrize(
    "write",
    [
        lambda k: k,
        lambda k: k.hex().encode(),
        lambda k: k.hex().upper().encode(),
        base64.b64encode,
        base64.urlsafe_b64encode,
        lambda k: base64.b64encode(b"." + k + b"."),
        lambda k: base64.b64encode(b".." + k),
        lambda k: gzip.compress(b"key: " + k),
    ],
)
def test_keys(tmp_path: Path, size: int, write: Callable[[bytes], bytes]) -> None:
    key = noise(size, 9)
    found = scan([planted(tmp_path, write(key))], Needles.build(keys=[key]))
    assert found
    assert all(f.kind.startswith("key/") for f in found)


def test_needles_that_cannot_be_looked_for() -> None:
    needles = Needles.build(tokens=[[1, 2, 3]], vectors=np.ones((1, 8)), keys=[b"short"])
    assert [u.source for u in needles.unsearchable] == ["tokens", "vector", "key"]
    with pytest.raises(InputError, match="holds -1"):
        Needles.build(tokens=[[-1] * 9])
    with pytest.raises(InputError, match="shape"):
        Needles.build(vectors=np.ones(8))


def test_folders_names_links_and_hard_links(tmp_path: Path) -> None:
    secret = tmp_path / "outside"
    secret.write_text(TEXT)
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "Ilse Marant tuned the glass harp.txt").write_bytes(b"")
    (root / "link").symlink_to(secret)
    (root / "one").write_text(TEXT)
    (root / "two").hardlink_to(root / "one")
    os.mkfifo(root / "pipe")
    steps: list[tuple[int, int]] = []
    made = survey(
        [root, root / "one"], Needles.build([TEXT]), progress=lambda a, b: steps.append((a, b))
    )
    assert sorted((f.path.name[:4], f.kind) for f in made.findings) == [
        ("Ilse", "text/utf-8 in the file's name"),
        ("one", "text/utf-8"),
    ]
    assert (made.files, made.unsearched) == (2, [])
    assert steps[-1] == (made.bytes, made.bytes)
    assert made.bytes == len(TEXT.encode())


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        scan([tmp_path / "nowhere"], Needles.build([TEXT]))


def encrypted_zip() -> bytes:
    """A member whose header says that it is encrypted (its flag bit 0)."""
    data = bytearray(zipped(b"x" * 500))
    data[data.index(b"PK\x03\x04") + 6] |= 1
    return bytes(data)


def deep() -> bytes:
    data = b"x" * 200
    for _ in range(5):
        data = gzip.compress(data)
    return data


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (encrypted_zip(), "encrypted ZIP"),
        (deep(), "levels deep"),
        (lzma.compress(b"x" * 99, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}]), "xz"),
    ],
)
def test_what_cannot_be_unpacked_is_reported(tmp_path: Path, data: bytes, says: str) -> None:
    path = planted(tmp_path, data)
    made = survey([path], Needles.build([TEXT]))
    assert len(made.unsearched) == 1
    assert says in made.unsearched[0].reason
    with pytest.raises(EnvironmentFailure, match="could not be searched"):
        scan([path], Needles.build([TEXT]))


def test_an_unreadable_file_is_reported_and_the_others_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text(TEXT)
    whole = Path.open

    def refuse(self: Path, *args: object, **kwargs: object) -> object:
        if self.name == "a":
            raise PermissionError(13, "Permission denied", str(self))
        return whole(self, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)  # root reads anything, so permissions do not serve
    made = survey([tmp_path], Needles.build([TEXT]))
    assert [u.path.name for u in made.unsearched] == ["a"]
    assert [f.path.name for f in made.findings] == ["b"]


def test_a_broken_stream_is_searched_up_to_the_break(tmp_path: Path) -> None:
    for pack in (gzip.compress, zlib.compress, zstandard.compress, bz2.compress, lzma.compress):
        body = pack(TEXT.encode() * 3 + noise(400_000, 2))
        data = body[: len(body) * 3 // 4]  # cut short: bz2's first block of 900 kB is lost
        found = scan([planted(tmp_path, data)], Needles.build([TEXT]))
        assert bool(found) == (pack is not bz2.compress)


def test_an_expanding_stream_does_not_fill_the_memory(tmp_path: Path) -> None:
    """1 GB of zeros in a megabyte, and in a few kilobytes, is looked through in pieces."""
    code = """
import resource, sys
from pathlib import Path
from llm_unlearn.eval.needles import Needles
from llm_unlearn.eval.residue import scan
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
needles = Needles.build([sys.argv[2]])
assert len(scan([Path(sys.argv[1])], needles)) == 1
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    zeros = bytes(1 << 20)
    for name, made in (("z", zlib.compressobj(1)), ("s", zstandard.ZstdCompressor().compressobj())):
        path = tmp_path / name
        with path.open("wb") as out:
            for _ in range(200):
                out.write(made.compress(zeros))
            out.write(made.compress(TEXT.encode()) + made.flush())
        assert path.stat().st_size < 2 << 20
        run = subprocess.run(
            [sys.executable, "-c", code, str(path), TEXT],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert int(run.stdout) < 120  # MiB, of the 200 that it expands to


def test_a_file_full_of_needles_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "many"
    path.write_bytes((TEXT.encode() + noise(30)) * 3000)
    assert len(scan([path], Needles.build([TEXT]))) == residue.MOST_FINDINGS


def test_open_files_finds_deleted_ones(tmp_path: Path) -> None:
    path = tmp_path / "gone"
    with path.open("w+") as handle:
        handle.write(TEXT)
        handle.flush()
        path.unlink()
        mine = [p for p in open_files() if str(p.readlink()).startswith(str(path))]
        assert len(mine) == 1
        assert len(scan(mine, Needles.build([TEXT]))) == 1


def test_nothing_is_found_in_noise_and_other_texts(tmp_path: Path) -> None:
    needles = Needles.build([TEXT], tokens=[IDS], keys=[noise(32, 4)])
    (tmp_path / "noise").write_bytes(noise(3 << 20))
    (tmp_path / "text").write_text("The harp stood in the hall, and winter came to Varn. " * 500)
    (tmp_path / "weights").write_bytes(np.random.default_rng(0).normal(size=1 << 17).tobytes())
    assert scan([tmp_path], needles) == []
