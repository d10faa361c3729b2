"""From the stored samples of a run to its data set: rows with all of their candidates, few of them in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from trl_r1.data.candidates import Candidate, accept_in_order
from trl_r1.exceptions import DataError
from trl_r1.generation.shards import StoredSample
from trl_r1.rows import Row

DATASET_FILE = "candidates.parquet"
_SHARDS = "shard-*.jsonl"  # as trl_r1.generation.shards names them
# Rows that are held in memory while the data set is written.
_ROWS_PER_GROUP = 512
# Shards that are held in memory: rows are read in the order in which they were sampled, so a row's are among the last ones.
_SHARDS_HELD = 16


def candidate_of(sample: StoredSample) -> Candidate:
    """Return the candidate that a stored sample is."""
    completion, facts = sample.completion, sample.facts
    return Candidate(
        sample.index,
        completion.text,
        completion.prefill,
        completion.finish_reason,
        facts.get("tokens"),
        facts.get("correct"),
        facts.get("reason"),
    )


class StoredCandidates:
    """Candidates of a folder of shards, read when asked for: where each one lies is kept in memory, and the last few shards.

    Args:
        folder (`str` or `Path`): The folder of a [`~trl_r1.generation.shards.SampleStore`].
    """

    def __init__(self, folder: str | Path) -> None:
        self._paths = sorted(Path(folder).glob(_SHARDS))
        self._places: dict[str, dict[int, tuple[int, int, int]]] = {}
        self._shard = lru_cache(_SHARDS_HELD)(lambda number: self._paths[number].read_bytes())
        for number, path in enumerate(self._paths):
            offset = 0
            with path.open("rb") as file:
                for line in file:
                    record = json.loads(line)
                    if not record.get("closed"):
                        place = (number, offset, offset + len(line))
                        self._places.setdefault(record["key"], {})[record["index"]] = place
                    offset += len(line)

    def __len__(self) -> int:
        return sum(map(len, self._places.values()))

    def read(self, key: str) -> list[Candidate]:
        """Return the candidates of a row, by index."""
        found = []
        for index, (number, begin, end) in sorted(self._places.get(key, {}).items()):
            record = json.loads(self._shard(number)[begin:end])
            columns = {name: value for name, value in record["completion"].items() if name != "token_ids"}
            found.append(Candidate.from_columns({"text": "", **record, **columns, "index": index}))
        return found

    def rows(self, rows: Iterable[tuple[str, Row]], max_accepted: int | None) -> Iterator[dict[str, Any]]:
        """Yield rows with all of their candidates, those that count as accepted marked.

        Args:
            rows (`Iterable`): Keys and rows.
            max_accepted (`int`, *optional*): Cap per row.

        Returns:
            `Iterator[dict]`: Columns of the [`Row`], and `candidates`: columns of [`Candidate`], by index.
        """
        for key, row in rows:
            marked = accept_in_order(self.read(key), max_accepted)
            yield {**row.asdict(), "id": key, "candidates": [candidate.asdict() for candidate in marked]}


def write_candidates(path: Path, rows: Iterable[Mapping[str, Any]], *, conversational: bool) -> Path:
    """Write rows with candidates to a Parquet file.

    Args:
        path (`Path`): The file; written beside and renamed.
        rows (`Iterable[dict]`): From [`StoredCandidates.rows`].
        conversational (`bool`): Whether prompts are messages.

    Returns:
        `Path`: The file, which `datasets.Dataset.from_parquet` reads.

    Raises:
        [`DataError`]: Some prompts are text and others messages.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features, Value

    text, prompt = Value("string"), [{"role": Value("string"), "content": Value("string")}]
    candidate = {
        "index": Value("int32"), "text": text, "prefill": text, "finish_reason": text, "tokens": Value("int32"),
        "correct": Value("bool"), "reason": text, "accepted": Value("bool"),
    }  # fmt: skip
    columns = {name: text for name in Row.__dataclass_fields__ if name != "prompt"}
    schema = Features({"prompt": prompt if conversational else text, **columns, "candidates": [candidate]}).arrow_schema
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    with pq.ParquetWriter(partial, schema) as writer:
        group: list[Mapping[str, Any]] = []
        for row in rows:
            if isinstance(row["prompt"], str) == conversational:
                raise DataError(
                    f"Row {row['id']!r}: prompts are text in some rows and messages in others. Use one of the two."
                )
            group.append(row)
            if len(group) == _ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                group = []
        writer.write_table(pa.Table.from_pylist(group, schema=schema))
    partial.replace(path)
    return path
