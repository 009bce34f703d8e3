"""What sharding costs on TOFU: one adapter against 2, 4, 8, 16, under every aggregation.

    python -m llm_unlearn.demo.shards TOFU_DIR --out DIR --authors 20 --shards 1,2,4,8 --seeds 0,1

Trains each number of shards on the same authors for the same epochs and measures knowledge (ROUGE-L
recall and probability of the answer, on the questions as trained and reworded) and utility (TOFU's
real authors and world facts: ROUGE-L recall, probability of the right answer among wrong ones), and
where the questions of a removed author go. Writes `results.json` and `table.md`.

Guarantees: the same questions in every cell, so that cells compare pairwise; a cell that is done is
not done again, and training goes on where it was interrupted. TOFU (Maini et al. 2024) is read by path
and never copied. Reworded questions are published for the first twenty authors only.
It does not tune anything: every cell has the same settings but shards, aggregation and seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_unlearn.answering import Answerer, Choice, make_answerer
from llm_unlearn.config import AnsweringConfig, Config
from llm_unlearn.demo.authors import conversations
from llm_unlearn.demo.orphans import author_name, orphans
from llm_unlearn.demo.shards_items import items
from llm_unlearn.demo.shards_table import summary, table
from llm_unlearn.eval.benchmarks import tofu
from llm_unlearn.eval.encoding import encode_chats
from llm_unlearn.eval.memorization import loss
from llm_unlearn.eval.overlap import rouge_l
from llm_unlearn.eval.passes import score_encoded
from llm_unlearn.files import write_atomic
from llm_unlearn.models.causal import generate
from llm_unlearn.models.chat import prompt_ids
from llm_unlearn.models.mixed import score_mixed
from llm_unlearn.opened import Models
from llm_unlearn.retrieval.embedding import Floats, encode
from llm_unlearn.sisa.aggregate import mean_log_probability, mean_probability
from llm_unlearn.workspace import Workspace

GROUPS = ("staff",)
CELLS = ("route", "always", "merge", "route-k", "ensemble", "ensemble-log")
"""In the order in which they are measured. `always`: no threshold, for one shard the plain adapter."""
_WORDS = {"own": 48, "reworded": 48, "authors": 24, "facts": 24}  # most tokens of an answer


@dataclass(frozen=True)
class Plan:
    """What to run."""

    data: Path
    out: Path
    authors: int
    shards: tuple[int, ...]
    seeds: tuple[int, ...]
    questions: int
    per_author: int
    utility: int
    epochs: int
    threads: int
    slices: int
    slicing: str
    cells: tuple[str, ...]
    model: str | None = None
    embedder: str | None = None

    def config(self, shards: int, seed: int) -> Config:
        """Defaults but what the plan says; one slice a shard unless slicing itself is in question."""
        rule = {"name": "tofu", "when": {"source": ["tofu/full.json"]}, "then": "corpus"}
        settings: dict[str, Any] = {
            "separation": {"rules": [rule]},
            "training": {
                "shards": shards,
                "slices": self.slices,
                "slicing": self.slicing,
                "seed": seed,
                "epochs": self.epochs,
                "threads": self.threads,
            },
        }
        if self.model and self.embedder:  # for a trial on small models
            settings |= {"model": self.model, "embedder": self.embedder}
            settings["training"] |= {"top_layers": 2, "dtype": "float32"}
        return Config.model_validate(settings)

    def folder(self, shards: int, seed: int) -> Path:
        """Where a trained workspace and its cells are kept."""
        taught = f"authors-{self.authors}x{self.questions}.epochs-{self.epochs}"
        sliced = f".{self.slicing}-{self.slices}" if self.slices > 1 else ""
        name = f"{taught}.shards-{shards:02d}{sliced}.seed-{seed}"
        return self.out / name


class Measured:
    """Measures cells over one base model; what was measured is kept under `plan.out`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.models = Models(plan.config(1, 0))
        self.rows = tofu.load(plan.data / "full.json")
        self.items = items(plan.data, plan.authors, plan.questions, plan.per_author, plan.utility)
        self._vectors: dict[str, Floats] = {}
        told = repr([(i.kind, i.question, i.answer) for i in self.items])
        self.key = hashlib.sha256(told.encode()).hexdigest()[:12]

    def vector(self, question: str) -> Floats:
        """The unit vector of a question, made once."""
        if question not in self._vectors:
            self._vectors[question] = encode(self.models.embedder, [question])[0]
        return self._vectors[question]

    def trained(self, shards: int, seed: int) -> Workspace:
        """The workspace, trained as far as it was not."""
        folder, config = self.plan.folder(shards, seed), self.plan.config(shards, seed)
        secrets = {
            name: hashlib.sha256(f"{name} {seed}".encode()).digest()
            for name in ("ids", "placement")
        }
        if (folder / "workspace" / "workspace.db").exists():
            workspace = Workspace.open(folder / "workspace", models=self.models)
        else:
            workspace = Workspace.create(
                folder / "workspace",
                keys=folder / "keys",
                config=config,
                secrets=secrets,
                models=self.models,
            )
        started = time.monotonic()
        workspace.ingest(
            conversations(self.rows, authors=self.plan.authors, questions=self.plan.questions)
        )
        done = workspace.train()
        if done.built:
            seconds = time.monotonic() - started
            said = {"seconds": round(seconds, 1), "steps": done.steps}
            write_atomic(folder / "training.json", json.dumps(said).encode())
            print(f"{folder.name}: trained in {seconds:.0f} s", flush=True)
        return workspace

    def answerer(self, workspace: Workspace, cell: str) -> Answerer:
        """Answers by one aggregation; only `route` and `route-k` keep the threshold."""
        name = "ensemble" if cell == "always" else cell
        settings = AnsweringConfig.model_validate({"aggregation": name, "fallback": "base"})
        if not cell.startswith("route"):
            settings = settings.model_copy(update={"route_threshold": -1.0})
        answerer = make_answerer(workspace.opened, settings)
        answerer.named = lambda _text: frozenset()
        return answerer

    def base(self) -> dict[str, Any]:
        """What the base model says to every item; kept."""
        name = f"base.authors-{self.plan.authors}x{self.plan.questions}.{self.key}.json"

        def measure() -> dict[str, Any]:
            host = self.models.host
            everyone = range(len(self.items))
            with host.using(None):
                texts: dict[int, str] = {}
                for most in sorted(set(_WORDS.values())):
                    mine = [i for i in everyone if _WORDS[self.items[i].kind] == most]
                    prompts = [
                        prompt_ids(host.base.tokenizer, self.items[i].question) for i in mine
                    ]
                    new = generate(host.base, prompts, max_new_tokens=most)
                    texts |= dict(zip(mine, map(self._text, new), strict=True))
                encoded = [e for i in everyone for e in self._encoded(i)]
                scores = [-loss(s) for s in score_encoded(host.base.model, encoded, 8)]
            return self._values([texts[i] for i in everyone], scores, [()] * len(self.items))

        return self._kept(self.plan.out / name, measure)

    def cell(self, shards: int, seed: int, name: str, stack: ExitStack) -> dict[str, Any]:
        """One cell; the workspace is only opened when the cell is missing."""
        folder = self.plan.folder(shards, seed)

        def measure() -> dict[str, Any]:
            workspace = stack.enter_context(self.trained(shards, seed))
            answerer = self.answerer(workspace, name)
            vectors = [self.vector(item.question) for item in self.items]
            choices = answerer.choose([i.question for i in self.items], vectors, GROUPS)
            base = self.base()
            texts = list(base["text"])
            learned = [i for i, choice in enumerate(choices) if choice.experts]
            for most in sorted(set(_WORDS.values())):
                mine = [i for i in learned if _WORDS[self.items[i].kind] == most]
                answerer.config = answerer.config.model_copy(update={"max_new_tokens": most})
                answers = answerer.answer(
                    [self.items[i].question for i in mine], [choices[i] for i in mine]
                )
                for i, answer in zip(mine, answers, strict=True):
                    texts[i] = answer.text
            scores, other = self._scores(answerer, choices, base, folder, name)
            shards_of = [tuple(s for s, _, _ in choice.experts) for choice in choices]
            values = self._values(texts, scores, shards_of)
            return values | ({"scores of ensemble-log": other} if other else {})

        return self._kept(folder / f"{name}.{self.key}.json", measure)

    def _scores(
        self,
        answerer: Answerer,
        choices: Sequence[Choice],
        base: dict[str, Any],
        folder: Path,
        name: str,
    ) -> tuple[list[float], list[float]]:
        """Mean log-probability of every answer and wrong answer; for `ensemble` also of its twin."""
        twin = folder / f"ensemble.{self.key}.json"
        if name == "ensemble-log" and twin.exists():  # measured in the same passes
            return list(json.loads(twin.read_text())["scores of ensemble-log"]), []
        scores = list(base["scores"])
        combines = [mean_log_probability if name == "ensemble-log" else mean_probability]
        if name == "ensemble":
            combines.append(mean_log_probability)
        other = list(scores)
        ends = np.cumsum([1 + len(item.wrong) for item in self.items])
        places: list[int] = []
        encoded: list[Any] = []
        whose: list[Choice] = []
        for i, choice in enumerate(choices):
            if choice.experts:
                mine = self._encoded(i)
                places += range(int(ends[i]) - len(mine), int(ends[i]))
                encoded += mine
                whose += [choice] * len(mine)
        if encoded:
            mixture = answerer.mixture(whose)
            found = score_mixed(
                self.models.host,
                mixture.stacked,
                [(e.ids, e.mask) for e in encoded],
                mixture.slots,
                mixture.weights,
                combines,
            )
            for values, target in zip(found, (scores, other), strict=False):
                for place, logp in zip(places, values, strict=True):
                    target[place] = float(logp.mean())
        return scores, other if len(combines) > 1 else []

    def _encoded(self, i: int) -> list[Any]:
        item = self.items[i]
        pairs = [(item.question, text) for text in (item.answer, *item.wrong)]
        return encode_chats(self.models.host.base.tokenizer, pairs)

    def _text(self, ids: Sequence[int]) -> str:
        decoded: str = self.models.host.base.tokenizer.decode(ids, skip_special_tokens=True)
        return decoded.strip()

    def _values(
        self, texts: Sequence[str], scores: Sequence[float], shards: Sequence[tuple[int, ...]]
    ) -> dict[str, Any]:
        """Values by item: ROUGE-L recall and probability, among wrong answers where there are some.

        The probability of a text is the geometric mean of its tokens'. Among wrong ones it is the
        right one's share of the sum: 1/2 against 1/4 and 1/4 gives 1/2.
        """
        rouge, probability, start = [], [], 0
        for item, text in zip(self.items, texts, strict=True):
            rouge.append(rouge_l(text, item.answer).recall)
            each = np.exp(scores[start : start + 1 + len(item.wrong)])
            start += len(each)
            probability.append(float(each[0] / each.sum()) if item.wrong else float(each[0]))
        return {
            "kind": [item.kind for item in self.items],
            "text": list(texts),
            "scores": list(scores),
            "rouge": rouge,
            "probability": probability,
            "shards": [list(s) for s in shards],
        }

    def _kept(self, path: Path, measure: Any) -> dict[str, Any]:
        if path.exists():
            return dict(json.loads(path.read_text()))
        started = time.monotonic()
        values: dict[str, Any] = measure()
        values["seconds"] = round(time.monotonic() - started, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(values).encode())
        print(f"{path.parent.name}/{path.name}: {values['seconds']} s", flush=True)
        return values

    def orphans(self, shards: int, seed: int, stack: ExitStack) -> dict[str, Any]:
        """Where questions go when their author is removed; see `orphans`."""

        def measure() -> dict[str, Any]:
            workspace = stack.enter_context(self.trained(shards, seed))
            authors = tofu.authors(self.rows)[: self.plan.authors]
            return orphans(
                workspace,
                [[row.question for row in rows[: self.plan.questions]] for rows in authors],
                [author_name([f"{r.question} {r.answer}" for r in rows]) for rows in authors],
                self.vector,
            )

        return self._kept(self.plan.folder(shards, seed) / "orphans.json", measure)


