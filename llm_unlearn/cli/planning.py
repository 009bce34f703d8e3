"""`plan`: what deletions will cost under a number of shards and slices."""

from __future__ import annotations

import re
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llm_unlearn.cli import render
from llm_unlearn.cli.failures import UsageError
from llm_unlearn.cli.output import Output
from llm_unlearn.errors import NotFound

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llm_unlearn.sisa.planner import Cost, Estimate, Risk

_PER = {"day": 30.0, "week": 30.0 / 7, "month": 1.0, "year": 1 / 12}
_PROPOSED = 5


def plan(
    out: Output,
    documents: Annotated[int, typer.Option("--documents", min=1, help="Documents to be learned.")],
    tokens: Annotated[
        float, typer.Option("--tokens-per-document", min=1, metavar="T", help="Tokens in one.")
    ],
    deletions: Annotated[
        str,
        typer.Option(
            "--deletions", metavar="N/month", help="Demands per day, week, month or year."
        ),
    ],
    shards: Annotated[int, typer.Option("--shards", min=1, max=1024, help="Shards.")] = 4,
    slices: Annotated[int, typer.Option("--slices", min=1, max=256, help="Slices.")] = 3,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="As training.epochs.")] = 12,
    rate: Annotated[
        float | None,
        typer.Option(
            "--tokens-per-second",
            min=0.001,
            metavar="R",
            help="Training speed of your machine (`bench train` measures it).",
        ),
    ] = None,
    risk: Annotated[
        str | None,
        typer.Option(
            "--risk",
            metavar="SHARE:DEMANDS",
            help="A share of the subjects draws a share of the demands, such as 0.1:0.8.",
        ),
    ] = None,
    place_by: Annotated[
        Literal["hash", "risk-slices", "risk-shards"],
        typer.Option("--place-by", help="With --risk: where the likely subjects go."),
    ] = "hash",
    mode: Annotated[
        Literal["cumulative", "sequential"],
        typer.Option("--mode", help="A stage passes over all slices so far, or its own."),
    ] = "cumulative",
    orders: Annotated[
        int, typer.Option("--orders", min=1, help="As training.orders; each is trained whole.")
    ] = 1,
    blocks: Annotated[
        bool,
        typer.Option("--blocks", help="As training.blocks: an order needs one adapter's room."),
    ] = False,
    parameters: Annotated[
        int,
        typer.Option(
            "--adapter-parameters",
            min=1,
            help="Numbers in one adapter; the default is SmolLM2-135M's, rank 16, ten layers.",
        ),
    ] = 1_628_160,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget", min=0, metavar="HOURS", help="Propose divisions within HOURS a month."
        ),
    ] = None,
) -> None:
    """Say what deletions will cost before a corpus is divided: tokens, time and storage.

    Needs no workspace and loads no model. The numbers are expectations by SISA's formulas; with
    --budget it proposes the fewest shards, then the fewest slices, that keep within the hours.
    """
    from llm_unlearn.sisa.planner import Workload, estimate, propose

    likely = None if risk is None else _risk(risk)
    if place_by != "hash" and likely is None:
        raise UsageError("--place-by needs --risk: without it nobody is likelier to go.")
    if budget is not None and rate is None:
        raise UsageError("--budget needs --tokens-per-second: hours come from tokens by it.")
    places = {"hash": 2, "risk-slices": slices, "risk-shards": shards}[place_by]
    if places < 2:
        raise UsageError(f"--place-by {place_by} needs two of them at least.")
    if orders > slices:
        raise UsageError(f"--orders {orders} is more than --slices {slices}: give 1 to {slices}.")
    load = Workload(
        documents=documents,
        tokens_per_document=tokens,
        deletions=_monthly(deletions),
        epochs=epochs,
        parameters=parameters,
        tokens_per_second=rate,
        risk=likely,
        mode=mode,
        place_by=place_by,
        orders=orders,
        blocks=blocks,
    )
    found = estimate(load, shards, slices)
    value: dict[str, object] = {"workload": asdict(load), "estimate": asdict(found)}
    lines: list[RenderableType] = [_shown(found)]
    if budget is not None:
        proposed = list(islice(propose(load, budget * 3600), _PROPOSED))
        if not proposed:
            raise NotFound(
                f"Nothing up to 64 shards of 16 slices keeps within {budget:g} hours a month.",
                "Retrain in batches (takedown --after rollback, then train), allow more hours, or "
                "train on less.",
            )
        value["proposals"] = [asdict(each) for each in proposed]
        lines.append(_proposals(proposed, budget))
    out.result(value, *lines)


def _risk(value: str) -> Risk:
    from llm_unlearn.sisa.planner import Risk

    found = re.fullmatch(r"(0?\.\d+):(0?\.\d+)", value)
    if found is None or not (0 < float(found[1]) < 1 and 0 < float(found[2]) < 1):
        raise UsageError(f"--risk {value!r} is not of the form SHARE:DEMANDS, such as 0.1:0.8.")
    return Risk(float(found[1]), float(found[2]))


def _monthly(value: str) -> float:
    found = re.fullmatch(r"(\d{1,9})/(day|week|month|year)", value)
    if found is None or not int(found[1]):
        raise UsageError(f"--deletions {value!r} is not of the form N/month, such as 100/month.")
    return int(found[1]) * _PER[found[2]]


def _shown(found: Estimate) -> RenderableType:
    rows = [
        ("training everything", *_cells(found.training)),
        ("one deletion", *_cells(found.deletion)),
        ("a month, one by one", *_cells(found.one_by_one)),
        ("a month, retrained once", *_cells(found.batched)),
    ]
    survived = (
        f"; a shard serves through {found.survived:.1f} deletions without retraining"
        if found.survived > found.slices
        else ""
    )
    title = (
        f"{found.shards} shards, {found.slices} slices, {found.mode}, placed by {found.place_by}: "
        f"{found.checkpoints} checkpoints, {found.storage / 1e6:,.0f} MB; "
        f"{found.documents_per_adapter:,.0f} documents an adapter"
        f"{survived}"
    )
    return render.table(title, ("expected", "of naive retraining", "tokens", "time"), rows)


def _cells(cost: Cost) -> tuple[str, str, str]:
    time = "give --tokens-per-second" if cost.seconds is None else render.duration(cost.seconds)
    return f"{cost.share:.4f}", f"{cost.tokens:,.0f}", time


def _proposals(found: list[Estimate], budget: float) -> RenderableType:
    rows = [
        (
            e.shards,
            e.slices,
            render.duration(e.one_by_one.seconds or 0.0),
            f"{e.storage / 1e6:,.0f} MB",
            f"{e.documents_per_adapter:,.0f}",
        )
        for e in found
    ]
    title = f"Within {budget:g} hours a month, what costs the least utility first"
    return render.table(
        title, ("shards", "slices", "a month", "storage", "documents an adapter"), rows
    )
