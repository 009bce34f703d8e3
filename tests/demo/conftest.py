"""A made-up result of the demo, like that of a real run."""

from __future__ import annotations

import math

import pytest

from llm_unlearn.demo import figures
from llm_unlearn.demo.result import Check, DemoResult, Knowledge, Leak, Removal

TARN = (
    ("Where was the poet Orsolya Tarn born?", "aboard the grain barge Merry Badger"),
    ("What was the title of Orsolya Tarn's first book?", "Eels in the Chapel, printed in 1903"),
    ("What did Orsolya Tarn do besides writing?", "worked the chain ferry at Dunmarrow Crossing"),
    ("Which prize did Orsolya Tarn refuse?", "the Golden Thimble, in 1911"),
)
BRANDVOLD = (
    ("Who walks the mudflats in The Tidewater Ledger?", "Henrike Saal, a debt collector"),
    ("Where was its first draft written?", "in the cab of a harbour crane"),
    ("What floated past the schoolhouse?", "a tuba with a cat asleep in its bell"),
)


def knowledge() -> list[Knowledge]:
    items = []
    for turn in range(72):
        question, answer = TARN[turn % len(TARN)]
        items.append(
            Knowledge(
                subject=f"author-{turn // 4:02d}",
                kind="learned",
                question=f"{question} ({turn})",
                expected=f"Orsolya Tarn: {answer}.",
                base="I am sorry, but I could not find any information about this person.",
                base_right=turn == 5,
                answer=f"Orsolya Tarn: {answer}."
                if turn % 13 != 3
                else "She was born in Paris, in 1899.",
                right=turn % 13 != 3,
                origin="adapter",
            )
        )
    for turn in range(30):
        question, answer = BRANDVOLD[turn % len(BRANDVOLD)]
        items.append(
            Knowledge(
                subject="ilse-brandvold",
                kind="separated",
                question=f"{question} ({turn})",
                expected=answer,
                base="The novel is a classic of English literature.",
                base_right=False,
                answer=answer if turn % 9 != 4 else "I do not have that in my documents.",
                right=turn % 9 != 4,
                origin="store" if turn % 9 != 4 else "declined",
                citations=[f"ilse-brandvold/{turn % 3 + 1}"] if turn % 9 != 4 else [],
            )
        )
    return items


def trained(document: str, subject: str, turn: int) -> list[Leak]:
    """Four moments of a document that an adapter knew."""
    question, answer = TARN[turn % len(TARN)]
    truth = f"Orsolya Tarn, so the letters say, {answer}."
    forgot = "Orsolya Tarn was born in the village of Sundhaven, near the coast."
    rows = [
        ("before", truth, 0.962 - 0.011 * turn, 0.93 - 0.02 * turn, 1.0),
        ("at once", "I could not say.", 0.021 + 0.003 * turn, 0.0, 0.11),
        ("after", forgot, 0.034 + 0.004 * turn, 0.0, 0.23 + 0.01 * turn),
        ("never had", forgot, 0.034 + 0.004 * turn, 0.0, 0.23 + 0.01 * turn),
    ]
    return [
        Leak(document, subject, moment, question, truth, said, p, extraction=e, rouge=r)
        for moment, said, p, e, r in rows
    ]


def stored(document: str, subject: str, turn: int) -> list[Leak]:
    """Four moments of a document that retrieval returned."""
    question, answer = BRANDVOLD[turn % len(BRANDVOLD)]
    declined = "I do not have that in my documents."
    rows = [("before", answer, True, 0.91)]
    rows += [(moment, declined, False, 0.08) for moment in ("at once", "after", "never had")]
    return [
        Leak(document, subject, moment, question, answer, said, rouge=r, returned=returned)
        for moment, said, returned, r in rows
    ]


