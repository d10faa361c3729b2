"""Every configured reward by YAML, and what is refused."""

import pickle
from types import SimpleNamespace

import pytest

from trl_r1.exceptions import ConfigurationError
from trl_r1.prompts import PromptTemplate
from trl_r1.rewards import (
    CONFIGURABLE,
    CosineReward,
    LanguageConsistencyReward,
    RewardRouter,
    SoftOverlongReward,
    build_rewards,
    check_template,
    get_reward,
)
from trl_r1.rows import Row

GOLD = "<think> a plan </think> <answer> 3 </answer>"


class Shouting:
    """A configured reward of a user's own."""

    __name__ = "shouting_reward"

    def __init__(self, mark, *, least=1):
        self.mark, self.least = mark, least

    def __call__(self, completions, **kwargs):
        return [float(completion.count(self.mark) >= self.least) for completion in completions]


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("cosine", {"min_value_wrong": -2.0}, CosineReward(100, min_value_wrong=-2.0)),
        ("cosine", {"max_length": 50}, CosineReward(50)),
        ("soft_overlong_reward", {"cache": 20}, SoftOverlongReward(100, 20)),
        ("language_consistency", {"target": "zh"}, LanguageConsistencyReward("zh")),
        ("language_consistency", None, LanguageConsistencyReward()),
    ],
)
def test_configured_by_name(name, settings, expected):
    (reward,) = build_rewards([name], settings={name: settings} if settings else None, max_length=100)
    assert reward == expected
    assert pickle.loads(pickle.dumps(reward)) == expected


def test_every_configured_reward_has_a_name():
    needed = {"cosine": {"max_length": 9}, "soft_overlong": {"max_length": 9, "cache": 3}}
    for name in CONFIGURABLE:
        reward = get_reward(name, needed.get(name, {}))
        columns = {"completion_ids": [[1, 2, 3]], "reference": ["3"], "language": ["en"]}
        assert reward.__name__ == f"{name}_reward"
        assert isinstance(reward(completions=[GOLD], **columns)[0], float)


def test_own_class_by_its_path():
    path = f"{__name__}.Shouting"
    (reward,) = build_rewards([path], settings={path: {"mark": "!", "least": 2}})
    assert reward(["a!!", "b!"]) == [1.0, 0.0]
    with pytest.raises(ConfigurationError, match=r"needs mark.*reward_settings"):
        build_rewards([path])


def test_domains_weights_and_steps_as_in_yaml_and_json():
    for step in (10, "10"):  # JSON has text for keys
        (router,) = build_rewards(
            [],
            domains={
                "math": ["accuracy", "format"],
                "code": {"accuracy": 2.0, "format": 0.5},
                "default": {"format": {step: 1.0}, "language_consistency": 1},
            },
            settings={"language_consistency": {"target": "en"}},
        )
        assert isinstance(router, RewardRouter)
        columns = {"reference": ["3"] * 3, "domain": ["math", "code", "general"], "verifier": ["exact"] * 3}
        for now, earned in ((0, 1.0), (10, 2.0)):
            state = SimpleNamespace(global_step=now)
            assert router([GOLD] * 3, trainer_state=state, **columns) == [2.0, 2.5, earned]


def test_rewards_of_all_rows_come_before_the_router():
    rewards = build_rewards(["language_consistency"], domains={"default": "accuracy"})
    assert [reward.__name__ for reward in rewards] == ["language_consistency_reward", "routed_reward"]


@pytest.mark.parametrize(
    ("names", "more", "parts"),
    [
        ([], {}, ["empty"]),
        (["acuracy"], {}, ["'acuracy'", "'cosine'", "'soft_overlong'", "dotted path"]),
        (["cosine"], {}, ["needs max_length", "reward_settings: {cosine:"]),
        (["cosine"], {"settings": {"cosine": {"max_len": 9}}}, ["'max_len'", "'max_length'"]),
        (["cosine"], {"settings": {"cosine": {"max_length": "long"}}}, ["'long'", "cannot be used"]),
        (["cosine"], {"settings": {"cosine": 9}}, ["must be a mapping"]),
        (["accuracy"], {"settings": {"accuracy": {"a": 1}}}, ["takes no settings", "soft_overlong"]),
        (["accuracy"], {"settings": {"cosin": {"max_length": 9}}}, ["'cosin'", "'cosine'"]),
        (["accuracy", "accuracy_reward"], {}, ["accuracy_reward twice", "reward_weights"]),
        (["language_consistency"], {"settings": {"language_consistency": {"wordless": 2}}}, ["wordless is 2"]),
        ([], {"domains": {"maths": ["accuracy"]}}, ["'maths'", "'math'", "'default'"]),
        ([], {"domains": {"math": 1}}, ["must be a list of rewards"]),
        ([], {"domains": {"math": {"accuracy": "much"}}}, ["'much'", "finite number"]),
        ([], {"domains": {"math": {"accuracy": {"soon": 1.0}}}}, ["'soon'", "no training step"]),
        ([], {"domains": ["math"]}, ["domain_rewards", "must be a mapping"]),
    ],
)
def test_refused(names, more, parts):
    with pytest.raises(ConfigurationError) as raised:
        build_rewards(names, **more)
    for part in parts:
        assert part in str(raised.value)


def test_gold_is_checked_for_every_reward_of_a_route():
    row = Row("What is 1 + 2?", "3")
    (good,) = build_rewards([], domains={"math": {"accuracy": 0.5, "format": 0.5}})
    ((_, _, scores),) = check_template(PromptTemplate("base"), [row], [good])
    assert scores == {"routed_reward": 1.0, "accuracy_reward": 1.0, "format_reward": 1.0}
    with pytest.raises(ConfigurationError, match=r"format_reward, not 1\.0"):
        check_template(PromptTemplate("base", form="boxed"), [row], [good])
