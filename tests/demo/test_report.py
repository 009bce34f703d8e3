"""The demo's report, picture and terminal summary, from a made-up result."""

from __future__ import annotations

import io
import math
import re
from copy import deepcopy
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from llm_unlearn.demo import figures
from llm_unlearn.demo.plots import demo_picture
from llm_unlearn.demo.report import examples, grid, render, sample, verdict, write_report
from llm_unlearn.demo.result import DemoResult, Leak, Rate
from llm_unlearn.demo.summary import print_summary
from llm_unlearn.takedown.receipt import LIMITS

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Strict(HTMLParser):
    """Checks that tags balance, ids are unique, and collects what a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{name} on <{tag}>"
            if name == "id":
                self.ids.append(value or "")
            if name in {"src", "srcset", "href", "data", "action", "poster", "xlink:href"}:
                (self.links if tag == "a" else self.loads).append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def parse(html: str) -> Strict:
    parser = Strict()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def words(html: str) -> str:
    return re.sub(r"\s+", " ", " ".join(parse(html).text))


@pytest.fixture
def page(result: DemoResult) -> str:
    return render(result)


def test_is_well_formed_and_its_headings_are_in_order(page: str) -> None:
    parser = parse(page)
    assert len(parser.ids) == len(set(parser.ids))
    assert {link.removeprefix("#") for link in parser.links} <= set(parser.ids)
    levels = [int(tag[1]) for tag in parser.seen if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_loads_and_runs_nothing(page: str) -> None:
    parser = parse(page)
    assert parser.loads == ["data:,"]
    assert not {"script", "iframe", "object", "embed", "form", "img"} & set(parser.seen)
    styles = "".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy.group(1).startswith("default-src 'none'; style-src 'unsafe-inline';")
    assert "script-src" not in policy.group(1)
    assert "http" not in policy.group(1)


def test_text_from_documents_and_models_is_shown_and_never_read_as_html(result: DemoResult) -> None:
    evil = '<img src="https://evil.example/x" onerror=alert(1)></style><script>1</script>"\'&'
    result.knowledge[0] = replace(result.knowledge[0], question=evil, base=evil, answer=evil)
    removal = result.removals[0]
    removal.title = evil
    removal.documents[0] = (evil, evil, evil)
    removal.leaks = [replace(leak, document=evil, answer=evil) for leak in removal.leaks]
    result.checks[0].detail = evil
    result.utility[0].name = evil
    result.losses[evil] = [1.0]
    result.timings.append((evil, 1.0))
    html = render(result)
    parser = parse(html)
    assert not {"script", "img"} & set(parser.seen)
    assert parser.loads == ["data:,"]
    assert "".join(parser.text).count(evil) > 10


def test_unprintable_characters_are_replaced(result: DemoResult) -> None:
    result.knowledge[0] = replace(result.knowledge[0], answer="a\x00b\x1b[31m\ud800c\nd")
    assert "a\ufffdb\ufffd[31m\ufffdc\nd" in render(result)


def test_same_result_same_bytes_and_only_the_owner_reads_them(
    result: DemoResult, tmp_path: Path
) -> None:
    first = write_report(result, tmp_path / "one.html")
    second = write_report(deepcopy(result), tmp_path / "two.html")
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.html", "two.html"]


def test_says_that_it_quotes_removed_text_before_anything_else_of_it(page: str) -> None:
    text = words(page)
    notice = text.index("This file quotes text that was removed.")
    assert "outside the workspace" in text[notice : notice + 200]
    assert notice < text.index("Orsolya Tarn")


def test_every_number_is_there(result: DemoResult, page: str) -> None:
    text = words(page)
    for fate, rule, reason, count in result.separation:
        assert f"{figures.FATES[fate]} {rule} {reason} {count} " in text
    for shard, documents, _ in result.shards:
        assert f"Shard {shard} {documents} documents" in text
    for losses in result.losses.values():
        assert f"{losses[0]:.2f} → {losses[-1]:.2f}" in text
    rates = [*result.utility, *result.rates]
    rates += [rate for kind in figures.KINDS for rate in figures.answered(result, kind)]
    for rate in rates:
        share, low, high = (100 * v for v in (rate.right / rate.total, rate.low, rate.high))
        shown = f"{rate.right} of {rate.total} {share:.1f}% {low:.1f} to {high:.1f}%"
        assert f"{rate.name} {shown}" in text
    for item in result.knowledge:
        assert item.question in text
    for check in result.checks:
        assert f"{check.claim} ✓ held {check.detail}" in text
    for step, took in result.timings:
        assert f"{step} {figures.seconds(took)}" in text
    for limit in LIMITS:
        assert limit in text
    assert result.recipe in text


def test_every_figure_of_every_takedown_is_there(result: DemoResult, page: str) -> None:
    text = words(page)
    for removal in result.removals:
        assert removal.receipt in text
        for name, fate, _ in removal.documents:
            assert f"{name} {figures.FATES[fate]}" in text
        for name, cosine in removal.flagged:
            assert f"{name} ({cosine:.3f})" in text
        for state, at in removal.states:
            assert f"{state} after {figures.seconds(at)}" in text
        for leak in removal.leaks:
            values = [figures.number(v) for v in (leak.probability, leak.extraction, leak.rouge)]
            shown = " ".join(v for v in values if v != "not measured")
            found = {None: "", True: "yes ", False: "no "}[leak.returned]
            assert f"{leak.moment} {leak.answer} {found}{shown}" in text
        for series in (one for _, ones in figures.sides(removal.leaks) for one in ones):
            for point in series.points:
                assert point.estimate is not None
                low, high = point.estimate.low, point.estimate.high
                if series.counted:
                    count = f"{int(sum(point.values))} of {len(point.values)}"
                    assert f"{count} {100 * low:.1f} to {100 * high:.1f}%" in text
                else:
                    mean = figures.number(point.estimate.mean)
                    assert f"{mean} {figures.number(low)} to {figures.number(high)}" in text


def test_a_claim_that_failed_heads_the_report(result: DemoResult) -> None:
    result.checks[1].held = False
    text = words(render(result))
    assert "1 of 4 claims did not hold." in text[:400]
    assert f"{result.checks[1].claim} ✗ not held" in text
    assert verdict([])[1] == "No claim was checked."


def test_an_empty_result_is_a_report_too(tmp_path: Path) -> None:
    empty = DemoResult(version="0", model="m", embedder="e", recipe="r")
    assert "No claim was checked." in words(render(empty))
    ElementTree.parse(demo_picture(empty, tmp_path / "empty.svg"))
    assert "No claim was checked." in printed(empty)


def test_the_grid_marks_the_slices_that_were_trained_again(result: DemoResult) -> None:
    rows = grid(result)
    marks = {shard: [cell.takedowns for cell in cells if cell] for shard, _, cells in rows}
    assert marks == {
        0: [(2,), (2,), (2,)],
        1: [(), (), ()],
        2: [(), (1,), (1,)],
        3: [(), (), (2,)],
    }


def test_a_shard_with_fewer_slices_is_filled_up(result: DemoResult) -> None:
    result.shards[1] = (1, 9, 1)
    assert [cell is None for cell in grid(result)[1][2]] == [False, True, True]
    assert "no documents" in words(render(result))


def test_the_sample_is_spread_and_nothing_is_lost(result: DemoResult) -> None:
    chosen, others = sample(result, "learned")
    asked = [item for item in result.knowledge if item.kind == "learned"]
    assert chosen == [asked[0], asked[24], asked[48]]
    assert sorted(map(repr, chosen + others)) == sorted(map(repr, asked))


def test_one_removed_document_of_each_fate_is_shown_unfolded(result: DemoResult) -> None:
    shown, folded = examples(result.removals[0])
    assert [item.document for item in shown] == ["ilse-brandvold/1", "tidewater-mirror/1"]
    assert len(folded) == 6


def test_series_leave_out_what_was_not_measured() -> None:
    """Two documents, 0.2 and 0.4: mean 0.3; nan and None are no values; 1 of 1 returned."""
    leaks = [
        Leak("a", "s", "before", "q", "e", "x", probability=0.2, returned=True),
        Leak("b", "s", "before", "q", "e", "x", probability=0.4),
        Leak("c", "s", "before", "q", "e", "x", probability=math.nan),
    ]
    returned, probability = figures.series(leaks)
    assert (returned.key, probability.key) == ("returned", "probability")
    assert probability.points[0].estimate is not None
    assert probability.points[0].estimate.mean == pytest.approx(0.3)
    assert probability.points[0].values == (0.2, 0.4)
    assert probability.points[1].estimate is None
    assert (probability.documents, returned.documents) == ("2 documents", "1 document")
    later = [*leaks, Leak("a", "s", "after", "q", "e", "x", probability=0.1)]
    assert figures.series(later)[1].documents == "1 to 2 documents"
    assert returned.points[0].estimate is not None
    assert returned.points[0].estimate.high == 1.0


def test_stored_and_trained_documents_share_no_mean(result: DemoResult) -> None:
    """Stored answers score 0.91, trained ones 1.0 before: two means, not one of 0.94."""
    (_, stored_side), (_, trained_side) = figures.sides(result.removals[0].leaks)
    assert [one.key for one in stored_side] == ["returned", "rouge"]
    assert [one.key for one in trained_side] == ["probability", "extraction", "rouge"]
    means = [side[-1].points[0].estimate for side in (stored_side, trained_side)]
    assert [round(mean.mean, 6) for mean in means if mean] == [0.91, 1.0]


def test_after_and_never_had_are_compared_to_the_last_figure(result: DemoResult) -> None:
    removal = result.removals[1]
    assert {item.same for item in figures.asked(removal)} == {True}
    changed = next(leak for leak in removal.leaks if leak.moment == "after")
    changed.probability = (changed.probability or 0) + 1e-12
    assert figures.asked(removal)[0].same is False
    only = replace(removal, leaks=[leak for leak in removal.leaks if leak.moment == "before"])
    assert figures.asked(only)[0].same is None


def test_the_picture_is_one_small_svg_that_loads_nothing(
    result: DemoResult, tmp_path: Path
) -> None:
    path = demo_picture(result, tmp_path / "demo.svg")
    text = path.read_text()
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert text.count("http") == 1  # the namespace
    assert "prefers-color-scheme:dark" in text
    assert len(text) < 40_000
    assert text == demo_picture(deepcopy(result), tmp_path / "again.svg").read_text()
    for shown in ("5/5", "0/5", "66 of 72 (91.7%)", "1 of 72", "47 of 60", "never had"):
        assert shown in text


def test_the_picture_escapes_names(result: DemoResult, tmp_path: Path) -> None:
    result.utility = [Rate("</text><script>&", 1, 2, 0.1, 0.9)]
    drawing = ElementTree.parse(demo_picture(result, tmp_path / "demo.svg"))
    assert any(element.text == "</text><script>&" for element in drawing.iter())


def printed(result: DemoResult, width: int = 100) -> str:
    out = io.StringIO()
    print_summary(result, Console(file=out, width=width, color_system=None))
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 100, 160])
def test_the_summary_fits_its_console(result: DemoResult, width: int) -> None:
    lines = printed(result, width).splitlines()
    assert max(map(len, lines)) <= min(width, 100)


def test_the_summary_shows_the_same_figures_and_no_removed_text(result: DemoResult) -> None:
    text = re.sub(r"[\s│]+", " ", printed(result))
    for shown in (
        "66 of 72 91.7%",
        "27 of 30 90.0%",
        "retrained 74.1 s",
        "before 5 of 5 0.910 56.6 to 100.0% 0.910 to 0.910",
        "before 0.951 0.910 1.000 0.940 to 0.962 0.890 to 0.930",
        "All 4 claims that were checked held.",
        "47 of 60",
    ):
        assert shown in text
    assert "Merry Badger" not in text


def test_the_summary_reads_no_markup_and_passes_on_no_control_sequence(result: DemoResult) -> None:
    result.checks[0].claim = "[bold red]claim[/] \x1b[2J"
    result.checks[0].held = False
    text = printed(result)
    assert "[bold red]claim[/]" in text
    assert "\x1b" not in text
    assert "NOT HELD" in text
