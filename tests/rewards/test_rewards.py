import re

import pytest

from trl_r1.exceptions import ConfigurationError
from trl_r1.prompts import PromptTemplate
from trl_r1.rewards import REWARDS, accuracy_reward, check_template, get_reward
from trl_r1.rows import Row

ROWS = [
    Row("What is 9 * 8?", "72"),
    Row("Which?\nA. x\nB. y", '{"answer": "B", "options": ["x", "y"]}', domain="stem"),
    Row("Make 7", '{"numbers": [3, 4], "target": 7}', domain="logic", verifier="expression"),
    Row("What does it print?", "[1, 2]", domain="code", verifier="exact"),
    Row("Hello", "", domain="general"),
]


def test_names_paths_and_functions():
    assert get_reward("accuracy") is get_reward("accuracy_reward") is get_reward(accuracy_reward) is accuracy_reward
    assert get_reward("trl_r1.rewards.accuracy_reward") is accuracy_reward
    assert get_reward("operator.add")(1, 2) == 3
    assert all(function.__name__ == f"{name}_reward" for name, function in REWARDS.items())


@pytest.mark.parametrize("name", ["acuracy", "nowhere.at_all", "trl_r1.rewards.nothing"])
def test_unknown_reward_lists_those_that_exist(name):
    with pytest.raises(ConfigurationError, match=rf"{re.escape(name)}.*'accuracy', 'format'"):
        get_reward(name)
    with pytest.raises(ConfigurationError, match="must be a function"):
        get_reward("math.pi")


@pytest.mark.parametrize("prefill", ["", "<think>\n"])
@pytest.mark.parametrize("form", ["answer", "boxed"])
def test_gold_scores_the_maximum_under_every_template(form, prefill):
    """Trap 2."""
    rewards = ["accuracy", "format" if form == "answer" else "think_format", "random"]
    shown = check_template(PromptTemplate("base", prefill=prefill, form=form), ROWS, rewards)
    assert len(shown) == 4
    for prompt, gold, scores in shown:
        assert prompt.endswith("Assistant:" + prefill)
        assert gold
        assert scores["accuracy_reward"] == 1.0
        assert scores["random_reward"] in (0.0, 1.0)


def test_a_form_that_cannot_earn_the_maximum_is_refused():
    with pytest.raises(ConfigurationError, match=r"format_reward, not 1\.0"):
        check_template(PromptTemplate("base", form="boxed"), ROWS, ["accuracy", "format"])


def test_a_template_whose_gold_is_cut_off_is_refused():
    class CutOff(PromptTemplate):
        def gold(self, answer):
            return super().gold(answer).removesuffix("</answer>")

    with pytest.raises(ConfigurationError, match=r"scores 0\.0"):
        check_template(CutOff("base"), ROWS, ["accuracy"])
