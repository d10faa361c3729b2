"""Traps 1-3: what counts as well formed, and what counts as the answer."""

import time

import pytest

from trl_r1.responses import boxes, completion_text, last_number, parse


@pytest.mark.parametrize(
    "text",
    [
        "<think> a </think> <answer> 72 </answer>",
        "<think>a</think><answer>72</answer>",
        "\n<think>\na\n\nb\n</think>\n\n<answer>\n72\n</answer>\n",
        "<think> 3 < 4 and <b> </think> <answer> \\boxed{72} </answer>",
    ],
)
def test_strict_form_is_recognised(text):
    """Trap 1."""
    assert parse(text).well_formed
    assert parse(text).answer == "72"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "72",
        "Sure! <think> a </think> <answer> 72 </answer>",
        "<think> a </think> <answer> 72 </answer> Done.",
        "<think> a </think> so <answer> 72 </answer>",
        "<think> </think> <answer> 72 </answer>",
        "<think> a </think> <answer> </answer>",
        "<think> \u200b\u00ad </think> <answer> 72 </answer>",
        "<think> a </think> <answer> \x00\u200b </answer>",
        "<answer> 72 </answer> <think> a </think>",
        "<think> a </think> <answer> 72 </answer> <answer> 72 </answer>",
        "<think> a </think> <think> b </think> <answer> 72 </answer>",
        "<think> a <think> b </think> </think> <answer> 72 </answer>",
        "<think> a </think> <answer> <answer> 72 </answer> </answer>",
        "<think> a <answer> 7 </answer> </think> <answer> 72 </answer>",
        "<think> a </think> <answer> 72",
        "<think> a <answer> 72 </answer>",
        "a </think> <answer> 72 </answer>",
        "<think> a </think> 72",
        "<Think> a </Think> <Answer> 72 </Answer>",
    ],
)
def test_every_other_form_is_malformed(text):
    """Trap 1."""
    assert not parse(text).well_formed


def test_prefill_is_part_of_the_form():
    """Trap 2."""
    written = "a </think> <answer> 72 </answer>"
    assert not parse(written).well_formed
    assert parse(written, prefill="<think>\n").well_formed
    assert parse(written, prefill="<think>\n").reasoning == "a"
    # A model that opens the thinking again has two of them.
    assert not parse("<think>" + written, prefill="<think>\n").well_formed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think> \\boxed{1} </think> so \\boxed{72}", "72"),
        ("<think> \\boxed{72} </think> <answer> 3 </answer>", "3"),
        ("<think> <answer> 72 </answer> </think> <answer> 3 </answer>", "3"),
        ("<think> \\boxed{72} </think>", None),
        ("<think> \\boxed{72}", None),
        ("<think> <answer> 72 </answer>", None),
        ("<think> a </think> b <think> \\boxed{72}", None),
        ("<think> a </think> b </think> <answer> 72 </answer>", "72"),
        ("<think> a </think> The answer is 72.", "The answer is 72."),
        ("no thinking <answer> 72 </answer>", "72"),
        ("no thinking \\boxed{72}", "72"),
        ("72", None),
        ("", None),
    ],
)
def test_only_what_follows_the_thinking_is_the_answer(text, answer):
    """Trap 3."""
    assert parse(text).answer == answer


@pytest.mark.parametrize(
    ("end", "answer"),
    [
        ("<answer> 72 </answer> <answer> 73 </answer>", None),
        ("<answer> 72 </answer> <answer>72</answer>", "72"),
        ("\\boxed{72} or \\boxed{73}", None),
        ("\\boxed{1,000} that is \\boxed{1000}", "1000"),
        ("\\boxed{\\frac{1}{2}} is \\boxed{\\dfrac{1}{2}}", "\\dfrac{1}{2}"),
        ("<answer> 72 </answer> \\boxed{73}", None),
        ("<answer> \\boxed{72} or \\boxed{73} </answer>", None),
        ("<answer> The result is \\boxed{72}. </answer>", "72"),
        ("<answer> 5 <answer> 72 </answer>", None),
        ("<answer> 72", None),
    ],
)
def test_two_different_final_answers_are_none(end, answer):
    """Trap 3."""
    response = parse("<think> a </think> " + end)
    assert response.answer == answer
    assert bool(response.flags) or answer == "72"


def test_think_only_form():
    assert parse("<think> a </think> The answer is \\boxed{72}.").think_only
    assert parse("a </think> 72", prefill="<think>\n").think_only
    for text in ("<think> </think> 72", "<think> a </think> ", "b <think> a </think> 72", "<think> a 72", "72"):
        assert not parse(text).think_only
    assert not parse("<think> a </think> <think> b </think> 72").think_only


def test_truncated_is_what_the_engine_says():
    assert parse("<think> a", truncated=True).truncated
    assert not parse("<think> a").truncated


def test_completion_text_of_strings_and_messages():
    assert completion_text("x") == "x"
    assert completion_text([{"role": "assistant", "content": "x"}]) == "x"
    assert completion_text([{"role": "assistant", "content": [{"type": "text", "text": "x"}]}]) == "x"
    message = {"role": "assistant", "content": " <answer> 1 </answer>", "reasoning_content": "a"}
    assert parse(completion_text([message])).well_formed
    assert completion_text([{"role": "tool", "content": "no"}, {"role": "assistant", "content": None}]) == ""


def test_boxes_balance_their_braces():
    assert boxes(r"\boxed{\frac{1}{2}} and \boxed {x_{1}^{2}}") == [r"\frac{1}{2}", "x_{1}^{2}"]
    assert boxes(r"\boxed{\{1, 2\}}") == [r"\{1, 2\}"]
    assert boxes(r"\boxed{\boxed{3}}") == ["3"]
    assert boxes(r"\boxed{3") == []
    assert boxes(r"{ \boxed{3}") == ["3"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("9 - 5 = 4, so she pays $1,204.", "1,204"),
        ("it fell to -5", "-5"),
        ("it fell to −5.", "-5"),
        ("3-4", "4"),
        ("half: 3/4", "3/4"),
        (r"so \frac{3}{4}", r"\frac{3}{4}"),
        ("50%", "50%"),
        ("x = 2.50.", "2.50"),
        ("1,2,3", "3"),
        ("٧", None),
        ("none", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "<think>" * 20_000,
        "<think>" + "</think>" * 20_000,
        "<answer></answer>" * 10_000,
        "<think> a </think> " + "\\boxed{" * 15_000,
        "<think> a </think> " + "\\boxed{1}" * 12_000,
        "1," * 50_000,
        "1" * 100_000,
        " " * 100_000,
        "\\frac{1}{" * 11_000,
    ],
)
def test_long_completions_take_bounded_time(text):
    """Trap 8."""
    start = time.process_time()
    response = parse(text)
    last_number(text)
    assert time.process_time() - start < 2
    assert not response.well_formed
