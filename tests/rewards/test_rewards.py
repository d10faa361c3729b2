import re

import pytest
from transformers import AutoTokenizer

from trl_r1.exceptions import ConfigurationError
from trl_r1.nano import checkpoint_path
from trl_r1.prompts import PromptTemplate, select_template
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


# Three kinds of templates, each with and without an opened thinking: ours in plain text, ours for chats, a model's own.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "base": ("base", None, False),
    "base, prefilled": ("base", None, True),
    "chat": ("chat", None, False),
    "chat, prefilled": ("chat", None, True),
    "own chat": ("auto", CHATML, False),
    # As R1's distilled models have it: the template itself opens the thinking, whatever is asked of it.
    "own chat, prefilled": ("auto", CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"), False),
}


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("form", ["answer", "boxed"])
def test_gold_scores_the_maximum_under_every_template(form, kind):
    """Trap 2."""
    choice, own, prefill_think = TEMPLATES[kind]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    tokenizer.chat_template = own
    template = select_template(tokenizer, choice, form=form, prefill_think=prefill_think)
    assert bool(template.prefill) is ("prefilled" in kind)
    rewards = ["accuracy", "format" if form == "answer" else "think_format", "random"]
    shown = check_template(template, ROWS, rewards, tokenizer)
    assert len(shown) == 4
    for (prompt, gold, scores), row in zip(shown, ROWS, strict=False):
        assert row.prompt in prompt
        assert prompt.endswith(template.prefill)
        assert prompt.removesuffix(template.prefill).rstrip().endswith(("Assistant:", "assistant"))
        assert gold.startswith("<think>") is not bool(template.prefill)
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
