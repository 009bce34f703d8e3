"""EleutherAI's lm-eval on an exported adapter gives the log-likelihoods that our own scores give.

Runs where lm-eval is installed (the extra `lm-eval`); on a task of its own, read from a local file.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from small import Maker, learned

from llm_unlearn.eval.encoding import encode_pairs
from llm_unlearn.eval.memorization import log_probability
from llm_unlearn.eval.passes import score_encoded
from llm_unlearn.exports import export_shard

pytest.importorskip("lm_eval")

TASK = """task: own_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: " "
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_a_harness_scores_an_exported_adapter_as_we_do(make: Maker, tmp_path: Path) -> None:
    workspace = make("ws", epochs=4, learning_rate=0.02, shards=1)
    workspace.ingest([learned(i, f"s{i}") for i in range(4)])
    workspace.train()
    opened = workspace.opened
    export_shard(opened, 0, tmp_path / "adapter")
    rows = [
        {"question": f"Is {i} big?", "choices": ["yes", "no", "perhaps"], "answer": i % 3}
        for i in range(6)
    ]
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    file = tasks / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "own.yaml").write_text(TASK.format(file=file))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        import lm_eval
        from lm_eval.tasks import TaskManager

        given = f"pretrained={workspace.config.model},peft={tmp_path / 'adapter'},dtype=float32"
        found = lm_eval.simple_evaluate(
            model="hf",
            model_args=given,
            tasks=["own_choice"],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            device="cpu",
            batch_size=4,
            bootstrap_iters=0,
            log_samples=True,
        )
    host = opened.models.host
    [state] = [s for s in opened.states() if s.serving]
    adapter = opened.adapter(state)
    right = 0
    with host.using(adapter), torch.inference_mode():
        for sample in found["samples"]["own_choice"]:
            doc = sample["doc"]
            pairs = [(f"Question: {doc['question']}\nAnswer:", f" {c}") for c in doc["choices"]]
            encoded = encode_pairs(host.base.tokenizer, pairs)
            mine = [log_probability(s) for s in score_encoded(host.model, encoded)]
            theirs = [float(given[0][0]) for given in sample["resps"]]
            assert mine == pytest.approx(theirs, abs=1e-3)
            right += mine.index(max(mine)) == doc["answer"]
    assert found["results"]["own_choice"]["acc,none"] == pytest.approx(right / len(rows))
