"""Reasoning and general traces mixed by weight, free of near-duplicates and of benchmark questions, in memory that is bounded.

R1's second SFT mixes about 600k reasoning and 200k general samples (arXiv 2501.12948v1 §2.3.3). Three passes:

1. every source is read in pieces of some megabytes by worker processes, which filter, decontaminate and sign the rows and
   write them to `work/` ([`trl_r1.data.staging`]); a piece that is done is not done again;
2. near-duplicates are found over all sources by the signatures (memory-mapped); of each set the row of the source listed
   first is kept;
3. rows are drawn by weight and written in a random order, `data/train-00000-of-00012.jsonl` and so on, each shard whole or
   not at all. Last comes `mixture.json`, the report, which is what makes the mixture done.

Memory is that of the pieces in hand and about 40 bytes a row. The result depends on the sources, the settings and the seed
alone: not on the number of workers, nor on being killed and started again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trl_r1.data.chunks import Chunk, identity, list_chunks
from trl_r1.data.decontamination import NGRAM, Benchmark, DecontaminationIndex, build_index
from trl_r1.data.drawing import StagedRows, draw, write_shards
from trl_r1.data.duplicates import Duplicates, MinHash, find_duplicates
from trl_r1.data.general import nano_general_rows
from trl_r1.data.sources import NANO
from trl_r1.data.staging import PROMPTS, MixtureSource, StageJob, stage_chunk, write_whole_bytes
from trl_r1.data.traces import read_examples
from trl_r1.exceptions import ConfigurationError, DataError, unknown
from trl_r1.workers import Failure, Limits, WorkerPool, default_workers

logger = logging.getLogger(__name__)

# Samples of R1's second SFT by domain (arXiv 2501.12948v2, Table 5).
R1_COMPOSITION = {"math": 395_285, "code": 211_129, "stem": 10_124, "logic": 10_395, "general": 177_812}
REPORT_FILE, DROPPED_FILE, DATA_FOLDER, WORK_FOLDER = "mixture.json", "dropped.jsonl", "data", "work"
# Part of the fingerprint: staged files of another version of this code are not continued.
_FORMAT = 1
# How many rows `nano:general` draws when the configuration does not say.
NANO_GENERAL_ROWS = 300
_HOURS = 24 * 3600.0


@dataclass(frozen=True)
class MixtureConfig:
    """What is mixed, and how.

    Args:
        sources (`tuple[MixtureSource, ...]`): In order of preference: of near-duplicates the first is kept.
        total_rows (`int`, *optional*): Rows of the mixture; as many as the sources and their weights allow when not given.
        seed (`int`, defaults to 0): Of the draw and of the order.
        shard_rows (`int`, defaults to 10,000): Rows of an output file.
        duplicates ([`~trl_r1.data.duplicates.MinHash`], *optional*): Near-duplicate removal; `None` switches it off.
        benchmarks (`tuple[Benchmark, ...]`, defaults to none): What to decontaminate against.
        ngram (`int`, defaults to 10): Tokens in a row that make a row contaminated.
        min_matches (`int`, defaults to 1): Different n-grams of one benchmark row that it takes; R1: any.
        search_completions (`bool`, defaults to `True`): Search completions too, as R1 does, or only prompts.
        prompts (`str`, defaults to `"text"`): `"text"`, or `"messages"` where some prompts have several turns.

    Raises:
        [`ConfigurationError`]: For values outside their range, no source, or two of one name.
    """

    sources: tuple[MixtureSource, ...]
    total_rows: int | None = None
    seed: int = 0
    shard_rows: int = 10_000
    duplicates: MinHash | None = field(default_factory=MinHash)
    benchmarks: tuple[Benchmark, ...] = ()
    ngram: int = NGRAM
    min_matches: int = 1
    search_completions: bool = True
    prompts: str = "text"

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigurationError(
                "A mixture needs at least one source, e.g. sources: [{name: math, traces: math.jsonl}]."
            )
        for kind, names in (
            ("sources", [s.name for s in self.sources]),
            ("benchmarks", [b.name for b in self.benchmarks]),
        ):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ConfigurationError(f"Two {kind} are called {twice[0]!r}. Give each a name of its own.")
        if self.total_rows is not None and self.total_rows < len(self.sources):
            raise ConfigurationError(
                f"total_rows={self.total_rows} must be at least one per source ({len(self.sources)})."
            )
        if self.shard_rows < 1:
            raise ConfigurationError(f"shard_rows={self.shard_rows} must be at least 1.")
        if self.prompts not in PROMPTS:
            raise unknown("prompts", self.prompts, PROMPTS)


def mix(
    config: MixtureConfig, folder: str | Path, workers: int | None = None, *, keep_work: bool = False
) -> dict[str, Any]:
    """Build a mixture, or go on with one that was killed.

    Args:
        config ([`MixtureConfig`]): What is mixed.
        folder (`str` or `Path`): Where `data/`, `mixture.json` and `dropped.jsonl` go, and `work/` while it runs.
        workers (`int`, *optional*): Processes; one per core when not given.
        keep_work (`bool`, defaults to `False`): Keep the staged rows.

    Returns:
        `dict`: The report: rows by source, domain, language and licence, and what was left out, by reason.

    Raises:
        [`ConfigurationError`]: The folder holds a mixture of other settings or data.
        [`DataError`]: No such data, rows that cannot be read, a source with fewer rows than its weight asks for.

    Example:

    ```python
    from trl_r1.data.mixture import MixtureConfig, MixtureSource, mix

    sources = (MixtureSource("reasoning", "accepted.parquet", weight=3), MixtureSource("general", "general.jsonl"))
    report = mix(MixtureConfig(sources), "runs/mixture")
    ```
    """
    return _Run(config, Path(folder), workers or default_workers()).run(keep_work)


@dataclass
class _Run:
    """One run of [`mix`]."""

    config: MixtureConfig
    folder: Path
    workers: int

    @property
    def work(self) -> Path:
        return self.folder / WORK_FOLDER

    def run(self, keep_work: bool) -> dict[str, Any]:
        fingerprint = self._fingerprint()
        finished = self._claim(fingerprint)
        if finished is not None:
            logger.info("%s holds this mixture already.", self.folder)
            if not keep_work:  # it may have been killed just before the end
                shutil.rmtree(self.work, ignore_errors=True)
            return finished
        pieces = self._pieces()
        index = self._index()
        staged = self._stage(pieces, index)
        rows = StagedRows(staged, [source.name for source in self.config.sources])
        logger.info("%d rows are left after filters and decontamination.", len(rows))
        duplicates = self._duplicates(rows)
        order = draw(rows, duplicates.kept, self.config.sources, self.config.total_rows, self.config.seed)
        shards = write_shards(rows, order, self.folder / DATA_FOLDER, self.config.shard_rows)
        self._write_dropped(rows, duplicates)
        rows.close()
        report = self._report(fingerprint, rows, duplicates, order, shards)
        _write_json(self.folder / REPORT_FILE, report)
        if not keep_work:
            shutil.rmtree(self.work)
        return report

    @cached_property
    def _chunks(self) -> dict[str, list[Chunk]]:
        """The pieces of every source that has files; nano's rows are drawn when they are needed."""
        return {
            source.name: []
            if _is_nano(source.traces)
            else list_chunks(source.traces, source.split, source.dataset_config)
            for source in self.config.sources
        }

    @cached_property
    def _benchmark_chunks(self) -> list[list[Chunk]]:
        return [list_chunks(one.dataset, one.split, one.dataset_config) for one in self.config.benchmarks]

    def _fingerprint(self) -> str:
        """Hash of everything that decides the result."""
        data = [identity(chunks) for chunks in (*self._chunks.values(), *self._benchmark_chunks)]
        text = json.dumps([_FORMAT, asdict(self.config), data], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _claim(self, fingerprint: str) -> dict[str, Any] | None:
        """Take the folder for this mixture; return the report if it is finished."""
        report = _read_json(self.folder / REPORT_FILE)
        begun = _read_json(self.work / "settings.json")
        for found in (report, begun):
            if found is not None and found["fingerprint"] != fingerprint:
                raise ConfigurationError(
                    f"{self.folder} holds a mixture of other settings or of data that has changed since. Give another "
                    "folder, or remove it (overwrite: true)."
                )
        if report is not None:
            return report
        if begun is None and (self.folder / DATA_FOLDER).exists():
            raise ConfigurationError(
                f"{self.folder / DATA_FOLDER} exists and was not made by a mixture. Give another folder, or remove it."
            )
        _write_json(self.work / "settings.json", {"fingerprint": fingerprint, "config": asdict(self.config)})
        return None

    def _pieces(self) -> list[tuple[int, Chunk]]:
        """All pieces with the number of their source; rows of nano are written to files first."""
        found = []
        for number, source in enumerate(self.config.sources):
            chunks = self._chunks[source.name]
            if _is_nano(source.traces):
                path = self.work / f"nano-{number}.jsonl"
                if not path.exists():
                    lines = (json.dumps(row, ensure_ascii=False).encode() for row in _nano_rows(source))
                    write_whole_bytes(path, (line + b"\n" for line in lines))
                chunks = list_chunks(str(path))
            found += [(number, chunk) for chunk in chunks]
        return found

    def _index(self) -> str | None:
        """Index the benchmarks once; workers load the file."""
        if not self.config.benchmarks:
            return None
        path = self.work / "benchmarks.npz"
        if not path.exists():
            config = self.config
            rows = {
                one.name: [one.texts(row, place) for place, row in enumerate(_examples(chunks))]
                for one, chunks in zip(config.benchmarks, self._benchmark_chunks, strict=True)
            }
            index = build_index(rows, config.ngram, config.min_matches, config.search_completions)
            partial = path.with_name(".benchmarks.npz.tmp")
            index.save(partial)
            partial.replace(path)
        return str(path)

    def _benchmark_rows(self) -> dict[str, int]:
        if not self.config.benchmarks:
            return {}
        index = DecontaminationIndex.load(self.work / "benchmarks.npz")
        return dict(zip(index.names, index.sizes, strict=True))

    def _stage(self, pieces: Sequence[tuple[int, Chunk]], index: str | None) -> list[Path]:
        """Pass 1: work off the pieces that are not done yet."""
        sources = self.config.sources
        jobs = [
            StageJob(
                sources[number], chunk, str(self.work / f"{number:03d}-{place:06d}"), self.config.duplicates, index,
                self.config.prompts,
            )
            for place, (number, chunk) in enumerate(pieces)
        ]  # fmt: skip
        todo = [job for job in jobs if not Path(f"{job.target}.json").exists()]
        if len(todo) < len(jobs):
            logger.info("%d of %d pieces are done; going on with the rest.", len(jobs) - len(todo), len(jobs))
        for done, facts in enumerate(_worked_off(todo, self.workers), start=1):
            if done % 50 == 0 or done == len(todo):
                logger.info("%d of %d pieces read, %d rows in the last.", done, len(todo), facts["read"])
        return [Path(job.target) for job in jobs]

    def _duplicates(self, rows: StagedRows) -> Duplicates:
        """Pass 2: near-duplicates over all sources."""
        if self.config.duplicates is None:
            return Duplicates(np.arange(len(rows)))
        path = self.work / "signatures.npy"
        try:
            signed = rows.join_signatures(path, self.config.duplicates.hashes)
            return find_duplicates(signed, self.config.duplicates, rows.numbers)
        finally:
            path.unlink(missing_ok=True)

    def _write_dropped(self, rows: StagedRows, duplicates: Duplicates) -> None:
        """Write one line per row that was left out as contaminated or as a near-duplicate."""

        def lines() -> Iterator[bytes]:
            yield from rows.dropped_lines()
            for place in np.flatnonzero(~duplicates.kept).tolist():
                row, first = rows.row(place), rows.row(int(duplicates.original[place]))
                record = {"reason": "near-duplicate", "id": row["id"], "source": row["source"],
                          "of": first["id"], "of_source": first["source"]}  # fmt: skip
                yield (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")

        write_whole_bytes(self.folder / DROPPED_FILE, lines())

    def _report(
        self,
        fingerprint: str,
        rows: StagedRows,
        duplicates: Duplicates,
        order: NDArray[np.int64],
        shards: Sequence[Path],
    ) -> dict[str, Any]:
        config = self.config
        sources = []
        for number, source in enumerate(config.sources):
            mine = rows.source == number
            facts = rows.counts(number)
            again = int((~duplicates.kept & mine).sum())
            dropped = facts["dropped"] | ({"near-duplicate": again} if again else {})
            drawn = int(mine[order].sum())
            sources.append(
                {
                    "name": source.name, "traces": source.traces, "weight": source.weight, "read": facts["read"],
                    "dropped": dict(sorted(dropped.items())), "usable": int((duplicates.kept & mine).sum()),
                    "rows": drawn, "license": sorted(rows.tally("license", order[mine[order]])),
                }
            )  # fmt: skip
        return {
            "fingerprint": fingerprint,
            "rows": len(order),
            "shards": [f"{DATA_FOLDER}/{path.name}" for path in shards],
            "bytes": int(rows.sizes[order].sum()),
            "sources": sources,
            **{name: rows.tally(name, order) for name in ("domain", "language", "license")},
            "dropped": dict(sorted(sum((Counter(one["dropped"]) for one in sources), Counter()).items())),
            "contaminated_by_benchmark": rows.contaminated(),
            "benchmark_rows": self._benchmark_rows(),
            "unfinished_buckets_rows": duplicates.unfinished,
            "config": asdict(config),
        }


def clear(folder: str | Path) -> None:
    """Remove a mixture, finished or not, and nothing else."""
    target = Path(folder)
    if _read_json(target / REPORT_FILE) is None and _read_json(target / WORK_FOLDER / "settings.json") is None:
        return
    for name in (WORK_FOLDER, DATA_FOLDER):
        shutil.rmtree(target / name, ignore_errors=True)
    for name in (DROPPED_FILE, REPORT_FILE):
        (target / name).unlink(missing_ok=True)


def _worked_off(jobs: Sequence[StageJob], workers: int) -> Iterator[dict[str, Any]]:
    """Yield the counts of the pieces, in order; with one worker in this process."""
    if workers == 1 or len(jobs) == 1:
        yield from map(stage_chunk, jobs)
        return
    # Pieces are bounded by their size, not by a clock; a reader of Arrow maps more addresses than it uses memory.
    limits = Limits(item_seconds=_HOURS, item_wall_seconds=_HOURS, memory_gib=None)
    left = iter(jobs)
    with WorkerPool(workers, limits) as pool:
        batches = [pool.submit(stage_chunk, [job]) for job in islice(left, 4 * workers)]
        while batches:
            result = batches.pop(0).results()[0]
            if isinstance(result, Failure):
                raise _failure(result)
            batches += [pool.submit(stage_chunk, [job]) for job in islice(left, 1)]
            yield result


def _failure(failure: Failure) -> DataError:
    """Say what a worker said, without its traceback where the error was meant for the user."""
    last = failure.detail.strip().splitlines()[-1] if failure.detail.strip() else failure.kind
    if last.startswith("trl_r1.exceptions."):
        return DataError(last.partition(": ")[2])
    return DataError(f"A piece of the mixture failed ({failure.kind}): {failure.detail.strip()}")


def _is_nano(traces: str) -> bool:
    return traces.partition(":")[0] == NANO


def _nano_rows(source: MixtureSource) -> Iterator[Mapping[str, Any]]:
    """Rows of the embedded world; its general ones have no rule that could pick right answers among its traces."""
    if source.traces == f"{NANO}:general":
        return nano_general_rows(source.max_rows or NANO_GENERAL_ROWS)
    return read_examples(source.trace_config)


def _examples(chunks: Sequence[Chunk]) -> Iterator[dict[str, Any]]:
    for chunk in chunks:
        yield from chunk.read()


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_whole_bytes(path, [(json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n").encode()])


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
