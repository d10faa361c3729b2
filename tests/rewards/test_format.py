import pickle

from trl_r1.rewards import format_reward, think_format_reward

STRICT = "<think> a </think> <answer> 72 </answer>"
SUMMARY = "<think> a </think> The answer is 72."


def test_strict_and_think_only():
    """Trap 1."""
    assert format_reward([STRICT, SUMMARY, "72"], reference=["1"] * 3) == [1.0, 0.0, 0.0]
    assert think_format_reward([STRICT, SUMMARY, "72"], reference=["1"] * 3) == [1.0, 1.0, 0.0]


def test_messages_and_prefill():
    message = [[{"role": "assistant", "content": STRICT.removeprefix("<think>")}]]
    assert format_reward(message) == [0.0]
    assert format_reward(message, prefill=["<think>\n"]) == [1.0]
    assert think_format_reward(message, prefill=["<think>\n"]) == [1.0]


def test_picklable():
    for reward in (format_reward, think_format_reward):
        assert pickle.loads(pickle.dumps(reward)) is reward
