"""A workspace: one directory in which text is kept separable from a model, and its public face.

    WS/config.yaml       the resolved config
    WS/workspace.db      everything sealed: documents, vectors, the list of checkpoints, the journal
    WS/adapters/         one sealed file per checkpoint
    WS/receipts/         signed receipts of takedowns
    WS/lock              held by the one process that writes
    KEYS/                outside: root key, data keys, signing key

Guarantees: many readers and one writer; an operation that is killed leaves a workspace that opens,
and a takedown that was accepted is finished before the next write. Everything that decides an
answer is a pure function of the recipe and the live documents. Nothing is written outside the workspace
and its key directory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from llm_unlearn import opening
from llm_unlearn.config import Config
from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError
from llm_unlearn.ledger import Entry
from llm_unlearn.opened import Models, Opened
from llm_unlearn.writing import writing

if TYPE_CHECKING:
    from llm_unlearn.answering import Answer, Answerer
    from llm_unlearn.correction import Corrected
    from llm_unlearn.exports import Export
    from llm_unlearn.ingest import IngestReport
    from llm_unlearn.rederive import Audit
    from llm_unlearn.sisa.build import Progress
    from llm_unlearn.status import Status
    from llm_unlearn.takedown.desk import Desk
    from llm_unlearn.takedown.journal import After
    from llm_unlearn.takedown.machine import Outcome
    from llm_unlearn.takedown.plan import Plan
    from llm_unlearn.takedown.request import Request
    from llm_unlearn.takedown.verify import Verified
    from llm_unlearn.training import Trained


class Workspace:
    """One open workspace. Make it with `create` or `open`; use it as a context manager."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._answerer: Answerer | None = None

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        keys: str | Path | None = None,
        config: Config | None = None,
        secrets: Mapping[str, bytes] | None = None,
        models: Models | None = None,
    ) -> Self:
        """Make a new workspace.

        Args:
            path: a directory that does not exist or is empty.
            keys: where the keys go, outside the workspace; default a new directory under
                `$LLM_UNLEARN_KEYS` or `~/.local/share/llm-unlearn/keys`.
            secrets: fix `ids` and `placement` (32 bytes each) to repeat an experiment, or to build a
                never-had state beside this one.
            models: share loaded models with another workspace of the same config.

        Raises:
            InputError: the path is taken, or the keys would lie inside the workspace.
        """
        home = opening.make(Path(path).absolute(), keys, config or Config(), secrets)
        return cls.open(path, keys=home, models=models)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        keys: str | Path | None = None,
        models: Models | None = None,
        readonly: bool = False,
    ) -> Self:
        """Open a workspace. No model is loaded yet and nothing is changed.

        Args:
            keys: where the keys are now, if not where `create` put them.
            readonly: allow only reading, for a workspace that this user cannot write.

        Raises:
            WorkspaceMissing, WorkspaceVersion, WorkspaceReadOnly: see `errors`.
            KeysMissing: the key directory is not there or belongs to another workspace.
            Damaged: a file is not what was written.
        """
        return cls(opening.open_pieces(Path(path).absolute(), keys, models, readonly))

    def close(self) -> None:
        """Close the files; models stay in memory as long as something refers to them."""
        self._opened.database.close()
        self._opened.keyring.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The workspace's directory."""
        return self._opened.path

    @property
    def config(self) -> Config:
        """Its resolved config."""
        return self._opened.config

    @property
    def opened(self) -> Opened:
        """Its pieces, for experiments and probes."""
        return self._opened

    @property
    def public_key(self) -> Path:
        """The file with the public key that its receipts are verified with."""
        return self._opened.keyring.directory / opening.PUBLIC_KEY

    def ingest(
        self,
        source: str | Path | Iterable[Document],
        *,
        skip_broken: bool = False,
        dry_run: bool = False,
        piecewise: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> IngestReport:
        """Take documents in, from a file, a folder, or an iterable; whole or not at all.

        With `piecewise` what was taken in before a kill stays, and the same call goes on from
        there: documents that are known are not embedded again.

        Raises:
            InputError: a broken line (all are named), or an id taken by other words.
            WorkspaceLocked: another process is writing.
        """
        from llm_unlearn.ingest import ingest
        from llm_unlearn.readers import read_documents
        from llm_unlearn.takedown.looking import watching
        from llm_unlearn.takedown.tombstones import Tombstones

        opened = self._opened
        fresh: set[bytes] = set()
        with ExitStack() as stack:
            if not dry_run:
                stack.enter_context(writing(opened))
                stack.enter_context(watching(opened, fresh))
            documents = (
                read_documents(Path(source), skip_broken=skip_broken)
                if isinstance(source, (str, Path))
                else source
            )
            report = ingest(
                documents,
                config=opened.config,
                vault=opened.vault,
                tombstones=Tombstones(opened.database, opened.keyring),
                preparer=lambda: opened.store,
                generation=opened.ledger.generation,
                placement=opened.training.placement,
                dry_run=dry_run,
                piecewise=piecewise,
                progress=progress,
            )
            fresh |= {opened.vault.mark("id", p.id) for p in report.placed if not p.known}
            return report

    def train(
        self,
        *,
        progress: Progress | None = None,
        shards: Collection[int] | None = None,
        retrain_all: bool = False,
        repair: bool = False,
        processes: int = 1,
        bring_back: bool = False,
    ) -> Trained:
        """Close the open generation and build every checkpoint that is missing.

        Several processes may train one workspace at a time; each takes the shards that no other holds.

        Args:
            shards: build only these; the others wait for another `train`.
            retrain_all: adopt this machine's recipe and train every shard anew.
            repair: dispose of checkpoints that cannot be read, so that they are built again.
            processes: how many train, this one included; best one a core, with `training.threads` 1.
            bring_back: train dropped shards too; `retrain_all` does so as well.

        Raises:
            RecipeMismatch: this machine would compute other bits than the workspace was trained with.
        """
        from llm_unlearn.training import train

        return train(
            self._opened,
            lambda resuming: writing(self._opened, resuming=resuming),
            progress=progress,
            shards=shards,
            retrain_all=retrain_all,
            repair=repair,
            processes=processes,
            bring_back=bring_back,
        )

    def ask(self, question: str, groups: Collection[str]) -> Answer:
        """Answer one question for a caller in the given groups.

        Raises:
            AccessDenied: no group given.
            InputError: an empty question.
        """
        return self.ask_many([question], groups)[0]

    def ask_many(self, questions: Sequence[str], groups: Collection[str]) -> list[Answer]:
        """Answer several questions, each on its own; generation is batched."""
        for question in questions:
            if not question.strip():
                raise InputError("The question is empty.", "Ask in words.")
            if any("\ud800" <= character <= "\udfff" for character in question):
                raise InputError("The question is not valid UTF-8.", "Ask in words.")
        return self.answerer.ask(questions, groups)

    @property
    def answerer(self) -> Answerer:
        """What chooses sources and answers, as the configuration says."""
        if self._answerer is None:
            from llm_unlearn.answering import make_answerer

            self._answerer = make_answerer(self._opened, self.config.answering)
        return self._answerer

    def plan_takedown(self, request: Request, *, include_flagged: bool = False) -> Plan:
        """What a takedown would do; changes nothing.

        Raises:
            NotFound: nothing live falls under the request.
        """
        from llm_unlearn.takedown.plan import make_plan

        return make_plan(self._opened, request, include_flagged=include_flagged)

    def takedown(
        self,
        request: Request | None = None,
        *,
        subject: str | None = None,
        ids: Sequence[str] = (),
        source: str | None = None,
        text: str | None = None,
        names: Sequence[str] = (),
        include_flagged: bool = False,
        probe: bool = True,
        after: After = "retrain",
        on_state: Callable[[str], None] | None = None,
        progress: Progress | None = None,
        confirm: Callable[[Plan], bool] | None = None,
        on_plan: Callable[[Plan], None] | None = None,
    ) -> Outcome | None:
        """Remove everything that falls under a request, and prove it.

        Give a `Request`, or name what to remove. What it names is fenced before anything else; a request
        that was done before is not done again.

        Args:
            names: other names of the subject; the chat declines questions that hold one.
            after: "retrain" the touched shards at once; "rollback": their last clean checkpoints
                serve until the next `train`; "drop": their adapters are retired until
                `train(bring_back=True)`.
            confirm: shown the plan; if it says no, the fence is lifted and None is returned.
            on_plan: shown the plan, with nothing to say.
            on_state: told of each state as it is reached; after "received" no answer draws on what
                the request names, after "fenced" on none of its copies.

        Raises:
            NotFound: nothing live falls under the request.
            InputError: it was refused or withdrawn before.
        """
        from llm_unlearn.takedown.request import Request as NewRequest

        if request is None:
            request = NewRequest.internal(
                subject=subject, ids=ids, source=source, text=text, names=names
            )
        return self.desk.takedown(
            request,
            include_flagged=include_flagged,
            probe=probe,
            after=after,
            on_state=on_state,
            progress=progress,
            confirm=confirm,
            on_plan=on_plan,
        )

    def correct(
        self,
        old: str,
        documents: Sequence[Document],
        *,
        probe: bool = True,
        after: After = "retrain",
        on_state: Callable[[str], None] | None = None,
        progress: Progress | None = None,
        confirm: Callable[[Plan], bool] | None = None,
    ) -> Corrected | None:
        """Put corrected documents in the place of a wrong one: delete plus add, in one step.

        Never both and never neither serve, through any crash; see `correction`. With `after` as
        "retrain" the new words are trained on too, where the policy sends them to the corpus.

        Raises:
            NotFound: there is no live document with the id `old`.
            InputError: a new document cannot come in; nothing was changed.
        """
        from llm_unlearn.correction import correct

        with writing(self._opened, resuming=False):
            done = correct(
                self._opened,
                old,
                documents,
                probe=probe,
                after=after,
                on_state=on_state,
                progress=progress,
                confirm=confirm,
            )
        if done is not None and done.shards and after == "retrain" and not done.outcome.waiting:
            self.train(shards=done.shards, progress=progress)
        return done

    def resume(self, *, progress: Progress | None = None) -> list[Outcome]:
        """Finish accepted takedowns that a crash or a foreign recipe left unfinished."""
        return self.desk.resume(progress=progress)

    @property
    def desk(self) -> Desk:
        """Requests one by one and many at once: submitted, planned, decided, carried out."""
        from llm_unlearn.takedown.desk import Desk

        return Desk(self._opened, partial(writing, self._opened))

    def export(self, shard: int, out: str | Path) -> Export:
        """Write the adapter that serves for a shard as a plain PEFT folder, and register that.

        Raises:
            NotFound: no adapter serves for that shard.
            InputError: the folder is there already, or lies inside the workspace.
        """
        from llm_unlearn.exports import export_shard

        with writing(self._opened):
            return export_shard(self._opened, shard, Path(out))

    def exported_gone(self, out: str | Path) -> list[Export]:
        """Record that what was exported to a folder is destroyed, so that it is owed no longer.

        Raises:
            NotFound: nothing was exported there that is still registered as there.
        """
        from llm_unlearn.exports import Exports

        with writing(self._opened):
            return Exports(self._opened.database, self._opened.keyring).settle(Path(out))

    def audit(
        self, shards: Collection[int] | None = None, *, progress: Progress | None = None
    ) -> Audit:
        """Derive shards again from the documents and compare every checkpoint; changes nothing.

        Raises:
            NotFound: there is no such shard.
            RecipeMismatch: this machine would compute other bits.
        """
        from llm_unlearn.rederive import audit

        return audit(self._opened, shards, progress)

    def verify(self, receipt: str | Path, key: str | Path | None = None) -> Verified:
        """Check a receipt against this workspace's public key (or another) and its log."""
        from llm_unlearn.takedown.verify import verify_receipt

        return verify_receipt(
            Path(receipt), Path(key or self.public_key), log=self.path / "receipts"
        )

    def status(self) -> Status:
        """What stands where."""
        from llm_unlearn.status import status

        return status(self._opened)

    def where(self, document: str) -> Entry:
        """Where one document went, by which rule and why.

        Raises:
            NotFound: there is no such document.
        """
        return self._opened.ledger.find(document)
