"""Worked solutions: what is read from files, and which calculations are false."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trl_r1.data.worked import EquationFilter, WorkedSolution, from_columns, gsm8k, load_worked
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.rows import Completion, Row


def test_gsm8k_solution_becomes_thinking_and_answer() -> None:
    answer = "Natalia sold 48/2 = <<48/2=24>>24 clips.\nIn all $<<1000+24=1024>>1,024.\n#### 1,024"
    found = gsm8k({"question": " How many? ", "answer": answer})
    assert found == WorkedSolution(
        Row("How many?", "1024", "math", "en"), "Natalia sold 48/2 = 24 clips.\nIn all $1,024.", "1024"
    )
    with pytest.raises(DataError, match="no line '####"):
        gsm8k({"question": "How many?", "answer": "Two."})


@pytest.mark.parametrize(
    ("columns", "reasoning", "answer", "summary"),
    [
        ({"reasoning": " why ", "answer": "2"}, "why", "2", ""),
        ({"reasoning": "why", "summary": "It is \\boxed{2}."}, "why", "2", "It is \\boxed{2}."),
        ({"completion": "<think>why</think> <answer> 2 </answer>"}, "why", "2", ""),
        ({"completion": "<think>why</think>\n\nIt is \\boxed{2}."}, "why", "2", "It is \\boxed{2}."),
        ({"completion": [{"role": "assistant", "content": "\\boxed{2}", "reasoning_content": "why"}]}, "why", "2", "\\boxed{2}"),
    ],
)  # fmt: skip
def test_a_users_columns_are_read(columns: dict[str, Any], reasoning: str, answer: str, summary: str) -> None:
    found = from_columns({"prompt": "1 + 1?", "reference": 2, "language": "en", "other": 1, **columns})
    assert found == WorkedSolution(Row("1 + 1?", "2", "math", "en"), reasoning, answer, summary)


def test_rows_that_review_dropped_stay_out(tmp_path: Path) -> None:
    common = {"prompt": "1 + 1?", "reference": "2", "reasoning": "why", "answer": "2"}
    rows = [common | {"review": {"status": status}} for status in ("drop", "keep", "pending")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(list(load_worked(str(path)))) == 2


def write(path: Path, **columns: Any) -> str:
    path.write_text(json.dumps(columns) + "\n")
    return str(path)


def test_rows_may_differ_in_columns_and_types(tmp_path: Path) -> None:
    common = {"prompt": "1 + 1?", "reasoning": "why", "answer": "2"}
    rows = [common | {"reference": 2, "original": None}, common | {"reference": "4/2", "original": {"reasoning": "r"}}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, common | {"reference": 2.5, "group": "t"}]))
    found = list(load_worked(str(path)))
    assert [one.row.reference for one in found] == ["2", "4/2", "2.5"]
    assert [one.group for one in found] == [None, None, "t"]
    cut = tmp_path / "cut.json"
    cut.write_text('[{"prompt": "1 + 1')
    with pytest.raises(DataError, match=r"cut\.json cannot be read as json"):
        list(load_worked(str(cut)))


def test_what_is_no_solution_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(DataError, match=r"a\.jsonl, row 0: A trace has no reference"):
        list(load_worked(write(path, prompt="q", reasoning="r")))
    with pytest.raises(DataError, match="has no thinking: it must hold <think>"):
        list(load_worked(write(path, prompt="q", reference="2", completion="It is 2.")))
    with pytest.raises(DataError, match="No such file"):
        list(load_worked(str(tmp_path / "b.jsonl")))
    with pytest.raises(DataError, match="Give a Hub id"):
        list(load_worked("nobody/nothing"))
    with pytest.raises(ConfigurationError, match="cannot be imported"):
        list(load_worked(str(path), "trl_r1.data.worked.gsm9k"))
    with pytest.raises(DataError, match="must return a WorkedSolution"):
        list(load_worked(str(path), "builtins.len"))


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("12 * 3 = 36", True),
        ("So 5*0.5=2 tubes", False),
        ("2 + 3 * 4 = 14 and 10 / 4 = 2.5", True),
        ("2 + 3 * 4 = 20", False),
        ("100 x 20/100 = $20", True),
        ("1,000 + 24 = 1,024", True),
        ("10 / 3 = 3.33", True),  # rounded
        ("2 * x = 4, 3x + 4 = 20", True),  # no plain numbers
        ("7*3=21-5=16", True),  # a chain: its sides belong to longer terms
        ("12÷1/2=24", True),  # not clear which division comes first
        ("25 / 1/3 = 75", True),
        ("$12 + $12 + 18 = $42", True),
        ("$40 - $10 + 8 = $28", False),
        ("8 x 1 1/2 = 12, 4 / 3 = 1 and 1/3", True),  # mixed numbers
        ("600 x 30 = 18 000, 17 000/5 = 3 400", True),  # digits set apart
        ("6:00+48=6:48", True),
        ("20% of 50 = 10", True),
        ("5 / 0 = 7", True),
    ],
)
def test_false_calculations_are_found(text: str, holds: bool) -> None:
    completion = Completion(f"{text} and so on. </think> \\boxed{{1}} 2 + 2 = 5", prefill="<think>")
    reason = EquationFilter()(Row("q", "1"), completion)
    assert (reason is None) is holds
    assert holds or str(reason).startswith("equation: ")
