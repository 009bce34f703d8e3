"""`bench`: measurements on this machine, beside other programs where they are installed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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


def _vectors(
    out: Output, file: Path | None, texts: list[Path] | None, cache: Path | None, most: int
) -> tuple[str, Floats]:
    """What the vectors are, in words, and at most `most` of them."""
    from llm_unlearn.retrieval import bench

    if file is not None and texts:
        raise InputError("--vectors and --texts were given.", "Give one of them.")
    if file is not None:
        found = bench.load_vectors(file)[:most]
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
        found = bench.embed_texts(read, encode, dim, cache, progress=bar.part)[:most]
    return f"{len(found)} real ones, of the texts in {', '.join(map(str, texts))}", found
