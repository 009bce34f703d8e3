"""`takedown`, `correct` and `resume`: text removed at one go, and proof of it."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llm_unlearn.cli import planview
from llm_unlearn.cli.failures import UsageError
from llm_unlearn.cli.options import DryRun, Keys, WorkspaceDir, open_workspace
from llm_unlearn.cli.outcomes import outcome_json, refuse_waiting, tell, tell_all
from llm_unlearn.cli.output import Output, words
from llm_unlearn.errors import InputError, UnlearnError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llm_unlearn.documents import Document
    from llm_unlearn.sisa.build import Progress
    from llm_unlearn.takedown.journal import After
    from llm_unlearn.takedown.machine import Outcome
    from llm_unlearn.takedown.plan import Plan
    from llm_unlearn.takedown.request import Request
    from llm_unlearn.workspace import Workspace

_STATES = {
    "received": "from now on no answer draws on what it names",
    "fenced": "nor on any copy of it",
    "deleted": "keys destroyed, rows and vectors gone",
    "disposed": "checkpoints that knew it are gone; the last clean ones serve",
    "retrained": "the shards that had learned it are whole again",
    "receipted": "signed and added to the log",
}

_PROBED = 20  # requests of one file whose texts are still probed
_UNTRAINED = {
    "rollback": "nothing was retrained: `train` does that, once for all deletions until then",
    "drop": "the touched adapters are retired: `train --bring-back` trains them again",
}


def takedown(
    out: Output,
    workspace: WorkspaceDir,
    subject: Annotated[
        str | None,
        typer.Option("--subject", "-s", metavar="S", help="All documents of a subject."),
    ] = None,
    ids: Annotated[
        list[str] | None,
        typer.Option("--id", "-i", metavar="ID", help="A document by its id. Repeatable."),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="S", help="All documents from a source.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", "-t", metavar="FILE", help="Copies of the text in a file."),
    ] = None,
    request: Annotated[
        Path | None,
        typer.Option(
            "--request",
            "-r",
            metavar="FILE",
            help="A notice: a request file (YAML), of one or many.",
        ),
    ] = None,
    include_flagged: Annotated[
        bool,
        typer.Option("--include-flagged", help="Remove possible paraphrases too: you looked."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask. Needed where nobody can answer.")
    ] = False,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Do not measure leakage before and after (quicker).")
    ] = False,
    after: Annotated[
        Literal["retrain", "rollback", "drop"],
        typer.Option(
            "--after",
            help="Retrain the touched shards now; serve their last clean checkpoints until the next "
            "train; or drop their adapters.",
        ),
    ] = "retrain",
    dry_run: DryRun = False,
    keys: Keys = None,
) -> None:
    """Remove everything that falls under one demand, with its copies, and prove it.

    Shows the plan, asks, and does it: fenced at once, then deleted, retrained and receipted. Say
    what to remove with exactly one of --subject, --id, --source, --text and --request.

    Step by step, with a decision in between: takedown submit, list, show, plan, approve, run, refuse,
    withdraw, restore, review, receipt, copies, resume.
    """
    chosen = [subject, ids or None, source, text, request]
    if sum(value is not None for value in chosen) != 1:
        raise UsageError("Give exactly one of --subject, --id, --source, --text and --request.")
    if not (yes or dry_run or sys.stdin.isatty()):
        raise UsageError("A takedown cannot be undone and nobody is here to confirm: add --yes.")
    with open_workspace(workspace, keys, write=not dry_run) as opened:
        demands = _demands(subject, ids or [], source, text, request)
        if len(demands) > 1:
            many = _Many(out, opened, demands, include_flagged)
            if dry_run:
                many.dry()
            else:
                many.go(yes, after, probe=not no_probe)
            return
        demand = demands[0]
        if dry_run:
            plan = opened.plan_takedown(demand, include_flagged=include_flagged)
            out.result(
                {"dry_run": True, "plan": planview.as_json(plan)},
                *planview.shown(plan, opened.opened),
                words("A dry run: nothing was removed.", "yellow"),
            )
            return
        run = _Run(out, opened, yes, after)
        run.go(demand, include_flagged=include_flagged, probe=not no_probe)


def correct(
    out: Output,
    workspace: WorkspaceDir,
    old: Annotated[
        str, typer.Option("--id", "-i", metavar="ID", help="The document that is wrong.")
    ],
    file: Annotated[
        Path, typer.Option("--file", "-f", metavar="FILE", help="What takes its place.")
    ],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask. Needed where nobody can answer.")
    ] = False,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Do not measure leakage before and after (quicker).")
    ] = False,
    after: Annotated[
        Literal["retrain", "rollback", "drop"],
        typer.Option("--after", help="As for takedown; retrain also learns the new words."),
    ] = "retrain",
    keys: Keys = None,
) -> None:
    """Correct a document: the old one is taken down and the new one comes in, in one step.

    Whatever happens in between, never both and never neither serve. The new document needs an id of its
    own. Shows the plan and asks, as takedown does; copies of the old document go too.
    """
    if not (yes or sys.stdin.isatty()):
        raise UsageError("A correction cannot be undone and nobody is here to confirm: add --yes.")
    from llm_unlearn.readers import read_documents

    documents = list(read_documents(file))
    with open_workspace(workspace, keys, write=True) as opened:
        _Run(out, opened, yes, after).replace(old, documents, probe=not no_probe)


def resume(out: Output, workspace: WorkspaceDir, keys: Keys = None) -> None:
    """Finish takedowns that were accepted and then interrupted."""
    with open_workspace(workspace, keys, write=True) as opened:
        with out.bar("retraining") as bar:
            outcomes = opened.resume(progress=bar.step)
        tell_all(out, opened, outcomes)


@dataclass
class _Run:
    """One takedown as it is told to the user."""

    out: Output
    opened: Workspace
    yes: bool
    after: After = "retrain"
    plan: Plan | None = None
    states: list[dict[str, object]] = field(default_factory=list)
    early: list[str] = field(default_factory=list)
    started: float = 0.0

    def go(self, demand: Request, *, include_flagged: bool, probe: bool) -> None:
        """Take down what falls under a demand."""

        def act(progress: Progress) -> Outcome | None:
            return self.opened.takedown(
                demand,
                include_flagged=include_flagged,
                probe=probe,
                after=self.after,
                confirm=None if self.yes else self.confirm,
                on_plan=self.show,
                on_state=self.state,
                progress=progress,
            )

        self.result(self.do(act), {})

    def replace(self, old: str, documents: Sequence[Document], *, probe: bool) -> None:
        """Correct a document."""
        fates: dict[str, str] = {}

        def act(progress: Progress) -> Outcome | None:
            done = self.opened.correct(
                old,
                documents,
                probe=probe,
                after=self.after,
                confirm=self.agree,
                on_state=self.state,
                progress=progress,
            )
            if done is None:
                return None
            fates.update(done.fates)
            return done.outcome

        self.result(self.do(act), {"added": fates})
        for name, fate in fates.items():
            self.out.show(words(f"{name} took its place ({fate})."))

    def do(self, act: Callable[[Progress], Outcome | None]) -> Outcome:
        """Carry it out, and say how to go on if it is stopped after acceptance."""
        self.started = time.monotonic()
        try:
            with self.out.bar("retraining") as bar:
                outcome = act(bar.step)
        except BaseException as error:
            if self.states and (self.plan is not None or not isinstance(error, UnlearnError)):
                where = shlex.quote(str(self.opened.path))
                self.out.say(
                    "The takedown was accepted and no answer draws on the text. "
                    f"Finish it with: llm-unlearn resume {where}",
                    "yellow",
                )
            raise
        if outcome is None:
            raise typer.Abort
        return outcome

    def result(self, outcome: Outcome, more: Mapping[str, object]) -> None:
        """Tell it, and fail if retraining waits."""
        value = {**outcome_json(self.opened, outcome), **more}
        value["plan"] = planview.as_json(self.plan) if self.plan else None
        value["states"] = self.states
        self.out.result(value)
        tell(self.out, self.opened, outcome)
        refuse_waiting([outcome])

    def confirm(self, plan: Plan) -> bool:
        question = f"Remove these {len(plan.removed)} documents for good?"
        agreed = typer.confirm(question, default=False, err=True)
        self.started = time.monotonic()
        return agreed

    def agree(self, plan: Plan) -> bool:
        self.show(plan)
        return self.yes or self.confirm(plan)

    def show(self, plan: Plan) -> None:
        self.plan = plan
        for line in self.early:
            self.out.say(line)
        self.early.clear()
        self.out.show(*planview.shown(plan, self.opened.opened))

    def state(self, state: str) -> None:
        seconds = time.monotonic() - self.started
        self.states.append({"state": state, "seconds": round(seconds, 3)})
        meaning = _STATES[state]
        if state == "retrained" and self.after != "retrain":
            meaning = _UNTRAINED[self.after]
        line = f"{state} ({seconds:.1f} s): {meaning}"
        if state == "received" and self.plan is None:
            self.early.append(line)  # lifted again if it cannot be planned
        else:
            self.out.say(line)


@dataclass
class _Many:
    """A file of requests as it is told to the user."""

    out: Output
    opened: Workspace
    demands: Sequence[Request]
    include_flagged: bool
    states: list[dict[str, object]] = field(default_factory=list)

    def dry(self) -> None:
        from llm_unlearn.errors import NotFound
        from llm_unlearn.takedown.plan import make_plans

        plans = make_plans(
            self.opened.opened,
            self.demands,
            include_flagged=[self.include_flagged] * len(self.demands),
        )
        good = [plan for plan in plans if not isinstance(plan, NotFound)]
        self.out.result(
            {
                "dry_run": True,
                "plans": [
                    {"id": d.id, "plan": None if isinstance(p, NotFound) else planview.as_json(p)}
                    for d, p in zip(self.demands, plans, strict=True)
                ],
            },
            *planview.summary(good, self.opened.opened),
            words("A dry run: nothing was removed.", "yellow"),
        )

    def go(self, yes: bool, after: After, *, probe: bool) -> None:
        started = time.monotonic()

        def state(name: str) -> None:
            seconds = time.monotonic() - started
            self.states.append({"state": name, "seconds": round(seconds, 3)})
            self.out.say(f"{name} ({seconds:.1f} s): {_STATES[name]}")

        def confirm(plans: Sequence[Plan]) -> bool:
            self.out.show(*planview.summary(plans, self.opened.opened))
            documents = len({handle for plan in plans for handle in plan.handles})
            return typer.confirm(
                f"Remove these {documents} documents for good?", default=False, err=True
            )

        with self.out.bar("retraining") as bar:
            done = self.opened.desk.takedown_many(
                self.demands,
                include_flagged=self.include_flagged,
                probe=probe and len(self.demands) <= _PROBED,
                after=after,
                on_state=state,
                progress=bar.step,
                confirm=None if yes else confirm,
            )
        if done is None:
            raise typer.Abort
        self.out.result(
            {
                "takedowns": [outcome_json(self.opened, outcome) for outcome in done.outcomes],
                "nothing": [{"id": name, "why": why} for name, why in done.nothing],
                "shards": [
                    {"shard": s.shard, "kept": s.kept, "retrained": s.retrained, "steps": s.steps}
                    for s in done.shards
                ],
                "states": self.states,
            }
        )
        for outcome in done.outcomes:
            tell(self.out, self.opened, outcome)
        for name, why in done.nothing:
            self.out.show(words(f"{name}: {why}", "yellow"))
        refuse_waiting(done.outcomes)


def _demands(
    subject: str | None,
    ids: list[str],
    source: str | None,
    text: Path | None,
    request: Path | None,
) -> Sequence[Request]:
    from llm_unlearn.takedown.request import Request, read_requests

    if request is not None:
        return read_requests(request)
    passage = _read_text(text) if text is not None else None
    return [Request.internal(subject=subject, ids=ids, source=source, text=passage)]


def _read_text(path: Path) -> str:
    """The text of a file, within the limit that documents have."""
    from llm_unlearn.formats import Limits

    limit = Limits().max_document_bytes
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text.", "Save the passage as plain text.") from error
    if len(data) > limit:
        raise InputError(f"{path} is longer than {limit} bytes.", "Give the passages one by one.")
    if not text.strip():
        raise InputError(f"{path} is empty.", "Put the passage that is to be removed into it.")
    return text
