"""Documents and takedowns over HTTP, from ingest to a receipt that verifies; the description fuzzed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from served import Served
from small import stored

from llm_unlearn import Document, Workspace
from llm_unlearn.errors import WorkspaceLocked
from llm_unlearn.probing import probe_subject
from llm_unlearn.serve.access import Role
from llm_unlearn.serve.backend import Backend
from llm_unlearn.serve.runs import Runs


def _until(client: httpx.Client, number: int, state: str, seconds: float = 120) -> list[str]:
    """Wait for a state; the states seen on the way."""
    seen: list[str] = []
    end = time.monotonic() + seconds
    while True:
        told = client.get(f"/v1/takedowns/{number}")
        if told.status_code == 429:  # a busy machine: asked more often than a key may
            time.sleep(0.5)
            continue
        assert told.status_code == 200, told.text
        now = told.json()["state"]
        if seen[-1:] != [now]:
            seen.append(now)
        if now == state:
            return seen
        assert time.monotonic() < end, seen
        time.sleep(0.02)


def test_a_write_waits_for_a_run_that_is_just_ending() -> None:
    """Its receipt stands already, and the process that wrote it has not ended yet."""
    tries: list[int] = []

    def write() -> str:
        tries.append(1)
        if len(tries) < 4:
            raise WorkspaceLocked("Takedowns are being carried out.")
        return "written"

    async def apart(work: Callable[[], str]) -> str:
        return work()

    server = SimpleNamespace(
        apart=apart, runs=SimpleNamespace(running=True)
    )  # its process still runs
    assert asyncio.run(Backend.write(server, write)) == "written"  # type: ignore[arg-type]


def test_documents_come_are_found_and_go(fresh: Callable[..., Served]) -> None:
    served = fresh()
    operator, reader = served.http("operator"), served.http("reader")
    text = "The ferry to Ostrel leaves at nine from the green pier."
    new = [
        {"id": "ferry/1", "text": text, "license": "all-rights-reserved"},
        {"id": "pay", "text": "Pay day is the third.", "license": "none", "acl": ["hr"]},
        {"id": "bad", "text": "How to do harm.", "tags": ["bad"]},
    ]
    made = operator.post("/v1/documents", json={"documents": new})
    assert made.status_code == 201
    assert [(d["id"], d["fate"]) for d in made.json()["documents"]] == [
        ("ferry/1", "store"),
        ("pay", "store"),
        ("bad", "refused"),
    ]
    known = operator.post("/v1/documents", json={"documents": new[:1]}).json()
    assert known["documents"][0]["known"]
    changed = operator.post("/v1/documents", json={"documents": [{**new[0], "text": "Other."}]})
    assert changed.status_code == 400
    listed, after = [], None
    while True:
        page = operator.get(
            "/v1/documents", params={"limit": 5, "after": after} if after else {"limit": 5}
        )
        listed += [document["id"] for document in page.json()["documents"]]
        after = page.json()["next"]
        if after is None:
            break
    assert len(listed) == len(set(listed)) == 8 + 6 + 3
    whole = reader.get("/v1/documents/ferry/1").json()
    assert (whole["content"], whole["state"]) == (text, "live")
    assert reader.get("/v1/documents/author-1/1").json()["shard"] in (0, 1)
    for hidden in ("pay", "nothing"):
        refused = reader.get(f"/v1/documents/{hidden}")
        assert (refused.status_code, "Pay day" in refused.text) == (404, False)
    assert served.http("reader", "hr").get("/v1/documents/pay").json()["acl"] == ["hr"]
    found = reader.post("/v1/search", json={"query": "ferry Ostrel", "mode": "lexical"}).json()
    assert found["passages"][0]["document"] == "ferry/1"
    assert reader.post("/v1/search", json={"query": "Pay day", "mode": "lexical"}).json() == {
        "passages": []
    }
    deleted = operator.delete("/v1/documents/ferry/1")
    assert (deleted.status_code, deleted.json()["state"]) == (202, "approved")
    assert reader.get("/v1/documents/ferry/1").status_code == 404
    assert operator.delete("/v1/documents/ferry/2").status_code == 404
    status = operator.get("/v1/status").json()
    assert status["takedowns"] == {"approved": 1}
    assert str(served.path) not in json.dumps(status)
    assert 'llm_unlearn_documents{what="fenced"} 1.0' in operator.get("/metrics").text


def test_a_takedown_from_pasted_text_to_its_receipt(fresh: Callable[..., Served]) -> None:
    served = fresh()
    operator, auditor = served.http("operator"), served.http("auditor")
    text = stored(0, "work").text
    assert text is not None
    told = operator.post(
        "/v1/takedowns",
        json={"text": text, "id": "ours-1", "names": ["The Work"]},
    )
    assert told.status_code == 201, told.text
    number = told.json()["number"]
    assert told.json()["fenced"] == 1
    again = operator.post("/v1/takedowns", json={"text": text, "id": "ours-1"})
    assert again.status_code == 400
    plan = operator.get(f"/v1/takedowns/{number}/plan").json()
    assert [item["id"] for item in plan["plan"]["removed"]] == ["work/s0"]
    for row in (auditor.get(f"/v1/takedowns/{number}"), auditor.get("/v1/takedowns")):
        assert "ours-1" not in row.text
        assert "operator" not in row.text
    assert auditor.get(f"/v1/takedowns/{number}/plan").status_code == 403
    assert operator.post("/v1/takedowns/run", json={}).status_code == 400
    approved = operator.post(f"/v1/takedowns/{number}/approve", json={})
    assert approved.json()["state"] == "approved"
    other = operator.post("/v1/takedowns", json={"subject": "author-2"}).json()["number"]
    refused = operator.post(f"/v1/takedowns/{other}/refuse", json={"reason": "Not theirs."})
    assert refused.json()["state"] == "refused"
    assert operator.post(f"/v1/takedowns/{other}/withdraw").json()["state"] == "withdrawn"
    assert operator.post("/v1/takedowns/run", json={"numbers": [number]}).status_code == 202
    asked = served.openai().chat.completions.create(
        model="base", messages=[{"role": "user", "content": "Still there?"}], max_tokens=4
    )
    assert asked.usage is not None  # answers go on meanwhile
    seen = _until(operator, number, "receipted")
    assert seen[0] in ("approved", "fenced", "deleted", "disposed", "retrained", "receipted")
    receipt = auditor.get(f"/v1/takedowns/{number}/receipt").json()
    assert receipt["receipt"]["outcome"] == "removed"
    assert text[:40] not in json.dumps(receipt)
    file = served.path.parent / "envelope.json"
    file.write_text(json.dumps(receipt["envelope"]))
    with Workspace.open(served.path) as own:
        path = own.desk.receipt(str(number))
        assert json.loads(path.read_bytes()) == receipt["envelope"]
        own.verify(path)
    assert (
        operator.post("/v1/documents", json={"documents": [{"id": "back", "text": text}]}).json()[
            "documents"
        ][0]["fate"]
        == "refused"
    )


def test_copies_are_fenced_after_the_acknowledgement_and_those_that_come_later(
    fresh: Callable[..., Served],
) -> None:
    served = fresh()
    operator = served.http("operator")
    text = stored(0, "work").text
    assert text is not None

    def add(name: str) -> None:
        copy = {"id": name, "text": f"Once more. {text} The end.", "license": "all-rights-reserved"}
        assert operator.post("/v1/documents", json={"documents": [copy]}).status_code == 201

    def found() -> set[str]:
        hits = operator.post("/v1/search", json={"query": text, "mode": "lexical", "k": 20}).json()
        return {passage["document"] for passage in hits["passages"]}

    add("mirror")
    assert "mirror" in found()
    told = operator.post("/v1/takedowns", json={"subject": "work"})
    assert told.status_code == 201, told.text
    end = time.monotonic() + 30
    while "mirror" in found():
        assert time.monotonic() < end
        time.sleep(0.05)
    add("later")
    assert "later" not in found()
    refused = operator.post(
        f"/v1/takedowns/{told.json()['number']}/refuse", json={"reason": "It is ours."}
    )
    assert refused.status_code == 200, refused.text
    assert {"mirror", "later"} <= found()


def test_a_probe_quotes_only_what_is_live_and_may_be_seen(fresh: Callable[..., Served]) -> None:
    served = fresh()
    operator, auditor = served.http("operator"), served.http("auditor")
    controls = [{"id": f"c{n}", "text": f"Nobody told this {n} times before."} for n in range(3)]
    assert operator.post("/v1/probes", json={"subject": "nobody"}).status_code == 404
    assert operator.get("/v1/probes/1").status_code == 404
    wanted = {"subject": "author-1", "controls": controls}
    begun = operator.post("/v1/probes", json=wanted)
    assert (begun.status_code, begun.json()["state"]) == (202, "running")
    assert operator.post("/v1/probes", json=wanted).status_code == 409
    end = time.monotonic() + 120
    while (row := operator.get("/v1/probes/1").json())["state"] == "running":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert (row["state"], row["problem"]) == ("done", None)
    with Workspace.open(served.path, readonly=True) as own:
        strangers = [Document.model_validate(control) for control in controls]
        expected = probe_subject(own, "author-1", controls=strangers, groups=["staff"])
    report = row["report"]
    assert report["schema_version"] == 1
    assert expected.model.endswith(f"/{report['model']}")  # and not where it lies
    assert report["cards"] == expected.model_dump(mode="json")["cards"]
    assert report["passages"] == expected.model_dump(mode="json")["passages"] != []
    shown = auditor.get("/v1/probes/1").json()["report"]
    assert shown["cards"] == report["cards"]
    assert (shown["texts"], shown["passages"]) == (["1", "2"], [])
    text = expected.passages[0].text
    assert text in json.dumps(report)
    assert not any(words in json.dumps(shown) for words in ("author-1", text))
    assert served.http("reader").get("/v1/probes/1").status_code == 403
    other = served.http("operator", "hr").get("/v1/probes/1").json()["report"]
    assert (other["cards"], other["passages"]) == (report["cards"], [])
    assert operator.post("/v1/takedowns", json={"subject": "author-1"}).status_code == 201
    after = operator.get("/v1/probes/1").json()["report"]
    assert (after["cards"], after["passages"]) == (report["cards"], [])
    assert (after["texts"], after["subject"]) == (["1", "2"], "")  # names are text too
    assert operator.post("/v1/probes", json=wanted).status_code == 404


def test_what_is_demanded_must_be_complete(served: Served) -> None:
    operator = served.http("operator")
    for body, words in (
        ({}, "names nothing"),
        ({"subject": "nobody-here"}, "nobody-here"),
        ({"subject": "work", "kind": "dmca"}, "must also give"),
        ({"subject": "work", "due": "2001-01-01"}, "due"),
    ):
        answer = operator.post("/v1/takedowns", json=body)
        assert answer.status_code in (400, 404), answer.text
        assert words in answer.json()["error"]["message"]
    assert operator.get("/v1/takedowns/99").status_code == 404
    assert operator.get("/v1/takedowns/99/receipt").status_code == 404


@pytest.mark.parametrize("role", ["operator", "auditor"])
def test_everything_does_what_its_description_says(
    fresh: Callable[..., Served], role: Role
) -> None:
    """Schemathesis: made-up inputs, valid and not; no 500, and only answers that are described."""
    served = fresh(rate=1_000_000)
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    bearer = served.http(role).headers["authorization"]

    @schema.auth()
    class Bearer:
        def get(self, _case: schemathesis.Case, _context: object) -> str:
            return bearer

        def set(self, case: schemathesis.Case, data: str, _context: object) -> None:
            case.headers["Authorization"] = data

    cases = 0
    for found in schema.get_all_operations():

        @settings(
            max_examples=int(os.environ.get("SOAK", "3")),
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=found.ok().as_strategy())
        def call(case: schemathesis.Case) -> None:
            nonlocal cases
            cases += 1
            # what a schema cannot say (there is such a document, a prompt fits) is refused with 400
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        call()
    assert cases > 50
    assert served.http().get("/v1/models").status_code == 200


def test_a_run_begins_once_waits_for_the_lock_and_tells_how_it_ended(tmp_path: Path) -> None:
    class Coded(Runs):
        """Ends with these codes, one process after another."""

        def __init__(self, codes: list[int], **more: Any) -> None:
            super().__init__(tmp_path, None, **{"untouched": lambda _: True, **more})
            self.codes = codes

        async def _begin(self, given: list[str]) -> asyncio.subprocess.Process:
            code = self.codes.pop(0)
            return await asyncio.create_subprocess_exec(
                sys.executable, "-S", "-c", f"raise SystemExit({code})"
            )

    async def run(codes: list[int], **more: Any) -> tuple[int | None, list[int]]:
        runs = Coded(codes, **more)
        both = [runs.start([1], probe=False), runs.start([1], probe=False)]
        told = await asyncio.gather(*both, return_exceptions=True)
        assert [type(one) for one in told] == [type(None), WorkspaceLocked]
        assert runs.running
        assert runs.code is None
        while runs.running:
            await asyncio.sleep(0.01)
        return runs.code, codes

    assert asyncio.run(run([0, 9])) == (0, [9])
    assert asyncio.run(run([5, 5, 0])) == (0, [])  # somebody else was writing
    assert asyncio.run(run([5, 0], untouched=lambda _: False)) == (5, [0])  # not the lock
    assert asyncio.run(run([5, 0], patience=0.0)) == (5, [0])
    assert asyncio.run(run([1])) == (1, [])
