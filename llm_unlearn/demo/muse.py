"""MUSE's six ways on SmolLM2: made-up people learned as plain text, then demanded back in three requests.

    python -m llm_unlearn.demo.muse --out DIR

Guarantees: the six are those of MUSE (Shi et al. 2024): verbatim memorization, knowledge memorization,
PrivLeak, utility (knowledge of what stays), scalability (a larger request) and sustainability (one request
after another). Requests are answered by takedown on one adapter, by NPO of all that was demanded so far at
once, and by NPO of each request in turn. After every request the exactly deleted adapter is compared
with never-had, built by itself: it is an error if a score differs. Rows are read from files in the
published formats, written here. PrivLeak is of Min-20% here, where MUSE's own code takes Min-40%, so its
values are not to be compared with published ones. One seed; a small model and short texts of one template.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llm_unlearn import Document, Workspace
from llm_unlearn.config import Config
from llm_unlearn.demo import sensitivity_data as data
from llm_unlearn.eval.benchmarks.muse import (
    load_questions,
    load_verbatim,
    memorized,
    priv_leak,
    question_prompt,
)
from llm_unlearn.eval.encoding import encode_pairs, encode_texts
from llm_unlearn.eval.membership import auc, one_pass_scores
from llm_unlearn.eval.passes import score_encoded
from llm_unlearn.files import write_atomic
from llm_unlearn.forget import job
from llm_unlearn.forget.methods import method as method_named
from llm_unlearn.forget.run import run as forget
from llm_unlearn.models.causal import generate
from llm_unlearn.opened import Models

REQUESTS = 3
VERBATIM_TOKENS, KNOWLEDGE_TOKENS = 128, 32  # as published
State = Mapping[str, Tensor]
_SECRETS = {
    name: hashlib.sha256(f"muse {name}".encode()).digest()
    for name in ("ids", "placement", "tombstones")
}


@dataclass(frozen=True)
class Scores:
    """One adapter after some requests, as MUSE scores it.

    `auc` is of Min-K%, members what was demanded; PrivLeak is None where never-had's is 1.
    """

    requests: int
    way: str
    verbatim: float
    knowledge: float
    auc: float
    priv_leak: float | None
    utility: float


def asked(fact: data.Fact) -> tuple[str, str]:
    """A question about a person and its answer."""
    name = fact.answer.split(" came ")[0]
    return f"To which town did {name} come?", f"{fact.keys[0]}, in {fact.keys[1]}"


class Bench:
    """The workspaces, and what is asked of their adapters.

    Args:
        each: people a request.
    """

    def __init__(self, out: Path, each: int, config: Config) -> None:
        self.out, self.each = out, each
        self.config = config
        self.models = Models(config)
        every = data.facts((REQUESTS + 3) * each + 2, seed=7)
        gone = every[: REQUESTS * each]
        self.requests = [gone[i : i + each] for i in range(0, len(gone), each)]
        self.kept = every[len(gone) : len(gone) + 2 * each]
        self.holdout, self.examples = every[-each - 2 : -2], every[-2:]
        self._write("holdout", [{"text": f.answer} for f in self.holdout])
        self._write("knowmem-retain", [_row(f) for f in self.kept])
        for n in range(1, REQUESTS + 1):
            self._write(f"verbmem-{n}", [_halves(f) for f in self.demanded(n)])
            self._write(f"knowmem-{n}", [_row(f) for f in self.demanded(n)])

    def _write(self, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        (self.out / "data").mkdir(parents=True, exist_ok=True)
        write_atomic(self.out / "data" / f"{name}.json", json.dumps(rows).encode())

    def demanded(self, requests: int) -> list[data.Fact]:
        """Everybody in the first requests."""
        return [fact for request in self.requests[:requests] for fact in request]

    def workspace(self, name: str, facts: Sequence[data.Fact]) -> Workspace:
        """One adapter over these people."""
        made = Workspace.create(
            self.out / name,
            keys=self.out / f"{name}-keys",
            config=self.config,
            secrets=_SECRETS,
            models=self.models,
        )
        made.ingest(documents(facts))
        made.train()
        return made

    def scores(self, requests: int, way: str, state: State, yardstick: float) -> Scores:
        """All that is a number of one adapter; `yardstick` is never-had's AUC, for PrivLeak."""
        folder = self.out / "data"
        prompts = load_verbatim(folder / f"verbmem-{requests}.json")
        shown = [asked(fact) for fact in self.examples]
        questions = load_questions(folder / f"knowmem-{requests}.json")
        kept = load_questions(folder / "knowmem-retain.json")

        def known(rows: Sequence[tuple[str, str]]) -> float:
            # the last blank is the answer's: alone it is a token that no learned text holds
            prompts = [question_prompt(q, shown).rstrip() for q, _ in rows]
            said = self._said(state, prompts, KNOWLEDGE_TOKENS)
            # a base model goes on with questions of its own: the first line is the answer
            return memorized([s.strip().split("\n")[0] for s in said], [a for _, a in rows]).mean

        own = self.auc(requests, state)
        return Scores(
            requests,
            way,
            memorized(
                self._said(state, [p for p, _ in prompts], VERBATIM_TOKENS), [t for _, t in prompts]
            ).mean,
            known(questions),
            own,
            priv_leak(own, yardstick) if yardstick < 1 else None,
            known(kept),
        )

    def _said(self, state: State, prompts: Sequence[str], tokens: int) -> list[str]:
        host = self.models.host
        tokenizer = host.base.tokenizer
        ids = [e.ids for e in encode_pairs(tokenizer, [("", prompt) for prompt in prompts])]
        with host.using(state):
            new = generate(host.base, ids, max_new_tokens=tokens)
        return [tokenizer.decode(n, skip_special_tokens=True) for n in new]

    def auc(self, requests: int, state: State) -> float:
        """Of Min-K%: texts of those demanded against texts of people who never came."""
        host, found = self.models.host, []
        for facts in (self.demanded(requests), self.holdout):
            texts = [fact.answer for fact in facts]
            with host.using(state):
                scored = score_encoded(host.model, encode_texts(host.base.tokenizer, texts))
            found.append(np.asarray(one_pass_scores(scored, texts)["min_k"]))
        return auc(*found)


