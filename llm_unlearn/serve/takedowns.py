"""Takedowns over HTTP: submitted, planned, approved, carried out, with the receipt at the end.

    POST /v1/takedowns                 fenced, and only then acknowledged
    GET  /v1/takedowns/N/plan          what would go, with the passages that match
    POST /v1/takedowns/N/approve       its copies are fenced too
    POST /v1/takedowns/run             carried out, in a process of its own: 202
    GET  /v1/takedowns/N               received, approved, fenced, deleted, disposed, retrained, receipted
    GET  /v1/takedowns/N/receipt       verified, with the signed envelope

Guarantees: an acknowledgement is sent when the fence is durable and every answer under way has been
looked at since; copies are looked for right after it, and fenced. Retraining happens in a child process
(`llm-unlearn takedown run`), so that answers go on and a kill of either leaves the other; the journal is
what tells how far it is. An auditor sees states and receipts, never a request.

While a run trains, it holds the writer's lock: other requests are answered 409 until
it is done, once they have waited three seconds.
"""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi import Path as PathField
from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from llm_unlearn.cli import planview
from llm_unlearn.documents import Name
from llm_unlearn.errors import InputError, KeyDestroyed
from llm_unlearn.serve.access import Key
from llm_unlearn.serve.backend import Backend, backend, may
from llm_unlearn.serve.events import looked
from llm_unlearn.serve.room import TooLate
from llm_unlearn.takedown.desk import Listed
from llm_unlearn.takedown.intake import Decision
from llm_unlearn.takedown.plan import Plan
from llm_unlearn.takedown.request import Claimant, Statements
from llm_unlearn.takedown.request import Request as Demand

router = APIRouter()
Operator = Annotated[Key, Depends(may("operator"))]
Overseer = Annotated[Key, Depends(may("operator", "auditor"))]
Number = Annotated[int, PathField(ge=1, lt=2**31)]
_SHOWN = 2000


class Submission(BaseModel):
    """A demand. Only what it names is needed; the rest is filled in for the operator's own."""

    id: Name | None = Field(None, description="the sender's number; done once per id and sender")
    kind: Literal["dmca", "gdpr", "internal"] = "internal"
    basis: Name = "operator's decision"
    claimant: Claimant | None = None
    work: Annotated[str, Field(max_length=4096)] = ""
    subject: Name | None = None
    ids: Annotated[list[Name], Field(max_length=10_000)] = []
    source: Name | None = None
    text: Annotated[str, Field(min_length=1, max_length=1 << 19)] | None = Field(
        None, description="the text itself or a passage of it; its copies go"
    )
    names: Annotated[list[Name], Field(max_length=100)] = []
    statements: Statements = Statements()
    received: AwareDatetime | None = None
    due: date | None = None


class Acknowledgement(BaseModel):
    """No answer draws on what the request names."""

    number: int
    id: str
    state: Literal["received", "approved"] = "received"
    acknowledged: str
    fenced: int
    due: str | None
    reference: str = Field(
        description="for the claimant alone: opens what the receipt keeps closed"
    )


class Row(BaseModel):
    """Where a takedown stands; an auditor is not told who asked."""

    number: int
    state: str
    kind: str | None = None
    id: str | None = None
    sender: str | None = None
    received: str | None = None
    due: str | None = None
    documents: int | None = None
    reason: str | None = None
    receipt: str | None = None


class Rows(BaseModel):
    """All takedowns, in the order of submission."""

    takedowns: list[Row]


class Match(BaseModel):
    """A passage that request and document share."""

    document: str
    kind: str
    score: float
    request_text: str
    document_text: str


class Planned(BaseModel):
    """What carrying it out would do."""

    plan: dict[str, Any]
    matches: list[Match] = Field(
        description="passages shared, only where the key's groups may see them"
    )


