"""The journal of takedowns: what was accepted, how far it is, and what resuming needs to know.

Guarantees: acceptance is one durable transaction (the case, the fence, the tombstones); a case's
content (request, handles, times) is sealed under a key of its own that is destroyed when its
receipt is written; what stays is a keyed mark of the request's id, the state, and the receipt's name.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from llm_unlearn.retrieval.crypto import keyed_mark, seal, unseal
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.takedown.receipt import Before, Checkpoint, Closure, Copy, Probe, Shard

State = Literal["fenced", "deleted", "disposed", "retrained", "receipted"]
After: TypeAlias = Literal["retrain", "rollback", "drop"]
"""What follows the disposal: the shard is trained again; its last clean checkpoint serves until the next
`train`; or its adapter is retired."""
STATES: tuple[State, ...] = ("fenced", "deleted", "disposed", "retrained", "receipted")

_TABLE = """
CREATE TABLE IF NOT EXISTS takedowns (
  mark BLOB PRIMARY KEY, number INTEGER NOT NULL UNIQUE, state TEXT NOT NULL,
  slot INTEGER, sealed BLOB, receipt TEXT
) WITHOUT ROWID
"""


class Case(BaseModel):
    """What is known of one accepted takedown until its receipt is written.

    `reference` is what the claimant is given: it opens the receipt's commitments.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["dmca", "gdpr", "internal"]
    request_id: str
    selectors: dict[str, str | list[str] | None]
    salt: str  # hex
    handles: list[str]  # hex
    received: str
    acknowledged: str
    closure: Closure
    store_count: int
    corpus_count: int
    held: int = 0
    before: Before
    after: After = "retrain"
    touched: list[int] = []  # shards that the documents were in
    retired: list[str] = []  # clean checkpoints that went with a dropped shard
    copies: list[Copy] = []
    served: dict[int, str]  # shard -> name of the checkpoint that served before
    shards: list[Shard] = []
    checkpoints: list[Checkpoint] = []
    probes: list[Probe] | None = None
    receipt: str | None = None  # the finished receipt, fixed before its file is written


class Filed(BaseModel):
    """One row of the journal."""

    number: int
    state: State
    receipt: str | None
    mark: bytes
    slot: int | None


class Journal:
    """The journal of one workspace."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._database = database
        self._keyring = keyring

    @staticmethod
    def create_table(database: Database) -> None:
        """Make the table in a new workspace."""
        with database.transaction() as connection:
            connection.execute(_TABLE)

    def mark(self, request_id: str) -> bytes:
        """The keyed mark under which a request is known after its case is gone."""
        return keyed_mark(self._keyring.secret("tombstones"), "request", request_id)

    def filed(self) -> list[Filed]:
        """All takedowns in the order of acceptance."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT number, state, receipt, mark, slot FROM takedowns ORDER BY number"
            ).fetchall()
        return [
            Filed(number=r[0], state=r[1], receipt=r[2], mark=bytes(r[3]), slot=r[4]) for r in rows
        ]

    def find(self, request_id: str) -> Filed | None:
        """The takedown of a request, if it was ever accepted."""
        mark = self.mark(request_id)
        return next((row for row in self.filed() if row.mark == mark), None)

    def pending(self) -> list[Filed]:
        """Accepted takedowns that have no receipt yet, oldest first."""
        return [row for row in self.filed() if row.state != "receipted"]

    def open_case(self, case: Case) -> Filed:
        """File a new case as fenced. Call inside the transaction that also fences."""
        ((slot, key),) = self._keyring.new_keys(1)
        mark = self.mark(case.request_id)
        number = len(self.filed()) + 1
        with self._database.transaction() as connection:
            connection.execute("INSERT INTO slots (slot) VALUES (?)", (slot,))
            connection.execute(
                "INSERT INTO takedowns VALUES (?, ?, 'fenced', ?, ?, NULL)",
                (mark, number, slot, seal(key, case.model_dump_json().encode(), mark)),
            )
        return Filed(number=number, state="fenced", receipt=None, mark=mark, slot=slot)

    def case(self, filed: Filed) -> Case:
        """The content of a pending case.

        Raises:
            Damaged: it cannot be decrypted.
        """
        if filed.slot is None:
            raise AssertionError("a receipted takedown has no case any more")
        with self._database.reading() as connection:
            (sealed,) = connection.execute(
                "SELECT sealed FROM takedowns WHERE mark = ?", (filed.mark,)
            ).fetchone()
        plain = unseal(self._keyring.key(filed.slot), bytes(sealed), filed.mark)
        return Case.model_validate_json(plain)

    def advance(self, filed: Filed, state: State, case: Case) -> Filed:
        """Record, durably, that a step is done."""
        if filed.slot is None:
            raise AssertionError("a receipted takedown cannot advance")
        sealed = seal(self._keyring.key(filed.slot), case.model_dump_json().encode(), filed.mark)
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE takedowns SET state = ?, sealed = ? WHERE mark = ?",
                (state, sealed, filed.mark),
            )
        return filed.model_copy(update={"state": state})

    def close(self, filed: Filed, receipt: str) -> None:
        """Record the receipt's name; then destroy the case's key; then remove what it sealed."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE takedowns SET state = 'receipted', receipt = ? WHERE mark = ?",
                (receipt, filed.mark),
            )
        self._destroy(filed)

    def sweep(self) -> None:
        """For the writer on open: finish closings that were killed after the receipt was named."""
        for filed in self.filed():
            if filed.state == "receipted" and filed.slot is not None:
                self._destroy(filed)

    def _destroy(self, filed: Filed) -> None:
        if filed.slot is None:
            return
        self._keyring.destroy([filed.slot])
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE takedowns SET sealed = NULL, slot = NULL WHERE mark = ?", (filed.mark,)
            )
            connection.execute("DELETE FROM slots WHERE slot = ?", (filed.slot,))
        self._database.erase_journal()
