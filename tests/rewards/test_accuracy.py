import pickle

import pytest

from trl_r1.exceptions import DataError
from trl_r1.rewards import accuracy_reward

GOLD = "<think> a </think> <answer> 72 </answer>"


def test_strings_and_messages_score_alike():
    """Trap 13."""
    texts = [GOLD, "<think> \\boxed{72} </think> <answer> 7 </answer>", "72", "<think> a </think> Thus \\boxed{72}."]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    for completions in (texts, messages):
        assert accuracy_reward(completions=completions, prompts=[""] * 4, reference=["72"] * 4) == [1.0, 0.0, 0.0, 1.0]


def test_accuracy_does_not_need_the_form():
    assert accuracy_reward(["oops </think> x <answer> 72 </answer> y"], reference=["72"]) == [1.0]


def test_prefill_is_told():
    """Trap 2."""
    text = ["\\boxed{72} is what I think"]
    assert accuracy_reward(text, reference=["72"]) == [1.0]
    assert accuracy_reward(text, reference=["72"], prefill=["<think>\n"]) == [0.0]
    assert accuracy_reward(text, reference=["72"], prefill="<think>\n") == [0.0]
    assert accuracy_reward(text, reference=["72"], prefill=[None]) == [1.0]


def test_none_where_nothing_can_tell():
    """Trap 4."""
    rewards = accuracy_reward(
        [GOLD] * 5,
        reference=["72", "\\text{Tuesday}", "", "{}", "73"],
        domain=["math", "math", "general", "code", None],
        verifier=None,
    )
    assert rewards == [1.0, None, None, None, 0.0]


def test_each_row_by_its_own_verifier():
    completions = [f"<think> a </think> <answer> {x} </answer>" for x in ("B", "3 + 4", "Tuesday")]
    columns = {
        "reference": ["B", '{"numbers": [3, 4], "target": 7}', "tuesday"],
        "domain": ["stem", "logic", "logic"],
        "verifier": [None, "expression", None],
    }
    assert accuracy_reward(completions, **columns) == [1.0, 1.0, 1.0]


def test_columns_of_other_libraries_and_none_at_all():
    assert accuracy_reward([GOLD], solution=["$72$"]) == [1.0]
    with pytest.raises(DataError, match=r"'reference'.*question"):
        accuracy_reward([GOLD], question=["?"], trainer_state=object())


def test_the_table_of_completions_gets_answers():
    logged = {}
    accuracy_reward([GOLD, "x"], reference=["72", "72"], log_extra=logged.__setitem__)
    assert logged == {"answer": ["72", ""], "reference": ["72", "72"]}


def test_picklable():
    """Trap 13."""
    assert pickle.loads(pickle.dumps(accuracy_reward)) is accuracy_reward
