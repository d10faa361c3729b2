"""Each row to its domain's rewards, by step; the parts' `None`s, tables and metrics put together again."""

import pickle
from types import SimpleNamespace

import pytest

from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.prompts import PromptTemplate
from trl_r1.rewards import (
    LanguageConsistencyReward,
    RewardRouter,
    Schedule,
    SoftOverlongReward,
    accuracy_reward,
    check_template,
    format_reward,
)
from trl_r1.rows import Row

GOLD = "<think> a </think> <answer> 3 </answer>"
RIGHT = "<think> a </think> \\boxed{3}"


def length_reward(completions, tokens, trainer_state=None, **kwargs):
    """A user's reward: the columns it is given are those of its own rows."""
    assert len(tokens) == len(completions) == len(kwargs["domain"])
    assert set(kwargs["domain"]) == {"general"}
    return [float(value) for value in tokens]


def none_reward(completions, **kwargs):
    return [None] * len(completions)


def short_reward(completions, **kwargs):
    return [1.0]


async def async_reward(completions, **kwargs):
    return [1.0] * len(completions)


def at(step):
    return SimpleNamespace(global_step=step)


def test_rows_go_to_their_domain():
    router = RewardRouter(
        {"math": {"accuracy": 1.0, "format": 0.5}, "general": {length_reward: 0.1}, "default": {format_reward: 2}}
    )
    texts = [GOLD, RIGHT, GOLD, GOLD, "wrong"]
    columns = {
        "reference": ["3", "3", "", "", "3"],
        "domain": ["math", None, "general", "logic", "math"],
        "tokens": [0, 0, 7, 0, 0],
    }
    for completions in (texts, [[{"role": "assistant", "content": text}] for text in texts]):
        assert router(completions=completions, prompts=["q"] * 5, **columns) == pytest.approx([1.5, 1.0, 0.7, 2.0, 0.0])
    assert router([GOLD], reference=["3"], domain="math") == [1.5]
    assert router([GOLD], reference=["3"]) == [1.5]


def test_trap_13_one_none_makes_the_row_none():
    router = RewardRouter({"math": {"accuracy": 1.0, "format": 1.0}, "general": {none_reward: 1.0, "format": 1.0}})
    scores = router([GOLD] * 3, reference=["3", "\\text{Tuesday}", ""], domain=["math", "math", "general"])
    assert scores == [2.0, None, None]


def test_weights_by_training_step():
    """R1: general prompts' rewards enter only in the last 400 of 1,700 steps."""
    calls = []

    router = RewardRouter(
        {"math": {"accuracy": 1.0, "format": {0: 1.0, 100: 0.0}}, "general": {"format": Schedule({1300: 0.5})}}
    )
    columns = {"reference": ["3", ""], "domain": ["math", "general"], "log_metric": lambda name, _: calls.append(name)}
    assert router([GOLD] * 2, trainer_state=at(0), **columns) == [2.0, None]
    assert router([GOLD] * 2, trainer_state=at(99), **columns) == [2.0, None]
    assert router([GOLD] * 2, trainer_state=at(100), **columns) == [1.0, None]
    calls.clear()
    assert router([GOLD] * 2, trainer_state=at(1300), **columns) == [1.0, 0.5]
    # A reward of weight 0 is not called.
    assert calls == ["routed_reward/math/accuracy_reward", "routed_reward/general/format_reward"]
    with pytest.raises(ConfigurationError, match="trainer_state"):
        router([GOLD] * 2, reference=["3", ""], domain=["math", "general"])


def test_tables_and_metrics_of_the_parts():
    logged, metrics = {}, {}
    router = RewardRouter(
        {"math": {"accuracy": 1.0}, "stem": {"accuracy": 1.0}, "general": {"format": 1.0}}, name="mixed"
    )
    router(
        [RIGHT, GOLD, "<think> a </think> (B)", "4"],
        reference=["3", "", "B", "3"],
        domain=["math", "general", "stem", "math"],
        log_extra=logged.__setitem__,
        log_metric=metrics.__setitem__,
    )
    assert logged == {"answer": ["3", "", "(B)", ""], "reference": ["3", "", "B", "3"]}
    assert metrics == {
        "mixed/math/accuracy_reward": 0.5,
        "mixed/stem/accuracy_reward": 1.0,
        "mixed/general/format_reward": 1.0,
    }


def test_named_and_picklable():
    routes = {"math": {accuracy_reward: 1.0, LanguageConsistencyReward(target="en"): Schedule({5: 0.5})}}
    router = pickle.loads(pickle.dumps(RewardRouter(routes, name="mine")))
    assert router.__name__ == "mine"
    text = "<think> we add </think> \\boxed{3}"
    assert router([text], reference=["3"], trainer_state=at(9)) == [1.5]


def test_the_template_is_checked_with_what_a_trainer_passes():
    router = RewardRouter({"default": {"accuracy": 1.0, "repetition": {0: 1.0}, SoftOverlongReward(1000, 10): 1.0}})
    shown = check_template(PromptTemplate("base"), [Row("What is 1 + 2?", "3")], [router, "repetition"])
    scores = shown[0][2]
    assert scores["repetition_reward"] <= 0.0
    assert scores["routed_reward"] == pytest.approx(1.0 + scores["repetition_reward"])


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ({}, "no routes"),
        ({"maths": {"accuracy": 1}}, "'maths'.*'math'"),
        ({"math": {}}, "no rewards"),
        ({"math": {"acuracy": 1}}, "'acuracy'"),
        ({"math": {"accuracy": "1"}}, "finite number"),
        ({"math": {"accuracy": True}}, "finite number"),
        ({"math": {"accuracy": float("nan")}}, "finite number"),
        ({"math": {"accuracy": {}}}, "at least one"),
        ({"math": {"accuracy": {-1: 1.0}}}, "0 or more"),
        ({"math": {async_reward: 1}}, "asynchronous"),
    ],
)
def test_bad_routes_are_refused_at_once(routes, message):
    with pytest.raises(ConfigurationError, match=message):
        RewardRouter(routes)


def test_bad_rows_are_refused():
    router = RewardRouter({"math": {"accuracy": 1.0}})
    with pytest.raises(ConfigurationError, match=r"'code'.*'default'"):
        router([GOLD], reference=["3"], domain=["code"])
    with pytest.raises(DataError, match="short_reward returned 1 values for 2"):
        RewardRouter({"default": {short_reward: 1}})([GOLD] * 2, domain=["math"] * 2)