class Approval(BaseModel):
    """What was decided."""

    decline: Annotated[list[Name], Field(max_length=10_000)] = []
    reason: Annotated[str, Field(max_length=4096)] | None = None
    include_flagged: bool = False
    keep_flagged: bool = False
    keep: Annotated[list[Name], Field(max_length=10_000)] = []
    after: Literal["retrain", "rollback", "drop"] = "retrain"


class Refusal(BaseModel):
    """Why."""

    reason: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"\S")]


class Run(BaseModel):
    """Which to carry out; all that are approved unless some are named."""

    numbers: Annotated[list[Annotated[int, Field(ge=1, lt=2**31)]], Field(max_length=10_000)] = []
    probe: bool = False


class Started(BaseModel):
    """It goes on by itself; ask for the states."""

    started: bool = True


class Receipt(BaseModel):
    """A receipt that was verified just now against the log and the public key."""

    number: int
    head: str
    checks: list[dict[str, str]]
    receipt: dict[str, Any]
    envelope: dict[str, Any] = Field(description="the file as it was signed, for others to verify")


def _row(row: Listed, key: Key) -> Row:
    told = Row(
        number=row.number,
        state=row.state,
        kind=row.kind,
        received=row.received,
        due=row.due,
        documents=row.documents,
        receipt=row.receipt,
    )
    if key.role == "operator":
        told = told.model_copy(update={"id": row.id, "sender": row.sender, "reason": row.reason})
    return told


async def file_request(server: Backend, demand: Demand) -> Acknowledgement:
    """Submit, and wait until nothing that is under way draws on it."""
    told, _ = await server.write(server.writer.desk.submit, [demand], copies=False)
    if not told:
        raise InputError(f"A request {demand.id!r} of this sender was submitted before.")
    settled = await server.apart(server.engine.settle, server.config.answer_seconds)
    server.look()  # the acknowledgement does not wait for the copies
    one = told[0]
    if not settled:
        raise TooLate(
            f"Takedown {one.number} (reference {one.reference}) is filed and fenced, but the answers "
            "under way were not all looked at yet.",
            "None gives words of it until then. Do not file it again.",
        )
    return Acknowledgement(
        number=one.number,
        id=one.id,
        acknowledged=one.acknowledged,
        fenced=one.fenced,
        due=one.due,
        reference=one.reference,
    )


@router.post("/v1/takedowns", status_code=201)
async def submit(request: Request, body: Submission, _: Operator) -> Acknowledgement:
    """File a request: what it names is fenced at once, and only then acknowledged."""
    given = {k: v for k, v in body.model_dump(mode="json").items() if v not in (None, [], "")}
    plain = Demand.internal(subject="x").model_dump(mode="json")
    defaults = {"id": plain["id"], "claimant": plain["claimant"]}
    received = datetime.now(UTC).replace(microsecond=0).isoformat()
    try:
        demand = Demand.model_validate({**defaults, "received": received, **given})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{place + ': ' if place else ''}{first['msg']}.") from None
    return await file_request(backend(request), demand)


@router.get("/v1/takedowns")
async def rows(request: Request, key: Overseer) -> Rows:
    """Every takedown: where it stands, and when it is due."""
    server = backend(request)
    found = await server.apart(server.reader.desk.all)
    return Rows(takedowns=[_row(row, key) for row in found])


@router.post("/v1/takedowns/run", status_code=202)
async def run(request: Request, body: Run, _: Operator) -> Started:
    """Carry approved requests out, in a process of its own; every shard is retrained once."""
    server = backend(request)
    listed = {row.number: row.state for row in await server.apart(server.reader.desk.all)}
    wanted = body.numbers or [n for n, state in listed.items() if state == "approved"]
    for number in wanted:
        if listed.get(number) != "approved":
            raise InputError(
                f"Takedown {number} is {listed.get(number, 'not there')}, not approved."
            )
    if not wanted:
        raise InputError("No takedown is approved.", "Approve one first.")
    await server.runs.start(wanted, probe=body.probe)
    return Started()


