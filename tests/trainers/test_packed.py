"""The packed step against stock TRL: the same loss and gradient for every loss, however rows are grouped."""

import random

import pytest
import torch
from stored_rollouts import assert_same
from trl import GRPOTrainer

from trl_r1.trainers import R1GRPOTrainer, bins

BUDGET = 40  # two to four rows; TRL's micro-batch has four
LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]


@pytest.mark.parametrize("loss_type", LOSSES)
def test_any_grouping_gives_the_stock_loss_and_gradient(step, loss_type):
    settings = {"loss_type": loss_type, "beta": 0.05, "minibatches_per_rollout": 2}
    stock_log, stock, _ = step(GRPOTrainer, **settings)
    log, ours, trainer = step(R1GRPOTrainer, **settings, packing="sdpa", max_tokens_per_microbatch=BUDGET)
    assert trainer._regroups
    assert_same(ours, stock)
    assert log[0]["loss"] == pytest.approx(stock_log[0]["loss"], abs=1e-6)
    assert log[1]["loss"] == pytest.approx(stock_log[1]["loss"], abs=1e-5)
    for our_entry, entry in zip(log, stock_log, strict=True):
        assert our_entry["microbatch/count"] > 4  # TRL's is 4
        for name in ("kl", "entropy"):
            if loss_type != "bnpo":
                assert our_entry[name] == pytest.approx(entry[name], rel=0.05)


def random_bins(seed):
    """A stand-in for `balanced_bins`: any rows together, in any order, in bins of any size."""
    generator = random.Random(seed)

    def part(tokens, costs, budget, ranks=1):
        shares = []
        for rank in range(ranks):
            items = list(range(rank, len(tokens), ranks))
            generator.shuffle(items)
            cuts = sorted(generator.sample(range(1, len(items)), min(generator.randint(1, 9), len(items) - 1)))
            shares.append([items[i:j] for i, j in zip([0, *cuts], [*cuts, len(items)], strict=True)])
        return shares

    return part


@pytest.mark.parametrize(("rollout_seed", "loss_type"), list(enumerate([*LOSSES, "r1"], start=1)))
def test_random_repartitions_and_other_budgets_give_the_stock_step(step, monkeypatch, loss_type, rollout_seed):
    settings = {"loss_type": loss_type, "beta": 0.05, "max_steps": 1, "rollout_seed": rollout_seed}
    if loss_type == "r1":  # TRL has no such loss: ours in TRL's micro-batches
        stock_log, stock, _ = step(R1GRPOTrainer, **settings, packing="none", max_tokens_per_microbatch=None)
    else:
        stock_log, stock, _ = step(GRPOTrainer, **settings)
    counts = []
    for budget, seed in ((24, None), (90, None), (BUDGET, 0), (BUDGET, 1)):
        with monkeypatch.context() as patch:
            if seed is not None:
                patch.setattr(bins, "balanced_bins", random_bins(seed))
            log, ours, trainer = step(R1GRPOTrainer, **settings, packing="sdpa", max_tokens_per_microbatch=budget)
        assert trainer._regroups
        assert_same(ours, stock)
        assert log[0]["loss"] == pytest.approx(stock_log[0]["loss"], abs=1e-6)
        counts.append(log[0]["microbatch/count"])
    assert len(set(counts)) > 1  # these were groupings of different sizes


@pytest.mark.parametrize(
    "settings",
    [
        {"importance_sampling_level": "sequence"},
        {"delta": 1.2, "epsilon": 0.2},
        {"off_policy_mask_threshold": 0.1},
        {"mask_truncated_completions": True},
        {"scale_rewards": "none"},
        {"temperature": 0.7},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_options_of_trl_keep_their_meaning(step, settings):
    settings = {"minibatches_per_rollout": 2, "beta": 0.05} | settings
    _, stock, _ = step(GRPOTrainer, **settings)
    _, ours, _ = step(R1GRPOTrainer, **settings, packing="sdpa", max_tokens_per_microbatch=BUDGET)
    assert_same(ours, stock)


def test_metrics_of_sequences_are_the_same_for_any_grouping(step):
    settings = {"importance_sampling_level": "sequence", "epsilon": 0.001, "minibatches_per_rollout": 2}
    stock_log, _, _ = step(GRPOTrainer, **settings)
    log, _, _ = step(
        R1GRPOTrainer, **settings, packing="sdpa", max_tokens_per_microbatch=50, skip_zero_advantages=False
    )
    assert stock_log[1]["clip_ratio/region_mean"] > 0
    assert log[1]["clip_ratio/region_mean"] == pytest.approx(stock_log[1]["clip_ratio/region_mean"], abs=1e-6)


@pytest.mark.parametrize("budget", [None, BUDGET])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "r1"])
def test_what_a_stop_string_ended_is_not_masked(step, loss_type, budget):
    """TRL goes by EOS, which a stop string leaves out: the finish reasons decide."""
    settings = {"loss_type": loss_type, "beta": 0.05, "packing": "sdpa", "max_tokens_per_microbatch": budget}

    def finished(cut):
        def prepare(trainer):
            generate = trainer._generate

            def reported(prompts):
                output = generate(prompts)
                trainer.truncated = [row < cut for row in range(len(prompts))]
                return output

            trainer._generate = reported

        return prepare

    _, whole, _ = step(R1GRPOTrainer, **settings)
    _, kept, _ = step(R1GRPOTrainer, **settings, prepare=finished(0), mask_truncated_completions=True)
    assert_same(kept, whole)
    log, _, _ = step(R1GRPOTrainer, **settings, prepare=finished(32), mask_truncated_completions=True)
    assert log[0]["grad_norm"] == 0.0


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
@pytest.mark.parametrize("budget", [None, BUDGET])
def test_ratio_to_the_engine_without_a_pass_of_its_own(step, mode, budget):
    settings = {
        "corrects": True, "vllm_importance_sampling_mode": mode, "minibatches_per_rollout": 1,
        "vllm_importance_sampling_clip_min": 0.2, "vllm_importance_sampling_clip_max": 1.1, "questions_per_step": 8,
    }  # fmt: skip
    stock_log, stock, _ = step(GRPOTrainer, **settings)
    ours_settings = {"packing": "sdpa", "max_tokens_per_microbatch": budget, "skip_zero_advantages": False}
    log, ours, _ = step(R1GRPOTrainer, **settings, **ours_settings)
    assert_same(ours, stock)
    if budget is None:
        return  # what is logged is then averaged over TRL's micro-batches, not over the rollout
    names = [f"sampling/sampling_logp_difference/{part}" for part in ("mean", "max")]
    names += [f"sampling/importance_sampling_ratio/{part}" for part in ("min", "mean", "max")]
    for name in names:
        assert log[0][name] == pytest.approx(stock_log[0][name], rel=1e-3), name


