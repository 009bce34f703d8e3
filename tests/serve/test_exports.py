"""The script of the exports page: a signed webhook unloads adapters from a server with vLLM's endpoints."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llm_unlearn.serve.webhooks import State, Webhooks, signature

SCRIPT = Path(__file__).parent / "unload_script.py"
SECRET = "a secret of more than twenty-four bytes"


class _Vllm:
    """Answers as vLLM 0.32 did: what is loaded, and unloading, which is 404 for what is not."""

    def __init__(self) -> None:
        self.loaded = {"base", "shard-0", "other"}
        self.fails = 0
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/v1/models"
                self.answer(200, {"data": [{"id": name} for name in sorted(outer.loaded)]})

            def do_POST(self) -> None:
                assert self.path == "/v1/unload_lora_adapter"
                name = json.loads(self.rfile.read(int(self.headers["content-length"])))["lora_name"]
                outer.asked += 1
                if outer.fails:
                    outer.fails -= 1
                    return self.answer(500, {})
                if name not in outer.loaded:
                    said = f"The lora adapter '{name}' cannot be found."
                    return self.answer(404, {"error": {"message": said, "code": 404}})
                outer.loaded.discard(name)
                return self.answer(200, {})

            def answer(self, status: int, body: object) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def vllm() -> Iterator[_Vllm]:
    made = _Vllm()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def receiver(vllm: _Vllm) -> Iterator[str]:
    """The script as a process; its URL."""
    settings = {
        "LLM_UNLEARN_WEBHOOK_SECRET": SECRET,
        "ADAPTERS": "shard-0 shard-1",
        "VLLM_URL": vllm.url,
        "PORT": "0",
        "NO_PROXY": "*",
    }
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **settings},
    )
    assert process.stdout is not None
    port = process.stdout.readline().split()[-1]
    yield f"http://127.0.0.1:{port}/"
    process.terminate()
    process.wait()
    process.stdout.close()


def _tell(folder: Path, url: str, state: State, done: Callable[[], bool]) -> None:
    """The workspace's own webhooks, until something has happened."""

    async def run() -> None:
        hooks = Webhooks(
            folder, [url], SECRET, lambda after: [] if after == state.event else [state]
        )
        task = asyncio.create_task(hooks.run())
        end = time.monotonic() + 30
        while not done():
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_a_takedown_unloads_and_what_is_forged_does_not(
    vllm: _Vllm, receiver: str, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "exports.md").read_text()
    assert SCRIPT.read_text().strip() in page  # it is what the page shows
    told = tmp_path / "webhooks.json"

    def tell(number: int, state: str, receipt: str | None = None) -> None:
        event = f"event {number} {state}"
        reached = State(number, state, receipt, event)
        _tell(tmp_path, receiver, reached, lambda: told.exists() and event in told.read_text())

    def forged(secret: bytes, moment: int) -> int:
        body = b'{"type": "takedown.received", "data": {"number": 1, "state": "received"}}'
        name = "w.1.received"
        headers = {
            "webhook-id": name,
            "webhook-timestamp": str(moment),
            "webhook-signature": signature(secret, name, moment, body),
        }
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            opener.open(urllib.request.Request(receiver, body, headers, method="POST"), timeout=10)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        return 204

    now = int(time.time())
    assert forged(b"another secret of so many bytes", now) == 401
    assert forged(SECRET.encode(), now - 3600) == 401  # of an hour ago, sent again
    tell(2, "refused")
    assert vllm.asked == 0

    vllm.fails = 1  # the first try fails: it is told again
    tell(3, "received")
    assert vllm.loaded == {"base", "other"}
    assert vllm.asked == 3

    vllm.loaded.add("shard-1")  # the retrained one: the rest of that takedown leaves it alone
    tell(3, "receipted", "3.json")
    assert vllm.loaded == {"base", "other", "shard-1"}
    # the next takedown does not, whatever state of it comes first
    tell(4, "disposed")
    assert vllm.loaded == {"base", "other"}
