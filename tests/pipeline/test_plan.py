"""`--plan`: what it prints for nano on this CPU, and for Qwen2.5's shapes on a GPU, from configurations alone."""

import re
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, Qwen2Config
from trl import ModelConfig

from trl_r1.exceptions import ConfigurationError
from trl_r1.modeling.memory import GIB
from trl_r1.modeling.speed import Device, expected_lengths
from trl_r1.pipeline import parse_r1_zero, r1_zero
from trl_r1.pipeline.plan import plan_run
from trl_r1.pipeline.plan_text import render_plan
from trl_r1.trainers import R1GRPOConfig

H200 = Device("NVIDIA H200", "cuda", 141 * GIB, 139 * GIB, 790e12, 4.3e12)
SHAPES = {
    "1.5B": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    },
}  # fmt: skip


def settings(tmp_path, **more):
    sizes = {
        "questions_per_step": 16, "num_generations": 16, "per_device_train_batch_size": 4, "max_completion_length": 8192,
    }  # fmt: skip
    args = R1GRPOConfig(str(tmp_path), use_cpu=True, use_vllm=False, bf16=True, report_to="none", **sizes | more)
    # vLLM need not be installed to plan for it.
    args.use_vllm, args.vllm_mode, args.vllm_enable_sleep_mode = True, "colocate", True
    args.vllm_gpu_memory_utilization = 0.4
    return args


@pytest.mark.parametrize(("mean", "cap"), [(2154, 8192), (40, 160), (7000, 8192)])
def test_expected_lengths(mean, cap):
    lengths = expected_lengths(512, mean, cap)
    assert np.mean(lengths) == pytest.approx(mean, rel=0.01)
    assert 1 <= min(lengths) < max(lengths) <= cap
    assert lengths == expected_lengths(512, mean, cap)


def test_plan_of_a_model_that_fits(tmp_path):
    config, model = Qwen2Config(**SHAPES["1.5B"]), ModelConfig(dtype="bfloat16")
    plan = plan_run(config, "1.5B", H200, settings(tmp_path, beta=0.0), model, [128] * 64, mean_tokens=2154)
    assert plan.fits
    # bf16 everywhere: weights and gradients 2 bytes, two moments 4 (as the benchmarks train this model).
    n = plan.architecture.parameters
    assert (plan.memory.weights, plan.memory.gradients, plan.memory.optimizer) == (2 * n, 2 * n, 4 * n)
    assert not plan.memory.reference
    assert not plan.budget.checkpointing
    assert 8320 <= plan.budget.tokens <= 65536
    assert plan.memory.total < H200.free_bytes
    assert plan.memory.largest_tokens >= plan.budget.tokens
    assert max(plan.bins) <= plan.budget.tokens
    assert sum(plan.bins) == sum(map(sum, plan.sequences))
    # One H200, 64 completions of 2,080: 3.26 s measured; here 256.
    assert plan.seconds["training"] == pytest.approx(4 * 3.26, rel=0.35)
    text = render_plan(plan)
    assert "1.54B parameters in bfloat16" in text
    assert "head tied" in text
    assert "vLLM's cache holds" in text
    assert text.endswith("It fits.")


def test_plan_of_a_model_that_does_not_fit(tmp_path):
    config, prompts = Qwen2Config(**SHAPES["7B"]), [128] * 64
    plan = plan_run(config, "7B", H200, settings(tmp_path), ModelConfig(dtype="float32"), prompts)
    assert not plan.fits
    text = render_plan(plan)
    assert "IT WILL NOT FIT" in text
    for change in ("use_peft: true", "adamw_8bit", "beta: 0", "fsdp2.yaml"):
        assert change in text
    adapter = ModelConfig(dtype="bfloat16", use_peft=True, lora_r=32, load_in_4bit=True, lora_target_modules=["q_proj"])
    small = plan_run(config, "7B", H200, settings(tmp_path), adapter, prompts)
    assert small.fits
    assert small.memory.optimizer < 0.02 * plan.memory.optimizer
    assert not small.memory.reference


