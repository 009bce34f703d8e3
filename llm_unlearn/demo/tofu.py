"""The same road on published data: twenty TOFU authors, half learned, half stored, six taken down.

    python -m llm_unlearn.demo.tofu full.json --out DIR

Prints one JSON object: what was measured and how long each step took. TOFU (Maini et al. 2024) is
read by path and never copied into the project.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llm_unlearn.config import Config
from llm_unlearn.demo import measure
from llm_unlearn.demo.authors import conversations
from llm_unlearn.documents import Document
from llm_unlearn.eval.benchmarks import tofu
from llm_unlearn.eval.overlap import rouge_l
from llm_unlearn.eval.summary import bootstrap
from llm_unlearn.takedown.plan import Plan
from llm_unlearn.workspace import Workspace

AUTHORS, GONE = 20, 3
GROUPS = ("staff",)


def documents(path: Path) -> list[Document]:
    """Rows 0 to 399: even authors are tagged to be learned, odd ones are not and go to the store."""
    return conversations(
        tofu.load(path),
        authors=AUTHORS,
        tags=lambda author: ("learn",) if author % 2 == 0 else ("keep",),
    )


def config(seed: int) -> Config:
    """The defaults, with separation by the tags above (TOFU's birth dates are not personal data)."""
    rule = {"name": "tagged", "when": {"tags": ["learn"]}, "then": "corpus"}
    return Config.model_validate(
        {
            "separation": {"rules": [rule]},
            "training": {"seed": seed},
            "takedown": {"fence_flagged": False},  # nobody is here to look at them
        }
    )


def run(path: Path, out: Path, seed: int) -> dict[str, Any]:
    """Ingest, train, ask, take down three authors of each kind, compare with never-had."""
    seconds: dict[str, float] = {}
    result: dict[str, Any] = {"seed": seed, "seconds": seconds}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        seconds[name] = round(time.monotonic() - started, 1)
        print(f"{name}: {seconds[name]} s", flush=True)

    all_documents = documents(path)
    learned = [d for d in all_documents if "learn" in d.tags]
    stored = [d for d in all_documents if "keep" in d.tags]
    chosen = config(seed)
    gone = [f"author-{n:03d}" for n in range(2 * GONE)]
    with Workspace.create(out / "workspace", keys=out / "keys", config=chosen) as workspace:
        with step("ingest"):
            result["counts"] = workspace.ingest(all_documents).counts()
        with step("train"):
            result["steps"] = workspace.train().steps
        result["shards"] = [(s.documents, s.slices) for s in workspace.status().shards]
        host = workspace.opened.models.host
        with step("ask base"), host.using(None):
            sample = learned[::2]
            base = measure.plain_answers(host, [d.messages[0].content for d in sample], 48)
        result["learned, base (every second question)"] = _rouge(base, sample)
        for name, group in (("learned", learned), ("stored", stored)):
            with step(f"ask {name}"):
                answers = workspace.ask_many([d.messages[0].content for d in group], GROUPS)
            result[f"{name}, workspace"] = _rouge([a.text for a in answers], group)
            result[f"{name}, origin"] = {
                origin: sum(a.origin == origin for a in answers)
                for origin in sorted({a.origin for a in answers})
            }
        plans: list[Plan] = []

        def agree(plan: Plan) -> bool:
            plans.append(plan)
            return True

        for subject in gone:
            with step(f"takedown {subject}"):
                outcome = workspace.takedown(subject=subject, confirm=agree)
            if outcome is None or outcome.receipt is None:
                raise AssertionError(f"the takedown of {subject} did not finish")
            receipt = workspace.verify(outcome.receipt).receipt
            done = receipt.done.documents_deleted
            result[subject] = {
                "documents": (done.store, done.corpus),
                "copies": sum(item.kind != "requested" for item in plans[-1].removed),
                "flagged": len(plans[-1].flagged),
                "slices retrained": sum(work.retrained for work in plans[-1].shards),
                "expected seconds": plans[-1].seconds and round(plans[-1].seconds, 1),
                "residue": receipt.scan.findings if receipt.scan != "not scanned" else None,
                "probes": [p.model_dump() for p in receipt.probes]
                if receipt.probes != "not probed"
                else None,
            }
        removed = {item.id for plan in plans for item in plan.removed}
        shards = sorted({work.shard for plan in plans for work in plan.shards})
        left = [d for d in all_documents if d.id not in removed]
        with _never_had(workspace, out) as never:
            with step(f"never-had, {len(shards)} shards"):
                never.ingest(left)
                never.train(shards=shards)
            result["equal to never-had"] = _equal(workspace, never, shards)
        rest = [d for d in learned if d.id not in removed]
        with step("ask the rest"):
            answers = workspace.ask_many([d.messages[0].content for d in rest], GROUPS)
        result["learned and kept, workspace"] = _rouge([a.text for a in answers], rest)
    return result


def _never_had(workspace: Workspace, out: Path) -> Workspace:
    keyring = workspace.opened.keyring
    secrets = {name: keyring.secret(name) for name in ("ids", "placement")}
    return Workspace.create(
        out / "never-had",
        keys=out / "never-had-keys",
        config=workspace.config,
        secrets=secrets,
        models=workspace.opened.models,
    )


def _equal(workspace: Workspace, never: Workspace, shards: list[int]) -> dict[str, bool]:
    plain = [
        {
            name: side.opened.checkpoints.plaintext(item)
            for name, item in side.opened.checkpoints.listed().items()
            if item.shard in shards
        }
        for side in (workspace, never)
    ]
    return {
        "checkpoints": bool(plain[0]) and plain[0] == plain[1],
        "store": workspace.opened.store.canonical_bytes() == never.opened.store.canonical_bytes(),
        "router": workspace.opened.router.canonical_bytes()
        == never.opened.router.canonical_bytes(),
    }


def _rouge(answers: list[str], group: list[Document]) -> dict[str, float]:
    """ROUGE-L recall against the true answers: mean, standard error, and the share above 0.9."""
    found = [
        rouge_l(answer, d.messages[-1].content).recall
        for answer, d in zip(answers, group, strict=True)
    ]
    estimate = bootstrap(found)
    return {
        "n": len(found),
        "rouge": round(estimate.mean, 4),
        "standard error": round(estimate.standard_error, 4),
        "above 0.9": round(float(np.mean(np.array(found) > 0.9)), 4),
    }


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("path", type=Path, help="TOFU's full.json")
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = run(arguments.path, arguments.out, arguments.seed)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
