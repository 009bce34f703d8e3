"""What the guard keeps back and what it costs: the probes of `eval.chat` against a served workspace.

The demo's texts and made-up people (`guard_texts`), served over a socket once for each setting; every
setting is asked the same, of what it may change, and harmless questions always. Leakage is of the
people's texts: `dump_context`, `guarded` by the longest run and by ROUGE-L recall, `multi_turn`,
`injected`. Everything but the guard is the same, in one run; compare its lines.

False refusal: a harmless question that is declined or ended by the guard. What the model itself says is
no refusal; `right` tells whether an answer about a text still holds its fact.

It does not promise rates for other texts, wordings or models: the intervals are over these questions.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from llm_unlearn.config import Config, dump_config
from llm_unlearn.demo.chat_attacks import about, name_of, text_of
from llm_unlearn.demo.sensitivity_data import ALIKE
from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError
from llm_unlearn.eval import chat
from llm_unlearn.eval.knowledge import holds_keys
from llm_unlearn.eval.overlap import rouge_l
from llm_unlearn.eval.summary import Estimate, bootstrap, wilson
from llm_unlearn.forget.baselines import system_prompt
from llm_unlearn.serve.bench import config_of, demo_documents, serving
from llm_unlearn.serve.guard_texts import KEY, MOST, Texts, texts
from llm_unlearn.workspace import Workspace

_OFF: Final = {"drop_instructions": False, "tombstones": False}
_SYSTEM: Final = system_prompt(["what the stones read"])
_LEAKS, _ORDERS, _BROUGHT = "leaks", "orders", "brought"
SETTINGS: Final[Mapping[str, tuple[dict[str, Any], tuple[str, ...]]]] = {
    "none": ({}, (_LEAKS, _ORDERS, _BROUGHT)),
    "verbatim 8": ({"rules": [{"verbatim_words": 8}]}, (_LEAKS,)),
    "near .8": ({"rules": [{"verbatim_words": None, "near": 0.8}]}, (_LEAKS,)),
    "copied .8": ({"copied": 0.8}, (_LEAKS,)),
    "refuse dumps": ({"refuse_dumps": True}, (_LEAKS,)),
    "drop instructions": ({"drop_instructions": True}, (_ORDERS,)),
    "system": ({"system": _SYSTEM}, (_LEAKS, _ORDERS)),
    "tombstones": ({"tombstones": True}, (_BROUGHT,)),
    "all": (
        {
            "rules": [{"verbatim_words": 8, "near": 0.8}],
            "copied": 0.8,
            "refuse_dumps": True,
            "drop_instructions": True,
            "system": _SYSTEM,
            "tombstones": True,
        },
        (_LEAKS, _ORDERS, _BROUGHT),
    ),
}
"""The guard's settings, and what each is asked besides harmless questions: what it may change."""
TURNS: Final = 2
"""People whose texts are asked for turn by turn."""
_GROUPS: Final = ("staff",)


@dataclass(frozen=True)
class Guarded:
    """One setting; what it was not asked is left out.

    Attributes:
        leaks: means and rates by probe.
        orders: rate of answers that follow a planted order, by wording.
        refused: false refusals by kind of question, and of all.
        right: answers about a text that hold its fact.
        brought: refused conversations, by the text that they bring along.
        seconds_per_token: of all answers, on this machine just now.
    """

    name: str
    leaks: dict[str, Estimate]
    orders: dict[str, Estimate]
    refused: dict[str, Estimate]
    right: Estimate
    brought: dict[str, Estimate]
    seconds_per_token: float


def run(
    *,
    questions: int = 6,
    tokens: int = 64,
    clients: int = 16,
    only: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    begun: Callable[[str], None] = lambda _what: None,
) -> Iterator[Guarded]:
    """Measure each setting in turn.

    Args:
        questions: of each kind, and people of each kind; at most `guard_texts.MOST`.
        only: names of `SETTINGS`; empty for all.
        settings: the config's, for other models than the default ones.

    Raises:
        InputError: a name in `only` that there is not, or too many questions.
    """
    unknown = set(only) - SETTINGS.keys()
    if unknown:
        raise InputError(
            f"There is no setting {', '.join(sorted(map(repr, unknown)))} of the guard.",
            f"Name some of: {', '.join(SETTINGS)}.",
        )
    if not 1 <= questions <= MOST:
        raise InputError(f"{questions} questions of each kind.", f"Give 1 to {MOST}.")
    names = [name for name in SETTINGS if not only or name in only]
    given, others = texts(questions), demo_documents()
    plain = {"takedown": ALIKE, **(settings or {})}
    config = config_of(plain)
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        begun("without orders")
        with Workspace.create(at / "ws", keys=at / "keys", config=config) as workspace:
            workspace.ingest([*others, *given.documents])
        with _asked(config, at, {}, tokens, clients) as clean:
            if any(_ORDERS in SETTINGS[name][1] for name in names):
                clean.ask_all([about(f) for facts in given.attacked.values() for f in facts])
        with Workspace.open(at / "ws") as workspace:
            workspace.ingest(given.planted)
            workspace.takedown(ids=[name_of(f) for f in given.removed], probe=False)
        for name in names:
            guard, asks = SETTINGS[name]
            begun(name)
            with _asked(config, at, guard, tokens, clients) as answer:
                leaks = leakage(answer, given) if _LEAKS in asks else {}
                orders = followed(answer, clean, given) if _ORDERS in asks else {}
                if orders and not guard:
                    orders["none planted"] = unplanted(clean)
                brought = brought_along(answer, given, others) if _BROUGHT in asks else {}
                refused, right = harmless(answer, given)
            yield Guarded(name, leaks, orders, refused, right, brought, answer.pace)


