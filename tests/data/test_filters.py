"""The readability filters: what each drops and what it must keep."""

import pickle

import pytest

from trl_r1.data.filters import (
    CodeBlockFilter,
    LanguageMixingFilter,
    LengthFilter,
    RepetitionFilter,
    StructureFilter,
    build_filters,
    default_filters,
    first_reason,
    reason_name,
)
from trl_r1.exceptions import ConfigurationError
from trl_r1.nano import NanoWorld
from trl_r1.prompts import gold_completion
from trl_r1.rows import Completion, Row
from trl_r1.verifiers import gold_answer, verify

MATH = Row("What is 6 * 7?", "42")
GOOD = "<think> 6 * 7 is 42, since 6 * 7 = 6 * 5 + 12. </think> <answer> 42 </answer>"
WORDS = "we compare the two sides and see that they agree so the value holds here and we go on "


def kind(check, text, row=MATH, **completion):
    reason = check(row, Completion(text, **completion))
    return None if reason is None else reason_name(reason)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (GOOD, True),
        ("<think> 6 * 7 = 42 </think> The answer is \\boxed{42}.", True),
        ("<answer> 42 </answer>", False),
        ("<think> 6 * 7 = 42 <answer> 42 </answer>", False),
        ("<think> a </think> <think> b </think> <answer> 42 </answer>", False),
        ("<think></think> <answer> 42 </answer>", False),
        ("<think> a </think>", False),
        ("<think> a </think> <answer> 42 </answer> <answer> 43 </answer>", False),
        ("<think> a </think> <answer> 42 </answer> and so on", False),
        ("well <think> a </think> <answer> 42 </answer>", False),
        ("<think> a </think> \\boxed{42} or \\boxed{43}", False),
    ],
)
def test_structure(text, kept):
    assert kind(StructureFilter(), text) == (None if kept else "structure")


def test_structure_counts_what_the_prompt_opened_and_what_was_cut_off():
    rest = GOOD.removeprefix("<think>")
    assert kind(StructureFilter(), rest) == "structure"
    assert kind(StructureFilter(), rest, prefill="<think>") is None
    assert kind(StructureFilter(), GOOD, finish_reason="length") == "structure"


def test_a_greeting_needs_no_thinking_where_that_is_allowed():
    row = Row("hello", "", domain="general")
    assert kind(StructureFilter(), "Hello! How can I help?", row) == "structure"
    assert kind(StructureFilter(require_thinking=False), "Hello! How can I help?", row) is None
    assert kind(StructureFilter(require_thinking=False), "Hello <think> so", row) == "structure"
    assert kind(StructureFilter(require_thinking=False), "  ", row) == "structure"


@pytest.mark.parametrize(
    ("thinking", "summary", "language", "kept"),
    [
        ("we add and get 42", "so 42", "en", True),
        ("首先我们把六乘以七 and then we get it", "so 42", "en", False),
        ("we add and get it", "所以答案是四十二", "en", False),
        ("首先我们计算 $6 \\times 7 = 42$ 得到答案", "所以是 42", "zh", True),
        ("$6 \\times 7 = 42$", "42", "zh", True),
        ("首先我们计算", "所以是四十二", None, False),
    ],
)
def test_language_mixing(thinking, summary, language, kept):
    row = Row("What is the value?", "42", language=language)
    text = f"<think>{thinking}</think> <answer>{summary}</answer>"
    assert kind(LanguageMixingFilter(), text, row) == (None if kept else "language")


def test_length_in_tokens_characters_words_and_paragraphs():
    assert kind(LengthFilter(max_tokens=3), GOOD, token_ids=(1, 2, 3, 4)) == "length"
    assert kind(LengthFilter(max_tokens=4), GOOD, token_ids=(1, 2, 3, 4)) is None
    assert kind(LengthFilter(max_characters=20), GOOD) == "length"
    assert kind(LengthFilter(min_words=100), GOOD) == "length"
    long = f"<think>{WORDS * 30}</think> <answer> 42 </answer>"
    assert kind(LengthFilter(), long) == "paragraph"
    assert kind(LengthFilter(), long.replace("so the", "so\nthe")) is None
    assert kind(LengthFilter(max_paragraph_words=None), long) is None
    chinese = f"<think>{'我们把两边相加' * 60}</think> <answer> 42 </answer>"
    assert kind(LengthFilter(), chinese) == "paragraph", "a Chinese character is a word"


def test_repetition_of_sequences_and_of_lines():
    loop = f"<think>{WORDS * 4}</think> <answer> 42 </answer>"
    assert kind(RepetitionFilter(), loop) == "repetition"
    lines = "<think>" + "let me check\n" * 6 + "</think> <answer> 42 </answer>"
    assert kind(RepetitionFilter(max_share=1.0), lines) == "repetition"
    assert kind(RepetitionFilter(max_share=1.0), lines.replace("let me check\n", "let me check\n7\n")) is None
    assert kind(RepetitionFilter(), GOOD) is None


def test_code_blocks_in_the_thinking_only():
    block = "```python\nprint(42)\n```"
    assert kind(CodeBlockFilter(), f"<think> so {block} </think> <answer> 42 </answer>") == "code"
    assert kind(CodeBlockFilter(), f"<think> so </think> {block}") is None
    code = Row("Write it.", "{}", domain="code")
    assert kind(CodeBlockFilter(allowed_domains=("code",)), f"<think>{block}</think> {block}", code) is None


def test_right_answers_of_every_nano_task_pass_all_filters():
    rows = NanoWorld().rows("test", 120, language="en")
    checked = 0
    for row in rows:
        answer = gold_answer(row)
        if answer is None:
            continue
        text = gold_completion(answer)
        checked += 1
        assert verify(answer, row).correct
        assert first_reason(default_filters(), row, Completion(text)) is None
    assert checked > 60


def test_filters_travel_to_worker_processes():
    assert pickle.loads(pickle.dumps(default_filters())) == default_filters()


def test_building_from_names_and_bad_settings():
    (length,) = build_filters(["length"], {"length": {"max_tokens": 7}})
    assert length == LengthFilter(max_tokens=7)
    assert build_filters() == default_filters()
    for arguments, message in [
        ((["lenght"],), "'lenght'.*'length'"),
        ((["length"], {"length": {"tokens": 7}}), "'tokens'.*'max_tokens'"),
        ((["length"], {"code": {}}), "code.*length"),
        ((["length"], {"length": {"max_tokens": 0}}), "max_tokens=0"),
        ((["repetition"], {"repetition": {"max_share": 2}}), "max_share=2"),
        ((["language"], {"language": {"min_share": 0}}), "min_share=0"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            build_filters(*arguments)
