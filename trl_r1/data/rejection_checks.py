"""Verdicts on completions as they stream, in other processes and threads, so that the engine never waits for one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from trl_r1.data.filters import Filter, first_reason, parsed
from trl_r1.exceptions import ConfigurationError, EngineError
from trl_r1.rewards.pool import warm_up
from trl_r1.rows import Completion, Row, Verdict
from trl_r1.verifiers import verifier_name, verify
from trl_r1.verifiers.in_workers import WorkerSettings
from trl_r1.verifiers.judge import NO_REPLY, current_judge
from trl_r1.workers import Batch, Failure, Limits, WorkerError, WorkerPool

# A hand-over costs about as much as a verdict: what comes in within this time goes together.
_GATHER_SECONDS = 0.02
_GATHER = 32
# Nobody waits for the last of them, and the engine runs in this very interpreter.
_CHUNK_SECONDS = 0.02
_JUDGED_TOGETHER = 64

Item = tuple[Row, Completion]


class AnswerJudge(Protocol):
    """Who tells whether answers without a rule are right, such as [`~trl_r1.verifiers.judge.Judge`]."""

    def verdicts(self, answers: Sequence[str], rows: Sequence[Row]) -> list[Verdict]:
        """Judge answers, given whole; thinking is cut off by the judge.

        A verdict whose detail begins with [`~trl_r1.verifiers.judge.NO_REPLY`] says that the judge was not reached.
        """
        ...


@dataclass(frozen=True)
class Checked:
    """What became of one completion.

    Args:
        key (`str`): The row's key.
        index (`int`): The completion's index.
        completion ([`Completion`]): The completion.
        correct (`bool`, *optional*): The verdict.
        reason (`str`, *optional*): Why it is not usable; `None` when it is.
    """

    key: str
    index: int
    completion: Completion
    correct: bool | None
    reason: str | None


@dataclass(frozen=True)
class Check:
    """What a worker runs on one completion: its row's verifier, then the filters on what is not wrong.

    Args:
        filters (`tuple[Filter, ...]`): See [`trl_r1.data.filters`].
        settings ([`~trl_r1.verifiers.in_workers.WorkerSettings`]): How the sampling process runs programs.
    """

    filters: tuple[Filter, ...]
    settings: WorkerSettings

    def __call__(self, item: Item) -> tuple[bool | None, str, str | None]:
        """Return the verdict, its detail, and the first filter's reason."""
        self.settings.apply()
        row, completion = item
        verdict = Verdict(None, "for a judge") if judged(row) else verify(parsed(completion).answer, row)
        reason = None if verdict.correct is False else first_reason(self.filters, row, completion)
        return verdict.correct, verdict.detail, reason


def judged(row: Row) -> bool:
    """Whether a row's answers are judged, for want of a rule."""
    return verifier_name(row) in (None, "judge")


