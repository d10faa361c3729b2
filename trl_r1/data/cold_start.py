"""[`ColdStartBuilder`]: readable long thinking for the first supervised fine-tuning, from four kinds of source.

The paper collects "thousands" of traces by few-shot prompting with a long CoT, by asking directly for reflection and
verification, from readable R1-Zero outputs, and by human post-processing (arXiv 2501.12948v1 §2.3.1). Its automatic path
(v2 B.3.2) is the one here: several samples per question at temperature 1.0, those kept that are correct *and* readable, an
LLM that refines thinking and summary, then a person (`trl-r1 review`). What was refined is verified again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trl_r1.behaviours import words
from trl_r1.data.cold_start_prompts import Example, asking
from trl_r1.data.cold_start_requests import ASKED, asked_digest, requests_to_store
from trl_r1.data.cold_start_rows import (
    ColdStartRow,
    merge_reviewed,
    plain_summary,
    question_id,
    read_rows,
    target_text,
    write_rows,
)
from trl_r1.data.filters import Filter, default_filters, first_reason, parsed, question_text, reason_name
from trl_r1.data.worked import WorkedSolution
from trl_r1.exceptions import ConfigurationError, DataError, unknown
from trl_r1.generation.base import Sample, Sampler, SampleRequest, SamplingSettings
from trl_r1.generation.progress import SampleProgress, sample_into_store
from trl_r1.generation.requests import process_place, process_share
from trl_r1.generation.shards import SampleStore, StoredSample, store_settings
from trl_r1.language import detect_language
from trl_r1.prompts import FORMS, r1_completion, read_rewrite, rewrite_prompt
from trl_r1.responses import boxes
from trl_r1.rows import Completion, Row, Verdict
from trl_r1.verifiers import verify

logger = logging.getLogger(__name__)

ROWS_FILE = "cold_start.jsonl"
# Samples per question that R1 drew for its cold start: "multiple" (v2 B.3.2). [?]
SAMPLES = 4
_EXAMPLES_PER_REASON = 3
_NAMED = 20
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class SampledSource:
    """A source that is sampled.

    Args:
        name (`str`): `"few_shot"`, `"direct"` or `"r1_zero"`.
        sampler ([`~trl_r1.generation.base.Sampler`]): Who writes.
        settings ([`~trl_r1.generation.base.SamplingSettings`]): How; R1: temperature 1.0.
        n (`int`, defaults to 4): Samples per question.
        examples (`tuple[Example, ...]`, *optional*): Worked examples of `"few_shot"`, instead of ours.
    """

    name: str
    sampler: Sampler
    settings: SamplingSettings
    n: int = SAMPLES
    examples: tuple[Example, ...] | None = None


@dataclass(frozen=True)
class _Candidate:
    """A completion with what was found of it; `reason` says why it is not used."""

    row: Row
    key: str
    source: str
    model: str
    index: int
    completion: Completion
    verdict: Verdict
    reason: str | None
    group: str | None = None
    original: Completion | None = None

    @property
    def trace_id(self) -> str:
        return f"{self.key}#{self.source}/{self.index}"


class ColdStartBuilder:
    """Builds the cold-start data set in a folder. Call [`sample`] and [`add_worked`], perhaps [`rewrite`], then [`write`].

    Samples lie in stores that survive a kill, so the same calls on the same folder go on where they stopped. Rows that a
    person has reviewed stay as they are when the data set is written again.

    Args:
        folder (`str` or `Path`): Where samples, rows and report go.
        form (`str`, defaults to `"boxed"`): Form of the targets: `"boxed"` (R1's thinking and summary) or `"answer"`.
        filters (`Sequence[Filter]`, *optional*): What readable means; [`~trl_r1.data.filters.default_filters`].
        max_per_question (`int`, defaults to 1): Most rows of one question, in the order of sources and samples.
        max_rows (`int`, *optional*): Most rows.
        keep_unverified (`bool`, defaults to `False`): Keep traces of questions that no rule can verify, for a person to judge.

    Raises:
        [`ConfigurationError`]: For a form or a number that is not allowed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        form: str = "boxed",
        filters: Sequence[Filter] | None = None,
        max_per_question: int = 1,
        max_rows: int | None = None,
        keep_unverified: bool = False,
    ) -> None:
        if form not in FORMS:
            raise unknown("answer form", form, FORMS)
        for name, value in (("max_per_question", max_per_question), ("max_rows", max_rows)):
            if value is not None and value < 1:
                raise ConfigurationError(f"{name}={value} must be at least 1.")
        self.folder = Path(folder)
        self.form = form
        self.filters = tuple(default_filters() if filters is None else filters)
        self.max_per_question, self.max_rows = max_per_question, max_rows
        self.keep_unverified = keep_unverified
        self._candidates: dict[str, list[_Candidate]] = {}
        self._refined: dict[str, _Candidate] | None = None

    @property
    def rows_path(self) -> Path:
        """The data set."""
        return self.folder / ROWS_FILE

    def sample(self, source: SampledSource, rows: Sequence[Row]) -> None:
        """Sample a source and judge what it writes. Only what no store holds yet, asked the same way, is sampled.

        Args:
            source ([`SampledSource`]): Who writes, asked how.
            rows (`Sequence[Row]`): Questions with gold answers.

        Raises:
            [`ConfigurationError`]: For an unknown source, or a folder that holds samples of other settings.
        """
        ask = asking(source.name, source.sampler.template.form, source.examples)
        by_key = {question_id(row): row for row in rows}
        for key in by_key:
            self._candidates.setdefault(key, [])
        requests = [SampleRequest(key, ask(row), source.n) for key, row in by_key.items()]
        judged: dict[tuple[str, int], _Candidate] = {}

        def judge(sample: Sample) -> dict[str, Any]:
            found = self._sampled(source, by_key[sample.key], sample.key, sample.index, sample.completion)
            judged[sample.key, sample.index] = found
            return {"correct": found.verdict.correct}

        settings = store_settings(source.sampler, source.settings, source=source.name, n=source.n)
        groups = self._stored(source.name, source.sampler, source.settings, requests, settings, judge)
        for key, row in by_key.items():
            for sample in groups.get(key, [])[: source.n]:
                known = judged.get((key, sample.index))
                self._candidates[key].append(known or self._sampled(source, row, key, sample.index, sample.completion))

    def add_worked(self, solutions: Iterable[WorkedSolution], name: str = "traces") -> None:
        """Take worked solutions: a user's own traces, a data set's solutions.

        Args:
            solutions (`Iterable[WorkedSolution]`): What [`~trl_r1.data.worked.load_worked`] reads.
            name (`str`, defaults to `"traces"`): What rows call their source.
        """
        for solution in solutions:
            row, key = solution.row, question_id(solution.row)
            text = r1_completion(solution.reasoning, solution.answer, solution.summary, form=self.form)
            found = self._candidates.setdefault(key, [])
            place = sum(one.source == name for one in found)
            completion = Completion(text)
            verdict, reason = self._judge(row, completion)
            found.append(_Candidate(row, key, name, "", place, completion, verdict, reason, solution.group))

    def rewrite(self, sampler: Sampler, settings: SamplingSettings, n: int = 1) -> None:
        """Let a model rewrite the chosen traces readably, in the question's language and first person, with a summary.

        What it wrote is verified and filtered like a sample; a trace none of whose rewritings passes is left out.

        Args:
            sampler ([`~trl_r1.generation.base.Sampler`]): An instruction model.
            settings ([`~trl_r1.generation.base.SamplingSettings`]): How it is sampled.
            n (`int`, defaults to 1): Tries per trace; the first that passes is used.
        """
        chosen = {one.trace_id: one for one in self._chosen()}
        self._refuse_nothing(list(chosen.values()))
        requests = []
        for key, one in chosen.items():
            response = parsed(one.completion)
            question, answer = question_text(one.row.prompt), str(response.answer)
            prompt = rewrite_prompt(question, response.reasoning, answer, language=_language(one.row))
            requests.append(SampleRequest(key, prompt, n))

        def judge(sample: Sample) -> dict[str, Any]:
            return {"correct": self._refine(chosen[sample.key], sample.completion).reason is None}

        kept = store_settings(sampler, settings, n=n)
        groups = self._stored("rewrite", sampler, settings, requests, kept, judge)
        self._refined = {}
        for key, one in chosen.items():
            tries = [self._refine(one, sample.completion) for sample in groups.get(key, [])[:n]]
            if tries:
                self._refined[key] = next((found for found in tries if found.reason is None), tries[0])

    def write(self) -> dict[str, Any]:
        """Write the data set, and return the report: how many of each source, what was dropped and why.

        Returns:
            `dict`: See [`report`].

        Raises:
            [`DataError`]: No trace is left; names questions and reasons.
        """
        final = self._final()
        self._refuse_nothing(final)
        if process_place()[0] > 0:
            return self.report(final)
        rows, reviewed = merge_reviewed([self._row(one) for one in final], read_rows(self.rows_path))
        if reviewed:
            logger.info("%d rows were reviewed before and stay as they are.", reviewed)
        write_rows(self.rows_path, rows)
        return self.report(final)

    def report(self, final: Sequence[_Candidate] | None = None) -> dict[str, Any]:
        """Count what was sampled, right, readable and kept, by source; reasons with examples; questions left empty."""
        final = self._final() if final is None else final
        every = [one for found in self._candidates.values() for one in found]
        refined = list((self._refined or {}).values())
        dropped = [(one, one.reason) for one in (*every, *refined) if one.reason]
        examples: dict[str, list[str]] = {}
        for one, reason in dropped:
            shown = examples.setdefault(reason_name(reason), [])
            if len(shown) < _EXAMPLES_PER_REASON:
                shown.append(f"{one.trace_id}: {reason}")
        kept = Counter(one.source for one in final)
        by_source = {
            name: {
                "traces": len(own := [one for one in every if one.source == name]),
                "right": sum(one.verdict.correct is True for one in own),
                "right and readable": sum(one.reason is None for one in own),
                "rows": kept[name],
            }
            for name in dict.fromkeys(one.source for one in every)
        }
        empty = sorted({*self._candidates} - {one.key for one in final})
        lengths = sorted(len(words(one.completion.text)) for one in final)
        return {
            "rows": len(final),
            "questions": len(self._candidates),
            "by_source": by_source,
            "by_domain": dict(Counter(one.row.domain for one in final)),
            "by_language": dict(Counter(str(_language(one.row)) for one in final)),
            "dropped": dict(Counter(reason_name(reason) for _, reason in dropped).most_common()),
            "dropped_examples": examples,
            "rewritten": sum(one.reason is None for one in refined),
            "questions_without_a_row": {"count": len(empty), "first": empty[:_NAMED]},
            "words": {"median": lengths[len(lengths) // 2], "longest": lengths[-1]} if lengths else {},
        }

    def _stored(
        self,
        name: str,
        sampler: Sampler,
        settings: SamplingSettings,
        requests: Sequence[SampleRequest],
        kept: dict[str, Any],
        judge: Callable[[Sample], dict[str, Any]],
    ) -> dict[str, list[StoredSample]]:
        """Sample this process' share of some requests into a store, and return what all processes have sampled, by key."""
        folder = self.folder / "samples" / name
        with SampleStore(folder, kept) as store:
            stored = requests_to_store(requests, store)
            keys = {request.key: key for key, request in stored.items()}
            asked = {request.key: asked_digest(request.prompt) for request in stored.values()}

            def facts(sample: Sample) -> dict[str, Any]:
                return judge(replace(sample, key=keys[sample.key])) | {ASKED: asked[sample.key]}

            share = list(process_share(stored.values()))
            done = sum(len(store.done.get(one.key, ())) for one in share)
            with SampleProgress(sum(one.n for one in share), done, title=name) as progress:
                sample_into_store(sampler, share, settings, store, facts=facts, progress=progress)
        while process_place()[1] > 1 and any(True for _ in SampleStore(folder).remaining(stored.values())):
            time.sleep(_POLL_SECONDS)
        return {keys[key]: group for key, group in SampleStore(folder).groups().items() if key in keys}

    # How a trace is judged

    def _judge(self, row: Row, completion: Completion) -> tuple[Verdict, str | None]:
        answer = parsed(completion).answer
        verdict = verify(answer, row)
        if verdict.correct is False and answer is not None:
            return verdict, f"wrong: {answer[:80]!r} ({verdict.detail})"
        if verdict.correct is None and not self.keep_unverified:
            return verdict, f"unverifiable: {verdict.detail}"
        reason = first_reason(self.filters, row, completion)
        return verdict, reason or (None if verdict.correct is not False else f"wrong: {verdict.detail}")

    def _sampled(self, source: SampledSource, row: Row, key: str, index: int, completion: Completion) -> _Candidate:
        verdict, reason = self._judge(row, completion)
        candidate = _Candidate(row, key, source.name, source.sampler.name, index, completion, verdict, reason)
        if reason is not None:
            return candidate
        text = target_text(completion, self.form)
        if text == (completion.prefill + completion.text).strip():
            return replace(candidate, completion=replace(completion, text=text, prefill=""))
        # Put into another form, it must still be right.
        target = Completion(text)
        verdict, reason = self._judge(row, target)
        return replace(candidate, completion=target, verdict=verdict, reason=reason)

    def _refine(self, one: _Candidate, reply: Completion) -> _Candidate:
        """Judge a rewriting."""
        parts = None if reply.truncated else read_rewrite(reply.text)
        answers = boxes(parts[1]) if parts else []
        if parts is None or not answers:
            what = (
                "cut off" if reply.truncated else "no final answer in a box" if parts else "not in the form asked for"
            )
            return replace(one, reason=f"rewrite: {what}")
        target = Completion(r1_completion(parts[0], answers[-1], parts[1], form=self.form))
        verdict, reason = self._judge(one.row, target)
        return replace(
            one,
            completion=target,
            verdict=verdict,
            reason=f"rewrite: {reason}" if reason else None,
            original=one.completion,
        )

    # What is kept

    def check(self) -> None:
        """Refuse to go on where no trace is right and readable, e.g. before a rewriter is opened.

        Raises:
            [`DataError`]: Names questions and reasons.
        """
        self._refuse_nothing(self._final())

    def _refuse_nothing(self, final: Sequence[_Candidate]) -> None:
        if final:
            return
        every = [one for found in self._candidates.values() for one in found]
        every += list((self._refined or {}).values())
        counts = Counter(reason_name(one.reason) for one in every if one.reason)
        names = ", ".join(list(self._candidates)[:5])
        raise DataError(
            f"None of {len(every)} traces of {len(self._candidates)} questions ({names}, …) is right and readable: "
            f"{dict(counts.most_common())}. Draw more samples, ask easier questions, or relax the filters."
        )

    def _chosen(self) -> list[_Candidate]:
        """The first right and readable traces of each question, in the order of sources and samples."""
        chosen: list[_Candidate] = []
        for found in self._candidates.values():
            texts: set[str] = set()
            for one in found:
                if one.reason is None and len(texts) < self.max_per_question and one.completion.text not in texts:
                    texts.add(one.completion.text)
                    chosen.append(one)
        return chosen[: self.max_rows]

    def _final(self) -> list[_Candidate]:
        if self._refined is None:
            return self._chosen()
        return [one for one in self._refined.values() if one.reason is None]

    def _row(self, one: _Candidate) -> ColdStartRow:
        response = parsed(one.completion)
        original = None
        if one.original is not None:
            before = parsed(one.original)
            original = {
                "reasoning": before.reasoning,
                "summary": plain_summary(before.summary),
                "answer": before.answer or "",
                "completion": one.original.text,
            }
        return ColdStartRow(
            **{**one.row.asdict(), "id": one.key, "language": _language(one.row)},
            trace_id=one.trace_id,
            reasoning=response.reasoning,
            summary=plain_summary(response.summary),
            answer=response.answer or "",
            completion=one.completion.text,
            source=one.source,
            model=one.model,
            group=one.group,
            verdict={"correct": one.verdict.correct, "detail": one.verdict.detail},
            rewritten=one.original is not None,
            original=original,
        )


def _language(row: Row) -> str | None:
    return row.language or detect_language(question_text(row.prompt))
