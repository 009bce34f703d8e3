"""Probes over HTTP: what can still be pulled out about a live subject, as `llm-unlearn probe` tells it.

    POST /v1/probes       begun, in a process of its own: 202
    GET  /v1/probes/N     running, done or failed, with the report

Guarantees: reports are kept in memory alone, the last `KEPT` of them. A report quotes
a text only while its document is live with the same words and the key's groups may see it, looked up at
each request, and names it and its subject only then: what was taken down is in no report that is given
out afterwards. An auditor gets values and verdicts, and neither texts nor ids nor the subject.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi import Path as PathField
from pydantic import BaseModel, Field

from llm_unlearn.documents import Document, Name
from llm_unlearn.errors import AccessDenied, NotFound
from llm_unlearn.eval.cards import Report
from llm_unlearn.probing_weights import text_of
from llm_unlearn.serve.access import Key
from llm_unlearn.serve.backend import Backend, backend, may
from llm_unlearn.serve.events import looked
from llm_unlearn.serve.probe import Order
from llm_unlearn.serve.probing import KEPT, Probe, State

router = APIRouter()
Operator = Annotated[Key, Depends(may("operator"))]
Overseer = Annotated[Key, Depends(may("operator", "auditor"))]


class Wanted(BaseModel):
    """About whom, and texts like theirs that were never taken in, for membership."""

    subject: Name
    controls: Annotated[list[Document], Field(max_length=1000)] = []


class Row(BaseModel):
    """Where a probe stands, and its report."""

    number: int
    state: State
    began: str
    ended: str | None = None
    problem: str | None = Field(None, description="why it failed; not told to an auditor")
    report: dict[str, Any] | None = Field(
        None, description="as `llm-unlearn probe --json` gives it, with its schema_version"
    )


@router.post("/v1/probes", status_code=202)
async def begin(request: Request, body: Wanted, key: Operator) -> Row:
    """Ask for a live subject's texts in every way known here, in a process of its own."""
    server = backend(request)
    if not key.groups:
        raise AccessDenied("This API key has no groups, so nothing may be seen.")
    opened = server.reader.opened

    def live() -> bool:
        mark = opened.vault.mark("subject", body.subject)
        return any(r.subject == mark for r in opened.vault.records(states=("live",)))

    if not await server.apart(live):
        raise NotFound(f"Nothing of the subject {body.subject!r} is live here.")
    order = Order(
        path=server.path,
        keys=server.keys,
        subject=body.subject,
        groups=sorted(key.groups),
        controls=body.controls,
    )
    return Row(**_state(await server.probes.start(order)))


@router.get("/v1/probes/{number}", response_model=Row)
async def show(
    request: Request, number: Annotated[int, PathField(ge=1, lt=2**31)], key: Overseer
) -> Response:
    """Where one probe stands; its report when it is done."""
    server = backend(request)
    probe = server.probes.find(number)
    if probe is None:
        raise NotFound(f"There is no probe {number} here.", f"The last {KEPT} are kept.")
    return looked(server.engine.commits, lambda: _shown(server, probe, key))


async def _shown(server: Backend, probe: Probe, key: Key) -> Row:
    row = Row(**_state(probe))
    report = probe.report
    if report is not None:  # a local model is told by its last name: a path is nobody's business
        report = report.model_copy(update={"model": report.model.rsplit("/", 1)[-1]})
    if key.role == "auditor":
        told = None if report is None else _values(report)
        return row.model_copy(update={"report": told})
    if report is not None:
        seen = await server.apart(_seen, server, report, key)
        row = row.model_copy(update={"report": seen.model_dump(mode="json")})
    return row.model_copy(update={"problem": probe.problem})


def _state(probe: Probe) -> dict[str, Any]:
    return {
        "number": probe.number,
        "state": probe.state,
        "began": probe.began,
        "ended": probe.ended,
    }


def _values(report: Report) -> dict[str, Any]:
    """A report without texts and whose they are: they have numbers."""
    numbers = tuple(str(place) for place in range(1, len(report.texts) + 1))
    bare = report.model_copy(update={"subject": "", "texts": numbers, "passages": ()})
    return bare.model_dump(mode="json")


def _seen(server: Backend, report: Report, key: Key) -> Report:
    """A report with the ids and passages that this key may read now; the others have numbers."""
    opened, groups = server.reader.opened, frozenset(key.groups)
    words: dict[str, str] = {}
    if groups:
        stores = (opened.store, opened.router)
        words = {d.id: text_of(d) for one in stores for d in one.get(report.texts, groups=groups)}
    kept = tuple(passage for passage in report.passages if words.get(passage.id) == passage.text)
    named = tuple(n if n in words else str(i) for i, n in enumerate(report.texts, start=1))
    subject = report.subject if words else ""
    return report.model_copy(update={"passages": kept, "texts": named, "subject": subject})
