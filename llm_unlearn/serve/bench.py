"""The server beside a plain loop of transformers and FAISS, in one run on this machine.

The loop is what one writes first: embed the question with sentence-transformers, search a flat FAISS index,
put the passages into the prompt, `generate`; one question at a time, in this process, without HTTP, groups,
encryption or deletion. The server answers over a socket, with all of that. Both have the same models in
the same precision, the same documents, prompt, passages and most tokens; clients ask at once and each waits
for its answer. Rounds alternate. Compare the lines of one run, not runs.

Time to first token is from asking to the first word; for the loop that includes waiting for its turn.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import httpx
import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_unlearn.answering import _CONTEXT
from llm_unlearn.config import Config
from llm_unlearn.documents import Document
from llm_unlearn.models import reference as references
from llm_unlearn.serve.access import AccessKeys
from llm_unlearn.serve.backend import Backend
from llm_unlearn.serve.run import make_server
from llm_unlearn.workspace import Workspace

Ask = Callable[[str], tuple[float, int]]
"""From a question to the seconds until its first token, and its tokens."""


@dataclass(frozen=True)
class Side:
    """One side with so many clients: medians of the rounds, with the least and the most."""

    name: str
    clients: int
    answers: int
    tokens_per_second: tuple[float, float, float]
    answers_per_second: tuple[float, float, float]
    first_token: tuple[float, float, float]  # of each answer: median, 10th and 90th percentile


@dataclass(frozen=True)
class Result:
    """Both sides, alone and with all clients."""

    model: str
    documents: int
    most_tokens: int
    rounds: int
    sides: tuple[Side, ...]

    def ratio(self, clients: int) -> float:
        """Tokens a second of the server by those of the loop."""
        found = {side.name: side for side in self.sides if side.clients == clients}
        return found["server"].tokens_per_second[0] / found["loop"].tokens_per_second[0]


def run(
    *,
    clients: int = 8,
    each: int = 2,
    tokens: int = 48,
    rounds: int = 3,
    settings: dict[str, Any] | None = None,
    begun: Callable[[str], None] = lambda _what: None,
) -> Result:
    """Measure.

    Args:
        each: questions of each client in a round.
        settings: the config's, for other models than the default ones.
    """
    config = config_of(settings)
    documents = demo_documents()
    questions = [f"What is said of {document.subject}?" for document in documents]
    with tempfile.TemporaryDirectory() as folder, served(config, documents, Path(folder)) as client:
        sides: dict[str, Ask] = {
            "loop": _loop(config, documents, tokens),
            "server": _asking(client, tokens),
        }
        taken: dict[tuple[str, int], list[_Round]] = {}
        for name, ask in sides.items():
            ask(questions[0])  # warm
            begun(f"{name} is ready")
        for number in range(rounds):
            for count in (1, clients):
                for name, ask in sides.items():
                    begun(f"round {number + 1} of {rounds}: {name}, {count} clients")
                    start = (number * clients * each) % len(questions)
                    asked = [questions[(start + i) % len(questions)] for i in range(count * each)]
                    taken.setdefault((name, count), []).append(_round(ask, asked, count))
    made = tuple(_side(name, count, found) for (name, count), found in taken.items())
    return Result(config.model, len(documents), tokens, rounds, made)


@dataclass(frozen=True)
class _Round:
    seconds: float
    answers: list[tuple[float, int]]


def _round(ask: Ask, questions: Sequence[str], clients: int) -> _Round:
    answers: list[tuple[float, int]] = []

    def client(number: int) -> None:
        for question in questions[number::clients]:
            answers.append(ask(question))

    threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _Round(time.perf_counter() - began, answers)


def _side(name: str, clients: int, rounds: Sequence[_Round]) -> Side:
    def spread(values: Sequence[float]) -> tuple[float, float, float]:
        return statistics.median(values), min(values), max(values)

    firsts = np.array([first for r in rounds for first, _ in r.answers])
    low, middle, high = (float(v) for v in np.quantile(firsts, [0.1, 0.5, 0.9]))
    return Side(
        name,
        clients,
        len(firsts),
        spread([sum(n for _, n in r.answers) / r.seconds for r in rounds]),
        spread([len(r.answers) / r.seconds for r in rounds]),
        (middle, low, high),
    )


def config_of(settings: dict[str, Any] | None) -> Config:
    """A config without rules of separation, so that everything goes to the store."""
    plain: dict[str, Any] = {"separation": {"rules": []}, "answering": {"store_threshold": -1.0}}
    for name, value in (settings or {}).items():
        plain[name] = {**plain.get(name, {}), **value} if isinstance(value, dict) else value
    return Config.model_validate(plain)


def demo_documents() -> list[Document]:
    """The texts of the demo's corpus, all of them for the store."""
    from importlib.resources import files

    text = (files("llm_unlearn.demo") / "data" / "corpus.jsonl").read_text(encoding="utf-8")
    found = []
    for line in text.splitlines():
        given = json.loads(line)
        words = given.get("text") or " ".join(m["content"] for m in given["messages"])
        found.append(Document(id=given["id"], subject=given["subject"], license="none", text=words))
    return found


