"""The journal of takedowns: what was asked, what was decided, how far it is, what resuming needs.

    received -> approved -> fenced -> deleted -> disposed -> retrained -> receipted -> restored
        \\__________\\______ refused, withdrawn

Guarantees: submission is one durable transaction (the case and the fence), and so is approval (the
decision, the fence over the copies, the tombstones); a case's content (the request with its passage,
names, contact and ids, handles, times, reasons) is sealed under a key of its own that is destroyed when
its receipt is written or the request is withdrawn; what stays is a keyed mark of sender and id, the
states it reached, in order, and the receipt's name. A request is known by its id *and* its sender: another
sender's request of the same id is another request. Each state reached is recorded in the transaction that
reaches it, so that whoever tells them to others misses none; that record outlives a request that is
discarded, by its number only, and no number is given twice.

`fenced` means approved and started: whoever writes next finishes it. `approved` waits for `run`, and
`received` for a decision; of both, what the request names and its copies answer nothing meanwhile.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict

from llm_unlearn.documents import normalise
from llm_unlearn.errors import InputError, KeyDestroyed, UnlearnError
from llm_unlearn.retrieval.crypto import keyed_mark, seal, unseal
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.takedown import reached
from llm_unlearn.takedown.receipt import Before, Checkpoint, Closure, Copy, Probe, Shard
from llm_unlearn.takedown.request import Request

State = Literal[
    "received",
    "approved",
    "fenced",
    "deleted",
    "disposed",
    "retrained",
    "receipted",
    "refused",
    "withdrawn",
    "restored",
]
After: TypeAlias = Literal["retrain", "rollback", "drop"]
"""What follows the disposal: the shard is trained again; its last clean checkpoint serves until the next
`train`; or its adapter is retired."""
STARTED: tuple[State, ...] = ("fenced", "deleted", "disposed", "retrained")
"""States of a takedown that whoever writes next carries on."""
ENDED: tuple[State, ...] = ("receipted", "withdrawn", "restored")
"""States of a takedown whose case is destroyed, or is being destroyed."""
UNDECIDED: tuple[State, ...] = ("received", "approved")
"""States in which nothing is destroyed yet."""
OPERATOR = "operator"
"""The sender of requests that the operator makes without a notice."""

_TABLE = """
CREATE TABLE IF NOT EXISTS takedowns (
  mark BLOB PRIMARY KEY, number INTEGER NOT NULL UNIQUE, state TEXT NOT NULL,
  slot INTEGER, sealed BLOB, receipt TEXT
) WITHOUT ROWID
"""


class Case(BaseModel):
    """What is known of one takedown until its receipt is written.

    Attributes:
        salt: opens the receipt's commitments, with the id; the claimant is given both (hex).
        handles: the documents that go (hex); before approval those that the fence holds.
        contents: what each approved one holds, as a keyed mark (hex): an id may come to name a new text.
        kept: those of an approved request that a legal hold keeps (hex).
        notes: what its receipt must add to what it does not prove.
        looked: copies were looked for since it came, and since anything was ingested.
        ahead: approved before it was planned: whoever writes next carries it out.
        include_flagged: what was approved ahead includes possible paraphrases.
        reason: why it was refused, or accepted in part, as the claimant is told.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["dmca", "gdpr", "internal"]
    request_id: str
    request: Request | None = None  # None in cases of version 0.1
    selectors: dict[str, str | list[str] | None]
    salt: str
    handles: list[str]
    contents: list[str] = []
    kept: list[str] = []
    notes: list[str] = []
    received: str
    acknowledged: str
    looked: bool = False
    ahead: bool = False
    include_flagged: bool = False
    reason: str | None = None
    closure: Closure | None = None
    store_count: int = 0
    corpus_count: int = 0
    held: int = 0
    before: Before | None = None
    after: After = "retrain"
    touched: list[int] = []  # shards that the documents were in
    retired: list[str] = []  # clean checkpoints that went with a dropped shard
    copies: list[Copy] = []
    served: dict[int, str] = {}  # shard -> name of the checkpoint that served before, "": not known
    served_inputs: dict[int, str] = {}  # shard -> what that one was trained on (hex)
    shards: list[Shard] = []
    checkpoints: list[Checkpoint] = []
    probes: list[Probe] | None = None
    together: int = 1
    receipt: str | None = None  # the finished receipt, fixed before its file is written

    @property
    def sender(self) -> str:
        """Whose request it is."""
        return self.request.claimant.contact if self.request else OPERATOR


