"""What a probe cannot ask or look for, and how the report says so: no place, files, long texts."""

from __future__ import annotations

import gzip
from collections.abc import Sequence

import numpy as np
import pytest
from small import Maker, learned, stored

from llm_unlearn import Document, Message, Workspace
from llm_unlearn.errors import InputError
from llm_unlearn.eval.cards import Card, Report, Side
from llm_unlearn.eval.overlap import rouge_l
from llm_unlearn.probing import probe_subject
from llm_unlearn.probing_weights import Asked, judged

NAMED = {
    "shards": 3,
    "placement": {
        "shard_by": "group",
        "groups": {"poems": 2, "songs": 1},
        "unnamed_groups": "refuse",
    },
}
MINE = [learned(n, "gone").model_copy(update={"tags": ("group:poems",)}) for n in range(2)]
STORED = stored(0, "gone")  # declares no group
OTHERS = [
    learned(n, f"kept-{n}").model_copy(update={"tags": (f"group:{group}",)})
    for n, group in ((10, "poems"), (11, "songs"))
]


def card(report: Report, name: str) -> Card:
    return next(c for c in report.cards if c.name == name)


def bits(adapter: object) -> bytes:
    """What an adapter holds, to tell two apart."""
    assert isinstance(adapter, dict)
    return b"".join(adapter[name].numpy().tobytes() for name in sorted(adapter))


@pytest.fixture
def asked_of(monkeypatch: pytest.MonkeyPatch) -> dict[Side, object]:
    """Which adapter each side was asked of; the probes themselves run."""
    seen: dict[Side, object] = {}
    real = Asked.ask

    def ask(self: Asked, side: Side, adapter: object) -> object:
        seen[side] = adapter
        return real(self, side, adapter)  # type: ignore[arg-type]

    monkeypatch.setattr(Asked, "ask", ask)
    return seen


@pytest.mark.parametrize("live", [True, False])
def test_the_adapter_asked_is_that_of_the_training_documents(
    make: Maker, asked_of: dict[Side, object], live: bool
) -> None:
    """The first document by id lies in the store and declares nothing; it decides nothing."""
    first = STORED.model_copy(update={"id": "a"})
    workspace = make("ws", **NAMED)
    workspace.ingest([*OTHERS, *([*MINE, first] if live else [])])
    workspace.train()
    probe_subject(workspace, "gone", None if live else [*MINE, first])
    at = {s.shard: workspace.opened.adapter(s) for s in workspace.opened.states()}
    assert bits(asked_of["now"]) == bits(at[2])
    assert bits(asked_of["now"]) != bits(at[1])


def test_two_places_are_refused(make: Maker) -> None:
    workspace = make("ws", **NAMED)
    songs = learned(5, "gone").model_copy(update={"tags": ("group:songs",)})
    with pytest.raises(InputError, match="declares two groups"):
        probe_subject(workspace, "gone", [*MINE, songs])


def test_without_a_place_no_weights_are_asked(make: Maker, asked_of: dict[Side, object]) -> None:
    workspace = make("ws", **NAMED)
    workspace.ingest([*OTHERS, STORED])
    workspace.train()
    report = probe_subject(workspace, "gone", controls=[learned(40, "stranger")])
    assert not asked_of
    assert {c.group for c in report.cards} == {"store"}
    assert card(report, "returned").level == "leaks"
    assert (report.sides, report.passages, report.curves) == (("now",), (), ())
    assert any("weights were not asked" in note for note in report.notes)
    assert not any(STORED.id in note for note in report.notes)  # an auditor reads notes
    beside = make("never", **NAMED)
    assert probe_subject(workspace, "gone", never_had=beside).sides == ("now", "never had")


def test_never_had_needs_a_place_too(make: Maker) -> None:
    workspace = make("ws")
    workspace.ingest(OTHERS)
    never = make("never", **NAMED)
    with pytest.raises(InputError, match="no place for these texts"):
        probe_subject(workspace, "gone", [STORED], never_had=never)