@router.get("/v1/takedowns/{number}")
async def show(request: Request, number: Number, key: Overseer) -> Row:
    """Where one takedown stands."""
    server = backend(request)
    row, _ = await server.apart(server.reader.desk.show, str(number))
    return _row(row, key)


@router.get("/v1/takedowns/{number}/plan", response_model=Planned)
async def plan(
    request: Request, number: Number, key: Operator, include_flagged: bool = False
) -> Response:
    """What carrying it out would do: copies, cost, and the passages that match."""
    server = backend(request)
    desk = server.reader.desk
    made = await server.apart(desk.plan, str(number), include_flagged=include_flagged)

    def look() -> Planned:
        row, _ = desk.show(str(number))
        if row.state not in ("received", "approved"):
            raise InputError(f"Takedown {number} is {row.state}: there is nothing to plan.")
        return Planned(plan=planview.as_json(made), matches=_matches(server, made, key))

    return looked(server.engine.commits, lambda: server.apart(look))


def _matches(server: Backend, plan: Plan, key: Key) -> list[Match]:
    opened = server.reader.opened
    default = (opened.config.retrieval.default_group,)
    found = []
    for planned in (*plan.removed, *plan.flagged):
        match = planned.match
        if match is None:
            continue
        try:
            document = opened.document(planned.record)
        except KeyDestroyed:  # by a run that began since the plan
            continue
        if not set(document.acl or default) & set(key.groups):
            continue
        wanted = plan.texts[match.text] if match.text is not None else ""
        for passage in match.passages[:3] or ():
            found.append(
                Match(
                    document=planned.id,
                    kind=planned.kind,
                    score=planned.score,
                    request_text=wanted[slice(*passage.a)][:_SHOWN],
                    document_text=document.content[slice(*passage.b)][:_SHOWN],
                )
            )
    return found


@router.post("/v1/takedowns/{number}/approve")
async def approve(request: Request, number: Number, body: Approval, key: Operator) -> Row:
    """Accept it, whole or in part; its copies are fenced too. `run` carries it out."""
    server = backend(request)
    decision = Decision(
        tuple(body.decline), body.reason, body.keep_flagged, tuple(body.keep), body.after
    )

    def decide() -> Listed:
        row, _ = server.writer.desk.approve(
            str(number), decision=decision, include_flagged=body.include_flagged
        )
        return row

    row = await server.write(decide)
    if not await server.apart(server.engine.settle, server.config.answer_seconds):
        raise TooLate(
            f"Takedown {number} is {row.state} and its copies are fenced, but the answers under way "
            "were not all looked at yet.",
            "None gives words of them until then.",
        )
    return _row(row, key)


@router.post("/v1/takedowns/{number}/refuse")
async def refuse(request: Request, number: Number, body: Refusal, key: Operator) -> Row:
    """Refuse it, with the reason; what it fenced answers again."""
    server = backend(request)
    return _row(await server.write(server.writer.desk.refuse, str(number), body.reason), key)


@router.post("/v1/takedowns/{number}/withdraw")
async def withdraw(request: Request, number: Number, key: Operator) -> Row:
    """End it for a sender who takes it back; the request is destroyed."""
    server = backend(request)
    done = await server.write(server.writer.desk.withdraw, str(number))
    return Row(number=done, state="withdrawn")


@router.get("/v1/takedowns/{number}/receipt")
async def receipt(request: Request, number: Number, _: Overseer) -> Receipt:
    """The receipt, verified, with the signed envelope."""
    server = backend(request)

    def look() -> Receipt:
        path = server.reader.desk.receipt(str(number))
        held = server.reader.verify(path)
        return Receipt(
            number=number,
            head=str(held.head),
            checks=[{"check": line.check, "detail": line.detail} for line in held.lines],
            receipt=held.receipt.model_dump(mode="json"),
            envelope=json.loads(path.read_bytes()),
        )

    return await server.apart(look)
