"""The rows of a cold-start data set as JSONL: what they hold, how they are written, what review leaves in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trl_r1.data.filters import parsed
from trl_r1.data.sources import question_key
from trl_r1.exceptions import DataError
from trl_r1.generation.shards import write_whole
from trl_r1.prompts import r1_completion
from trl_r1.responses import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN, boxes, parse
from trl_r1.rows import Completion, Prompt, Row
from trl_r1.verifiers import verify

STATUSES = ("pending", "keep", "drop")
_TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)


@dataclass(frozen=True)
class ColdStartRow:
    """One trace to learn from. `prompt` and `completion` are what [`~trl_r1.trainers.R1SFTTrainer`] trains on.

    Args:
        prompt, reference, domain, language, id, verifier: As in [`~trl_r1.rows.Row`].
        trace_id (`str`): Names this trace of the question.
        reasoning (`str`): The thinking, without tags.
        summary (`str`): What follows the thinking.
        answer (`str`): The final answer.
        completion (`str`): The target: thinking in tags, then the summary or the answer.
        source (`str`): Where it comes from: `few_shot`, `direct`, `r1_zero`, `traces`.
        model (`str`): Who wrote it, if a model did.
        group (`str`, *optional*): What kind of question it is, such as its template.
        verdict (`dict`): `correct` and `detail`, of the completion as it stands here.
        rewritten (`bool`): Whether a model made it readable; `original` holds what it was made from.
        original (`dict`, *optional*): `reasoning`, `summary` and `completion` before a model or a person changed them.
        review (`dict`): `status` (`pending`, `keep` or `drop`), `edited`, and a `note`.
    """

    prompt: Prompt
    reference: str
    domain: str
    language: str | None
    id: str
    verifier: str | None
    trace_id: str
    reasoning: str
    summary: str
    answer: str
    completion: str
    source: str
    model: str
    group: str | None
    verdict: dict[str, Any]
    rewritten: bool
    original: dict[str, str] | None
    review: dict[str, Any] = field(default_factory=lambda: {"status": "pending", "edited": False, "note": ""})


def write_rows(path: Path, rows: Iterable[ColdStartRow | Mapping[str, Any]]) -> None:
    """Write rows as JSONL, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(map(json_line, rows)))


def json_line(row: ColdStartRow | Mapping[str, Any]) -> str:
    """Return a row as it stands in the file."""
    return json.dumps(asdict(row) if isinstance(row, ColdStartRow) else row, ensure_ascii=False) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read rows; an empty list where there is no file.

    Raises:
        [`DataError`]: A line is no JSON object; says which.
    """
    if not path.is_file():
        return []
    rows = []
    # Not `splitlines`, which also splits at the line separators that JSON leaves in its strings.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}, is no JSON: {error}.") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}, is a {type(row).__name__}. It must be an object.")
        rows.append(row)
    return rows


def merge_reviewed(
    rows: Sequence[ColdStartRow], earlier: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], int]:
    """Put what a person decided earlier in the place of the new rows, and keep reviewed rows that are not new.

    Args:
        rows (`Sequence[ColdStartRow]`): As built now.
        earlier (`Sequence[Mapping]`): As they stand in the file.

    Returns:
        `tuple[list[Mapping], int]`: All rows, and how many of them are earlier ones.
    """
    reviewed = {row["trace_id"]: row for row in earlier if was_reviewed(row) and "trace_id" in row}
    merged: list[Mapping[str, Any]] = [
        reviewed.pop(row.trace_id) if row.trace_id in reviewed else asdict(row) for row in rows
    ]
    left = list(reviewed.values())
    taken = sum(was_reviewed(row) for row in merged)
    return [*merged, *left], taken + len(left)


def was_reviewed(row: Mapping[str, Any]) -> bool:
    """Whether a person decided on a row or changed it."""
    review = row.get("review") or {}
    return review.get("status", "pending") != "pending" or bool(review.get("edited"))


def plain_summary(summary: str) -> str:
    """Return what follows the thinking without R1-Zero's tags, which hold the answer alone."""
    return summary.replace(ANSWER_OPEN, "").replace(ANSWER_CLOSE, "").strip()


def edited(row: Mapping[str, Any], reasoning: str, summary: str, answer: str) -> dict[str, Any]:
    """Return a row with other text in it, put together in the row's form and verified again; the first text is kept.

    Args:
        row (`Mapping`): A row.
        reasoning (`str`): The new thinking, without tags.
        summary (`str`): The new summary; unused where the row is in R1-Zero's form.
        answer (`str`): The new answer; where the summary has a box, what stands in it counts.

    Returns:
        `dict`: The row as it is to be stored.

    Raises:
        [`DataError`]: The thinking or the answer is empty, or the text holds tags.
    """
    form = "answer" if ANSWER_OPEN in str(row.get("completion", "")) else "boxed"
    for name, text in (("thinking", reasoning), ("summary", summary), ("answer", answer)):
        if found := [tag for tag in _TAGS if tag in text]:
            raise DataError(f"The {name} holds {found[0]}. Tags are put around it when it is saved: take it out.")
    inside = boxes(summary) if form == "boxed" else []
    answer = inside[-1] if inside else answer
    for name, text in (("thinking", reasoning), ("answer", answer)):
        if not text.strip():
            raise DataError(f"The {name} is empty. Write it, or drop the row.")
    completion = r1_completion(reasoning, answer, summary, form=form)
    verdict = verdict_of(row, completion)
    own = ("reasoning", "summary", "answer", "completion")
    return {
        **row,
        "reasoning": reasoning.strip(),
        "summary": plain_summary(parse(completion).summary),
        "answer": verdict.pop("answer"),
        "completion": completion,
        "verdict": verdict,
        # What a model changed before is the original still.
        "original": row.get("original") or {name: row.get(name, "") for name in own},
    }


def verdict_of(row: Mapping[str, Any], completion: str) -> dict[str, Any]:
    """Verify a completion against the gold answer of a row.

    Args:
        row (`Mapping`): With the columns of a [`~trl_r1.rows.Row`].
        completion (`str`): The whole target.

    Returns:
        `dict`: `correct`, `detail`, and the `answer` that was read.
    """
    asked = Row.from_columns({"reference": "", **row})
    response = parse(completion)
    verdict = verify(response.answer, asked)
    return {"correct": verdict.correct, "detail": verdict.detail, "answer": response.answer or ""}


def question_id(row: Row) -> str:
    """Return the key of a row's question: its `id`, or one made from the question."""
    if row.id is not None:
        return row.id
    # As `load_rows` makes it.
    digest = hashlib.sha256(b"0\n" + question_key(row.prompt).encode()).hexdigest()
    return f"q-{digest[:16]}"


def target_text(completion: Completion, form: str) -> str:
    """Return a sampled completion as a target of a form: as it was written where it has the form, else put together anew.

    Args:
        completion ([`~trl_r1.rows.Completion`]): One thinking followed by an answer.
        form (`str`): `"boxed"` or `"answer"`.

    Returns:
        `str`: The target, from `<think>` on.
    """
    response = parsed(completion)
    whole = (completion.prefill + completion.text).strip()
    if response.well_formed if form == "answer" else boxes(response.summary) and "<answer>" not in response.summary:
        return whole
    if response.answer is None:
        return whole
    # An answer in R1-Zero's tags, or one that is all there is, is no summary.
    bare = "<answer>" in response.summary or response.answer.strip() == response.summary.strip()
    return r1_completion(response.reasoning, response.answer, "" if bare else response.summary, form=form)
