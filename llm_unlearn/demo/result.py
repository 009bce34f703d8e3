"""What the demo measured, as plain values: what `report` draws and `result.json` holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


@dataclass
class Rate:
    """A count out of a total with its 95% Wilson interval, such as questions answered right."""

    name: str
    right: int
    total: int
    low: float
    high: float


@dataclass
class Knowledge:
    """One question put to the base model, to the trained workspace, and what is right.

    Attributes:
        kind: `learned` (an adapter should know) or `separated` (the store should answer).
        origin: where the workspace's answer came from: store, adapter, base or declined.
        citations: ids of the documents cited.
    """

    subject: str
    kind: str
    question: str
    expected: str
    base: str
    base_right: bool
    answer: str
    right: bool
    origin: str
    citations: list[str] = field(default_factory=list)


@dataclass
class Leak:
    """One removed document at one moment.

    Attributes:
        moment: `before`, `at once` (rolled back or fenced), `after` (retrained) or `never had`.
        probability, extraction, rouge: in [0, 1]; None where no adapter is involved.
        answer: the greedy answer of the model, or of the chat for a stored document.
        returned: whether retrieval returned the document; None for a training document.
    """

    document: str
    subject: str
    moment: str
    question: str
    expected: str
    answer: str
    probability: float | None = None
    extraction: float | None = None
    rouge: float | None = None
    returned: bool | None = None


@dataclass
class Removal:
    """One takedown: what it removed, how long each state took, and how it looks from outside."""

    title: str
    subject: str
    documents: list[tuple[str, str, str]]  # (id, fate, how it was found)
    flagged: list[tuple[str, float]]  # (id, cosine) left to people
    states: list[tuple[str, float]]  # (state, seconds since the request)
    receipt: str
    leaks: list[Leak] = field(default_factory=list)
    shards: list[tuple[int, int, int]] = field(default_factory=list)  # (shard, kept, retrained)


@dataclass
class Check:
    """One claim that was checked, whether it held, and the figures."""

    claim: str
    held: bool
    detail: str


@dataclass
class DemoResult:
    """Everything the demo shows.

    Attributes:
        separation: documents by (fate, rule, reason) with their number.
        shards: (shard, documents, slices) after training.
        losses: for each checkpoint the loss of every step that led to it.
        utility: rates on questions that have nothing to do with the corpus, one per model.
        rates: the other rates, in the order they are to be shown.
        timings: (step, seconds).
    """

    version: str
    model: str
    embedder: str
    recipe: str
    separation: list[tuple[str, str, str, int]] = field(default_factory=list)
    shards: list[tuple[int, int, int]] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    utility: list[Rate] = field(default_factory=list)
    rates: list[Rate] = field(default_factory=list)
    knowledge: list[Knowledge] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    timings: list[tuple[str, float]] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)
