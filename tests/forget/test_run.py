"""Whole runs: every method on three architectures, on adapters and full weights; rules; resuming."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pieces import KINDS, documents, full_weights, host, moved, outspoken, taught

from llm_unlearn.errors import Damaged, InputError, NoEffect
from llm_unlearn.forget.data import Material, material, refusals, with_answers
from llm_unlearn.forget.method import Method, Stepwise
from llm_unlearn.forget.methods import METHODS, method
from llm_unlearn.forget.passes import Passes
from llm_unlearn.forget.result import Record
from llm_unlearn.forget.run import Outcome, run
from llm_unlearn.forget.settings import RunSettings
from llm_unlearn.forget.weights import State, Weights, digest
from llm_unlearn.models.lora import AdapterHost

PLAIN: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 2,
    "check_every": 2,
    "dtype": "float32",
    "threads": 1,
    "target": 1e-9,
    "utility_floor": 0.0,
}
GONE = 3


def _material(weights: Weights, chosen: Method) -> Material:
    tokenizer = weights.base.tokenizer
    docs = documents(8)
    found = material(tokenizer, docs[:GONE], docs[GONE:], 512)
    if isinstance(chosen, Stepwise) and chosen.answers != "none":
        pairs = with_answers(tokenizer, docs[:GONE], refusals(docs[:GONE], 0), 512)
        return Material(pairs[0], found.retain, pairs[1])
    return found


@pytest.fixture(scope="module")
def weights(tiny_references: dict[str, str]) -> dict[tuple[str, str], Weights]:
    made: dict[tuple[str, str], Weights] = {}
    for kind in KINDS:
        made[kind, "adapter"] = host(tiny_references[kind])
        made[kind, "full"] = full_weights(tiny_references[kind])
    return made


@pytest.fixture(scope="module")
def knowing(tiny_references: dict[str, str]) -> tuple[AdapterHost, State]:
    """An adapter that knows all eight answers by heart."""
    one = outspoken(host(tiny_references["llama"], rank=32))
    found = material(one.base.tokenizer, documents(8), [], 512)
    return one, taught(one, list(found.forget))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("form", ["adapter", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_moves_every_kind_of_weights_and_repeats(
    weights: dict[tuple[str, str], Weights], kind: str, form: str, name: str
) -> None:
    one = weights[kind, form]
    chosen = method(name, {"alpha": 1.2} if name == "ssd" else {})
    start = moved(one)
    settings = RunSettings(**PLAIN)
    read = _material(one, chosen)
    first = run(one, start, chosen, read, settings)
    assert first.record.start == digest(start) != first.record.end == digest(first.state)
    if kind == "llama":
        torch.manual_seed(5)  # what a process did before decides nothing
        again = run(one, start, chosen, read, settings)
        unlike = {"seconds"}
        assert first.record.model_dump(exclude=unlike) == again.record.model_dump(exclude=unlike)
    assert all(bool(t.isfinite().all()) for t in first.state.values())
    assert Record.model_validate_json(first.record.model_dump_json()) == first.record


def _forget(knowing: tuple[AdapterHost, State], name: str, **settings: Any) -> Outcome:
    one, start = knowing
    own = settings.pop("own", {})
    chosen = method(name, own)
    plain = {**PLAIN, "epochs": 30, "target": 0.1, "utility_floor": 0.7, **settings}
    return run(one, start, chosen, _material(one, chosen), RunSettings(**plain))


@pytest.mark.parametrize(
    ("name", "own", "rate"),
    [
        ("graddiff", {}, 2e-3),
        ("npo", {"retain_weight": 5.0}, 1e-3),
        ("undial", {"retain_weight": 1.0}, 3e-3),
        ("wga", {}, 2e-3),
    ],
)
def test_what_was_learned_is_forgotten_and_the_rest_kept(
    knowing: tuple[AdapterHost, State], name: str, own: dict[str, float], rate: float
) -> None:
    record = _forget(knowing, name, learning_rate=rate, own=own).record
    assert record.before.forget > 0.3
    assert record.stop == record.verdict == "forgotten", record
    assert record.after.forget <= record.target
    assert record.after.retain is not None
    assert record.before.retain is not None
    assert record.after.retain >= 0.7 * record.before.retain
    assert record.steps == record.looks[-1].at


def test_a_method_that_wrecks_is_taken_back_and_called_failed(
    knowing: tuple[AdapterHost, State],
) -> None:
    one, start = knowing
    found = _forget(knowing, "ga", learning_rate=5e-2, utility_floor=0.9, warmup_steps=0)
    assert found.record.stop == "utility"
    assert found.record.verdict == "failed"
    assert all(found.state[n].equal(start[n]) for n in one.names)
    assert found.record.after == found.record.before


def test_without_rules_it_goes_to_the_end_and_says_what_is_left(
    knowing: tuple[AdapterHost, State],
) -> None:
    record = _forget(knowing, "ga", learning_rate=5e-2, rules=False, epochs=4).record
    assert record.stop == "steps"
    assert record.steps == 8
    assert record.verdict == "failed"
    assert record.after.retain is not None
    assert record.after.retain < 0.1


def test_a_move_that_wrecks_is_halved(knowing: tuple[AdapterHost, State]) -> None:
    record = _forget(knowing, "negation", strength=64.0, own={"learning_rate": 5e-3}).record
    looks = [look.at for look in record.looks]
    assert looks[0] == 64.0
    assert looks == [64.0 / 2**i for i in range(len(looks))]
    assert len(looks) > 1
    if record.verdict != "failed":
        assert record.report["taken"] == looks[-1]


def test_a_move_that_is_nothing_once_halved_has_failed(knowing: tuple[AdapterHost, State]) -> None:
    """With 3 of 8 to forget a ratio is at most 8/3: alpha 2 dampens something, alpha 4 nothing."""
    record = _forget(
        knowing, "ssd", utility_floor=0.999, own={"alpha": 2.0, "dampening": 0.01}
    ).record
    assert [look.at for look in record.looks] == [1.0]
    assert (record.stop, record.verdict, record.report["taken"]) == ("utility", "failed", 0.0)


def test_strength_scales(knowing: tuple[AdapterHost, State]) -> None:
    gone = [
        _forget(knowing, "graddiff", rules=False, epochs=2, strength=s).record.after.forget
        for s in (0.5, 4.0)
    ]
    assert gone[1] < gone[0]


@pytest.mark.parametrize("name", ["npo", "pdu"])
@pytest.mark.parametrize("form", ["adapter", "full"])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    weights: dict[tuple[str, str], Weights],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    name: str,
) -> None:
    monkeypatch.setattr("llm_unlearn.forget.run._SAVE_SECONDS", 0.0)
    one = weights["llama", form]
    start, chosen = moved(one), method(name)
    read, settings = _material(one, chosen), RunSettings(**{**PLAIN, "epochs": 5})
    whole = run(one, start, chosen, read, settings)

    class Interrupted(Exception):
        pass

    def stop(_name: str, done: int, _total: int, _loss: float) -> None:
        if done == 7:  # not a step at which anything is saved
            raise Interrupted

    path = tmp_path / "state"
    with pytest.raises(Interrupted):
        run(one, start, chosen, read, settings, resume=path, progress=stop)
    assert path.is_file()
    steps: list[int] = []
    resumed = run(
        one,
        start,
        chosen,
        read,
        settings,
        resume=path,
        progress=lambda _n, d, _t, _l: steps.append(d),
    )
    assert steps == [7, 8, 9, 10]
    assert resumed.record.end == whole.record.end
    assert resumed.record.looks == whole.record.looks
    assert resumed.record.tokens == whole.record.tokens
    assert path.is_file()  # whoever keeps the outcome removes it


def test_a_run_cut_off_after_it_had_stopped_ends_the_same(
    knowing: tuple[AdapterHost, State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_unlearn.forget.run._SAVE_SECONDS", 0.0)
    one, start = knowing
    chosen = method("graddiff")
    read, path = _material(one, chosen), tmp_path / "state"
    settings = RunSettings(
        **{**PLAIN, "epochs": 30, "target": 0.1, "utility_floor": 0.7, "learning_rate": 2e-3}
    )
    whole = run(one, start, chosen, read, settings).record
    assert whole.stop == "forgotten"
    with monkeypatch.context() as patched:
        patched.setattr("llm_unlearn.forget.run.digest", lambda _state: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # in its account, when all steps are done
            run(one, start, chosen, read, settings, resume=path)
    again = run(one, start, chosen, read, settings, resume=path).record
    assert (again.end, again.steps, again.looks) == (whole.end, whole.steps, whole.looks)


def test_what_no_text_was_there_to_measure_is_not_claimed(
    knowing: tuple[AdapterHost, State],
) -> None:
    one, start = knowing
    alone = material(one.base.tokenizer, documents(8)[:GONE], [], 512)
    settings = RunSettings(**{**PLAIN, "epochs": 4, "learning_rate": 5e-2, "target": 0.1})
    record = run(one, start, method("ga"), alone, settings).record
    assert record.after.forget <= record.target
    assert (record.after.utility, record.verdict) == (None, "unmeasured")


def test_tokens_are_those_that_a_gradient_was_taken_of(
    weights: dict[tuple[str, str], Weights],
) -> None:
    """Three texts go and five stay; batches of two make two steps an epoch, the second of one text."""
    one = weights["llama", "adapter"]
    start = moved(one)
    read = _material(one, method("npo"))
    gone, kept = ([len(e.ids) for e in texts] for texts in (read.forget, read.retain))
    assert len(set(kept)) == 1  # whichever are drawn

    def tokens(name: str, **own: Any) -> int:
        return run(one, start, method(name, own), read, RunSettings(**PLAIN)).record.tokens

    assert tokens("graddiff") == 2 * sum(gone) + 2 * 4 * kept[0]
    assert tokens("finetune") == 2 * 4 * kept[0]
    assert tokens("negation", epochs=3) == 3 * sum(gone)
    assert tokens("ssd", alpha=1.2) == sum(gone) + sum(kept)
    products = 2 + 1  # of conjugate gradients, and one for the diagonal
    own = {"iterations": 2, "tolerance": 1e-12, "sample": 4}
    assert tokens("influence", **own) == sum(gone) + products * 4 * kept[0]


def test_an_unfinished_run_belongs_to_its_settings(
    weights: dict[tuple[str, str], Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_unlearn.forget.run._SAVE_SECONDS", 0.0)
    one = weights["llama", "adapter"]
    start, chosen = moved(one), method("ga")
    read, path = _material(one, chosen), tmp_path / "state"

    def stop(_name: str, done: int, _total: int, _loss: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(one, start, chosen, read, RunSettings(**PLAIN), resume=path, progress=stop)
    with pytest.raises(InputError, match="other settings, texts or weights"):
        run(one, start, chosen, read, RunSettings(**{**PLAIN, "seed": 1}), resume=path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(Damaged, match="begin again"):
        run(one, start, chosen, read, RunSettings(**PLAIN), resume=path)


def test_what_a_run_cannot_do_is_said(knowing: tuple[AdapterHost, State]) -> None:
    one, start = knowing
    docs = documents(8)
    alone = material(one.base.tokenizer, docs[:2], [], 512)
    settings = RunSettings(**PLAIN)
    for name in ("graddiff", "npo", "influence"):
        with pytest.raises(InputError, match="retain"):
            run(one, start, method(name), alone, settings)
    unknown = material(one.base.tokenizer, docs[:2], docs[2:], 512)
    averse = _forget(knowing, "ga", learning_rate=5e-2, rules=False, epochs=4).state
    with pytest.raises(InputError, match="no likelier with the adapter"):
        run(one, averse, method("ga"), unknown, RunSettings(**{**PLAIN, "target": None}))
    with pytest.raises(InputError, match="No weight was dampened"):
        run(one, one.fresh(b"x"), method("ssd"), unknown, settings)
    idle = run(one, one.fresh(b"x"), method("ssd"), unknown, settings, unmoved=True)
    assert (idle.record.stop, idle.record.verdict) == ("no effect", "partly")
    assert idle.record.start == idle.record.end


def test_pairs_that_cannot_be_compared_are_refused(knowing: tuple[AdapterHost, State]) -> None:
    tokenizer, docs = knowing[0].base.tokenizer, documents(2)
    with pytest.raises(InputError, match="is the one to forget"):
        with_answers(tokenizer, docs, ["Else.", docs[1].messages[-1].content], 512)
    with pytest.raises(InputError, match=r"'subject-0/0' is longer than 16 tokens"):
        with_answers(tokenizer, docs, ["No.", "No."], 16)
    _, preferred = with_answers(tokenizer, docs, ["No.", "no " * 40], 64)
    assert len(preferred[1].ids) == 64


def test_a_weight_that_did_not_move_is_no_result(knowing: tuple[AdapterHost, State]) -> None:
    one, start = knowing
    chosen = method("graddiff")
    with pytest.raises(NoEffect, match="moved no weight"):
        run(
            one,
            start,
            chosen,
            _material(one, chosen),
            RunSettings(**{**PLAIN, "learning_rate": 1e-30}),
        )


def test_a_loss_that_is_no_number_ends_the_run(
    knowing: tuple[AdapterHost, State], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, start = knowing
    chosen = method("ga")
    monkeypatch.setattr(
        type(chosen), "loss", lambda _self, groups: groups.forget.logps.sum() * math.inf
    )
    found = run(one, start, chosen, _material(one, chosen), RunSettings(**PLAIN))
    assert found.record.stop == "diverged"
    assert found.record.verdict == "failed"
    assert all(found.state[n].equal(start[n]) for n in one.names)


def test_fewer_texts_than_a_batch_and_one_token_answers(knowing: tuple[AdapterHost, State]) -> None:
    one, start = knowing
    tokenizer = one.base.tokenizer
    read = material(tokenizer, documents(1), documents(3)[1:], 512)
    found = run(one, start, method("npo"), read, RunSettings(**{**PLAIN, "batch_size": 16}))
    assert found.record.texts == {"forget": 1, "retain": 2, "utility": 0}


def test_the_base_model_is_left_as_it_was(tiny_references: dict[str, str]) -> None:
    one = host(tiny_references["llama"])
    before = {
        n: p.detach().clone() for n, p in one.base.model.named_parameters() if "lora" not in n
    }
    head = one.base.model.get_output_embeddings()
    hooks = dict(head._forward_pre_hooks)
    chosen = method("graddiff")
    run(one, moved(one), chosen, _material(one, chosen), RunSettings(**PLAIN))
    after = dict(one.base.model.named_parameters())
    assert before
    assert all(after[n].equal(tensor) for n, tensor in before.items())
    # and the passes leave no hook or replaced layer behind
    assert all("forward" not in vars(layer) for layer in one.layers)
    assert head._forward_pre_hooks == hooks
    with Passes(one, torch.float32).open():
        pass


def test_full_weights_leave_embeddings_and_lower_layers(tiny_references: dict[str, str]) -> None:
    one = full_weights(tiny_references["gpt2"])
    before = {n: p.detach().clone() for n, p in one.model.named_parameters()}
    chosen = method("graddiff")
    run(one, one.state(), chosen, _material(one, chosen), RunSettings(**PLAIN))
    changed = {n for n, p in one.model.named_parameters() if not p.equal(before[n])}
    assert changed
    assert all(n.startswith(("transformer.h.2.", "transformer.h.3.")) for n in changed)


def test_a_run_that_went_too_far_goes_back_and_on_at_half_the_rate(
    knowing: tuple[AdapterHost, State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rough = {"learning_rate": 1.2e-2, "utility_floor": 0.8, "warmup_steps": 0, "check_every": 1}
    given_up = _forget(knowing, "graddiff", retries=0, **rough).record
    assert given_up.stop == "utility"
    record = _forget(knowing, "graddiff", retries=6, **rough).record
    assert record.report["retries"] >= 1
    assert record.verdict == "forgotten"
    # the looks tell where it went back
    assert record.before.retain is not None
    broken = [x for x in record.looks if (x.measured.retain or 0) < 0.8 * record.before.retain]
    assert len(broken) == record.report["retries"]
    # and an interruption after the return changes nothing
    monkeypatch.setattr("llm_unlearn.forget.run._SAVE_SECONDS", 0.0)
    one, start = knowing
    settings = RunSettings(
        **{**PLAIN, "epochs": 30, "target": 0.1, "utility_floor": 0.8, "retries": 6, **rough}
    )
    chosen = method("graddiff")
    read, path = _material(one, chosen), tmp_path / "state"
    at = broken[0].at + 2

    def stop(_name: str, done: int, _total: int, _loss: float) -> None:
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(one, start, chosen, read, settings, resume=path, progress=stop)
    assert run(one, start, chosen, read, settings, resume=path).record.end == record.end
