"""`forget`: approximate forgetting, from a workspace's adapter or from any model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_unlearn.cli import render
from llm_unlearn.cli.failures import UsageError
from llm_unlearn.cli.options import Keys, open_workspace
from llm_unlearn.cli.output import Output
from llm_unlearn.errors import InputError, VerificationFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_unlearn.documents import Document
    from llm_unlearn.forget.job import Target, Texts
    from llm_unlearn.forget.method import Method


def forget(
    out: Output,
    workspace: Annotated[
        Path | None,
        typer.Argument(metavar="[WS]", help="A workspace; or give --model.", show_default=False),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Where the result goes, in the clear."),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", "-m", metavar="NAME", help="Which method, such as npo.")
    ] = "npo",
    subject: Annotated[
        str | None,
        typer.Option("--subject", "-s", metavar="S", help="What to forget of a workspace."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="REF", help="packaged:NAME, a folder, or a hub id."),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", metavar="DIR", help="A LoRA adapter (PEFT) over it.")
    ] = None,
    gone: Annotated[
        Path | None, typer.Option("--forget", metavar="FILE", help="Documents to forget.")
    ] = None,
    retain: Annotated[
        Path | None, typer.Option("--retain", metavar="FILE", help="Documents to keep.")
    ] = None,
    utility: Annotated[
        Path | None,
        typer.Option(
            "--utility",
            metavar="FILE",
            help="Documents that utility is measured on; else kept ones.",
        ),
    ] = None,
    alternatives: Annotated[
        Path | None,
        typer.Option(
            "--alternatives", metavar="FILE", help="Other answers by id (altpo); else made up."
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Change the model's own layers, not an adapter.")
    ] = False,
    top_layers: Annotated[
        int | None,
        typer.Option("--top-layers", min=1, metavar="N", help="Only so many of the last layers."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Of a fresh adapter (16).")
    ] = None,
    chosen: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method. Repeatable."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option("--strength", metavar="X", help="Scales the rate, or the method's one move."),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            "--sweep", metavar="X,Y", help="Several strengths: the frontier, and no weights."
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Passes over what goes, at most (10).")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Texts of each kind in a step (4).")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Of AdamW (5e-4).")
    ] = None,
    target: Annotated[
        float | None,
        typer.Option("--target", metavar="P", help="Forgotten at this mean probability."),
    ] = None,
    utility_floor: Annotated[
        float | None,
        typer.Option("--utility-floor", metavar="F", help="Share of utility to keep (0.8)."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Fixes every random choice.")] = 0,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="D", help="bfloat16 or float32.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", help="CPU threads; bits can depend on it (2).")
    ] = None,
    keys: Keys = None,
) -> None:
    """Forget approximately: change weights so that they give a text back less.

    Not a takedown: nothing is deleted or proven, and the result is a folder beside the model. With a
    workspace, the adapter that serves --subject is taken and stays as it is; without, --model with
    --forget and --retain. Stops when the texts are as unlikely as --target says, or when utility would
    fall below --utility-floor; run again with the same arguments after an interruption.
    """
    if folder is None:
        raise UsageError("Say where the result goes: --out DIR.")
    if (workspace is None) == (model is None):
        raise UsageError("Give a workspace with --subject, or --model with --forget.")
    files = (adapter, gone, retain)
    shape = full or top_layers or rank
    if workspace is not None and (subject is None or any(files) or shape):
        raise UsageError(
            "With a workspace give --subject, and not --adapter, --forget, --retain, --full, "
            "--top-layers or --rank: its adapters and documents are taken."
        )
    if adapter is not None and (top_layers or rank):
        raise UsageError(
            "An --adapter has its own layers and rank: leave --top-layers and --rank out."
        )
    if full and rank:
        raise UsageError("--rank is of a fresh adapter, and --full has none: leave one out.")
    if model is not None and (gone is None or subject is not None):
        raise UsageError("With --model give --forget (and --retain), and not --subject.")
    strengths = None if sweep is None else _numbers(sweep)
    from llm_unlearn.forget import job
    from llm_unlearn.forget.methods import method as method_named

    how = method_named(method, _pairs(chosen or []))
    values: dict[str, Any] = {
        "strength": strength,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "target": target,
        "utility_floor": utility_floor,
        "seed": seed,
        "dtype": dtype,
        "threads": threads,
    }
    run = job.settings(values)
    measured, given = _read(utility), _answers(alternatives)
    if workspace is not None:
        from llm_unlearn.approximate import outside, serving

        with open_workspace(workspace, keys, write=False) as opened:
            outside(opened.opened, folder)
            training = opened.opened.training
            own = {"dtype": dtype or training.dtype, "threads": threads or training.threads}
            run = job.settings({**values, **own, "max_tokens": training.max_tokens})
            aim, texts, _ = serving(opened.opened, str(subject))
            texts = job.Texts(texts.forget, texts.retain, measured, given)
            _carry_out(out, aim, how, texts, run, strengths, folder)
        return
    texts = job.Texts(_read(gone), _read(retain), measured, given)
    aim = job.target(
        str(model),
        adapter=adapter,
        full=full,
        top_layers=top_layers,
        rank=rank or 16,
        dtype=run.dtype,
        seed=seed,
    )
    _carry_out(out, aim, how, texts, run, strengths, folder)


def _carry_out(
    out: Output,
    aim: Target,
    how: Method,
    texts: Texts,
    run: Any,
    strengths: list[float] | None,
    folder: Path,
) -> None:
    from llm_unlearn.forget import job

    with out.bar("forgetting") as bar:
        if strengths is not None:
            records = job.sweep(aim, how, texts, run, strengths, folder, bar.step)
        else:
            record = job.forget(aim, how, texts, run, folder, bar.step)
    if strengths is not None:
        points = [job.point(record) for record in records]
        out.result(
            {"method": how.name, "out": str(folder), "points": points},
            *render.frontier(records, folder),
        )
        return
    out.result(
        {"out": str(folder), **record.model_dump(mode="json")}, *render.forgotten(record, folder)
    )
    if record.verdict == "failed":
        raise VerificationFailed(
            f"{record.method} lost utility before it forgot anything; no weights were written.",
            "Try a smaller --strength, another method, or more --retain documents.",
        )


def _pairs(given: list[str]) -> Mapping[str, Any]:
    import yaml

    found = {}
    for pair in given:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise UsageError(f"--set {pair}: write KEY=VALUE, such as beta=0.1.")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--set {pair}: the value is not YAML.") from error
        if isinstance(found[key], str):
            try:
                found[key] = float(found[key])  # YAML reads 1e-3 as text
            except ValueError:
                continue
    return found


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--sweep {text}: write numbers, such as 0.5,1,2.") from error


def _read(path: Path | None) -> list[Document]:
    if path is None:
        return []
    from llm_unlearn.readers import read_documents

    return list(read_documents(path))


def _answers(path: Path | None) -> dict[str, str]:
    return {d.id: d.messages[-1].content if d.messages else str(d.text) for d in _read(path)}
