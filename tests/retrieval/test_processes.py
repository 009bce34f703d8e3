"""Two processes, and processes that are killed."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from llm_unlearn.retrieval import Store

READER = """
from pathlib import Path
store = Store(open_vault(Path(argv[0]), readonly=True), HashingEmbedder(), SETTINGS)
for line in sys.stdin:
    hits = store.search(line.strip(), groups=["staff"], k=50)
    print(",".join(sorted({hit.document for hit in hits})), flush=True)
"""

WRITER = """
from pathlib import Path
import random
folder = Path(argv[0])
store = Store.open(folder / "store", folder / "keys", HashingEmbedder(), write=True)
rng = random.Random(int(argv[1]))
names = {int(record.split("-")[1]) for record in argv[2].split(",") if record}
print("ready", flush=True)
while True:
    number = rng.randrange(40)
    subject = f"s{number % 5}"
    step = rng.random()
    # Say what is about to happen, do it, say that it is done: the parent compares.
    if step < 0.1:
        print(f"begin drop {subject}", flush=True)
        store.delete(subject=subject)
        names = {n for n in names if n % 5 != number % 5}
    elif step < 0.2:
        print("begin rotate -", flush=True)
        store.vault.keyring.rotate()
    elif number in names and step < 0.6:
        print(f"begin delete {number}", flush=True)
        store.delete(id=f"doc-{number}")
        names.discard(number)
    elif number in names:
        print(f"begin update {number}", flush=True)
        store.update(make_document(number, subject))
    else:
        print(f"begin add {number}", flush=True)
        store.add([make_document(number, subject)])
        names.add(number)
    print("done", flush=True)
"""


def test_a_reader_elsewhere_sees_every_write_at_its_next_search(
    store: Store, tools: Any, tmp_path: Path
) -> None:
    store.add(tools.document(i) for i in range(3))
    child = tools.child(READER, tmp_path / "store")

    def ask() -> str:
        child.stdin.write("record\n")
        child.stdin.flush()
        return str(child.stdout.readline().strip())

    with child:
        assert ask() == "doc-0,doc-1,doc-2"
        store.delete(id="doc-1")
        assert ask() == "doc-0,doc-2"
        store.add([tools.document(7)])
        assert ask() == "doc-0,doc-2,doc-7"
        store.fence(id="doc-0")
        assert ask() == "doc-2,doc-7"
        store.vault.keyring.rotate()
        assert ask() == "doc-2,doc-7"
        child.stdin.close()
    assert child.returncode == 0


def test_a_key_destroyed_before_its_row_is_gone_from_answers(store: Store, tools: Any) -> None:
    """The moment between the two steps of a deletion, seen by a reader."""
    store.add(tools.document(i) for i in range(3))
    assert len(store.search("record", groups=["staff"], k=50)) > 2
    record = store.vault.find(store.vault.mark("id", "doc-1"))
    assert record is not None
    store.vault.keyring.destroy([record.slot])
    hits = store.search("record", groups=["staff"], k=50)
    assert {hit.document for hit in hits} == {"doc-0", "doc-2"}


def apply(names: set[int], action: str, what: str) -> set[int]:
    if action == "drop":
        return {n for n in names if n % 5 != int(what[1:])}
    if action == "rotate":
        return names
    return names - {int(what)} if action == "delete" else names | {int(what)}


def test_killed_writers_lose_nothing_acknowledged(tools: Any, tmp_path: Path) -> None:
    """SIGKILL at a random moment: finished steps hold, the one under way is all or nothing."""
    place = (tmp_path / "store", tmp_path / "keys", tools.Embedder())
    Store.create(*place, tools.settings).close()
    rng, names = random.Random(20), set[int]()
    for turn in range(tools.soak(6)):
        child = tools.child(WRITER, tmp_path, turn, ",".join(f"doc-{n}" for n in sorted(names)))
        with child:
            assert child.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.01, 0.25))
            child.kill()
            lines = child.stdout.read().split("\n")
        before = after = names
        for line in lines[:-1]:  # the last one may be cut
            if line.startswith("begin"):
                before, after = after, apply(after, *line.split()[1:])
            else:
                before = after
        with Store.open(*place, write=True) as store:
            hits = store.search("record", groups=["staff"], k=1000)
            found = {int(hit.document.removeprefix("doc-")) for hit in hits}
            assert found in (before, after), lines[-3:]
            slots = {record.slot for record in store.vault.records()}
            assert len(slots) == len(found)
            assert store.vault.keyring.live_slots() == slots
            store.verify()
            names = found
