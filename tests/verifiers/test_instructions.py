"""Format checks in IFEval's style: for every rule a reply that obeys it and one that does not."""

from __future__ import annotations

import json

import pytest

from trl_r1.rows import Row
from trl_r1.verifiers.instructions import RULES, find_lenient, readable, verify

CASES = [
    ("keywords:existence", {"keywords": ["sun", "sea"]}, "The sun and the Sea.", "The sunny sea."),
    ("keywords:frequency", {"keyword": "ho", "relation": "at least", "frequency": 3}, "Ho ho, ho!", "hoho ho ho"),
    ("keywords:frequency", {"keyword": "ho", "relation": "less than", "frequency": 2}, "ho", "ho ho"),
    ("keywords:forbidden_words", {"forbidden_words": ["rain"]}, "No rainbow.", "No Rain."),
    ("keywords:letter_frequency", {"letter": "q", "let_relation": "at least", "let_frequency": 2}, "Quite quick", "quite"),
    ("language:response_language", {"language": "zh"}, "今天天气很好，我们去公园。", "The weather is fine today."),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 3}, "One. Two!", "A. B. C?"),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}, "It is 3.5. Fine.", "It is 3.5."),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 4}, "don't count me twice", "only three words"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First.\n\nThen, more.",
        "First.\n\nAnd then.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [town]", "[name] (town)"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. Call me.", "Bye. Call me."),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S Call me.", "Bye.\nP.S. Call me."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two\n**bold**", "* one\n* two\n* three"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", "*one* and ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section 1\na",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<My poem>>\nroses", "<< >>\nroses"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "say hi. Hi!", "Hi! say hi."),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, "Done. Any questions?", "Any questions? No."),
    ("startend:quotation", {}, '"quoted"', 'not "quoted"'),
    ("change_case:capital_word_frequency", {"capital_relation": "less than", "capital_frequency": 2}, "ONE two", "ONE TWO"),
    ("change_case:english_capital", {}, "ALL OF THIS IS LOUD", "ALL of THIS"),
    ("change_case:english_lowercase", {}, "all of this is quiet", "All of this"),
    ("punctuation:no_comma", {}, "none at all", "one, two"),
]  # fmt: skip


def row(*rules: dict) -> Row:
    return Row("prompt", json.dumps({"rules": list(rules)}), "general", verifier="instructions")


@pytest.mark.parametrize(("rule", "arguments", "good", "bad"), CASES, ids=[case[0] for case in CASES])
def test_rule(rule: str, arguments: dict, good: str, bad: str) -> None:
    asked = row({"rule": rule, **arguments})
    assert readable(asked) is None
    assert verify(good, asked).correct is True
    verdict = verify(bad, asked)
    assert verdict.correct is False
    assert rule in verdict.detail
    assert verify("  ", asked).correct is False


def test_every_rule_of_ifeval_is_tried() -> None:
    assert {case[0] for case in CASES} == set(RULES)
    assert len(RULES) == 25


def test_all_rules_must_hold_and_the_broken_one_is_named() -> None:
    asked = row({"rule": "punctuation:no_comma"}, {"rule": "startend:quotation"})
    assert verify('"fine"', asked).correct is True
    assert verify('"one, two"', asked).detail == "breaks punctuation:no_comma"


def test_rules_that_cannot_be_checked_are_no_verdict() -> None:
    for reference, reason in (
        ("x", "not JSON"),
        ('{"rules": []}', "list of 'rules'"),
        ('{"rules": [{"rule": "be:nice"}]}', "'be:nice'"),
        ('{"rules": [{"rule": "startend:end_checker"}]}', "without end_phrase"),
        ('{"rules": [{"rule": "keywords:frequency", "keyword": "a", "relation": "about", "frequency": 1}]}', "'about'"),
    ):
        asked = Row("prompt", reference, "general", verifier="instructions")
        assert reason in (readable(asked) or "")
        assert verify("text", asked).correct is None


def test_lenient_reads_what_follows_the_thinking() -> None:
    assert find_lenient("<think> a, b </think> fine", row()) == "fine"
    assert find_lenient("fine", row()) == "fine"


def test_hostile_replies_take_bounded_time() -> None:
    every = row(
        *[{"rule": case[0], **case[1]} for case in CASES if not case[0].startswith(("language", "change_case"))]
    )
    for text in ("*" * 100_000, "[" * 100_000, "a." * 50_000, "<<" * 50_000, "\n" * 100_000 + "x", "[" * 90_000 + "]"):
        verify(text, every)
