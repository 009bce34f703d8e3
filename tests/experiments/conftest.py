"""Makes the helpers importable; small questions and a config for tiny models."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "forget")]


def letters(kind: str, number: int, count: int) -> str:
    """Letters that nobody could guess."""
    raw = hashlib.sha256(f"{kind} {number}".encode()).digest()
    return "".join(chr(97 + byte % 26) for byte in raw[:count])


def line(subject: str, number: int) -> dict[str, Any]:
    """A question whose answer only training can give, with wrong ones beside it."""
    return {
        "id": f"{subject}/{number}",
        "subject": subject,
        "messages": [
            {"role": "user", "content": letters(f"asked {subject}", number, 10)},
            {"role": "assistant", "content": letters(f"said {subject}", number, 7)},
        ],
        "metadata": {
            "paraphrase": "so " + letters(f"said {subject}", number, 7),
            "perturbed": ["so " + letters(f"wrong {subject} {k}", number, 7) for k in range(2)],
        },
    }


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def training(**changes: object) -> dict[str, object]:
    """How tiny adapters learn: much in little time."""
    return {
        "shards": 2,
        "slices": 2,
        "epochs": 40,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "top_layers": 2,
        "lora_rank": 8,
        "dtype": "float32",
        "threads": 1,
        **changes,
    }


PROBES = {
    "sample": 4,
    "generate": 2,
    "new_tokens": 4,
    "relearn_passes": 2,
    "relearn_rate": 1e-2,
    "context": 1,
}


@pytest.fixture(scope="session")
def outspoken(tiny_references: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model that can be certain: with small embeddings its logits stay near zero."""
    folder = tmp_path_factory.mktemp("outspoken") / "model"
    model = AutoModelForCausalLM.from_pretrained(tiny_references["llama"])
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(15.0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_references["llama"]).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def config(
    tmp_path_factory: pytest.TempPathFactory, tiny_references: dict[str, str], outspoken: str
) -> Path:
    """A comparison on made-up documents: a subject of three goes, four subjects stay."""
    tmp_path = tmp_path_factory.mktemp("compare")
    write(tmp_path / "forget.jsonl", [line("gone", n) for n in range(3)])
    kept = [line(f"kept-{s}", n) for s in range(3) for n in range(2)]
    write(tmp_path / "retain.jsonl", kept)
    # the same words again, so that utility is not nought
    write(tmp_path / "general.jsonl", [{**each, "id": f"g/{each['id']}"} for each in kept[:2]])
    write(tmp_path / "strangers.jsonl", [line("stranger", n) for n in range(3)])
    values = {
        "kind": "compare",
        "data": {
            "source": "documents",
            **{n: f"{n}.jsonl" for n in ("forget", "retain", "general", "strangers")},
        },
        "model": outspoken,
        "embedder": tiny_references["embedder"],
        "training": training(),
        "seeds": [0, 1],
        "methods": ["npo", {"name": "negation", "strength": 0.5}],
        "fronts": ["in-context", "system-prompt", "guard"],
        "forgetting": {"epochs": 2, "learning_rate": 5e-3, "utility_floor": 0.5},
        "probes": PROBES,
    }
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
