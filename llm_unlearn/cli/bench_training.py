"""`bench train`, `deletion`, `orders`: what training costs, and what comes back of it after a deletion."""

from __future__ import annotations

import re
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from llm_unlearn.cli import render
from llm_unlearn.cli.failures import UsageError
from llm_unlearn.cli.output import Output, words
from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from llm_unlearn.documents import Document
    from llm_unlearn.eval.summary import Estimate


def train(
    out: Output,
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="JSON lines of question and answer, or documents."),
    ],
    documents: Annotated[
        int, typer.Option("--documents", min=2, help="How many documents, the first ones.")
    ] = 40,
    layers: Annotated[
        str, typer.Option("--layers", metavar="N", help="Adapted top layers; all for every layer.")
    ] = "10",
    passes: Annotated[int, typer.Option("--passes", min=1, help="Passes over them.")] = 4,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs of each.")] = 3,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of each run.")] = 2,
    model: Annotated[
        str, typer.Option("--model", metavar="M", help="The base model.")
    ] = "packaged:smollm2-135m-instruct",
) -> None:
    """Measure how fast we train, beside peft with transformers' Trainer, to the same loss."""
    from llm_unlearn.config import TrainingConfig
    from llm_unlearn.sisa import bench

    if layers != "all" and not layers.isdecimal():
        raise InputError(f"--layers is {layers!r}.", "Give a number, or all.")
    training = TrainingConfig(
        top_layers=None if layers == "all" else max(1, int(layers)), epochs=passes, threads=threads
    )
    given = bench.load_pairs(path, documents)
    found = bench.compare(
        model,
        given,
        training,
        repeats=repeats,
        done=lambda run: out.say(f"{run.side}: {run.rate:.0f} tokens/s, loss {run.final:.3f}"),
    )
    table = Table("", "tokens/s", "s", "peak MiB", "loss after", box=box.SIMPLE)
    for run in found.runs:
        cells = (run.rate, run.seconds, run.peak_bytes / 2**20)
        table.add_row(run.side, *(f"{cell:.0f}" for cell in cells), f"{run.final:.3f}")
    out.result(found.plain(), table)
    for what, ratios in (("tokens/s", found.ratios), ("same loss", found.ratios_at_loss)):
        mean = statistics.fmean(ratios)
        out.show(words(f"{what}: {mean:.2f} times ({min(ratios):.2f} to {max(ratios):.2f})"))


def deletion(
    out: Output,
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="TOFU's full.json, or documents; default the demo's corpus."
        ),
    ] = None,
    sweep: Annotated[
        str, typer.Option("--sweep", metavar="SxR,...", help="Shards x slices to measure.")
    ] = "1x1,4x3,8x4",
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, help="So many subjects; default each once.")
    ] = None,
    subjects: Annotated[
        int | None, typer.Option("--subjects", min=2, help="Only the first so many subjects.")
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="As training.epochs.")] = 4,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of training.")] = 2,
    model: Annotated[
        str, typer.Option("--model", metavar="M", help="The base model.")
    ] = "packaged:smollm2-135m-instruct",
    embedder: Annotated[
        str, typer.Option("--embedder", metavar="M", help="The embedder.")
    ] = "packaged:all-minilm-l6-v2",
) -> None:
    """Measure what deleting a subject costs, beside naive full retraining and SISA's formula."""
    from llm_unlearn.config import Config
    from llm_unlearn.deletion_bench import measure

    parsed = [re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,2})", part) for part in sweep.split(",")]
    places = [(int(found[1]), int(found[2])) for found in parsed if found is not None]
    if len(places) < len(parsed):
        raise UsageError(
            f"--sweep {sweep!r} is not of the form SHARDSxSLICES,..., such as 4x3,8x4."
        )
    config = Config.model_validate(
        {
            "model": model,
            "embedder": embedder,
            "training": {"epochs": epochs, "threads": threads},
        }
    )
    documents = _subjects(_corpus(path), subjects)
    found = measure(documents, config, places, sample=sample, tell=out.say)
    rows = [
        {
            "shards": m.shards,
            "slices": m.slices,
            "deletions": len(m.deletions),
            "seconds": statistics.mean(d.seconds for d in m.deletions),
            "naive_seconds": m.naive.seconds,
            "time_ratio": m.time_ratio,
            "standard_error": m.error,
            "token_share": m.token_share,
            "overhead": m.overhead,
            "sisa": m.sisa,
            "rollback_seconds": m.rollback,
            "expected_over_measured": list(m.expected),
        }
        for m in found
    ]
    table = Table(
        "shards", "slices", "s", "time / naive", "tokens / naive", "overhead", "SISA", "rollback s",
        "expected / measured", box=box.SIMPLE,
    )  # fmt: skip
    for m in found:
        told = sorted(m.expected)
        table.add_row(
            str(m.shards),
            str(m.slices),
            f"{statistics.mean(d.seconds for d in m.deletions):.1f}",
            f"{m.time_ratio:.3f} ± {m.error:.3f}",
            f"{m.token_share:.3f}",
            f"{m.overhead:.2f}",
            f"{m.sisa:.3f}",
            f"{m.rollback:.3f}",
            f"{told[0]:.2f} to {told[-1]:.2f}" if told else "-",
        )
    out.result({"documents": len(documents), "sweep": rows})
    out.show(table)
    naive = found[0].naive
    out.show(words(f"Naive: {naive.seconds:.1f} s, {naive.tokens} tokens."))


