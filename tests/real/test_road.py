"""The whole road on the packaged models, small: what `llm-unlearn demo --small` does must hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small demo, run as its own process."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "llm_unlearn.cli", "demo", "--small", "--out", str(folder)]
    subprocess.run(command, cwd=folder.parent, check=True, timeout=900)
    return folder


def test_every_claim_holds(out: Path) -> None:
    result = json.loads((out / "result.json").read_text())
    assert len(result["checks"]) >= 7
    assert [c["claim"] for c in result["checks"] if not c["held"]] == []


def test_the_adapters_know_what_the_base_does_not(out: Path) -> None:
    result = json.loads((out / "result.json").read_text())
    learned = [k for k in result["knowledge"] if k["kind"] == "learned"]
    assert len(learned) >= 24
    assert sum(k["right"] for k in learned) >= 0.9 * len(learned)
    assert sum(k["base_right"] for k in learned) <= 0.1 * len(learned)
    assert all(k["origin"] == "adapter" for k in learned if k["right"])


def test_stored_text_is_answered_with_citations(out: Path) -> None:
    result = json.loads((out / "result.json").read_text())
    stored = [k for k in result["knowledge"] if k["kind"] == "separated"]
    cited = [k for k in stored if any(c.startswith(k["subject"]) for c in k["citations"])]
    assert len(cited) >= 0.8 * len(stored)


def test_the_takedowns_took_effect_at_once(out: Path) -> None:
    result = json.loads((out / "result.json").read_text())
    for removal in result["removals"]:
        states = dict(removal["states"])
        assert states["received"] < 2
        for leak in removal["leaks"]:
            if leak["moment"] != "before":
                assert not leak["returned"]
                assert leak["extraction"] is None or leak["extraction"] < 0.5
    assert (out / "report.html").stat().st_size > 10_000
