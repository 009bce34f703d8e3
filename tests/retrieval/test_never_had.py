"""After any sequence of operations the store equals one that never had the deleted documents."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from llm_unlearn.documents import Document
from llm_unlearn.retrieval import Keyring, Store, StoreSettings
from llm_unlearn.retrieval.backup import restore

IDS = st.sampled_from([f"id-{i}" for i in range(6)])
SUBJECTS = st.sampled_from(["", "alba", "brio"])
# Few texts, some of them equal in all but case: equal scores are the rule, not the exception.
TEXTS = st.sampled_from(
    [
        "The heron stood by the harbour. It did not move until the tide had turned at last.",
        "THE HERON stood by the harbour. It did not move until the tide had turned at last.",
        "A red kite circled over the valley, then another, then a third one from the north.",
        "Nothing.",
    ]
)
ACLS = st.sampled_from([(), ("few",), ("few", "staff")])
KILLED = 9
QUERIES = ("the heron by the harbour", "a kite", "Nothing.")


def killed_at(store: Store, moment: int, action: Callable[[], object]) -> None:
    """End this process, with nothing cleared up, at the given step of an action.

    Steps are SQL statements, and writes and syncs of the key files.
    """
    left = iter(range(moment, -1, -1))

    def count(*_: object) -> None:
        if next(left) == 0:
            os._exit(KILLED)

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            count()
            return real(*given)

        return call

    store.vault.database._connection.set_trace_callback(count)
    os.pwrite, os.fdatasync, os.fsync = map(counted, (os.pwrite, os.fdatasync, os.fsync))
    action()


class Machine(RuleBasedStateMachine):
    """A store beside a plain dictionary of what should be live or held in it."""

    tools: Any
    kind: Any

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.settings = StoreSettings(chunk_tokens=40, chunk_overlap=8, index=self.kind)
        self.store: Store = self.tools.open_store(
            self.folder / "one", create=True, settings=self.settings
        )
        self.live: dict[str, Document] = {}
        self.kept: dict[str, Document] = {}
        self.saved: tuple[Path, dict[str, Document], dict[str, Document]] | None = None
        self.touched: set[str] = set()  # since the backup
        self.unsure: set[str] = set()
        self.reader = self.read_only()
        self.backups = 0

    def read_only(self) -> Store:
        """Another user of the same files."""
        vault = self.tools.open_vault(self.folder / "one", readonly=True)
        return Store(vault, self.tools.Embedder(), self.settings)

    @rule(name=IDS, subject=SUBJECTS, text=TEXTS, acl=ACLS)
    def put(self, name: str, subject: str, text: str, acl: tuple[str, ...]) -> None:
        """Add, or update when it is there; a held one stays as it is."""
        document = Document(id=name, text=text, subject=subject, acl=acl)
        if name in self.kept:
            return
        if name in self.live:
            self.store.update(document)
        else:
            self.store.add([document])
        self.live[name] = document
        self.touched.add(name)

    @rule(name=IDS)
    def delete(self, name: str) -> None:
        if name not in self.kept:
            assert self.store.delete(id=name) == (name in self.live)
            self.live.pop(name, None)
            self.touched.add(name)

    @rule(subject=st.sampled_from(["alba", "brio"]))
    def delete_subject(self, subject: str) -> None:
        if not any(d.subject == subject for d in self.kept.values()):
            gone = [name for name, d in self.live.items() if d.subject == subject]
            assert self.store.delete(subject=subject) == len(gone)
            for name in gone:
                del self.live[name]
            self.touched.update(gone)

    @rule(name=IDS)
    def hold_or_release(self, name: str) -> None:
        if name in self.live:
            self.store.hold(id=name)
            self.kept[name] = self.live.pop(name)
        elif name in self.kept:
            self.store.release(id=name)
            self.live[name] = self.kept.pop(name)

    @rule()
    def reopen(self) -> None:
        self.tools.close_store(self.store)
        self.store = self.tools.open_store(self.folder / "one", settings=self.settings)

    @rule(
        name=IDS,
        text=TEXTS,
        what=st.sampled_from(["put", "delete", "subject", "hold", "rotate"]),
        moment=st.integers(0, 25),
    )
    def crash(self, name: str, text: str, what: str, moment: int) -> None:
        """A child is killed in the middle; what it did counts wholly or not at all."""
        if name in self.kept or (
            what == "subject" and any(d.subject == "alba" for d in self.kept.values())
        ):
            return
        document = Document(id=name, text=text, subject="alba")
        before = {**self.live, **self.kept}
        gone = [n for n, d in self.live.items() if d.subject == "alba"]
        self.tools.close_store(self.reader)  # SQLite's connections do not survive a fork
        self.tools.close_store(self.store)
        child = os.fork()
        if child == 0:
            try:
                store = self.tools.open_store(self.folder / "one", settings=self.settings)
                put = store.update if name in self.live else lambda one: store.add([one])
                actions: dict[str, Callable[[], object]] = {
                    "put": lambda: put(document),
                    "delete": lambda: store.delete(id=name),
                    "subject": lambda: store.delete(subject="alba"),
                    "hold": lambda: store.hold(id=name),
                    "rotate": store.vault.keyring.rotate,
                }
                killed_at(store, moment, actions[what])
                os._exit(0)  # it had fewer steps
            except BaseException:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, KILLED)
        self.store = self.tools.open_store(self.folder / "one", settings=self.settings)
        self.reader = self.read_only()
        fenced = self.store.vault.records(states=("fenced",))
        self.store.vault.delete([record.handle for record in fenced])  # as Store.open does
        now = self.store.get([name, *gone], groups=["staff", "few"])
        found = {d.id: d for d in now}
        if what == "put":
            assert found.get(name) in (document, self.live.get(name))
            if found.get(name) == document:
                self.live[name] = document
        elif what == "hold" and name in self.live and self.store.held() != sorted(self.kept):
            self.kept[name] = self.live.pop(name)
        elif what in ("delete", "subject"):
            named = [name] if what == "delete" else gone
            left = [n for n in named if n in found]
            assert left in ([], [n for n in named if n in self.live])
            for n in named:
                if n not in found:
                    self.live.pop(n, None)
        if status == 0:
            assert what != "put" or self.live[name] == document
            assert what != "delete" or name not in self.live
        after = {**self.live, **self.kept}
        self.touched |= {n for n, d in before.items() if after.get(n) != d}
        self.touched |= {n for n in after if n not in before}
        if what == "put" and self.live.get(name) == document:
            self.unsure.add(name)  # replaced by its equal, or not

    @rule()
    def back_up(self) -> None:
        path = self.folder / f"backup-{self.backups}"
        self.backups += 1
        self.store.backup(path)
        self.saved = (path, dict(self.live), dict(self.kept))
        self.touched, self.unsure = set(), set()

    @rule()
    def restore_it(self) -> None:
        """In place of what is there, with the current keys: replaced and deleted ones stay gone."""
        if self.saved is None:
            return
        path, live, kept = self.saved
        self.tools.close_store(self.reader)
        self.tools.close_store(self.store)
        for file in (self.folder / "one").glob("workspace.db*"):
            file.unlink()
        with closing(Keyring.open(self.folder / "one" / "keys")) as keyring:
            restore(path, self.folder / "one" / "workspace.db", keyring)
        self.store = self.tools.open_store(self.folder / "one", settings=self.settings)
        self.reader = self.read_only()
        found = {
            *(d.id for d in self.store.get(list(live), groups=["staff", "few"])),
            *self.store.held(),
        }
        # what was only fenced or held in between comes back as it was
        assert {*live, *kept} - self.touched - self.unsure <= found
        self.live = {name: d for name, d in live.items() if name in found}
        self.kept = {name: d for name, d in kept.items() if name in found}
        assert self.touched & found <= self.unsure
        self.saved = None

    @rule()
    def read(self) -> None:
        """A reader that was open all the time sees what the writer sees."""
        for groups in (["staff"], ["few"]):
            mine = self.store.search("the heron", groups=groups, k=9)
            assert self.reader.search("the heron", groups=groups, k=9) == mine

    @rule()
    def rotate(self) -> None:
        self.store.vault.keyring.rotate()

    @rule()
    def search(self) -> None:
        """Searching in between makes the index follow each change instead of loading at the end."""
        self.store.search("heron", groups=["staff"], mode="hybrid")

    @invariant()
    def knows_what_is_live(self) -> None:
        assert len(self.store.vault.records()) == len(self.live)
        assert self.store.held() == sorted(self.kept)

    def teardown(self) -> None:
        other: Store = self.tools.open_store(
            self.folder / "two", create=True, settings=self.settings
        )
        other.add(self.live[name] for name in sorted(self.live))
        try:
            assert self.store.canonical_bytes() == other.canonical_bytes()
            for query in QUERIES:
                for groups in (["staff"], ["few"], ["few", "staff"]):
                    for k, mode in ((1, "dense"), (3, "hybrid"), (50, "lexical"), (50, "dense")):
                        mine = self.store.search(query, groups=groups, k=k, mode=mode)
                        assert mine == other.search(query, groups=groups, k=k, mode=mode)
            self.store.verify()
            slots = {r.slot for r in self.store.vault.records(states=("live", "held"))}
            assert self.store.vault.keyring.live_slots() == slots
        finally:
            self.tools.close_store(self.reader)
            self.tools.close_store(self.store)
            self.tools.close_store(other)
            shutil.rmtree(self.folder)


@pytest.mark.parametrize("kind", ["signs", "flat", "flat16"])
def test_never_had(tools: Any, kind: str) -> None:
    machine = type("Bound", (Machine,), {"tools": tools, "kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=tools.soak(8),
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
