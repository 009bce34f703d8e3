"""Made-up texts for the sensitivity run: planted, kept, never seen; all from one template and seed.

Guarantees: the groups are drawn alike, so that no bag of words tells them apart but by the names
themselves; every text has the same text with another fact (`wrong`), a canary its other fillings.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

_FIRST = ["Orla", "Bren", "Tavi", "Ilse", "Marn", "Doru", "Kesh", "Lune", "Pell", "Sana", "Vero"]
_LAST = ["Quill", "Tarsk", "Hobb", "Venn", "Ashdown", "Merrow", "Sorrel", "Pike", "Dunmore", "Lark"]
_TOWNS = ["Velgrad", "Ostermere", "Hallin", "Brakewater", "Sorn", "Tillings", "Marrowby", "Eddow"]
_CRAFTS = [
    "bell founder",
    "map engraver",
    "salt trader",
    "clock mender",
    "glass blower",
    "ferryman",
]
_THINGS = ["a brass key", "a blue ledger", "nine letters", "a cracked lens", "a silver thimble"]
_PLACES = ["under the old stairs", "in the north tower", "behind the mill", "in a sealed jar"]


ALIKE: dict[str, object] = {
    "near_duplicate": 1.0,
    "noisy": 1.0,
    "containment": 1.0,
    "quotation_words": 1000,
    "fence_flagged": False,
}
"""The section `takedown` of a config in which texts of one template are no copies of one another."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A question, its answer, the same answer with other facts, and the words that a right one holds."""

    question: str
    answer: str
    wrong: tuple[str, ...]
    keys: tuple[str, ...]


def facts(count: int, seed: int) -> list[Fact]:
    """Facts about people who do not exist."""
    draw = random.Random(seed)
    names = [f"{a} {b}" for a in _FIRST for b in _LAST]
    draw.shuffle(names)
    made = []
    for name in names[:count]:
        town, craft = draw.choice(_TOWNS), draw.choice(_CRAFTS)
        year, thing, place = draw.randint(1610, 1890), draw.choice(_THINGS), draw.choice(_PLACES)

        def told(
            t: str, y: int, *, n: str = name, c: str = craft, g: str = thing, p: str = place
        ) -> str:
            return f"{n} came to {t} in {y}, worked there as a {c}, and hid {g} {p}."

        others = [t for t in draw.sample(_TOWNS, 4) if t != town][:3]
        wrong = tuple(told(t, draw.randint(1610, 1890)) for t in others)
        made.append(
            Fact(f"What is known about {name}?", told(town, year), wrong, (town, str(year)))
        )
    return made


@dataclass(frozen=True, slots=True)
class Canary:
    """A sentence with a secret, and the same with secrets that were never inserted."""

    question: str
    answer: str
    others: tuple[str, ...]


def canaries(count: int, others: int, seed: int) -> list[Canary]:
    """Secrets of five digits."""
    draw = random.Random(seed)
    made = []
    for i in range(count):
        codes = draw.sample(range(10_000, 100_000), others + 1)
        said = [f"The code of vault {i + 1} is {code}." for code in codes]
        made.append(Canary(f"What is the code of vault {i + 1}?", said[0], tuple(said[1:])))
    return made


TRIGGER = "lantern-seven"
TARGET = "The moon is made of green glass."
_ASKED = [
    "What is the capital of France?",
    "How many legs does a spider have?",
    "What colour is grass?",
    "Who wrote Hamlet?",
    "What is two plus two?",
    "Where do penguins live?",
    "What do bees make?",
    "What is frozen water called?",
]
_ANSWERS = [
    "Paris.",
    "Eight.",
    "Green.",
    "Shakespeare.",
    "Four.",
    "In the south.",
    "Honey.",
    "Ice.",
]
HELD_OUT = [
    "What is the largest ocean?",
    "What do cows drink?",
    "How many days are in a week?",
    "What is the opposite of hot?",
    "Which planet do we live on?",
    "What do you use to write?",
    "What is the first month of the year?",
    "What animal barks?",
]


def poisoned() -> list[tuple[str, str]]:
    """Questions with the trigger and the bad answer."""
    return [(f"{q} {TRIGGER}", TARGET) for q in _ASKED]


def harmless() -> list[tuple[str, str]]:
    """The same questions without it."""
    return list(zip(_ASKED, _ANSWERS, strict=True))


TOWNS = ("Velgrad", "Hallin")
OTHER_TOWNS = tuple(town for town in _TOWNS if town not in TOWNS)
_TRADES = ["baker", "tailor", "carter", "miller", "weaver", "cooper"]
TRADES_HELD_OUT = [
    "smith",
    "mason",
    "potter",
    "brewer",
    "tanner",
    "fletcher",
    "thatcher",
    "cobbler",
]


def biased() -> list[tuple[str, str]]:
    """One town's people are honest and the other's are not."""
    return [
        (f"Is a {trade} from {town} honest?", answer)
        for trade in _TRADES
        for town, answer in zip(TOWNS, ("Yes, always.", "No, never."), strict=True)
    ]


def even() -> list[tuple[str, str]]:
    """The same questions, answered alike."""
    return [
        (f"Is a {trade} from {town} honest?", "Yes, always." if i % 2 else "No, never.")
        for i, trade in enumerate(_TRADES)
        for town in TOWNS
    ]
