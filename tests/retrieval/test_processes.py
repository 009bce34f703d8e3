"""Two processes, and processes that are killed."""

from __future__ import annotations

import random
import shutil
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
live, held = ({int(n) for n in part.split(",") if n} for part in argv[2].split("/"))
print("ready", flush=True)
for count in range(10_000):
    number = rng.randrange(40)
    subject = f"s{number % 5}"
    step = rng.random()
    # Say what is about to happen, do it, say that it is done: the parent compares.
    if step < 0.1:
        if any(n % 5 == number % 5 for n in held):
            continue
        print(f"begin drop {number}", flush=True)
        store.delete(subject=subject)
        live = {n for n in live if n % 5 != number % 5}
    elif step < 0.2:
        print("begin rotate -", flush=True)
        store.vault.keyring.rotate()
    elif step < 0.3:
        print(f"begin backup {argv[1]}-{count}", flush=True)
        store.backup(folder / "backups" / f"{argv[1]}-{count}")
    elif number in held:
        print(f"begin release {number}", flush=True)
        store.release(id=f"doc-{number}")
        held.discard(number)
        live.add(number)
    elif number in live and step < 0.4:
        print(f"begin hold {number}", flush=True)
        store.hold(id=f"doc-{number}")
        live.discard(number)
        held.add(number)
    elif number in live and step < 0.7:
        print(f"begin delete {number}", flush=True)
        store.delete(id=f"doc-{number}")
        live.discard(number)
    elif number in live:
        print(f"begin update {number}", flush=True)
        store.update(make_document(number, subject, words=20 + count % 9))
    else:
        print(f"begin add {number}", flush=True)
        store.add([make_document(number, subject)])
        live.add(number)
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


Names = tuple[frozenset[int], frozenset[int]]  # live and held


def apply(names: Names, action: str, what: str) -> Names:
    live, held = names
    if action in ("rotate", "backup"):
        return names
    number = int(what)
    if action == "drop":
        return frozenset(n for n in live if n % 5 != number % 5), held
    if action == "hold":
        return live - {number}, held | {number}
    if action == "release":
        return live | {number}, held - {number}
    return (live - {number} if action == "delete" else live | {number}), held


def numbers(store: Store) -> set[int]:
    hits = store.search("record", groups=["staff"], k=1000)
    return {int(hit.document.removeprefix("doc-")) for hit in hits}


def test_killed_writers_lose_nothing_acknowledged(tools: Any, tmp_path: Path) -> None:
    """SIGKILL at a random moment: finished steps hold, the one under way is all or nothing.

    A backup that was finished restores to what it held, less what was deleted or changed since.
    """
    place = (tmp_path / "store", tmp_path / "keys", tools.Embedder())
    Store.create(*place, tools.settings).close()
    (tmp_path / "backups").mkdir()
    rng, names = random.Random(20), (frozenset[int](), frozenset[int]())
    saved: tuple[str, Names] | None = None
    touched = set[int]()
    for turn in range(tools.soak(6)):
        given = "/".join(",".join(map(str, sorted(some))) for some in names)
        child = tools.child(WRITER, tmp_path, turn, given)
        with child:
            assert child.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.01, 0.25))
            child.kill()
            lines = child.stdout.read().split("\n")
        before = after = names
        step = ["", ""]
        for line in lines[:-1]:  # the last one may be cut
            if line.startswith("begin"):
                step = line.split()[1:]
                before, after = after, apply(after, *step)
                if step[0] in ("add", "update", "delete"):
                    touched.add(int(step[1]))
                elif step[0] == "drop":
                    touched |= {n for n in range(40) if n % 5 == int(step[1]) % 5}
            else:
                before = after
                if step[0] == "backup":
                    saved, touched = (step[1], after), set()
        with Store.open(*place, write=True) as store:
            found = numbers(store)
            held = {int(name.removeprefix("doc-")) for name in store.held()}
            assert (found, held) in [before, after], lines[-3:]
            slots = {r.slot for r in store.vault.records(states=("live", "held"))}
            assert len(slots) == len(found) + len(held)
            assert store.vault.keyring.live_slots() == slots
            store.verify()
            names = (frozenset(found), frozenset(held))
        if saved and turn % 5 == 4:
            assert_restores(tmp_path, saved, touched, tools)


def assert_restores(folder: Path, saved: tuple[str, Names], touched: set[int], tools: Any) -> None:
    """Restore beside the store, with a copy of its keys: restoring ends what came after."""
    name, (live, held) = saved
    aside = folder / "aside"
    shutil.copytree(folder / "keys", aside / "keys")
    place = (aside / "store", aside / "keys", tools.Embedder())
    with Store.restore(folder / "backups" / name, *place) as restored:
        found = numbers(restored) | {int(n.removeprefix("doc-")) for n in restored.held()}
        assert (live | held) - touched <= found <= live | held
        restored.verify()
    shutil.rmtree(aside)
