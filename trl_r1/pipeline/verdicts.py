"""Verdicts on completions while others are still being sampled. Workers import this module: it loads neither torch nor vLLM."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trl_r1.responses import parse
from trl_r1.rewards.pool import WarmUp
from trl_r1.rows import Completion, Row
from trl_r1.verifiers import verifier_name, verify
from trl_r1.verifiers.in_workers import WorkerSettings
from trl_r1.workers import Batch, Failure, WorkerPool

if TYPE_CHECKING:
    from trl_r1.generation.base import Sample

# Verified where they are: sending them to a worker would cost more.
_QUICK = ("exact", "expression", "choice", None)
# Completions that go to the workers together, and how many such batches may wait.
_TOGETHER, _BATCHES = 32, 64


def verdict_facts(item: tuple[Row, Completion]) -> dict[str, Any]:
    """Say what a completion is worth.

    Args:
        item (`tuple[Row, Completion]`): The question and the completion.

    Returns:
        `dict`: `correct` (`None` where no rule applies), `detail`, `answer`; `well_formed` (R1-Zero's form)
            and `think_only` (R1's).
    """
    row, completion = item
    response = parse(completion.text, prefill=completion.prefill, truncated=completion.truncated)
    verdict = verify(response.answer, row)
    return {
        "correct": verdict.correct,
        "detail": verdict.detail,
        "answer": response.answer,
        "well_formed": response.well_formed,
        "think_only": response.think_only,
    }


class StreamVerifier:
    """Verifies samples as they come: quick rules at once, the others (mathematics, programs) in worker processes.

    Args:
        rows (`Mapping[str, Row]`): Questions by the key of their requests.
        workers (`int`, *optional*): Processes; this rank's share of the cores when not given.
    """

    def __init__(self, rows: Mapping[str, Row], workers: int | None = None) -> None:
        self._rows = rows
        self._workers = workers
        self._pool: WorkerPool | None = None
        self._slow: list[Sample] = []
        self._waiting: deque[tuple[list[Sample], Batch[dict[str, Any]]]] = deque()

    def verified(self, sample: Sample) -> Iterator[tuple[Sample, dict[str, Any]]]:
        """Take one sample, and yield those whose verdicts are known by now."""
        row = self._rows[sample.key]
        if verifier_name(row) in _QUICK:
            yield sample, verdict_facts((row, sample.completion))
            return
        self._slow.append(sample)
        if len(self._slow) >= _TOGETHER:
            self._send()
        while self._waiting and (self._waiting[0][1].done() or len(self._waiting) > _BATCHES):
            yield from self._take()

    def rest(self) -> Iterator[tuple[Sample, dict[str, Any]]]:
        """Wait for the verdicts that are still missing, and yield them."""
        self._send()
        while self._waiting:
            yield from self._take()

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _send(self) -> None:
        if not self._slow:
            return
        self._pool = self._pool or WorkerPool(self._workers, initializer=WarmUp(WorkerSettings.of_this_process()))
        items = [(self._rows[sample.key], sample.completion) for sample in self._slow]
        self._waiting.append((self._slow, self._pool.submit(verdict_facts, items)))
        self._slow = []

    def _take(self) -> Iterator[tuple[Sample, dict[str, Any]]]:
        samples, batch = self._waiting.popleft()
        for sample, found in zip(samples, batch.results(), strict=True):
            # An answer over which a worker dies or runs out of time is not right.
            yield sample, {"correct": False, "detail": str(found)} if isinstance(found, Failure) else found
