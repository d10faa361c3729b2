import pytest

from trl_r1.data.few_shot import gsm8k, gsm8k_short
from trl_r1.exceptions import DataError
from trl_r1.prompts import PromptTemplate
from trl_r1.responses import parse


def test_gsm8k_row_shows_examples_and_reads_the_number():
    row = gsm8k({"question": "How many?", "answer": "One and one.\n#### 1,002"})
    assert row.reference == "1002"
    *examples, asked = row.prompt
    assert asked == {"role": "user", "content": "How many?"}
    shown = [parse(turn["content"]) for turn in examples if turn["role"] == "assistant"]
    assert len(shown) == 3
    assert all(response.well_formed for response in shown)
    assert len({response.answer for response in shown}) == 3  # a small model copies an answer it saw twice


def test_the_question_stands_as_the_examples_do():
    text = PromptTemplate("base").render(gsm8k({"question": "How many?", "answer": "#### 2"}).prompt)
    assert text.count("User: ") == 4
    assert text.count("</think> <answer>") == 4  # the template's own and three
    assert text.endswith("User: How many?. Assistant:")


def test_short_questions_take_at_most_two_calculations():
    marked = "2 * 2 = <<2*2=4>>4. "
    assert gsm8k_short({"question": "How many?", "answer": f"{marked * 2}\n#### 4"}) is not None
    assert gsm8k_short({"question": "How many?", "answer": f"{marked * 3}\n#### 4"}) is None


def test_an_answer_without_its_number_is_named():
    with pytest.raises(DataError, match="no line '####"):
        gsm8k({"question": "How many?", "answer": "Two."})
