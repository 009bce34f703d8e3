"""An MCP server for one workspace, with the official SDK: trace, plan, status, receipt, takedown.

Guarantees: everything but `takedown` only looks. `takedown` is offered only where the operator
started the server with it, carries out exactly a plan that `plan` has shown (the documents may not
have changed since), and only with the words that this plan asks for, which name how many documents
go; nothing else sets it off. No tool returns the text of a document. Errors are one line, as
everywhere.

Does not guarantee: that a person read the plan. Whoever lets a model call tools by itself lets it
confirm by itself: keep the client's own confirmation on for this tool.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from typing import TYPE_CHECKING, Any

from llm_unlearn.errors import EnvironmentFailure, InputError, UnlearnError

if TYPE_CHECKING:
    from mcp.server import MCPServer

    from llm_unlearn.takedown.plan import Plan
    from llm_unlearn.workspace import Workspace

_INSTRUCTIONS = (
    "A workspace of documents that can be taken back. Plan before you take down; show the plan to a "
    "person, and pass on the words that it asks for only if they agree. A takedown cannot be undone."
)


def make_server(workspace: Workspace, *, takedowns: bool = False) -> MCPServer[Any]:
    """A server over an open workspace; run it with `run("stdio")`.

    Args:
        takedowns: offer the tool that removes.

    Raises:
        EnvironmentFailure: the SDK is not installed.
    """
    try:
        from mcp.server import MCPServer
        from mcp_types import ToolAnnotations
    except ImportError as error:
        raise EnvironmentFailure(
            "The MCP SDK is not installed.", "Run: pip install 'llm-unlearn[mcp]'"
        ) from error
    tools = _Tools(workspace)
    server: MCPServer[Any] = MCPServer("llm-unlearn", instructions=_INSTRUCTIONS)
    looks = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    for function in (tools.trace, tools.plan, tools.status, tools.receipt):
        server.tool(annotations=looks)(_told(function))
    if takedowns:
        removes = ToolAnnotations(
            read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
        )
        server.tool(annotations=removes)(_told(tools.takedown))
    return server


def _told(function: Any) -> Any:
    """A tool whose user errors reach the client as one line."""
    import functools

    from mcp.server.mcpserver.exceptions import ToolError

    @functools.wraps(function)
    def tool(**given: Any) -> Any:
        try:
            return function(**given)
        except UnlearnError as error:
            raise ToolError(str(error)) from error

    return tool


class _Tools:
    """The tools, one call at a time."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._lock = threading.Lock()
        self._secret = os.urandom(32)

    def trace(self, document: str = "", subject: str = "") -> dict[str, Any]:
        """Where a document, or each document of a subject, went: its fate and state, the rule that sent it
        there, the shard that learned it and whether what serves now has learned it."""
        if bool(document) == bool(subject):
            raise InputError("Give a document or a subject, and not both.")
        with self._lock:
            opened = self._workspace.opened
            if document:
                found = opened.vault.find(opened.vault.mark("id", document))
                records = [] if found is None else [found]
            else:
                mark = opened.vault.mark("subject", subject)
                records = opened.vault.records(states=("live", "fenced", "held"), subject=mark)
            known = {
                record.handle
                for state in opened.states()
                for part in state.wanted[: state.clean]
                for record in part.records
            }
            rows = []
            for record in records:
                entry = opened.ledger.entry(record)
                shard = opened.shard_of(record) if record.fate == "corpus" else None
                rows.append(
                    {
                        "id": entry.id,
                        "subject": entry.subject,
                        "fate": entry.fate,
                        "state": entry.state,
                        "generation": entry.generation,
                        "rule": entry.rule,
                        "reason": entry.reason,
                        "shard": shard,
                        "learned_by_what_serves": record.handle in known,
                    }
                )
        return {"documents": rows}

    def plan(
        self, subject: str = "", ids: list[str] | None = None, source: str = "", text: str = ""
    ) -> dict[str, Any]:
        """What a takedown would remove, which copies go with it, what is left to people and what
        retraining costs. Changes nothing. Returns the words that `takedown` asks for."""
        from llm_unlearn.cli.planview import as_json

        with self._lock:
            plan = self._plan(subject, ids, source, text)
        return {"plan": as_json(plan), "confirmation": self._words(plan)}

    def status(self) -> dict[str, Any]:
        """Documents by fate and state, shards, and every takedown with where it stands."""
        with self._lock:
            found = self._workspace.status().as_json()
            found["requests"] = [
                {"number": row.number, "state": row.state, "due": row.due, "receipt": row.receipt}
                for row in self._workspace.desk.all()
            ]
            return found

    def receipt(self, number: int) -> dict[str, Any]:
        """The receipt of a takedown, by the takedown's number, verified against the log and the
        workspace's public key. It names nobody."""
        with self._lock:
            held = self._workspace.verify(self._workspace.desk.receipt(str(number)))
        return {
            "head": str(held.head),
            "checks": [{"check": line.check, "detail": line.detail} for line in held.lines],
            "receipt": held.receipt.model_dump(mode="json"),
        }

    def takedown(
        self,
        confirmation: str,
        subject: str = "",
        ids: list[str] | None = None,
        source: str = "",
        text: str = "",
    ) -> dict[str, Any]:
        """Remove for good what `plan` showed for the same arguments. Cannot be undone. `confirmation` is
        what that plan asked for, word for word, and a person must have agreed to it."""
        with self._lock:
            given = confirmation.strip().encode()

            def agreed(plan: Plan) -> bool:
                return hmac.compare_digest(given, self._words(plan).encode())

            plan = self._plan(subject, ids, source, text)
            # asked twice: before anything is fenced, and of what is carried out, under the writer's lock
            outcome = None
            if agreed(plan):
                outcome = self._workspace.takedown(plan.request, probe=False, confirm=agreed)
            if outcome is None:
                raise InputError(
                    "This is not the confirmation of this plan; nothing was removed.",
                    "Call plan with the same arguments, show it to a person, and pass on its words.",
                )
            return {
                "number": outcome.number,
                "state": outcome.state,
                "receipt": str(outcome.receipt) if outcome.receipt else None,
                "reference": outcome.reference,
                "waiting": outcome.waiting,
                "owed": list(outcome.owed),
            }

    def _plan(self, subject: str, ids: list[str] | None, source: str, text: str) -> Plan:
        from llm_unlearn.takedown.request import Request

        request = Request.internal(
            subject=subject or None,
            ids=ids or (),
            source=source or None,
            text=text or None,
            reason="asked for over MCP",
        )
        return self._workspace.plan_takedown(request)

    def _words(self, plan: Plan) -> str:
        """Words that only this plan has: how many documents, and a code over which."""
        said = repr(sorted(plan.request.selectors().items())).encode()
        code = hmac.new(self._secret, said, hashlib.sha256)
        for handle in sorted(plan.handles):
            code.update(handle)
        return f"remove {len(plan.removed)} documents for good {code.hexdigest()[:8]}"
