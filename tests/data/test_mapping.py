import json

import pytest

from trl_r1.data.mapping import row_from_example
from trl_r1.data.sources import SourceConfig
from trl_r1.exceptions import DataError


def make(example, **settings):
    return row_from_example(list(example), SourceConfig(**settings))(example, 3)


@pytest.mark.parametrize("answer", [1, "1", "B", "b", "blue"])
@pytest.mark.parametrize(
    "options", [["red", "blue"], '["red", "blue"]', {"label": ["A", "B"], "text": ["red", "blue"]}]
)
def test_right_option_by_index_letter_or_text(answer, options):
    row = make({"prompt": "Which?", "options": options, "reference": answer})
    assert row.prompt == "Which?\nA. red\nB. blue"
    assert json.loads(row.reference) == {"answer": "B", "options": ["red", "blue"]}
    assert (row.domain, row.verifier) == ("stem", "choice")


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"prompt": "?", "options": ["x", "y"], "reference": "z"}, "Row 3: the right option 'z'"),
        ({"prompt": "?", "options": ["x", "y"], "reference": 2}, "Row 3: the right option 2"),
        ({"prompt": "?", "options": ["x"], "reference": 0}, "Row 3: options"),
        ({"prompt": "", "reference": "1"}, "Row 3 has an empty prompt"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(example, message):
    with pytest.raises(DataError, match=message):
        make(example)


def test_tests_lists_and_dicts_become_references():
    row = make({"prompt": "f?", "tests": {"function": "f", "cases": [[[1], 2]]}})
    assert (row.domain, row.verifier, json.loads(row.reference)["function"]) == ("code", "code", "f")
    assert make({"prompt": "q", "reference": ["72"]}).reference == "72"
    assert json.loads(make({"prompt": "q", "reference": ["yes", "true"]}, domain="logic").reference) == ["yes", "true"]
    assert json.loads(make({"prompt": "q", "reference": {"numbers": [1]}}).reference) == {"numbers": [1]}


def test_messages_are_kept_and_options_go_into_the_last_one():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "Which?"}]
    row = make({"prompt": messages, "options": ["x", "y"], "reference": "A"})
    assert row.prompt == [{"role": "system", "content": "s"}, {"role": "user", "content": "Which?\nA. x\nB. y"}]


def test_general_rows_need_no_reference():
    assert make({"prompt": "Hello"}, domain="general").reference == ""
