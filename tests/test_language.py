"""Words by language: what counts as one, what is stripped, and what cannot be hidden."""

import builtins
import time

import pytest

from trl_r1.exceptions import ConfigurationError, MissingExtraError
from trl_r1.language import (
    _detector,
    check_language,
    detect_language,
    language_share,
    strip_maths_and_code,
    words_by_language,
)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("", {}),
        ("We add three apples.", {"en": 4}),
        ("我们加三个苹果。", {"zh": 7}),
        ("首先 we add 三", {"zh": 3, "en": 2}),
        ("don't well-known naïve", {"en": 3}),
        ("Привет мир", {"other": 2}),
        ("これは答え", {"zh": 1, "other": 2}),
        ("Ｗｅ ａｄｄ", {"en": 2}),  # full-width letters
        ("设 x 为 n，则 sin x 小于 5 cm", {"zh": 5}),  # variables, functions, units
        ("x_1 = 2n + var_a - f2", {}),
        ("12 + 34 = 46", {}),
        ("<think>wait</think>", {"en": 1}),
    ],
)
def test_words(text, counts):
    assert words_by_language(text) == counts


@pytest.mark.parametrize(
    "span",
    [
        "$x = \\text{two apples}$",
        "$$\nsum of all\n$$",
        "\\(a \\text{ if } b\\)",
        "\\[ area = width \\times height \\]",
        "\\begin{align*} total &= price \\\\ cost \\end{align*}",
        "```python\nfor item in items:\n    print(item)\n```",
        "~~~\ncode here\n~~~",
        "`total_price`",
        "```\nnever closed",
        "https://example.org/some/english/words",
        "\\frac{1}{2} \\cdot \\alpha",
    ],
)
def test_trap_12_maths_and_code_are_stripped_first(span):
    assert words_by_language(f"因此 {span} ")["zh"] == 2
    assert language_share(f"因此 {span} ", "zh") == 1.0


def test_prices_are_no_formula():
    assert words_by_language("It costs $5 and then $6 more")["en"] == 5


@pytest.mark.parametrize("cover", ["```\n{}\n```", "`{}`", "${}$", "\\({}\\)", "\\[ {} \\]", "```{}"])
def test_trap_12_thinking_cannot_hide_in_formulas_or_code(cover):
    english = "first we count the red apples and then we add all the green ones"
    assert language_share("所以" + cover.format(english), "zh") < 0.2
    chinese = "首先我们数一数红苹果然后加上所有的绿苹果"
    assert language_share("so " + cover.format(chinese), "en") < 0.2


@pytest.mark.parametrize(
    ("hidden", "target"),
    [
        ("```\n先设未知数。再列方程。解得答案。最后检验。\n```", "en"),
        ("`先设未知数。` `再列方程。` `解得答案。`", "en"),
        ("$先设未知数$ $再列方程$ $解得答案$", "en"),
        ("```\nFirst we set up. Then solve it.\nIt is done.\n```", "zh"),
        ("`First set it.` `Then solve it.` `It is done.`", "zh"),
        ("$First set it$ $Then solve it$ $It is done$", "zh"),
        ("\\(First set it\\) \\(Then solve it\\) \\(It is done\\)", "zh"),
    ],
)
def test_trap_12_sentences_do_not_hide_in_formulas_and_code(hidden, target):
    other = {"en": "ok fine", "zh": "好的"}[target]
    assert language_share(f"{other} {hidden}", target) < 0.3
    assert language_share(other, target) == 1.0


def test_names_in_a_line_are_no_prose():
    """Of eight functions that a Chinese text names, none is an English word; nor are a block's lines."""
    names = " ".join(f"`{name}`" for name in ["len", "items", "count", "total", "index", "value", "first", "last"])
    assert words_by_language(f"我们用 {names} 来计算") == {"zh": 6}
    block = (
        "```python\nimport os\nimport re\nimport sys\nimport json\nfor item in items:\n    if item in seen: break\n```"
    )
    assert words_by_language(f"我们用 {block} 来计算") == {"zh": 6}
    formulas = r"$\frac{a}{b}$ 和 $\sin x + \cos y$ 和 $\text{area} = 3$ 和 $x \cdot y \leq z$"
    assert words_by_language(f"我们用 {formulas} 来计算") == {"zh": 9}


def test_code_is_not_taken_for_prose():
    code = "```python\nreturn x if y is not None else [n for n in range(10) if n in seen and n not in done]\n```"
    assert strip_maths_and_code(code).split() == []


def test_no_words_is_no_share():
    assert language_share("", "en") is None
    assert language_share("1 + 1 = 2 $x$", "en") is None


def test_the_language_of_a_question():
    assert detect_language("What does 你好 mean in English?") == "en"
    assert detect_language("单词 apple 是什么意思?") == "zh"
    assert detect_language("2 + 2 =") is None
    assert detect_language("Сколько будет два плюс два?") is None


@pytest.mark.parametrize(
    "unit", ["$", "\\(", "\\[", "```", "`", "\\begin{a}", "\\begin{align}", "a", "字", "$a ", "https://"]
)
def test_trap_8_a_hundred_thousand_characters_take_bounded_time(unit):
    start = time.process_time()
    words_by_language(unit * (100_000 // len(unit)))
    words_by_language("$" + unit * (100_000 // len(unit)))
    assert time.process_time() - start < 3


def test_control_characters_and_lone_surrogates():
    assert words_by_language("we\x00add\ud800 three\u200b") == {"en": 3}


def test_other_pairs_by_lingua():
    pytest.importorskip("lingua", reason="the extra `language` is not installed")
    german = "Zuerst rechnen wir aus, wie viele Äpfel er hat, und danach ziehen wir drei davon ab."
    mixed = german + " But wait, this cannot be right, let me check the whole calculation again."
    assert language_share(german, "de") == 1.0
    assert 0.3 < language_share(mixed, "de") < 0.7
    assert language_share("Wir addieren die Zahlen. " + "因此答案是三", "de") < 0.6
    assert language_share(german + "\ud800", "de") > 0.9
    # By script alone it would pass for English.
    assert language_share(german, "en") == 1.0
    assert language_share(german, "en", others=("de",)) == 0.0
    assert detect_language(german, ("de", "fr", "en")) == "de"


def test_unknown_codes_are_refused():
    pytest.importorskip("lingua", reason="the extra `language` is not installed")
    with pytest.raises(ConfigurationError, match=r"'xx'.*'de'"):
        check_language("xx")
    with pytest.raises(ConfigurationError, match="'german'"):
        words_by_language("a", ["german", "en"])
    with pytest.raises(ConfigurationError, match="ISO 639-1"):
        words_by_language("a", [])
    with pytest.raises(ConfigurationError, match="'de'"):
        words_by_language("a", ["de"])


def test_without_lingua_the_extra_is_named(monkeypatch):
    _detector.cache_clear()
    real = builtins.__import__

    def without_lingua(name, *args, **kwargs):
        if name == "lingua":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_lingua)
    with pytest.raises(MissingExtraError, match=r"trl-r1\[language\]"):
        check_language("de")
    check_language("zh")
