"""Dispatch, and the real data sets: every gold answer is right in every template, another row's different one is wrong."""

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.nano import checkpoint_path
from trl_r1.prompts import detect_prefill, select_template
from trl_r1.responses import parse
from trl_r1.rows import Row
from trl_r1.verifiers import check_references, gold_answer, readable, verify, verify_lenient

DATA = Path(__file__).parents[3] / "shared" / "data"

# Gold answers of MATH-500 that are words or option letters, which the maths verifier cannot judge (trap 4).
WORDS = {"\\text{Evelyn}", "\\text{east}", "\\text{even}", "\\text{ellipse}", "\\text{Navin}"}
LETTERS = {"\\text{(B)}", "\\text{(C)}", "\\text{(E)}"}
UNREADABLE = {"math500": WORDS | LETTERS}


def load(name):
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def rows_of(name):
    if name.startswith("gsm8k"):
        return [Row(r["question"], r["answer"].rpartition("#### ")[2]) for r in load(name)]
    if name == "mmlu_stem":
        return [
            Row(
                r["question"],
                json.dumps({"answer": "ABCDEFGHIJ"[r["answer"]], "options": [str(c) for c in r["choices"]]}),
                domain="stem",
            )
            for r in load(name)
        ]
    return [Row(r.get("problem") or r["question"], str(r["answer"])) for r in load(name)]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(checkpoint_path())


@pytest.fixture(scope="module")
def templates(tokenizer):
    """Every shipped template, plain and chat, with the thinking opened by the model or by the prompt, in both forms."""
    return [
        select_template(tokenizer, name, form=form, prefill_think=prefill_think)
        for name in ("base", "chat")
        for form in ("answer", "boxed")
        for prefill_think in (False, True)
    ]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the data sets are not at {DATA}")
@pytest.mark.parametrize("name", ["gsm8k_train", "gsm8k_test", "math500", "aime24", "mmlu_stem", "cmath"])
def test_gold_answers_of_real_data(name, templates):
    """Trap 5."""
    rows = rows_of(name)
    unreadable = {row.reference for row in rows if readable(row)}
    assert unreadable == UNREADABLE.get(name, set())
    for index, row in enumerate(rows):
        if row.reference in unreadable:
            assert verify("1", row).correct is None
            continue
        gold = gold_answer(row)
        for template in templates:
            response = parse(template.gold(gold), prefill=template.prefill)
            assert verify(response.answer, row).correct is True, (row, response, template)
        # A row further on whose answer is another one.
        others = (rows[(index + step) % len(rows)] for step in range(7, len(rows)))
        other = next(o for o in others if o.reference not in unreadable and differs(gold, gold_answer(o)))
        assert verify(gold_answer(other), row).correct is False, (row, other)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the data sets are not at {DATA}")
@pytest.mark.parametrize("name", ["gsm8k_test", "math500", "aime24", "mmlu_stem", "cmath"])
def test_prompts_of_real_data_open_the_thinking_they_say(name, templates, tokenizer):
    """What a question holds (tags, braces, Jinja) changes neither its prompt's end nor the prefill read off it."""
    assert {bool(template.prefill) for template in templates} == {True, False}
    for row in rows_of(name)[::20]:
        for template in templates:
            prompt = template.render(row.prompt, tokenizer)
            assert row.prompt.strip() in prompt
            assert detect_prefill(prompt).strip() == template.prefill.strip()


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the data sets are not at {DATA}")
def test_option_texts_of_real_data():
    for row in rows_of("mmlu_stem")[::10]:
        reference = json.loads(row.reference)
        options, right = reference["options"], "ABCDEFGHIJ".index(reference["answer"])
        letters_as_texts = any(len(option.strip("$() .")) < 2 for option in options)
        if letters_as_texts or len({option.casefold().strip() for option in options}) < len(options):
            continue
        assert verify(options[right], row).correct is True, (options[right], row)
        assert verify(options[right - 1], row).correct is False, (options[right - 1], row)


def differs(a, b):
    """Whether two gold answers are two values, by means other than the verifiers'. 12 % is an answer of 12."""
    a, b = a.replace("\\%", "").replace("%", ""), b.replace("\\%", "").replace("%", "")
    try:
        return Fraction(a.replace(",", "")) != Fraction(b.replace(",", ""))
    except ValueError:
        plain = (re.sub(r"\s|\\left|\\right|\$", "", text) for text in (a, b))
        return next(plain) != next(plain)


def test_the_domain_picks_the_verifier():
    assert verify("72", Row("", "72")).correct
    assert verify("B", Row("", "B", domain="stem")).correct
    assert verify("tuesday", Row("", "Tuesday", domain="logic")).correct
    assert verify("3 + 4", Row("", '{"numbers": [3, 4], "target": 7}', domain="logic", verifier="expression")).correct
    assert verify("x", Row("", "", domain="general")).correct is None
    assert verify("x", Row("", "{}", domain="code")).correct is None
    assert verify("6", Row("", "6", domain="code", verifier="exact")).correct


def test_no_answer_is_wrong_unless_the_gold_is_unreadable():
    assert verify(None, Row("", "72")).correct is False
    assert verify(None, Row("", "\\text{Tuesday}")).correct is None


def test_lenient_ignores_the_form():
    assert verify_lenient("<think> 9 * 8 = 72", Row("", "72")).correct
    assert verify_lenient("I say B", Row("", "B", domain="stem")).correct
    assert verify_lenient("no number", Row("", "72")).correct is False
    assert verify_lenient("x", Row("", "", domain="general")).correct is None


def test_unknown_names_are_refused():
    with pytest.raises(ConfigurationError, match=r"'maths'.*'math'"):
        verify("1", Row("", "1", domain="maths"))
    with pytest.raises(ConfigurationError, match=r"'sympy'.*'expression'"):
        verify("1", Row("", "1", verifier="sympy"))


def test_check_references_names_rows_above_the_share():
    """Trap 4."""
    rows = [Row("", "1"), Row("", "A"), Row("", "", domain="general")]
    assert check_references(rows, 0.5) == [1]
    with pytest.raises(DataError, match=r"1 of 2 gold answers \(50.0%\).*row 1: 'A'"):
        check_references(rows)
    assert check_references([{"prompt": "q", "reference": "1", "domain": None, "verifier": None}]) == []
