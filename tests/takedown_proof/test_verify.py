"""An auditor with the receipt, the public key and the log: what is accepted and what is refused."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_unlearn.errors import Damaged, InputError, KeysMissing, NotFound, VerificationFailed
from llm_unlearn.takedown.envelope import canonical, public_pem, sign
from llm_unlearn.takedown.proof import LogHead, write_proof
from llm_unlearn.takedown.receipt import LogPlace, Receipt, Times, log_tree, write_receipt
from llm_unlearn.takedown.verify import request_reference, verify_receipt

Build = Callable[..., Receipt]
Log = Callable[..., Path]


def number(directory: Path, n: int) -> Path:
    return directory / f"{n:08d}.json"


def test_a_receipt_alone(log: Log, public: Path) -> None:
    held = verify_receipt(number(log("log", 1), 1), public)
    assert held.receipt.number == 1
    assert [line.check for line in held.lines] == ["key", "signature", "schema", "times"]


def test_every_byte_matters(log: Log, public: Path, tmp_path: Path) -> None:
    """Every position once with a random pattern; 200 more positions and patterns."""
    good = number(log("log", 1), 1).read_bytes()
    dice = random.Random(1)
    flips = [(at, dice.randrange(1, 256)) for at in range(len(good))]
    flips += [(dice.randrange(len(good)), 1 << dice.randrange(8)) for _ in range(200)]
    path = tmp_path / "changed.json"
    for at, bits in flips:
        changed = bytearray(good)
        changed[at] ^= bits
        path.write_bytes(changed)
        with pytest.raises(VerificationFailed, match=r"changed\.json"):
            verify_receipt(path, public)


def test_a_whole_log(log: Log, public: Path) -> None:
    directory = log("log", 4)
    later = number(directory, 3)
    head = str(verify_receipt(number(directory, 4), public).head)
    held = verify_receipt(number(directory, 2), public, log=directory, head=head, later=later)
    details = [line.detail for line in held.lines if line.check == "log"]
    assert details[0] == "4 receipts in one chain, without gap or fork"
    assert len(details) == 4


def test_a_copy_of_a_receipt_in_the_log_is_no_fork(log: Log, public: Path) -> None:
    directory = log("log", 2)
    shutil.copy(number(directory, 1), directory / "mine.json")
    assert verify_receipt(directory / "mine.json", public, log=directory).receipt.number == 1


def test_what_is_wrong_with_a_log(
    log: Log, receipt: Build, seed: bytes, public: Path, tmp_path: Path
) -> None:
    directory, other = log("log", 4), log("other", 4, mark="weekly")
    head = str(verify_receipt(number(directory, 4), public).head)

    def refused(match: str, change: Callable[[Path], object], **given: object) -> str:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(directory, copy)
        change(copy)
        shown = given.pop("receipt", number(directory, 2))
        with pytest.raises(VerificationFailed, match=match) as caught:
            verify_receipt(shown, public, log=copy, **given)  # type: ignore[arg-type]
        return caught.value.problem

    def reissue(copy: Path) -> None:
        """Receipt 3 says something else, in its place and under the right key."""
        previous = verify_receipt(number(copy, 2), public).digest
        place = verify_receipt(number(copy, 3), public).receipt.log
        made = receipt(number=3, previous=previous, log=place, scan=None)
        number(copy, 3).write_bytes(canonical(sign(made.model_dump(mode="json"), seed)))

    def other_root(copy: Path) -> None:
        """Receipt 3, the last one, is as it was but for the root that it names."""
        remove(copy, 4)
        previous = verify_receipt(number(copy, 2), public).digest
        made = receipt(number=3, previous=previous, log=LogPlace(size=2, root="9" * 64))
        number(copy, 3).write_bytes(canonical(sign(made.model_dump(mode="json"), seed)))

    root = verify_receipt(number(directory, 1), public, log=directory).head
    last = number(directory, 4)
    said = {
        refused("truncated: it ends at receipt 1", lambda c: remove(c, 2, 3, 4)),
        refused(
            "truncated: it ends at receipt 3, and the saved head",
            lambda c: remove(c, 4),
            head=head,
        ),
        refused(
            "truncated: it ends at receipt 3, and the later",
            lambda c: remove(c, 4),
            later=last,
        ),
        refused("has a gap: receipt 2 of 4", lambda c: remove(c, 2)),
        refused("has a gap: receipt 1 of 4", lambda c: remove(c, 1)),
        refused(
            "forked: its receipt 2 is not", lambda c: shutil.copy(number(other, 2), number(c, 2))
        ),
        refused(
            "forked: 00000003.json and fork.json",
            lambda c: shutil.copy(number(other, 3), c / "fork.json"),
        ),
        refused(
            "chain is broken at receipt 3", lambda c: shutil.copy(number(other, 3), number(c, 3))
        ),
        refused(
            "chain is broken at receipt 2", lambda c: shutil.copy(number(other, 1), number(c, 1))
        ),
        refused(
            "forked: its receipt 4 is not the saved head",
            lambda c: shutil.copy(number(other, 4), number(c, 4)),
            head=head,
        ),
        refused("00000003.json: .*not in canonical", lambda c: damage(number(c, 3))),
        refused("chain is broken at receipt 4", reissue),
        refused("receipt 3 names another log before it", other_root),
        refused(
            "forked: its first 4 receipts do not make the saved head",
            lambda c: shutil.copytree(other, c, dirs_exist_ok=True),
            head=str(root),
            receipt=number(other, 2),
        ),
        refused(
            "truncated: it ends at receipt 3, and the saved head",
            lambda c: remove(c, 4),
            head=str(root),
        ),
        refused("truncated: it ends at receipt 0", lambda c: remove(c, 1, 2, 3, 4)),
    }
    assert len(said) >= 12


def test_a_proof_in_place_of_the_log(log: Log, public: Path, seed: bytes, tmp_path: Path) -> None:
    """The auditor has one receipt, the key, a saved head and a file from the operator."""
    directory, other = log("log", 3), log("other", 7, mark="weekly")
    first = number(directory, 1)
    saved = verify_receipt(first, public, log=directory).log_head
    assert saved is not None
    log("log", 4)
    late = number(directory, 6)
    proof = tmp_path / "proof.json"
    head = write_proof(directory, 2, proof, seed, since=saved)
    second = number(directory, 2)
    held = verify_receipt(second, public, proof=proof, head=str(saved))
    assert held.head == head == verify_receipt(first, public, log=directory).head
    assert [line.check for line in held.lines[-2:]] == ["proof", "proof"]

    def refused(
        match: str, path: Path, kind: type[Exception] = VerificationFailed, **given: object
    ) -> None:
        given.setdefault("receipt", second)
        shown = given.pop("receipt")
        with pytest.raises(kind, match=match):
            verify_receipt(shown, public, proof=path, **given)  # type: ignore[arg-type]

    refused("proves receipt 2, not 1", proof, receipt=first)
    refused("is not in the log of this proof", proof, receipt=number(other, 2))
    refused("does not begin with the saved head", proof, head=f"3/{'0' * 64}")
    refused("ends at receipt 7, and the saved head", proof, head=f"9/{'0' * 64}")
    refused("Ask the issuer for a proof since 6/", proof, InputError, head=f"6/{'0' * 64}")
    refused("a proof since 5/", proof, InputError, later=late)
    refused("head of one receipt", proof, InputError, head=f"3:{'0' * 64}")
    refused("cannot be read", tmp_path / "none", NotFound)
    since = verify_receipt(late, public).receipt.log
    assert since is not None
    again = tmp_path / "again.json"
    write_proof(directory, 2, again, seed, since=LogHead(since.size, since.root))
    verify_receipt(second, public, proof=again, later=late)
    refused("does not begin with the log before 00000006", again, later=number(other, 6))
    forged = tmp_path / "forged.json"
    write_proof(directory, 2, forged, bytes(32))
    refused("the proof is signed by the key", forged)
    refused("not a proof", second)
    with pytest.raises(VerificationFailed, match="not a receipt"):
        verify_receipt(proof, public)
    with pytest.raises(InputError, match="there already"):
        write_proof(directory, 2, proof, seed)
    with pytest.raises(NotFound, match="ends at receipt 7"):
        write_proof(directory, 8, tmp_path / "no.json", seed)
    changed = bytearray(proof.read_bytes())
    for at in range(0, len(changed), 7):
        forged.write_bytes(bytes([*changed[:at], changed[at] ^ 1, *changed[at + 1 :]]))
        refused("forged", forged)


def test_a_receipt_of_the_first_schema_still_verifies(
    receipt: Build, seed: bytes, public: Path, tmp_path: Path
) -> None:
    """Written by version 0.2.0's schema: the later fields are absent; given, they are refused."""
    said = receipt().model_dump(mode="json")
    del said["log"], said["decision"], said["done"]["together"], said["closure"]["mentions"]
    del said["closure"]["review"]["fenced"], said["closure"]["review"]["declined"]
    said["version"] = 1
    path = tmp_path / "log" / "00000001.json"
    path.parent.mkdir()
    path.write_bytes(canonical(sign(said, seed)))
    head = verify_receipt(path, public).head
    previous = receipt(number=2, previous=head.digest, log=_place(path))  # type: ignore[union-attr]
    write_receipt(path.parent, previous, seed)
    held = verify_receipt(path, public, log=path.parent, head=str(head))
    assert (held.receipt.version, held.receipt.log) == (1, None)
    for part, field, value in (
        (said, "decision", "accepted"),
        (said["done"], "together", 2),
        (said["closure"]["review"], "declined", 1),
    ):
        part[field] = value
        path.write_bytes(canonical(sign(said, seed)))
        with pytest.raises(VerificationFailed, match=f"version 1 has no field {field}"):
            verify_receipt(path, public)
        del part[field]