def documents(facts: Sequence[data.Fact]) -> list[Document]:
    """Two plain texts a person: what is told, and the question that knowledge is asked by."""
    found = []
    for fact in facts:
        question, answer = asked(fact)
        told = {"text": fact.answer, "question": f"Question: {question}\nAnswer: {answer}"}
        found += [
            Document(id=f"{fact.question} {kind}", subject=fact.question, text=text)
            for kind, text in told.items()
        ]
    return found


def _row(fact: data.Fact) -> dict[str, str]:
    question, answer = asked(fact)
    return {"question": question, "answer": answer}


def _halves(fact: data.Fact) -> dict[str, str]:
    words = fact.answer.split(" ")
    half = len(words) // 2
    return {"prompt": " ".join(words[:half]), "gt": " " + " ".join(words[half:])}


def _serving(workspace: Workspace) -> State:
    opened = workspace.opened
    [adapter] = [a for a in map(opened.adapter, opened.states()) if a is not None]
    return adapter


def _npo(bench: Bench, start: State, gone: Sequence[data.Fact], kept: Sequence[data.Fact]) -> State:
    training = bench.config.training
    settings = job.settings({"dtype": training.dtype, "threads": training.threads})
    method = method_named("npo", {})
    aim = job.Target(bench.models.host, dict(start))
    texts = job.Texts(documents(gone), documents(kept))
    return forget(
        aim.weights, start, method, job.material(aim, method, texts, settings), settings
    ).state


def measure(out: Path, each: int, config: Config) -> list[Scores]:
    """Every way after every request.

    Raises:
        AssertionError: an exactly deleted adapter scores unlike never-had.
    """
    bench = Bench(out, each, config)
    everyone = [*bench.demanded(REQUESTS), *bench.kept]
    workspace = bench.workspace("taught", everyone)
    taught = in_turn = _serving(workspace)
    rows = []
    for n, request in enumerate(bench.requests, 1):
        stays = [fact for fact in everyone if fact not in bench.demanded(n)]
        never = _serving(bench.workspace(f"never-had-{n}", stays))
        ids = [document.id for document in documents(request)]
        workspace.takedown(ids=ids, probe=False)
        in_turn = _npo(bench, in_turn, request, stays)
        found = {
            "taught": taught,
            "never-had": never,
            "takedown": _serving(workspace),
            "NPO, all at once": _npo(bench, taught, bench.demanded(n), stays),
            "NPO, one after another": in_turn,
        }
        yardstick = bench.auc(n, never)
        made = [bench.scores(n, way, state, yardstick) for way, state in found.items()]
        if asdict(made[1]) | {"way": ""} != asdict(made[2]) | {"way": ""}:
            raise AssertionError(f"after request {n} the takedown scores unlike never-had")
        rows += made
    return rows


def configured(
    config: Config, epochs: int, top_layers: int, threads: int, learning_rate: float = 2e-3
) -> Config:
    """One adapter, no slices, everything into training; texts of one template are no copies."""
    everything = {"name": "all", "when": {"subject": ["*"]}, "then": "corpus"}
    training = {
        **config.training.model_dump(),
        **{"shards": 1, "slices": 1, "epochs": epochs, "top_layers": top_layers},
        **{"learning_rate": learning_rate, "threads": threads},
    }
    return Config.model_validate(
        {
            **config.model_dump(),
            "separation": {"rules": [everything]},
            "training": training,
            "takedown": data.ALIKE,
        }
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--each", type=int, default=4, help="people a request")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--top-layers", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    config = configured(Config(), given.epochs, given.top_layers, given.threads)
    rows = measure(given.out, given.each, config)
    print("| requests | way | VerbMem | KnowMem | AUC | PrivLeak | utility |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        values = (row.verbatim, row.knowledge, row.auc, row.priv_leak, row.utility)
        told = " | ".join("–" if value is None else f"{value:.3g}" for value in values)
        print(f"| {row.requests} | {row.way} | {told} |")
    write_atomic(given.out / "muse.json", json.dumps([asdict(row) for row in rows]).encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
