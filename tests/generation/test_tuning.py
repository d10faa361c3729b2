"""What the engine is told on a GPU, and how options lie over each other; the batched copy of whole weights."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from trl_r1.exceptions import ConfigurationError
from trl_r1.generation import options as options_module
from trl_r1.generation import tuning
from trl_r1.generation.copies import CopyPlan
from trl_r1.generation.options import check_options, platform_options

from .conftest import tiny_config


def test_graphs_cover_the_batch_and_its_tail():
    sizes = tuning.graph_sizes(300)
    assert sizes[-1] == 300
    assert sizes[:4] == [1, 2, 4, 8]
    assert all(later - earlier <= max(8, earlier // 4) for earlier, later in itertools.pairwise(sizes))
    assert tuning.graph_sizes(3) == [1, 2, 3]
    assert tuning.graph_sizes(100_000)[-1] == 2048


def test_prefill_budget_follows_the_free_memory():
    config = tiny_config(hidden_size=4096, intermediate_size=16384)
    budgets = [tuning.prefill_tokens(config, gib << 30, 64) for gib in (1, 100, 150, 1000)]
    assert budgets[0] == 4096  # never below TRL's
    assert budgets[0] < budgets[1] < budgets[2] < budgets[3] == 16384
    assert tuning.prefill_tokens(config, 1 << 30, 9000) == 9216  # a step holds a token of each sequence


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(options_module, "on_cpu", lambda: False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (80 << 30, 80 << 30))


def test_a_gpu_gets_scheduling_graphs_and_a_budget(policy, on_gpu):
    chosen = platform_options(policy("tied"), "no", max_num_seqs=96)
    assert chosen["async_scheduling"] is True
    assert chosen["compilation_config"]["cudagraph_capture_sizes"][-1] == 96
    assert chosen["max_num_batched_tokens"] == 16384
    assert platform_options(policy("tied"), "bf16")["hf_overrides"] == {"head_dtype": "float32"}


def test_choices_depend_on_the_users_own_options(policy, on_gpu):
    given = {"enforce_eager": True, "speculative_config": {"method": "ngram"}, "max_num_seqs": 20_000}
    chosen = platform_options(policy("tied"), "no", max_num_seqs=96, options=given)
    assert "compilation_config" not in chosen
    assert "async_scheduling" not in chosen
    assert chosen["max_num_batched_tokens"] == 20224


def test_the_users_options_lie_on_top_and_mappings_are_merged():
    below = {
        "async_scheduling": True,
        "compilation_config": {"cudagraph_capture_sizes": [1, 2]},
        "hf_overrides": {"a": 1},
    }
    merged = tuning.merged_options(below, {"async_scheduling": False, "compilation_config": {"mode": 0}}, {"x": 1})
    assert merged["async_scheduling"] is False
    assert merged["compilation_config"] == {"cudagraph_capture_sizes": [1, 2], "mode": 0}
    assert (merged["hf_overrides"], merged["x"]) == ({"a": 1}, 1)
    own = tuning.merged_options(below, {"compilation_config": {"max_cudagraph_capture_size": 8}})
    assert own["compilation_config"] == {"max_cudagraph_capture_size": 8}
    assert below["compilation_config"] == {"cudagraph_capture_sizes": [1, 2]}


@pytest.mark.parametrize("option", [{"quantization": "fp8"}, {"kv_cache_dtype": "fp8"}])
def test_coarser_engines_need_importance_correction(option):
    check_options(option)
    with pytest.raises(ConfigurationError, match="vllm_importance_sampling_correction"):
        check_options(option, correction=False)
    check_options({"kv_cache_dtype": "auto"}, correction=False)


class Fused(torch.nn.Module):
    """Loads as vLLM's models do: q, k and v into one weight, the embedding into a padded one."""

    def __init__(self):
        super().__init__()
        self.fused = torch.nn.Parameter(torch.zeros(12, 4, dtype=torch.bfloat16), requires_grad=False)
        self.embedding = torch.nn.Parameter(torch.ones(10, 4, dtype=torch.bfloat16), requires_grad=False)
        self.loads = 0

    def load_weights(self, weights):
        self.loads += 1
        for name, tensor in weights:
            if name == "embedding":
                self.embedding[:8].data.copy_(tensor)
                self.embedding[8:].data.fill_(0)
            else:
                self.fused.data.narrow(0, {"q": 0, "k": 4, "v": 8}[name], 4).copy_(self.read(tensor))

    def read(self, tensor):
        return tensor


class Policy(torch.nn.Module):
    """The trainer's side: the same weights under the checkpoint's names."""

    def __init__(self):
        super().__init__()
        for name, rows in {"q": 4, "k": 4, "v": 4, "embedding": 8}.items():
            self.register_parameter(name, torch.nn.Parameter(torch.randn(rows, 4), requires_grad=False))

    def named(self):
        return ((name, parameter.data) for name, parameter in self.named_parameters())

    def is_in(self, model):
        fused = torch.cat([self.q, self.k, self.v]).bfloat16()
        return torch.equal(model.fused, fused) and torch.equal(model.embedding[:8], self.embedding.bfloat16())


def test_copies_are_repeated_without_loading_again():
    model, policy = Fused(), Policy()
    plan = CopyPlan.record(policy, model, policy.named())
    assert not plan.repeat()  # it has not been shown where the weights lie
    plan(policy.named())
    for parameter in policy.parameters():
        parameter.add_(1)
    assert not policy.is_in(model)
    assert plan.repeat()
    assert policy.is_in(model)
    assert model.loads == 1
    assert not model.embedding[8:].any()


@pytest.mark.parametrize("how", ["data", "parameter"])
def test_a_weight_that_lies_elsewhere_is_noticed(how):
    model, policy = Fused(), Policy()
    plan = CopyPlan.record(policy, model, policy.named())
    plan(policy.named())
    if how == "data":
        policy.k.data = policy.k.data + 1
    else:
        policy.k = torch.nn.Parameter(policy.k + 1, requires_grad=False)
    assert not plan.repeat()
    plan(policy.named())
    assert plan.repeat()
    assert policy.is_in(model)


@pytest.mark.parametrize("change", [lambda tensor: tensor * 2, lambda tensor: tensor[:, :2].repeat(1, 2)])
def test_a_load_that_does_more_than_copy_is_not_repeated(change):
    model, policy = Fused(), Policy()
    model.read = change
    assert CopyPlan.record(policy, model, policy.named()) is None


def test_a_load_that_leaves_something_out_is_not_repeated():
    policy = Policy()
    model = SimpleNamespace(load_weights=lambda given: None)
    assert CopyPlan.record(policy, model, policy.named()) is None
