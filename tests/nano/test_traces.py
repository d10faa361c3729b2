from __future__ import annotations

import time

import pytest

from trl_r1.nano import checks, read_trace
from trl_r1.rows import Row

ROW = Row("Make 17 from 7, 3, 4", '{"numbers": [3, 4, 7], "target": 17}', "logic", "en", "x", "expression")


@pytest.mark.parametrize(
    ("thought", "mode", "claimed", "gave_up", "languages"),
    [
        ("guess", "terse", [], False, ()),
        ("7*3=21-4=17", "one_try", [None], False, ("en",)),
        ("7*3=21-4=17 yes", "search", [True], False, ("en",)),
        ("7+3=10+4=14 no wait\n7*3=21-4=17 ok", "search", [False, True], False, ("en",)),
        ("7+3=10+4=14 wrong\ngive up", "search", [False], True, ("en",)),
        ("七乘三得二十一减四得十七对", "search", [True], False, ("zh",)),
        ("七加三得十加四得十四不对再试\n7*3=21-4=17 yes", "search", [False, True], False, ("en", "zh")),
        ("七加三得十加四得十四错\n放弃", "search", [False], True, ("zh",)),
    ],
)
def test_modes(thought: str, mode: str, claimed: list[bool | None], gave_up: bool, languages: tuple[str, ...]) -> None:
    trace = read_trace(thought)
    assert trace.mode == mode
    assert [one.claimed for one in trace.tries] == claimed
    assert trace.gave_up is gave_up
    assert trace.languages == languages


@pytest.mark.parametrize(
    ("thought", "counted"),
    [
        ("7*3=21-4=17 yes", (1, 1)),
        ("7*3=20-4=17 yes", (1, 0)),  # the value is the target's, the calculation is not
        ("7+3=10+4=14 yes", (1, 0)),
        ("7+7=14+3=17 yes", (1, 0)),  # other numbers
        ("7*3=21-4=17 no\n", (0, 0)),
        ("8/3=2+15=17 yes", (1, 0)),
        ("7*3=21-4=17 yes</think> <answer>7*3-4</answer>", (1, 1)),
    ],
)
def test_a_check_counts_as_true_only_when_the_try_solves_the_question(thought: str, counted: tuple[int, int]) -> None:
    assert checks(thought, ROW) == counted


def test_other_rows_have_no_checks() -> None:
    assert checks("7*3=21-4=17 yes", Row("What is 7*3-4?", "17")) == (0, 0)


def test_endless_text_is_read_in_bounded_time() -> None:
    began = time.perf_counter()
    for text in ("1" * 100_000, "1+1=" * 30_000, "1/0=1" * 20_000, "一" * 100_000, "七乘三得" * 20_000):
        read_trace(text)
    assert time.perf_counter() - began < 5