def orders(
    out: Output,
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="TOFU's full.json, or documents; default the demo's corpus."
        ),
    ] = None,
    slices: Annotated[int, typer.Option("--slices", min=2, help="As training.slices.")] = 4,
    count: Annotated[
        int, typer.Option("--orders", min=2, help="Orders of them, beside one alone.")
    ] = 2,
    subjects: Annotated[
        int | None, typer.Option("--subjects", min=2, help="Only the first so many subjects.")
    ] = None,
    most: Annotated[
        int | None, typer.Option("--documents", min=1, help="So many of each at most.")
    ] = None,
    lives: Annotated[
        int, typer.Option("--lives", min=1, help="In how many lives knowledge is measured.")
    ] = 5,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="As training.epochs.")] = 12,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of training.")] = 2,
    model: Annotated[
        str, typer.Option("--model", metavar="M", help="The base model.")
    ] = "packaged:smollm2-135m-instruct",
    embedder: Annotated[
        str, typer.Option("--embedder", metavar="M", help="The embedder.")
    ] = "packaged:all-minilm-l6-v2",
) -> None:
    """Measure what orders and blocks of slices cost, and what they serve after deletions."""
    from llm_unlearn.config import Config
    from llm_unlearn.orders_bench import measure

    if count > slices:
        raise UsageError(f"--orders {count} is more than --slices {slices}: give 2 to {slices}.")
    training = {"slices": slices, "orders": count, "epochs": epochs, "threads": threads}
    config = Config.model_validate({"model": model, "embedder": embedder, "training": training})
    documents = _few(_subjects(_corpus(path), subjects), most)
    found = measure(documents, config, count, lives=lives, tell=out.say)
    rows = [
        (
            f"{w.orders} x {'blocks' if w.blocks else 'plain'}",
            f"{w.storage / 1e6:.1f} MB",
            f"{w.seconds:.0f} s",
            _spread(w.known),
            f"{_spread(w.survived)} ({w.expected:.1f})",
            *map(_spread, w.left),
        )
        for w in found
    ]
    out.result({"documents": len(documents), "slices": slices, "ways": [asdict(w) for w in found]})
    after = [f"known after {n}" for n in range(1, len(found[0].left) + 1)]
    columns = ("orders", "storage", "training", "known", "deletions survived (formula)", *after)
    out.show(render.table(f"{len(documents)} documents, {slices} slices", columns, rows))


def _spread(value: Estimate) -> str:
    return f"{value.mean:.3f} ± {value.standard_error:.3f}"


def _few(documents: list[Document], most: int | None) -> list[Document]:
    """At most so many documents of each subject, the first."""
    seen: dict[str, int] = {}
    kept = []
    for document in documents:
        seen[document.subject] = seen.get(document.subject, 0) + 1
        if most is None or seen[document.subject] <= most:
            kept.append(document)
    return kept


def _corpus(path: Path | None) -> list[Document]:
    """Documents of a file, TOFU's authors as subjects, or the demo's conversations."""
    from llm_unlearn.demo.authors import conversations
    from llm_unlearn.demo.measure import load_documents
    from llm_unlearn.eval.benchmarks import tofu
    from llm_unlearn.readers import read_documents

    if path is None:
        return [document for document in load_documents() if document.messages]
    if path.suffix != ".json":
        return list(read_documents(path))
    return conversations(tofu.load(path))


def _subjects(documents: list[Document], count: int | None) -> list[Document]:
    kept = list(dict.fromkeys(document.subject for document in documents))[:count]
    chosen = set(kept)
    return [document for document in documents if document.subject in chosen]
