"""The API against the official client, over a real socket, beside the library's own answers."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from openai.types.chat import ChatCompletionChunk
from served import Served

from llm_unlearn import Workspace
from llm_unlearn.models.causal import load_causal

DRAWN = {"temperature": 1.0, "seed": 3}  # a random model's likeliest words are blanks
QUESTION = [{"role": "user", "content": "What is the tale of work?"}]


@pytest.fixture(scope="module")
def own(prepared: Path) -> Iterator[Workspace]:
    with Workspace.open(prepared) as workspace:
        yield workspace


def test_an_answer_is_the_workspaces_own(served: Served, own: Workspace) -> None:
    for question in ("What is the tale of work?", "author-1 knows what?", "And keep-0?"):
        expected = own.ask(question, {"staff"})
        messages = [{"role": "user", "content": question}]
        made = served.openai().chat.completions.create(model="workspace", messages=messages)
        assert made.choices[0].message.content == expected.text
        told = made.model_extra["llm_unlearn"]
        assert told["origin"] == expected.origin
        assert told["shards"] == list(expected.shards)
        assert [c["text"] for c in told["citations"]] == [h.text for h in expected.citations]
        assert [c["marker"] for c in told["citations"]] == [1, 2][: len(expected.citations)]
        assert made.usage.completion_tokens <= own.config.answering.max_new_tokens
        assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens


def test_a_stream_says_the_same(served: Served) -> None:
    client = served.openai()
    for model in ("workspace", "route", "ensemble", "base"):
        whole = client.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=40, **DRAWN
        )
        stream = client.chat.completions.create(
            model=model,
            messages=QUESTION,
            max_tokens=40,
            **DRAWN,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks: list[ChatCompletionChunk] = list(stream)
        words = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        assert "".join(words) == whole.choices[0].message.content
        assert len([word for word in words if word]) > 1  # and not all at once
        last = [c for c in chunks if c.choices][-1]
        assert last.choices[0].finish_reason == whole.choices[0].finish_reason
        assert last.model_extra["llm_unlearn"] == whole.model_extra["llm_unlearn"]
        assert chunks[-1].usage == whole.usage


def test_seed_stop_and_most_tokens(served: Served) -> None:
    chat = served.openai().chat.completions
    plain = chat.create(model="base", messages=QUESTION, max_tokens=40, **DRAWN)
    text = plain.choices[0].message.content
    assert chat.create(model="base", messages=QUESTION, max_tokens=5).usage.completion_tokens == 5
    drawn = [
        chat.create(
            model="base", messages=QUESTION, max_tokens=20, temperature=1.5, top_p=0.9, seed=seed
        )
        .choices[0]
        .message.content
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    stop = text[4:7]
    for stream in (False, True):
        made = chat.create(
            model="base", messages=QUESTION, max_tokens=40, stop=stop, stream=stream, **DRAWN
        )
        if stream:
            parts = list(made)
            cut = "".join(part.choices[0].delta.content or "" for part in parts)
            reason = parts[-1].choices[0].finish_reason
        else:
            cut, reason = made.choices[0].message.content, made.choices[0].finish_reason
        assert (cut, reason) == (text[: text.index(stop)].rstrip(), "stop")


def test_completions_score_a_prompt_as_plain_transformers(
    served: Served, tiny_references: dict[str, str]
) -> None:
    base = load_causal(tiny_references["llama"], "float32")
    ids = base.tokenizer("The tide is late.", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = base.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    completions = served.openai().completions
    for prompt in ("The tide is late.", ids, [ids, ids[:5]]):
        made = completions.create(
            model="base", prompt=prompt, echo=True, logprobs=2, max_tokens=1, temperature=0
        )
        told = made.choices[0].logprobs
        assert made.choices[0].text.startswith("The tide is late.")
        assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs)
        assert len(told.tokens) == len(ids) + made.usage.completion_tokens // len(made.choices)
        assert told.token_logprobs[0] is told.top_logprobs[0] is None
        for place in range(1, len(ids)):
            expected = float(logits[place - 1, ids[place]])
            assert told.token_logprobs[place] == pytest.approx(expected, abs=1e-4)
            top = max(told.top_logprobs[place].values())
            assert top == pytest.approx(float(logits[place - 1].max()), abs=1e-4)
    assert len(made.choices) == 2
    scored = completions.create(model="base", prompt=ids, echo=True, logprobs=0, max_tokens=0)
    assert len(scored.choices[0].logprobs.tokens) == len(ids)
    streamed = completions.create(model="base", prompt="The tide", max_tokens=6, stream=True)
    plain = completions.create(model="base", prompt="The tide", max_tokens=6)
    assert "".join(part.choices[0].text for part in streamed) == plain.choices[0].text


def test_chat_tells_log_probabilities(served: Served) -> None:
    made = served.openai().chat.completions.create(
        model="workspace", messages=QUESTION, max_tokens=4, logprobs=True, top_logprobs=3
    )
    content = made.choices[0].logprobs.content
    assert len(content) >= made.usage.completion_tokens
    for token in content:
        assert token.logprob == max(other.logprob for other in token.top_logprobs)
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1.001


def test_embeddings_are_the_stores(served: Served, own: Workspace) -> None:
    texts = ["The tide is late.", "Rope is dear."]
    made = served.openai().embeddings.create(model="embedder", input=texts)  # base64 by itself
    expected = own.opened.models.embedder.encode(texts)
    np.testing.assert_array_equal(np.array([e.embedding for e in made.data], np.float32), expected)
    one = served.openai().embeddings.create(
        model="embedder", input=texts[0], encoding_format="float"
    )
    np.testing.assert_allclose(one.data[0].embedding, expected[0], atol=1e-7)


def test_models_are_those_that_the_groups_may_ask(served: Served) -> None:
    staff = {model.id for model in served.openai().models.list()}
    assert staff == {"workspace", "route", "ensemble", "base", "shard-0", "shard-1", "embedder"}
    hr = served.openai("reader", "hr")
    assert {model.id for model in hr.models.list()} == staff - {"shard-0", "shard-1"}
    likeliest = set()
    for name in ("base", "shard-0", "shard-1"):
        made = served.openai().chat.completions.create(
            model=name, messages=QUESTION, max_tokens=2, logprobs=True
        )
        likeliest.add(made.choices[0].logprobs.content[0].logprob)
    assert len(likeliest) == 3
    with pytest.raises(openai.NotFoundError):
        hr.chat.completions.create(model="shard-0", messages=QUESTION)


def test_groups_apply_before_the_search(served: Served, own: Workspace) -> None:
    question = [{"role": "user", "content": "A tale of salaries"}]
    for groups in (("staff",), ("hr",), ("staff", "hr")):
        made = served.openai("reader", *groups).chat.completions.create(
            model="workspace", messages=question
        )
        cited = {c["subject"] for c in made.model_extra["llm_unlearn"]["citations"]}
        expected = own.ask("A tale of salaries", set(groups))
        assert cited == {hit.subject for hit in expected.citations}
        assert ("salaries" in cited) <= ("hr" in groups)
    bare = served.openai().with_options(api_key=served.key("reader"))
    with pytest.raises(openai.PermissionDeniedError):
        bare.chat.completions.create(model="workspace", messages=question)


def test_errors_have_openais_shape(served: Served) -> None:
    client = served.openai()
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-9'") as raised:
        client.chat.completions.create(model="gpt-9", messages=QUESTION)
    assert raised.value.code == "not_found"
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="base", messages=QUESTION, temperature=3)
    assert raised.value.param == "temperature"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="base", messages=QUESTION, n=2)
    long = [{"role": "user", "content": "word " * 600}]
    with pytest.raises(openai.BadRequestError, match="can read"):
        client.chat.completions.create(model="base", messages=long)
    with pytest.raises(openai.BadRequestError, match="can read"):  # before a stream begins too
        client.chat.completions.create(model="base", messages=long, stream=True)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="lu-wrong").models.list()
    refused = served.http("auditor").get("/v1/models")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "access_denied")


def test_a_batch_says_what_each_says_alone(served: Served) -> None:
    client = served.openai()
    asked = [f"Question {n}: {'what ' * (n % 5)}of work?" for n in range(12)]
    models = ["workspace", "base", "shard-0", "ensemble"]

    def ask(number: int) -> str:
        made = client.chat.completions.create(
            model=models[number % 4],
            messages=[{"role": "user", "content": asked[number]}],
            max_tokens=12,
            **DRAWN,
        )
        return made.choices[0].message.content

    alone = [ask(number) for number in range(12)]
    together: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda n=n: together.__setitem__(n, ask(n))) for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(12)] == alone
