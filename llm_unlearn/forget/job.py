"""A forgetting job from start to files: load, run, write a folder that PEFT or transformers loads.

Guarantees: the folder holds a whole result or none (its record comes last); an interrupted job goes on
when started again with the same arguments, also where it was the writing of the result that was cut off;
a run that failed writes its record and no weights; what is written is what was measured. The
folder is in the clear: it is the user's export, and weights can give back what they still know.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError, UnlearnError
from llm_unlearn.files import os_errors, write_atomic
from llm_unlearn.forget import data
from llm_unlearn.forget.frontier import frontier_svg
from llm_unlearn.forget.method import Method, Stepwise
from llm_unlearn.forget.result import Record, versions
from llm_unlearn.forget.run import Told, run
from llm_unlearn.forget.settings import RunSettings
from llm_unlearn.forget.weights import (
    FullWeights,
    State,
    Weights,
    adapter_shape,
    digest,
    read_adapter,
    write_adapter,
    write_full,
)
from llm_unlearn.models.causal import load_causal
from llm_unlearn.models.lora import AdapterHost, LoraShape

RECORD = "record.json"
UNFINISHED = "unfinished.safetensors"
BEGUN = (
    ".forgetting.tmp"  # names the job under way: while it is there, all in the folder is that one's
)


@dataclass(frozen=True)
class Texts:
    """Documents to forget, to keep and to measure utility on; `given` answers by id (AltPO)."""

    forget: Sequence[Document]
    retain: Sequence[Document] = ()
    utility: Sequence[Document] = ()
    given: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Target:
    """Weights and where they begin."""

    weights: Weights
    start: State


def settings(values: Mapping[str, object]) -> RunSettings:
    """Run settings with one-line errors; values that are None have their default.

    Raises:
        InputError: a value that cannot be, with the consequence and what to do.
    """
    try:
        return RunSettings.model_validate({k: v for k, v in values.items() if v is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{key} = {first['input']!r}: {message}.") from error


def target(
    model: str,
    *,
    adapter: Path | None = None,
    full: bool = False,
    top_layers: int | None = None,
    rank: int = 16,
    dtype: str = "bfloat16",
    seed: int = 0,
) -> Target:
    """A model with an adapter read from a folder, a fresh one, or its own layers.

    Args:
        top_layers: how many of the last layers a fresh adapter or full weights change; None: all.

    Raises:
        InputError: an adapter that is not plain LoRA over the top layers, or too many layers.
    """
    if full and adapter is not None:
        raise InputError(
            "--adapter and --full were given.",
            "Merge the adapter into the model, or leave out one.",
        )
    base = load_causal(model, "bfloat16" if dtype == "bfloat16" and not full else "float32")
    if full:
        weights = FullWeights(base, top_layers)
        return Target(weights, weights.state())
    key = f"forget {seed}".encode()
    if adapter is not None:
        host = AdapterHost(base, adapter_shape(adapter, base))
        return Target(host, read_adapter(adapter, host, key))
    host = AdapterHost(base, LoraShape(rank, 2 * rank, top_layers))
    return Target(host, host.fresh(key))


def material(aim: Target, method: Method, texts: Texts, chosen: RunSettings) -> data.Material:
    """Token ids of everything the method reads, other answers included.

    Raises:
        InputError: nothing to forget, or a text without the question that the method needs.
    """
    tokenizer = aim.weights.base.tokenizer
    found = data.material(tokenizer, texts.forget, texts.retain, chosen.max_tokens, texts.utility)
    if not isinstance(method, Stepwise) or method.answers == "none":
        return found
    if method.answers == "refusal":
        answers = data.refusals(texts.forget, chosen.seed)
    else:
        answers = _alternatives(aim, texts)
    gone, preferred = data.with_answers(tokenizer, texts.forget, answers, chosen.max_tokens)
    return replace(found, forget=gone, preferred=preferred)


def _alternatives(aim: Target, texts: Texts) -> list[str]:
    """Given answers, and answers made up with the trained adapter put aside."""
    weights, given = aim.weights, texts.given or {}
    unknown = sorted(set(given) - {d.id for d in texts.forget})
    if unknown:
        raise InputError(
            f"There is an alternative for {unknown[0]!r}, which is not to be forgotten.",
            "Name documents of --forget by their ids.",
        )
    trained = any(t.any() for n, t in aim.start.items() if ".lora_B." in n)
    if isinstance(weights, AdapterHost) and trained:
        with weights.using(None):
            return data.alternatives(weights.base, texts.forget, given)
    asked = next((d.id for d in texts.forget if d.id not in given), None)
    if asked is not None:
        raise InputError(
            f"altpo has no other answer for {asked!r}: the model that would make one up knows the text.",
            "Give --alternatives for each document, or forget from a trained --adapter.",
        )
    return data.alternatives(weights.base, texts.forget, given)


def forget(
    aim: Target,
    method: Method,
    texts: Texts,
    chosen: RunSettings,
    out: Path,
    progress: Told | None = None,
) -> Record:
    """Run it and write the folder.

    Raises:
        InputError: the folder holds something else, or the texts do not fit the method.
    """
    begun = out / BEGUN
    if not begun.is_file():
        _free(out, set())
    read = material(aim, method, texts, chosen)
    name = _name(aim, method, read, chosen)
    if begun.is_file() and begun.read_text(encoding="utf-8") != name:
        raise InputError(
            f"{out} holds an unfinished job with other settings, texts or weights.",
            "Start that one again as it was, or choose another --out.",
        )
    with os_errors(f"write {out}"):
        out.mkdir(parents=True, exist_ok=True)
    write_atomic(begun, name.encode(), mode=0o644)
    try:
        done = run(
            aim.weights, aim.start, method, read, chosen, resume=out / UNFINISHED, progress=progress
        )
    except UnlearnError:
        if not (out / UNFINISHED).is_file():
            begun.unlink()
        raise
    if done.record.verdict != "failed":
        if isinstance(aim.weights, FullWeights):
            write_full(out, aim.weights, done.state)
        elif isinstance(aim.weights, AdapterHost):
            write_adapter(out, aim.weights, done.state)
    _write(out / RECORD, done.record)
    for name in (UNFINISHED, BEGUN):
        (out / name).unlink(missing_ok=True)
    return done.record


def sweep(
    aim: Target,
    method: Method,
    texts: Texts,
    chosen: RunSettings,
    strengths: Sequence[float],
    out: Path,
    progress: Told | None = None,
) -> list[Record]:
    """Run once for each strength, without stopping rules, and draw the frontier; writes no weights.

    A strength whose record is there already, from equal texts, model and settings, is not run again. One
    that moves nothing is a point at the start.

    Raises:
        InputError: no strength, or one that is not a number above 0; or see `forget`.
    """
    if not strengths:
        raise InputError("A sweep needs strengths above 0.", "Such as --sweep 0.5,1,2.")
    plain = chosen.model_dump()
    every = [settings({**plain, "strength": s, "rules": False}) for s in sorted(set(strengths))]
    _free(out, {"frontier.json", "frontier.svg"}, ("strength-", "unfinished-"))
    read = material(aim, method, texts, chosen)
    with os_errors(f"write {out}"):
        out.mkdir(parents=True, exist_ok=True)
    records = []
    for wanted in every:
        path = out / f"strength-{wanted.strength:g}.json"
        unfinished = out / f"unfinished-{wanted.strength:g}.safetensors"
        record = _earlier(path, method, wanted, data.inputs_digest(read), aim)
        if record is None:
            record = run(
                aim.weights,
                aim.start,
                method,
                read,
                wanted,
                resume=unfinished,
                progress=progress,
                unmoved=True,
            ).record
            _write(path, record)
        unfinished.unlink(missing_ok=True)
        records.append(record)
    points = [point(record) for record in records]
    text = json.dumps({"method": method.name, "points": points}, indent=2) + "\n"
    write_atomic(out / "frontier.json", text.encode(), mode=0o644)
    write_atomic(out / "frontier.svg", frontier_svg(method.name, records).encode(), mode=0o644)
    return records


def point(record: Record) -> dict[str, object]:
    """One strength on the frontier."""
    return {
        "strength": record.settings.strength,
        "verdict": record.verdict,
        "forget": record.after.forget,
        "retain": record.after.retain,
        "utility": record.after.utility,
        "stop": record.stop,
        "steps": record.steps,
        "seconds": record.seconds,
    }


def _earlier(
    path: Path, method: Method, chosen: RunSettings, inputs: str, aim: Target
) -> Record | None:
    if not path.is_file():
        return None
    try:
        found = Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(
            f"{path} is not a record.", "Remove it, or choose another --out."
        ) from error
    mine = {
        "method": method.name,
        "method_settings": method.model_dump(mode="json"),
        "settings": chosen,
        "inputs": inputs,
        "start": digest(aim.start),
        "model_digest": aim.weights.base.digest,
        "versions": versions(),
    }
    if any(getattr(found, name) != value for name, value in mine.items()):
        raise InputError(
            f"{path} is of a sweep with other settings, texts, weights or versions.",
            "Choose another --out.",
        )
    return found


def _name(aim: Target, method: Method, read: data.Material, chosen: RunSettings) -> str:
    """SHA-256 (hex) over all that decides what a job writes."""
    decides = {
        "weights": type(aim.weights).__name__,
        "model": aim.weights.base.digest,
        "start": digest(aim.start),
        "inputs": data.inputs_digest(read),
        "method": [method.name, method.model_dump(mode="json")],
        "settings": chosen.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest() + "\n"


def _free(out: Path, allowed: set[str], prefixes: tuple[str, ...] = ()) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is not a directory.", "Choose another --out.")
    others = sorted(
        p.name for p in out.iterdir() if p.name not in allowed and not p.name.startswith(prefixes)
    )
    others = [name for name in others if not (name.startswith(".") and name.endswith(".tmp"))]
    if others:
        raise InputError(
            f"{out} holds {others[0]} already.", "Choose a new directory for the result."
        )


def _write(path: Path, record: Record) -> None:
    write_atomic(path, (record.model_dump_json(indent=2) + "\n").encode(), mode=0o644)
