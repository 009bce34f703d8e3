"""The application put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from llm_unlearn.serve import (
    chat,
    completions,
    console,
    documents,
    failures,
    operations,
    probes,
    takedowns,
)
from llm_unlearn.serve.backend import Backend
from llm_unlearn.serve.gate import PUBLIC, Gate

_ABOUT = (
    "Questions over one workspace in OpenAI's API, and the operations of the workspace. Every request "
    "but /health carries an API key; its role says what it may do, its groups which documents it sees."
)


def make_app(server: Backend) -> FastAPI:
    """The application over a backend, which starts and ends with it."""
    import importlib.metadata

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await server.apart(server.start)
        server.look()
        telling = asyncio.ensure_future(server.webhooks.run())
        yield
        telling.cancel()
        server.probes.stop()
        server.engine.stop()

    app = FastAPI(
        title="llm-unlearn",
        version=importlib.metadata.version("llm-unlearn"),
        description=_ABOUT,
        lifespan=lifespan,
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
        responses=failures.DOCUMENTED,
    )
    app.state.backend = server
    failures.install(app)
    for part in (chat, completions, documents, takedowns, probes, operations, console):
        app.include_router(part.router)
    app.add_middleware(Gate, access=server.access, config=server.config, metrics=server.metrics)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, with the API key, and errors as they are told here."""
    made = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    parts = made["components"]
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in made["paths"].items():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            if path not in PUBLIC:
                operation["security"] = [{"key": []}]
    for name in ("HTTPValidationError", "ValidationError"):
        parts["schemas"].pop(name, None)
    described: dict[str, Any] = _portable(made)
    return described


def _portable(part: Any) -> Any:
    """Patterns as every reader of JSON schemas knows them: Unicode classes are not among those."""
    if isinstance(part, dict):
        return {
            name: value.replace(r"\P{Cc}", r"[^\u0000-\u001f\u007f-\u009f]")
            if name == "pattern" and isinstance(value, str)
            else _portable(value)
            for name, value in part.items()
        }
    return [_portable(item) for item in part] if isinstance(part, list) else part
