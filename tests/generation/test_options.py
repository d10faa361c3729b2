"""What is refused before a weight is loaded, and what the machine decides."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from transformers import Qwen3ForCausalLM

from trl_r1.exceptions import ConfigurationError, EngineError, MissingExtraError
from trl_r1.generation.engine import colocated_engine
from trl_r1.generation.options import (
    allowed_options,
    check_options,
    engine_dtype,
    needs_own_folder,
    platform_options,
)

from .conftest import tiny_config


def test_unknown_option_names_the_allowed_ones():
    with (
        pytest.raises(ConfigurationError, match=r"'max_num_sequences'.*'max_num_seqs'"),
        colocated_engine({"max_num_sequences": 4}),
    ):
        pytest.fail("the block must not run")
    assert {"max_num_seqs", "async_scheduling", "kv_cache_dtype", "compilation_config"} <= set(allowed_options())


@pytest.mark.parametrize(
    ("option", "fix"),
    [
        ({"tensor_parallel_size": 2}, "vllm_tensor_parallel_size"),
        ({"enable_sleep_mode": True}, "vllm_enable_sleep_mode"),
        ({"logprobs_mode": "raw_logprobs"}, "processed_logprobs"),
        ({"model": "other"}, "trainer's own"),
    ],
)
def test_options_that_belong_to_trl_say_where(option, fix):
    with pytest.raises(ConfigurationError, match=fix):
        check_options(option)


def test_tensor_parallel_size_must_divide_the_processes():
    with pytest.raises(ConfigurationError, match=r"=3 does not divide .*\(4\).*\[1, 2, 4\]"):
        check_options({}, tensor_parallel_size=3, world_size=4)


def test_a_cpu_says_what_it_cannot_do():
    with pytest.raises(ConfigurationError, match="`use_vllm: false`"):
        check_options({}, load_in_4bit=True)
    with pytest.raises(ConfigurationError, match="vllm_enable_sleep_mode"):
        check_options({}, sleep_mode=True)
    with pytest.raises(ConfigurationError, match=r"size 16\. Allowed: \[32"):
        check_options({}, config=tiny_config(head_dim=16))
    check_options({}, config=tiny_config(head_dim=32))


def test_bitsandbytes_engine_takes_an_adapter_and_nothing_else():
    option = {"quantization": "bitsandbytes"}
    for refused in ({"load_in_4bit": True, "lora_hand_over": "merged"}, {"load_in_4bit": False}):
        with pytest.raises(ConfigurationError, match="lora_hand_over: adapter"):
            check_options(option, **refused)
    with pytest.raises(ConfigurationError, match="on a CPU"):  # the next check: this one let it pass
        check_options(option, load_in_4bit=True)


def test_missing_vllm_names_the_extra(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else real(name, *rest))
    with pytest.raises(MissingExtraError, match=r"pip install '?trl-r1\[vllm"):
        check_options({})


def test_the_engine_computes_in_the_trainers_type(policy):
    model = policy("tied")
    assert engine_dtype(model, "no") == "float32"
    assert engine_dtype(model, "bf16") == "bfloat16"
    assert engine_dtype(model.to(torch.bfloat16), None) == "bfloat16"


def test_kv_cache_of_a_cpu_leaves_room_unless_the_environment_says_otherwise(policy, monkeypatch):
    model = policy("tied")
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    assert platform_options(model, "no")["kv_cache_memory_bytes"] == 2**30
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    assert "kv_cache_memory_bytes" not in platform_options(model, "no")


def test_own_folder_is_needed_exactly_when_the_named_checkpoint_does_not_fit(policy, tmp_path):
    model = policy("tied")
    assert needs_own_folder(model) is None
    model.resize_token_embeddings(208)
    assert "vocab_size" in str(needs_own_folder(model))
    assert needs_own_folder(Qwen3ForCausalLM(tiny_config())) == "it has no name"
    model.name_or_path = str(tmp_path)
    assert "config.json" in str(needs_own_folder(model))
    model.name_or_path = "nobody/no-such-model"
    with pytest.raises(EngineError, match="no-such-model"):
        needs_own_folder(model)
