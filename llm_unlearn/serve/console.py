"""The console: one page, its script and its style, served as they lie in the package.

Guarantees: nothing is loaded from elsewhere, no script or style stands in the page, and a strict content
security policy says so to the browser; whatever a document holds is put in as text. The page itself tells
nothing: it asks the API with the key that is typed into it, and keeps that in memory only.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Response

router = APIRouter(include_in_schema=False)
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


def _file(name: str, kind: str) -> Response:
    body = (files("llm_unlearn.serve") / name).read_bytes()
    headers = {"content-security-policy": _POLICY, "x-frame-options": "DENY"}
    return Response(body, media_type=f"{kind}; charset=utf-8", headers=headers)


@router.get("/")
async def page() -> Response:
    """The page."""
    return _file("console.html", "text/html")


@router.get("/console.js")
async def script() -> Response:
    """Its script."""
    return _file("console.js", "text/javascript")


@router.get("/console.css")
async def style() -> Response:
    """Its style."""
    return _file("console.css", "text/css")
