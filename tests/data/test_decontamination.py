"""Benchmark questions are found however they are typeset, the short ones as a whole, and the report says which (trap 32)."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from trl_r1.data.decontamination import Benchmark, DecontaminationIndex, build_index, find_contaminated
from trl_r1.data.shingles import clean, exact_key, ngrams, tokenize, without_option_labels
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.prompts import BOXED_INSTRUCTION

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the data sets are not at {DATA}")
NAMES = ("math500", "gsm8k_test", "aime24", "mmlu_stem")


def rows_of(name):
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def real():
    """The four benchmarks' index and their texts."""
    texts = {}
    for name in NAMES:
        benchmark = Benchmark(name, str(DATA / f"{name}.jsonl"))
        texts[name] = [benchmark.texts(row, place) for place, row in enumerate(rows_of(name))]
    return build_index(texts), texts


def otherwise(text):
    """The same question in another typesetting."""
    for old, new in (("\\frac{", "\\dfrac {"), ("\\left", ""), ("\\right", ""), ("$", " "), (" ", "  "), (", ", " , ")):
        text = text.replace(old, new)
    return re.sub(r"(?<![\\\w{])[a-z]{4,}", lambda word: word[0].upper(), text)


def tokens_of(text):
    found = tokenize([clean(text)])
    return found.hashes.tolist()


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (r"Convert $\dfrac{1}{2}\left(x\right)$ to π", r"convert (1 / 2) (x)  to \pi."),
        ("It costs 1,234 dollars", "it costs $1234$ Dollars!"),
        ("Janet’s ducks", "Janet's ducks"),
        ("x² + 1 = 0", "x^{2} + 1 = 0"),
        ("Give 3 <<3*3=9>>9", "Give 3 9"),
        ("ＡＢ１", "ab1"),
        ("你好，世界！", "你好 世界"),
        (r"\text{Find } \mathbf{v} \begin{align*} a \end{align*}", "Find v a"),
        ("a [asy] draw(x); [/asy] b", "a b"),
    ],
)
def test_typesetting_does_not_count(left, right):
    assert tokens_of(left) == tokens_of(right)
    assert tokens_of(left)


def test_what_counts():
    assert tokens_of("12 apples") != tokens_of("1 2 apples")
    assert tokens_of(r"\sqrt{2}") != tokens_of("2")
    assert tokens_of("一二") == [*tokens_of("一"), *tokens_of("二")]
    assert exact_key("3 + 5") != exact_key("3 - 5")
    assert exact_key(r"$\frac{1}{2} \cdot x$") == exact_key("1/2 × x")
    assert exact_key("A well-known case?") == exact_key("a well known case")


def test_ngrams_stay_inside_a_text():
    found = tokenize(["a b c", "", "d e f g"])
    assert ngrams(found, 3)[1].tolist() == [0, 3, 4]
    assert ngrams(found, 5)[0].size == 0
    assert found.bounds.tolist() == [0, 3, 3, 7]


@needs_data
def test_every_real_question_is_found_in_another_typesetting(real):
    index, texts = real
    assert index.sizes == (500, 1319, 30, 3018)
    for name in NAMES:
        asked = [question for question, _ in texts[name]]
        dressed = [f"{otherwise(one)}\n\n{BOXED_INSTRUCTION}" for one in asked]
        found = find_contaminated(index, asked)
        for prompts, matches in ((asked, found), (dressed, find_contaminated(index, dressed))):
            missed = [prompts[place][:80] for place, match in enumerate(matches) if match is None]
            assert not missed, (name, missed)
        assert any(match.kind == "exact" for match in found) == (name in ("math500", "mmlu_stem")), name
        assert sum(match.benchmark == name for match in found) > 0.98 * len(asked), name


