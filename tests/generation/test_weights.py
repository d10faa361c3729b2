"""The hand-over: engine and policy agree after large updates, and do not when it is disabled (traps 26, 27)."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from peft import LoHaConfig, LoraConfig, PeftConfig, TrainableTokensConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trl_r1.exceptions import ConfigurationError, EngineError
from trl_r1.generation.weights import check_tied, effective_weights, is_4bit, keep_4bit_weights

from .conftest import PROMPTS, engine_gap, mean_gap, perturb, policy_logprobs

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def lora(**fields):
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", **fields})


def snapshot(model):
    return {
        name: tensor.detach().clone()
        for name, tensor in model.get_base_model().named_parameters()
        if "lora" not in name
    }


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_full_weights_arrive_after_each_of_three_large_updates(kind, policy, engines):
    model = policy(kind)
    engine = engines(kind, model)
    torch.manual_seed(1)
    for _ in range(3):
        perturb(model)
        engine.sync_weights()
        assert engine_gap(engine, model) < 2e-3


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_engine_disagrees_without_the_hand_over(kind, policy, engines):
    model = policy(kind)
    engine = engines(kind, model)
    engine.hand_over = False
    torch.manual_seed(1)
    perturb(model)
    engine.sync_weights()
    assert engine_gap(engine, model) > 0.02


def test_a_tied_head_goes_stale_without_its_refresh(policy, engines, monkeypatch):
    model = policy("tied")
    engine = engines("tied", model)
    monkeypatch.setattr("trl_r1.generation.weights.refresh_tied_heads", lambda engine_model: None)
    torch.manual_seed(1)
    perturb(model)
    engine.sync_weights()
    assert engine_gap(engine, model) > 0.02


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_lora_arrives_merged_and_leaves_the_frozen_base_bit_identical(kind, policy, engines):
    model = get_peft_model(policy(kind), lora())
    before = snapshot(model)
    engine = engines(kind, model)
    torch.manual_seed(1)
    for _ in range(3):
        perturb(model)
        engine.sync_weights()
        assert engine_gap(engine, model) < 2e-3
    after = snapshot(model)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def in_4bit(checkpoint):
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    return AutoModelForCausalLM.from_pretrained(
        checkpoint, quantization_config=quantisation, dtype=torch.float32, device_map="cpu"
    )


@torch.no_grad()
def test_evaluating_leaves_4bit_weights_as_they_were_quantised(checkpoints):
    model = in_4bit(checkpoints["untied"]).eval()
    before = {name: weight.clone() for name, weight in effective_weights(model, lambda _: nullcontext())}
    keep_4bit_weights(model)
    model(torch.tensor([[5, 6, 7]]))
    after = dict(effective_weights(model, lambda _: nullcontext()))
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


@pytest.mark.skipif(not has_avx512bf16(), reason="bitsandbytes rearranges its layers on AVX-512 with bfloat16 alone")
@torch.no_grad()
def test_4bit_layers_that_were_rearranged_are_refused(checkpoints):
    model = in_4bit(checkpoints["untied"]).eval()
    model(torch.tensor([[5, 6, 7]]))
    with pytest.raises(ConfigurationError, match=r"layers.0.*Load the model again"):
        keep_4bit_weights(model)


def test_4bit_arrives_dequantised_and_merged(checkpoints, engines):
    model = get_peft_model(in_4bit(checkpoints["untied"]), lora())
    keep_4bit_weights(model)  # as the trainers do
    assert is_4bit(model)
    engine = engines("untied", model)
    torch.manual_seed(1)
    perturb(model)
    engine.sync_weights()
    assert engine_gap(engine, model) < 2e-3


CONFIGS: dict[str, PeftConfig] = {
    "lora": lora(),
    "rslora": lora(use_rslora=True),
    "dora": lora(use_dora=True),
    "lora_bias": lora(target_modules=ATTENTION, lora_bias=True),
    "embedding": lora(target_modules=[*ATTENTION, "embed_tokens"]),
    "modules_to_save": lora(target_modules=ATTENTION, modules_to_save=["lm_head", "norm"]),
    "trainable_tokens": lora(trainable_token_indices=[5, 6]),
    "only_tokens": TrainableTokensConfig(token_indices=[5, 6]),
    "loha": LoHaConfig(r=4, target_modules=ATTENTION),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_streamed_weights_are_the_ones_the_adapted_policy_computes_with(name, policy):
    model = policy("untied")
    if name == "lora_bias":  # Qwen3 has no attention bias to merge into: give it one
        for layer in model.model.layers:
            for projection in ATTENTION:
                linear = getattr(layer.self_attn, projection)
                linear.bias = torch.nn.Parameter(torch.zeros(linear.out_features))
    plain = {parameter: parameter for parameter in dict(model.named_parameters())}
    model = get_peft_model(model, CONFIGS[name])
    torch.manual_seed(1)
    perturb(model, 0.3)
    before = snapshot(model)
    streamed = {key: tensor.clone() for key, tensor in effective_weights(model, lambda parameters: nullcontext())}
    assert set(streamed) == set(plain)
    ids = [[9, 8, 7, 6, 5]] * len(PROMPTS)
    expected = policy_logprobs(model, PROMPTS, ids)
    receiver = policy("untied")
    if name == "lora_bias":
        for layer in receiver.model.layers:
            for projection in ATTENTION:
                linear = getattr(layer.self_attn, projection)
                linear.bias = torch.nn.Parameter(torch.zeros(linear.out_features))
    assert mean_gap(policy_logprobs(receiver, PROMPTS, ids), expected) > 0.02
    receiver.load_state_dict(streamed)
    assert mean_gap(policy_logprobs(receiver, PROMPTS, ids), expected) < 1e-4
    after = snapshot(model)
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_only_active_adapters_are_merged(policy):
    model = get_peft_model(policy("untied"), lora(), adapter_name="default")
    model.add_adapter("reference", lora())
    model.set_adapter("default")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    name = "model.layers.0.self_attn.q_proj.weight"
    gather = lambda parameters: nullcontext()  # noqa: E731
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    base = layer.base_layer.weight
    delta = {adapter: layer.get_delta_weight(adapter) for adapter in ("default", "reference")}
    torch.testing.assert_close(dict(effective_weights(model, gather))[name], base + delta["default"])
    model.base_model.set_adapter(["default", "reference"])
    torch.testing.assert_close(dict(effective_weights(model, gather))[name], base + sum(delta.values()))
    with model.disable_adapter():
        torch.testing.assert_close(dict(effective_weights(model, gather))[name], base)


def test_bfloat16_weights_are_merged_in_float32(checkpoints):
    model = AutoModelForCausalLM.from_pretrained(checkpoints["untied"], dtype=torch.bfloat16)
    model = get_peft_model(model, lora())
    perturb(model, 0.01)
    streamed = dict(effective_weights(model, lambda parameters: nullcontext()))
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    expected = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
    torch.testing.assert_close(streamed["model.layers.0.mlp.up_proj.weight"], expected, atol=1e-6, rtol=1e-6)


def test_adapters_that_untie_a_tied_model_are_refused(policy):
    with pytest.raises(EngineError, match="ties them"):
        check_tied(get_peft_model(policy("tied"), lora(target_modules=["embed_tokens"])))
    check_tied(get_peft_model(policy("tied"), lora()))
    check_tied(get_peft_model(policy("tied"), lora(trainable_token_indices=[5])))
    check_tied(get_peft_model(policy("untied"), lora(target_modules=["embed_tokens"])))
