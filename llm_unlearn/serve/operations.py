"""Health, status and metrics."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from llm_unlearn.serve.access import Key
from llm_unlearn.serve.backend import Backend, backend, may

router = APIRouter()
Overseer = Annotated[Key, Depends(may("operator", "auditor"))]


class Health(BaseModel):
    """Whether the server answers."""

    status: Literal["ok"] = "ok"


class Shard(BaseModel):
    """One shard: what it is asked to know, and what of it is clean."""

    shard: int
    documents: int
    slices: int
    clean: int
    missing: int
    dropped: bool
    state: str


class Standing(BaseModel):
    """A workspace as it stands, without its paths."""

    model: str
    embedder: str
    counts: dict[str, int] = Field(description="documents by fate, or by state if not live")
    generation: int
    waiting: int
    trained: bool
    shards: list[Shard]
    takedowns: dict[str, int] = Field(description="takedowns by state")
    running: bool = Field(description="whether takedowns are being carried out by this server")
    ended: int | None = Field(
        None, description="exit code of the last such process of this server; 0 when it did all"
    )


@router.get("/health")
async def health() -> Health:
    """Says that the process answers; needs no key and tells nothing else."""
    return Health()


@router.get("/v1/status")
async def status(request: Request, _: Overseer) -> Standing:
    """Documents by fate, shards and slices, takedowns by state."""
    server = backend(request)
    return await server.apart(_standing, server)


def _standing(server: Backend) -> Standing:
    found: dict[str, Any] = server.reader.status().as_json()
    states: dict[str, int] = {}
    for _, state, _receipt in found["takedowns"]:
        states[state] = states.get(state, 0) + 1
    names = ("model", "embedder", "counts", "generation", "waiting", "trained", "shards")
    plain = {name: found[name] for name in names}
    # a local model is told by its last name: a path is nobody's business
    for name in ("model", "embedder"):
        plain[name] = str(plain[name]).rsplit("/", 1)[-1]
    return Standing(**plain, takedowns=states, running=server.runs.running, ended=server.runs.code)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format"}},
)
async def metrics(request: Request, _: Overseer) -> Response:
    """Counts for Prometheus."""
    server = backend(request)
    standing = await server.apart(_standing, server)
    told, (waiting, decoding) = server.metrics, server.engine.load
    told.waiting.set(waiting)
    told.decoding.set(decoding)
    told.documents.clear()
    for what, count in standing.counts.items():
        told.documents.labels(what).set(count)
    told.takedowns.clear()
    for state, count in standing.takedowns.items():
        told.takedowns.labels(state).set(count)
    return Response(told.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
