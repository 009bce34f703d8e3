"""`bench`: measurements on this machine, beside other programs where they are installed."""

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
    from llm_unlearn.retrieval.embedding import Floats


def store(
    out: Output,
    vectors: Annotated[
        Path | None, typer.Option("--vectors", metavar="FILE", help="Unit vectors, .npy float32.")
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option(
            "--texts", metavar="PATH", help="Texts to embed, files or folders; repeatable."
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", metavar="FILE", help="Where the vectors of --texts are kept (.npy)."
        ),
    ] = None,
    rows: Annotated[
        int, typer.Option("--rows", min=1000, help="How many vectors: invented, or at most.")
    ] = 100_000,
    queries: Annotated[int, typer.Option("--queries", min=1, help="How many searches.")] = 200,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of a search.")] = 1,
    peers: Annotated[
        str, typer.Option("--peers", metavar="A,B", help="Which stores; default all installed.")
    ] = "",
) -> None:
    """Measure the store beside others: speed, recall, and what deletion leaves behind."""
    from llm_unlearn.retrieval import bench

    chosen, absent = bench.choose([name.strip() for name in peers.split(",") if name.strip()])
    what, given = _vectors(out, vectors, texts, cache, rows + queries)
    found = bench.run(given, chosen, queries=queries, threads=threads, begun=out.say)
    result = {"vectors": what, "threads": threads, "absent": absent}
    out.result({**result, "stores": [asdict(row) for row in found]})
    out.show(*bench.tables(found, threads))
    out.show(words(f"Vectors: {what}."))
    if absent and not peers:
        out.show(words(f"Not installed, so not measured: {', '.join(absent)}."))


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


def answer(
    out: Output,
    shards: Annotated[int, typer.Option("--shards", min=1, help="Adapters that answer.")] = 8,
    rollback_shards: Annotated[
        int, typer.Option("--rollback-shards", min=1, help="Adapters loaded when one rolls back.")
    ] = 16,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens of each answer.")] = 32,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Answers of each way.")] = 5,
) -> None:
    """Measure answers of one adapter, routed, of all of them and merged, and a rollback."""
    from llm_unlearn.demo import bench_answer

    found = bench_answer.run(
        shards=shards,
        rollback_shards=rollback_shards,
        tokens=tokens,
        rounds=rounds,
        begun=out.say,
    )
    rows = [
        (t.way, f"{t.median:.3f}", f"{t.least:.3f} to {t.most:.3f}", f"{t.ratio:.2f}")
        for t in found.answers
    ]
    out.result(asdict(found))
    title = f"{shards} shards, {tokens} tokens, {rounds} answers each"
    columns = ("way", "seconds", "least to most", "to one adapter")
    back = found.rollback
    out.show(
        render.table(title, columns, rows),
        words(
            f"Rollback with {rollback_shards} shards loaded: {back.median:.3f} s, "
            f"{back.least:.3f} to {back.most:.3f}."
        ),
    )


def _vectors(
    out: Output, file: Path | None, texts: list[Path] | None, cache: Path | None, most: int
) -> tuple[str, Floats]:
    """What the vectors are, in words, and at most `most` of them."""
    from llm_unlearn.retrieval import bench

    if file is not None and texts:
        raise InputError("--vectors and --texts were given.", "Give one of them.")
    if file is not None:
        found = bench.thinned(bench.load_vectors(file), most)
        return f"{len(found)} of {file}", found
    if not texts:
        warning = "clustered, which flatters every approximate index; give --texts or --vectors"
        return f"{most} invented ones, {warning}", bench.synthetic(most)
    if cache is None:
        raise InputError("--texts needs --cache.", "Say where the vectors are kept.")
    read = bench.read_texts(texts)
    from llm_unlearn.models.embedder import batch_encoder

    dim, encode = batch_encoder("packaged:all-minilm-l6-v2")
    with out.bar("embedding") as bar:
        every = bench.embed_texts(read, encode, dim, cache, progress=bar.part)
    found = bench.thinned(every, most)
    return f"{len(found)} real ones, of the texts in {', '.join(map(str, texts))}", found


def forget(
    out: Output,
    model: Annotated[
        str, typer.Option("--model", metavar="REF", help="packaged:NAME, a folder, or a hub id.")
    ] = "packaged:smollm2-135m-instruct",
    texts: Annotated[
        Path | None,
        typer.Option("--texts", metavar="FILE", help="Documents; else invented ones."),
    ] = None,
    top_layers: Annotated[
        int, typer.Option("--top-layers", min=0, help="Adapt only so many of the last; 0: all.")
    ] = 10,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Texts of each kind in a step.")] = 4,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of each that count.")] = 5,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="D", help="bfloat16 or float32.")
    ] = "bfloat16",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of both.")] = 2,
) -> None:
    """Measure one forgetting step beside plain transformers and peft: GradDiff and NPO."""
    from llm_unlearn.forget import bench

    if dtype not in ("bfloat16", "float32"):
        raise InputError(
            f"--dtype {dtype}: there is no such precision here.", "bfloat16 or float32."
        )
    if texts is None:
        documents = bench.invented(2 * batch * steps)
    else:
        from llm_unlearn.readers import read_documents

        documents = list(read_documents(texts))[: 2 * batch * steps]
    if len(documents) < 2 * batch:
        raise InputError(
            f"{len(documents)} documents are fewer than two batches of {batch}.", "Lower --batch."
        )
    rows = bench.compare(
        model,
        documents,
        top_layers=top_layers or None,
        batch=batch,
        steps=steps,
        dtype=dtype,
        threads=threads,
        told=out.say,
    )
    out.result(
        {"threads": threads, "methods": [{**asdict(row), "ratio": row.ratio} for row in rows]},
        *bench.tables(rows),
    )


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


def _corpus(path: Path | None) -> list[Document]:
    """Documents of a file, TOFU's authors as subjects, or the demo's conversations."""
    from llm_unlearn.demo.measure import load_documents
    from llm_unlearn.documents import Document, Message
    from llm_unlearn.eval.benchmarks import tofu
    from llm_unlearn.readers import read_documents

    if path is None:
        return [document for document in load_documents() if document.messages]
    if path.suffix != ".json":
        return list(read_documents(path))
    return [
        Document(
            id=f"author-{number:03d}/{k:02d}",
            subject=f"author-{number:03d}",
            messages=(
                Message(role="user", content=row.question),
                Message(role="assistant", content=row.answer),
            ),
        )
        for number, rows in enumerate(tofu.authors(tofu.load(path)))
        for k, row in enumerate(rows)
    ]


def _subjects(documents: list[Document], count: int | None) -> list[Document]:
    kept = list(dict.fromkeys(document.subject for document in documents))[:count]
    chosen = set(kept)
    return [document for document in documents if document.subject in chosen]
