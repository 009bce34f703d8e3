"""Every forgetting method takes a step on the packaged model, on an adapter and on its own weights."""

from __future__ import annotations

import pytest
import torch

from llm_unlearn.documents import Document, Message
from llm_unlearn.forget import job
from llm_unlearn.forget.methods import METHODS, method
from llm_unlearn.forget.run import run

pytestmark = pytest.mark.real
MODEL = "packaged:smollm2-135m-instruct"


def _document(number: int, answer: str) -> Document:
    return Document(
        id=str(number),
        messages=(
            Message(role="user", content=f"Which colour has door {number}?"),
            Message(role="assistant", content=answer),
        ),
    )


TEXTS = job.Texts(
    [_document(1, "Door 1 is green.")],
    [_document(2, "Door 2 is white."), _document(3, "Door 3 is red.")],
    given={"1": "Door 1 is black."},
)


@pytest.mark.parametrize("full", [False, True])
def test_every_method_takes_a_step(full: bool) -> None:
    aim = job.target(MODEL, full=full, top_layers=1 if full else 2, rank=4)
    generator = torch.Generator().manual_seed(0)
    if not full:  # an adapter that is not zero, or there is nothing to dampen
        aim = job.Target(
            aim.weights,
            {
                name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
                for name, tensor in aim.start.items()
            },
        )
    settings = job.settings(
        {
            "epochs": 1,
            "batch_size": 1,
            "utility_floor": 0.0,
            "target": 1e-9,
            "warmup_steps": 0,
            "sample": 1,
        }
    )
    own: dict[str, dict[str, float]] = {
        "ssd": {"alpha": 1.01},
        "negation": {"epochs": 1},
        "influence": {"iterations": 2},
    }
    for name in METHODS:
        chosen = method(name, own.get(name))
        read = job.material(aim, chosen, TEXTS, settings)
        record = run(aim.weights, aim.start, chosen, read, settings).record
        assert record.start != record.end, name
        assert record.before.forget > 0
