"""Output and failures by themselves: what reaches a terminal, a script, and the user after a defect."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import typer

from llm_unlearn.cli.failures import handled
from llm_unlearn.cli.output import Output, clean
from llm_unlearn.cli.render import duration, shorten
from llm_unlearn.errors import NotFound


def test_no_control_sequence_reaches_a_terminal() -> None:
    """ESC and C1 CSI start colours and cursor moves; U+202E turns the reading direction round."""
    assert clean("a\x1b[31mb\x9b2Jc\u202ed\te\n") == "a\ufffd[31mb\ufffd2Jc\ufffdd\te\n"


def test_brackets_of_a_document_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    Output().say("[bold]kept[/bold] as it is")
    assert capsys.readouterr().err == "[bold]kept[/bold] as it is\n"


def test_with_json_a_library_that_prints_does_not_spoil_the_object(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout = io.StringIO()
    monkeypatch.setattr("sys.stdout", stdout)
    out = Output(json=True)
    print("a library says hello")
    out.show("a table")
    out.result({"a": "ä"})
    out.fail("Kind", "too late", "", 3)  # one object only
    assert json.loads(stdout.getvalue()) == {"a": "ä"}
    assert "hello" in capsys.readouterr().err


def _told(action: Callable[[], object], *, debug: bool = False) -> int:
    def run() -> None:
        with handled(Output(), debug=debug):
            action()

    with pytest.raises(typer.Exit) as ended:
        run()
    return ended.value.exit_code


def _raise(error: BaseException) -> Callable[[], object]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (NotFound("No such id.", "Look it up."), 4, ["No such id. Look it up."]),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 9, ["disk full", "/x"]),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 5, ["/x"]),
        (OSError(errno.EIO, "Input/output error", "/x"), 9, ["/x", "Input/output error"]),
        (MemoryError(), 9, ["memory"]),
        (KeyboardInterrupt(), 130, ["Stopped"]),
        (ValueError("the secret text"), 1, ["defect", "ValueError", "test_output.py", "report"]),
    ],
)
def test_each_failure_is_one_line_with_its_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, words: list[str]
) -> None:
    assert _told(_raise(error)) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert all(word in lines[0] for word in words)
    assert "secret" not in lines[0]  # the words of a defect may quote a document


def test_a_traceback_is_for_debug_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert _told(_raise(ValueError("of what")), debug=True) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_validation_error_never_arrives_raw(capsys: pytest.CaptureFixture[str]) -> None:
    from llm_unlearn.documents import Document

    assert _told(lambda: Document.model_validate({"text": "the secret text"})) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "secret" not in err


def test_a_reader_that_goes_away_ends_it_quietly(cli: Any, place: Any) -> None:
    import os

    read, write = os.pipe()
    os.close(read)
    try:
        done = cli("status", *place.arguments, "--json", stdout=write)
    finally:
        os.close(write)
    assert (done.code, done.err) == (141, "")


def test_lengths_of_time_and_passages() -> None:
    """90 s stays in seconds; 600 s are 10 minutes; 9000 s are 2.5 hours."""
    assert [duration(s) for s in (0.04, 90, 600, 9000)] == ["0.0 s", "90.0 s", "10 min", "2.5 h"]
    assert shorten("a  b\nc", 10) == "a b c"
    assert shorten("abcdef", 4) == "abc…"
