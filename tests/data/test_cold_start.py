"""The cold start: what is asked, what is kept, what a rewriting may change, and what survives a second start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trl_r1.data.cold_start import ColdStartBuilder, SampledSource
from trl_r1.data.cold_start_prompts import EXAMPLES, Example, asking, examples_from, few_shot_prompt
from trl_r1.data.cold_start_rows import read_rows, write_rows
from trl_r1.data.filters import default_filters, first_reason
from trl_r1.data.worked import EquationFilter, WorkedSolution
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.generation.base import Sample, SampleRequest, SamplingSettings
from trl_r1.prompts import PromptTemplate, direct_prompt, r1_completion, read_rewrite, rewrite_prompt
from trl_r1.responses import parse
from trl_r1.rows import Completion, Row
from trl_r1.verifiers import verify

GOOD = "<think>\nI add them: 1 + 1 = 2. Let me check: 2 - 1 = 1. Yes.\n</think>\n\nThe sum is \\boxed{2}."
SETTINGS = SamplingSettings(max_tokens=64, seed=0)
ROWS = [Row(f"What is {number} + 1?", str(number + 1), "math", "en", f"q{number}") for number in range(1, 4)]


class Written:
    """A sampler that has written its completions before: by key a list, or the same for all."""

    tokenizer = None
    name = "written"

    def __init__(self, texts: dict[str, list[Any]] | list[Any], form: str = "boxed", prefill: str = "") -> None:
        self.texts, self.template = texts, PromptTemplate("base", form=form, prefill=prefill)
        self.asked: list[SampleRequest] = []

    def stream(self, requests: Iterable[SampleRequest], settings: SamplingSettings) -> Iterator[Sample]:
        for request in requests:
            self.asked.append(request)
            texts = self.texts[request.key] if isinstance(self.texts, dict) else self.texts
            # The last one first: what is kept must not depend on what finishes when.
            for index in reversed(range(request.n)):
                found = texts[index]
                completion = Completion(found) if isinstance(found, str) else found
                yield Sample(request.key, index, replace(completion, prefill=self.template.prefill))

    def cancel(self, key: str) -> None:
        """Nothing runs ahead."""

    def close(self) -> None:
        """Nothing is held."""


def build(folder: Path, texts: Any, rows: Sequence[Row] = ROWS[:1], **settings: Any) -> tuple[ColdStartBuilder, dict]:
    builder = ColdStartBuilder(folder, **settings)
    n = len(texts) if isinstance(texts, list) else len(next(iter(texts.values())))
    builder.sample(SampledSource("r1_zero", Written(texts), SETTINGS, n), rows)
    return builder, builder.write()


# What is asked


@pytest.mark.parametrize("language", EXAMPLES)
@pytest.mark.parametrize("form", ["boxed", "answer"])
def test_our_examples_are_what_they_ask_for(language: str, form: str) -> None:
    for example in EXAMPLES[language]:
        row = Row(example.question, example.answer, "math", language)
        completion = Completion(r1_completion(example.reasoning, example.answer, example.summary, form=form))
        assert verify(parse(completion.text).answer, row).correct
        assert first_reason([*default_filters(), EquationFilter()], row, completion) is None


def test_few_shot_shows_examples_in_the_questions_language_as_earlier_turns() -> None:
    asked = few_shot_prompt(ROWS[0], "answer")
    assert [turn["role"] for turn in asked] == ["user", "assistant"] * 2 + ["user"]
    assert asked[-1]["content"] == "What is 1 + 1?"
    assert all(parse(turn["content"]).well_formed for turn in asked[1:-1:2])
    assert "铅笔" in few_shot_prompt(Row("一加一等于几?", "2"), "boxed")[0]["content"]
    own = examples_from([WorkedSolution(Row("1 + 2?", "3"), "mine", "3")])
    assert asking("few_shot", "boxed", own)(ROWS[0])[0]["content"] == "1 + 2?"
    with pytest.raises(DataError, match="holds none"):
        examples_from([])


def test_direct_and_zero_ask_in_one_message() -> None:
    text = asking("direct", "boxed")(ROWS[0])
    assert text == direct_prompt("What is 1 + 1?", language="en")
    assert "in English" in text
    assert "\\boxed{}" in text
    assert "<answer>" in direct_prompt("q", form="answer")
    assert asking("r1_zero", "boxed")(ROWS[0]) == "What is 1 + 1?"
    with pytest.raises(ConfigurationError, match="'few_shot', 'direct', 'r1_zero'"):
        asking("zero_shot", "boxed")


# What is kept


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (GOOD.replace("{2}", "{3}"), "wrong"),
        (Completion(GOOD[:40], finish_reason="length"), "structure"),
        ("It is \\boxed{2}.", "structure"),
        (GOOD.replace("I add them", "我把一和一加在一起就得到二 so we see that"), "language"),
        (GOOD.replace("Yes.", "Let me check all of it again now. " * 30), "repetition"),
        (GOOD.replace("Yes.", "```\nprint(1 + 1)\n```"), "code"),
        (GOOD.replace("= 1.", "= 7."), "equation"),
    ],
)
def test_wrong_or_unreadable_traces_are_dropped_and_counted(tmp_path: Path, written: Any, reason: str) -> None:
    filters = [*default_filters(), EquationFilter()]
    _, report = build(tmp_path, [written, GOOD], filters=filters)
    assert report["dropped"] == {reason: 1}
    assert report["dropped_examples"][reason][0].startswith("q1#r1_zero/0: ")
    assert report["by_source"]["r1_zero"] == {
        "traces": 2, "right": 1 + (reason not in ("wrong", "structure") or written == "It is \\boxed{2}."),
        "right and readable": 1, "rows": 1,
    }  # fmt: skip
    (row,) = read_rows(tmp_path / "cold_start.jsonl")
    assert row["trace_id"] == "q1#r1_zero/1"


def test_a_row_holds_what_training_and_review_need(tmp_path: Path) -> None:
    build(tmp_path, [GOOD])
    (row,) = read_rows(tmp_path / "cold_start.jsonl")
    assert row["completion"] == GOOD  # as it was written
    assert row["prompt"] == "What is 1 + 1?"
    assert row["reasoning"].startswith("I add them")
    assert row["summary"] == "The sum is \\boxed{2}."
    assert (row["answer"], row["source"], row["model"], row["language"]) == ("2", "r1_zero", "written", "en")
    assert row["verdict"]["correct"] is True
    assert row["review"] == {"status": "pending", "edited": False, "note": ""}
    assert Row.from_columns(row) == ROWS[0]


@pytest.mark.parametrize(
    ("written", "form", "target"),
    [
        (" <think>1 + 1 = 2</think> <answer>2</answer>", "answer", "<think>1 + 1 = 2</think> <answer>2</answer>"),
        (" <think>1 + 1 = 2</think> <answer>2</answer>", "boxed", "<think>\n1 + 1 = 2\n</think>\n\nThe answer is \\boxed{2}."),
        (GOOD, "answer", None),
        ("<think>1 + 1 = 2</think> 2", "boxed", "<think>\n1 + 1 = 2\n</think>\n\nThe answer is \\boxed{2}."),
    ],
)  # fmt: skip
def test_every_form_becomes_the_form_asked_for(tmp_path: Path, written: str, form: str, target: str | None) -> None:
    build(tmp_path, [written], form=form)
    (row,) = read_rows(tmp_path / "cold_start.jsonl")
    assert row["completion"] == target or (target is None and parse(row["completion"]).well_formed)
    assert parse(row["completion"]).answer == "2"
    assert not row["summary"].startswith("<")


def test_a_prefilled_thinking_is_part_of_the_target(tmp_path: Path) -> None:
    builder = ColdStartBuilder(tmp_path)
    sampler = Written([GOOD.removeprefix("<think>\n")], prefill="<think>\n")
    builder.sample(SampledSource("direct", sampler, SETTINGS, 1), ROWS[:1])
    builder.write()
    assert read_rows(tmp_path / "cold_start.jsonl")[0]["completion"] == GOOD


def test_the_first_in_order_of_sources_and_samples_are_kept(tmp_path: Path) -> None:
    builder = ColdStartBuilder(tmp_path, max_per_question=2)
    second, third = GOOD.replace("Yes.", "Right."), GOOD.replace("Yes.", "Good.")
    builder.sample(SampledSource("direct", Written([GOOD, GOOD, second, third]), SETTINGS, 4), ROWS[:1])
    builder.add_worked(
        [WorkedSolution(ROWS[0], "1 + 1 = 2", "2"), WorkedSolution(ROWS[1], "2 + 1 = 3", "3", group="g")]
    )
    report = builder.write()
    rows = read_rows(tmp_path / "cold_start.jsonl")
    # The same text twice is one trace; the third one is over the cap.
    assert [row["trace_id"] for row in rows] == ["q1#direct/0", "q1#direct/2", "q2#traces/0"]
    assert rows[2]["group"] == "g"
    assert {name: counts["rows"] for name, counts in report["by_source"].items()} == {"direct": 2, "traces": 1}


def test_what_no_rule_can_verify_is_kept_only_when_asked_for(tmp_path: Path) -> None:
    poem = [Row("Write a poem.", "", "general", "en", "poem")]
    text = "<think>\nA short one about the sea, I think.\n</think>\n\nThe sea is wide."
    with pytest.raises(DataError, match=r"None of 1 traces of 1 questions \(poem.*unverifiable.*Draw more samples"):
        build(tmp_path / "a", [text], poem)
    _, report = build(tmp_path / "b", [text], poem, keep_unverified=True)
    assert report["rows"] == 1
    assert read_rows(tmp_path / "b" / "cold_start.jsonl")[0]["verdict"]["correct"] is None


def test_questions_without_a_row_are_named(tmp_path: Path) -> None:
    _, report = build(tmp_path, [GOOD], ROWS)
    assert report["questions_without_a_row"] == {"count": 2, "first": ["q2", "q3"]}


# Rewriting


def rewriting(reasoning: str, summary: str) -> str:
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<summary>\n{summary}\n</summary>"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (rewriting("Let me see: 1 + 1 = 2.", "It is \\boxed{2}."), None),
        ("<think>as asked</think>" + rewriting("Let me see: 1 + 1 = 2.", "It is \\boxed{2}."), None),
        (rewriting("Let me see: 1 + 1 = 3.", "It is \\boxed{3}."), "rewrite: wrong: '3'"),
        (rewriting("Let me see.", "It is 2."), "rewrite: no final answer in a box"),
        (rewriting("我们把一和一加在一起得到二", "It is \\boxed{2}."), "rewrite: language"),
        ("Here you are: 2", "rewrite: not in the form"),
        (Completion(rewriting("a", "\\boxed{2}"), finish_reason="length"), "rewrite: cut off"),
    ],
)
def test_a_rewriting_is_verified_again(tmp_path: Path, reply: Any, reason: str | None) -> None:
    builder = ColdStartBuilder(tmp_path)
    builder.sample(
        SampledSource("r1_zero", Written({"q1": [GOOD], "q2": [GOOD.replace("2}", "3}")]}), SETTINGS, 1), ROWS[:2]
    )
    keep = rewriting("I take 2 and add 1.", "It is \\boxed{3}.")
    builder.rewrite(Written({"q1#r1_zero/0": [reply], "q2#r1_zero/0": [keep]}), SETTINGS)
    report = builder.write()
    rows = {row["id"]: row for row in read_rows(tmp_path / "cold_start.jsonl")}
    assert report["rewritten"] == len(rows) == 1 + (reason is None)
    if reason is not None:
        assert "q1" not in rows
        assert reason in report["dropped_examples"]["rewrite"][0]
        return
    assert rows["q1"]["completion"] == "<think>\nLet me see: 1 + 1 = 2.\n</think>\n\nIt is \\boxed{2}."
    assert rows["q1"]["rewritten"] is True
    assert rows["q1"]["original"]["completion"] == GOOD


def test_the_first_rewriting_that_passes_is_used(tmp_path: Path) -> None:
    builder, _ = build(tmp_path, [GOOD])
    sampler = Written(["no", rewriting("Well: 1 + 1 = 2.", "\\boxed{2}"), rewriting("Hm: 1 + 1 = 2.", "\\boxed{2}")])
    builder.rewrite(sampler, SETTINGS, n=3)
    builder.write()
    assert read_rows(tmp_path / "cold_start.jsonl")[0]["reasoning"] == "Well: 1 + 1 = 2."
    (request,) = sampler.asked
    assert request.prompt == rewrite_prompt("What is 1 + 1?", parse(GOOD).reasoning, "2", language="en")
    assert "Write everything in English" in str(request.prompt)


def test_text_is_put_into_the_request_as_it_is() -> None:
    request = rewrite_prompt("{{ question }}", "{% raw %} <b>", "2", language=None)
    assert "{{ question }}" in request
    assert "{% raw %} <b>" in request
    assert read_rewrite("<reasoning> </reasoning><summary>x</summary>") is None


# A second start


def test_a_second_start_samples_nothing_again(tmp_path: Path) -> None:
    _, report = build(tmp_path, [GOOD], ROWS)
    again = Written([GOOD])
    builder = ColdStartBuilder(tmp_path)
    builder.sample(SampledSource("r1_zero", again, SETTINGS, 1), ROWS)
    assert builder.write() == report
    assert again.asked == []
    with pytest.raises(ConfigurationError, match=r"sampling\.temperature was 1\.0 and is 0\.5"):
        ColdStartBuilder(tmp_path).sample(
            SampledSource("r1_zero", again, SamplingSettings(0.5, max_tokens=64, seed=0), 1), ROWS
        )


def test_a_question_asked_otherwise_is_asked_again(tmp_path: Path) -> None:
    def asked(shown: str, rows: Sequence[Row] = ROWS[:2]) -> list[str]:
        sampler = Written([GOOD, GOOD])
        builder = ColdStartBuilder(tmp_path, filters=())
        examples = (Example(shown, "r", "s", "a"),)
        builder.sample(SampledSource("few_shot", sampler, SETTINGS, 2, examples), rows)
        assert builder.report()["by_source"]["few_shot"]["traces"] == 2 * len(rows)
        return [request.prompt[0]["content"] for request in sampler.asked]

    assert asked("old") == ["old", "old"]
    assert asked("old") == []
    # What was interrupted goes on: the third question has no answer yet.
    assert asked("new", ROWS) == ["new"] * 3
    assert asked("new", ROWS) == []
    assert asked("old", ROWS) == ["old"]
    # A question that keeps its id, but not its text.
    assert asked("old", [replace(ROWS[0], prompt="What is one and one?"), *ROWS[1:]]) == ["old"]


def test_samples_of_earlier_versions_are_kept(tmp_path: Path) -> None:
    """They do not say what was asked."""
    build(tmp_path, [GOOD], ROWS)
    (shard,) = (tmp_path / "samples" / "r1_zero").glob("shard-*")
    records = [json.loads(line) for line in shard.read_text().splitlines()]
    assert all(record.pop("asked") for record in records)
    shard.write_text("".join(json.dumps(record) + "\n" for record in records))
    again = Written([GOOD])
    ColdStartBuilder(tmp_path).sample(SampledSource("r1_zero", again, SETTINGS, 1), ROWS)
    assert again.asked == []


def test_a_corrected_trace_is_rewritten_again(tmp_path: Path) -> None:
    def rewritten(text: str) -> tuple[int, str]:
        sampler = Written([rewriting(f"Well: {text}", "It is \\boxed{2}.")])
        builder = ColdStartBuilder(tmp_path, filters=())
        builder.add_worked([WorkedSolution(ROWS[0], text, "2")])
        builder.rewrite(sampler, SETTINGS)
        builder.write()
        return len(sampler.asked), read_rows(tmp_path / "cold_start.jsonl")[0]["reasoning"]

    assert rewritten("one and one is two.") == (1, "Well: one and one is two.")
    assert rewritten("1 + 1 = 2.") == (1, "Well: 1 + 1 = 2.")
    assert rewritten("1 + 1 = 2.") == (0, "Well: 1 + 1 = 2.")


def test_what_a_person_decided_survives_a_second_start(tmp_path: Path) -> None:
    texts = {"q1": [GOOD], "q2": [GOOD.replace("{2}", "{3}")], "q3": [GOOD.replace("{2}", "{4}")]}
    build(tmp_path, texts, ROWS)
    path = tmp_path / "cold_start.jsonl"
    rows = read_rows(path)
    rows[0] |= {"reasoning": "mine", "review": {"status": "pending", "edited": True, "note": ""}}
    rows[1] |= {"review": {"status": "drop", "edited": False, "note": "boring"}}
    write_rows(path, rows)
    build(tmp_path, texts, ROWS)
    assert read_rows(path) == rows
    # A reviewed row stays even where the new settings would leave it out.
    build(tmp_path, texts, ROWS, max_rows=1)
    assert read_rows(path) == rows[:2]


SHARED = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_cold_start import GOOD, ROWS, SETTINGS, Written
from trl_r1.data.cold_start import ColdStartBuilder, SampledSource
sampler = Written([GOOD, GOOD])
builder = ColdStartBuilder({folder!r})
builder.sample(SampledSource("r1_zero", sampler, SETTINGS, 2), ROWS)
print(len(sampler.asked), builder.write()["by_source"]["r1_zero"]["traces"])
"""


def test_two_processes_share_the_questions(tmp_path: Path) -> None:
    program = SHARED.format(here=str(Path(__file__).parent), folder=str(tmp_path))
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=os.environ | place)
        for place in ({"RANK": "1", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "2"})
    ]
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    # Each asked its share, both report all, one wrote.
    assert said == [["1", "6"], ["2", "6"]]
    assert json.loads((tmp_path / "cold_start.jsonl").read_text())["id"] == "q1"


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'answer', 'boxed'"):
        ColdStartBuilder(tmp_path, form="tags")
    with pytest.raises(ConfigurationError, match="max_per_question=0"):
        ColdStartBuilder(tmp_path, max_per_question=0)
