"""Health, status and metrics."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from llm_unlearn.serve.access import Key
from llm_unlearn.serve.backend import backend, may

router = APIRouter()


class Health(BaseModel):
    """Whether the server answers."""

    status: Literal["ok"] = "ok"


@router.get("/health")
async def health() -> Health:
    """Says that the process answers; needs no key and tells nothing else."""
    return Health()


@router.get("/metrics", response_class=Response)
async def metrics(
    request: Request, _: Annotated[Key, Depends(may("operator", "auditor"))]
) -> Response:
    """Counts for Prometheus."""
    server = backend(request)
    waiting, decoding = server.engine.load
    server.metrics.waiting.set(waiting)
    server.metrics.decoding.set(decoding)
    text = await server.apart(server.metrics.text)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
