"""`bench store`, `answer`, `forget`, `takedown`, `probe`: this machine, beside others where installed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_unlearn.cli import render
from llm_unlearn.cli.output import Output, words
from llm_unlearn.errors import InputError

if TYPE_CHECKING:
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


def takedown(
    out: Output,
    vectors: Annotated[
        Path | None,
        typer.Option(
            "--vectors", metavar="FILE", help="Unit vectors (.npy); default invented ones."
        ),
    ] = None,
    chunks: Annotated[
        int, typer.Option("--chunks", min=100, help="Chunks in the store.")
    ] = 100_000,
    shards: Annotated[int, typer.Option("--shards", min=1, help="Trained shards.")] = 16,
    requests: Annotated[
        int, typer.Option("--requests", min=1, help="Requests submitted one by one.")
    ] = 20,
    many: Annotated[int, typer.Option("--many", min=1, help="Requests in one file.")] = 1000,
    model: Annotated[
        str, typer.Option("--model", metavar="M", help="The base model.")
    ] = "packaged:smollm2-135m-instruct",
    embedder: Annotated[
        str, typer.Option("--embedder", metavar="M", help="The embedder.")
    ] = "packaged:all-minilm-l6-v2",
) -> None:
    """Measure how soon a request is acknowledged, fence included, and what many at once cost."""
    from llm_unlearn.config import Config
    from llm_unlearn.retrieval.bench.vectors import load_vectors, synthetic, thinned
    from llm_unlearn.takedown_bench import measure

    config = Config.model_validate(
        {
            "model": model,
            "embedder": embedder,
            "training": {"shards": shards, "slices": 2, "epochs": 2, "threads": 1},
            "takedown": {"fence_flagged": False},  # invented texts are no paraphrases
        }
    )
    rows = synthetic(chunks) if vectors is None else thinned(load_vectors(vectors), chunks)
    found = measure(config, rows, requests=requests, many=many, tell=out.say)

    def spread(values: Sequence[float]) -> dict[str, float]:
        return {
            "median": statistics.median(values),
            "least": min(values),
            "most": max(values),
        }

    value = {
        "chunks": found.chunks,
        "shards": found.shards,
        "acknowledged_store": spread(found.store),
        "acknowledged_corpus": spread(found.corpus),
        "reader": spread(found.readers),
        "looked_seconds": found.looked,
        "many": found.many,
        "many_planned_seconds": found.planned,
        "many_carried_out_seconds": found.carried_out,
        "trainings_of_a_checkpoint": found.trainings,
        "verified_seconds": found.verified,
    }
    out.result(
        value,
        render.table(
            f"Seconds, {found.chunks} chunks and {found.shards} shards",
            ("what", "median", "least", "most"),
            [
                (name, *(f"{v:.3f}" for v in spread(values).values()))
                for name, values in (
                    ("acknowledged, a stored subject", found.store),
                    ("acknowledged, a learned subject", found.corpus),
                    ("a reader's next search", found.readers),
                )
            ],
        ),
        words(
            f"Copies of all these were looked for in {found.looked:.1f} s. "
            f"{found.many} requests as one file: {found.planned:.1f} s until planned, "
            f"{found.carried_out:.1f} s to carry out; no checkpoint was trained more than "
            f"{found.trainings} times. The whole log was verified in {found.verified:.2f} s."
        ),
    )


def probe(
    out: Output,
    model: Annotated[
        str, typer.Option("--model", metavar="REF", help="packaged:NAME, a folder, or a hub id.")
    ] = "packaged:smollm2-135m-instruct",
    texts: Annotated[
        Path | None,
        typer.Option("--texts", metavar="FILE", help="Documents; else invented ones."),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Texts of a round.")] = 32,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds of each side.")] = 3,
    many: Annotated[
        int, typer.Option("--many", min=0, help="Then stream so many and look at memory.")
    ] = 0,
    words_each: Annotated[
        int, typer.Option("--words", min=4, help="Words of an invented text.")
    ] = 40,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Texts a forward pass.")] = 8,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="D", help="bfloat16 or float32.")
    ] = "bfloat16",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of both.")] = 2,
) -> None:
    """Measure all one-pass probes sharing a forward pass, beside one metric at a time."""
    import itertools

    import torch

    from llm_unlearn.eval import bench
    from llm_unlearn.models.causal import load_causal

    if dtype not in ("bfloat16", "float32"):
        raise InputError(
            f"--dtype {dtype}: there is no such precision here.", "bfloat16 or float32."
        )
    given = None
    if texts is not None:
        from llm_unlearn.readers import read_documents

        given = [d.content for d in itertools.islice(read_documents(texts), max(count, many))]
    torch.set_num_threads(threads)
    base = load_causal(model, "bfloat16" if dtype == "bfloat16" else "float32")
    some = list(bench.invented(count, words_each)) if given is None else given[:count]
    found = bench.compare(
        base.model, base.tokenizer, some, batch_size=batch, rounds=rounds, told=out.say
    )
    value: dict[str, object] = {
        "threads": threads,
        "texts": found.texts,
        "tokens": found.tokens,
        "metrics": list(found.metrics),
        "shared": asdict(found.shared),
        "single": asdict(found.single),
        "ratio": found.ratio,
        "memory": None,
    }
    rows = [
        (name, f"{row.median:.2f}", f"{row.least:.2f} to {row.most:.2f}", f"{row.passes:.2f}")
        for name, row in (("shared pass", found.shared), ("one at a time", found.single))
    ]
    title = f"{len(found.metrics)} probes of {found.texts} texts, {found.tokens} tokens"
    columns = ("way", "texts/s", "least to most", "passes a text")
    out.show(render.table(title, columns, rows), words(f"Ratio: {found.ratio:.2f}."))
    if many:
        stream = bench.invented(many, words_each) if given is None else iter(given)
        seen = bench.memory(
            base.model, base.tokenizer, stream, many, batch_size=batch, told=out.say
        )
        value["memory"] = asdict(seen)
        out.show(
            words(
                f"{seen.texts} texts, {seen.tokens} tokens in {seen.seconds:.0f} s: "
                f"{seen.after_a_tenth:.0f} MB after a tenth, at most {seen.most:.0f} MB after."
            )
        )
    out.result(value)