class Filed(BaseModel):
    """One row of the journal."""

    number: int
    state: State
    receipt: str | None
    mark: bytes
    slot: int | None


class Reached(NamedTuple):
    """A state that a takedown reached.

    Attributes:
        event: names this one among all; random.
        receipt: the receipt's file name, from the state `receipted` on.
    """

    number: int
    state: str
    receipt: str | None
    event: str


class Journal:
    """The journal of one workspace."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._database = database
        self._keyring = keyring

    @staticmethod
    def create_table(database: Database) -> None:
        """Make the tables in a new workspace."""
        with database.transaction() as connection:
            connection.execute(_TABLE)
            connection.execute(reached.REACHED)
            connection.execute(reached.INDEX)

    def mark(self, request_id: str, sender: str = OPERATOR) -> bytes:
        """The keyed mark under which a sender's request is known after its case is gone."""
        value = f"{normalise(sender)}\0{request_id}"
        return keyed_mark(self._keyring.secret("tombstones"), "request", value)

    def filed(self) -> list[Filed]:
        """All takedowns in the order of submission."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT number, state, receipt, mark, slot FROM takedowns ORDER BY number"
            ).fetchall()
        return [
            Filed(number=r[0], state=r[1], receipt=r[2], mark=bytes(r[3]), slot=r[4]) for r in rows
        ]

    def reached(self, after: str | None = None) -> list[Reached]:
        """The states that takedowns reached, all together in the order in which they did.

        Of what happened under a version before 0.3 only each takedown's last state is known.

        Args:
            after: only those after the one with this `event`; all, where there is none.
        """
        with self._database.reading() as connection:
            if not reached.recorded(connection):
                rows = connection.execute(reached.LAST).fetchall()
                start = next((i for i, row in enumerate(rows, 1) if row[2] == after), 0)
                rows = rows[start:]
            else:
                rows = connection.execute(
                    "SELECT number, state, event FROM reached WHERE position > coalesce("
                    "(SELECT position FROM reached WHERE event = ?), 0) ORDER BY position",
                    (after,),
                ).fetchall()
            receipts = dict(
                connection.execute(
                    "SELECT number, receipt FROM takedowns WHERE receipt IS NOT NULL"
                ).fetchall()
                if rows
                else ()
            )
        return [
            Reached(
                n, state, receipts.get(n) if state in ("receipted", "restored") else None, event
            )
            for n, state, event in rows
        ]

    def find(self, request_id: str, sender: str = OPERATOR) -> Filed | None:
        """The takedown of a sender's request, if it was ever submitted.

        Journals of version 0.1 knew requests by their id alone; those rows are found as well.
        """
        earlier = keyed_mark(self._keyring.secret("tombstones"), "request", request_id)
        marks = (self.mark(request_id, sender), earlier)
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT number, state, receipt, mark, slot FROM takedowns WHERE mark IN (?, ?)",
                marks,
            ).fetchone()
        if row is None:
            return None
        return Filed(number=row[0], state=row[1], receipt=row[2], mark=bytes(row[3]), slot=row[4])

    def check_same(self, filed: Filed, request: Request) -> None:
        """Check that a request asks for what the one that is filed under its id asked for.

        Raises:
            InputError: it asks for something else, as far as that is still known: what was asked is
                destroyed with its case.
        """
        case = self.case_or_none(filed)
        if case and case.request is not None and case.request.asks() != request.asks():
            raise InputError(
                f"Another request with the id {request.id!r} is filed (takedown {filed.number}, "
                f"{filed.state}).",
                "Give this one an id of its own.",
            )

    def pending(self) -> list[Filed]:
        """Takedowns that whoever writes next carries on, oldest first."""
        return [
            row
            for row in self.filed()
            if row.state in STARTED or (row.state == "received" and self.case(row).ahead)
        ]

    def open_cases(self) -> list[tuple[Filed, Case]]:
        """Every takedown whose case is still there, with it."""
        cases = [(row, self.case_or_none(row)) for row in self.filed()]
        return [(row, case) for row, case in cases if case is not None]

    def open_case(self, case: Case, state: State = "received") -> Filed:
        """File a new case. Call inside the transaction that also fences.

        Raises:
            InputError: this sender's request of this id is filed already.
        """
        if self.find(case.request_id, case.sender) is not None:
            raise InputError(
                f"The request {case.request_id!r} is filed already.", "Give it an id of its own."
            )
        ((slot, key),) = self._keyring.new_keys(1)
        mark = self.mark(case.request_id, case.sender)
        with self._database.transaction() as connection:
            reached.open_record(connection)
            (last,) = connection.execute(reached.NUMBERS).fetchone()
            number = (last or 0) + 1
            reached.record(connection, number, state)
            connection.execute("INSERT INTO slots (slot) VALUES (?)", (slot,))
            connection.execute(
                "INSERT INTO takedowns VALUES (?, ?, ?, ?, ?, NULL)",
                (mark, number, state, slot, seal(key, case.model_dump_json().encode(), mark)),
            )
        return Filed(number=number, state=state, receipt=None, mark=mark, slot=slot)

    def case(self, filed: Filed) -> Case:
        """The content of a case that is still there.

        Raises:
            KeyDestroyed: it is not there any more.
            Damaged: it cannot be decrypted.
        """
        if filed.slot is None:
            raise AssertionError("this takedown has no case any more")
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT sealed FROM takedowns WHERE mark = ?", (filed.mark,)
            ).fetchone()
        sealed = None if row is None else row[0]
        if sealed is None:
            raise KeyDestroyed(f"The case of takedown {filed.number} was destroyed.")
        plain = unseal(self._keyring.key(filed.slot), bytes(sealed), filed.mark)
        return Case.model_validate_json(plain)

    def case_or_none(self, filed: Filed) -> Case | None:
        """The same for readers: None once it is destroyed, by another process just now as well.

        Raises:
            Damaged: it should be there, and cannot be decrypted.
        """
        if filed.slot is None:
            return None
        try:
            return self.case(filed)
        except UnlearnError:
            now = next((row for row in self.filed() if row.number == filed.number), None)
            if now is None or now.state in ENDED:
                return None
            raise

    def advance(self, filed: Filed, state: State, case: Case) -> Filed:
        """Record, durably, that a step is done."""
        if filed.slot is None:
            raise AssertionError("a takedown without a case cannot advance")
        sealed = seal(self._keyring.key(filed.slot), case.model_dump_json().encode(), filed.mark)
        with self._database.transaction() as connection:
            reached.record(connection, filed.number, state)
            connection.execute(
                "UPDATE takedowns SET state = ?, sealed = ? WHERE mark = ?",
                (state, sealed, filed.mark),
            )
        return filed.model_copy(update={"state": state})

    def close(self, filed: Filed, receipt: str) -> None:
        """Record the receipt's name; then destroy the case's key; then remove what it sealed."""
        with self._database.transaction() as connection:
            reached.record(connection, filed.number, "receipted")
            connection.execute(
                "UPDATE takedowns SET state = 'receipted', receipt = ? WHERE mark = ?",
                (receipt, filed.mark),
            )
        self._destroy(filed)

    def end(self, filed: Filed, state: Literal["withdrawn", "restored"]) -> None:
        """Record how it ended; the case, if there still is one, is destroyed once that is durable.

        Joins a transaction, so that what ends with it is one step with it.
        """
        with self._database.transaction() as connection:
            reached.record(connection, filed.number, state)
            connection.execute("UPDATE takedowns SET state = ? WHERE mark = ?", (state, filed.mark))
            self._database.after_commit(lambda: self._destroy(filed))

    def discard(self, filed: Filed) -> None:
        """Forget a request: nothing falls under it, or it was not meant. Joins a transaction, as `end`.

        What stays is that its number was received and withdrawn, for whoever was told of it.
        """
        with self._database.transaction() as connection:
            reached.record(connection, filed.number, "withdrawn")
            connection.execute("DELETE FROM takedowns WHERE mark = ?", (filed.mark,))
            # a key that no slot is known of is destroyed by the next sweep, if not here
            connection.execute("DELETE FROM slots WHERE slot = ?", (filed.slot,))
            self._database.after_commit(lambda: self._destroy(filed))

    def sweep(self) -> None:
        """For the writer on open: finish what was killed between a state and the end of its case."""
        for filed in self.filed():
            if filed.state in ENDED and filed.slot is not None:
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