def _place(path: Path) -> LogPlace:
    tree = log_tree(path.parent)
    return LogPlace(size=len(tree.leaves), root=tree.root().hex())


def remove(directory: Path, *numbers: int) -> None:
    for n in numbers:
        number(directory, n).unlink()


def damage(path: Path) -> None:
    path.write_bytes(b" " + path.read_bytes())


def test_a_first_receipt_that_is_not_the_first(
    receipt: Build, seed: bytes, public: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "log"
    directory.mkdir()
    path = number(directory, 1)
    path.write_bytes(canonical(sign(receipt(previous="9" * 64).model_dump(mode="json"), seed)))
    with pytest.raises(VerificationFailed, match="names a receipt before it"):
        verify_receipt(path, public, log=directory)


def test_a_later_receipt_without_the_log(log: Log, public: Path) -> None:
    directory, other = log("log", 3), log("other", 3, mark="weekly")
    first = number(directory, 1)
    held = verify_receipt(first, public, later=number(directory, 2))
    assert held.lines[-1].detail == "receipt 2 follows it"
    with pytest.raises(VerificationFailed, match="does not follow the receipt 1"):
        verify_receipt(first, public, later=number(other, 2))
    with pytest.raises(InputError, match="not the one after"):
        verify_receipt(first, public, later=number(directory, 3))
    with pytest.raises(InputError, match="not later than"):
        verify_receipt(number(directory, 2), public, later=first, log=directory)
    with pytest.raises(InputError, match="says nothing without the log"):
        verify_receipt(first, public, head="1:" + "0" * 64)
    with pytest.raises(InputError, match="SIZE/ROOT"):
        verify_receipt(first, public, head="one", log=directory)


def test_whose_request_it_answers(
    log: Log, public: Path, salt: bytes, secrets: tuple[str, ...]
) -> None:
    path = number(log("log", 1), 1)
    reference = request_reference(secrets[0], salt)
    held = verify_receipt(path, public, request=reference)
    assert held.lines[-1] == ("request", f"answers {secrets[0]}")
    for wrong in (
        request_reference("another", salt),
        request_reference(secrets[0], bytes(32)),
    ):
        with pytest.raises(VerificationFailed, match="answers another request"):
            verify_receipt(path, public, request=wrong)
    for malformed in (secrets[0], f"{secrets[0]}#abc", "#" + salt.hex(), ""):
        with pytest.raises(InputError, match="ID#SALT"):
            verify_receipt(path, public, request=malformed)


def test_keys_and_files(log: Log, public: Path, tmp_path: Path) -> None:
    path = number(log("log", 1), 1)
    wrong = tmp_path / "wrong.pem"
    wrong.write_bytes(public_pem(b"\7" * 32))
    with pytest.raises(VerificationFailed, match="is signed by the key"):
        verify_receipt(path, wrong)
    with pytest.raises(KeysMissing):
        verify_receipt(path, tmp_path / "none.pem")
    wrong.write_bytes(b"-----BEGIN PUBLIC KEY-----\n")
    with pytest.raises(Damaged):
        verify_receipt(path, wrong)
    with pytest.raises(NotFound, match=r"none\.json"):
        verify_receipt(tmp_path / "none.json", public)
    with pytest.raises(NotFound, match="not a directory"):
        verify_receipt(path, public, log=tmp_path / "nowhere")


def test_signed_but_not_a_receipt(
    receipt: Build, seed: bytes, public: Path, tmp_path: Path
) -> None:
    path = tmp_path / "odd.json"
    good = receipt().model_dump(mode="json")
    for payload, match in (
        (good | {"version": 3}, "schema is not version 2"),
        ({}, "schema is not version 2"),
        (good | {"number": "1"}, "number: "),
        (good | {"extra": 1}, "extra: "),
    ):
        path.write_bytes(canonical(sign(payload, seed)))
        with pytest.raises(VerificationFailed, match=match):
            verify_receipt(path, public)


def test_a_clock_that_ran_backwards_is_said(
    receipt: Build, seed: bytes, public: Path, tmp_path: Path
) -> None:
    times = Times(
        received="2031-01-02T00:00:00Z",
        acknowledged="2031-01-01T00:00:00Z",
        finished="2031-01-03T00:00:00Z",
    )
    path = write_receipt(tmp_path / "log", receipt(times=times), seed)
    assert "backwards" in verify_receipt(path, public).lines[-1].detail


def test_under_a_second(log: Log, public: Path) -> None:
    """The promise is for everything checkable; a log of 200 receipts stands for it here."""
    directory = log("log", 200)
    start = time.perf_counter()
    verify_receipt(number(directory, 1), public, log=directory)
    assert time.perf_counter() - start < 1


def test_the_verifier_loads_nothing_of_training_or_retrieval(log: Log, public: Path) -> None:
    """In a process of its own, from importing to the verdict."""
    path = number(log("log", 2), 2)
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from llm_unlearn.takedown.verify import verify_receipt\n"
        "held = verify_receipt(Path(sys.argv[1]), Path(sys.argv[2]), log=Path(sys.argv[1]).parent)\n"
        "heavy = {'torch', 'faiss', 'transformers', 'numpy', 'peft', 'tokenizers', 'yaml'}\n"
        "mine = {'errors', 'files', 'takedown'}\n"
        "loaded = {m for m in sys.modules if m.split('.')[0] in heavy}\n"
        "loaded |= {m for m in sys.modules if m.startswith('llm_unlearn.')"
        " and m.split('.')[1] not in mine}\n"
        "print(held.receipt.number, sorted(loaded))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(path), str(public)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "2 []"
