"""One piece of a mixture's source, filtered and signed: what worker processes do for [`trl_r1.data.mixture`].

A piece becomes files in the work folder: its rows as JSONL, arrays that say what is in each (`.npz`), the rows that were
left out, and last a `.json` with counts, which is what makes the piece done.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from trl_r1.data.candidates import Candidate
from trl_r1.data.chunks import Chunk
from trl_r1.data.decontamination import DecontaminationIndex, Match, joined_text, prompt_text
from trl_r1.data.duplicates import MinHash, signatures
from trl_r1.data.rejection_report import share_right
from trl_r1.data.shingles import blocks, numbers_key, tokenize
from trl_r1.data.sources import question_key
from trl_r1.data.traces import WITHOUT_THINKING, TraceConfig, read_traces
from trl_r1.exceptions import ConfigurationError, DataError, unknown
from trl_r1.language import detect_language
from trl_r1.rows import DOMAINS, Prompt

# Columns of a mixture's rows.
COLUMNS = ("id", "prompt", "completion", "domain", "language", "license", "source")
# What is counted by row, and kept as small numbers beside the rows.
CODED = ("domain", "language", "license")
UNKNOWN = "unknown"
PROMPTS = ("text", "messages")


@dataclass(frozen=True)
class MixtureSource:
    """One source of a mixture: traces, and which of them.

    Args:
        name (`str`): As rows, report and card call it.
        traces (`str`):
            `.jsonl` or `.parquet` file, folder or pattern of such files, a Hub id, or `nano:<task>[,<task>…]`. Columns as
            in [`trl_r1.data.traces`]; a rejection-sampling record gives a row for each accepted candidate.
        weight (`float`, defaults to 1.0): Its share of the mixture, relative to the others'.
        split (`str`, defaults to `"train"`): Of a saved or Hub data set.
        dataset_config (`str`, *optional*): Configuration name of a Hub data set.
        columns (`dict`, *optional*): Names of the columns, as `traces_columns` of [`TraceConfig`].
        domain (`str`, *optional*): Domain of rows that name none; `"math"` when not given.
        language (`str`, *optional*): Language of rows that name none; that of the prompt when not given.
        license (`str`, *optional*): Licence of rows that name none, a Hub licence id such as `"apache-2.0"`.
        only_domains (`tuple[str, ...]`, defaults to all): Rows of these domains alone, so that one file may be listed once
            per domain, each with its weight.
        min_pass_rate (`float`, defaults to 0.0): Least share of right samples of the question ([`pass_rate`]).
        max_pass_rate (`float`, defaults to 1.0): Greatest share. Below 1, questions that are always solved are left out.
        keep_unrated (`bool`, defaults to `True`): Keep rows whose pass rate nobody knows when the two above are set.
        max_per_prompt (`int`, *optional*): Most accepted candidates of one rejection-sampling record.
        max_rows (`int`, *optional*): Rows that `nano` draws.
        without_thinking (`str`, defaults to `"general"`): As in [`TraceConfig`]: `"refuse"`, `"general"` or `"allow"`.
        answer_form (`str`, defaults to `"boxed"`): How a separate reasoning and answer are put together.

    Raises:
        [`ConfigurationError`]: For values outside their range.
    """

    name: str
    traces: str
    weight: float = 1.0
    split: str = "train"
    dataset_config: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    domain: str | None = None
    language: str | None = None
    license: str | None = None
    only_domains: tuple[str, ...] = ()
    min_pass_rate: float = 0.0
    max_pass_rate: float = 1.0
    keep_unrated: bool = True
    max_per_prompt: int | None = None
    max_rows: int | None = None
    without_thinking: str = "general"
    answer_form: str = "boxed"

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigurationError(f"weight={self.weight} of source {self.name!r} must be positive; or leave it out.")
        for domain in (*self.only_domains, *([self.domain] if self.domain else [])):
            if domain not in DOMAINS:
                raise unknown(f"domain of source {self.name!r}", domain, DOMAINS)
        if not 0 <= self.min_pass_rate <= self.max_pass_rate <= 1:
            raise ConfigurationError(
                f"Source {self.name!r}: pass rates from {self.min_pass_rate} to {self.max_pass_rate} are no range in [0, 1]."
            )
        if self.without_thinking not in WITHOUT_THINKING:
            raise unknown("without_thinking", self.without_thinking, WITHOUT_THINKING)

    @property
    def by_pass_rate(self) -> bool:
        """Whether some rows may be left out for their difficulty."""
        return self.min_pass_rate > 0 or self.max_pass_rate < 1

    @property
    def trace_config(self) -> TraceConfig:
        """The source as [`trl_r1.data.traces`] reads it."""
        return TraceConfig(
            traces=self.traces, traces_columns=dict(self.columns), max_per_prompt=self.max_per_prompt,
            max_traces=self.max_rows, without_thinking=self.without_thinking, traces_license=self.license,
        )  # fmt: skip


@dataclass(frozen=True)
class StageJob:
    """What a worker is asked: one piece.

    Args:
        source ([`MixtureSource`]): Whose piece.
        chunk ([`~trl_r1.data.chunks.Chunk`]): The piece.
        target (`str`): Path of the files to write, without suffix.
        duplicates ([`~trl_r1.data.duplicates.MinHash`], *optional*): Sign the rows for near-duplicate removal.
        index (`str`, *optional*): File of the [`~trl_r1.data.decontamination.DecontaminationIndex`].
        prompts (`str`, defaults to `"text"`): `"text"` or `"messages"`: what the prompts of the mixture are.
    """

    source: MixtureSource
    chunk: Chunk
    target: str
    duplicates: MinHash | None = None
    index: str | None = None
    prompts: str = "text"


def stage_chunk(job: StageJob) -> dict[str, Any]:
    """Read, filter and sign one piece, and write its files.

    Args:
        job ([`StageJob`]): The piece.

    Returns:
        `dict`: Its counts, as written into its `.json`: `read`, `staged`, `dropped` by reason, and the names that the codes
        of the arrays stand for.
    """
    counts: Counter[str] = Counter()
    rows = list(_rows(job, counts))
    names: dict[str, list[str]] = {column: sorted({row[column] for row in rows}) for column in CODED}
    offsets, arrays, left_out = [0], [], []
    position = 0
    target = Path(job.target)
    with _whole(target.with_suffix(".jsonl")) as lines:
        for start, block, signed, matches in _signed(rows, job):
            keep = []
            for place, match in enumerate(matches):
                row = rows[start + place]
                if match is not None:
                    counts["contaminated"] += 1
                    left_out.append(_contaminated(row, match))
                    continue
                keep.append(place)
                position += lines.write(_line(row))
                offsets.append(position)
            arrays.append((np.array(keep, np.int64) + start, signed[keep]))
            del block
    kept = np.concatenate([places for places, _ in arrays]) if arrays else np.zeros(0, np.int64)
    coded: dict[str, Any] = {
        column: np.array([names[column].index(rows[place][column]) for place in kept.tolist()], np.uint16)
        for column in CODED
    }
    numbers = np.array([numbers_key(prompt_text(rows[place]["prompt"])) for place in kept.tolist()], np.uint64)
    with _whole(target.with_suffix(".npz")) as file:
        np.savez(
            file, offsets=np.array(offsets, np.int64), numbers=numbers,
            signatures=np.concatenate([signed for _, signed in arrays]) if arrays else _unsigned(0, job), **coded,
        )  # fmt: skip
    with _whole(target.with_suffix(".dropped")) as file:
        for record in left_out:
            file.write(_line(record))
    facts = {"read": counts.pop("read", 0), "staged": len(kept), "dropped": dict(counts), "names": names}
    with _whole(target.with_suffix(".json")) as file:
        file.write(json.dumps(facts, ensure_ascii=False).encode())
    return facts


def pass_rate(example: Mapping[str, Any], full: int | None = None) -> float | None:
    """Estimate the share of right samples of an example's question.

    A record with fewer candidates than others was stopped when its accepted ones were settled, and would be overstated by
    its plain share; [`~trl_r1.data.rejection_report.share_right`] corrects that, except for a single accepted one.

    Args:
        example (`Mapping`): With `pass_rate`, or `candidates` with their verdicts (`correct`), as rejection sampling
            records them; candidates whose verdict is unknown do not count.
        full (`int`, *optional*): Candidates of a record that was not stopped early; the example's own when not given.

    Returns:
        `float` or `None`: `None` when it says neither.
    """
    if example.get("pass_rate") is not None:
        return float(example["pass_rate"])
    candidates = [_verdict(place, one) for place, one in enumerate(_candidates(example))]
    accepted = [one.index for one in candidates if one.accepted]
    stopped = full is not None and len(candidates) < full and accepted
    return share_right(candidates, max(accepted) if stopped else None)


def _verdict(place: int, columns: Mapping[str, Any]) -> Candidate:
    """A candidate without its text."""
    index, correct = columns.get("index"), columns.get("correct")
    told = None if correct is None else bool(correct)
    return Candidate(place if index is None else index, "", correct=told, accepted=bool(columns.get("accepted")))


def _candidates(example: Mapping[str, Any], column: str = "candidates") -> Sequence[Mapping[str, Any]]:
    return example.get(column) or ()


def _rows(job: StageJob, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """Turn the examples of the piece into rows; count those left out."""
    source, config = job.source, job.source.trace_config
    full = _most_candidates(job)
    for example in job.chunk.read():
        counts["read"] += 1
        candidates = example.get(source.columns.get("candidates", "candidates"))
        if candidates is not None and not any(one.get("accepted") for one in candidates):
            counts["no accepted candidate"] += 1
            continue
        if (example.get("review") or {}).get("status") == "drop":
            counts["dropped by a reviewer"] += 1
            continue
        reason = _outside(source, example, full)
        if reason is not None:
            counts[reason] += 1
            continue
        for number, trace in enumerate(read_traces([example], config, source.answer_form, source.domain)):
            row = _row(trace, source, job.prompts, number if candidates is not None else None)
            if source.only_domains and row["domain"] not in source.only_domains:
                counts["other domain"] += 1
            else:
                yield row


def _most_candidates(job: StageJob) -> int | None:
    """Candidates of the records of the piece that were not stopped early; looked up where pass rates matter."""
    if not job.source.by_pass_rate:
        return None
    column = job.source.columns.get("candidates", "candidates")
    return max((len(_candidates(example, column)) for example in job.chunk.read()), default=0)


def _outside(source: MixtureSource, example: Mapping[str, Any], full: int | None) -> str | None:
    """Why a question's difficulty leaves it out, if it does."""
    if not source.by_pass_rate:
        return None
    column = source.columns.get("candidates", "candidates")
    rate = pass_rate({**example, "candidates": example.get(column)}, full)
    if rate is None:
        return None if source.keep_unrated else "pass rate unknown"
    if rate < source.min_pass_rate:
        return "too hard"
    return "too easy" if rate > source.max_pass_rate else None


