"""A real process of `llm-unlearn serve` on tiny models, and keys for it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from openai import OpenAI
from small import SECRETS, learned, stored, tiny_config

from llm_unlearn import Config, Document, Workspace
from llm_unlearn.serve.access import AccessKeys, Role
from llm_unlearn.serve.backend import Backend
from llm_unlearn.serve.run import make_server

DOCUMENTS = [
    *(learned(n, f"author-{n % 4}") for n in range(8)),
    *(stored(n, "work") for n in range(2)),
    *(stored(n + 2, f"keep-{n}") for n in range(3)),
    stored(9, "salaries", acl=("hr",)),
]


@dataclass
class Served:
    """One running server: a process of its own, or a thread of this one; a real socket in both."""

    path: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    server: uvicorn.Server | None = None
    thread: threading.Thread | None = None
    backend: Backend | None = None
    keys: dict[str, str] = field(default_factory=dict)
    clients: list[httpx.Client] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def key(self, role: Role = "reader", *groups: str) -> str:
        name = f"{role}-{'-'.join(groups)}"
        if name not in self.keys:
            self.keys[name] = AccessKeys(self.path).add(name, role, groups)[1]
        return self.keys[name]

    def openai(self, role: Role = "reader", *groups: str, retries: int = 0) -> OpenAI:
        key = self.key(role, *(groups or ("staff",)))
        # a client of its own, so that the proxies of the machine's environment are not asked
        return OpenAI(
            base_url=f"{self.url}/v1",
            api_key=key,
            max_retries=retries,
            timeout=60,
            http_client=self.client(),
        )

    def http(self, role: Role | None = "reader", *groups: str) -> httpx.Client:
        headers = {}
        if role is not None:
            given = groups or (() if role == "auditor" else ("staff",))
            headers = {"authorization": f"Bearer {self.key(role, *given)}"}
        return self.client(base_url=self.url, headers=headers)

    def client(self, **given: Any) -> httpx.Client:
        client = httpx.Client(trust_env=False, timeout=60, **given)
        self.clients.append(client)
        return client

    def log(self) -> str:
        return (self.path.parent / f"{self.path.name}.log").read_text()

    def close(self) -> None:
        for client in self.clients:
            client.close()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.server is not None and self.thread is not None and self.backend is not None:
            end = time.monotonic() + 60
            while self.backend.runs.running and time.monotonic() < end:
                time.sleep(0.05)
            self.server.should_exit = True
            self.thread.join(60)
            assert not self.thread.is_alive()
            self.backend.close()


def tiny(references: dict[str, str]) -> Config:
    """Settings to serve tiny models with."""
    plain = tiny_config(references).model_dump()
    # to a random embedder everything is alike: every question finds something
    plain["answering"] |= {"store_threshold": -1.0, "route_threshold": -1.0}
    return Config.model_validate(plain)


def workspace_at(path: Path, config: Config, documents: list[Document]) -> None:
    """A workspace made, trained and closed again."""
    keys = path.parent / f"{path.name}-keys"
    with Workspace.create(path, keys=keys, config=config, secrets=SECRETS) as made:
        made.ingest(documents)
        made.train()


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def start_thread(path: Path, webhooks: Sequence[str] = (), secret: str = "") -> Served:
    """Start a server in a thread: quick, since everything is imported already."""
    backend, port = Backend(path, None, webhooks, secret), _port()
    server = make_server(backend, "127.0.0.1", port)
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    end = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < end
        time.sleep(0.01)
    return Served(path, port, server=server, thread=thread, backend=backend)


def start(path: Path) -> Served:
    """Start `llm-unlearn serve` and wait until it answers."""
    port = _port()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    arguments = [sys.executable, "-m", "llm_unlearn.cli", "serve", str(path), "--port", str(port)]
    with (path.parent / f"{path.name}.log").open("wb") as log:
        process = subprocess.Popen(
            arguments, stdout=log, stderr=log, env=environment, cwd=path.parent
        )
    served = Served(path, port, process)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, served.log()
        try:
            if httpx.get(f"{served.url}/health", trust_env=False).status_code == 200:
                return served
        except httpx.HTTPError:
            time.sleep(0.05)
    raise AssertionError(served.log())
