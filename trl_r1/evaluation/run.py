"""Ask a model a benchmark's questions and score what it says: samples on disk as they come, verification in workers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trl_r1.evaluation.benchmarks import Benchmark, Problems
from trl_r1.evaluation.metrics import Evaluation, ProblemScore, check_k, score_row
from trl_r1.evaluation.protocol import ask
from trl_r1.exceptions import DataError
from trl_r1.generation.base import Sampler, SampleRequest, SamplingSettings
from trl_r1.generation.shards import SampleStore, store_settings
from trl_r1.responses import THINK_CLOSE, THINK_OPEN
from trl_r1.rewards.pool import WarmUp
from trl_r1.rows import Completion, Row
from trl_r1.verifiers.in_workers import WorkerSettings
from trl_r1.workers import Failure, Limits, WorkerError, WorkerPool

logger = logging.getLogger(__name__)

Group = tuple[Row, list[Completion]]
# CPU seconds of one answer at most: a verifier's own deadline is below 3 s; wall seconds: the tests of a program take a minute.
_ANSWER_SECONDS, _ANSWER_WALL_SECONDS = 6.0, 75.0


@dataclass(frozen=True)
class Counts:
    """How many samples are drawn of every question, and what is made of them.

    Args:
        k (`int`): Samples per question.
        cons_k (`int`): Votes per majority.
        pass_k (`tuple[int, ...]`): Further k for which pass@k is reported.

    Raises:
        [`ConfigurationError`]: For a k that more samples would be needed for.
    """

    k: int
    cons_k: int
    pass_k: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_k(self.k, self.cons_k, self.pass_k)

    @classmethod
    def of(cls, benchmark: Benchmark, k: int | None, cons_k: int | None, pass_k: Iterable[int]) -> Counts:
        """The user's counts, and the benchmark's own where the user gives none."""
        drawn = k or benchmark.k
        votes = cons_k or (benchmark.cons_k if k is None else None) or drawn
        return cls(drawn, votes, tuple(pass_k))


def sample_benchmark(
    benchmark: Benchmark, rows: Sequence[Row], sampler: Sampler, settings: SamplingSettings, k: int, folder: Path
) -> list[Group]:
    """Sample `k` completions of every question, or read those that an earlier start left in the folder.

    Args:
        benchmark ([`Benchmark`]): How its questions are asked.
        rows (`Sequence[Row]`): The questions, or this process' share of them.
        sampler ([`~trl_r1.generation.base.Sampler`]): Who writes.
        settings ([`~trl_r1.generation.base.SamplingSettings`]): How.
        k (`int`): Completions per question.
        folder (`Path`): Where the samples lie; each process writes shards of its own.

    Returns:
        `list[tuple[Row, list[Completion]]]`: Every question with its samples, in sample order, fewer than `k` where the
        sampler gave fewer.

    Raises:
        [`ConfigurationError`]: The folder holds samples of another model, template or settings.
    """
    keys = [sample_key(row) for row in rows]
    requests = [
        SampleRequest(key, ask(row.prompt, benchmark.form, sampler.template), k)
        for key, row in zip(keys, rows, strict=True)
    ]
    with closing(SampleStore(folder, store_settings(sampler, settings, form=benchmark.form))) as store:
        had = sum(len([index for index in store.done.get(key, ()) if index < k]) for key in keys)
        if had:
            logger.info("%s: %d of %d samples are there already.", benchmark.name, had, k * len(rows))
        for sample in sampler.stream(store.remaining(requests), settings):
            store.add(sample)
        store.flush()
        groups = store.groups()
    # Without thinking a reply is all answer; a maths reply still has to box it.
    unthinking = benchmark.form == "plain" and sampler.template.form == "boxed" and not sampler.template.prefill
    found = []
    for key, row in zip(keys, rows, strict=True):
        completions = [sample.completion for sample in groups.get(key, ()) if sample.index < k]
        found.append((row, [_all_answer(one) for one in completions] if unthinking else completions))
    return found


def _all_answer(completion: Completion) -> Completion:
    """Mark a reply of a model that was neither taught nor forced to think as what follows an empty thinking."""
    if THINK_OPEN in completion.text or THINK_CLOSE in completion.text:
        return completion
    return replace(completion, prefill=f"{THINK_OPEN}\n\n{THINK_CLOSE}")


def sample_key(row: Row) -> str:
    """Return the key of a question's samples: its id, and a digest of its text, so that a changed question is asked anew."""
    return f"{row.id}#{hashlib.sha256(str(row.prompt).encode()).hexdigest()[:8]}"


