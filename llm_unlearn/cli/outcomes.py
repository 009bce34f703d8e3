"""What became of takedowns, as plain values and in words."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llm_unlearn.cli.output import Output, words
from llm_unlearn.errors import RecipeMismatch

if TYPE_CHECKING:
    from llm_unlearn.takedown.machine import Outcome
    from llm_unlearn.workspace import Workspace


def tell_all(out: Output, opened: Workspace, outcomes: Sequence[Outcome]) -> None:
    """What became of several takedowns.

    Raises:
        RecipeMismatch: one waits with its retraining or its receipt.
    """
    out.result({"takedowns": [outcome_json(opened, outcome) for outcome in outcomes]})
    for outcome in outcomes:
        tell(out, opened, outcome)
    if not outcomes:
        out.show(words("No takedown waits to be finished."))
    refuse_waiting(outcomes)


def outcome_json(opened: Workspace, outcome: Outcome) -> dict[str, object]:
    """An outcome as plain values."""
    return {
        "number": outcome.number,
        "id": outcome.id,
        "state": outcome.state,
        "already": outcome.already,
        "waiting": outcome.waiting,
        "receipt": str(outcome.receipt) if outcome.receipt else None,
        "reference": outcome.reference,
        "owed": list(outcome.owed),
        "public_key": str(opened.public_key),
        "verify": _verify_command(opened, outcome),
    }


def _verify_command(opened: Workspace, outcome: Outcome) -> str | None:
    if outcome.receipt is None:
        return None
    receipt, log = str(outcome.receipt), str(outcome.receipt.parent)
    command = ["llm-unlearn", "verify", receipt, "--key", str(opened.public_key), "--log", log]
    if outcome.reference:
        command += ["--request", outcome.reference]
    return shlex.join(command)


def tell(out: Output, opened: Workspace, outcome: Outcome) -> None:
    """The outcome for people; each value on a line of its own, to be copied."""
    if outcome.already:
        out.show(words("This request was carried out before; nothing was done again."))
    if outcome.receipt is not None:
        out.show(words(f"Receipt {int(outcome.receipt.stem)}:"), words(f"  {outcome.receipt}"))
    if outcome.reference:
        out.show(
            words("For the claimant alone (it opens what the receipt keeps closed):"),
            words(f"  {outcome.reference}"),
        )
    for label in outcome.owed:
        out.show(words(f"Owed: {label} may hold the text. Destroy it wherever it is.", "yellow"))
    command = _verify_command(opened, outcome)
    if command:
        out.show(words("Verify it with:"), words(f"  {command}"))


def refuse_waiting(outcomes: Sequence[Outcome]) -> None:
    """Takedowns that cannot go on here end the command with an error, the fence standing.

    Raises:
        RecipeMismatch: at least one waits.
    """
    waiting = [outcome for outcome in outcomes if outcome.waiting]
    if waiting:
        raise RecipeMismatch(
            f"Takedown {waiting[0].number} waits with its "
            + ("receipt" if waiting[0].state == "retrained" else "retraining")
            + f"; the text is fenced and deleted. {waiting[0].waiting}"
        )
