import pytest

from trl_r1.data.few_shot import gsm8k
from trl_r1.exceptions import DataError


def test_gsm8k_row_shows_examples_and_reads_the_number():
    row = gsm8k({"question": "How many?", "answer": "One and one.\n#### 1,002"})
    assert row.reference == "1002"
    assert row.prompt.endswith("Question: How many?")
    assert row.prompt.count("</answer>") == 2


def test_an_answer_without_its_number_is_named():
    with pytest.raises(DataError, match="no line '####"):
        gsm8k({"question": "How many?", "answer": "Two."})
