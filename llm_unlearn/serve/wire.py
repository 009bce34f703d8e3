"""Bodies of OpenAI's API as far as they are understood here, and what stands beside them.

Unknown fields are passed over, as OpenAI's clients expect; what would change the answer and is not
supported (`n` above 1, tools, penalties, biases, formats of an answer other than text) is refused. Ours
are the fields `citations` of a question and `llm_unlearn` of an answer.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Finish = Literal["stop", "length", "content_filter"]
Temperature = Annotated[float, Field(ge=0, le=2)]
Share = Annotated[float, Field(gt=0, le=1)]
Words = Annotated[str, Field(max_length=1 << 19)]


class Part(BaseModel):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: Words


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Words | Annotated[list[Part], Field(min_length=1, max_length=64)]

    @property
    def words(self) -> str:
        """Its text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    """What a stream tells besides words."""

    include_usage: bool = False


class PlainText(BaseModel):
    """The one format of an answer."""

    type: Literal["text"]


class _Sampling(BaseModel):
    model_config = ConfigDict(extra="ignore")

    model: str = Field("workspace", max_length=256, description="one of /v1/models")
    temperature: Temperature | None = Field(
        None, description="0 and nothing given mean the likeliest token (OpenAI's default is 1)"
    )
    top_p: Share | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(max_length=256)]
        | Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=4)]
        | None
    ) = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = Field(None, description="only one answer is made")
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = Field(
        None, description="none"
    )

    @property
    def stops(self) -> list[str]:
        """Its stop sequences."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


class ChatRequest(_Sampling):
    """A question."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="none")
    functions: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="none")
    response_format: PlainText | None = None
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    web_search_options: None = None
    citations: Literal["field", "inline"] = Field(
        "field",
        description="where passages are named: in `llm_unlearn.citations` alone, or also as [1], "
        "[2] at the end of the answer",
    )

    @field_validator("messages")
    @classmethod
    def _asks(cls, value: list[ChatMessage]) -> list[ChatMessage]:
        if value[-1].role != "user" or not value[-1].words.strip():
            raise ValueError("the last message must be the user's, with words in it")
        if any("\ud800" <= c <= "\udfff" for message in value for c in message.words):
            raise ValueError("a message is not valid UTF-8")
        return value


class CompletionRequest(_Sampling):
    """A prompt that is continued as it is, by `base`, a shard or `ensemble`."""

    model: str = Field("base", max_length=256)
    prompt: (
        Words
        | Annotated[list[Words], Field(min_length=1, max_length=64)]
        | Annotated[list[int], Field(min_length=1, max_length=1 << 16)]
        | Annotated[
            list[Annotated[list[int], Field(min_length=1)]], Field(min_length=1, max_length=64)
        ]
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Literal[1] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = Field(None, description="none")

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """Each prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [tuple(int(token) for token in self.prompt)]
        return [p if isinstance(p, str) else tuple(p) for p in self.prompt]


class EmbeddingRequest(BaseModel):
    """Texts to embed as documents and questions are."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field("embedder", max_length=256)
    input: (
        Annotated[str, Field(min_length=1, max_length=1 << 16)]
        | Annotated[
            list[Annotated[str, Field(min_length=1, max_length=1 << 16)]],
            Field(min_length=1, max_length=256),
        ]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, description="the embedder's own, or nothing")


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Citation(BaseModel):
    """A passage that the model was given."""

    marker: int
    document: str
    subject: str
    source: str
    license: str
    start: int
    end: int
    score: float
    text: str


class Origins(BaseModel):
    """Ours: where an answer comes from, and if it was ended, why.

    `shares` says whether the answer holds words of a passage, by its marker.
    """

    origin: Literal["store", "adapter", "base", "declined"]
    score: float = 0.0
    shards: list[int] = []
    citations: list[Citation] = []
    marked: list[int] = Field(
        [], description="markers of passages that the answer repeats words of"
    )
    ended: Literal["takedown", "guard"] | None = None
    reason: str | None = None


class LogprobOther(BaseModel):
    """A token that could have come."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class LogprobToken(LogprobOther):
    """A token that came."""

    top_logprobs: list[LogprobOther] = []


class ChatLogprobs(BaseModel):
    """Of each token."""

    content: list[LogprobToken]


class AnswerMessage(BaseModel):
    """The answer's words."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """The one answer."""

    index: int = 0
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish


class ChatAnswer(BaseModel):
    """An answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    llm_unlearn: Origins


class TextLogprobs(BaseModel):
    """Of each token of the prompt and what follows it."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    """How one prompt goes on."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Finish


class TextAnswer(BaseModel):
    """How prompts go on."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class Embedded(BaseModel):
    """One vector, as numbers or as base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingAnswer(BaseModel):
    """Vectors."""

    object: Literal["list"] = "list"
    data: list[Embedded]
    model: str
    usage: dict[str, int]


class Model(BaseModel):
    """A name that can be asked."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "llm-unlearn"


class ModelList(BaseModel):
    """All names that this key can ask."""

    object: Literal["list"] = "list"
    data: list[Model]
