"""How fast we train, beside PEFT with transformers' Trainer on the same documents.

Both start from the same adapter over the same layers, with AdamW, the same peak rate, batch size and
number of passes, bfloat16, loss on the answer's tokens only; the Trainer has its usual settings: a padding
collator, random batches, the linear schedule. Each run has a process of its own, so that neither warms
the other up and its peak memory is its own. Times leave out loading the model and hold all else, our
preparation of batches included. Tokens are real ones, without padding.

Does not measure the rest of a workspace (reading, sealing, checkpoints), nor answers.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_unlearn.config import TrainingConfig
from llm_unlearn.documents import Document, Message
from llm_unlearn.errors import InputError

Side = Literal["ours", "trainer"]
SIDES: tuple[Side, Side] = ("ours", "trainer")


@dataclass(frozen=True)
class Run:
    """One training run: `losses` are the means of each pass, `ends` its seconds since the start.

    `final` is the mean loss of all predicted tokens after training, computed the same way for both.
    """

    side: Side
    seconds: float
    tokens: int
    peak_bytes: int
    losses: tuple[float, ...]
    ends: tuple[float, ...]
    final: float

    @property
    def rate(self) -> float:
        """Real tokens a second."""
        return self.tokens / self.seconds

    def reaches(self, loss: float) -> float:
        """Seconds until the end of the first pass whose mean loss is at most `loss`."""
        return next(end for mean, end in zip(self.losses, self.ends, strict=True) if mean <= loss)


@dataclass(frozen=True)
class Comparison:
    """All runs, in pairs of ours and the Trainer's."""

    documents: int
    runs: tuple[Run, ...]

    def of(self, side: Side) -> list[Run]:
        """The runs of one side."""
        return [run for run in self.runs if run.side == side]

    @property
    def ratios(self) -> list[float]:
        """Tokens a second, ours by the Trainer's, one for each pair."""
        pairs = zip(self.of("ours"), self.of("trainer"), strict=True)
        return [ours.rate / theirs.rate for ours, theirs in pairs]

    @property
    def ratios_at_loss(self) -> list[float]:
        """Time to the same loss, the Trainer's by ours: to the higher of both last passes' means."""
        found = []
        for ours, theirs in zip(self.of("ours"), self.of("trainer"), strict=True):
            loss = max(min(ours.losses), min(theirs.losses))
            found.append(theirs.reaches(loss) / ours.reaches(loss))
        return found

    def plain(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "documents": self.documents,
            "runs": [
                {
                    "side": run.side,
                    "seconds": round(run.seconds, 3),
                    "tokens": run.tokens,
                    "tokens_per_second": round(run.rate, 1),
                    "peak_bytes": run.peak_bytes,
                    "losses": [round(loss, 4) for loss in run.losses],
                    "final_loss": round(run.final, 4),
                }
                for run in self.runs
            ],
            "ratio": _spread(self.ratios),
            "ratio_at_equal_loss": _spread(self.ratios_at_loss),
        }


def load_pairs(path: Path, count: int) -> list[Document]:
    """The first `count` documents of a file: rows of `question` and `answer`, or our own format.

    Raises:
        InputError: it cannot be read, or holds neither.
    """
    from itertools import islice

    from llm_unlearn.readers import read_documents

    try:
        with path.open(encoding="utf-8") as stream:
            first = json.loads(next(stream, "null"))
            if not (isinstance(first, dict) and {"question", "answer"} <= first.keys()):
                return list(islice(read_documents(path), count))
            rows = [first, *(json.loads(line) for line in islice(stream, count - 1))]
            turns = [
                (
                    Message(role="user", content=row["question"]),
                    Message(role="assistant", content=row["answer"]),
                )
                for row in rows
            ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read as documents ({type(error).__name__}).",
            "Give JSON lines with question and answer, or documents as `ingest` takes them.",
        ) from error
    return [Document(id=str(n), subject=str(n), messages=pair) for n, pair in enumerate(turns)]


