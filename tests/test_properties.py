"""Properties of all that reads model text: nothing raises or takes long, whatever was written; what is right stays right.

Examples are drawn by hypothesis, the same ones in every run. Texts are put together from what parsers stumble over (tags
nested and repeated, boxes, fences, towers of exponents, control characters, other scripts' digits) and from any characters.
"""

import json
import re
import unicodedata
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tests.timing import timed
from trl_r1.language import language_share, strip_maths_and_code, words_by_language
from trl_r1.prompts import gold_completion
from trl_r1.responses import boxes, last_number, parse
from trl_r1.rewards import accuracy_reward, format_reward, language_consistency_reward, think_format_reward
from trl_r1.rows import Row
from trl_r1.verifiers import VERIFIERS, choice, code, exact, expression, judge, math, verify, verify_lenient
from trl_r1.verifiers.numbers import read_number, tidy


def examples(number):
    """So many examples, drawn alike in every run; the time is what the tests themselves bound."""
    return settings(max_examples=number, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# --- Texts ---

PIECES = (
    "<think>", "</think>", "<answer>", "</answer>", "<think", "< /think>", "<THINK>", "<answer/>",
    "\\boxed{", "\\fbox{", "\\boxed", "{", "}", "\\{", "\\}", "\\", "(", ")", "[", "]", "\\left(", "\\right)",
    "$", "$$", "\\(", "\\)", "\\[", "\\]", "```", "```python\n", "~~~", "`", "\n", " ", "\r\n", "\t",
    "9^{9^{9^{9}}}", "9**9**9", "((9^99)^99)^99", "(10^9)!", "\\binom{99999}{4999}", "1e999", "-1e-999", "0.1^{-9999}",
    "\\frac{1}{0}", "\\frac", "\\frac{", "\\sqrt", "\\sqrt[", "1/0", "1" * 60, "3.14", "-", "−", "%", "1,234", "12,34", ".",
    "\x00", "\x07", "\x1b[31m", "\x7f", "\u200b", "\u202e", "\ufeff", "\ud800", "\u0301", "\U0001f600",
    "٧٢", "७२", "７２", "𝟕𝟐", "七十二", "²", "½", "Ⅷ", "π", "x", "x = ", " or ", " and ", "<", "\\le", "\\infty", "\\text{",
    "\\begin{pmatrix}", "\\end{pmatrix}", "\\\\", "&", "\\int_0^1", "\\sum_{k=1}^{10^9} k", "\\lim", "_", "^", "!",
    "A", "(B)", "B. blue", "The answer is ", "答案是", "blue", "'", '"', '{"analysis": "x", "correctness": "correct"}',
    '{"correctness": ', '{"analysis": ' * 30, "1" * 5_000, "null", "[[", "def f(x):\n", "#### 72", "https://a.b/",
)  # fmt: skip
ANY = st.text(st.characters(exclude_categories=()), max_size=20)
HOSTILE = st.lists(st.sampled_from(PIECES) | ANY, max_size=10).map("".join)
# One thing, or two in turn, again and again: within the bounds of an answer and far beyond, where all that is not linear
# in the length would show.
REPEATED = st.builds(
    lambda start, some, length, end: start + "".join(some) * (length // len("".join(some))) + end,
    st.sampled_from(("", "answer", *PIECES)),
    st.lists(st.sampled_from([piece for piece in PIECES if len(piece) < 20]), min_size=1, max_size=2),
    st.sampled_from((400, 1_900, 20_000)),
    st.sampled_from(("", "!x", *PIECES)),
)
# What once took from seconds to hours.
SPACES, BRACKETS, FORMULAS = f"answer{' ' * 1_900}!x", "(-" * 10_000, "\\(" * 10_000
WORDS = st.lists(
    st.sampled_from(["we", "add", "them", "all", "and", "see", "why", "it", "cannot", "be", "首先", "我们", "计算"]),
    max_size=8,
).map(" ".join)
LINES = st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="`~"), max_size=20), max_size=5)

