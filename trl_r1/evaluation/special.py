"""The entries of benchmarks that are more than right or wrong: a rating, a win rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_r1.evaluation.benchmarks import Benchmark, Problems
from trl_r1.evaluation.metrics import ProblemScore
from trl_r1.evaluation.preferences import (
    PairJudge,
    arena_score,
    compare_answers,
    length_controlled_win_rate,
    win_rate,
)
from trl_r1.evaluation.ratings import rate
from trl_r1.evaluation.run import sample_key
from trl_r1.exceptions import DataError
from trl_r1.generation.shards import SampleStore
from trl_r1.rows import Row
from trl_r1.verifiers.judge import question_text


def rating_entry(
    rows: Sequence[Row], scores: Sequence[ProblemScore], people: Sequence[float] | None, entry: dict[str, Any]
) -> dict[str, Any]:
    """Return what a rating adds to a benchmark's entry; its intervals go among the others.

    Raises:
        [`DataError`]: If no problem has a rating.
    """
    found = rate(rows, scores, people)
    intervals = {
        **entry["intervals"],
        "rating": [found.rating.low, found.rating.high],
        "percentile": [found.percentile.low, found.percentile.high],
    }
    return {
        "rating": found.rating.value,
        "percentile": found.percentile.value,
        "rating_is_bound": found.bounded,
        "percentile_of": found.people,
        "intervals": intervals,
    }


def preference_entry(benchmark: Benchmark, problems: Problems, folder: Path, judge: PairJudge) -> dict[str, Any]:
    """Have the stored answers judged against the baseline's.

    Args:
        benchmark ([`Benchmark`]): Of kind `"preference"`.
        problems ([`Problems`]): Its questions; their references are the baseline's answers.
        folder (`Path`): Where the samples lie; of several, the first counts, as the baseline has one answer too.
        judge (`PairJudge`): Who compares.

    Returns:
        `dict`: The benchmark's entry of the report.

    Raises:
        [`DataError`]: If there are no samples, or none could be judged.
    """
    stored = SampleStore(folder).groups()
    rows = [row for row in problems.rows if stored.get(sample_key(row))]
    if not rows:
        raise DataError(f"Benchmark {benchmark.name!r}: no question has a sample.")
    answers = [stored[sample_key(row)][0].completion for row in rows]
    found = compare_answers(
        [question_text(row.prompt) for row in rows],
        [answer.prefill + answer.text for answer in answers],
        [row.reference for row in rows],
        judge,
    )
    estimates = {
        "win_rate": win_rate(found),
        "lc_win_rate": length_controlled_win_rate(found),
        "arena_score": arena_score(found),
    }
    return {
        "title": benchmark.title,
        "kind": benchmark.kind,
        "source": str(benchmark.source.dataset),
        "k": 1,
        "cons_k": 1,
        **{name: estimate.value for name, estimate in estimates.items()},
        "intervals": {name: [estimate.low, estimate.high] for name, estimate in estimates.items()},
        "problems": len(rows),
        "samples": len(rows),
        "unjudged": sum(one.won != one.won for one in found),
        "truncated": sum(answer.truncated for answer in answers) / len(answers),
        "mean_tokens": sum(len(answer.token_ids) for answer in answers) / len(answers),
        "duplicates": problems.duplicates,
        "unscored": len(problems.rows) - len(rows),
        "published": {model: dict(figures) for model, figures in benchmark.published.items()},
        "published_source": benchmark.published_source,
    }