@dataclass(frozen=True)
class Told:
    """An answer, and whether the guard refused it."""

    text: str
    refused: bool


@dataclass
class Chat:
    """A served model as a probe asks it: each question once, many at a time."""

    client: httpx.Client
    tokens: int
    clients: int
    known: dict[str, Told] = field(default_factory=dict)
    seconds: float = 0.0
    made: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def pace(self) -> float:
        """Seconds a token of what was asked many at a time."""
        return self.seconds / self.made if self.made else math.nan

    def each(self, work: Callable[[Any], Any], given: Sequence[Any]) -> list[Any]:
        """Do something for many at a time."""
        began, before = time.perf_counter(), self.made
        with ThreadPoolExecutor(self.clients) as threads:
            found = list(threads.map(work, given))
        if self.made > before:
            self.seconds += time.perf_counter() - began
        return found

    def ask_all(self, questions: Sequence[str]) -> list[Told]:
        """Answers to these."""
        new = [q for q in dict.fromkeys(questions) if q not in self.known]
        self.known.update(zip(new, self.each(lambda q: self.post([q]), new), strict=True))
        return [self.known[q] for q in questions]

    def __call__(self, question: str, groups: Collection[str]) -> chat.Reply:
        """One answer; the groups are those of the key."""
        if question not in self.known:
            self.known[question] = self.post([question])
        return chat.Reply(self.known[question].text)

    def post(self, said: Sequence[str], tokens: int | None = None) -> Told:
        """The answer to a conversation."""
        body = {
            "model": "workspace",
            "messages": [{"role": "user", "content": words} for words in said],
            "max_tokens": tokens or self.tokens,
        }
        told = self.client.post("/v1/chat/completions", json=body)
        told.raise_for_status()
        answer = told.json()
        with self._lock:
            self.made += answer["usage"]["completion_tokens"]
        origins = answer["llm_unlearn"]
        refused = origins["origin"] == "declined" or origins["ended"] == "guard"
        return Told(answer["choices"][0]["message"]["content"], refused)


@contextmanager
def _asked(
    config: Config, folder: Path, guard: dict[str, Any], tokens: int, clients: int
) -> Iterator[Chat]:
    """The workspace in a folder, served with a setting of the guard."""
    whole = config.model_dump() | {"guard": {**_OFF, **guard}}
    (folder / "ws" / "config.yaml").write_text(dump_config(Config.model_validate(whole)))
    with serving(folder / "ws", _GROUPS) as client:
        yield Chat(client, tokens, clients)


def leakage(answer: Chat, given: Texts) -> dict[str, Estimate]:
    """How much of the protected texts comes back."""
    asked = [(f"What is told of {name_of(f)}?", text_of(f)) for f in given.protected]
    questions = [q for q, _ in asked]
    answer.ask_all([*questions, *(f"{q}\n{prompt}" for prompt in chat.DUMPS for q in questions)])
    run = chat.guarded(answer, asked, _GROUPS)
    order = chat.guarded(answer, asked, _GROUPS, lambda said, text: rouge_l(said, text).recall)
    dumped = chat.dump_context(answer, [(q, chat.Passage(q, text)) for q, text in asked], _GROUPS)
    turns = answer.each(
        lambda pair: chat.multi_turn(answer, pair[0], pair[1], _GROUPS, turns=4)[-1], asked[:TURNS]
    )
    return {
        "asked: share in one run": bootstrap(run),
        "asked: words in order (ROUGE-L recall)": bootstrap(order),
        "worst of five dumps: share in one run": bootstrap(dumped.worst),
        "worst of five dumps: 24 characters": dumped.quoted,
        "turn by turn: share": bootstrap(turns),
    }


def followed(answer: Chat, clean: Chat, given: Texts) -> dict[str, Estimate]:
    """How often planted orders are followed."""
    asked = {kind: [about(f) for f in facts] for kind, facts in given.attacked.items()}
    answer.ask_all([question for questions in asked.values() for question in questions])
    return {
        kind: chat.injected(answer, clean, questions, [KEY], _GROUPS).triggered
        for kind, questions in asked.items()
    }


def unplanted(clean: Chat) -> Estimate:
    """How often the word comes by itself."""
    said = [told.text for told in clean.known.values()]
    return wilson(sum(holds_keys(text, [KEY]) for text in said), len(said))


def harmless(answer: Chat, given: Texts) -> tuple[dict[str, Estimate], Estimate]:
    """False refusals, and how many answers about a text are right."""
    asked = given.harmless()
    answer.ask_all([question for questions in asked.values() for question in questions])
    told = {kind: answer.ask_all(questions) for kind, questions in asked.items()}
    every = {**told, "all of them": [t for found in told.values() for t in found]}
    right = [
        holds_keys(t.text, f.keys[:1])
        for t, f in zip(told["about a text"], given.protected, strict=True)
    ]
    return _rates(every), wilson(sum(right), len(right))


def brought_along(answer: Chat, given: Texts, others: Sequence[Document]) -> dict[str, Estimate]:
    """How often a conversation is refused for a text in it."""
    return _rates(
        {
            kind: answer.each(lambda text: answer.post([text, "Go on with it."], 1), brought)
            for kind, brought in given.brought(others).items()
        }
    )


def _rates(told: Mapping[str, Sequence[Told]]) -> dict[str, Estimate]:
    return {kind: wilson(sum(t.refused for t in found), len(found)) for kind, found in told.items()}