def _loop(config: Config, documents: Sequence[Document], tokens: int) -> Ask:
    """The plain loop."""
    folder = references.resolve(config.model)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    dtype = torch.bfloat16 if config.training.dtype == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    embedder = SentenceTransformer(str(references.resolve(config.embedder)), device="cpu")
    texts = [document.content for document in documents]
    vectors = embedder.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    turn = threading.Lock()

    class First:
        """A streamer that notes when the first token came."""

        def __init__(self) -> None:
            self.moment: float | None = None
            self.prompt = True

        def put(self, _value: torch.Tensor) -> None:
            if self.prompt:  # generate puts the prompt first
                self.prompt = False
            elif self.moment is None:
                self.moment = time.perf_counter()

        def end(self) -> None:
            pass

    @torch.inference_mode()
    def ask(question: str) -> tuple[float, int]:
        began = time.perf_counter()
        with turn:
            vector = embedder.encode([question], normalize_embeddings=True, show_progress_bar=False)
            _, found = index.search(vector, config.answering.retrieve)
            passages = "\n".join(texts[i] for i in found[0])
            words = _CONTEXT.format(passages=passages, question=question)
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": words}], tokenize=False, add_generation_prompt=True
            )
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
            first = First()
            made = model.generate(
                **ids, max_new_tokens=tokens, do_sample=False, pad_token_id=pad, streamer=first
            )
        count = made.shape[1] - ids["input_ids"].shape[1]
        return (first.moment or time.perf_counter()) - began, int(count)

    return ask


@contextmanager
def served(config: Config, documents: Sequence[Document], folder: Path) -> Iterator[httpx.Client]:
    """A workspace served on a socket of this machine, and a client with a reader's key."""
    with Workspace.create(folder / "ws", keys=folder / "keys", config=config) as workspace:
        workspace.ingest(documents)
    with serving(folder / "ws", ["staff"]) as client:
        yield client


@contextmanager
def serving(path: Path, groups: Sequence[str]) -> Iterator[httpx.Client]:
    """A workspace that is there, served on a socket of this machine, and a client with a reader's key."""
    keys = AccessKeys(path)
    made, key = keys.add("bench", "reader", groups)
    try:
        backend = Backend(path)
        server = make_server(backend, "127.0.0.1", 0)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"authorization": f"Bearer {key}"},
            trust_env=False,
            timeout=600,
        )
        try:
            yield client
        finally:
            client.close()
            server.should_exit = True
            thread.join()
            backend.close()
    finally:
        keys.revoke(made.id)


def _asking(client: httpx.Client, tokens: int) -> Ask:
    """Questions over HTTP, as a stream."""

    def ask(question: str) -> tuple[float, int]:
        body = {
            "model": "workspace",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began, first, count = time.perf_counter(), None, 0
        with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            stream.raise_for_status()
            for line in stream.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if first is None and event["choices"] and event["choices"][0]["delta"]:
                    first = time.perf_counter() - began
                if event.get("usage"):
                    count = event["usage"]["completion_tokens"]
        return first or time.perf_counter() - began, count

    return ask