def test_the_engines_own_quantisation_leaves_room_for_its_cache(tmp_path):
    config, model = Qwen2Config(**SHAPES["7B"]), ModelConfig(dtype="bfloat16")

    def tokens(**options):
        args = settings(tmp_path, vllm_engine_kwargs=options)
        return plan_run(config, "7B", H200, args, model, [128] * 64).engine.cache_tokens

    plain = tokens()
    assert plain < tokens(quantization="fp8") < tokens(quantization="bitsandbytes")
    assert tokens(kv_cache_dtype="fp8") == pytest.approx(2 * plain, abs=1)


def test_fsdp_is_seen(tmp_path, monkeypatch):
    config, prompts = Qwen2Config(**SHAPES["7B"]), [128] * 64
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    args = settings(tmp_path)
    alone = plan_run(config, "7B", H200, args, ModelConfig(dtype="float32"), prompts)
    monkeypatch.setattr(type(args), "world_size", 8)
    sharded = plan_run(config, "7B", H200, args, ModelConfig(dtype="float32"), prompts)
    assert sharded.memory.optimizer == alone.memory.optimizer // 8
    assert sharded.fits


def test_given_budget_and_lengths(tmp_path):
    config, model = Qwen2Config(**SHAPES["1.5B"]), ModelConfig(dtype="bfloat16")
    args = settings(tmp_path, max_tokens_per_microbatch="16384", gradient_checkpointing=True)
    plan = plan_run(config, "1.5B", H200, args, model, [100], lengths=[1000] * 256)
    assert plan.budget.tokens == 16384
    assert sum(plan.bins) == 256 * 1100
    assert len(plan.bins) in (19, 20)  # 14 sequences of 1,100 tokens in a bin
    with pytest.raises(ConfigurationError, match=r"below the longest prompt, 20000"):
        plan_run(config, "1.5B", H200, args, model, [20_000], lengths=[1000] * 256)
    with pytest.raises(ConfigurationError, match=r"plan_mean_tokens=9000.*8192"):
        plan_run(config, "1.5B", H200, args, model, [100], mean_tokens=9000)


@pytest.fixture
def no_weights(monkeypatch):
    import transformers

    def loaded(*args, **kwargs):
        pytest.fail("weights were loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", loaded)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", loaded)


def planned(tmp_path, capsys, *options):
    common = ["--use_cpu", "true", "--use_vllm", "false", "--max_rows", "64", "--max_test_rows", "16", "--plan"]
    run = tmp_path / "run"
    assert r1_zero(*parse_r1_zero([*common, "--report_to", "none", "--output_dir", str(run), *options])) is None
    assert not run.exists()
    return capsys.readouterr().out


def test_nano_on_this_machine(tmp_path, capsys, no_weights):
    shown = planned(tmp_path, capsys, "--config", "nano_cpu")
    assert "2.7M parameters in float32" in shown
    assert "128 completions of 40 tokens" in shown
    assert "It fits." in shown
    total = float(re.search(r"total +([\d.]+) GiB", shown)[1])
    assert 0.05 < total < 4
    seconds = float(re.search(r"training +([\d.]+) s", shown)[1])
    assert 0.2 < seconds < 120


@pytest.mark.parametrize(("shape", "parameters"), [("1.5B", "1.54B"), ("7B", "7.62B")])
def test_shapes_from_a_folder_without_weights(tmp_path, capsys, no_weights, tiny_model, shape, parameters):
    folder = Path(tmp_path, shape)
    Qwen2Config(**SHAPES[shape], dtype="bfloat16").save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    options = ("--model_name_or_path", str(folder), "--dataset", "nano:countdown", "--dtype", "float32")
    shown = planned(tmp_path, capsys, *options, "--per_device_train_batch_size", "4", "--max_completion_length", "2048")
    assert f"{parameters} parameters in float32" in shown
    assert ("IT WILL NOT FIT" in shown) == ("It fits." not in shown)
    if shape == "7B":  # weights, reference, gradients and two moments: 142 GiB in float32
        assert "IT WILL NOT FIT" in shown
