"""Rejection sampling: sample, verify, filter, keep a few per prompt (arXiv 2501.12948v1 §2.3.3, v2 B.3.3)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_r1.data.filters import Filter, default_filters
from trl_r1.data.rejection_checks import AnswerJudge, Checked, Checker, choose_judge, judged
from trl_r1.data.rejection_report import Tally, read_figures, speed
from trl_r1.data.rejection_schedule import RowState, Schedule
from trl_r1.data.rejection_store import DATASET_FILE, StoredCandidates, write_candidates
from trl_r1.exceptions import ConfigurationError, DataError, EngineError
from trl_r1.generation.base import Sample, Sampler, SampleRequest, SamplingSettings
from trl_r1.generation.requests import process_place
from trl_r1.generation.shards import SampleStore, StoredSample, store_settings, write_whole
from trl_r1.rows import Row, row_digest
from trl_r1.verifiers import check_references, readable
from trl_r1.workers import Limits, WorkerPool

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

SHARDS_FOLDER = "shards"
REPORT_FILE = "report.json"
# Samples and accepted per prompt. The paper says "multiple" and gives no number. [?]
SAMPLES, MAX_ACCEPTED = 16, 4


@dataclass(frozen=True)
class RejectionResult:
    """What a run leaves.

    Args:
        path (`Path`): Parquet file with the columns of [`Row`] and `candidates`, all of them with their verdicts.
        report (`dict`): See [`trl_r1.data.rejection_report.Tally.asdict`]; also `speed`, and `unverifiable` rows left out.
    """

    path: Path
    report: dict[str, Any]

    @property
    def dataset(self) -> Dataset:
        """The rows with their candidates, for [`~trl_r1.data.rejection_collator.RejectionSamplingCollator`]."""
        from datasets import Dataset

        return Dataset.from_parquet(str(self.path))


class RejectionSampler:
    """Samples rows, verifies completions as they stream, and stops a row once its accepted ones are settled.

    A row's first `max_accepted` usable completions are accepted *in the order in which they were asked for*: taking them as
    they finish would favour short ones (trap 33). Completions are asked for as a row needs them, judged by its own rate so
    far, while other rows keep the engine full; what cannot count any more is cancelled. Neither changes which are accepted.

    Verdicts and filters run in worker processes, judging in a thread. Candidates go to shards on disk; a second `run` over
    the same folder goes on with what is missing. Under a launch of several processes each takes its share of the rows
    ([`sample`]); the first then gathers ([`gather`]).

    Args:
        sampler ([`~trl_r1.generation.base.Sampler`]): Who writes.
        samples (`int`, defaults to 16): k, most completions per row. [?]
        max_accepted (`int`, *optional*, defaults to 4): Cap per row, against the bias toward easy prompts; `None` for all. [?]
        settings ([`~trl_r1.generation.base.SamplingSettings`], *optional*):
            Temperature 1 by default, as in the paper's cold start. With a seed a resumed run draws the same again.
        filters (`Sequence[Filter]`, *optional*): R1's by default ([`~trl_r1.data.filters.default_filters`]).
        judge ([`~trl_r1.data.rejection_checks.AnswerJudge`], *optional*):
            For rows without a rule, which is compared with the row's reference (`trl_r1.verifiers.judge.Judge`).
        early_stop (`bool`, defaults to `True`): `False` samples all k of every row; the accepted ones are the same.
        spread (`float`, defaults to 2.0): At the end, how many times a row's expected need may be under way.
        workers (`int` or [`~trl_r1.workers.WorkerPool`], *optional*):
            Verifying processes, one per core by default; or a pool that stays open.
        limits ([`~trl_r1.workers.Limits`], *optional*): Deadlines and memory of one verdict.
        shard_samples (`int`, defaults to 256):
            Completions in a shard: what a kill may lose. No more than these wait for a judge at a time.
        shard_seconds (`float`, defaults to 20.0): Seconds after which a smaller shard is written.
        max_unverifiable (`float`, defaults to 0.01): Largest share of rows whose reference cannot be read.
        progress (`bool`, defaults to `True`): Show a bar with tokens/s and acceptance.

    Raises:
        [`ConfigurationError`]: For numbers outside their range.

    Example:

    ```python
    rejection = RejectionSampler(sampler, samples=16, max_accepted=4)
    result = rejection.run(rows, "runs/rejection")
    result.report["total"]["acceptance"], result.dataset[0]["candidates"]
    ```
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        samples: int = SAMPLES,
        max_accepted: int | None = MAX_ACCEPTED,
        settings: SamplingSettings | None = None,
        filters: Sequence[Filter] | None = None,
        judge: AnswerJudge | None = None,
        early_stop: bool = True,
        spread: float = 2.0,
        workers: int | WorkerPool | None = None,
        limits: Limits | None = None,
        shard_samples: int = 256,
        shard_seconds: float = 20.0,
        max_unverifiable: float = 0.01,
        progress: bool = True,
    ) -> None:
        check_sizes(samples, max_accepted)
        if spread < 1:
            raise ConfigurationError(
                f"spread={spread} must be at least 1: 1 asks for just what a row is likely to need."
            )
        self.sampler, self.judge = sampler, judge
        self.samples, self.max_accepted = samples, max_accepted
        self.settings = settings or SamplingSettings()
        self.filters = default_filters() if filters is None else tuple(filters)
        self.early_stop, self.spread = early_stop, spread
        self.workers, self.limits = workers, limits
        self.shard_samples, self.shard_seconds = shard_samples, shard_seconds
        self.max_unverifiable = max_unverifiable
        self.progress = progress

    def run(self, rows: Iterable[Row], folder: str | Path) -> RejectionResult:
        """Sample, verify and gather, in one process.

        Args:
            rows (`Iterable[Row]`): Questions with references; of rows with one id, the first is taken.
            folder (`str` or `Path`): Where shards, data set and report go.

        Returns:
            [`RejectionResult`]

        Raises:
            [`DataError`]: Rows without a verifiable reference, or none of whose completions was accepted.
            [`ConfigurationError`]: Rows without a rule and no judge; a folder begun with other settings.
            [`EngineError`]: The sampler failed, such as a server that died. What was verified is kept: run again.
        """
        rows = list(rows)
        self.sample(rows, folder)
        return self.gather(rows, folder)

    def sample(self, rows: Sequence[Row], folder: str | Path) -> None:
        """Sample and verify this process's share of the rows; see [`run`]."""
        rank, world_size = process_place()
        keyed, _ = self._usable(rows)
        settings = store_settings(self.sampler, self.settings, **self._identity(rows))
        shards = Path(folder) / SHARDS_FOLDER
        checker = Checker(
            self.filters,
            self.judge,
            self.workers,
            self.limits,
            defer_judging=getattr(self.judge, "model", None) is self.sampler,
        )
        options: dict[str, Any] = {"shard_samples": self.shard_samples, "shard_seconds": self.shard_seconds}
        store = _TimedStore(shards, settings, rank=rank, **options)
        with store:
            run = _Run(self, store, list(keyed.items())[rank::world_size], checker, Path(folder), rank)
            if not run.left:
                return
            try:
                checker.start()
                run.go()
            finally:
                checker.close()
                run.finish()

    def gather(self, rows: Sequence[Row], folder: str | Path) -> RejectionResult:
        """Write the data set and the report from what is stored, once every process is through; see [`run`]."""
        folder = Path(folder)
        keyed, left_out = self._usable(rows)
        stored = StoredCandidates(folder / SHARDS_FOLDER)
        conversational = not isinstance(next(iter(keyed.values())).prompt, str)
        tally = Tally(self.max_accepted)
        columns = tally.passing(stored.rows(keyed.items(), self.max_accepted))
        path = write_candidates(folder / DATASET_FILE, columns, conversational=conversational)
        found = tally.asdict()
        found["unverifiable"] = {"rows": len(left_out), "ids": left_out}
        found["speed"] = speed(folder, found["total"]["accepted"])
        write_whole(folder / REPORT_FILE, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        if not found["total"]["accepted"]:
            raise _nothing_accepted(found, keyed, folder)
        return RejectionResult(path, found)

    def _identity(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What must be the same for a folder to be gone on with, besides the sampler."""
        names = [repr(one) if "0x" not in repr(one) else getattr(one, "__qualname__", "filter") for one in self.filters]
        found = {"samples": self.samples, "max_accepted": self.max_accepted, "filters": names}
        return found | ({"judge": judge_identity(self.judge)} if any(map(judged, rows)) else {})

    def _usable(self, rows: Sequence[Row]) -> tuple[dict[str, Row], list[str]]:
        """Give rows their keys, and leave out those whose reference cannot be read."""
        if not rows:
            raise DataError("There are no rows to sample. Check the data set, its split and max_rows.")
        self.judge = choose_judge(self.judge, rows)
        check_references(rows, self.max_unverifiable)
        keyed: dict[str, Row] = {}
        left_out = []
        for place, row in enumerate(rows):
            key = row.id or f"row-{place}"
            if key in keyed and row_digest(keyed[key]) != row_digest(row):
                # Data sets number their rows alike; which of them is meant, the digest tells.
                key = f"{key}-{row_digest(row)[:8]}"
                row = replace(row, id=key)
            if readable(row) is not None or (judged(row) and not row.reference.strip()):
                left_out.append(key)
            else:
                keyed.setdefault(key, row if row.id else replace(row, id=key))
        if len(left_out) > self.max_unverifiable * len(rows):
            raise DataError(
                f"{len(left_out)} of {len(rows)} rows have no reference to verify answers against ({', '.join(left_out[:5])}…); "
                f"allowed are {self.max_unverifiable:.1%}. Map the gold answers (columns: {{reference: …}}), leave these rows "
                "out, or raise max_unverifiable."
            )
        if left_out:
            logger.warning("%d rows have no reference that can be verified and are left out.", len(left_out))
        if len(keyed) + len(left_out) < len(rows):
            logger.warning("%d rows are repeated.", len(rows) - len(keyed) - len(left_out))
        return keyed, left_out


class _TimedStore(SampleStore):
    """A store that has the time noted with every shard: a kill loses the seconds of the samples that it loses, no more."""

    note: Callable[[], None] | None = None

    def flush(self) -> None:
        """Write what is collected as a shard, then the time that it took."""
        super().flush()
        if self.note is not None:
            self.note()


class _Run:
    """One process's work on its share of the rows."""

    def __init__(
        self,
        owner: RejectionSampler,
        store: _TimedStore,
        rows: Sequence[tuple[str, Row]],
        checker: Checker,
        folder: Path,
        rank: int,
    ) -> None:
        self.owner, self.store, self.checker = owner, store, checker
        self.sampler = owner.sampler
        self.left = {key: row for key, row in rows if key not in store.closed}
        self.digests = {key: row_digest(row) for key, row in rows}
        found: dict[str, dict[int, bool]] = {}
        for sample in store.samples() if len(store) else ():
            self._check_row(sample, folder)
            if sample.key in self.left and sample.index < owner.samples:
                found.setdefault(sample.key, {})[sample.index] = sample.facts.get("reason") is None
        states = (
            RowState(key, row, owner.samples, owner.max_accepted, found.get(key, {})) for key, row in self.left.items()
        )
        self.schedule = Schedule(states, owner.spread, owner.early_stop)
        self.record = folder / f"speed-{rank:05d}.json"
        self.before = read_figures(self.record)
        self.started = time.monotonic()
        self.samples = self.tokens = self.checked = self.usable = 0
        self.bar = _bar(len(rows), len(rows) - len(self.left), owner.progress and rank == 0)

    def _check_row(self, sample: StoredSample, folder: Path) -> None:
        """Refuse what was sampled or verified for another row."""
        now = self.digests.get(sample.key)
        if now is not None and sample.facts.get("row", now) != now:
            raise ConfigurationError(
                f"Row {sample.key!r} was another one when {str(folder)!r} was begun: its prompt, reference, domain, language or "
                "verifier has changed since. Take another folder, or start anew (`--overwrite true`)."
            )

    def _paced(self, requests: Iterator[SampleRequest]) -> Iterator[SampleRequest]:
        """Pass requests on while the judge keeps up: what waits for it is not on disk yet."""
        while self.checker.waiting < self.owner.shard_samples and (request := next(requests, None)) is not None:
            yield request

    def go(self) -> None:
        """Sample until every row has what it needs."""
        self.store.note = self._note
        try:
            while (first := next(requests := self.schedule.requests(), None)) is not None:
                for sample in self.sampler.stream(chain([first], self._paced(requests)), self.owner.settings):
                    self._take(sample)
                    for checked in self.checker.collect():
                        self._settle(checked)
                self._settle_rest()
                if lost := self.schedule.unanswered():
                    raise EngineError(
                        f"{self.sampler.name} returned no completion for {len(lost)} requests, the first {next(iter(lost))!r}."
                    )
            self._settle_rest()
        except EngineError as error:
            self._settle_rest()
            raise EngineError(
                f"{error} {len(self.store)} verified completions are kept in {self.store.folder}: run the same "
                "command again to go on."
            ) from error

    def finish(self) -> None:
        """Write what is verified, whatever ended the run."""
        self.store.flush()
        self.store.note = None
        self.bar.close()

    def _note(self) -> None:
        """Write down the time so far, added to that of earlier starts."""
        seconds = time.monotonic() - self.started
        figures = {"seconds": seconds, "samples": self.samples, "tokens": self.tokens, "starts": 1}
        added = {name: value + self.before.get(name, 0) for name, value in figures.items()}
        write_whole(self.record, json.dumps(added), durable=False)

    def _take(self, sample: Sample) -> None:
        place = self.schedule.take(sample.key)
        self.samples += 1
        self.tokens += len(sample.completion.token_ids)
        if place is not None and place[0].key in self.left:
            state, index = place
            self.checker.submit(state.key, index, state.row, sample.completion)

    def _settle(self, checked: Checked) -> None:
        """Store a verdict, and draw the consequences for its row."""
        state = self.schedule.open.get(checked.key)
        completion, tokens = checked.completion, len(checked.completion.token_ids)
        usable = checked.reason is None
        stored = Sample(checked.key, checked.index, replace(completion, token_ids=()))
        facts = {"tokens": tokens or None, "correct": checked.correct, "reason": checked.reason}
        self.store.add(stored, **facts, row=self.digests[checked.key])
        self.checked += 1
        self.usable += usable
        if state is None:
            return
        for key in self.schedule.settle(state, checked.index, usable):
            self.sampler.cancel(key)
        self._close(state)

    def _close(self, state: RowState) -> None:
        if not self.schedule.finished(state):
            return
        self.schedule.close(state)
        self.store.close_key(state.key)
        seconds = max(time.monotonic() - self.started, 1e-9)
        self.bar.update()
        self.bar.set_postfix_str(
            f"{self.tokens / seconds:.0f} tokens/s, {self.usable / max(self.checked, 1):.0%} usable", refresh=False
        )

    def _settle_rest(self) -> None:
        """Wait for the verdicts that are under way, and close the rows that need nothing more."""
        for checked in self.checker.drain():
            self._settle(checked)
        for state in list(self.schedule.open.values()):
            self._close(state)


def judge_identity(judge: AnswerJudge | None) -> dict[str, Any]:
    """Return what tells one judge from another: its kind, its model, its prompt; not the address of its server."""
    model = getattr(judge, "model", None)
    name = getattr(model, "fingerprint", None) or getattr(model, "name", None) or getattr(model, "model", None)
    return {
        "kind": type(judge).__qualname__,
        "model": None if name is None else str(name),
        "prompt": getattr(judge, "prompt", None),
    }


def check_sizes(samples: int, max_accepted: int | None) -> None:
    """Refuse numbers of samples that cannot work.

    Raises:
        [`ConfigurationError`]: Saying which.
    """
    if samples < 1:
        raise ConfigurationError(f"samples={samples} per prompt must be at least 1.")
    if max_accepted is not None and not 1 <= max_accepted <= samples:
        raise ConfigurationError(
            f"max_accepted={max_accepted} must be between 1 and the {samples} samples per prompt, or None for no cap."
        )


def accepted_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield one row per accepted candidate, as trainers without [`RejectionSamplingCollator`] take them.

    Args:
        rows (`Iterable[dict]`): Rows with `candidates`, such as `RejectionResult.dataset`.

    Returns:
        `Iterator[dict]`: The row's own columns and `completion`, prefill included.
    """
    for row in rows:
        own = {name: value for name, value in row.items() if name != "candidates"}
        for candidate in row["candidates"]:
            if candidate["accepted"]:
                yield {**own, "completion": candidate["prefill"] + candidate["text"]}


def _nothing_accepted(found: Mapping[str, Any], keyed: Mapping[str, Row], folder: Path) -> DataError:
    shown = "; ".join(f"{key}: {str(row.prompt)[:60]!r}" for key, row in list(keyed.items())[:5])
    rejects = ", ".join(f"{name} {count}" for name, count in found["rejects"].items()) or "no completion at all"
    return DataError(
        f"None of {found['total']['samples']} completions of {len(keyed)} prompts was accepted ({rejects}). Prompts: {shown}. "
        f"Look at some completions in {folder / DATASET_FILE}; raise samples or max_tokens, check that the template is the one "
        "that the model was trained with, or take easier prompts."
    )


def _bar(total: int, done: int, shown: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=done, desc="Rejection sampling", unit="prompt", disable=not shown)
