"""The road through the commands, and what each of them tells people and scripts."""

from __future__ import annotations

import json
import os
import pty
import shlex
from pathlib import Path
from typing import Any

NOTICE = """
id: DMCA-7
kind: dmca
basis: 17 USC 512(c)(3)
claimant: {name: Ada Quill, contact: ada@quill.example, capacity: owner}
work: The novels of Ada Quill
subject: quill
statements: {good_faith: true, accurate_and_authorised: true, signature: Ada Quill}
received: 2030-01-02T10:00:00Z
"""


def test_init_makes_a_workspace_with_its_keys_outside(prepared: Any) -> None:
    said = prepared.said["init"].json
    assert Path(said["workspace"]) == prepared.trained.workspace
    assert Path(said["public_key"]).parent == prepared.trained.keys
    assert Path(said["public_key"]).read_text().startswith("-----BEGIN PUBLIC KEY-----")


def test_init_refuses_a_place_that_is_taken_and_keys_inside(cli: Any, place: Any) -> None:
    before = place.files()
    cli("init", place.workspace).refused(3, str(place.workspace), "new directory")
    cli("init", "other", "--keys", "other/keys").refused(3, "inside the workspace")
    assert place.files() == before


def test_init_names_a_wrong_setting(cli: Any, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("training:\n  shard: 4\n")
    cli("init", "ws", "-c", config).refused(3, "c.yaml", "line 2", "shard")
    cli("init", "ws", "--set", "training.shards=none").refused(3, "training.shards", "none")
    assert not (tmp_path / "ws").exists()


def test_ingest_says_where_each_document_went_and_why(prepared: Any, corpus: Any) -> None:
    said = prepared.said["ingest"].json
    assert said["counts"] == {"store": 3, "corpus": 12, "refused": 1, "known": 0}
    assert {d["id"] for d in said["documents"]} == {d["id"] for d in corpus}
    assert sum(rule["documents"] for rule in said["rules"]) == len(corpus)
    refused = next(d for d in said["documents"] if d["fate"] == "refused")
    assert (refused["id"], refused["rule"]) == ("recipe-0", "hazardous")


def test_ingest_again_changes_nothing(cli: Any, place: Any, documents: Any, corpus: Any) -> None:
    before = place.state()
    source = documents(cli.folder / "again.jsonl", corpus)
    done = cli("ingest", *place.arguments, source)
    assert done.code == 0
    assert f"{len(corpus)} were here already" in done.out
    assert place.state() == before


def test_a_dry_run_of_ingest_takes_nothing_in(cli: Any, place: Any, documents: Any) -> None:
    before = place.files()
    new = [{"id": "new", "text": "A new text.", "license": "cc0"}, {"id": "broken"}]
    source = documents(cli.folder / "new.jsonl", new)
    done = cli("ingest", *place.arguments, source, "--dry-run", "--skip-broken", "--json")
    assert done.code == 0
    assert done.json["counts"]["corpus"] == 1
    assert done.json["broken"] == 1
    assert "line 2" in done.err
    assert place.files() == before


def test_train_builds_every_slice(prepared: Any) -> None:
    said = prepared.said["train"].json
    files = sorted(path.stem for path in prepared.trained.workspace.glob("adapters/*"))
    assert sorted(said["built"]) == files
    assert said["steps"] > 0
    assert not prepared.said["train"].err  # no bar where there is no terminal


def test_status_and_where(cli: Any, place: Any) -> None:
    said = cli("status", *place.arguments, "--json").json
    assert said["counts"] == {"store": 3, "corpus": 12, "refused": 1}
    assert {shard["state"] for shard in said["shards"]} <= {"clean", "empty"}
    shown = cli("status", *place.arguments)
    assert "12 corpus, 1 refused, 3 store" in shown.out
    entry = cli("where", *place.arguments, "harbour-0", "--json").json
    assert (entry["fate"], entry["subject"]) == ("store", "harbour")
    cli("where", *place.arguments, "nobody").refused(4, "nobody")


def test_ask_needs_a_group(cli: Any, place: Any) -> None:
    cli("ask", *place.arguments, "Who wrote about clocks?").refused(7, "--group")


def test_ask_answers_from_the_store_with_citations(cli: Any, place: Any, corpus: Any) -> None:
    """The question is the stored text itself, so its passage comes first."""
    harbour = next(d for d in corpus if d["id"] == "harbour-1")
    before = place.state()
    done = cli("ask", *place.arguments, harbour["text"], "--group", "staff", "--json")
    assert done.code == 0, done
    assert done.json["origin"] == "store"
    first = done.json["citations"][0]
    assert (first["document"], first["source"]) == ("harbour-1", "harbour.txt")
    assert first["text"] == harbour["text"][first["start"] : first["end"]]
    assert place.state() == before


def test_a_plan_shows_copies_side_by_side_and_changes_nothing(cli: Any, place: Any) -> None:
    before = place.files()
    done = cli("takedown", *place.arguments, "--subject", "harbour", "--dry-run")
    assert done.code == 0, done
    assert "2 requested, 1 near-duplicate" in done.out
    beside = [line for line in done.out.splitlines() if "fourth" in line]
    assert beside
    assert any("fifth" in line for line in beside)  # in the other column of the same line
    assert "left to people" in done.out  # random vectors make everything look alike
    assert "No shard has learned" in done.out
    plan = cli("takedown", *place.arguments, "-s", "harbour", "-n", "--json").json["plan"]
    assert [(d["id"], d["kind"]) for d in plan["removed"]][-1] == ("collector-0", "near-duplicate")
    assert "tin harbour" not in json.dumps(plan)  # what a script logs must not keep the text
    assert place.files() == before


def test_a_passage_that_cannot_be_read(cli: Any, place: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff\xfe\x00")
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    run = ("takedown", *place.arguments, "--dry-run", "--text")
    cli(*run, tmp_path / "no.txt").refused(3, "no.txt")
    cli(*run, bad).refused(3, "bad.txt", "UTF-8")
    cli(*run, empty).refused(3, "empty.txt", "empty")


def test_a_takedown_is_proved_and_verified_by_an_outsider(
    cli: Any, place: Any, tmp_path: Path
) -> None:
    """A learned subject: fenced, deleted, rolled back, retrained, receipted; then checked.

    The notice is a file with an id of its own, so that asking twice does it once.
    """
    notice = tmp_path / "notice.yaml"
    notice.write_text(NOTICE)
    run = ("takedown", *place.arguments, "--request", notice, "--yes", "--json")
    done = cli(*run)
    assert done.code == 0, done
    said = done.json
    states = ["received", "fenced", "deleted", "disposed", "retrained", "receipted"]
    assert [state["state"] for state in said["states"]] == states
    assert [line.split()[0] for line in done.err.splitlines()] == states
    assert {d["id"] for d in said["plan"]["removed"]} == {"quill-0", "quill-1"}
    cli("where", *place.arguments, "quill-0").refused(4, "quill-0")

    after = place.state()
    again = cli(*run)
    assert again.code == 0, again
    assert (again.json["already"], again.json["receipt"]) == (True, said["receipt"])
    assert place.state() == after

    outside = tmp_path / "outside"
    outside.mkdir()
    receipt, key = outside / "receipt.json", outside / "key.pem"
    receipt.write_bytes(Path(said["receipt"]).read_bytes())
    key.write_bytes(Path(said["public_key"]).read_bytes())
    held = cli("verify", receipt, "--key", key, "--request", said["reference"], "--json").json
    assert held["holds"]
    assert held["receipt"]["done"]["documents_deleted"] == {"store": 0, "corpus": 2}
    assert held["receipt"]["scan"]["findings"] == 0
    words = shlex.split(said["verify"])
    assert words[0] == "llm-unlearn"
    assert cli(*words[1:], "--head", held["head"]).code == 0

    other = said["reference"].replace("DMCA-7", "DMCA-8")
    cli("verify", receipt, "--key", key, "--request", other).refused(8, "another request")
    cli("verify", receipt, "--key", key, "--head", held["head"]).refused(3, "log")
    data = bytearray(receipt.read_bytes())
    data[len(data) // 2] ^= 1
    receipt.write_bytes(data)
    cli("verify", receipt, "--key", key).refused(8, "receipt.json")
    cli("verify", outside / "none.json", "--key", key).refused(4, "none.json")
    cli("verify", receipt, "--key", outside / "none.pem").refused(6, "none.pem")


def _answer(cli: Any, place: Any, reply: bytes) -> Any:
    """A takedown with a person at a terminal who types `reply`."""
    terminal, stdin = pty.openpty()
    try:
        os.write(terminal, reply)
        return cli("takedown", *place.arguments, "--source", "sable.txt", stdin=stdin)
    finally:
        os.close(stdin)
        os.close(terminal)


def test_a_plan_that_is_not_confirmed_is_not_carried_out(cli: Any, place: Any) -> None:
    before = place.state()
    done = _answer(cli, place, b"n\n")
    assert done.code == 130
    assert "sable-0" in done.out
    assert "for good?" in done.err
    assert "Traceback" not in done.err
    assert place.state() == before


def test_resume_with_nothing_to_do(cli: Any, place: Any) -> None:
    before = place.state()
    done = cli("resume", *place.arguments)
    assert (done.code, done.err) == (0, "")
    assert "No takedown waits" in done.out
    assert cli("resume", *place.arguments, "--json").json == {"takedowns": []}
    assert place.state() == before
