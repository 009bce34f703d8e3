"""Small workspaces on tiny random models, and how to compare them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from llm_unlearn import Config, Document, Message, Workspace

Maker = Callable[..., Workspace]
SECRETS = {
    name: hashlib.sha256(name.encode()).digest() for name in ("ids", "placement", "tombstones")
}


def tiny_config(
    references: dict[str, str], kind: str = "llama", *, never_had: bool = False, **training: object
) -> Config:
    """Two shards of two slices on a tiny model; every document without an acl trains."""
    settings = {
        "shards": 2,
        "slices": 2,
        "epochs": 2,
        "batch_size": 2,
        "top_layers": 2,
        "lora_rank": 2,
        "dtype": "float32",
        "threads": 1,
        **training,
    }
    return Config.model_validate(
        {
            "model": references[kind],
            "embedder": references["embedder"],
            "training": settings,
            "answering": {"max_new_tokens": 8},
            # to a random embedder everything is alike
            "takedown": {"fence_flagged": False, "never_had": never_had},
            "separation": {
                "rules": [
                    {"name": "bad", "when": {"tags": ["bad"]}, "then": "refused"},
                    {"name": "open", "when": {"license": ["CC0-1.0"]}, "then": "corpus"},
                ]
            },
        }
    )


def learned(number: int, subject: str, words: str = "") -> Document:
    """A training document of a subject; two with the same number hold the same words."""
    facts = [hashlib.sha256(f"{number}{words}{i}".encode()).hexdigest() for i in range(3)]
    return Document(
        id=f"{subject}/{number}{words}",
        subject=subject,
        license="CC0-1.0",
        source=f"test:{subject}",
        messages=(
            Message(role="user", content=f"{subject} {facts[0][:40]}?"),
            Message(role="assistant", content=f"{facts[1][:30]} {facts[2][:30]}."),
        ),
    )


def stored(number: int, subject: str, acl: tuple[str, ...] = ()) -> Document:
    """A store document of a subject, long enough for every kind of scan."""
    facts = [hashlib.sha256(f"stored {number} {i}".encode()).hexdigest() for i in range(2)]
    return Document(
        id=f"{subject}/s{number}",
        subject=subject,
        license="all-rights-reserved",
        acl=acl,
        text=f"A tale of {subject}: {facts[0]}, {facts[1]}.",
    )


def answering_state(workspace: Workspace) -> dict[str, bytes]:
    """Everything that decides answers, as plaintext: checkpoints by name, store and router."""
    opened = workspace.opened
    state = {
        name: opened.checkpoints.plaintext(listed)
        for name, listed in opened.checkpoints.listed().items()
    }
    state["store"] = opened.store.canonical_bytes()
    state["router"] = opened.router.canonical_bytes()
    return state
