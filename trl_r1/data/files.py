"""Local data files: JSONL line by line, whose rows may differ in their columns and types, and the other kinds by `datasets`.

`datasets` gives each column of a file, and of all files that are read together, the type of its first rows, and fails where
another comes. So each file is read by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_r1.exceptions import DataError, unknown

if TYPE_CHECKING:
    from datasets import Dataset

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file, as they are; empty lines are passed over.

    Raises:
        [`DataError`]: A line is no JSON object; says which.
    """
    # Read as bytes, so that a line in another encoding is named, too.
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            yield json_object(line, f"{path}, line {number}")


def json_object(line: bytes, place: str) -> dict[str, Any]:
    """Read the object that a line of JSON is.

    Raises:
        [`DataError`]: It is none; says at which `place`.
    """
    try:
        example = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place} is no JSON: {error}. A file cut short? Remove the line.") from None
    if not isinstance(example, dict):
        raise DataError(
            f"{place} is a {type(example).__name__}. Each line must be a JSON object, such as "
            '{"prompt": "…"}; call a file that is one list .json.'
        )
    return example


class JsonLines:
    """The rows of a JSONL file with the columns of all of them, `None` where a row has none. Read anew each time.

    Args:
        path (`Path`): The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def column_names(self) -> list[str]:
        """All columns, in the order in which they first come."""
        return list(dict.fromkeys(name for example in json_lines(self.path) for name in example))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        empty = dict.fromkeys(self.column_names)
        for example in json_lines(self.path):
            yield {**empty, **example}


def open_file(path: str | Path) -> Dataset | JsonLines:
    """Open a local data file.

    Args:
        path (`str` or `Path`): A `.jsonl`, `.json`, `.parquet` or `.csv` file.

    Returns:
        `datasets.Dataset` or [`JsonLines`]: Its rows, with `column_names`.

    Raises:
        [`DataError`]: There is no such file, or it cannot be read; says which and why.
        [`ConfigurationError`]: It is of another kind.
    """
    from datasets import load_dataset

    path = Path(path)
    if path.suffix not in BUILDERS:
        raise unknown("kind of data file", path.name, BUILDERS)
    if not path.is_file():
        raise DataError(f"No such file: {path}. Looked from {Path.cwd()}.")
    if path.suffix == ".jsonl":
        return JsonLines(path)
    try:
        return load_dataset(BUILDERS[path.suffix], data_files=str(path), split="train")
    except Exception as error:  # what the builders raise has no common base
        raise DataError(
            f"{path} cannot be read as {path.suffix[1:]}: {why(error)}. A file cut short? Otherwise give each column one type "
            "in all rows, or write the rows as .jsonl file, which may mix them."
        ) from error


def why(error: BaseException) -> str:
    """Say what an error is and what caused it: that of `datasets` names no column, its cause does."""
    said = f"{type(error).__name__}: {error}"
    return said if error.__cause__ is None else f"{said} ({error.__cause__})"
