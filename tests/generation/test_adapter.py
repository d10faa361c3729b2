"""LoRA handed over as an adapter: the engine computes what the policy computes, and keeps the base it has."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from transformers import Qwen3ForCausalLM

from trl_r1.exceptions import ConfigurationError, EngineError
from trl_r1.generation import adapter
from trl_r1.generation.adapter import adapter_tensors, choose_hand_over, engine_options, why_not

from .conftest import PROMPTS, engine_gap, mean_gap, perturb, policy_logprobs, tiny_config

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def lora(**fields):
    return LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": "all-linear", **fields})


def scored_gap(engine, model):
    ids = [[9, 8, 7, 6, 5]] * len(PROMPTS)
    return mean_gap(engine.score(PROMPTS, ids), policy_logprobs(model, PROMPTS, ids))


@pytest.fixture(scope="module")
def adapted(checkpoints, build_engine):
    """An engine and its policy: rank 4 and 6 beside each other, a scaling of 1.5, and a reference adapter."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM.from_pretrained(checkpoints["untied"], dtype=torch.float32)
    with torch.no_grad():  # a base that no checkpoint holds: the engine must be given it
        model.model.layers[0].mlp.down_proj.weight.mul_(2)
    model = get_peft_model(model, lora(rank_pattern={"q_proj": 6}))
    model.add_adapter("reference", lora())
    model.set_adapter("default")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".reference." in name:
                parameter.add_(torch.randn_like(parameter))
    return build_engine(model, lora_hand_over="adapter"), model


def test_the_adapter_alone_goes_over_after_each_large_update(adapted):
    engine, model = adapted
    assert engine.lora_hand_over == "adapter"
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    torch.manual_seed(1)
    engine.sync_weights()
    assert engine_gap(engine, model) < 2e-3
    loads = []
    engine._load = lambda stream: loads.append(stream)
    for _ in range(3):
        perturb(model)
        assert scored_gap(engine, model) > 0.02  # the engine has not heard of the update yet
        engine.sync_weights()
        assert engine_gap(engine, model) < 2e-3  # same prompts each time: no stale prefix either
        assert scored_gap(engine, model) < 2e-3
    assert not loads  # nothing but the adapter
    assert all(torch.equal(tensor, dict(model.named_parameters())[name]) for name, tensor in frozen.items())


def test_switched_off_adapters_leave_the_base(adapted):
    engine, model = adapted
    with model.disable_adapter():
        engine.sync_weights()
        assert engine_gap(engine, model) < 2e-3
    assert scored_gap(engine, model) > 0.02
    engine.sync_weights()
    assert scored_gap(engine, model) < 2e-3


def test_an_adapter_merged_in_place_is_refused(adapted):
    engine, model = adapted
    model.merge_adapter()
    with pytest.raises(EngineError, match="unmerge_adapter"):
        engine.sync_weights()
    model.unmerge_adapter()


def test_what_is_handed_over_is_scaled_and_named_as_in_a_checkpoint(policy):
    model = get_peft_model(policy("untied"), lora(r=4, lora_alpha=2))
    perturb(model)
    tensors = adapter_tensors(model, lambda parameters: nullcontext())
    prefix = "base_model.model.model.layers.1.mlp.up_proj"
    delta = tensors[f"{prefix}.lora_B.weight"] @ tensors[f"{prefix}.lora_A.weight"]
    layer = model.get_base_model().model.layers[1].mlp.up_proj
    torch.testing.assert_close(delta, layer.get_delta_weight("default"))
    assert len(tensors) == 2 * 7 * 2


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lora(), None),
        (lora(use_rslora=True), None),
        (lora(target_modules=["q_proj"], layers_to_transform=[1]), None),
        (lora(use_dora=True), "variant"),
        (lora(target_modules=[*ATTENTION, "embed_tokens"]), "embed_tokens"),
        (lora(target_modules=[*ATTENTION, "lm_head"]), "lm_head"),
        (lora(target_modules=ATTENTION, modules_to_save=["norm"]), "as a whole"),
        (lora(target_modules=ATTENTION, trainable_token_indices=[5]), "as a whole"),
        (lora(r=1024), "rank 1024"),
        (LoHaConfig(r=4, target_modules=ATTENTION), "not LoRA"),
    ],
)
def test_adapters_that_vllm_cannot_compute_are_merged(config, reason, policy, monkeypatch):
    monkeypatch.setattr(adapter, "on_cpu", lambda: False)
    model = get_peft_model(policy("untied"), config)
    assert (why_not(model) is None) if reason is None else (reason in why_not(model))
    assert choose_hand_over(model, "auto") == ("adapter" if reason is None else "merged")
    assert choose_hand_over(model, "merged") == "merged"
    if reason is not None:
        with pytest.raises(ConfigurationError, match="'merged' or 'auto'"):
            choose_hand_over(model, "adapter")


def test_a_cpu_merges_unless_told_otherwise(policy):
    model = get_peft_model(policy("untied"), lora())
    assert choose_hand_over(model, "auto") == "merged"
    assert choose_hand_over(model, "adapter") == "adapter"


def test_a_float32_engine_on_a_gpu_merges(policy, monkeypatch):
    """vLLM's Triton kernels assert 16-bit inputs; seen on an H200."""
    monkeypatch.setattr(adapter, "on_cpu", lambda: False)
    model = get_peft_model(policy("untied"), lora())
    assert choose_hand_over(model, "auto", "float32") == "merged"
    assert choose_hand_over(model, "auto", "bfloat16") == "adapter"
    with pytest.raises(ConfigurationError, match="16-bit"):
        choose_hand_over(model, "adapter", "torch.float32")


def test_choices_are_checked(policy):
    assert choose_hand_over(policy("untied"), "auto") == "merged"
    with pytest.raises(ConfigurationError, match="'auto', 'adapter', 'merged'"):
        choose_hand_over(policy("untied"), "disk")


def test_the_engine_is_built_for_the_adapters_rank_and_layers(policy):
    model = get_peft_model(policy("untied"), lora(r=12, target_modules=["q_proj", "v_proj"]))
    options = engine_options(model)
    assert options["max_lora_rank"] == 16
    assert options["lora_target_modules"] == ["q_proj", "v_proj"]


def test_only_some_layers_of_a_fused_one(build_engine):
    torch.manual_seed(5)
    model = get_peft_model(Qwen3ForCausalLM(tiny_config()), lora(target_modules=["v_proj", "up_proj"]))
    engine = build_engine(
        model, lora_hand_over="adapter"
    )  # also a policy without a checkpoint: the base is handed over
    perturb(model)
    engine.sync_weights()
    assert engine_gap(engine, model) < 2e-3
