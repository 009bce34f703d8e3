"""`/v1/completions`, `/v1/embeddings`, `/v1/models`: the model and the embedder without a conversation.

A prompt is continued as it is by `base`, `shard-N` or `ensemble`; no passage is looked for. `echo` with
`logprobs` scores the prompt itself, as lm-evaluation-harness asks for it. What is continued is guarded
as an adapter's answer is (`guarding`); scores of the caller's own words are not.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.models.sampling import Drawn, Sampler
from llm_unlearn.models.scoring import prompt_scores
from llm_unlearn.retrieval.embedding import encode
from llm_unlearn.serve.access import Key
from llm_unlearn.serve.asking import WHOLE, Ask, encoded, models
from llm_unlearn.serve.backend import Backend, backend, may
from llm_unlearn.serve.events import JSON, Taken
from llm_unlearn.serve.job import Job, Piece
from llm_unlearn.serve.room import Busy
from llm_unlearn.serve.streaming import check_length, drawn_on, finished, streamed, usage
from llm_unlearn.serve.wire import (
    CompletionRequest,
    Embedded,
    EmbeddingAnswer,
    EmbeddingRequest,
    Model,
    ModelList,
    TextAnswer,
    TextChoice,
    TextLogprobs,
    Usage,
)

router = APIRouter()
Asker = Annotated[Key, Depends(may("reader", "operator"))]
_TRIES = 4


@router.post("/v1/completions", response_model=TextAnswer)
async def completions(request: Request, body: CompletionRequest, key: Asker) -> Response:
    """Continue prompts as they are."""
    server = backend(request)
    if body.model in WHOLE and body.model != "ensemble":
        raise InputError(
            f"Model {body.model!r} answers questions and continues no text.",
            "Use /v1/chat/completions, or the model 'base', 'ensemble' or 'shard-N'.",
        )
    most = 16 if body.max_tokens is None else body.max_tokens
    if most > server.config.max_new_tokens:
        raise InputError(f"max_tokens is {most}; {server.config.max_new_tokens} is the most.")
    for prompt in body.prompts:
        await check_length(server, [prompt])
    under_way: set[Job] = set()

    def released() -> None:
        for job in under_way:
            server.engine.release(job)

    if not body.stream:
        whole = _whole(server, body, key, most, under_way)
        return Taken(whole, released, drawn_on(server, body.model), JSON)
    if len(body.prompts) > 1 or body.echo or body.logprobs is not None or not most:
        raise InputError(
            "A stream continues one prompt by at least one token, without echo and logprobs.",
            "Ask without stream.",
        )
    (job,) = _jobs(server, body, key, most, under_way)
    return Taken(_stream(server, body, key, job), released, drawn_on(server, body.model))


def _jobs(
    server: Backend, body: CompletionRequest, key: Key, most: int, under_way: set[Job]
) -> list[Job]:
    """Queue the continuation of each prompt."""
    jobs = []
    for prompt in body.prompts:
        job = Job(
            Ask(
                server.ways,
                body.model,
                frozenset(key.groups),
                raw=prompt,
                guarding=server.guarding,
            ),
            lambda: Sampler(body.temperature or 0.0, body.top_p or 1.0, body.seed, body.logprobs),
            most,
            body.stops,
            seconds=server.config.answer_seconds,
        )
        server.engine.submit(job)
        under_way.add(job)
        jobs.append(job)
    return jobs


async def _whole(
    server: Backend, body: CompletionRequest, key: Key, most: int, under_way: set[Job]
) -> AsyncIterator[bytes]:
    """All prompts together; begun anew if the workspace changed before the last of them was done."""
    for _ in range(_TRIES):
        number = server.engine.commits()
        reading = functools.partial(_read, server, body, key)
        read = [await server.modelled(functools.partial(reading, p)) for p in body.prompts]
        jobs = _jobs(server, body, key, most, under_way) if most else []
        made: list[tuple[str, list[Drawn], str]] = [("", [], "length") for _ in read]
        for place, box in enumerate([server.engine.mailbox(job) for job in jobs]):
            pieces = await box.whole(list)
            drawn = [token for piece in pieces for token in piece.tokens]
            ended = finished(pieces[-1].finish or "length")
            made[place] = ("".join(piece.text for piece in pieces), drawn, ended)
        tokens = sum(job.made for job in jobs)
        answer = await asyncio.to_thread(_answer, server, body, read, made, tokens)
        # the base model draws on nothing that can be taken down
        if body.model == "base" or server.engine.commits() == number:
            yield answer
            return
        for job in jobs:
            server.engine.release(job)
    raise Busy("The workspace keeps changing while this is answered.", "Ask again in a moment.")


def _read(
    server: Backend, body: CompletionRequest, key: Key, prompt: str | tuple[int, ...]
) -> tuple[list[int], list[Drawn]]:
    """A prompt's token ids and, if asked for, their scores; in the model's thread."""
    ask = Ask(server.ways, body.model, frozenset(key.groups), raw=prompt)
    choice = ask.choose()
    host = server.reader.opened.models.host
    ids = encoded(host.base.tokenizer, prompt)
    most = getattr(host.base.model.config, "max_position_embeddings", None)
    if not ids:
        raise InputError("The prompt is empty.", "Give a text.")
    if most is not None and len(ids) > most:
        raise InputError(f"The prompt has {len(ids)} tokens; the model reads {most}.")
    if not body.echo or body.logprobs is None:
        return ids, []
    mixture = ask.answerer.mixture([choice]) if choice.experts else None
    return ids, prompt_scores(host, ids, mixture, body.logprobs)


def _answer(
    server: Backend,
    body: CompletionRequest,
    read: Sequence[tuple[list[int], list[Drawn]]],
    made: Sequence[tuple[str, list[Drawn], str]],
    tokens: int,
) -> bytes:
    tokenizer = server.reader.opened.models.host.base.tokenizer
    choices = []
    for index, ((ids, scores), (text, drawn, ended)) in enumerate(zip(read, made, strict=True)):
        before = tokenizer.decode(ids) if body.echo else ""
        told = None
        if body.logprobs is not None:
            told = _logprobs(tokenizer, ids if body.echo else [], scores, drawn)
        choice = {"index": index, "text": before + text, "logprobs": told, "finish_reason": ended}
        choices.append(TextChoice.model_validate(choice))
    count = sum(len(ids) for ids, _ in read)
    usage = Usage(prompt_tokens=count, completion_tokens=tokens, total_tokens=count + tokens)
    answer = TextAnswer(
        id=_id(), created=int(time.time()), model=body.model, choices=choices, usage=usage
    )
    return answer.model_dump_json().encode()


def _logprobs(
    tokenizer: Any, ids: Sequence[int], scores: Sequence[Drawn], drawn: Sequence[Drawn]
) -> TextLogprobs:
    """Of the prompt's tokens (the first has none) and those that follow."""
    every = [*ids, *(d.token for d in drawn)]
    known: list[Drawn | None] = [*([None] if ids else []), *scores, *drawn]
    texts = [tokenizer.decode([token]) for token in every]
    offsets, offset = [], 0
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return TextLogprobs(
        tokens=texts,
        token_logprobs=[None if d is None else d.logprob for d in known],
        # two tokens can have one text: the likelier is told
        top_logprobs=[
            None if d is None else {tokenizer.decode([t]): p for t, p in reversed(d.top)}
            for d in known
        ],
        text_offset=offsets,
    )


