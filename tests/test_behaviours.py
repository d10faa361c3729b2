"""Reflection, re-starts and repetition on completions whose counts are known."""

from __future__ import annotations

import pytest

from trl_r1.behaviours import measure, mixing, reasoning_steps, reflective_rate, reflective_words, repetition


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Wait, that is wrong. However, let me check.", 4),
        ("checkout the button, wrongly", 0),
        ("WAIT... mistake; but retry, error, verify and evaluate", 7),
        ("等一下,这里不对,重新检查。", 3),
        ("但是答案错误,但可以验证", 4),
        ("wait我再检查", 2),
        ("", 0),
    ],
)
def test_reflective_words(text: str, count: int) -> None:
    assert reflective_words(text) == count


def test_rate_is_per_completion() -> None:
    assert reflective_rate(["wait, wait", "fine"]) == 1.0
    assert reflective_rate([]) == 0.0


def test_repetition() -> None:
    assert repetition("3 + 5 = 8, so the answer is eight") == 0.0
    assert repetition("try 3 + 5 . " * 40) > 0.9
    assert repetition("我们再试一次," * 40) > 0.9
    assert repetition("one two") == 0.0


def test_measure_tells_behaviours_apart() -> None:
    seen = measure("2 x 3 = 6. No. Let me try another way: 2 + 3 = 5. Alternatively, stop. Let me check: 2 + 3 = 5.")
    assert (seen.restarts, seen.alternatives, seen.verifications) == (1, 2, 1)
    assert seen.reflective == 1
    assert seen.words > 20
    assert measure("重新算:三加四。换一种方法,验证").restarts == 1


def test_mixing_is_the_share_of_the_smaller_language() -> None:
    assert mixing("only one language here") == 0.0
    assert mixing("12 + 30 = 42") == 0.0
    assert mixing("three 三 four 四") == pytest.approx(0.5)
    assert measure("three 三 four 四").mixing == mixing("three 三 four 四")


def test_the_longest_paragraph_is_counted_in_words() -> None:
    assert measure("one two\n\nthree four five\n \nsix").longest_paragraph == 3
    assert measure("").longest_paragraph == 0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Step 1: add. Step 2: multiply.", 2),
        ("First, add. Then multiply. Finally, compare.", 3),
        ("1. First, add 3\n2. Next, multiply by 1.5\n- done", 3),
        ("1. \n2. ", 2),
        ("The first apple, and then 3.5 more; a step forward - no list", 0),
        ("首先加三,然后乘二。第三步比较。", 3),
        ("1、加三\n2、乘二", 2),
        ("", 0),
    ],
)
def test_reasoning_steps(text: str, count: int) -> None:
    assert reasoning_steps(text) == count
