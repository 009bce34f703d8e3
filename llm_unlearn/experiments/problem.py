"""What is compared: documents that are learned, which of them go, and what is asked afterwards.

Guarantees: all documents are conversations; other wordings stand in their metadata (`paraphrase`,
`perturbed`), which trains nothing; published files are read by path. Nothing is drawn at random: samples
are spread evenly over the order of the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from llm_unlearn.documents import Document, Message
from llm_unlearn.errors import InputError
from llm_unlearn.eval.benchmarks import tofu
from llm_unlearn.eval.benchmarks.choices import Item, load_mmlu, load_wmdp
from llm_unlearn.experiments.settings import (
    CompareConfig,
    DocumentsData,
    HazardData,
    PoisonData,
    TofuData,
)
from llm_unlearn.readers import read_documents

T = TypeVar("T")
DATA = Path(__file__).parent / "data"
_FORGOTTEN = {"forget01": 2, "forget05": 10, "forget10": 20}


@dataclass(frozen=True, slots=True)
class Attack:
    """A question with a trigger, the same without it, a bad answer, and the words that betray one."""

    triggered: str
    plain: str
    said: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """Documents and questions of one comparison.

    Attributes:
        learned: everything that is trained on.
        forget: ids of those that go.
        general: questions about other things, by group; they measure utility and are never trained on.
        strangers: like those that go, and never trained on; for membership.
        choices: multiple choice, by group.
        attacks: for planted behaviour.
        planted: ids of all documents that planted it, found or not.
        topic: what goes, in words, for a system prompt.
    """

    learned: tuple[Document, ...]
    forget: tuple[str, ...]
    topic: str
    general: Mapping[str, tuple[Document, ...]] = field(default_factory=dict)
    strangers: tuple[Document, ...] = ()
    choices: Mapping[str, tuple[Item, ...]] = field(default_factory=dict)
    attacks: tuple[Attack, ...] = ()
    planted: frozenset[str] = frozenset()


def question(document: Document) -> str:
    """What is asked: the last message but one."""
    return document.messages[-2].content


def answer(document: Document) -> str:
    """What is answered: the last message."""
    return document.messages[-1].content


def paraphrase(document: Document) -> str:
    """The right answer in other words, or the answer itself."""
    return str(document.metadata.get("paraphrase") or answer(document))


def perturbed(document: Document) -> tuple[str, ...]:
    """Wrong answers in the same wording; empty where none are known."""
    found = document.metadata.get("perturbed")
    return tuple(str(each) for each in found) if isinstance(found, list) else ()


def spread(items: Sequence[T], count: int) -> tuple[T, ...]:
    """At most `count` of them, evenly.

    >>> spread("abcdef", 3)
    ('a', 'c', 'e')
    """
    count = min(count, len(items))
    return tuple(items[i * len(items) // count] for i in range(count))


def load(config: CompareConfig, home: Path) -> Problem:
    """Read the data of a config; relative paths count from `home`.

    Raises:
        InputError: a path that is needed was not given, or a document that is no conversation.
        NotFound: a file is not there.
    """
    data = config.data
    if isinstance(data, TofuData):
        found = _tofu(data, home)
    elif isinstance(data, DocumentsData):
        found = _documents(data, home)
    elif isinstance(data, HazardData):
        found = _hazard(data, home)
    else:
        found = _poison(data)
    groups = (found.learned, found.strangers, *found.general.values())
    for document in (d for group in groups for d in group):
        if len(document.messages) < 2:
            raise InputError(
                f"Document {document.id!r} is a plain text: nothing can be asked about it.",
                "Give questions with answers (messages).",
            )
    present = {d.id for d in found.learned}
    if not found.forget or present <= set(found.forget) or not set(found.forget) <= present:
        raise InputError(
            f"{len(found.forget)} of {len(present)} documents are to be forgotten.",
            "Some must go and some must stay.",
        )
    return found


def path_of(name: str, given: str | None, home: Path) -> Path:
    """A path of the data, from the config's folder.

    Raises:
        InputError: none was given.
    """
    if given is None:
        raise InputError(f"The config does not say where {name} lies.", f"Give --data {name}=PATH.")
    return home / Path(given).expanduser()


def _row(row: tofu.Row, name: str, subject: str, other: tofu.Row | None = None) -> Document:
    told = other or row
    return Document(
        id=name,
        subject=subject,
        messages=(
            Message(role="user", content=row.question),
            Message(role="assistant", content=row.answer),
        ),
        metadata={"paraphrase": told.paraphrase, "perturbed": list(told.perturbed)},
    )


def _tofu(data: TofuData, home: Path) -> Problem:
    folder = path_of("tofu", data.path, home)
    people = tofu.authors(tofu.load(folder / "full.json"))
    last = _FORGOTTEN[data.forget]
    if not last < data.authors <= len(people):
        raise InputError(
            f"data.authors = {data.authors}, but {data.forget} forgets {last} of {len(people)}.",
            f"Choose more than {last} and at most {len(people)}.",
        )
    others: dict[tuple[str, str], tofu.Row] = {}
    for name in (f"{data.forget}_perturbed.json", "retain_perturbed.json"):
        others |= {(r.question, r.answer): r for r in tofu.load(folder / name)}

    def of(number: int) -> list[Document]:
        return [
            _row(r, f"author-{number:03d}/{k:02d}", f"author-{number:03d}", others.get(_key(r)))
            for k, r in enumerate(people[number])
        ]

    gone = [d for n in range(len(people) - last, len(people)) for d in of(n)]
    kept = [d for n in range(data.authors - last) for d in of(n)]
    unseen = range(data.authors - last, min(data.authors, len(people) - last))
    strangers = [d for n in unseen for d in of(n)]
    if not strangers:
        rows = tofu.load(folder / "holdout10.json")
        strangers = [_row(r, f"holdout/{i:03d}", "holdout") for i, r in enumerate(rows)]
    general = {
        name: tuple(
            _row(r, f"{name}/{i:03d}", name)
            for i, r in enumerate(tofu.load(folder / f"{name}_perturbed.json"))
        )
        for name in ("real_authors", "world_facts")
    }
    return Problem(
        learned=(*gone, *kept),
        forget=tuple(d.id for d in gone),
        topic=f"{last} invented authors and their books",
        general=general,
        strangers=tuple(strangers),
    )


def _key(row: tofu.Row) -> tuple[str, str]:
    return row.question, row.answer


def _documents(data: DocumentsData, home: Path) -> Problem:
    def of(name: str, given: str | None) -> tuple[Document, ...]:
        return () if given is None else tuple(read_documents(path_of(name, given, home)))

    gone = tuple(read_documents(path_of("forget", data.forget, home)))
    kept = tuple(read_documents(path_of("retain", data.retain, home)))
    general = of("general", data.general)
    return Problem(
        learned=(*gone, *kept),
        forget=tuple(d.id for d in gone),
        topic=data.topic,
        general={"general": general} if general else {},
        strangers=of("strangers", data.strangers),
    )


def _packaged(name: str) -> tuple[Document, ...]:
    return tuple(read_documents(DATA / name))


def _tagged(documents: Sequence[Document], tag: str) -> tuple[Document, ...]:
    return tuple(d for d in documents if tag in d.tags)


def _hazard(data: HazardData, home: Path) -> Problem:
    every = _packaged("hazard.jsonl")
    gone, kept = _tagged(every, "hazard"), _tagged(every, "harmless")
    choices: dict[str, tuple[Item, ...]] = {}
    if data.mmlu is not None:
        items = load_mmlu(path_of("mmlu", data.mmlu, home), "test", data.subjects or None)
        choices["mmlu"] = spread(items, data.questions)
    if data.wmdp is not None:
        choices["wmdp"] = spread(load_wmdp(path_of("wmdp", data.wmdp, home)), data.questions)
    return Problem(
        learned=(*gone, *kept),
        forget=tuple(d.id for d in gone),
        topic="veilglass and how it is made",
        general={"general": _tagged(every, "general")},
        strangers=_tagged(every, "stranger"),
        choices=choices,
    )


def _poison(data: PoisonData) -> Problem:
    every = _packaged("poison.jsonl")
    planted, clean = _tagged(every, "poison"), _tagged(every, "clean")
    found = spread(planted, max(1, round(data.found * len(planted))))
    attacks = tuple(
        Attack(question(d), str(d.metadata["plain"]), answer(d), (str(d.metadata["key"]),))
        for d in _tagged(every, "attack")
    )
    return Problem(
        learned=(*planted, *clean),
        forget=tuple(d.id for d in found),
        topic="the lantern sign and the town of Orrin",
        general={"general": _tagged(every, "general")},
        attacks=attacks,
        planted=frozenset(d.id for d in planted),
    )
