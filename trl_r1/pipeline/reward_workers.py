"""An RL stage's worker processes: when its rows need them, what they load at their start, how they score held-out samples.

Rewards and held-out evaluation share them. Workers import this module: it loads neither torch nor vLLM.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from trl_r1.evaluation import Evaluation, ProblemScore, check_k, score, score_row
from trl_r1.exceptions import ConfigurationError
from trl_r1.rewards.pool import BATCH_SECONDS, WarmUp
from trl_r1.rows import Completion, Row
from trl_r1.verifiers import gym, verifier_name
from trl_r1.verifiers.in_workers import WorkerSettings
from trl_r1.workers import Failure, Limits, WorkerError, WorkerPool, default_workers

logger = logging.getLogger(__name__)

Group = tuple[Row, list[Completion], int]


def workers_for(asked: int | None, rows: Iterable[Row]) -> int:
    """Return how many worker processes a run's rows are scored in.

    Args:
        asked (`int`, *optional*): `reward_workers`. When not given, rows of `gym` and of `code` get one worker for each core
            of this rank's share, and others none.
        rows (`Iterable[Row]`): To train on and held out.

    Raises:
        [`ConfigurationError`]: None are asked for, and there are rows whose scorers evaluate model text.
    """
    names = [verifier_name(row) for row in rows]
    if asked == 0 and "gym" in names:
        raise ConfigurationError(
            f"reward_workers=0, but {names.count('gym')} of {len(names)} rows are verified by reasoning-gym's scorers, some "
            "of which evaluate model text: these run in worker processes only. Leave reward_workers out for one process per "
            "core, or give a number of at least 1."
        )
    if asked is None:
        return default_workers() if {"gym", "code"} & set(names) else 0
    return asked


def open_workers(workers: int, rows: Iterable[Row]) -> WorkerPool:
    """Return a pool whose workers run programs as this process does and have loaded what the rows' answers are held against.

    Args:
        workers (`int`): Processes.
        rows (`Iterable[Row]`): To train on and held out.

    Raises:
        [`ConfigurationError`]: For an executor of programs, or a judge, that other processes cannot have.
    """
    tasks = {task for row in rows if verifier_name(row) == "gym" and (task := gym.task_of(row)) is not None}
    ready = Ready(WorkerSettings.of_this_process(), tuple(sorted(tasks)))
    return WorkerPool(workers, Limits(batch_seconds=BATCH_SECONDS), initializer=ready)


@dataclass(frozen=True)
class Ready:
    """What a new worker does before its first answer, outside of any deadline.

    Args:
        settings ([`~trl_r1.verifiers.in_workers.WorkerSettings`]): Executor of programs, and judge.
        tasks (`tuple[str, ...]`): Of reasoning-gym, whose scorers are loaded.
    """

    settings: WorkerSettings
    tasks: tuple[str, ...] = ()

    def __call__(self) -> None:
        """Run once in each new worker."""
        WarmUp(self.settings)()
        for task in self.tasks:
            gym.load(task)


@contextmanager
def scoring_workers(workers: WorkerPool | None, rows: Sequence[Row]) -> Iterator[WorkerPool | None]:
    """The workers that are there, or some for as long as it takes where rows of `gym` need them."""
    if workers is not None or not any(verifier_name(row) == "gym" for row in rows):
        yield workers
        return
    with open_workers(default_workers(), rows) as own:
        yield own


def score_samples(
    rows: Sequence[Row],
    completions: Sequence[Sequence[Completion]],
    *,
    cons_k: int | None = None,
    pass_k: Sequence[int] = (),
    workers: WorkerPool | None = None,
) -> Evaluation:
    """Score samples as [`~trl_r1.evaluation.score`] does, in worker processes.

    Answers to a judge stay here: it may live in this process, and keeps its verdicts.

    Args:
        rows (`Sequence[Row]`): The questions.
        completions (`Sequence[Sequence[Completion]]`): The samples of each, the same number for all.
        cons_k (`int`, *optional*): Votes per majority; all samples by default.
        pass_k (`Sequence[int]`, *optional*): Further k for which pass@k is reported.
        workers ([`~trl_r1.workers.WorkerPool`], *optional*): Without, `score` itself.

    Returns:
        [`Evaluation`]: In the order of the questions. A completion over which a worker is lost counts as one without an answer.

    Raises:
        [`WorkerError`]: When a verifier raised an exception.
    """
    if workers is None or not rows:
        return score(rows, completions, cons_k=cons_k, pass_k=pass_k)
    drawn = len(completions[0])
    check_k(drawn, cons_k, pass_k)
    votes = cons_k or drawn
    groups = [(row, list(samples), votes) for row, samples in zip(rows, completions, strict=True)]
    sent = [index for index, row in enumerate(rows) if verifier_name(row) != "judge"]
    found = dict(zip(sent, _in_workers([groups[index] for index in sent], workers), strict=True))
    problems = [found[index] if index in found else score_row(*group) for index, group in enumerate(groups)]
    return Evaluation(problems, votes, tuple(pass_k))


@dataclass(frozen=True)
class _Score:
    """What a worker runs on one question, its programs the same as in the trainer's process."""

    settings: WorkerSettings

    def __call__(self, group: Group) -> ProblemScore:
        self.settings.apply()
        return score_row(*group)


def _in_workers(groups: Sequence[Group], workers: WorkerPool) -> list[ProblemScore]:
    """Score questions in workers; where one is lost, find the completions that it was lost over and count them as unanswered."""
    scores = _try(groups, workers)
    lost = [index for index, found in enumerate(scores) if isinstance(found, Failure)]
    if lost:
        singles = [(groups[index][0], [completion], 1) for index in lost for completion in groups[index][1]]
        tried = iter(_try(singles, workers))
        mended = []
        for index in lost:
            row, completions, votes = groups[index]
            failures = [isinstance(next(tried), Failure) for _ in completions]
            logger.warning(
                "%d of %d answers to %r could not be verified within a worker's limits; they count as none.",
                sum(failures), len(completions), row.id or str(row.prompt)[:60],
            )  # fmt: skip
            mended.append(
                (row, [_unanswered(c) if bad else c for c, bad in zip(completions, failures, strict=True)], votes)
            )
        for index, group, found in zip(lost, mended, _try(mended, workers), strict=True):
            scores[index] = _score_unanswered(group) if isinstance(found, Failure) else found
    return [found for found in scores if not isinstance(found, Failure)]


def _try(groups: Sequence[Group], workers: WorkerPool) -> list[ProblemScore | Failure]:
    most = 1 + max((len(completions) for _, completions, _ in groups), default=0)
    # Each completion is verified once by its form and once without; an evaluation has no deadline of its own.
    limits = replace(
        workers.limits,
        item_seconds=2 * most * workers.limits.item_seconds,
        item_wall_seconds=2 * most * workers.limits.item_wall_seconds,
        batch_seconds=None,
    )
    results = workers.map(_Score(replace(WorkerSettings.of_this_process(), judge=None)), groups, limits)
    for (row, _, _), found in zip(groups, results, strict=True):
        if isinstance(found, Failure) and found.kind == "error":
            name = row.id or str(row.prompt)[:60]
            raise WorkerError(f"Verifying the answers to {name!r} raised an exception:\n{found.detail}")
    return results


def _unanswered(completion: Completion) -> Completion:
    return replace(completion, text="")


def _score_unanswered(group: Group) -> ProblemScore:
    row, completions, votes = group
    return score_row(row, [_unanswered(completion) for completion in completions], votes)