@needs_data
def test_solutions_inside_completions_are_found_and_named(real):
    index, texts = real
    solutions = [solution for _, listed in texts["gsm8k_test"][:50] for solution in listed]
    thinking = [f"Let me think about this. {one} So that is it." for one in solutions]
    found = find_contaminated(index, ["A question of my own."] * len(thinking), thinking)
    named = [match for match in found if match is not None]
    assert len(named) > 0.9 * len(thinking)
    assert {(match.benchmark, match.field) for match in named} == {("gsm8k_test", "solution")}
    assert sum(match.row == place for place, match in enumerate(found) if match) > 0.9 * len(named)
    prompts_only = replace(index, completions=False)
    assert not any(find_contaminated(prompts_only, ["A question of my own."] * len(thinking), thinking))


@needs_data
def test_other_questions_are_kept(real):
    """GSM8K's training set shares few ten-word runs with its test set; every match is shown with its words."""
    rows = rows_of("gsm8k_train")
    index, texts = real
    found = find_contaminated(index, [row["question"] for row in rows], [row["answer"] for row in rows])
    matches = [(place, match) for place, match in enumerate(found) if match is not None]
    assert 20 < len(matches) < 0.015 * len(rows)
    for place, match in matches:
        question, solutions = texts[match.benchmark][match.row]
        where = question if match.field == "question" else "\n".join(solutions)
        shared = set(ngrams(tokenize([clean(without_option_labels(where))]), 10)[0].tolist())
        # A solution is indexed by itself; a run over the border of two does not count.
        row_text = f"{rows[place]['question']}\n{rows[place]['answer']}"
        assert shared & set(ngrams(tokenize([clean(row_text)]), 10)[0].tolist()), match
    stricter = replace(index, min_matches=5)
    fewer = find_contaminated(stricter, [row["question"] for row in rows], [row["answer"] for row in rows])
    assert 0 < sum(match is not None for match in fewer) < len(matches) / 2


def test_short_questions_are_compared_as_a_whole_or_by_line():
    index = build_index({"tiny": [("What is $3 + 5$?", ["8"]), ("Simplify $\\sqrt{242}$.", ["$11\\sqrt2$"])]})
    prompts = ["what is 3 + 5", "What is 3 - 5?", f"Simplify $\\sqrt{{242}}$\n{BOXED_INSTRUCTION}", "Solve it:\nSimplify \\sqrt{242}",
               "Simplify $\\sqrt{242}$ and what is 3 + 5 plus one?", "8"]  # fmt: skip
    found = find_contaminated(index, prompts)
    assert [match is not None for match in found] == [True, False, True, True, False, False]
    assert found[2].row == 1
    assert found[0].kind == "exact"


def test_options_belong_to_the_question():
    benchmark = Benchmark("quiz", "unused")
    row = {
        "question": "Which of these is true?",
        "choices": ["Ice floats", "Lead floats", "Iron floats", "Gold floats"],
        "answer": 0,
    }
    index = build_index({"quiz": [benchmark.texts(row, 0)]})
    same = "Which of these is true?\nA. Ice floats\nB. Lead floats\nC. Iron floats\nD. Gold floats"
    other = "Which of these is true?\nA. Cats bark\nB. Dogs bark\nC. Cows bark\nD. Fish bark"
    assert [match is not None for match in find_contaminated(index, [same, other])] == [True, False]


def test_messages_are_read(tmp_path):
    question = "How many paths lead from the lower left corner of the grid to the other corner?"
    index = build_index({"paths": [(question, [])]})
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
    assert find_contaminated(index, [chat])[0].row == 0
    index.save(tmp_path / "index.npz")
    again = DecontaminationIndex.load(tmp_path / "index.npz")
    assert find_contaminated(again, [chat]) == find_contaminated(index, [chat])


def test_bad_input():
    with pytest.raises(DataError, match=r"'x'.*no question in column question or.*has: text.*Set `question`"):
        Benchmark("x", "y").texts({"text": "?"}, 0)
    with pytest.raises(DataError, match="'empty' has no rows"):
        build_index({"empty": []})
    with pytest.raises(ConfigurationError, match="at least 3"):
        build_index({"x": [("a", [])]}, n=2)