PUZZLE = json.dumps({"numbers": [3, 4, 5], "target": 17})
OPTIONS = json.dumps({"answer": "B", "options": ["red", "blue", "a dog", "1,000"]})
ROWS = {
    "math": Row("", "\\frac{\\pi}{2}"),
    "exact": Row("", "Tuesday", domain="logic"),
    "expression": Row("", PUZZLE, domain="logic", verifier="expression"),
    "choice": Row("", OPTIONS, domain="stem"),
}


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Grammars and imports are loaded outside of what is measured."""
    assert math.verify("\\sqrt{4}", Row("", "2")).correct


def within(seconds, function, *args, **kwargs):
    """Call a function and bound the CPU time it took."""
    result, taken = timed(function, *args, **kwargs)
    assert taken < seconds, f"{taken:.2f} s for {args!r:.200}"
    return result


# --- Nothing raises, everything ends ---


@examples(150)
@given(HOSTILE | REPEATED)
def test_any_text_is_taken_apart(text):
    response = within(0.5, parse, text)
    for name in ("<think>", "</think>", "<answer>", "</answer>"):
        assert not response.well_formed or text.count(name) == 1
    assert response.think_only or not response.well_formed
    if response.answer is not None:
        assert response.answer in response.summary
        assert response.answer == response.answer.strip() != ""
        assert not {"several_answers", "unclosed_think", "broken_answer_tags", "no_answer"} & set(response.flags)
    for box in within(0.5, boxes, text):
        assert f"{{{box}}}" in text
    number = within(0.5, last_number, text)
    assert number is None or re.search("[0-9]", number)


@examples(150)
@given(HOSTILE | REPEATED)
def test_any_text_is_a_number_or_none(text):
    number = within(0.5, read_number, text)
    assert number is None or isinstance(number.value, Fraction)
    assert number is None or any(char in "0123456789" for char in tidy(text))


@pytest.mark.parametrize("name", ["exact", "expression", "choice"])
@examples(120)
@given(text=HOSTILE | REPEATED)
@example(text=SPACES)
@example(text=BRACKETS)
def test_any_answer_gets_a_verdict(name, text):
    row = ROWS[name]
    verdict = within(0.5, VERIFIERS[name], text, row)
    assert isinstance(verdict.correct, bool)
    within(0.5, verify_lenient, text, row)


@examples(60)
@given(text=HOSTILE | REPEATED, gold=st.sampled_from(["72", "\\frac{\\pi}{2}", "x+1", "(1,2]", "\\{1,2\\}"]))
@example(text=FORMULAS, gold="x+1")
def test_any_answer_to_a_question_of_maths_gets_a_verdict(text, gold):
    # A deadline of half a second for sympy, and what cannot be interrupted.
    assert isinstance(within(3, math.verify, text, Row("", gold)).correct, bool)
    within(0.5, math.find_lenient, text, Row("", gold))


@examples(60)
@given(HOSTILE)
def test_any_reference_is_read_or_refused(text):
    """What no verifier can read is `None`, whatever the answer."""
    for name, module in (("exact", exact), ("choice", choice), ("expression", expression), ("code", code)):
        row = Row("", text, verifier=name)
        problem = within(0.5, module.readable, row)
        assert problem is None or module.verify("1", row).correct is None
    problem = within(3, math.readable, Row("", text))
    assert problem is None or math.verify("1", Row("", text)).correct is None


@examples(150)
@given(HOSTILE | REPEATED, st.sampled_from(["python", "cpp"]))
def test_any_text_may_hold_a_program(text, language):
    source = within(0.5, code.extract, text, language)
    assert set(source.splitlines()) <= set(text.splitlines())


@examples(150)
@given(HOSTILE | REPEATED)
def test_any_reply_of_a_judge_is_read_or_refused(text):
    reply = within(0.5, judge.read_reply, text)
    assert reply is None or (isinstance(reply[0], bool) and isinstance(reply[1], str))


@examples(150)
@given(HOSTILE | REPEATED)
def test_any_text_has_words_or_none(text):
    stripped = within(0.5, strip_maths_and_code, text)
    assert not re.search(r"</?(?:think|answer)>", stripped)
    assert all(count > 0 for count in within(0.5, words_by_language, text).values())
    share = language_share(text, "en")
    assert share is None or 0 <= share <= 1
    assert 0 <= language_consistency_reward([text], language="en")[0] <= 1


# --- Other scripts' digits ---

FOREIGN = st.characters(categories=("Nd",), exclude_characters="0123456789０１２３４５６７８９")


@examples(100)
@given(st.text(FOREIGN, min_size=1, max_size=6))
def test_digits_of_another_script_are_no_number(digits):
    assert read_number(digits) is None
    assert last_number(digits) is None
    same = "".join(str(unicodedata.decimal(char)) for char in digits)
    assert math.verify(digits, Row("", same)).correct is False


@examples(60)
@given(st.text("ABCXYZ", min_size=3, max_size=5), st.integers(0, 10**6), st.text("ABCXYZ", max_size=3))
def test_a_number_inside_a_name_is_no_answer(before, number, after):
    assert math.verify(f"{before}{number}{after}", Row("", str(number))).correct is False


# --- What is right is found again ---

INTEGERS = st.integers(-(10**9), 10**9)
FRACTIONS = st.fractions(-1000, 1000, max_denominator=999)


def spellings(value):
    """Ways to write one number, each of which must be read as it."""
    sign, top, bottom = "-" if value < 0 else "", abs(value.numerator), value.denominator
    if bottom > 1:
        return [f"{sign}{top}/{bottom}", f"{sign}\\frac{{{top}}}{{{bottom}}}", f"${sign}\\dfrac{{{top}}}{{{bottom}}}$"]
    grouped = f"{top:,}"
    wide = "".join(chr(ord(char) + 0xFEE0) for char in f"{sign}{top}")
    return [
        *(f"{sign}{top}", f"{sign}{grouped}", f"{sign}{top}.0", f"${sign}{grouped}$", f"**{sign}{top}**", wide),
        *(sign + grouped.replace(",", gap) for gap in ("{,}", "\\,", "\\!", " ")),
        *(f"{sign}${grouped}.00", f"{sign}{top} apples", f"{sign}{top}\\text{{ cm}}", f"\\text{{{sign}{top}}}"),
    ]


@examples(150)
@given(INTEGERS.map(Fraction) | FRACTIONS)
def test_every_spelling_of_a_number_is_that_number(value):
    written = spellings(value)
    for text in written:
        number = read_number(text)
        assert number is not None, text
        assert number.value == value, text
        assert math.verify(text, Row("", written[0])).correct is True
        assert math.verify(written[0], Row("", text)).correct is True
        assert math.verify(f"\\boxed{{{text}}}", Row("", written[0])).correct is True
        assert math.verify(text, Row("", str(value + 1))).correct is False
    assert last_number(f"{written[0]}.") == written[0]


@examples(8)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 9), st.sampled_from("xyab"))
def test_equal_formulas_are_equal(a, b, c, x):
    gold = Row("", f"{a}{x}^2+{b}{x}+{c}")
    assert math.verify(f"{c} + {x} \\cdot ({a}{x} + {b})", gold).correct is True
    assert math.verify(f"{a}{x}^2+{b}{x}-{c}", gold).correct is False
    assert math.verify(f"\\{{{c},{a + c}\\}}", Row("", f"\\{{{a + c}, {c}\\}}")).correct is True
    assert math.verify(f"({c}, {a + c})", Row("", f"({a + c}, {c})")).correct is False


# Golds as they stand in data: numbers, formulas, letters, words, and any text that is not itself made of tags or boxes.
PLAIN = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cf"), exclude_characters="<>{}\\"), min_size=1)
GOLDS = (
    INTEGERS.map(str)
    | FRACTIONS.flatmap(lambda value: st.sampled_from(spellings(value)))
    | st.sampled_from(["\\frac{\\sqrt{3}}{2}", "(-\\infty, 2) \\cup (3, \\infty)", "\\text{(C)}", "B", "\\{1, 2\\}"])
    | PLAIN.filter(lambda text: text.strip())
)


@examples(200)
@given(HOSTILE, GOLDS, st.sampled_from(["answer", "boxed"]), st.sampled_from(["", "<think>\n", " <think>"]))
def test_an_answer_after_any_reasoning_is_parsed_back(reasoning, gold, form, prefill):
    completion = gold_completion(gold, form=form, prefill=prefill, reasoning=reasoning)
    response = parse(completion, prefill=prefill)
    assert response.answer == gold.strip()
    assert response.flags in ((), ("no_answer_tags",))


@examples(100)
@given(WORDS, INTEGERS, st.sampled_from(["answer", "boxed"]), st.sampled_from(["", "<think>\n"]))
def test_a_rendered_gold_earns_the_maximum(reasoning, value, form, prefill):
    completion = gold_completion(f"{value:,}", form=form, prefill=prefill, reasoning=f"So {reasoning}")
    columns = {"prefill": [prefill], "domain": ["math"]}
    assert accuracy_reward([completion], reference=[str(value)], **columns) == [1.0]
    assert accuracy_reward([completion], reference=[str(value + 1)], **columns) == [0.0]
    assert think_format_reward([completion], **columns) == [1.0]
    assert format_reward([completion], **columns) == [1.0 if form == "answer" else 0.0]


RIGHT = {"math": "\\frac{\\pi}{2}", "exact": "Tuesday", "expression": "3 * 4 + 5", "choice": "B"}
NOWHERE = st.sampled_from(
    [
        "",
        "\n",
        " So that is it.",
        " See above.",
        "<answer></answer>",
        "<answer> \u200b </answer>",
        " \\boxed{}",
        "\x00",
        "。",
    ]
)
ECHO = st.sampled_from(["{}", "\\boxed{{{}}}", "<answer> {} </answer>", "The answer is {}.", "</think> {} <think>"])


@pytest.mark.parametrize("name", sorted(RIGHT))
@examples(40)
@given(before=WORDS, echo=ECHO, after=WORDS, end=NOWHERE, closed=st.booleans())
def test_an_answer_in_the_thinking_alone_earns_nothing(name, before, echo, after, end, closed):
    row = ROWS[name]
    assert verify(RIGHT[name], row).correct is True
    thinking = f"<think> {before} {echo.format(RIGHT[name])} {after}"
    completion = f"{thinking} </think>{end}" if closed else thinking
    columns = {"reference": [row.reference], "domain": [row.domain], "verifier": [name]}
    assert accuracy_reward([completion], **columns) == [0.0]


NUMBERS = st.integers(1, 20)
SIGNS = {"+": ["+"], "-": ["-", "−", "–"], "*": ["*", "×", "·", "\\times ", "\\cdot "], "/": ["/", "÷", "\\div "]}


@st.composite
def trees(draw):
    """An expression of two to five numbers as text, its exact value and its numbers."""
    terms = [(Fraction(number), str(number), [number]) for number in draw(st.lists(NUMBERS, min_size=2, max_size=5))]
    while len(terms) > 1:
        (a, left, some), (b, right, others) = terms.pop(), terms.pop(draw(st.integers(0, len(terms) - 1)))
        operator = draw(st.sampled_from("+-*/"))
        assume(operator != "/" or b != 0)
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[operator]
        sign, space = draw(st.sampled_from(SIGNS[operator])), draw(st.sampled_from(["", " "]))
        terms.append((value, f"({left}{space}{sign}{space}{right})", some + others))
    return terms[0]


@examples(150)
@given(trees())
def test_an_expression_is_worth_its_exact_value(tree):
    value, text, numbers = tree

    def verdict(answer, numbers=numbers, target=value, **more):
        reference = json.dumps({"numbers": numbers, "target": str(target), **more})
        return expression.verify(answer, Row("", reference)).correct

    assert verdict(text) is True
    assert verdict(f"\\boxed{{{text}}}") is True
    if value >= 0 and value.denominator == 1:
        assert verdict(f"${text}$ = {value}") is True
    assert verdict(text, target=value + 1) is False
    assert verdict(text, numbers=[*numbers, 7]) is False
    assert verdict(text, numbers=[*numbers, 7], use="any") is True
    assert verdict(text, numbers=numbers[1:], use="any") is False
    assert verdict(f"{text} + 0") is False


COLOURS = ("red", "blue", "green", "black", "white", "brown", "grey", "pink", "gold", "silver")


@examples(100)
@given(st.permutations(COLOURS), st.integers(4, 10), st.data())
def test_an_option_is_its_letter_and_its_text(colours, count, data):
    right, wrong = data.draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=2, unique=True))
    options, letters = list(colours[:count]), "ABCDEFGHIJ"
    row = Row("", json.dumps({"answer": letters[right], "options": options}), domain="stem")
    for letter, option, correct in (
        (letters[right], options[right], True),
        (letters[wrong], options[wrong], False),
    ):
        for answer in (letter, letter.lower(), f"({letter})", f"**{letter}**", f"\\text{{({letter})}}", option, option.upper(),
                       f"{letter}. {option}", f"The answer is {letter}.", f"\\boxed{{{letter}}}", f"答案是{letter}"):  # fmt: skip
            assert choice.verify(answer, row).correct is correct, answer
    for answer in (f"{letters[right]} or {letters[wrong]}", f"{letters[right]}. {options[wrong]}", "none of them"):
        assert choice.verify(answer, row).correct is False, answer


@examples(150)
@given(PLAIN.filter(lambda text: exact.normalize(text) and not text.lstrip().startswith("[")))
def test_an_exact_text_is_itself_and_nothing_longer(gold):
    row = Row("", gold)
    for answer in (gold, f"  {gold}\n", f"\u200b{gold}", f"`{gold}`", f"\\boxed{{{gold}}}"):
        assert exact.verify(answer, row).correct is True, answer
    assert exact.verify(f"{gold}x", row).correct is False
    assert exact.verify(f"{gold} or not", row).correct is False


@examples(100)
@given(LINES, LINES, st.sampled_from(["```", "~~~", "````"]), st.sampled_from(["python", "cpp"]), st.booleans())
def test_a_fenced_program_is_taken_out_whole(around, program, fence, language, closed):
    source, words = "".join(f"{line}\n" for line in program), "\n".join(around)
    text = f"{words}\n{fence}{language}\n{source}" + (f"{fence}\n{words}" if closed else "")
    assert code.extract(text, language) == source


@examples(150)
@given(HOSTILE, PLAIN, st.booleans(), st.sampled_from(["", "```json\n", "So: "]), st.booleans())
def test_a_judges_verdict_is_read_behind_any_thinking(thinking, analysis, correct, before, as_text):
    said = ("correct" if correct else "incorrect") if as_text else correct
    reply = {"analysis": analysis, "correctness": said}
    text = f"<think>{thinking}</think>{before}{json.dumps(reply, ensure_ascii=as_text)}\n```"
    assert judge.read_reply(text) == (correct, analysis)
    both = f"{text} {json.dumps({**reply, 'correctness': not correct})}"
    assert judge.read_reply(both) is None


@examples(100)
@given(
    WORDS,
    st.sampled_from(["$x = {}$", "\\({}\\)", "`{}`", "```\n{}\n```", "$${}$$"]),
    st.sampled_from(["sum of", "总和"]),
)
def test_words_in_formulas_and_code_do_not_count(words, span, inside):
    assert words_by_language(f"{words} {span.format(inside)}") == words_by_language(words)
