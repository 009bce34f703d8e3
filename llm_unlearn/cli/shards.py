"""`audit` and `export`: shards compared with what they should be, and adapters written out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_unlearn.cli import render
from llm_unlearn.cli.failures import UsageError
from llm_unlearn.cli.options import Keys, WorkspaceDir, open_workspace
from llm_unlearn.cli.output import Output, words
from llm_unlearn.errors import VerificationFailed


def audit(
    out: Output,
    workspace: WorkspaceDir,
    shard: Annotated[
        list[int] | None,
        typer.Option("--shard", "-s", metavar="N", help="A shard; repeatable. Default: all."),
    ] = None,
    kit: Annotated[
        Path | None,
        typer.Option(
            "--kit",
            metavar="DIR",
            help="Instead: write what an auditor needs for `verify --rederive`, in the clear, and "
            "register it.",
        ),
    ] = None,
    keys: Keys = None,
) -> None:
    """Build shards anew from the documents that are here, in memory, and compare digests.

    Every checkpoint on disk, and the adapters that the last receipt names, must be what the retained
    documents give. Changes nothing; takes as long as training those shards.
    """
    if kit is not None:
        from llm_unlearn.auditkit import write_kit

        if shard:
            raise UsageError("A kit holds all shards: give --kit or --shard.")
        with open_workspace(workspace, keys, write=True) as opened:
            count = write_kit(opened.opened, kit)
        out.result(
            {"kit": str(kit), "documents": count},
            words(
                f"{count} retained documents are in the clear in {kit}: for the auditor. A takedown of "
                f"one lists it as owed, until `export --gone {kit}`.",
                "yellow",
            ),
        )
        return
    with open_workspace(workspace, keys, write=False) as opened, out.bar("auditing") as bar:
        found = opened.audit(shard or None, progress=bar.step)
    out.result(
        {
            "holds": found.holds,
            "checkpoints": [
                {
                    "name": c.name,
                    "shard": c.shard,
                    "verdict": c.verdict,
                    "derived": c.derived,
                    "found": c.found,
                }
                for c in found.checkpoints
            ],
            "receipt": [
                {"number": c.receipt, "shard": c.shard, "digest": c.digest, "verdict": c.verdict}
                for c in found.claims
            ],
        },
        render.table(
            "Checkpoints: built anew, and found",
            ("checkpoint", "verdict", "derived", "found"),
            [
                (c.name, c.verdict, (c.derived or "none")[:16], (c.found or "none")[:16])
                for c in found.checkpoints
            ],
        ),
        *(
            words(f"Receipt {c.receipt}, shard {c.shard}, {c.digest[:16]}: {c.verdict}")
            for c in found.claims
        ),
    )
    if not found.holds:
        bad = [c.name for c in found.checkpoints if c.verdict in ("different", "damaged")]
        bad += [
            f"shard {c.shard} of receipt {c.receipt}"
            for c in found.claims
            if c.verdict == "different"
        ]
        raise VerificationFailed(
            f"Not what the documents give: {', '.join(bad)}.",
            "`llm-unlearn train --repair` mends what is damaged; what is different was changed, "
            "or trained elsewhere: `llm-unlearn train --retrain-all`.",
        )


def export(
    out: Output,
    workspace: WorkspaceDir,
    shard: Annotated[
        int | None, typer.Option("--shard", "-s", metavar="N", help="Whose adapter.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="A new folder outside the workspace."),
    ] = None,
    gone: Annotated[
        Path | None,
        typer.Option("--gone", metavar="DIR", help="You destroyed what was exported there."),
    ] = None,
    keys: Keys = None,
) -> None:
    """Write the adapter of a shard as a plain PEFT folder, and register where it went.

    A takedown of a document that it had learned lists it as owed, until `--gone DIR` says that it was
    destroyed. The same for an audit kit (`audit --kit DIR`).
    """
    if (gone is None) == (shard is None or folder is None):
        raise UsageError("Give --shard and --out, or --gone.")
    with open_workspace(workspace, keys, write=True) as opened:
        if gone is not None:
            settled = opened.exported_gone(gone)
            out.result(
                {"gone": [e.number for e in settled]},
                words(f"Registered as destroyed: {', '.join(e.label for e in settled)}."),
            )
            return
        if shard is None or folder is None:
            raise AssertionError("checked above")
        made = opened.export(shard, folder)
    out.result(
        {
            "number": made.number,
            "shard": made.shard,
            "where": made.where,
            "digest": made.digest,
            "documents": len(made.handles),
        },
        words(f"Export {made.number}: {made.where}"),
        words(
            f"It holds in the clear what {len(made.handles)} documents taught it, and is yours to "
            "destroy when one of them must go.",
            "yellow",
        ),
    )
