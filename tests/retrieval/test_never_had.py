"""After any sequence of operations the store equals one that never had the deleted documents."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from llm_unlearn.documents import Document
from llm_unlearn.retrieval import Store, StoreSettings

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
QUERIES = ("the heron by the harbour", "a kite", "Nothing.")


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

    @rule(name=IDS)
    def delete(self, name: str) -> None:
        if name not in self.kept:
            assert self.store.delete(id=name) == (name in self.live)
            self.live.pop(name, None)

    @rule(subject=st.sampled_from(["alba", "brio"]))
    def delete_subject(self, subject: str) -> None:
        if not any(d.subject == subject for d in self.kept.values()):
            gone = [name for name, d in self.live.items() if d.subject == subject]
            assert self.store.delete(subject=subject) == len(gone)
            for name in gone:
                del self.live[name]

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