def _row(trace: Mapping[str, Any], source: MixtureSource, prompts: str, candidate: int | None) -> dict[str, Any]:
    prompt = _prompt(trace["prompt"], prompts, source.name)
    text = prompt_text(prompt)
    domain = trace["domain"] or "math"
    if domain not in DOMAINS:
        raise unknown(f"domain of a row of source {source.name!r}", domain, DOMAINS)
    key = str(trace.get("id") or f"q-{_digest(question_key(prompt))}")
    return {
        "id": key if candidate is None else f"{key}/{candidate}",
        "prompt": prompt,
        "completion": trace["completion"],
        "domain": domain,
        "language": trace.get("language") or source.language or detect_language(text[:2000]) or UNKNOWN,
        "license": trace.get("license") or source.license or UNKNOWN,
        "source": source.name,
    }


def _prompt(prompt: Prompt, wanted: str, source: str) -> Prompt:
    """Give all prompts of a mixture one type, as Arrow needs it."""
    if wanted == "messages":
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return prompt[0]["content"]
    raise DataError(
        f"Source {source!r} has a prompt of {len(prompt)} messages, but the prompts of this mixture are text. Set prompts: "
        "messages."
    )


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _signed(
    rows: list[dict[str, Any]], job: StageJob
) -> Iterator[tuple[int, list[str], np.ndarray[Any, np.dtype[np.uint32]], list[Match | None]]]:
    """Tokenise the rows in blocks; sign them and look for benchmarks."""
    index = _index(job.index) if job.index else None
    texts = (joined_text(prompt_text(row["prompt"]), row["completion"]) for row in rows)
    if index is None and job.duplicates is None:
        yield 0, [], _unsigned(len(rows), job), [None] * len(rows)
        return
    start = 0
    sizes: list[int] = []
    for block in blocks(_noting(texts, sizes)):
        tokens = tokenize(block)
        signed = signatures(tokens, job.duplicates) if job.duplicates else _unsigned(len(block), job)
        matches: list[Match | None] = [None] * len(block)
        if index is not None:
            prompts = [prompt_text(row["prompt"]) for row in rows[start : start + len(block)]]
            matches = index.matches(tokens, prompts, sizes[start : start + len(block)])
        yield start, block, signed, matches
        start += len(block)


def _noting(texts: Iterator[tuple[str, int]], sizes: list[int]) -> Iterator[str]:
    for text, size in texts:
        sizes.append(size)
        yield text


def _unsigned(count: int, job: StageJob) -> np.ndarray[Any, np.dtype[np.uint32]]:
    return np.zeros((count, job.duplicates.hashes if job.duplicates else 0), np.uint32)


@lru_cache(maxsize=1)
def _index(path: str) -> DecontaminationIndex:
    return DecontaminationIndex.load(path)


def _contaminated(row: Mapping[str, Any], match: Match) -> dict[str, Any]:
    return {"reason": "contaminated", "id": row["id"], "source": row["source"], **asdict(match)}


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


@contextmanager
def _whole(path: Path) -> Iterator[Any]:
    """Open a binary file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole_bytes(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file by writing beside it and renaming.

    Args:
        path (`Path`): The file; its folder is made if needed.
        parts (`Iterable[bytes]`): Its content, piece by piece.
    """
    with _whole(path) as file:
        for part in parts:
            file.write(part)