def test_on_policy_saves_the_pass_for_the_ratio(step, monkeypatch):
    passes = []
    original = R1GRPOTrainer._get_per_token_logps_and_entropies

    def counted(self, *args, **kwargs):
        passes.append(torch.is_grad_enabled())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(R1GRPOTrainer, "_get_per_token_logps_and_entropies", counted)
    settings = {"corrects": True, "minibatches_per_rollout": 1, "questions_per_step": 8, "max_steps": 1}
    step(R1GRPOTrainer, **settings)
    assert passes
    assert all(passes)
    passes.clear()
    step(R1GRPOTrainer, **settings, skip_old_logps=False)
    assert not all(passes)
    passes.clear()
    step(R1GRPOTrainer, **(settings | {"minibatches_per_rollout": 2, "questions_per_step": 4}))  # not on-policy
    assert not all(passes)


def test_rows_without_advantage_are_left_out_exactly(step, monkeypatch):
    calls = []
    original = R1GRPOTrainer._packed_logps

    def counted(self, model, input_ids, *args):
        calls.append(input_ids.size(0))
        return original(self, model, input_ids, *args)

    monkeypatch.setattr(R1GRPOTrainer, "_packed_logps", counted)
    settings = {"reward_funcs": [reward_of_half_the_groups], "minibatches_per_rollout": 1, "questions_per_step": 8}
    _, stock, _ = step(GRPOTrainer, **settings)
    _, ours, _ = step(R1GRPOTrainer, **settings, packing="sdpa", max_tokens_per_microbatch=BUDGET)
    learnt = sum(calls)
    calls.clear()
    _, all_rows, _ = step(
        R1GRPOTrainer, **settings, packing="sdpa", max_tokens_per_microbatch=BUDGET, skip_zero_advantages=False
    )
    assert_same(ours, stock)
    assert_same(all_rows, stock)
    assert learnt < 0.7 * sum(calls)


def reward_of_half_the_groups(completions, **kwargs):
    """Spread in every other group of four only."""
    return [float(index % 4 == 0 and index // 4 % 2) for index in range(len(completions))]


def test_r1s_own_loss_is_the_same_for_any_grouping(step):
    settings = {"loss_type": "r1", "beta": 0.05, "packing": "sdpa", "minibatches_per_rollout": 2}
    log, whole, _ = step(R1GRPOTrainer, **settings, max_tokens_per_microbatch=None)
    other_log, parted, _ = step(R1GRPOTrainer, **settings, max_tokens_per_microbatch=50)
    assert_same(parted, whole)
    for name in ("loss", "kl", "ratio/sequence_mean"):
        assert log[0][name] == pytest.approx(other_log[0][name], abs=1e-6)
    assert log[1]["kl"] == pytest.approx(other_log[1]["kl"], rel=1e-3)  # at step 0 the policy is its reference


def test_a_long_sequence_is_announced_once(step, caplog):
    step(R1GRPOTrainer, packing="sdpa", max_tokens_per_microbatch=12)
    assert caplog.text.count("longer than max_tokens_per_microbatch=12") == 1


def test_lora(step, lora):
    settings = {"beta": 0.05, "peft_config": lora, "sync_ref_model": False}
    _, stock, _ = step(GRPOTrainer, **settings)
    _, ours, _ = step(R1GRPOTrainer, **settings, packing="sdpa", max_tokens_per_microbatch=BUDGET)
    assert_same(ours, stock)


def test_gradient_checkpointing(step):
    settings = {"gradient_checkpointing": True}
    _, stock, _ = step(GRPOTrainer, **settings)
    _, ours, _ = step(R1GRPOTrainer, **settings, packing="sdpa", max_tokens_per_microbatch=BUDGET)
    assert_same(ours, stock)
