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
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plants import IDS, TEXT, noise, planted

from llm_unlearn.documents import normalise
from llm_unlearn.errors import EnvironmentFailure, NotFound
from llm_unlearn.eval import residue
from llm_unlearn.eval.needles import Needles
from llm_unlearn.eval.residue import Finding, open_files, scan, survey


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


@pytest.mark.parametrize(
    "signature", [b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08", b"BZh91AY&SY", b"x\x9c"]
)
@pytest.mark.parametrize("level", [0, 3])
def test_signatures_by_chance_are_neither_found_nor_reported(
    tmp_path: Path, signature: bytes, level: int
) -> None:
    data = b"".join(signature + noise(200, seed) for seed in range(400))
    for _ in range(level):
        data = gzip.compress(data)
    (tmp_path / "file").write_bytes(data if level else noise(9) + data)
    made = survey([tmp_path / "file"], Needles.build([TEXT]))
    assert (made.findings, made.unsearched) == ([], [])


def test_a_zstd_stream_that_needs_a_dictionary_is_reported(tmp_path: Path) -> None:
    samples = [f"{TEXT} {i}".encode() for i in range(300)]
    made = zstandard.ZstdCompressor(dict_data=zstandard.train_dictionary(2000, samples))
    (tmp_path / "file").write_bytes(made.compress(samples[0]))
    [only] = survey([tmp_path / "file"], Needles.build([TEXT])).unsearched
    assert "dictionary" in only.reason


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