def score_groups(name: str, groups: Sequence[Group], counts: Counts, pool: WorkerPool) -> list[ProblemScore]:
    """Verify and score samples in worker processes.

    Args:
        name (`str`): Of the benchmark, for messages.
        groups (`Sequence[tuple[Row, list[Completion]]]`): Questions with their samples.
        counts ([`Counts`]): How many samples each must have.
        pool ([`~trl_r1.workers.WorkerPool`]): The workers; see [`verification_pool`].

    Returns:
        `list[ProblemScore]`: In the order of the questions. Questions with fewer samples than `k`, or over which a worker
        was lost, are missing, and said to be.

    Raises:
        [`WorkerError`]: When a verifier raised an exception.
    """
    whole = [(row, samples) for row, samples in groups if len(samples) >= counts.k]
    if len(whole) < len(groups):
        logger.warning(
            "%s: %d of %d questions have fewer than %d samples and are left out; start again to complete them.",
            name, len(groups) - len(whole), len(groups), counts.k,
        )  # fmt: skip
    results = pool.map(_score, [(row, samples, counts.cons_k) for row, samples in whole])
    scores = []
    for (row, _), result in zip(whole, results, strict=True):
        if not isinstance(result, Failure):
            scores.append(result)
        elif result.kind == "error":
            raise WorkerError(f"Verifying the answers to {row.id} of {name} raised an exception:\n{result.detail}")
        else:
            logger.warning("%s: the answers to %s could not be verified: %s. Left out.", name, row.id, result.detail)
    return scores


def verification_pool(k: int, workers: int | None = None) -> WorkerPool:
    """Return workers whose limits leave room for the answers to one question.

    Args:
        k (`int`): Answers to a question, at most.
        workers (`int`, *optional*): Processes; this rank's share of the cores by default.
    """
    limits = Limits(item_seconds=_ANSWER_SECONDS * (k + 1), item_wall_seconds=_ANSWER_WALL_SECONDS * (k + 1))
    return WorkerPool(workers, limits, initializer=WarmUp(WorkerSettings.of_this_process()))


def _score(item: tuple[Row, list[Completion], int]) -> ProblemScore:
    return score_row(*item)


def evaluation_of(name: str, scores: Sequence[ProblemScore], counts: Counts) -> Evaluation:
    """Put the scores of a benchmark together.

    Raises:
        [`DataError`]: If there is none.
    """
    if not scores:
        raise DataError(f"Benchmark {name!r}: no question has {counts.k} samples that could be verified.")
    return Evaluation(list(scores), counts.cons_k, counts.pass_k)


def share(rows: Sequence[Row], rank: int, world_size: int) -> list[Row]:
    """Return one process' questions; neighbours, often alike in difficulty, go to different processes."""
    return list(rows[rank::world_size])


def describe(benchmark: Benchmark, problems: Problems, counts: Counts, evaluation: Evaluation) -> dict[str, Any]:
    """The entry of a benchmark in `report.json`.

    Returns:
        `dict`: The metrics with their intervals (see [`Evaluation.summary`]), what was left out, and the published figures.
    """
    return {
        "title": benchmark.title,
        "kind": benchmark.kind,
        "source": str(benchmark.source.dataset),
        "k": counts.k,
        "cons_k": counts.cons_k,
        **evaluation.summary(),
        "duplicates": problems.duplicates,
        "unscored": len(problems.rows) - len(evaluation.problems),
        "published": {model: dict(figures) for model, figures in benchmark.published.items()},
        "published_source": benchmark.published_source,
    }
