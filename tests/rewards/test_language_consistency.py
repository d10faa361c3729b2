"""The language-consistency reward: only the thinking, in the target language."""

import importlib
import pickle
import pkgutil

import pytest

from trl_r1.exceptions import ConfigurationError
from trl_r1.prompts import TAG_INSTRUCTION, PromptTemplate
from trl_r1.rewards import REWARDS, LanguageConsistencyReward, get_reward, language_consistency_reward

ENGLISH = "<think>first we add them</think> 答案是三"
CHINESE = "<think>先把它们加起来</think> the answer is 3"
MIXED = "<think>we add 它们</think> 3"


def test_only_the_thinking_is_scored():
    """Trap 12."""
    texts = [ENGLISH, CHINESE, MIXED]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    for completions in (texts, messages):
        assert language_consistency_reward(completions, language=["en"] * 3) == [1.0, 0.0, 0.5]
        assert language_consistency_reward(completions=completions, language="zh") == [0.0, 1.0, 0.5]


@pytest.mark.parametrize(
    "text", ["", "no tags at all", "<think></think> 3", "<think> \n\u200b </think> 3", "<think>…!</think>"]
)
def test_trap_12_no_thinking_earns_nothing(text):
    assert language_consistency_reward([text], language=["en"]) == [0.0]


@pytest.mark.parametrize("thinking", ["12+3=15", "$\\text{we add}$", "```\nx = add(y)\n```", "x"])
def test_trap_12_thinking_without_words_earns_less_than_the_right_language(thinking):
    text = f"<think>{thinking}</think> so the answer is 3"
    assert language_consistency_reward([text], language=["en"]) == [0.5]
    assert LanguageConsistencyReward(wordless=0.0)([text], language=["en"]) == [0.0]


def test_wordless_thinking_may_not_pay_best():
    with pytest.raises(ConfigurationError, match=r"wordless is 1\.0"):
        LanguageConsistencyReward(wordless=1.0)


def test_repeated_tags_are_no_english_words():
    text = "<think>加<think>加</think>减<think>乘</think> x"
    assert language_consistency_reward([text], language=["zh"]) == [1.0]


def test_a_prefill_is_told():
    rest = "we add</think> 三"
    assert language_consistency_reward([rest], language="en", prefill=["<think>\n"]) == [1.0]
    cut = "we add and add"
    assert language_consistency_reward([cut], language="en") == [0.0]
    assert language_consistency_reward([cut], language="en", prefill="<think>") == [1.0]


@pytest.mark.parametrize("template", [PromptTemplate("base"), PromptTemplate("base", prefill=" <think>\n"),
                                      PromptTemplate("chat", instruction=TAG_INSTRUCTION)])  # fmt: skip
def test_the_question_gives_the_target_not_its_template(template):
    prompts = [template.trl_prompt(question) for question in ("三加四等于多少?", "What is 3 + 4?", "3 + 4")]
    texts = [CHINESE] * 3
    assert language_consistency_reward(texts, prompts=prompts) == [1.0, 0.0, None]
    # What the row says goes first, then what the reward was configured with goes before both.
    assert language_consistency_reward(texts, prompts=prompts, language=["en", "zh", "zh"]) == [0.0, 1.0, 1.0]
    assert LanguageConsistencyReward(target="en")(texts, prompts=prompts, language=["zh"] * 3) == [0.0] * 3


def test_no_target_at_all_is_not_applicable():
    assert language_consistency_reward([ENGLISH]) == [None]
    assert language_consistency_reward([ENGLISH], language=[None], prompts=["1"]) == [None]


def test_targets_are_logged():
    logged = {}
    language_consistency_reward([ENGLISH] * 2, language=["en", None], log_extra=logged.__setitem__)
    assert logged == {"language": ["en", ""]}


def test_named_and_picklable():
    reward = LanguageConsistencyReward(target="zh", wordless=0.25)
    copy = pickle.loads(pickle.dumps(reward))
    assert copy == reward
    assert copy.__name__ == "language_consistency_reward"
    assert get_reward("language_consistency") is language_consistency_reward
    assert get_reward("trl_r1.rewards.language_consistency_reward") is language_consistency_reward


def test_the_target_is_checked_before_training():
    pytest.importorskip("lingua", reason="the extra `language` is not installed")
    with pytest.raises(ConfigurationError, match="'xx'"):
        LanguageConsistencyReward(target="xx")
    text = "<think>Zuerst rechnen wir aus, wie viele Äpfel er noch hat.</think> 3"
    assert LanguageConsistencyReward(target="de")([text]) == [1.0]


def test_the_nano_world_thoughts():
    """Bare sums are between the languages: right Chinese above them above wrong Chinese."""
    thoughts = ["<think>21+18=39 yes</think> x", "<think>21+18=39</think> x", "<think>二十一加十八得三十九</think> x"]
    assert language_consistency_reward(thoughts, language="en") == [1.0, 0.5, 0.0]
    assert language_consistency_reward(thoughts, language="zh") == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    "name",
    [
        "language_consistency_reward",
        "tag_count_reward",
        "repetition_reward",
        "accuracy_reward",
        "format_reward",
        "think_format_reward",
    ],
)
def test_trap_13_found_by_plain_trl(name):
    """As `trl grpo --reward_funcs trl_r1.rewards.<name>` finds it: no module of the package has the same name."""
    package = importlib.import_module("trl_r1.rewards")
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert {"accuracy", "format", "language", "shaping"} <= modules
    assert not modules & {reward.__name__ for reward in REWARDS.values()}
    assert name not in modules
    reward = getattr(package, name)
    assert callable(reward)
    assert reward.__name__ == name
    columns = {
        "prompts": ["What is 1 + 2?"],
        "completion_ids": [[1, 2, 3, 4]],
        "solution": ["3"],
        "trainer_state": None,
        "log_extra": lambda *_: None,
        "log_metric": lambda *_: None,
    }
    right = "<think>we add</think> <answer>3</answer>"
    assert reward(completions=[[{"role": "assistant", "content": right}]], **columns) == [
        0.0 if name == "repetition_reward" else 1.0
    ]
    if name in ("accuracy_reward", "format_reward", "think_format_reward"):
        wrong = "<think>we add</think>" if name == "think_format_reward" else "<think>we add</think> 4"
        assert reward(completions=[[{"role": "assistant", "content": wrong}]], **columns) == [0.0]
