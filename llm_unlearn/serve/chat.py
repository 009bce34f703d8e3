"""`/v1/chat/completions`: an answer whole or as a stream of events."""

from __future__ import annotations

import functools
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from llm_unlearn.answering import Choice
from llm_unlearn.documents import Message
from llm_unlearn.models.sampling import Drawn, Sampler
from llm_unlearn.serve.access import Key
from llm_unlearn.serve.asking import Ask
from llm_unlearn.serve.backend import Backend, backend, may
from llm_unlearn.serve.citing import citations, marked
from llm_unlearn.serve.events import JSON, Taken
from llm_unlearn.serve.job import Finish, Job, Piece
from llm_unlearn.serve.streaming import check_length, drawn_on, finished, streamed, usage
from llm_unlearn.serve.wire import (
    AnswerMessage,
    ChatAnswer,
    ChatChoice,
    ChatLogprobs,
    ChatRequest,
    LogprobOther,
    LogprobToken,
    Origins,
)

router = APIRouter()
_REASON = {
    "takedown": "A document or adapter that this answer drew on was taken down.",
    "guard": "The answer was repeating a protected text.",
}


@router.post("/v1/chat/completions", response_model=ChatAnswer)
async def chat(
    request: Request, body: ChatRequest, key: Annotated[Key, Depends(may("reader", "operator"))]
) -> Response:
    """Answer a conversation. With `stream` the answer comes as server-sent events."""
    server = backend(request)
    job = _job(server, body, key)
    await check_length(server, [m.content for m in job.ask.messages])
    server.engine.submit(job)
    released = functools.partial(server.engine.release, job)
    if body.stream:
        return Taken(_events(server, body, key, job), released, drawn_on(server, body.model))
    box = server.engine.mailbox(job)

    async def whole() -> AsyncIterator[bytes]:
        write = functools.partial(_whole, server, body, job)
        finish, told = await box.whole(write, apart=bool(body.logprobs))
        _count(server, job, finish)
        yield told

    return Taken(whole(), released, drawn_on(server, body.model), JSON)


def _job(server: Backend, body: ChatRequest, key: Key) -> Job:
    role = {"developer": "system"}
    messages = [
        Message.model_validate({"role": role.get(m.role, m.role), "content": m.words})
        for m in body.messages
        if m.words  # an answer that was cut off before its first word, say
    ]
    config = server.reader.config
    most = body.max_completion_tokens or body.max_tokens or config.answering.max_new_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return Job(
        Ask(
            server.ways,
            body.model,
            frozenset(key.groups),
            messages,
            guarding=server.guarding,
        ),
        lambda: Sampler(body.temperature or 0.0, body.top_p or 1.0, body.seed, logprobs),
        min(most, config.serving.max_new_tokens),
        body.stops,
        seconds=config.serving.answer_seconds,
    )


def _origins(choice: Choice | None, text: str, finish: Finish) -> Origins:
    ended = finish if finish in ("takedown", "guard") else None
    reason = _REASON.get(finish)
    if choice is None:  # taken down: what it drew on is not told again
        return Origins(origin="declined", ended=ended, reason=reason)
    return Origins(
        origin=choice.origin,
        score=choice.score,
        shards=[shard for shard, _, _ in choice.experts],
        citations=citations(choice.hits),
        marked=marked(choice.hits, text),
        ended=ended,
        reason=reason,
    )


def _count(server: Backend, job: Job, finish: Finish) -> None:
    origin = job.choice.origin if job.choice else "none"
    server.metrics.answers.labels(origin, finish).inc()
    server.metrics.tokens.labels("read").inc(job.read)
    server.metrics.tokens.labels("made").inc(job.made)
    server.metrics.redone.inc(job.redone)


def _inline(body: ChatRequest, told: Origins) -> str:
    if body.citations != "inline" or not told.marked:
        return ""
    return " " + "".join(f"[{number}]" for number in told.marked)


def _whole(
    server: Backend, body: ChatRequest, job: Job, pieces: Sequence[Piece]
) -> tuple[Finish, bytes]:
    text = "".join(piece.text for piece in pieces)
    finish = pieces[-1].finish or "stop"
    told = _origins(job.choice, text, finish)
    logprobs = None
    if body.logprobs:
        drawn = [token for piece in pieces for token in piece.tokens]
        logprobs = ChatLogprobs(content=_logprobs(server, drawn))
    choice = ChatChoice(
        message=AnswerMessage(content=text + _inline(body, told)),
        logprobs=logprobs,
        finish_reason=finished(finish),
    )
    answer = ChatAnswer(
        id=_id(),
        created=int(time.time()),
        model=body.model,
        choices=[choice],
        usage=usage(job),
        llm_unlearn=told,
    )
    return finish, answer.model_dump_json().encode()


def _logprobs(server: Backend, drawn: Sequence[Drawn]) -> list[LogprobToken]:
    tokenizer = server.reader.opened.models.host.base.tokenizer

    def one(token: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode([token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return [
        LogprobToken(
            **one(d.token, d.logprob), top_logprobs=[LogprobOther(**one(t, p)) for t, p in d.top]
        )
        for d in drawn
    ]


def _id() -> str:
    return f"chatcmpl-{secrets.token_hex(12)}"


def _events(server: Backend, body: ChatRequest, key: Key, job: Job) -> AsyncIterator[bytes]:
    shared = {
        "id": _id(),
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": body.model,
    }
    said: list[str] = []

    def event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        logprobs = more.pop("logprobs", None)
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return json.dumps({**shared, "choices": [choice], **more})

    def tell(pieces: Sequence[Piece], first: bool) -> list[str]:
        told = [event({"role": "assistant", "content": ""})] if first else []
        for piece in pieces:
            said.append(piece.text)
            if piece.text or piece.tokens:
                logprobs = [token.model_dump() for token in _logprobs(server, piece.tokens)]
                content = {"content": logprobs} if body.logprobs else None
                told.append(event({"content": piece.text}, logprobs=content))
            if piece.finish:
                origins = _origins(job.choice, "".join(said), piece.finish)
                inline = _inline(body, origins)
                if inline:
                    told.append(event({"content": inline}))
                told.append(event({}, finished(piece.finish), llm_unlearn=origins.model_dump()))
                if body.stream_options and body.stream_options.include_usage:
                    used = usage(job).model_dump()
                    told.append(json.dumps({**shared, "choices": [], "usage": used}))
                _count(server, job, piece.finish)
        return told

    return streamed(server, key, job, tell)
