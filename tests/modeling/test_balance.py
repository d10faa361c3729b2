"""Bins of equal cost: every sequence once, within the budget, the same number for every rank."""

import random
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, Qwen2Config

from trl_r1.exceptions import ConfigurationError
from trl_r1.modeling.attention import choose_attention
from trl_r1.modeling.balance import SequenceCost, balanced_bins, karmarkar_karp


def test_cost_is_the_formula():
    config = Qwen2Config(
        vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    cost = SequenceCost.of(config)
    backbone = 3 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128)
    assert cost.backbone == backbone
    assert cost(100, 60) == 2 * backbone * 100 + 2 * 3 * 64 * 100**2 + 2 * 1000 * 64 * 60


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_karmarkar_karp_beats_counts(parts):
    rng = random.Random(0)
    costs = [rng.lognormvariate(0, 1) for _ in range(64)]
    sets = karmarkar_karp(costs, parts)
    assert sorted(i for items in sets for i in items) == list(range(64))
    sums = [sum(costs[i] for i in items) for items in sets]
    assert max(sums) <= 1.02 * sum(costs) / parts
    by_count = [sum(costs[i] for i in range(part, 64, parts)) for part in range(parts)]
    assert max(sums) <= max(by_count) + 1e-9


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("budget", [300, 1000, 10_000])
def test_bins_hold_everything_once_within_the_budget(ranks, budget):
    rng = random.Random(ranks)
    tokens = [rng.randint(5, 400) for _ in range(50)]
    costs = [float(t + t * t / 200) for t in tokens]
    shared = balanced_bins(tokens, costs, budget, ranks)
    assert len(shared) == ranks
    assert len({len(bins) for bins in shared}) == 1  # collectives would hang otherwise
    flat = sorted(i for bins in shared for items in bins for i in items)
    assert flat == list(range(50))
    for bins in shared:
        for items in bins:
            assert len(items) == 1 or sum(tokens[i] for i in items) <= budget
    loads = [sum(costs[i] for items in bins for i in items) for bins in shared]
    assert max(loads) <= 1.15 * sum(loads) / ranks


def test_fewer_sequences_than_ranks_leave_empty_bins():
    assert balanced_bins([5], [1.0], 10, 4) == [[[0]], [[]], [[]], [[]]]
    assert balanced_bins([], [], 10, 2) == [[[]], [[]]]


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ConfigurationError, match="holds nothing"):
        balanced_bins([5], [1.0], 0)


@pytest.mark.parametrize("family", ["mamba", "gemma4_text"])
def test_sizes_that_are_not_stated_are_refused_plainly(family):
    config = AutoConfig.for_model(family)
    with pytest.raises(ConfigurationError, match="The sizes of a model cannot be read from its"):
        SequenceCost.of(config)
    model = SimpleNamespace(config=config)
    assert choose_attention(model, torch.device("cuda"), torch.bfloat16).kind == "padded"


def test_a_cost_by_tokens_counts_nothing_else():
    cost = SequenceCost.by_tokens()
    assert cost(300, 10) == cost(300, 200) == 3 * cost(100, 50)
