"""The one thread that uses the model: answers join and leave a running batch, step by step.

Guarantees: the model, its adapters and the search for passages are used by this thread alone; waiting
answers start in the order they came, as soon as a row is free; an answer whose choice of sources
changed with a commit to the workspace (`Ask.choose` says so, by any process) is made again, or ended
with a stated reason if words of it were taken; no word leaves before the engine has looked at the last
commit (`Mailbox`). Keys and values of an answer that ended are out of memory with the next step.
There is no cache of prompts, passages or answers.

A failure of the program itself ends the answers it met, not the thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from llm_unlearn.errors import EnvironmentFailure, InputError, UnlearnError
from llm_unlearn.models.lanes import Lane
from llm_unlearn.models.lora import AdapterHost
from llm_unlearn.serve import memory
from llm_unlearn.serve.job import Job, Mailbox, Piece, defect
from llm_unlearn.serve.room import Busy, TooLate
from llm_unlearn.serve.speech import Speech
from llm_unlearn.serve.track import Row, Track
from llm_unlearn.serve.watch import Watch

if TYPE_CHECKING:
    from llm_unlearn.config_serving import ServingConfig

_IDLE = 0.5
_TIDY = 10.0  # seconds between two times that freed memory is given back


class Engine:
    """Makes answers; `start` begins, `stop` ends the thread."""

    def __init__(
        self, host: Callable[[], AdapterHost], watch: Watch, config: ServingConfig
    ) -> None:
        self._host = host
        self._watch = watch
        self._config = config
        self._turn = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._jobs: set[Job] = set()  # those whose words were not all taken
        self._tracks: dict[Any, Track] = {}
        self._tasks: deque[tuple[Callable[[], None], Callable[[], bool]]] = deque()
        self._stopping = False
        self._settled = watch.number()
        self._poked = False
        self._blocked: tuple[Job, int] | None = None  # who waits for room, and beside how many rows
        self._tidied = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self.steps = 0
        self.tokens = 0

    # --- from other threads

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is under way fails."""
        with self._turn:
            self._stopping = True
            self._turn.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, job: Job) -> None:
        """Queue an answer.

        Raises:
            Busy: as many as may are waiting.
        """
        with self._turn:
            if len(self._waiting) >= self._config.queue:
                raise Busy("Too many answers are waiting.", "Ask again in a moment.")
            self._jobs.add(job)
            self._waiting.append(job)
            self._turn.notify()

    def release(self, job: Job) -> None:
        """Nobody takes words of this answer any more."""
        job.gone = True
        with self._turn:
            self._jobs.discard(job)
            if job in self._waiting:
                self._waiting.remove(job)
            self._turn.notify()

    def mailbox(self, job: Job) -> Mailbox:
        """Where the running coroutine takes the words of an answer."""
        return Mailbox(job, self.fresh, self.poke)

    def commits(self) -> int:
        """Another number after any commit to the workspace."""
        return self._watch.number()

    def fresh(self) -> bool:
        """Whether every answer was looked at since the last commit."""
        return self._settled == self._watch.number()

    def poke(self) -> None:
        """Look at the sources of all answers now."""
        with self._turn:
            self._poked = True
            self._turn.notify()

    def settle(self, seconds: float) -> bool:
        """Wait until every answer was looked at since now: for whoever committed a takedown.

        Returns:
            Whether it was, or nothing answers any more; False when the time was up first.
        """
        number, end = self._watch.number(), time.monotonic() + seconds
        while self._settled != number and self._settled != self._watch.number():
            if self._stopping:
                return True
            if time.monotonic() > end:
                return False
            self.poke()
            time.sleep(0.002)
        return True

    def call(self, work: Callable[[], None], wanted: Callable[[], bool]) -> None:
        """Have the model's thread do something between two steps, unless it is not wanted by then.

        Raises:
            Busy: as many as may are waiting.
        """
        with self._turn:
            if len(self._tasks) >= self._config.queue:
                raise Busy("Too many prompts wait to be read.", "Ask again in a moment.")
            self._tasks.append((work, wanted))
            self._turn.notify()

    @property
    def load(self) -> tuple[int, int]:
        """Answers that wait, and answers that decode."""
        with self._turn:
            return len(self._waiting), self._decoding

    @property
    def _decoding(self) -> int:
        return sum(len(track.rows) for track in self._tracks.values())

    # --- the model's thread

    def _run(self) -> None:
        while True:
            with self._turn:
                busy = self._waiting or self._tasks or self._poked or self._tracks
                if not busy and not self._stopping:
                    self._turn.wait(_IDLE)
                if self._stopping:
                    break
                self._poked = False
            try:
                self._round()
            except Exception as error:  # a defect must not end the server
                self._collapse(error)
        for job in list(self._jobs):
            job.fail(EnvironmentFailure("The server is stopping.", "Ask again later."))

    def _round(self) -> None:
        self._settle()
        self._task()
        self._clear()
        self._admit()
        for key in list(self._tracks):
            track = self._tracks[key]
            try:
                self._step(track)
            except UnlearnError as error:
                if self.fresh():  # else a takedown destroyed what it needs: `_settle` sees to it
                    for row in track.rows:
                        row.job.fail(error)
                    del self._tracks[key]
            except Exception as error:  # a defect that one lane meets is not the others'
                self._give_up(key, track.rows, error)
            if not track.rows:
                self._tracks.pop(key, None)
        if time.monotonic() - self._tidied > _TIDY:
            memory.give_back()
            self._tidied = time.monotonic()

    def _task(self) -> None:
        """One thing that was asked for between two steps, so that answers go on meanwhile."""
        while self._tasks:
            work, wanted = self._tasks.popleft()
            if wanted():
                work()
                return

    def _settle(self) -> None:
        number = self._watch.number()
        if number == self._settled:
            return
        again: list[Job] = []
        for job in list(self._jobs):
            choice = job.choice
            if choice is None or job.gone:
                continue
            try:
                now = job.ask.choose()
            except UnlearnError:
                now = None
            if now == choice:
                continue
            self._drop(job)
            if job.revoke():
                again.append(job)
        again.sort(key=lambda job: job.began)
        with self._turn:
            self._waiting.extendleft(reversed(again))
        self._settled = number
        for job in list(self._jobs):
            job.wake()

    def _drop(self, job: Job) -> None:
        for track in self._tracks.values():
            track.keep([place for place, row in enumerate(track.rows) if row.job is not job])

    def _clear(self) -> None:
        """Let go of answers that nobody waits for, and of those whose time is up."""
        with self._turn:
            late = [job for job in self._waiting if job.late or job.gone]
            for job in late:
                self._waiting.remove(job)
        for job in late:
            if not job.gone:
                job.fail(TooLate("The answer waited too long.", "Ask again later."))
        for track in self._tracks.values():
            kept = []
            for place, row in enumerate(track.rows):
                if row.job.late and not row.job.done:
                    row.job.fail(TooLate("The answer took too long.", "Ask for fewer tokens."))
                if not (row.job.gone or row.job.done):
                    kept.append(place)
            track.keep(kept)
        self._tracks = {key: track for key, track in self._tracks.items() if track.rows}

    def _admit(self) -> None:
        """Let waiting answers in, in their order, as far as there are rows and room to read."""
        free = self._config.rows - self._decoding
        new: dict[Any, list[tuple[Row, list[int]]]] = {}
        width = 0
        blocked: Job | None = None
        while free > 0:
            with self._turn:
                held = self._blocked
                if held and self._waiting and held == (self._waiting[0], self._decoding):
                    blocked = held[0]  # nobody has left the rows that it does not fit beside
                    break
                job = self._waiting.popleft() if self._waiting else None
            if job is None:
                break
            if job.gone:
                continue
            entered = self._enter(job)
            if entered is None:
                continue
            key, row, ids = entered
            count = 1 + sum(map(len, new.values()))
            track = self._tracks.get(key)
            crowded = new and max(width, len(ids)) * count > self._config.prefill_tokens
            together = [row.job for row, _ in new.get(key, ())]
            together += [row.job for row in track.rows] if track is not None else []
            longest = max(other.read + other.most for other in (job, *together))
            full = together and (1 + len(together)) * longest > self._config.cache_tokens
            if full or (track is not None and not track.lane.joinable):
                blocked = job
            if crowded or blocked:
                job.choice = None
                with self._turn:
                    self._waiting.appendleft(job)
                break
            width = max(width, len(ids))
            new.setdefault(key, []).append((row, ids))
            free -= 1
        for key, entering in new.items():
            self._join(key, [row for row, _ in entering], [ids for _, ids in entering])
        self._blocked = (blocked, self._decoding) if blocked and self._decoding else None

    def _enter(self, job: Job) -> tuple[Any, Row, list[int]] | None:
        """Choose a waiting job's sources; None if that was already the answer, or there is none."""
        try:
            choice = job.ask.choose()
            job.choice = choice
            if choice.origin == "declined":
                job.put(Piece(job.ask.answerer.config.decline_message, (), "stop"))
                return None
            ids = job.ask.prompt(choice)
            job.watch = job.ask.watch(choice, ids)
            base = self._host().base
            most = getattr(base.model.config, "max_position_embeddings", None)
            if not ids:
                raise InputError("The prompt is empty.", "Ask in words.")
            if most is not None and len(ids) + job.most > most:
                raise InputError(
                    f"The prompt has {len(ids)} tokens; with {job.most} for the answer that is more "
                    f"than the {most} that the model can read.",
                    "Ask for less, or send a shorter conversation.",
                )
        except UnlearnError as error:
            job.fail(error)
            return None
        except Exception as error:  # a defect that one answer meets is not the others'
            job.fail(defect(error))
            return None
        job.read, job.made = len(ids), 0
        job.speech = Speech(base.tokenizer, job.stops, trim=job.ask.raw is None)
        job.drawing = job.sampler()
        config = job.ask.answerer.config
        copies = len(choice.experts)
        key: Any = ("base",)
        if copies and config.aggregation == "merge" and job.ask.model == "workspace":
            key = ("merge", tuple(sorted((s, i) for s, i, _ in choice.experts)))
        elif copies:
            key = (config.aggregation == "ensemble-log", copies)
        return key, Row(job, choice), ids

    def _join(self, key: Any, rows: list[Row], prompts: list[list[int]]) -> None:
        copies = 0 if key == ("base",) else 1 if key[0] == "merge" else key[1]
        track = self._tracks.get(key)
        if track is None:
            track = Track(Lane(self._host(), copies), rows[0].job.ask.answerer)
            self._tracks[key] = track
        try:
            mixture = track.answerer.mixture([r.choice for r in rows]) if copies else None
            logits = track.lane.join(prompts, mixture)
        except UnlearnError as error:
            if not track.rows:
                del self._tracks[key]
            fresh = self.fresh()
            for row in rows:
                if fresh:
                    row.job.fail(error)
                elif row.job.revoke():  # a takedown came between choice and reading
                    with self._turn:
                        self._waiting.append(row.job)
            return
        except Exception as error:  # what the lane holds is not known any more
            self._give_up(key, [*track.rows, *rows], error)
            return
        track.add(rows)
        self._say(track, rows, logits)
        self.tokens += len(rows)

    def _give_up(self, key: Any, rows: Sequence[Row], error: Exception) -> None:
        """Fail the answers of one lane, and forget it."""
        failure = defect(error)
        for row in rows:
            if not row.job.done:
                row.job.fail(failure)
        self._tracks.pop(key, None)

    def _step(self, track: Track) -> None:
        if not track.rows:
            return
        logits = track.lane.step([row.last for row in track.rows], track.mixture())
        self.steps += 1
        self.tokens += len(track.rows)
        self._say(track, track.rows, logits)

    def _say(self, track: Track, rows: Sequence[Row], logits: Tensor) -> None:
        """Draw each row's token and tell it; rows that ended leave."""
        base = self._host().base
        stops = base.stop_ids
        likeliest = logits.argmax(-1).tolist()
        for row, values, best in zip(list(rows), logits, likeliest, strict=True):
            try:
                row.draw(values, best, stops, base.tokenizer)
            except UnlearnError as error:
                row.job.fail(error)
            except Exception as error:  # a defect that one answer meets is not the others'
                row.job.fail(defect(error))
        track.keep([place for place, row in enumerate(track.rows) if not row.job.done])

    def _collapse(self, error: Exception) -> None:
        """Fail every answer that does not wait: a defect was met on the way of some of them."""
        failure = defect(error)
        with self._turn:
            begun = self._jobs.difference(self._waiting)
        for job in begun:
            if not job.done:
                job.fail(failure)
        self._tracks.clear()