class Checker:
    """Verifies and filters completions in worker processes, and has those without a rule judged in a thread.

    Args:
        filters (`tuple[Filter, ...]`): Applied to what is not wrong.
        judge ([`AnswerJudge`], *optional*): For rows without a rule.
        workers (`int` or [`~trl_r1.workers.WorkerPool`], *optional*):
            Processes; one per core of this rank's share by default. A pool that is handed in stays open.
        limits ([`~trl_r1.workers.Limits`], *optional*): Deadlines and memory of one verdict; not with a pool.
        defer_judging (`bool`, defaults to `False`):
            Judge only when [`drain`] is called: for a judge that is the very model that is sampling.
    """

    def __init__(
        self,
        filters: Sequence[Filter],
        judge: AnswerJudge | None = None,
        workers: int | WorkerPool | None = None,
        limits: Limits | None = None,
        *,
        defer_judging: bool = False,
    ) -> None:
        # The judge is asked here and not by the workers, many answers at a time.
        settings = replace(WorkerSettings.of_this_process(), judge=None)
        self._check, self._judge, self._deferred = Check(tuple(filters), settings), judge, defer_judging
        self._owned = not isinstance(workers, WorkerPool)
        if isinstance(workers, WorkerPool) and limits is not None:
            raise ConfigurationError("A shared WorkerPool has limits already: pass limits=… to it.")
        self._pool = workers if isinstance(workers, WorkerPool) else WorkerPool(workers, limits, initializer=warm_up)
        self._gathered: list[tuple[str, int, Item]] = []
        self._gathered_at = time.monotonic()
        self._batches: list[tuple[list[tuple[str, int, Item]], Batch[tuple[bool | None, str, str | None]]]] = []
        self._to_judge: queue.SimpleQueue[tuple[str, int, Item] | None] = queue.SimpleQueue()
        self._from_judge: queue.SimpleQueue[list[Checked] | Exception] = queue.SimpleQueue()
        self._to_come = self._being_judged = 0
        self._lost: Exception | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Checker:
        """Start the workers and wait until they are warm, so that the first verdicts are not late."""
        self._pool.start()
        return self

    def close(self) -> None:
        """End the judging thread, and the workers unless they were handed in."""
        if self._thread is not None:
            self._to_judge.put(None)
            self._thread = None
        if self._owned:
            self._pool.close()

    def submit(self, key: str, index: int, row: Row, completion: Completion) -> None:
        """Hand over a completion and return at once."""
        self._gathered.append((key, index, (row, completion)))
        self._to_come += judged(row)
        self._hand_over()

    def collect(self) -> list[Checked]:
        """Return what has been checked since the last call, without waiting."""
        self._hand_over()
        return [*self._verified(), *self._judged()]

    @property
    def waiting(self) -> int:
        """How many completions of rows without a rule have no verdict yet: nobody has them but this process."""
        return self._to_come + self._being_judged

    def drain(self) -> Iterator[Checked]:
        """Wait for everything that was handed over, deferred judging included, and yield it.

        A judge that was lost has been told once, by [`collect`] or here; what waited for it is dropped.

        Raises:
            [`EngineError`]: The judge was not reached.
        """
        self._hand_over(at_once=True)
        while self._batches:
            self._batches[0][1].results()
            yield from self._verified()
        if self._deferred and self._lost is None:
            self._judge_waiting(wait=False)
        while self._being_judged and self._lost is None:
            yield from self._judged(wait=True)

    def _hand_over(self, at_once: bool = False) -> None:
        now = time.monotonic()
        if not self._gathered or not (
            at_once or len(self._gathered) >= _GATHER or now - self._gathered_at >= _GATHER_SECONDS
        ):
            return
        items, self._gathered, self._gathered_at = self._gathered, [], now
        batch = self._pool.submit(
            self._check,
            [item for _, _, item in items],
            keys=[key for key, _, _ in items],
            chunk_seconds=_CHUNK_SECONDS,
        )
        self._batches.append((items, batch))

    def _verified(self) -> list[Checked]:
        """Take what the workers are through with; pass on what needs a judge."""
        found, waiting = [], []
        for items, batch in self._batches:
            if not batch.done():
                waiting.append((items, batch))
                continue
            for (key, index, (row, completion)), result in zip(items, batch.results(), strict=True):
                self._to_come -= judged(row)
                if isinstance(result, Failure):
                    if result.kind == "error":
                        raise WorkerError(f"Checking a completion of row {key!r} failed:\n{result.detail}")
                    why = f"verification: {result.kind} ({result.detail})"
                    found.append(Checked(key, index, completion, False, why))
                    continue
                correct, detail, reason = result
                if judged(row) and reason is None and self._judge is not None:
                    if self._lost is not None:
                        continue  # without a verdict it is not kept, and asked for again by the next start
                    self._ask_judge(key, index, (row, completion))
                    continue
                found.append(Checked(key, index, completion, correct, _reason(completion, correct, detail, reason)))
        self._batches = waiting
        return found

    def _ask_judge(self, key: str, index: int, item: Item) -> None:
        self._being_judged += 1
        self._to_judge.put((key, index, item))
        if not self._deferred and self._thread is None:
            self._thread = threading.Thread(target=self._judge_waiting, name="trl_r1-judge", daemon=True)
            self._thread.start()

    def _judged(self, wait: bool = False) -> list[Checked]:
        found: list[Checked] = []
        while True:
            try:
                result = self._from_judge.get(block=wait and not found)
            except queue.Empty:
                return found
            if isinstance(result, Exception):
                if found:  # first what was judged before
                    self._from_judge.put(result)
                    return found
                self._lost = result
                raise result
            self._being_judged -= len(result)
            found += result
            if wait:
                return found

    def _judge_waiting(self, wait: bool = True) -> None:
        """Judge what waits, many at a time; as a thread, for ever."""
        assert self._judge is not None
        while True:
            cases: list[tuple[str, int, Item]] = []
            try:
                while len(cases) < _JUDGED_TOGETHER:
                    case = self._to_judge.get(block=wait and not cases)
                    if case is None:
                        return
                    cases.append(case)
            except queue.Empty:
                if not cases:
                    return
            try:
                verdicts = self._judge.verdicts(
                    [completion.prefill + completion.text for _, _, (_, completion) in cases],
                    [row for _, _, (row, _) in cases],
                )
            except Exception as error:  # raised where it is waited for
                self._from_judge.put(error)
                return
            self._from_judge.put([
                Checked(key, index, completion, verdict.correct, _reason(completion, verdict.correct, verdict.detail))
                for (key, index, (_, completion)), verdict in zip(cases, verdicts, strict=True)
                if not _unreached(verdict)
            ])  # fmt: skip
            if lost := [verdict.detail for verdict in verdicts if _unreached(verdict)]:
                # Not a verdict, which would be kept: with the judge back, the next start asks for these again.
                self._from_judge.put(EngineError(f"The judge was not reached for {len(lost)} answers: {lost[0]}."))
                return


def _unreached(verdict: Verdict) -> bool:
    return verdict.correct is None and verdict.detail.startswith(NO_REPLY)


def _reason(completion: Completion, correct: bool | None, detail: str, filtered: str | None = None) -> str | None:
    """Say why a completion is not usable, `None` when it is."""
    if completion.truncated:
        return "truncated: cut off by the length limit"
    if correct is False:
        return f"wrong: {detail[:200]}"
    if filtered is not None:
        return filtered
    return f"unverifiable: {detail[:200]}" if correct is None else None


def choose_judge(judge: AnswerJudge | None, rows: Sequence[Row]) -> AnswerJudge | None:
    """Return who judges: the one that is given, else the process's own where rows need one.

    Raises:
        [`ConfigurationError`]: There are rows without a rule and no judge.
    """
    without = [row for row in rows if judged(row)]
    if judge is not None or not without:
        return judge
    try:
        return current_judge()
    except ConfigurationError as error:
        named = ", ".join(repr(row.id) for row in without[:5])
        domains = ", ".join(sorted({row.domain for row in without}))
        raise ConfigurationError(
            f"{len(without)} of {len(rows)} rows ({named}; domain {domains}) have no rule to verify answers by. Give a judge "
            "(`judge: {server_urls: [http://localhost:8000/v1], model_name_or_path: …}`), name their verifier, or leave "
            f"them out. {error}"
        ) from error