def compare(
    reference: str,
    documents: Sequence[Document],
    training: TrainingConfig,
    *,
    repeats: int = 3,
    done: Callable[[Run], object] | None = None,
) -> Comparison:
    """Train with both, in turns, each run in a new process.

    Args:
        reference: the base model.
        training: its `epochs` are the passes over the documents; `shards` and `slices` do not matter.
        done: told of each run as it ends.
    """
    runs: list[Run] = []
    for repeat in range(repeats):
        for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                run = pool.submit(_run, side, reference, documents, training, repeat).result()
            runs.append(run)
            if done is not None:
                done(run)
    return Comparison(len(documents), tuple(runs))


def _run(
    side: Side, reference: str, documents: Sequence[Document], training: TrainingConfig, seed: int
) -> Run:
    import torch

    from llm_unlearn.models.causal import load_causal
    from llm_unlearn.models.chat import encode
    from llm_unlearn.models.lora import AdapterHost, LoraShape
    from llm_unlearn.sisa.recipe import pin_threads
    from llm_unlearn.sisa.train import TrainState

    pin_threads(training.threads)
    shape = LoraShape(training.lora_rank, training.lora_alpha, training.top_layers)
    host = AdapterHost(load_causal(reference, training.dtype), shape)
    examples = [e for d in documents for e in encode(host.base.tokenizer, d, training.max_tokens)]
    start = TrainState(host.fresh(seed.to_bytes(4, "big")), {}, 0)
    steps: list[tuple[float, float]] = []
    began = time.monotonic()
    if side == "ours":
        _train_ours(host, start, examples, training, seed, steps)
    else:
        torch.use_deterministic_algorithms(False)  # as the Trainer is used
        host.load(start.adapter)
        _train_theirs(host, examples, training, seed, steps)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    each = len(steps) // training.epochs
    passes = [steps[i * each : (i + 1) * each] for i in range(training.epochs)]
    return Run(
        side,
        seconds,
        training.epochs * sum(len(e.ids) for e in examples),
        peak,
        tuple(statistics.fmean(loss for loss, _ in part) for part in passes),
        tuple(part[-1][1] - began for part in passes),
        _mean_loss(host, examples),
    )


def _train_ours(
    host: Any, start: Any, examples: Any, training: TrainingConfig, seed: int, steps: Any
) -> None:
    from llm_unlearn.sisa.train import StageSettings, train_stage

    settings = StageSettings(
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        warmup=training.warmup,
        weight_decay=training.weight_decay,
        clip=training.clip,
    )
    end = train_stage(
        host,
        start,
        [examples],
        settings,
        seed.to_bytes(4, "big"),
        lambda loss, _tokens: steps.append((loss, time.monotonic())),
    )
    host.load(end.adapter)


def _train_theirs(
    host: Any, examples: Any, training: TrainingConfig, seed: int, steps: Any
) -> None:
    from transformers import (
        DataCollatorForSeq2Seq,
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    class Steps(TrainerCallback):  # type: ignore[misc]
        """Keeps the loss of each step."""

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
        ) -> None:
            if logs and "loss" in logs:
                steps.append((float(logs["loss"]), time.monotonic()))

    total = training.epochs * -(-len(examples) // training.batch_size)
    data = [
        {
            "input_ids": list(e.ids),
            "attention_mask": [1] * len(e.ids),
            "labels": [i if on else -100 for i, on in zip(e.ids, e.loss, strict=True)],
        }
        for e in examples
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=training.batch_size,
            num_train_epochs=training.epochs,
            learning_rate=training.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=max(1, int(total * training.warmup)),
            weight_decay=training.weight_decay,
            max_grad_norm=training.clip,
            bf16=training.dtype == "bfloat16",
            use_cpu=host.base.device.type == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=seed,
        )
        collator = DataCollatorForSeq2Seq(host.base.tokenizer, label_pad_token_id=-100)
        trainer = Trainer(host.model, arguments, collator, data, callbacks=[Steps()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    host.model.eval()


def _mean_loss(host: Any, examples: Any) -> float:
    """Cross-entropy of all predicted tokens, a document at a time through the model's own forward."""
    import torch

    total, count = 0.0, 0
    with torch.inference_mode():
        for example in examples:
            ids = torch.tensor([example.ids], device=host.base.device)
            logp = torch.log_softmax(host.model(input_ids=ids).logits[0].float(), -1)
            at = [i for i, on in enumerate(example.loss) if on]
            total -= float(logp[[i - 1 for i in at], ids[0, at]].sum())
            count += len(at)
    return total / count


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": round(statistics.fmean(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }
