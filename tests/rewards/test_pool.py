import functools
import logging
import math
import os
import pickle
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.rewards import accuracy_reward, format_reward
from trl_r1.rewards.pool import RewardPool, warm_up
from trl_r1.verifiers import math as math_verifier
from trl_r1.workers import Limits, WorkerError, WorkerPool

ANSWERS = ["72", "\\frac{1}{2}", "x+1", "(3, \\pi)", "\\text{Tuesday}", "12\\%"]
GOLD = ["72", "0.5", "1+x", "\\left(3,\\pi\\right)", "\\text{Tuesday}", "0.12"]


def completion(answer):
    return f"<think> so \\boxed{{0}} is wrong </think> <answer> \\boxed{{{answer}}} </answer>"


def loops_on_request(completions, **kwargs):
    for text in completions:
        if "loop" in text:
            math.comb(10**8, 5 * 10**7)  # hours, in one call into C
        if "wait" in text:
            time.sleep(60)
        if "raise" in text:
            raise KeyError("missing")
    return [float("right" in text) for text in completions]


def scored_at(completions, gate=None, **kwargs):
    end = time.monotonic() + 15
    while gate and not Path(gate[0]).exists() and time.monotonic() < end:
        time.sleep(0.01)
    return [time.monotonic()]


def number_of_ids(completions, completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


def names_of_columns(completions, log_extra=None, log_metric=None, trainer_state=None, **kwargs):
    log_extra("columns", [",".join(sorted(kwargs))])
    log_metric("characters", len(completions[0]))
    return [float(trainer_state.global_step)]


def two_values(completions, **kwargs):
    return [0.0, 1.0]


def state_of_worker(completions, **kwargs):
    """Whether torch is loaded, and how many gold answers were parsed in this process."""
    assert "torch" not in sys.modules
    return [float(math_verifier._read_gold.cache_info().misses)]


@pytest.fixture(scope="module")
def workers():
    limits = Limits(item_seconds=5, item_wall_seconds=20, batch_seconds=60)
    with WorkerPool(2, limits, initializer=warm_up) as workers:
        yield workers.start()


@pytest.fixture(scope="module")
def unreliable():
    limits = Limits(item_seconds=0.5, item_wall_seconds=20, batch_seconds=60)
    with WorkerPool(2, limits) as workers:
        yield RewardPool(loops_on_request, workers).start()


def test_rewards_equal_the_serial_ones(workers):
    completions = [completion(answer) for answer in ANSWERS * 7]
    references = [GOLD[(i * i + i // 6) % len(GOLD)] for i in range(len(completions))]
    columns = {"reference": references, "prefill": None, "domain": ["math"] * len(references), "verifier": None}
    serial = accuracy_reward(completions, **columns)
    assert {1.0, 0.0, None} == set(serial)
    pooled = RewardPool(accuracy_reward, workers)
    assert pooled(completions=completions, prompts=["?"] * len(completions), **columns) == serial
    messages = [[{"role": "assistant", "content": text}] for text in completions]
    assert pooled(completions=messages, **columns) == serial
    prefilled = [text.removeprefix("<think>") for text in completions]
    assert pooled(prefilled, **columns | {"prefill": "<think>"}) == serial
    assert pooled([], reference=[]) == []


def test_it_is_a_reward_like_any_other(workers):
    reward = RewardPool(format_reward, workers)
    assert reward.__name__ == "format_reward"
    copy = pickle.loads(pickle.dumps(RewardPool(format_reward, WorkerPool(1))))
    with copy.workers:
        assert copy(["<think> a </think> <answer> 72 </answer>", "72"]) == [1.0, 0.0]


def test_a_stuck_answer_is_wrong_and_delays_nothing_else(unreliable, caplog):
    """Trap 8."""
    texts = ["right", "wrong"] * 10
    with caplog.at_level(logging.WARNING):
        start = time.monotonic()
        rewards = unreliable([*texts, "right, but loops: loop", *texts])
        seconds = time.monotonic() - start
    assert rewards == [1.0, 0.0] * 10 + [0.0] + [1.0, 0.0] * 10
    assert seconds < 10  # not hours; how much less, `benchmarks/rewards.py` tells, which has the machine to itself
    assert "1 of 41 completions failed (1 by deadline)" in caplog.text
    assert "loops: loop" in caplog.text
    assert RewardPool(loops_on_request, unreliable.workers, failed=None)(["loop", "right"]) == [None, 1.0]


def test_the_rewards_own_error_is_raised(unreliable):
    with pytest.raises(WorkerError, match="KeyError: 'missing'"):
        unreliable(["right", "please raise"])
    with pytest.raises(WorkerError, match="2 values for 1 completion"):
        RewardPool(two_values, unreliable.workers)(["a"])
    assert unreliable(["right"]) == [1.0]


def test_submitted_early_collected_later(workers, caplog, tmp_path):
    reward = RewardPool(scored_at, workers)
    texts, gate = ["a text", "another"], tmp_path / "open"
    columns = {"prompts": ["a", "b"], "reference": ["1", "2"], "gate": [str(gate)] * 2}
    start = time.monotonic()
    reward.submit(texts, **columns)
    batch = reward._submitted[1]
    assert not batch.done()  # `submit` waits for nothing
    gate.touch()
    while not batch.done() and time.monotonic() < start + 60:  # the trainer's other passes
        time.sleep(0.05)
    collected = time.monotonic()
    times = reward(completions=["".join(text) for text in texts], **columns)
    assert all(start < scored < collected for scored in times)
    assert reward(completions=texts, **columns)[0] > collected  # collected once; this is another call
    assert caplog.text == ""


def test_what_was_not_submitted_is_computed(unreliable, caplog):
    unreliable.submit(["right", "wrong"], reference=["1", "2"])
    assert unreliable(["wrong", "right"], reference=["1", "2"]) == [0.0, 1.0]
    assert "not what was submitted" in caplog.text
    assert unreliable(["right"]) == [1.0]


def test_batch_deadline_gives_none():
    with WorkerPool(1, Limits(item_seconds=30, batch_seconds=0.7)) as one:
        reward = RewardPool(loops_on_request, one)
        while reward(["right"]) == [None]:  # until the worker has imported this module
            pass
        assert reward(["right", "wait", "right"]) == [1.0, None, None]


def test_what_the_trainer_passes(workers):
    extras, metrics = {}, {}
    reward = RewardPool(names_of_columns, workers)
    rewards = reward(
        completions=["aa", "bbbb"],
        prompts=["x", "y"],
        completion_ids=[[1], [2]],
        reference=["1", "2"],
        trainer_state=SimpleNamespace(global_step=7, log_history=[os]),  # what does not pickle, too
        log_extra=extras.__setitem__,
        log_metric=metrics.__setitem__,
    )
    assert rewards == [7.0, 7.0]
    assert extras == {"columns": ["prompts,reference"] * 2}
    assert metrics == {"characters": 3.0, "names_of_columns/failed": 0.0}
    assert RewardPool(number_of_ids, workers)(["a", "b"], completion_ids=[[1], [1, 2]]) == [1.0, 2.0]
    answers = {}
    RewardPool(accuracy_reward, workers)([completion("5")], reference=["5"], log_extra=answers.__setitem__)
    assert answers == {"answer": ["5"], "reference": ["5"]}


def test_gold_answers_are_parsed_once_and_without_torch():
    with WorkerPool(1, initializer=warm_up) as one:
        reward, state = RewardPool(accuracy_reward, one), RewardPool(state_of_worker, one)
        before = state(["?"])[0]
        for step in range(3):
            texts = [completion(f"{step}{i}") for i in range(16)]
            reward(texts, reference=[GOLD[i % len(GOLD)] for i in range(16)])
        assert state(["?"])[0] - before == len(GOLD)


def test_bad_input(workers):
    for function in (lambda completions, **kwargs: [0.0], functools.partial(lambda x: x)):
        with pytest.raises(ConfigurationError, match="top level of a module"):
            RewardPool(function)
    with pytest.raises(ConfigurationError, match="not 'accuracy'"):
        RewardPool("accuracy")
    with pytest.raises(ConfigurationError, match="has limits already"):
        RewardPool(accuracy_reward, workers, limits=Limits())
    reward = RewardPool(accuracy_reward, workers)
    with pytest.raises(DataError, match="'reference' has 1 values for 2 completions"):
        reward(["a", "b"], reference=["1"])
    with pytest.raises(ConfigurationError, match="environments"):
        reward(["a"], reference=["1"], environments=[object()])
