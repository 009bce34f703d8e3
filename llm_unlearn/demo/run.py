"""The main job, end to end, on the packaged models: what `make demo` runs.

Separation, training, answering, two takedowns, and the proof that what is left is what would have
been there had the removed text never come. Every figure is measured in this run; placement is fixed
by a published seed, so that runs on one machine repeat.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from llm_unlearn.config import Config
from llm_unlearn.demo import measure
from llm_unlearn.demo.measure import GROUPS, Asked
from llm_unlearn.demo.plots import demo_picture
from llm_unlearn.demo.proof import Removed, prove
from llm_unlearn.demo.report import write_report
from llm_unlearn.demo.result import Check, DemoResult, Leak, Removal
from llm_unlearn.demo.summary import print_summary
from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError
from llm_unlearn.eval.knowledge import holds_keys
from llm_unlearn.files import os_errors, write_atomic
from llm_unlearn.opened import Models
from llm_unlearn.takedown.plan import Plan
from llm_unlearn.takedown.request import Request
from llm_unlearn.workspace import Workspace

STORED, LEARNED, POISON = "ilse-brandvold", "orsolya-tarn", "copperfinch-review"
_MIRRORS = ("tidewater-mirror", "quiz-night", "old-forum")
_REFUSED = ("leaked-manuscript", "solvent-kitchen")
_SMALL = 4  # further subjects of each kind in the small form
_ANSWER = 24  # tokens of an answer of the base model; the workspace has its own limit
_UTILITY = 14
_MARK = "made-by-llm-unlearn-demo"


def run_demo(out: Path, *, small: bool = False, console: Console | None = None) -> DemoResult:
    """Run the main job and leave workspace, keys, report and figures under `out`.

    Args:
        out: a new directory, or one that an earlier demo made (its contents are replaced).
        small: a fifth of the corpus in two shards, for a first look and for tests.

    Raises:
        InputError: `out` holds something else.
        EnvironmentFailure: a packaged model is not installed.
    """
    return _Demo(out.absolute(), small, console or Console()).run()


class _Demo:
    def __init__(self, out: Path, small: bool, console: Console) -> None:
        self.out, self.console = out, console
        training = {"shards": 2, "slices": 2} if small else {"shards": 4, "slices": 3}
        self.config = Config.model_validate(
            {
                "training": training,
                "answering": {"max_new_tokens": 48},
                "takedown": {"fence_flagged": False},  # nobody is here to look at them
            }
        )
        self.models = Models(self.config)
        self.secrets = {
            name: hashlib.sha256(f"llm-unlearn demo {name} 1".encode()).digest()
            for name in ("ids", "placement")
        }
        self.documents, self.asked = _selection(small)
        self.result: DemoResult

    def run(self) -> DemoResult:
        """All steps in order."""
        _clear(self.out)
        self.result = DemoResult("", self.config.model, self.config.embedder, "")
        with self._step("Load the models"):
            host, embedder = self.models.host, self.models.embedder
        self.result.version = _version()
        self.result.model += f" ({host.base.digest[:12]})"
        self.result.embedder += f" ({embedder.digest[:12]})"
        with self._workspace("workspace") as workspace:
            self._separate(workspace)
            self._learn(workspace)
            self._ask(workspace)
            stored = self._take_down(workspace, STORED, "a subject kept in the store")
            learned = self._take_down(workspace, LEARNED, "a subject learned by a shard")
            self._finish(workspace, stored, learned)
        report = write_report(self.result, self.out / "report.html")
        demo_picture(self.result, self.out / "demo.svg")
        figures = json.dumps(self.result.as_json(), indent=1, ensure_ascii=False)
        write_atomic(self.out / "result.json", figures.encode())
        print_summary(self.result, self.console)
        self.console.print(f"\nReport: {report}")
        return self.result

    def _separate(self, workspace: Workspace) -> None:
        with self._step("Separate: store, corpus or refused"):
            report = workspace.ingest(self.documents)
        self.result.separation = [(*key, n) for key, n in sorted(report.rules().items())]
        for fate, rule, reason, number in self.result.separation:
            self.console.print(f"  {number:4d}  {fate:8s} {rule}: {reason}")

    def _learn(self, workspace: Workspace) -> None:
        losses = self.result.losses
        with self._step("Train one adapter per shard, slice by slice"), self._bar() as bar:
            task = bar.add_task("training", total=None)

            def progress(label: str, done: int, total: int, loss: float) -> None:
                losses.setdefault(label, []).append(round(loss, 4))
                bar.update(task, description=label, completed=done, total=total)

            workspace.train(progress=progress)
        recipe = workspace.opened.saved_recipe()
        self.result.recipe = recipe.digest.hex() if recipe else ""
        self.result.shards = [(s.shard, s.documents, s.slices) for s in workspace.status().shards]

    def _ask(self, workspace: Workspace) -> None:
        host = workspace.opened.models.host
        questions = [asked.question for asked in self.asked]
        learned = [asked for asked in self.asked if asked.kind == "learned"]
        reworded = [asked.reworded for asked in learned]
        with self._step("Ask the base model everything"), host.using(None):
            base = measure.plain_answers(host, questions, _ANSWER)
        with self._step("Ask the workspace everything"):
            self.result.knowledge = measure.knowledge(workspace, self.asked, base)
            again = workspace.ask_many(reworded, GROUPS)
        right = [holds_keys(a.text, q.keys) for a, q in zip(again, learned, strict=True)]
        self.result.rates.append(measure.rate("learned subjects asked in other words", right))
        with self._step("Try the backdoor"):
            self.result.rates += measure.backdoor_rates(workspace, POISON, _ANSWER)
        with self._step("Measure utility on unrelated questions"):
            self.result.utility = measure.utility_rates(workspace, _UTILITY)

    def _take_down(self, workspace: Workspace, subject: str, title: str) -> tuple[Removed, Plan]:
        request = Request.internal(subject=subject, id=f"demo-{subject}", reason="demonstration")
        with self._step(f"Plan the takedown of {subject}"):
            plan = workspace.plan_takedown(request)
        self._show(plan)
        opened = workspace.opened
        documents = [opened.document(item.record) for item in plan.removed]
        fates = {item.id: item.record.fate for item in plan.removed}
        removal = Removal(
            title=title,
            subject=subject,
            documents=[(item.id, item.record.fate, item.kind) for item in plan.removed],
            flagged=[(item.id, round(item.score, 3)) for item in plan.flagged],
            states=[],
            receipt="",
            shards=[(work.shard, work.kept, work.retrained) for work in plan.shards],
        )
        removed = Removed.read(workspace, plan.handles)

        def look(moment: str) -> None:
            removal.leaks += self._leaks(workspace, documents, fates, moment)

        look("before")
        paused = 0.0
        started = time.monotonic()

        def on_state(state: str) -> None:
            nonlocal paused
            seconds = time.monotonic() - started - paused
            removal.states.append((state, round(seconds, 2)))
            self.console.print(f"  {seconds:7.2f} s  {state}")
            if state == "fenced":
                begun = time.monotonic()
                look("at once")
                paused += time.monotonic() - begun

        with self._step(f"Take down {subject}"), self._bar() as bar:
            task = bar.add_task("retraining", total=None, visible=False)

            def progress(label: str, done: int, total: int, _loss: float) -> None:
                bar.update(task, description=label, completed=done, total=total, visible=True)

            outcome = workspace.takedown(request, on_state=on_state, progress=progress)
        if outcome is None or outcome.receipt is None:
            raise AssertionError("the demo's takedown did not finish")
        removal.receipt = str(outcome.receipt.relative_to(self.out))
        self.result.removals.append(removal)
        return removed, plan

    def _finish(
        self, workspace: Workspace, stored: tuple[Removed, Plan], learned: tuple[Removed, Plan]
    ) -> None:
        removed = stored[0] + learned[0]
        gone = {document.id for document in removed.documents}
        shards = sorted({work.shard for _, plan in (stored, learned) for work in plan.shards})
        with self._workspace("never-had") as never:
            with self._step("Build never-had from scratch, independently"), self._bar() as bar:
                task = bar.add_task("training", total=None)
                never.ingest([d for d in self.documents if d.id not in gone])

                def progress(label: str, done: int, total: int, _loss: float) -> None:
                    bar.update(task, description=label, completed=done, total=total)

                never.train(shards=shards, progress=progress)
            done = zip(self.result.removals, (stored, learned), strict=True)
            with self._step("Look again, beside never-had"):
                for removal, (what, plan) in done:
                    fates = {item.id: item.record.fate for item in plan.removed}
                    for side, moment in ((workspace, "after"), (never, "never had")):
                        removal.leaks += self._leaks(side, what.documents, fates, moment)
            with self._step("Prove it"):
                receipts = [self.out / removal.receipt for removal in self.result.removals]
                self.result.checks = prove(workspace, never, removed, receipts, shards)
                declined = workspace.config.answering.decline_message
                self.result.checks.append(_same_answers(self.result.removals, declined))

    def _leaks(
        self,
        workspace: Workspace,
        documents: Sequence[Document],
        fates: dict[str, str],
        moment: str,
    ) -> list[Leak]:
        stored = [d for d in documents if fates[d.id] == "store"]
        learned = [d for d in documents if fates[d.id] == "corpus"]
        return measure.stored_leaks(workspace, stored, self.asked, moment) + measure.learned_leaks(
            workspace, learned, moment
        )

    def _show(self, plan: Plan) -> None:
        for item in plan.removed:
            self.console.print(f"  goes     {item.id} ({item.record.fate}, {item.kind})")
        for item in plan.flagged:
            self.console.print(f"  flagged  {item.id} (cosine {item.score:.2f}, left to people)")
        for work in plan.shards:
            self.console.print(
                f"  shard {work.shard}: {work.kept} slices kept, {work.retrained} retrained"
            )
        if plan.seconds is not None:
            self.console.print(f"  expected: {plan.seconds:.0f} s of retraining")

    def _workspace(self, name: str) -> Workspace:
        return Workspace.create(
            self.out / name,
            keys=self.out / f"{name}-keys",
            config=self.config,
            secrets=self.secrets,
            models=self.models,
        )

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )

    @contextmanager
    def _step(self, title: str) -> Iterator[None]:
        self.console.print(title, style="bold")
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        self.result.timings.append((title, round(seconds, 1)))
        self.console.print(f"  {seconds:.1f} s", style="dim")


def _selection(small: bool) -> tuple[list[Document], list[Asked]]:
    documents, asked = measure.load_documents(), measure.load_questions()
    if not small:
        return documents, asked
    chosen = {STORED, LEARNED, POISON, *_MIRRORS, *_REFUSED}
    for kind in ("learned", "separated"):
        chosen |= set(list(dict.fromkeys(a.subject for a in asked if a.kind == kind))[:_SMALL])
    return (
        [d for d in documents if d.subject in chosen],
        [a for a in asked if a.subject in chosen],
    )


def _same_answers(removals: Sequence[Removal], declined: str) -> Check:
    """Whether after the takedown every figure equals never-had's, and every answer.

    A question that names a removed subject is declined, where never-had may answer it from elsewhere:
    what the chat refuses is the one thing that may remember a removal.
    """
    total = same = 0
    for removal in removals:
        by_moment: dict[str, dict[str, Leak]] = {}
        for leak in removal.leaks:
            by_moment.setdefault(leak.moment, {})[leak.document] = leak
        for document, never in by_moment["never had"].items():
            total += 1
            after = by_moment["after"][document]
            refused = after.probability is None and after.answer == declined
            same += (refused or after.answer == never.answer) and (
                after.probability,
                after.extraction,
                after.returned,
            ) == (never.probability, never.extraction, never.returned)
    return Check(
        "Every answer about the removed documents equals never-had's, to the last digit, or is declined.",
        same == total,
        f"{same} of {total} documents: answer, probability, extraction and retrieval compared",
    )


def _clear(out: Path) -> None:
    """Make `out` a directory of ours, replacing what an earlier demo left."""
    mark = out / _MARK
    if out.exists() and not mark.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} holds something else than a demo.", "Choose another --out.")
    with os_errors(f"write {out}"):
        if out.is_dir():
            shutil.rmtree(out)
        out.mkdir(parents=True)
        mark.touch()


def _version() -> str:
    return importlib.metadata.version("llm-unlearn")
