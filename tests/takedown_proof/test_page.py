"""The claimant's page and the page of documentation."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pydantic import BaseModel

from llm_unlearn.takedown import schema
from llm_unlearn.takedown.page import receipt_page
from llm_unlearn.takedown.receipt import Copy, Done, Receipt, Review, write_receipt
from llm_unlearn.takedown.verify import verify_receipt

Build = Callable[..., Receipt]
DOCS = Path(__file__).parents[2] / "docs" / "receipt.md"


class Tags(HTMLParser):
    """Checks that every element is closed where it should be, and collects what is loaded."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.seen: set[str] = set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        self.loads += [f"{k}={v}" for k, v in attrs if k in ("src", "href", "action", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def page(receipt: Build, public: Path, tmp_path: Path, seed: bytes) -> Callable[..., str]:
    def make(**changes: object) -> str:
        directory = tmp_path / f"log{len(list(tmp_path.iterdir()))}"
        path = write_receipt(directory, receipt(**changes), seed)
        return receipt_page(verify_receipt(path, public))

    return make


def test_the_page_is_whole_and_loads_nothing(page: Callable[..., str]) -> None:
    made = page()
    tags = Tags(made)
    assert tags.open == []
    assert tags.loads == []
    assert tags.seen.isdisjoint({"script", "img", "link", "iframe"})
    assert "url(" not in made
    assert "@import" not in made


def test_the_page_says_what_the_receipt_says(
    page: Callable[..., str], receipt: Build, public: Path
) -> None:
    made = page()
    assert "7 documents were" in made
    assert "1 still to be removed" in made
    assert "nightly" in made
    assert "0.910000" in made
    for line in receipt().does_not_prove:
        assert line.split(":")[0].replace("'", "&#39;") in made
    assert re.search(r"1:[0-9a-f]{64}", made)
    assert page() == made


def test_the_page_does_not_hide_what_was_not_done(page: Callable[..., str], receipt: Build) -> None:
    made = page(scan=None, probes=None)
    assert "not searched for traces" in made
    assert "not tested for leaks" in made
    done = receipt().done
    assert "not destroyed" in page(done=done.model_copy(update={"documents_held": 2}))
    nothing = Done(documents_deleted=schema.ByFate(), keys_destroyed=0, disposal="nothing")
    assert "Nothing was found" in page(done=nothing)
    waiting = receipt().closure.model_copy(update={"review": Review(open=2)})
    assert "2 possible paraphrases still await" in page(closure=waiting)


def test_nothing_in_a_receipt_can_write_html(page: Callable[..., str]) -> None:
    made = page(copies=[Copy(kind="export", label='<script>alert("1")</script>', status="done")])
    assert "<script" not in made
    assert "&lt;script&gt;" in made
    assert Tags(made).open == []


def parts() -> list[type[BaseModel]]:
    found = [
        v for v in vars(schema).values() if isinstance(v, type) and issubclass(v, schema._Part)
    ]
    return [part for part in found if part is not schema._Part]


@pytest.mark.parametrize("part", parts(), ids=lambda part: part.__name__)
def test_every_field_is_explained(part: type[BaseModel]) -> None:
    """docs/receipt.md has, for each class, a section with its fields and their descriptions."""
    section = DOCS.read_text().split(f"\n## {part.__name__}\n")[1].split("\n## ")[0]
    assert part.__doc__ is not None
    first = part.__doc__.strip().splitlines()[0]
    assert first in section
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", section, re.MULTILINE)
    assert rows == [(name, field.description) for name, field in part.model_fields.items()]
