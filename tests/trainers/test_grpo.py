"""`R1GRPOTrainer` on the tiny model: what it adds to TRL."""

import math
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from trl_r1.data.rollouts import groups, read_rollouts
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.generation.engine import ColocatedEngine
from trl_r1.trainers import R1GRPOTrainer, last_complete_checkpoint
from trl_r1.trainers.callbacks import TrainingAlarms
from trl_r1.trainers.dynamic_sampling import group_spread


def logged(trainer, name):
    return [log[name] for log in trainer.state.log_history if name in log]


def unreadable_gold_reward(completions, **kwargs):
    """No verdict for the first completion of every four."""
    return [None if i % 4 == 0 else 1.0 for i in range(len(completions))]


def constant_reward(completions, **kwargs):
    return [1.0] * len(completions)


def length_reward(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def test_one_missing_reward_leaves_the_completion_out(build_trainer):
    """Trap 13."""
    trainer = build_trainer(reward_funcs=[unreadable_gold_reward, length_reward], max_steps=1)
    seen = []
    original = trainer._calculate_rewards
    trainer._calculate_rewards = lambda *a: seen.append(original(*a)) or seen[-1]
    trainer.train()
    missing = seen[0].isnan()
    assert torch.equal(missing.all(dim=1), missing.any(dim=1))
    assert missing.all(dim=1).float().mean() == 0.25
    assert logged(trainer, "completions/unscorable") == [0.25]


def test_partial_rewards_keep_trls_convention(build_trainer):
    trainer = build_trainer(reward_funcs=[unreadable_gold_reward, length_reward], max_steps=1, partial_rewards=True)
    trainer.train()
    assert logged(trainer, "completions/unscorable") == [0.0]


def test_group_spread_ignores_what_cannot_be_scored():
    rewards = torch.tensor([[1.0], [1.0], [math.nan], [1.0], [0.0], [1.0], [0.0], [1.0], *[[math.nan]] * 4])
    assert torch.allclose(group_spread(rewards, torch.ones(1), 4), torch.tensor([0.0, 0.5, 0.0]))


def test_groups_without_spread_are_counted(build_trainer):
    trainer = build_trainer(reward_funcs=[constant_reward], max_steps=1)
    trainer.train()
    assert logged(trainer, "groups/without_spread") == [1.0]


def test_dynamic_sampling_replaces_groups_and_stops_at_its_cap(build_trainer):
    trainer = build_trainer(max_steps=2, dynamic_sampling=True, minibatches_per_rollout=1)
    plain = build_trainer(max_steps=2, minibatches_per_rollout=1)
    trainer.train(), plain.train()
    assert sum(logged(plain, "groups/without_spread")) > 0
    assert sum(logged(trainer, "groups/without_spread")) < sum(logged(plain, "groups/without_spread"))
    assert sum(logged(trainer, "groups/resampled")) > 0

    hopeless = build_trainer(
        reward_funcs=[constant_reward], max_steps=1, dynamic_sampling=True, dynamic_sampling_max_rounds=2
    )
    hopeless.train()
    assert logged(hopeless, "groups/resampled") == [16.0]  # 8 groups in the rollout, twice
    assert logged(hopeless, "groups/without_spread") == [1.0]


def test_resampled_rewards_are_those_of_the_new_completions(build_trainer):
    """After resampling, what TRL learns from is consistent: reward, completion and prompt of one row belong together."""
    trainer = build_trainer(reward_funcs=[length_reward], max_steps=1, dynamic_sampling=True, zero_spread_tolerance=1.0)
    trainer.train()
    rewards, texts = trainer._logs["rewards"]["length_reward"], trainer._logs["completion"]
    assert list(rewards) == [float(len(text)) for text in texts]
    prompts = list(trainer._logs["prompt"])
    assert all(len(set(prompts[i : i + 4])) == 1 for i in range(0, len(prompts), 4))


def test_longer_cap_from_a_step_on(build_trainer):
    trainer = build_trainer(
        max_steps=6, minibatches_per_rollout=2, longer_completions_from_step=3, longer_max_completion_length=16
    )
    trainer.train()
    # The cap switches at the first rollout boundary at or after step 3, which is step 4.
    assert logged(trainer, "completions/max_length") == [8, 8, 16]


def test_lengths_of_right_and_wrong_answers_are_logged_apart(build_trainer):
    trainer = build_trainer(max_steps=1)
    trainer.train()
    assert logged(trainer, "completions/mean_length_right")
    assert logged(trainer, "completions/mean_length_wrong")


def test_every_training_completion_is_kept_with_its_rewards(build_trainer):
    trainer = build_trainer(max_steps=4)  # two rollouts of 2 x 4 questions x 4 answers
    trainer.train()
    found = read_rollouts(trainer.args.output_dir)
    assert [one.step for one in found] == [0] * 32 + [2] * 32
    assert {len(members) for members in groups(found).values()} == {4}
    paid = [one.rewards["count_reward"] for one in found[:32]]
    assert sum(paid) / 32 == pytest.approx(logged(trainer, "rewards/count_reward/mean")[0], abs=1e-5)
    assert logged(trainer, "behaviours/repetition")
    assert not build_trainer(max_steps=1, log_rollouts=False)._rollouts


def test_sample_with_transformers(build_trainer):
    trainer = build_trainer()
    groups = trainer.sample(["question 1", "a longer question 2"], 3, max_tokens=5, seed=0)
    assert [len(group) for group in groups] == [3, 3]
    assert all(len(c.token_ids) <= 5 for group in groups for c in group)
    assert all(
        (c.finish_reason == "length") == (c.token_ids[-1] not in trainer.eos_token_ids) for g in groups for c in g
    )
    again = trainer.sample(["question 1", "a longer question 2"], 3, max_tokens=5, seed=0)
    assert [[c.token_ids for c in g] for g in groups] == [[c.token_ids for c in g] for g in again]


def in_several_turns(trainer, prompts):
    """A rollout whose last call to the engine was about other rows than TRL gets."""
    eos, count = trainer.eos_token_ids[0], len(prompts)
    trainer.vllm_generation.finish_reasons = ["stop"] * (count if trainer.rollout_func else count // 2)
    return [[5, 6]] * count, [[7, eos] if i % 4 else [7, 8] for i in range(count)]


@pytest.mark.parametrize("kind", ["tools", "rollout_func"])
def test_after_several_turns_eos_decides_what_is_truncated(build_trainer, caplog, monkeypatch, kind):
    class Engine(ColocatedEngine):
        def __init__(self):
            self.finish_reasons = []

    def loop(prompts, prompt_ids, completion_ids, completions, logprobs, *others):
        ids = in_several_turns(trainer, prompts)[1]
        return [[1] * len(one) for one in ids], completions, ids, logprobs, 0, 0, [[] for _ in prompts]

    def rollout(prompts, trainer):
        prompt_ids, completion_ids = in_several_turns(trainer, prompts)
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    trainer = build_trainer(max_steps=4)
    if kind == "tools":
        trainer.tools = [constant_reward]
        monkeypatch.setattr(trainer, "_tool_call_loop", loop)
        monkeypatch.setattr(trainer, "_generate_single_turn", lambda ids, *args, **kwargs: ([[7] for _ in ids], None))
    else:
        trainer.rollout_func = rollout
    trainer.vllm_generation = Engine()
    trainer.train()
    assert logged(trainer, "completions/truncated") == [0.25, 0.25]
    assert caplog.text.count("counts as truncated when it does not end in EOS") == 1


def test_fewer_questions_than_a_rollout_needs(build_trainer):
    with pytest.raises(DataError, match="7 questions but one rollout needs 8"):
        build_trainer(questions=7)


def test_plain_trl_config_is_refused(tmp_path):
    from trl import GRPOConfig

    args = GRPOConfig(str(tmp_path), generation_batch_size=8, num_generations=8, bf16=False)
    with pytest.raises(ConfigurationError, match="R1GRPOConfig"):
        R1GRPOTrainer(model="no/such/model", args=args)


def test_learning_rate_for_full_fine_tuning_warns_under_lora(build_trainer, lora, caplog):
    build_trainer(peft_config=lora, learning_rate=3e-6)
    assert "LoRA needs" in caplog.text


def test_alarms_are_raised_once():
    alarms = TrainingAlarms()
    state = type("State", (), {"global_step": 1, "is_world_process_zero": True})()
    for kl in (0.01, 0.01, 0.012, 0.01, 0.01):
        alarms.on_log(
            None, state, None, {"kl": kl, "entropy": 1.0, "completions/truncated": 0.1, "completions/unscorable": 0.0}
        )
    assert alarms.raised == set()
    alarms.on_log(
        None, state, None, {"kl": 0.5, "entropy": 0.01, "completions/truncated": 0.5, "completions/unscorable": 0.2}
    )
    assert alarms.raised == {"kl", "entropy", "truncated", "unscorable"}


RUN = """
    import sys, pytest
    sys.path[:0] = {path!r}
    from tests.conftest import accuracy_reward
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl_r1.trainers import R1GRPOConfig, R1GRPOTrainer
    class Announce(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            print("step", state.global_step, flush=True)
    args = R1GRPOConfig({out!r}, use_vllm=False, questions_per_step=4, minibatches_per_rollout=2, num_generations=4,
        per_device_train_batch_size=4, max_completion_length=8, max_steps=100000, num_train_epochs=10000, save_steps=2,
        report_to="none", disable_tqdm=True, gradient_checkpointing=False, save_total_limit=2)
    R1GRPOTrainer(model={model!r}, reward_funcs=[accuracy_reward], args=args, callbacks=[Announce()],
        train_dataset=Dataset.from_dict({{"prompt": [f"question {{i}}" for i in range(24)]}}),
        processing_class=AutoTokenizer.from_pretrained({model!r}, padding_side="left")).train()
    print("stopped", flush=True)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_an_interrupted_run_leaves_a_resumable_checkpoint(tiny_model, tmp_path, sent):
    from pathlib import Path

    root = str(Path(__file__).parents[2])
    code = textwrap.dedent(RUN.format(path=[root], out=str(tmp_path), model=tiny_model))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 5"):  # in the middle of a rollout of two updates
            process.send_signal(sent)
            break
    rest = process.stdout.read()
    process.wait(timeout=120)
    checkpoint = last_complete_checkpoint(tmp_path)
    assert checkpoint is not None
    step = int(checkpoint.rsplit("-", 1)[1])
    assert step % 2 == 0
    assert step >= 4
    assert ("stopped" in rest) == (sent == signal.SIGINT)


def test_ctrl_c_is_what_it_was_after_a_training_that_failed(build_trainer):
    def failing(completions, **kwargs):
        assert signal.getsignal(signal.SIGINT) is not before  # while it trains, it asks for a checkpoint
        raise RuntimeError("no such reward server")

    before = signal.getsignal(signal.SIGINT)
    trainer = build_trainer(reward_funcs=[failing])
    with pytest.raises(RuntimeError, match="no such reward server"):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_reward_pool_scores_in_its_workers_before_it_is_asked(build_trainer, monkeypatch, caplog):
    from trl_r1.rewards import RewardPool, format_reward

    def rewards_of(reward):
        trainer = build_trainer(reward_funcs=[reward], max_steps=2)
        trainer.train()
        return [log["rewards/format_reward/mean"] for log in trainer.state.log_history if "reward" in log]

    submitted = []
    pool = RewardPool(format_reward, workers=1)
    submit = pool.submit
    monkeypatch.setattr(pool, "submit", lambda *args, **kwargs: submitted.append(1) or submit(*args, **kwargs))
    try:
        assert rewards_of(pool) == rewards_of(format_reward)
    finally:
        pool.close()
    assert submitted
    assert "computed anew" not in caplog.text