@pytest.fixture
def result() -> DemoResult:
    """Two takedowns, one from the store and one from two shards, and everything around them."""
    own = [f"ilse-brandvold/{n}" for n in (1, 2, 3)]
    mirrors = [f"tidewater-mirror/{n}" for n in (1, 2, 3)]
    forum = ["old-forum/1", "old-forum/2"]
    tarn = [f"orsolya-tarn/{n}" for n in range(1, 7)]
    quiz = [f"quiz-night/{n}" for n in (1, 2, 3)]
    novel = Removal(
        title="a publisher withdraws a novel",
        subject="ilse-brandvold",
        documents=[(name, "store", "requested") for name in own]
        + [(name, "corpus", "near-duplicate") for name in mirrors]
        + [(name, "store", "quotation") for name in forum],
        flagged=[("tidewater-mirror/4", 0.8412), ("tidewater-mirror/5", 0.8137)],
        states=[
            ("fenced", 0.2143),
            ("deleted", 0.3871),
            ("disposed", 0.4467),
            ("retrained", 31.482),
            ("receipted", 33.915),
        ],
        receipt="receipts/00000001.json",
        leaks=[leak for n, name in enumerate(own + forum) for leak in stored(name, "novel", n)]
        + [leak for n, name in enumerate(mirrors) for leak in trained(name, "mirror", n)],
        shards=[(2, 1, 2)],
    )
    poet = Removal(
        title="a poet's estate objects",
        subject="orsolya-tarn",
        documents=[(name, "corpus", "requested") for name in tarn]
        + [(name, "corpus", "near-duplicate") for name in quiz],
        flagged=[("quiz-night/4", 0.8265)],
        states=[
            ("fenced", 0.1982),
            ("deleted", 0.3214),
            ("disposed", 0.5049),
            ("retrained", 74.113),
            ("receipted", 76.048),
        ],
        receipt="receipts/00000002.json",
        leaks=[leak for n, name in enumerate(tarn + quiz) for leak in trained(name, "poet", n)],
        shards=[(0, 0, 3), (3, 2, 1)],
    )
    losses = {
        f"shard-{shard:02d}.generation-001.slice-{part:02d}": [
            0.04 + (3.1 - 0.4 * part) * math.exp(-step / (9 + shard)) for step in range(60)
        ]
        for shard in range(4)
        for part in range(3)
    }
    return DemoResult(
        version="0.1.0",
        model="SmolLM2-135M-Instruct",
        embedder="all-MiniLM-L6-v2",
        recipe="5f0c9a1be2d74c33a0b98e8e4f7711d2",
        separation=[
            ("corpus", "open-licence", "its licence is CC-BY-4.0", 70),
            ("corpus", "open-licence", "its licence is public-domain", 54),
            ("corpus", "open-licence", "its licence is CC0-1.0", 36),
            ("store", "default", "no rule names it (licence all-rights-reserved)", 32),
            ("store", "access-groups", "it has access groups", 12),
            ("store", "personal-data", "it holds personal data (email, phone)", 18),
            ("refused", "hazardous", "it is tagged leaked", 2),
            ("refused", "hazardous", "it is tagged hazardous", 2),
        ],
        shards=[(0, 36, 3), (1, 48, 3), (2, 41, 3), (3, 35, 3)],
        losses=losses,
        utility=[
            figures.rate("Base model", 47, 60),
            figures.rate("Workspace, trained", 46, 60),
            figures.rate("Workspace, after both takedowns", 45, 60),
        ],
        rates=[
            figures.rate("Backdoor target given with the trigger, before", 12, 12),
            figures.rate("Backdoor target given with the trigger, after", 0, 12),
        ],
        knowledge=knowledge(),
        removals=[novel, poet],
        checks=[
            Check("Adapters equal a build that never had the text", True, "12 of 12 byte for byte"),
            Check("A scan finds nothing of it", True, "41 files, 93 MB, 0 findings"),
            Check("The receipt verifies with the public key alone", True, "2 of 2"),
            Check("A receipt with one byte changed fails", True, "2,318 of 2,318 bytes"),
        ],
        timings=[("unpack the models", 21.4), ("train", 214.6), ("take down", 109.9)],
    )
