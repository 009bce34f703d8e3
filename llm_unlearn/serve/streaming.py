"""What both ways to answer say alike: the loop of a stream, how an answer ended, what it used.

Guarantees: a stream whose key was revoked ends with its next words; an error after the first word is
told in the stream, one before it with its own status.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from llm_unlearn.errors import UnlearnError
from llm_unlearn.serve import wire
from llm_unlearn.serve.access import Key
from llm_unlearn.serve.asking import fits
from llm_unlearn.serve.backend import Backend
from llm_unlearn.serve.events import lines
from llm_unlearn.serve.failures import Unknown, kind_of
from llm_unlearn.serve.job import Finish, Job, Piece

_SHORT: Final = 4096  # letters or tokens that are not worth another thread
Tell = Callable[[Sequence[Piece], bool], list[str]]
"""From pieces, and whether they are the first, to the data of events."""


async def streamed(server: Backend, key: Key, job: Job, tell: Tell) -> AsyncIterator[bytes]:
    """The events of one answer, as its words come."""
    box = server.engine.mailbox(job)
    begun = False
    while True:
        try:
            pieces = await box.take()
        except UnlearnError as error:
            if not begun:
                raise
            yield lines(kind_of(error)[1].model_dump_json())
            return
        if not server.access.still(key):
            revoked = kind_of(Unknown("This API key was revoked."))[1]
            yield lines(revoked.model_dump_json())
            return
        told = tell(pieces, not begun)
        ended = bool(pieces) and pieces[-1].finish is not None
        words = lines(*told, *(["[DONE]"] if ended else []))
        if not await box.stands():
            continue  # what is taken next says that it ended
        if not begun:
            server.metrics.first.observe(time.monotonic() - job.began)
        begun = True
        yield words
        if ended:
            return


async def check_length(server: Backend, texts: Sequence[str | tuple[int, ...]]) -> None:
    """Refuse a prompt that is too long for the model, outside the model's thread.

    Raises:
        InputError: it is.
    """
    if sum(map(len, texts)) > _SHORT:
        await asyncio.to_thread(fits, lambda: server.reader.opened.models.host, texts)


def drawn_on(server: Backend, model: str) -> Callable[[], int]:
    """Another number after any commit that an answer of this model may draw on: of `base` none."""
    return (lambda: 0) if model == "base" else server.engine.commits


def finished(finish: Finish) -> wire.Finish:
    """How an answer ended, in OpenAI's words."""
    return finish if finish == "stop" or finish == "length" else "content_filter"


def usage(job: Job) -> wire.Usage:
    """The tokens that an answer read and made."""
    return wire.Usage(
        prompt_tokens=job.read, completion_tokens=job.made, total_tokens=job.read + job.made
    )
