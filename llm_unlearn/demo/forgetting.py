"""Every approximate method on published data: ten TOFU authors learned by one adapter, one forgotten.

    python -m llm_unlearn.demo.forgetting TOFU --out DIR [--methods npo,graddiff] [--authors 10]

TOFU is the folder with `full.json` and `world_facts.json` (Maini et al. 2024), never copied into the
project. Goes on where it stopped: the adapter and each row are kept in DIR. Prints a line for each method:
probability and ROUGE-L recall (10 questions, 32 new tokens) of the forgotten and of other authors' answers,
probability of answers about the world, seconds, verdict. Utility is measured on the other authors. `base`
is without any adapter.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from llm_unlearn.documents import Document, Message
from llm_unlearn.eval.benchmarks import tofu
from llm_unlearn.eval.overlap import rouge_l
from llm_unlearn.forget import job
from llm_unlearn.forget.data import read
from llm_unlearn.forget.methods import METHODS, method
from llm_unlearn.forget.passes import Passes
from llm_unlearn.forget.run import run
from llm_unlearn.forget.settings import RunSettings
from llm_unlearn.forget.weights import State, without
from llm_unlearn.models.causal import generate
from llm_unlearn.models.chat import prompt_ids
from llm_unlearn.models.lora import AdapterHost
from llm_unlearn.sisa.train import StageSettings, TrainState, train_stage

MODEL = "packaged:smollm2-135m-instruct"
SAMPLE = 20  # questions of each kind that are scored at the end; 12 at every look


def documents(rows: Sequence[tofu.Row], name: str) -> list[Document]:
    """Rows as conversations."""
    return [
        Document(
            id=f"{name}/{i:03d}",
            messages=(
                Message(role="user", content=row.question),
                Message(role="assistant", content=row.answer),
            ),
        )
        for i, row in enumerate(rows)
    ]


class Measure:
    """Scores one state of the adapter on the same questions."""

    def __init__(self, host: AdapterHost, groups: dict[str, list[Document]]) -> None:
        self._host = host
        self._groups = groups
        self._passes = Passes(host, torch.bfloat16)
        self._items = {
            name: self._passes.items(read(host.base.tokenizer, group, 512))
            for name, group in groups.items()
        }

    def row(self, state: State) -> dict[str, float]:
        """Mean probability of every group, and ROUGE-L recall of all but `world`."""
        found: dict[str, float] = {}
        with self._host.lock:
            self._host.load(state)
            with self._passes.open():
                for name, items in self._items.items():
                    values = self._passes.probabilities(items)
                    found[f"{name} probability"] = round(sum(values) / len(values), 4)
            for name in ("forget", "retain"):
                found[f"{name} rouge"] = round(self._rouge(self._groups[name]), 4)
        return found

    def _rouge(self, group: list[Document]) -> float:
        tokenizer = self._host.base.tokenizer
        prompts = [prompt_ids(tokenizer, d.messages[0].content) for d in group]
        group, prompts = group[::2], prompts[::2]
        new = generate(self._host.base, prompts, max_new_tokens=32)
        said = [tokenizer.decode(ids, skip_special_tokens=True) for ids in new]
        scores = [
            rouge_l(a, d.messages[-1].content).recall for a, d in zip(said, group, strict=True)
        ]
        return sum(scores) / len(scores)


def teach(host: AdapterHost, texts: list[Document], epochs: int, path: Path) -> State:
    """One adapter over all texts, kept in a file."""
    if path.is_file():
        found: State = safetensors.torch.load_file(path)
        return found
    settings = StageSettings(
        epochs=epochs, batch_size=4, learning_rate=2e-3, warmup=0.05, weight_decay=0.0, clip=1.0
    )
    examples = list(read(host.base.tokenizer, texts, 512))
    start = TrainState(host.fresh(b"tofu"), {}, 0)
    state = train_stage(host, start, [examples], settings, hashlib.sha256(b"tofu").digest())
    safetensors.torch.save_file(dict(state.adapter), path)
    return dict(state.adapter)


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("tofu", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--authors", type=int, default=10)
    parser.add_argument("--teach-epochs", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(given.threads)
    people = [
        documents(rows, f"author-{i:03d}")
        for i, rows in enumerate(tofu.authors(tofu.load(given.tofu / "full.json"))[: given.authors])
    ]
    world = documents(tofu.load(given.tofu / "world_facts.json"), "world")[:SAMPLE]
    gone, kept = people[0], [d for person in people[1:] for d in person]
    aim = job.target(MODEL, top_layers=10)
    host = aim.weights
    assert isinstance(host, AdapterHost)
    began = time.monotonic()
    taught = teach(host, [*gone, *kept], given.teach_epochs, given.out / "taught.safetensors")
    print(f"taught in {time.monotonic() - began:.0f} s", flush=True)
    measure = Measure(
        host, {"forget": gone, "retain": kept[:: len(kept) // SAMPLE][:SAMPLE], "world": world}
    )
    aim = job.Target(host, taught)
    texts = job.Texts(gone, kept)
    settings = RunSettings(epochs=given.epochs, threads=given.threads, seed=given.seed, sample=12)
    for name in ("base", "taught", *given.methods.split(",")):
        path = given.out / f"{name}-{given.seed}.json"
        if not path.is_file():
            row: dict[str, Any] = {"method": name}
            if name in ("base", "taught"):
                row |= measure.row(without(taught) if name == "base" else taught)
            else:
                chosen = method(name)
                read_texts = job.material(aim, chosen, texts, settings)
                unfinished = given.out / f"{name}-{given.seed}.safetensors"
                done = run(host, taught, chosen, read_texts, settings, resume=unfinished)
                row |= measure.row(done.state)
                record = done.record
                row |= {"seconds": record.seconds, "steps": record.steps, "stop": record.stop}
                row |= {"verdict": record.verdict, "report": record.report}
                row |= {"looks": [look.model_dump() for look in record.looks]}
            path.write_text(json.dumps(row, indent=1))
        shown = json.loads(path.read_text())
        shown.pop("looks", None)
        print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
