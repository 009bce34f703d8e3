"""`verify`: a receipt checked by anyone who has the public key. Needs no workspace and no model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_unlearn.cli import render
from llm_unlearn.cli.output import Output, words
from llm_unlearn.errors import VerificationFailed

if TYPE_CHECKING:
    from llm_unlearn.auditkit import Rederived
    from llm_unlearn.takedown.verify import Verified


def verify(
    out: Output,
    receipt: Annotated[
        Path, typer.Argument(metavar="RECEIPT", help="The receipt's file.", show_default=False)
    ],
    key: Annotated[
        Path,
        typer.Option(
            "--key", "-k", metavar="PUB", help="The public key to trust (PEM).", show_default=False
        ),
    ],
    log: Annotated[
        Path | None,
        typer.Option(
            "--log", "-l", metavar="DIR", help="All receipts: checks that none is missing."
        ),
    ] = None,
    request: Annotated[
        str | None,
        typer.Option(
            "--request", "-r", metavar="REF", help="The claimant's reference: is this my receipt?"
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            metavar="HEAD",
            help="A head saved earlier (SIZE/ROOT), which the log must still begin with.",
        ),
    ] = None,
    later: Annotated[
        Path | None,
        typer.Option(
            "--later", metavar="FILE", help="A later receipt, which must follow this one."
        ),
    ] = None,
    proof: Annotated[
        Path | None,
        typer.Option(
            "--proof", metavar="FILE", help="In place of the log: the issuer's proof of its place."
        ),
    ] = None,
    rederive: Annotated[
        Path | None,
        typer.Option(
            "--rederive",
            metavar="PATH",
            help="Rebuild what it names from an audit kit, or from the workspace, and compare.",
        ),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", metavar="DIR", help="With --rederive WS: where its keys are now."),
    ] = None,
) -> None:
    """Check a receipt with the public key alone, its place in the log, and whose it is."""
    from llm_unlearn.takedown.verify import verify_receipt

    held = verify_receipt(
        receipt, key, log=log, head=head, later=later, request=request, proof=proof
    )
    saved = str(held.head)
    rebuilt = _rebuild(out, held, rederive, keys) if rederive is not None else ()
    out.result(
        {
            "holds": all(item.equal for item in rebuilt),
            "number": held.receipt.number,
            "outcome": held.receipt.outcome,
            "digest": held.digest,
            "key": held.key,
            "head": saved,
            "checks": [{"check": line.check, "detail": line.detail} for line in held.lines],
            "rederived": [
                {"what": r.what, "claimed": r.claimed, "derived": r.derived, "equal": r.equal}
                for r in rebuilt
            ],
            "does_not_prove": list(held.receipt.does_not_prove),
            "receipt": held.receipt.model_dump(mode="json"),
        },
        *render.verified(held, saved),
        *(
            words(f"Built anew, {r.what}: {'equal' if r.equal else 'DIFFERENT'} ({r.claimed[:16]})")
            for r in rebuilt
        ),
    )
    wrong = [item.what for item in rebuilt if not item.equal]
    if wrong:
        raise VerificationFailed(
            f"Built anew from {rederive}, {', '.join(wrong)} is not what receipt "
            f"{held.receipt.number} names.",
            "The documents are not those that were retained then, or the receipt is not true.",
        )


def _rebuild(out: Output, held: Verified, place: Path, keys: Path | None) -> tuple[Rederived, ...]:
    from llm_unlearn.auditkit import rederive

    with out.bar("building anew") as bar:
        return rederive(held.receipt, place, keys=keys, progress=bar.step)
