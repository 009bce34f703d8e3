"""What stands where in a workspace, as plain values for people and scripts."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from llm_unlearn.opened import Opened
from llm_unlearn.takedown.journal import Journal


@dataclass(frozen=True)
class ShardStatus:
    """One shard: documents it is asked to know, slices asked for, slices with a clean checkpoint.

    With several orders of slices these are of the one that serves; `missing` counts all that are to be
    trained.
    """

    shard: int
    documents: int
    slices: int
    clean: int
    dropped: bool = False
    missing: int = 0

    @property
    def state(self) -> str:
        """`empty`, `clean`, `rolled back` (some slices serve), `untrained` (none does) or `dropped`.

        With several orders of slices also `clean, spare orders missing`: the one that serves is whole.
        """
        if self.dropped:
            return "dropped"
        if not self.slices:
            return "empty"
        if self.clean == self.slices:
            return "clean, spare orders missing" if self.missing else "clean"
        return "rolled back" if self.clean else "untrained"


@dataclass(frozen=True)
class Status:
    """A workspace as it stands.

    Attributes:
        counts: documents by fate (live ones) or by state (fenced, held).
        generation: the open generation; closed ones are below it.
        waiting: documents of the open generation that the next `train` will take in.
        takedowns: accepted takedowns as (number, state, receipt file or None).
    """

    path: str
    keys: str
    model: str
    embedder: str
    counts: dict[str, int]
    generation: int
    waiting: int
    trained: bool
    shards: list[ShardStatus]
    takedowns: list[tuple[int, str, str | None]]

    def as_json(self) -> dict[str, object]:
        """The same as plain JSON values, with each shard's state spelled out."""
        plain = asdict(self)
        plain["shards"] = [{**asdict(s), "state": s.state} for s in self.shards]
        return plain


def status(opened: Opened) -> Status:
    """Look at everything without loading a model or changing anything."""
    generation = opened.ledger.generation
    dropped = opened.dropped()
    corpus = opened.vault.records(fate="corpus")
    return Status(
        path=str(opened.path),
        keys=str(opened.keyring.directory),
        model=opened.config.model,
        embedder=opened.config.embedder,
        counts=opened.ledger.counts(),
        generation=generation,
        waiting=sum(record.generation >= generation for record in corpus),
        trained=opened.database.value("recipe") is not None,
        shards=[
            ShardStatus(
                state.shard,
                sum(len(part.records) for part in state.wanted),
                len(state.wanted),
                state.clean,
                state.shard in dropped,
                len(state.missing),
            )
            for state in opened.states()
        ],
        takedowns=[
            (row.number, row.state, row.receipt)
            for row in Journal(opened.database, opened.keyring).filed()
        ],
    )
