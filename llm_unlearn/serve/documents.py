"""Documents over HTTP: added, listed, read, deleted, searched.

Guarantees: text goes only to keys whose groups may see it, and only while it is live (`events`); a list
tells ids, subjects and fates, and only operators get it. Deleting a document is a takedown of the
operator's own: fenced when the answer comes, approved, and carried out by `run`.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from llm_unlearn.documents import Document
from llm_unlearn.errors import AccessDenied, InputError, NotFound
from llm_unlearn.ledger import Entry
from llm_unlearn.serve.access import Key
from llm_unlearn.serve.backend import Backend, backend, may
from llm_unlearn.serve.citing import citations
from llm_unlearn.serve.events import looked
from llm_unlearn.serve.takedowns import Acknowledgement, file_request
from llm_unlearn.serve.wire import Citation
from llm_unlearn.takedown.request import Request as Demand

router = APIRouter()
Operator = Annotated[Key, Depends(may("operator"))]
Asker = Annotated[Key, Depends(may("reader", "operator"))]


class Additions(BaseModel):
    """Documents to take in, all of them or none."""

    documents: Annotated[list[Document], Field(min_length=1, max_length=1000)]


class Added(BaseModel):
    """Where one went and why."""

    id: str
    subject: str
    fate: Literal["store", "corpus", "refused"]
    rule: str
    reason: str
    known: bool = Field(description="it was there already, with the same words")


class AddedList(BaseModel):
    """Where each went."""

    documents: list[Added]


class Listed(BaseModel):
    """What the ledger knows of a document."""

    id: str
    subject: str
    fate: str
    state: str
    generation: int
    rule: str
    reason: str
    shard: int | None = None


class ListedPage(BaseModel):
    """Some documents; `next` asks for those after them."""

    documents: list[Listed]
    next: str | None = None


class Whole(Listed):
    """A document with its content."""

    content: str
    source: str
    license: str
    tags: list[str]
    acl: list[str]


class Search(BaseModel):
    """What to look for."""

    query: Annotated[str, Field(min_length=1, max_length=1 << 14, pattern=r"\S")]
    k: Annotated[int, Field(ge=1, le=100)] = 5
    mode: Literal["dense", "lexical", "hybrid"] = "dense"


class Found(BaseModel):
    """Passages, best first."""

    passages: list[Citation]


@router.post("/v1/documents", status_code=201)
async def add(request: Request, body: Additions, _: Operator) -> AddedList:
    """Take documents in: each to the store, to the corpus, or refused, by the workspace's rules."""
    server = backend(request)
    report = await server.write(server.writer.ingest, body.documents)
    placed = [
        Added(
            id=p.id,
            subject=p.subject,
            fate=p.decision.fate,
            rule=p.decision.rule,
            reason=p.decision.reason,
            known=p.known,
        )
        for p in report.placed
    ]
    return AddedList(documents=placed)


@router.get("/v1/documents")
async def list_documents(
    request: Request,
    _: Operator,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[
        str | None, Query(max_length=128, description="`next` of the page before")
    ] = None,
) -> ListedPage:
    """Every document and where it went, in an order that tells nothing."""
    server = backend(request)
    return await server.apart(_page, server, limit, after)


def _page(server: Backend, limit: int, after: str | None) -> ListedPage:
    opened = server.reader.opened
    start = b""
    if after is not None:
        try:
            start = base64.urlsafe_b64decode(after.encode())
        except (ValueError, binascii.Error):
            raise InputError("`after` is not the `next` of a page.") from None
    records = sorted(
        (r for r in opened.vault.records(states=("live", "fenced", "held")) if r.handle > start),
        key=lambda record: record.handle,
    )
    page = records[:limit]
    shown = [_listed(server, opened.ledger.entry(record)) for record in page]
    more = len(records) > limit
    following = base64.urlsafe_b64encode(page[-1].handle).decode() if more else None
    return ListedPage(documents=shown, next=following)


def _listed(server: Backend, entry: Entry) -> Listed:
    opened = server.reader.opened
    shard = None
    if entry.fate == "corpus":
        record = opened.vault.find(opened.vault.mark("id", entry.id))
        shard = None if record is None else opened.shard_of(record)
    return Listed(**dataclasses.asdict(entry), shard=shard)


@router.get("/v1/documents/{id:path}", response_model=Whole)
async def get(request: Request, id: str, key: Asker) -> Response:
    """A live document with its text, if the key's groups may see it."""
    server = backend(request)
    return looked(server.engine.commits, lambda: server.searches.do(_whole, server, id, key))


def _whole(server: Backend, id: str, key: Key) -> Whole:
    opened = server.reader.opened
    groups = frozenset(key.groups)
    if not groups:
        raise AccessDenied("This API key has no groups, so no text may be seen.")
    for store in (opened.store, opened.router):
        for document in store.get([id], groups=groups):
            listed = _listed(server, opened.ledger.find(id))
            return Whole(
                **listed.model_dump(),
                content=document.content,
                source=document.source,
                license=document.license,
                tags=list(document.tags),
                acl=list(document.acl),
            )
    # the same words whether there is none or none for this caller
    raise NotFound("There is no such document here for this key.")


@router.delete("/v1/documents/{id:path}", status_code=202)
async def delete(request: Request, id: str, _: Operator) -> Acknowledgement:
    """Take a document down: no answer draws on it from now on, and the next run destroys it."""
    server = backend(request)
    try:
        demand = Demand.internal(ids=[id], reason="deleted over HTTP")
    except InputError:
        raise NotFound("There is no such document here for this key.") from None
    told = await file_request(server, demand)
    await server.write(server.writer.desk.approve, str(told.number))
    return told.model_copy(update={"state": "approved"})


@router.post("/v1/search", response_model=Found)
async def search(request: Request, body: Search, key: Asker) -> Response:
    """The passages nearest to a question, of what the key's groups may see."""
    server = backend(request)
    if any("\ud800" <= character <= "\udfff" for character in body.query):
        raise InputError("The query is not valid UTF-8.")

    def look() -> Found:
        store = server.reader.opened.store
        hits = store.search(body.query, groups=frozenset(key.groups), k=body.k, mode=body.mode)
        return Found(passages=citations(hits))

    return looked(server.engine.commits, lambda: server.searches.do(look))
