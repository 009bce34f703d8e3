"""A subject probed while it is live, after its takedown, and beside never-had; the report as files."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from small import Maker, learned, stored

from llm_unlearn import Document, Workspace
from llm_unlearn.cli.app import run
from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.eval import cards, page
from llm_unlearn.eval.cards import Card, Report
from llm_unlearn.eval.router import router_leak
from llm_unlearn.probing import open_beside, probe_subject, routing

MINE = [
    *(learned(i, "gone") for i in range(6)),
    stored(1, "gone"),
]
OTHERS = [learned(i, f"kept-{i}") for i in range(10, 16)]
STRANGERS = [learned(i, "stranger") for i in range(30, 36)]


def card(report: Report, name: str) -> Card:
    return next(c for c in report.cards if c.name == name)


@pytest.fixture
def taught(make: Maker) -> Workspace:
    workspace = make("ws", epochs=30, learning_rate=0.02)
    workspace.ingest([*MINE, *OTHERS])
    workspace.train()
    return workspace


def test_the_road_from_live_to_gone(
    taught: Workspace, make: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = probe_subject(taught, "gone", controls=STRANGERS, deep=True)
    assert before.live
    assert before.sides == ("now", "base")
    assert card(before, "probability").level == "leaks"
    assert (
        card(before, "membership loss").level == "level"
    )  # so little is learned by so small a model
    returned = {
        d.id: bool(v) for d, v in zip(MINE, card(before, "returned").values["now"], strict=True)
    }
    assert returned == {d.id: d.text is not None for d in MINE}  # only what lies in the store
    assert {c.name for c in before.cards} >= {"soft", "lens", "4 bits", "frames", "dumped", "cited"}
    assert "files" not in {c.name for c in before.cards}  # the text is meant to be there
    assert card(before, "outsider").level == "clean"
    taught.takedown(subject="gone", probe=False)
    with pytest.raises(NotFound, match="--texts"):
        probe_subject(taught, "gone")
    with pytest.raises(InputError, match="None of the texts"):
        probe_subject(taught, "gone", OTHERS)
    never = make("never", epochs=30, learning_rate=0.02)
    never.ingest(OTHERS)
    never.train()
    with open_beside(taught, never.path, never.opened.keyring.directory) as beside:
        assert beside.opened.models.host is taught.opened.models.host
        assert beside.opened.models.embedder is taught.opened.models.embedder
        after = probe_subject(taught, "gone", MINE, controls=STRANGERS, never_had=beside)
    assert not after.live
    assert after.sides == ("now", "never had", "base")
    for one in after.cards:
        if one.group == "weights":
            assert one.level == "same", one.name
            assert one.values["now"] == one.values["never had"]
        assert one.level != "leaks", one.name
    assert (
        sum(card(before, "routed").values["now"]) >= 3
    )  # its own adapter answers what was learned
    assert set(card(after, "routed").sides) == {"now", "never had"}
    assert card(after, "files").level == "clean"
    assert card(after, "returned").level == "clean"
    with pytest.raises(InputError, match="has documents of 'kept-10'"):
        probe_subject(taught, "kept-10", never_had=never)

    # what was measured reads back, and shows on one page what came out and what no longer does
    path = tmp_path / "before.json"
    path.write_bytes(cards.dump(before))
    assert cards.load(path) == before
    html = page.render([("before", before), ("after", after)])
    for passage in after.passages:
        assert str(page.marked(passage.text, ())) in html
    assert 'class="lead none"' in html
    assert "None of" in html
    assert html.count("<svg") > 20
    assert "http" not in html.replace("http-equiv", "")
    table = cards.markdown([("before", before), ("after", after)])
    assert f"| {card(after, 'probability').title} |" in table
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    curves = len(before.curves) + len(after.curves)
    assert len(rows) == 4 + len(cards.names([("", before), ("", after)])) + curves

    # the same from the command line, which writes nothing into the workspace
    (tmp_path / "after.json").write_bytes(cards.dump(after))
    files = [str(tmp_path / f"{name}.json") for name in ("before", "after")]
    made = [tmp_path / "r.html", tmp_path / "r.md"]
    assert run(["report", *files, "--html", str(made[0]), "--markdown", str(made[1])]) == 0
    assert made[0].read_text(encoding="utf-8") == html
    assert made[0].stat().st_mode & 0o777 == 0o600
    capsys.readouterr()
    assert run(["report", files[0], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [c["name"] for c in told["reports"][0]["cards"]] == [c.name for c in before.cards]
    assert run(["report", *files, "--html", files[0]]) == 3
    inside = str(taught.path / "report.json")
    assert run(["probe", str(taught.path), "--subject", "gone", "--out", inside]) == 3
    assert run(["probe", str(taught.path), "--subject", "gone"]) == 4
    assert not (taught.path / "report.json").exists()


def test_a_comparison_is_drawn_on_the_page(
    make: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = make("ws")
    workspace.ingest(OTHERS)
    (tmp_path / "r.json").write_bytes(cards.dump(probe_subject(workspace, "kept-10")))
    one = {"mean": 0.5, "standard_error": 0.1, "n": 2}
    row = {
        "side": "monolith",
        "name": "npo",
        "kind": "approximate",
        "metrics": {"forget probability": one, "utility": one},
        "forgotten": 0.9,
        "kept": 0.8,
        "verdict": "forgets",
        "returns": [],
        "stops": ["forgotten"],
    }
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"kind": "compare", "schema": 1, "rows": [row]}))
    page_at, given = tmp_path / "r.html", ["report", str(tmp_path / "r.json")]
    drawn = [*given, "--html", str(page_at), "--comparison", str(result)]
    assert run(drawn) == 0
    [image] = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page_at.read_text())
    assert "monolith npo: 0.5 known, 0.80 kept" in base64.b64decode(image).decode()
    assert run([*given, "--comparison", str(result)]) == 3
    result.write_text('{"kind": "hardness", "schema": 1}')
    capsys.readouterr()
    assert run(drawn) == 3
    assert "no result of `compare`" in " ".join(capsys.readouterr().err.split())
    assert run([*given, "--html", str(page_at), "--comparison", str(tmp_path / "no.json")]) == 4


def test_the_router_after_a_takedown_is_never_hads(taught: Workspace, make: Maker) -> None:
    asked = [d.messages[-2].content for d in MINE if d.messages]
    strangers = [d.messages[-2].content for d in STRANGERS]
    home = taught.opened.layout.shard(taught.opened.vault.mark("subject", "gone"))
    route = routing(taught, {"staff"})
    leak = router_leak(route, [(q, home) for q in asked], strangers)
    assert (leak.told_apart.auc.mean, leak.answered.mean) == (1, 1)  # each is there word for word
    assert leak.home.mean > 0
    taught.takedown(subject="gone", probe=False)
    never = make("never", epochs=30, learning_rate=0.02)
    never.ingest(OTHERS)
    never.train()
    after, beside = routing(taught, {"staff"}), routing(never, {"staff"})
    for question in (*asked, *strangers):  # none names the subject, so nothing is declined by name
        assert after(question.removeprefix("gone ")) == beside(question.removeprefix("gone "))
    assert routing(never, {"nobody"})(asked[0]) == (-1.0, None)


def test_a_page_obeys_no_document() -> None:
    evil = "<script>alert(1)</script> \u202e | `x` [a](b)"
    document = Document(id="<b>x</b>", subject="<i>s</i>", license="CC0-1.0", text=evil + " tail")
    values: dict[cards.Side, tuple[float, ...]] = {"now": (0.5, 0.7), "never had": (0.1, 0.2)}
    report = Report(
        toolkit="0",
        made="now",
        subject=document.subject,
        model="m",
        live=False,
        texts=(document.id, "other"),
        sides=("now", "never had"),
        cards=(cards.compared("p", evil, evil, "weights", values),),
        passages=(
            cards.Passage(
                id=document.id,
                prompt=evil,
                text=document.content,
                spans={"now": ((0, 8), (4, 12), (30, 900))},
                said={"now": evil},
            ),
        ),
        notes=(evil,),
    )
    html = page.render([("now", report)])
    assert "<script" not in html
    assert "<b>" not in html
    assert "\u202e" not in html
    # overlapping spans are joined up, what runs past the end is cut
    marks = re.findall("<mark>(.*?)</mark>", html, re.DOTALL)
    assert marks[0] == "&lt;script&gt;"
    assert marks[1] == "aler"
    assert marks[2].endswith("tail")
    assert page.render([("now", report)]) == html
    table = cards.markdown([("now", report)])
    assert "<script" not in table
    assert "\\|" in table


def test_verdicts_follow_from_values_alone() -> None:
    def verdict(now: list[float], never: list[float] | None, base: list[float]) -> str:
        sides: dict[cards.Side, list[float]] = {"now": now, "base": base}
        if never is not None:
            sides["never had"] = never
        return cards.compared("n", "t", "a", "weights", sides).level

    low = [0.1, 0.2, 0.15, 0.12, 0.1, 0.18]
    high = [0.8, 0.9, 0.85, 0.95, 0.8, 0.9]
    assert verdict(high, low, low) == "leaks"
    assert verdict(low, low, high) == "same"  # never-had decides, not the base
    assert verdict(low, high, low) == "less"
    assert verdict([0.1, 0.3, 0.2, 0.0, 0.1, 0.3], low, low) == "level"
    # five above by 0.1, one below by 0.18: 14 of the 64 ways to sign them are as far from 0
    assert verdict([0.2, 0.3, 0.25, 0.22, 0.2, 0.0], low, low) == "level"
    assert verdict(high, None, low) == "leaks"
    assert (
        "p = 0.031" in cards.compared("n", "t", "a", "weights", {"now": high, "base": low}).verdict
    )
    for few in range(1, 6):  # 2 of 2^5 ways are 6%: no five texts convince
        assert verdict(high[:few], low[:few], low[:few]) == "unclear"
    assert verdict([0.9], [0.9], [0.1]) == "same"
    for now, way in ((0.9, r"\+0.800.*points to more"), (0.05, "-0.050.*points to less")):
        card = cards.compared("n", "t", "a", "weights", {"now": [now], "never had": [0.1]})
        assert re.search(f"1 text, .*{way}", card.verdict)
    assert cards.compared("n", "t", "a", "weights", {"now": high}).level == "unclear"
    held = cards.counted("n", "t", "a", "store", {"now": [True, False]})
    assert (held.level, held.sides["now"].n) == ("leaks", 2)
    none = cards.counted("n", "t", "a", "store", {"now": [False] * 10})
    assert none.level == "clean"
    assert "28%" in none.verdict  # Wilson: 0 of 10


def test_rates_of_equal_values_keep_an_interval() -> None:
    """Wilson of 0 of 3 is 0 to 0.561; a bootstrap of three zeros has no width."""
    card = cards.compared("n", "t", "a", "store", {"now": [0.0] * 3, "never had": [0, 1, 1]})
    assert card.sides["now"].low == 0
    assert card.sides["now"].high == pytest.approx(0.561, abs=1e-3)
    assert card.sides["never had"].mean == pytest.approx(2 / 3)
    other = cards.compared("n", "t", "a", "weights", {"now": [0.5] * 3})
    assert (other.sides["now"].low, other.sides["now"].high) == (0.5, 0.5)


def _leveled(*levels: cards.Level, group: str = "weights") -> list[Card]:
    return [
        Card.model_validate(
            {
                **{"name": f"n{i}", "title": "t", "about": "a", "group": group},
                **{"sides": {}, "values": {}, "level": level, "verdict": "v"},
            }
        )
        for i, level in enumerate(levels)
    ]


def test_the_headline_is_good_news_only_where_all_was_judged() -> None:
    assert page.headline(_leveled("same", "clean")) == (
        "none",
        "None of 2 probes brings out more than it should",
    )
    colour, words = page.headline(_leveled("unclear", "unclear", "same"))
    assert (colour, "2 could not be judged" in words) == ("unclear", True)
    assert "is seen to" in words
    assert page.headline(_leveled("leaks", "unclear", "leaks", "clean")) == (
        "leaks",
        "2 of 4 probes bring something out; 1 could not be judged",
    )
    colour, words = page.headline(_leveled("level", "less", "same"))
    assert (colour, "is seen to" in words) == ("none", True)
    assert "1 could not be told apart; 1 give less" in words
    colour, words = page.headline(_leveled("clean", group="store"))
    assert (colour, "the weights were not asked" in words) == ("unclear", True)


def test_one_text_makes_no_green_page() -> None:
    values: dict[cards.Side, tuple[float, ...]] = {"now": (0.9,), "base": (0.1,)}
    report = Report(
        **{"toolkit": "0", "made": "now", "subject": "s", "model": "m", "live": False},
        texts=("t",),
        sides=("now", "base"),
        cards=(cards.compared("p", "t", "a", "weights", values),),
    )
    html = page.render([("now", report)])
    assert 'class="lead unclear"' in html
    assert "1 could not be judged" in html


def test_a_file_that_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        cards.load(tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"schema_version": 2}')
    with pytest.raises(InputError, match="schema version 1"):
        cards.load(tmp_path / "other.json")
