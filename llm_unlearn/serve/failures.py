"""Errors in OpenAI's shape, each of the tree with its status.

    {"error": {"message": "...", "type": "invalid_request_error", "param": null, "code": null}}

Guarantees: a message names what the caller sent or may know, never the text of a document; a defect is
told as a defect, without its words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from llm_unlearn.errors import (
    AccessDenied,
    Damaged,
    EnvironmentFailure,
    InputError,
    KeysMissing,
    NotFound,
    UnlearnError,
    WorkspaceError,
    WorkspaceLocked,
)
from llm_unlearn.serve.room import Busy, TooLate


class Unknown(AccessDenied):
    """No API key, or one that opens nothing."""


class TooMany(EnvironmentFailure):
    """More requests than one key, or all together, may make."""


class TooLarge(InputError):
    """A body that is longer than may be."""


class Slow(InputError):
    """A body that did not come in time."""


class Told(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Failure(BaseModel):
    """An error, as OpenAI's API tells it."""

    error: Told = Field(description="what went wrong")


@dataclass(frozen=True)
class _Kind:
    status: int
    type: str
    code: str | None = None
    retry: int | None = None


_KINDS: Final[tuple[tuple[type[UnlearnError], _Kind], ...]] = (
    (Unknown, _Kind(401, "authentication_error", "invalid_api_key")),
    (AccessDenied, _Kind(403, "permission_error", "access_denied")),
    (TooLarge, _Kind(413, "invalid_request_error", "body_too_large")),
    (Slow, _Kind(408, "timeout_error", "slow_client")),
    (InputError, _Kind(400, "invalid_request_error")),
    (NotFound, _Kind(404, "invalid_request_error", "not_found")),
    (WorkspaceLocked, _Kind(409, "conflict_error", "workspace_locked", 2)),
    (WorkspaceError, _Kind(409, "conflict_error", "workspace")),
    (TooMany, _Kind(429, "rate_limit_error", "rate_limit_exceeded", 1)),
    (Busy, _Kind(429, "rate_limit_error", "queue_full", 1)),
    (TooLate, _Kind(504, "timeout_error", "timeout")),
    (Damaged, _Kind(500, "server_error", "damaged")),
    (KeysMissing, _Kind(500, "server_error", "keys_missing")),
    (EnvironmentFailure, _Kind(503, "server_error", "unavailable", 5)),
)
DOCUMENTED: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": Failure, "description": what}
    for status, what in (
        (400, "what was sent cannot be used"),
        (401, "no API key, or one that opens nothing"),
        (403, "this key may not"),
        (404, "not there"),
        (408, "the body did not come in time"),
        (409, "the workspace is being written to, or in another state than this needs"),
        (413, "the body is too large"),
        (429, "too many requests, or the queue is full"),
        (500, "a defect, or damaged files"),
        (503, "the machine cannot now"),
        (504, "it took too long"),
    )
}


def kind_of(error: UnlearnError) -> tuple[int, Failure, dict[str, str]]:
    """Status, body and headers of an error."""
    kind = next((k for c, k in _KINDS if isinstance(error, c)), _Kind(500, "server_error"))
    headers = {} if kind.retry is None else {"retry-after": str(kind.retry)}
    if kind.status == 401:
        headers["www-authenticate"] = "Bearer"
    return (
        kind.status,
        Failure(error=Told(message=str(error), type=kind.type, code=kind.code)),
        headers,
    )


def answer(error: UnlearnError) -> JSONResponse:
    """The response that tells an error."""
    status, body, headers = kind_of(error)
    return JSONResponse(body.model_dump(), status, headers)


def install(app: FastAPI) -> None:
    """Have an application tell all its errors in this shape."""

    async def ours(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, UnlearnError)
        return answer(error)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]  # its `input` quotes what was sent: left out
        place = ".".join(
            str(part) for part in first["loc"] if part not in ("body", "query", "path")
        )
        told = Told(
            message=f"{place or 'The body'}: {first['msg']}",
            type="invalid_request_error",
            param=place or None,
        )
        return JSONResponse(Failure(error=told).model_dump(), 400)

    async def plain(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        told = Told(message=str(error.detail), type="invalid_request_error")
        return JSONResponse(Failure(error=told).model_dump(), error.status_code, error.headers)

    async def defect(_: Request, error: Exception) -> JSONResponse:
        told = Told(
            message=f"This is a defect of the server: {type(error).__name__}. Please report it.",
            type="server_error",
            code="defect",
        )
        return JSONResponse(Failure(error=told).model_dump(), 500)

    app.add_exception_handler(UnlearnError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(Exception, defect)
