"""Does this reply obey the verifiable instructions of its prompt? For format checks in the style of IFEval (arXiv 2311.07911).

References are JSON, `{"rules": [{"rule": "length_constraints:number_words", "relation": "at least", "num_words": 300}, …]}`,
with the names and arguments of IFEval's data set. A reply is right when all rules hold ("strict", by prompt). The rules are
written from the paper's description; two need a tool that IFEval takes from elsewhere: sentences are split at end marks, and
languages are told by [`trl_r1.language`] (English and Chinese, others with `pip install 'trl-r1[language]'`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from trl_r1.exceptions import MissingExtraError
from trl_r1.language import detect_language
from trl_r1.rows import Row, Verdict, structured_reference

MAX_CHARACTERS = 200_000
_RELATIONS = ("at least", "less than")
# The three replies that IFEval's "constrained response" allows.
_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

Rule = Callable[[str, Mapping[str, Any]], bool]


def verify(answer: str, row: Row) -> Verdict:
    """Tell whether a reply obeys every rule.

    Args:
        answer (`str`): The whole reply after the thinking.
        row ([`Row`]): Its `reference` lists the rules.

    Returns:
        [`Verdict`]: `correct` is `None` when a rule is unknown or lacks an argument. `detail` names the rules broken.
    """
    rules = _read(row.reference)
    if isinstance(rules, str):
        return Verdict(None, rules)
    if len(answer) > MAX_CHARACTERS:
        return Verdict(False, f"longer than {MAX_CHARACTERS} characters")
    try:
        broken = [name for name, arguments in rules if not (answer.strip() and RULES[name](answer, arguments))]
    except MissingExtraError as error:
        return Verdict(None, str(error))
    return Verdict(not broken, f"breaks {', '.join(broken)}" if broken else f"obeys {len(rules)} rules")


def readable(row: Row) -> str | None:
    """Return why the rules of a row cannot be checked, or `None` when they can."""
    rules = _read(row.reference)
    return rules if isinstance(rules, str) else None


def gold_answer(row: Row) -> str | None:
    """Return `None`: rules have no gold answer."""
    return None


def find_lenient(text: str, row: Row) -> str | None:
    """Return what follows the thinking, or the whole text where there is none."""
    return re.sub(r"</?answer>", "", text.rpartition("</think>")[2]).strip() or None


@lru_cache(maxsize=65536)
def _read(reference: str) -> list[tuple[str, dict[str, Any]]] | str:
    """Return names and arguments of the rules, or why they cannot be read."""
    try:
        parsed = structured_reference(reference)
    except json.JSONDecodeError:
        return "not JSON"
    if not isinstance(parsed, dict) or not isinstance(parsed.get("rules"), list) or not parsed["rules"]:
        return "JSON without a list of 'rules'"
    found = []
    for entry in parsed["rules"]:
        name = entry.get("rule") if isinstance(entry, dict) else None
        if name not in RULES:
            return f"unknown rule {name!r}"
        arguments = {key: value for key, value in entry.items() if key != "rule"}
        missing = [key for key in _ARGUMENTS.get(name, ()) if arguments.get(key) is None]
        if missing:
            return f"rule {name} without {', '.join(missing)}"
        relations = [value for key, value in arguments.items() if key.endswith("relation")]
        if any(value not in _RELATIONS for value in relations):
            return f"rule {name} with relation {relations[0]!r}; allowed are {', '.join(_RELATIONS)}"
        found.append((name, arguments))
    return found


def _compare(count: int, relation: str, wanted: int) -> bool:
    return count >= wanted if relation == "at least" else count < wanted


def _count(phrase: str, text: str) -> int:
    """Count whole-word occurrences, letter case aside."""
    return len(re.findall(rf"(?<!\w){re.escape(phrase.strip())}(?!\w)", text, re.IGNORECASE))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def _sentences(text: str) -> int:
    parts = re.split(r"(?<=[.!?。！？])[\"'”’)\]]*(?:\s+|(?<=[。！？]))|\n{2,}", text.strip())
    return sum(bool(_words(part)) for part in parts)


def _paragraphs(text: str, mark: str) -> list[str]:
    return [part.strip() for part in re.split(mark, text) if part.strip()]


def _postscript(text: str, a: Mapping[str, Any]) -> bool:
    letters = [letter for letter in str(a["postscript_marker"]) if letter.isalpha()]
    return re.search(r"^[ \t]*" + r"\.[ \t]?".join(letters) + r"\b", text, re.IGNORECASE | re.MULTILINE) is not None


def _json(text: str, a: Mapping[str, Any]) -> bool:
    inside = re.sub(r"\A\s*```(?:json)?|```\s*\Z", "", text.strip(), flags=re.IGNORECASE)
    try:
        json.loads(inside)
    except (ValueError, RecursionError):
        return False
    return True


def _two_responses(text: str, a: Mapping[str, Any]) -> bool:
    parts = [part.strip() for part in text.split("******")]
    parts = [part for index, part in enumerate(parts) if part or 0 < index < len(parts) - 1]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _nth_paragraph(text: str, a: Mapping[str, Any]) -> bool:
    parts = _paragraphs(text, r"\n\s*\n")
    nth = int(a["nth_paragraph"])
    if len(parts) != int(a["num_paragraphs"]) or not 1 <= nth <= len(parts):
        return False
    first = _words(parts[nth - 1])[:1]
    return bool(first) and first[0].casefold() == str(a["first_word"]).strip(".,!?\"' ").casefold()


def _sections(text: str, a: Mapping[str, Any]) -> bool:
    return len(re.findall(rf"{re.escape(str(a['section_spliter']))}\s*\d+", text)) >= int(a["num_sections"])


def _quoted(text: str, a: Mapping[str, Any]) -> bool:
    text = text.strip()
    return len(text) > 1 and (text[0], text[-1]) in (('"', '"'), ("“", "”"))


def _language(text: str, code: str) -> bool:
    code = code.partition("-")[0]
    return detect_language(text, tuple(dict.fromkeys((code, "en", "zh")))) == code


def _capital_words(text: str) -> int:
    return sum(word.isupper() for word in _words(text))


RULES: dict[str, Rule] = {
    "keywords:existence": lambda t, a: all(_count(str(word), t) for word in a["keywords"]),
    "keywords:frequency": lambda t, a: _compare(_count(str(a["keyword"]), t), a["relation"], int(a["frequency"])),
    "keywords:forbidden_words": lambda t, a: not any(_count(str(word), t) for word in a["forbidden_words"]),
    "keywords:letter_frequency": lambda t, a: _compare(
        t.casefold().count(str(a["letter"]).casefold()), a["let_relation"], int(a["let_frequency"])
    ),
    "language:response_language": lambda t, a: _language(t, str(a["language"])),
    "length_constraints:number_sentences": lambda t, a: _compare(_sentences(t), a["relation"], int(a["num_sentences"])),
    "length_constraints:number_words": lambda t, a: _compare(len(_words(t)), a["relation"], int(a["num_words"])),
    "length_constraints:number_paragraphs": lambda t, a: len(_paragraphs(t, r"\*\*\*")) == int(a["num_paragraphs"]),
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": lambda t, a: (
        len(re.findall(r"\[[^\[\]]+\]", t)) >= int(a["num_placeholders"])
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": lambda t, a: (
        len(re.findall(r"^[ \t]*(?:\*(?!\*)|-)[ \t]+\S", t, re.MULTILINE)) == int(a["num_bullets"])
    ),
    "detectable_format:constrained_response": lambda t, a: any(reply in t for reply in _CONSTRAINED),
    "detectable_format:number_highlighted_sections": lambda t, a: (
        len(re.findall(r"\*\*[^*\n]*[^*\s][^*\n]*\*\*|(?<!\*)\*[^*\n]*[^*\s][^*\n]*\*(?!\*)", t))
        >= int(a["num_highlights"])
    ),
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": lambda t, a: re.search(r"<<[^<>\n]*[^<>\s][^<>\n]*>>", t) is not None,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda t, a: (
        t.strip().casefold().startswith(str(a["prompt_to_repeat"]).strip().casefold())
    ),
    "startend:end_checker": lambda t, a: (
        t.strip().strip('"').rstrip().casefold().endswith(str(a["end_phrase"]).strip().casefold())
    ),
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": lambda t, a: _compare(
        _capital_words(t), a["capital_relation"], int(a["capital_frequency"])
    ),
    "change_case:english_capital": lambda t, a: t.isupper() and _language(t.lower(), "en"),
    "change_case:english_lowercase": lambda t, a: t.islower() and _language(t, "en"),
    "punctuation:no_comma": lambda t, a: "," not in t,
}
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "keywords:existence": ("keywords",),
    "keywords:frequency": ("keyword", "relation", "frequency"),
    "keywords:forbidden_words": ("forbidden_words",),
    "keywords:letter_frequency": ("letter", "let_relation", "let_frequency"),
    "language:response_language": ("language",),
    "length_constraints:number_sentences": ("relation", "num_sentences"),
    "length_constraints:number_words": ("relation", "num_words"),
    "length_constraints:number_paragraphs": ("num_paragraphs",),
    "length_constraints:nth_paragraph_first_word": ("num_paragraphs", "nth_paragraph", "first_word"),
    "detectable_content:number_placeholders": ("num_placeholders",),
    "detectable_content:postscript": ("postscript_marker",),
    "detectable_format:number_bullet_lists": ("num_bullets",),
    "detectable_format:number_highlighted_sections": ("num_highlights",),
    "detectable_format:multiple_sections": ("section_spliter", "num_sections"),
    "combination:repeat_prompt": ("prompt_to_repeat",),
    "startend:end_checker": ("end_phrase",),
    "change_case:capital_word_frequency": ("capital_relation", "capital_frequency"),
}
