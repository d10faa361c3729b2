"""Data sets in pieces that worker processes read by themselves: byte ranges of JSONL, row groups of Parquet, ranges of Arrow.

A piece is a few megabytes, so memory does not grow with the data, and it is what a restart repeats at most.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from trl_r1.data.files import json_object
from trl_r1.exceptions import DataError

# Bytes of a piece of JSONL, and rows of a piece of an Arrow data set.
CHUNK_BYTES, CHUNK_ROWS = 8 << 20, 1024
JSONL, PARQUET, ARROW = "jsonl", "parquet", "arrow"
_SUFFIXES = {".jsonl": JSONL, ".parquet": PARQUET}


@dataclass(frozen=True)
class Chunk:
    """One piece of a data set.

    Args:
        kind (`str`): `"jsonl"`, `"parquet"` or `"arrow"`.
        path (`str`): File, or the data set's folder or Hub id.
        start (`int`): First byte, row group, or row.
        stop (`int`): The one after the last. A line belongs to the piece in which it begins.
        split (`str`, defaults to `"train"`): Of an Arrow data set.
        config (`str`, *optional*): Of a Hub data set.
    """

    kind: str
    path: str
    start: int
    stop: int
    split: str = "train"
    config: str | None = None

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield its examples, in order.

        Raises:
            [`DataError`]: A line is no JSON object; says where.
        """
        if self.kind == JSONL:
            yield from _read_lines(self)
        elif self.kind == PARQUET:
            yield from _read_groups(self)
        else:
            rows = _arrow(self.path, self.config, self.split)
            for index in range(self.start, min(self.stop, len(rows))):
                yield rows[index]


def find_files(path: str) -> list[Path]:
    """Return the `.jsonl` and `.parquet` files that a path names: itself, those of a folder, or of a pattern with `*`.

    Args:
        path (`str`): File, folder or pattern. Hidden files, which may be half-written, are passed over.

    Returns:
        `list[Path]`: Sorted; empty for a Hub id, and for a folder that `datasets` saved.
    """
    target = Path(path)
    if target.is_dir():
        if (target / "dataset_dict.json").is_file() or (target / "state.json").is_file():
            return []
        # The data of a data set on the Hub lies in `data`; files beside it may be reports.
        root = target / "data" if (target / "data").is_dir() else target
        found = list(root.rglob("*"))
    elif any(sign in path for sign in "*?["):
        found = [Path(name) for name in glob.glob(path, recursive=True)]
    else:
        found = [target]
    return sorted(one for one in found if one.suffix in _SUFFIXES and one.is_file() and not one.name.startswith("."))


def list_chunks(path: str, split: str = "train", config: str | None = None) -> list[Chunk]:
    """Cut a data set into pieces.

    Args:
        path (`str`): `.jsonl` or `.parquet` file, a folder or pattern of them, a folder that `datasets` saved, or a Hub id.
        split (`str`, defaults to `"train"`): Of a saved or Hub data set.
        config (`str`, *optional*): Configuration name of a Hub data set.

    Returns:
        `list[Chunk]`: In order, the same for the same files.

    Raises:
        [`DataError`]: There is no such data.
    """
    files = find_files(path)
    if files:
        return [chunk for file in files for chunk in _file_chunks(file)]
    local = Path(path)
    saved = (local / "dataset_dict.json").is_file() or (local / "state.json").is_file()
    if any(sign in path for sign in "*?[") or local.suffix in _SUFFIXES or (local.exists() and not saved):
        raise DataError(
            f"{path!r} names no .jsonl or .parquet file. Looked from {Path.cwd()}. Give a file, a folder or a pattern that "
            "holds some, or a Hub id."
        )
    rows = len(_arrow(path, config, split))
    return [Chunk(ARROW, path, start, start + CHUNK_ROWS, split, config) for start in range(0, rows, CHUNK_ROWS)]


def identity(chunks: Sequence[Chunk]) -> list[list[Any]]:
    """Describe the data behind some pieces, so that a restart notices that a file has changed."""
    found = []
    for path in sorted({chunk.path for chunk in chunks}):
        file = Path(path)
        if file.is_file():
            facts = file.stat()
            found.append([str(file.resolve()), facts.st_size, facts.st_mtime_ns])
        else:
            found.append([path, len([chunk for chunk in chunks if chunk.path == path]), 0])
    return found


def _file_chunks(path: Path) -> list[Chunk]:
    if _SUFFIXES[path.suffix] == JSONL:
        size = path.stat().st_size
        return [Chunk(JSONL, str(path), at, min(at + CHUNK_BYTES, size)) for at in range(0, size, CHUNK_BYTES)]
    import pyarrow.parquet as pq

    try:
        groups = pq.ParquetFile(path).metadata.num_row_groups
    except OSError as error:
        raise DataError(f"{path} is no Parquet file: {error}. A file cut short? Write it again.") from error
    return [Chunk(PARQUET, str(path), group, group + 1) for group in range(groups)]


def _read_lines(chunk: Chunk) -> Iterator[dict[str, Any]]:
    with open(chunk.path, "rb") as file:
        if chunk.start:
            # The line in which the piece begins belongs to the piece before, unless it begins exactly here.
            file.seek(chunk.start - 1)
            file.readline()
        while (position := file.tell()) < chunk.stop:
            line = file.readline()
            if not line.strip():
                continue
            yield json_object(line, f"{chunk.path}, byte {position}")


def _read_groups(chunk: Chunk) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(chunk.path)
    for group in range(chunk.start, chunk.stop):
        for batch in file.iter_batches(256, row_groups=[group]):
            yield from batch.to_pylist()


@lru_cache(maxsize=8)
def _arrow(path: str, config: str | None, split: str) -> Any:
    """Load a data set, memory-mapped; once per process."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    try:
        loaded: Any = load_from_disk(path) if Path(path).is_dir() else load_dataset(path, config)
    except Exception as error:  # the Hub's client raises a dozen unrelated kinds
        raise DataError(
            f"Data set {path!r} (configuration {config!r}) cannot be loaded: {type(error).__name__}: {error}. Give a Hub id, "
            "a .jsonl or .parquet file, or a folder of them."
        ) from error
    if isinstance(loaded, DatasetDict):
        if split not in loaded:
            raise DataError(f"Data set {path!r} has no split {split!r}. Splits: {', '.join(map(str, loaded))}.")
        loaded = loaded[split]
    return loaded
