"""`audit`, `export`, `plan` and what follows a deletion, as commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def test_audit_export_and_a_dropped_shard(cli: Any, place: Any, tmp_path: Path) -> None:
    found = cli("audit", *place.arguments, "--json")
    assert found.code == 0
    assert found.json["holds"] is True
    assert {c["verdict"] for c in found.json["checkpoints"]} == {"equal"}
    shard = found.json["checkpoints"][0]["shard"]
    out = tmp_path / "adapter"
    done = cli("export", *place.arguments, "--shard", shard, "--out", out, "--json")
    assert done.code == 0
    assert (out / "adapter_model.safetensors").is_file()
    cli("export", *place.arguments, "--shard", shard, "--out", out).refused(
        3, str(out), "new folder"
    )
    cli("export", *place.arguments, "--shard", shard).refused(2, "--out")
    gone = cli("export", *place.arguments, "--gone", out, "--json")
    assert gone.json == {"gone": [1]}
    cli("audit", *place.arguments, "--shard", 99).refused(4, "no shard 99")
    dropped = cli(
        "takedown",
        *place.arguments,
        "-s",
        "quill",
        "--after",
        "drop",
        "--yes",
        "--no-probe",
        "--json",
    )
    assert dropped.code == 0
    touched = [s["shard"] for s in dropped.json["plan"]["shards"]]
    states = cli("status", *place.arguments, "--json").json["shards"]
    assert [s["shard"] for s in states if s["state"] == "dropped"] == touched


def test_plan_needs_no_workspace(cli: Any) -> None:
    load = ("--documents", 800, "--tokens-per-document", 100, "--deletions", "1/day")
    found = cli("plan", *load, "--shards", 8, "--tokens-per-second", 50, "--json").json
    assert found["workload"]["deletions"] == 30
    assert abs(found["estimate"]["deletion"]["tokens"] - 7 / 9 * 12 * 10_000) < 1
    # one a year costs a twelfth of one a month, and no other than one by one
    rare = cli("plan", *load[:-1], "1/year", "--shards", 8, "--json").json["estimate"]
    assert rare["one_by_one"]["tokens"] == pytest.approx(rare["deletion"]["tokens"] / 12)
    assert rare["batched"]["tokens"] == pytest.approx(rare["one_by_one"]["tokens"])
    shown = cli("plan", *load, "--tokens-per-second", 50, "--budget", 400)
    assert shown.code == 0
    assert "least utility" in shown.out
    cli("plan", *load, "--tokens-per-second", 50, "--budget", 0.001).refused(4, "0.001 hours")
    cli("plan", *load, "--budget", 4).refused(2, "--tokens-per-second")
    cli("plan", *load[:-1], "many").refused(2, "many")
    cli("plan", *load, "--risk", "2:3").refused(2, "2:3")
    cli("plan", *load, "--place-by", "risk-slices").refused(2, "--risk")