def _id() -> str:
    return f"cmpl-{secrets.token_hex(12)}"


def _stream(server: Backend, body: CompletionRequest, key: Key, job: Job) -> AsyncIterator[bytes]:
    shared = {
        "id": _id(),
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
    }

    def event(text: str, finish: str | None = None) -> str:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        return json.dumps({**shared, "choices": [choice]})

    def tell(pieces: Sequence[Piece], _first: bool) -> list[str]:
        told = [event(piece.text) for piece in pieces if piece.text]
        finish = pieces[-1].finish if pieces else None
        if finish:
            told.append(event("", finished(finish)))
            if body.stream_options and body.stream_options.include_usage:
                used = usage(job).model_dump()
                told.append(json.dumps({**shared, "choices": [], "usage": used}))
        return told

    return streamed(server, key, job, tell)


@router.post("/v1/embeddings")
async def embeddings(request: Request, body: EmbeddingRequest, _: Asker) -> EmbeddingAnswer:
    """The vectors that documents and questions are compared by."""
    server = backend(request)
    embedder = server.reader.opened.models.embedder
    if body.model not in ("embedder", server.reader.config.embedder):
        raise NotFound(f"There is no embedder {body.model!r} here.", "Ask for 'embedder'.")
    if body.dimensions not in (None, embedder.dim):
        raise InputError(f"The vectors have {embedder.dim} numbers, not {body.dimensions}.")
    texts = [body.input] if isinstance(body.input, str) else list(body.input)
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        raise InputError("A text is not valid UTF-8.")
    plain = body.encoding_format != "base64"
    left = threading.Event()

    def embed() -> EmbeddingAnswer:
        data, count, tokenizer = [], 0, embedder.tokenizer
        for index, text in enumerate(texts):
            if left.is_set():
                break
            vector = encode(embedder, [text])[0]
            packed = base64.b64encode(vector.astype("<f4").tobytes()).decode
            data.append(Embedded(index=index, embedding=vector.tolist() if plain else packed()))
            count += len(tokenizer.encode(text).ids)
        usage = {"prompt_tokens": count, "total_tokens": count}
        return EmbeddingAnswer(data=data, model=body.model, usage=usage)

    try:
        return await server.embeddings.do(embed)
    finally:
        left.set()


@router.get("/v1/models")
async def list_models(request: Request, key: Asker) -> ModelList:
    """What this key can ask: whole ways to answer, the base model, each shard, the embedder."""
    server = backend(request)
    names = await server.modelled(lambda: _names(server, key))
    return ModelList(data=[Model(id=name) for name in names])


@router.get("/v1/models/{model}")
async def get_model(request: Request, model: str, key: Asker) -> Model:
    """One of them."""
    server = backend(request)
    if model not in await server.modelled(lambda: _names(server, key)):
        raise NotFound(f"There is no model {model!r} here.", "List them at /v1/models.")
    return Model(id=model)


def _names(server: Backend, key: Key) -> list[str]:
    return [*models(server.reader.opened, server.ways["workspace"], key.groups), "embedder"]
