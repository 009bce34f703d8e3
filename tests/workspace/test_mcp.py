"""The MCP server, spoken to by the SDK's own client over standard input and output."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import anyio
import pytest
from mcp import StdioServerParameters
from mcp.client.client import Client
from small import Maker, learned, stored

from llm_unlearn import Document, Workspace
from llm_unlearn.errors import InputError

DOCUMENTS = [learned(n, f"author-{n % 2}") for n in range(4)] + [
    stored(n, "work") for n in range(2)
]


def _talk(workspace: Workspace, *options: str, calls: Any) -> Any:
    """Start `llm-unlearn mcp` and make calls; they are given a function that calls a tool."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    arguments = ["-m", "llm_unlearn.cli", "mcp", str(workspace.path), *options]
    server = StdioServerParameters(
        command=sys.executable, args=arguments, env=environment, cwd=workspace.path.parent
    )

    async def run() -> Any:
        async with Client(server) as client:

            async def call(tool: str, **given: Any) -> tuple[bool, Any]:
                done = await client.call_tool(tool, given)
                text = "".join(getattr(part, "text", "") for part in done.content)
                return bool(done.is_error), text if done.is_error else json.loads(text)

            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            return await calls(tools, call)

    return anyio.run(run)


@pytest.fixture
def workspace(make: Maker) -> Workspace:
    made = make()
    made.ingest(DOCUMENTS)
    made.train()
    return made


def test_it_looks_and_changes_nothing_unless_told(workspace: Workspace) -> None:
    async def calls(tools: Any, call: Any) -> None:
        assert set(tools) == {"trace", "plan", "status", "receipt"}
        assert all(tool.annotations.read_only_hint for tool in tools.values())
        failed, traced = await call("trace", document="author-1/1")
        assert not failed
        (row,) = traced["documents"]
        assert (row["fate"], row["learned_by_what_serves"]) == ("corpus", True)
        _, traced = await call("trace", subject="work")
        assert [r["shard"] for r in traced["documents"]] == [None, None]
        _, planned = await call("plan", subject="work")
        assert [item["id"] for item in planned["plan"]["removed"]] == ["work/s0", "work/s1"]
        assert "tale of" not in json.dumps(planned)
        failed, said = await call("plan", subject="nobody")
        assert failed
        assert "No live document has the subject 'nobody'" in said
        failed, said = await call("takedown", subject="work", confirmation="yes")
        assert failed
        _, status = await call("status")
        assert status["counts"] == {"corpus": 4, "store": 2}
        assert status["requests"] == []
        failed, said = await call("receipt", number=1)
        assert failed
        assert "There is no takedown" in said

    _talk(workspace, calls=calls)
    assert workspace.status().counts == {"corpus": 4, "store": 2}


def test_it_removes_only_with_the_words_of_the_plan(workspace: Workspace) -> None:
    async def calls(tools: Any, call: Any) -> None:
        assert tools["takedown"].annotations.destructive_hint
        _, planned = await call("plan", subject="work")
        _, other = await call("plan", subject="author-0")
        right = planned["confirmation"]
        assert right.startswith("remove 2 documents for good ")
        for wrong in ("yes", "", other["confirmation"], right[:-1] + "x"):
            failed, said = await call("takedown", subject="work", confirmation=wrong)
            assert failed
            assert "nothing was removed" in said
        assert workspace.status().counts == {"corpus": 4, "store": 2}
        failed, done = await call("takedown", subject="work", confirmation=right)
        assert not failed, done
        assert done["state"] == "receipted"
        failed, shown = await call("receipt", number=done["number"])
        assert not failed
        assert shown["receipt"]["outcome"] == "removed"

    _talk(workspace, "--allow-takedown", calls=calls)
    assert workspace.status().counts == {"corpus": 4}
    workspace.verify(workspace.path / "receipts" / "00000001.json")


def test_what_came_after_the_plan_was_shown_is_not_removed(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the words and the writer's lock a copy comes in."""
    from llm_unlearn.integrations.mcp import _Tools

    tools = _Tools(workspace)
    words = tools.plan(subject="work")["confirmation"]
    takedown = workspace.takedown

    def late(*given: Any, **more: Any) -> Any:
        text = stored(0, "work").text
        workspace.ingest([Document(id="late", subject="other", text=text, license="none")])
        return takedown(*given, **more)

    monkeypatch.setattr(workspace, "takedown", late)
    with pytest.raises(InputError, match="nothing was removed"):
        tools.takedown(confirmation=words, subject="work")
    assert workspace.status().counts == {"corpus": 4, "store": 3}
    assert workspace.desk.all() == []