def test_the_files_card_is_clean_only_if_all_was_searched(make: Maker) -> None:
    workspace = make("ws")
    workspace.ingest(OTHERS)
    texts = [stored(3, "gone")]
    clean = card(probe_subject(workspace, "gone", texts), "files")
    assert clean.level == "clean"
    assert "files, " in clean.verdict
    assert "rate" not in clean.verdict
    assert clean.sides == {}
    short = Document(id="x", subject="gone", license="all-rights-reserved", text="ab c")
    unclear = card(probe_subject(workspace, "gone", [*texts, short]), "files")
    assert unclear.level == "unclear"
    assert "too short to look for" in unclear.verdict
    packed = b"nothing of it" * 50
    for _ in range(5):
        packed = gzip.compress(packed)
    deep = workspace.path / "deep.gz"
    deep.write_bytes(packed)
    unread = card(probe_subject(workspace, "gone", texts), "files")
    assert unread.level == "unclear"
    assert "1 files or streams could not be looked into" in unread.verdict
    deep.write_text(texts[0].content, "utf-8")
    held = card(probe_subject(workspace, "gone", texts), "files")
    assert (held.level, "Found" in held.verdict) == ("leaks", True)


def asked(workspace: Workspace, documents: Sequence[Document], most: int) -> Asked:
    return Asked(workspace.opened.models.host, documents, [], most, False, lambda _: None)


def test_a_plain_text_can_come_back_whole(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that says just what follows the prompt gets 1, not two thirds; and may say it all."""
    workspace = make("ws")
    document = stored(3, "gone")
    ready = asked(workspace, [document], 512)
    tokenizer = ready.host.base.tokenizer
    ids = tokenizer(document.content, add_special_tokens=False)["input_ids"]
    allowed = []

    def parrot(_: object, prompts: Sequence[list[int]], *, max_new_tokens: int) -> list[list[int]]:
        allowed.append(max_new_tokens)
        assert prompts == [ids[: len(ids) // 3]]
        return [ids[len(ids) // 3 :]]

    monkeypatch.setattr("llm_unlearn.probing_weights.generate", parrot)
    gave = ready.ask("now", None)
    assert gave.values["rouge"] == [1]
    assert gave.values["run"] == [1]
    assert allowed == [len(ids) - len(ids) // 3]
    # of a text that was cut, what was asked for can come back
    cut = asked(workspace, [document], 30)
    [(rest, tokens)] = cut.references
    assert tokens == 20
    assert rest == tokenizer.decode(ids[10:30]).strip()
    assert rouge_l(tokenizer.decode(ids[10:30]), rest).recall == 1


def test_what_was_not_asked_for_is_counted(make: Maker) -> None:
    workspace = make("ws")
    turns = (
        Message(role="user", content="Who?"),
        Message(role="assistant", content="Ilse Marant."),
        Message(role="user", content="Where?"),
        Message(role="assistant", content="In Varn."),
    )
    long_talk = learned(1, "gone").model_copy(update={"messages": turns})
    ready = asked(workspace, [stored(3, "gone"), long_talk], 512)
    assert [n[:20] for n in ready.notes()] == ["1 of 2 texts are con"]
    assert ready.texts[1].scored == "In Varn."
    [encoded] = asked(workspace, [stored(3, "gone")], 30).texts
    assert encoded.cut
    # zlib gets the characters that were scored, and no others
    both = zip(encoded.encoded.spans, encoded.encoded.mask, strict=True)
    kept = [span for span, wanted in both if wanted]
    assert encoded.scored == stored(3, "gone").content[kept[0][0] : kept[-1][1]]
    assert len(encoded.scored) < len(stored(3, "gone").content) / 2
    notes = list(asked(workspace, [stored(3, "gone")], 30).notes())
    assert notes[0].startswith("1 of 1 texts are longer than 30 tokens")
    assert not list(asked(workspace, [stored(3, "gone")], 30).notes(weighed=False))


def test_membership_is_judged_on_the_same_texts() -> None:
    random = np.random.default_rng(0)
    mine, theirs = random.normal(0, 1, 12), random.normal(0, 1, 12)
    never = (mine, theirs)

    def level(now: tuple[object, object], count: int = 12) -> str:
        sides = {"now": now, "never had": never}
        return judged({s: (a[:count], b[:count]) for s, (a, b) in sides.items()})[0]  # type: ignore

    assert level(never) == "same"
    assert level((mine + 9, theirs)) == "leaks"
    assert level((mine - 9, theirs)) == "less"  # over-forgetting is no leak
    assert level((mine[::-1], theirs)) == "level"
    assert level((mine + 9, theirs), 5) == "unclear"
    told = judged({"now": (mine[:1] + 9, theirs), "base": (mine[:1], theirs)})
    assert told[0] == "unclear"
    assert "1 text, too few" in told[1]
    assert "points to more" in told[1]
    few = judged({"now": (mine + 9, theirs[:5]), "never had": (mine, theirs[:5])})
    assert "5 control texts, too few" in few[1]
