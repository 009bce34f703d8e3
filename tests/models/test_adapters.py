"""The two-part forward pass, LoRA in PEFT's own format, on three architectures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from llm_unlearn.errors import EnvironmentFailure, InputError
from llm_unlearn.models.causal import generate, load_causal
from llm_unlearn.models.experts import mixing, stack
from llm_unlearn.models.layers import decoder
from llm_unlearn.models.lora import AdapterHost, LoraShape
from llm_unlearn.models.prefix import lower_states, upper_part

KINDS = ("llama", "gpt2", "qwen")
PROMPT = [7, 40, 33, 90, 12, 55]


def _host(reference: str, top: int | None = 2) -> AdapterHost:
    return AdapterHost(load_causal(reference, "float32"), LoraShape(4, 8, top))


def _moved(host: AdapterHost) -> None:
    """Put an adapter in place whose B is not zero, so that it changes what the model says."""
    state = host.fresh(b"seed")
    generator = torch.Generator().manual_seed(0)
    for name in state:
        state[name] = torch.randn(state[name].shape, generator=generator) * 0.3
    host.load(state)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_both_parts_compute_what_the_whole_model_computes(
    tiny_references: dict[str, str], kind: str
) -> None:
    host = _host(tiny_references[kind])
    _moved(host)
    ids = torch.tensor([PROMPT])
    whole = host.model(input_ids=ids).logits
    state = lower_states(host.model, host.layers, host.first_layer, PROMPT)
    assert state.shape == (len(PROMPT), 32)
    padded = torch.zeros(1, len(PROMPT) + 3, 32)
    padded[0, : len(PROMPT)] = state
    with upper_part(host.layers, host.first_layer) as entering:
        entering[:] = [padded]
        split = host.model(input_ids=torch.zeros(1, len(PROMPT) + 3, dtype=torch.long)).logits
    torch.testing.assert_close(split[:, : len(PROMPT)], whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(host.model(input_ids=ids).logits, whole, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_the_adapter_unchanged(
    tiny_references: dict[str, str], kind: str, tmp_path: Path
) -> None:
    host = _host(tiny_references[kind])
    _moved(host)
    with torch.inference_mode():
        ours = host.model(input_ids=torch.tensor([PROMPT])).logits
    host.config.save_pretrained(str(tmp_path))
    save_file(host.state(), str(tmp_path / "adapter_model.safetensors"))
    base = AutoModelForCausalLM.from_pretrained(tiny_references[kind], dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(input_ids=torch.tensor([PROMPT])).logits, ours)


@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_the_files_follow_what_vllm_reads(
    tiny_references: dict[str, str], kind: str, tmp_path: Path
) -> None:
    """vLLM takes `base_model.model.MODULE.lora_A.weight` and `lora_B`, in adapter_model.safetensors.

    It refuses DoRA, biases, modules saved whole, and modules that adapter_config.json does not target
    (its `parse_fine_tuned_lora_name` and `PEFTHelper`).
    """
    host = _host(tiny_references[kind])
    host.config.save_pretrained(str(tmp_path))
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    modules = {name for name, _ in load_causal(tiny_references[kind]).model.named_modules()}
    found: dict[str, set[str]] = {}
    for name, tensor in host.state().items():
        parts = name.split(".")
        assert parts[:2] == ["base_model", "model"]
        assert parts[-1] == "weight"
        found.setdefault(".".join(parts[2:-2]), set()).add(parts[-2])
        assert tensor.shape[0 if parts[-2] == "lora_A" else 1] == written["r"]
    assert set(found) <= modules
    assert {name.rsplit(".", 1)[-1] for name in found} == set(written["target_modules"])
    assert all(kinds == {"lora_A", "lora_B"} for kinds in found.values())
    assert (written["peft_type"], written["lora_alpha"], written["bias"]) == ("LORA", 8, "none")
    assert not any(written[name] for name in ("use_dora", "use_rslora", "modules_to_save"))


def test_only_the_top_layers_carry_an_adapter(tiny_references: dict[str, str]) -> None:
    host = _host(tiny_references["llama"], top=1)
    assert {name.split(".layers.")[1].split(".")[0] for name in host.names} == {"3"}
    assert len(decoder(host.base.model).layers) == 4


def test_off_is_the_base_model(tiny_references: dict[str, str]) -> None:
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        base = load_causal(tiny_references["llama"], "float32").model(input_ids=ids).logits
        host = _host(tiny_references["llama"])
        _moved(host)
        assert not torch.equal(host.model(input_ids=ids).logits, base)
        whole = host.model(input_ids=ids).logits
        gradients = [parameter.requires_grad for parameter in host.parameters()]
        with host.using(None):
            assert torch.equal(host.model(input_ids=ids).logits, base)
            with host.using(None):
                assert torch.equal(host.model(input_ids=ids).logits, base)
            with mixing(host, stack(host, [host.state()])) as mixed:
                mixed.arrange(torch.zeros(1, 1, dtype=torch.long))
                beside = mixed.forward(ids, torch.ones_like(ids))
            torch.testing.assert_close(beside, whole, atol=1e-4, rtol=1e-4)
            assert torch.equal(host.model(input_ids=ids).logits, base)  # as it was before
        assert torch.equal(host.model(input_ids=ids).logits, whole)
        with host.model.disable_adapter():  # PEFT's own switch
            assert torch.equal(host.model(input_ids=ids).logits, base)
        assert [parameter.requires_grad for parameter in host.parameters()] == gradients


def test_a_fresh_adapter_depends_on_its_seed_only(tiny_references: dict[str, str]) -> None:
    first, second = _host(tiny_references["llama"]), _host(tiny_references["llama"])
    torch.manual_seed(123)
    a, b, c = first.fresh(b"x"), second.fresh(b"x"), first.fresh(b"y")
    assert all(torch.equal(a[n], b[n]) for n in first.names)
    assert not all(torch.equal(a[n], c[n]) for n in first.names)


def test_too_many_layers_are_refused(tiny_references: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"top_layers is 9, but .* has 4 layers"):
        _host(tiny_references["llama"], top=9)


def test_a_batch_answers_each_prompt_as_it_would_alone(tiny_references: dict[str, str]) -> None:
    model = load_causal(tiny_references["llama"], "float32")
    prompts = [PROMPT, PROMPT[:3], PROMPT[2:5] * 3]
    together = generate(model, prompts, max_new_tokens=6)
    assert together == [generate(model, [p], max_new_tokens=6)[0] for p in prompts]


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("/nowhere/at/all", "does not exist"),
        ("packaged:gpt-17", "There is no packaged model 'gpt-17'"),
    ],
)
def test_a_missing_model_is_a_clear_error(reference: str, problem: str) -> None:
    with pytest.raises(EnvironmentFailure, match=problem):
        load_causal(reference)


def test_pickled_weights_and_foreign_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(EnvironmentFailure, match="only pickled weights"):
        load_causal(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    with pytest.raises(EnvironmentFailure, match="needs code of its own"):
        load_causal(str(tmp_path))


def test_merged_is_the_adapter_in_the_base_and_put_back(tiny_references: dict[str, str]) -> None:
    for kind in ("llama", "gpt2"):
        host = AdapterHost(load_causal(tiny_references[kind], "float32"), LoraShape(2, 4, 2))
        state = {name: tensor + 0.1 for name, tensor in host.fresh(b"m").items()}
        before = {n: p.detach().clone() for n, p in host.base.model.named_parameters()}
        ids = torch.tensor([[5, 9, 7, 8]])
        with host.using(state), torch.no_grad():
            beside = host.model(input_ids=ids).logits
        with host.using(None), torch.no_grad():
            alone = host.model(input_ids=ids).logits
        with host.merged(state), torch.no_grad():
            inside = host.model(input_ids=ids).logits
        torch.testing.assert_close(inside, beside, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(inside, alone, atol=1e-3)
        for name, parameter in host.base.model.named_parameters():
            if "lora_" not in name:
                assert torch.equal(parameter, before[name])