def run(plan: Plan) -> dict[str, Any]:
    """Measure what is missing, in the order of importance, and write the two files after each seed."""
    measured = Measured(plan)
    cells: dict[tuple[int, int, str], dict[str, Any]] = {}
    gone: dict[tuple[int, int], dict[str, Any]] = {}
    result: dict[str, Any] = {}
    base = measured.base()
    for names in (("route", "always", "merge"), ("route-k", "ensemble", "ensemble-log")):
        for seed, shards in _order(plan):
            with ExitStack() as stack:
                for name in names:
                    if name in plan.cells and not (shards == 1 and name not in CELLS[:2]):
                        if name == "always" and shards > 1:
                            continue
                        cells[seed, shards, name] = measured.cell(shards, seed, name, stack)
                if shards > 1 and "route" in names:
                    gone[seed, shards] = measured.orphans(shards, seed, stack)
            result = summary(base, cells, gone, plan.authors, plan.epochs)
            write_atomic(plan.out / "results.json", json.dumps(result, indent=1).encode())
            write_atomic(plan.out / "table.md", table(result).encode())
    return result


def _order(plan: Plan) -> Iterator[tuple[int, int]]:
    """One shard and the most of them first: what the two compare by is what is wanted most."""
    first = [s for s in (1, max(plan.shards)) if s in plan.shards]
    rest = [s for s in plan.shards if s not in first]
    for seed in plan.seeds:
        yield from ((seed, shards) for shards in dict.fromkeys([*first, *rest]))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data", type=Path, help="the folder of TOFU's files")
    parser.add_argument("--out", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--authors", type=int, default=20)
    parser.add_argument("--shards", type=_numbers, default=(1, 2, 4, 8))
    parser.add_argument("--seeds", type=_numbers, default=(0, 1))
    parser.add_argument("--questions", type=int, default=20, help="questions of each that train")
    parser.add_argument("--per-author", type=int, default=4, help="questions asked, twice each")
    parser.add_argument("--utility", type=int, default=40, help="questions of each utility set")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slices", type=int, default=1, help="of each shard")
    parser.add_argument("--slicing", default="cumulative", choices=("cumulative", "sequential"))
    parser.add_argument("--cells", default=",".join(CELLS), help="which aggregations")
    a = parser.parse_args()
    plan = Plan(
        a.data, a.out, a.authors, a.shards, a.seeds, a.questions, a.per_author, a.utility,
        a.epochs, a.threads, a.slices, a.slicing, tuple(a.cells.split(",")),
    )  # fmt: skip
    plan.out.mkdir(parents=True, exist_ok=True)
    print(table(run(plan)))


if __name__ == "__main__":
    main()
