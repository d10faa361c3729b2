"""Rows of traces as a data set: in memory where they are few and drawn here, else written through to disk.

R1's 800,000 traces are 13 GB of text and more of token ids, for each process of a node. On disk they are read as they are needed,
by all processes from one place, and what TRL makes of them (token ids, packed rows) stays there too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_r1.exceptions import TrlR1Error

if TYPE_CHECKING:
    from datasets import Dataset, Features

CARRIED = ("id", "domain", "language", "license", "source")


class _SeveralTurns(Exception):
    """A prompt of several turns among texts: all prompts are to be conversations."""


def to_dataset(rows: list[dict[str, Any]]) -> Dataset:
    """Build the data set of trace rows: prompts all as text, or all as messages where one row has several turns."""
    from datasets import Dataset

    conversational = any(isinstance(row["prompt"], list) for row in rows)
    made = list(_uniform(rows, conversational))
    return Dataset.from_list(made, features=_features(conversational))


def traces_on_disk(rows: Callable[[], Iterator[dict[str, Any]]], identity: Any) -> Dataset:
    """Write rows to the cache of `datasets`, unless the same ones are there already, and open them.

    Args:
        rows (`Callable`): Begins to make the rows; called once more where prompts turn out to be conversations.
        identity: Whatever the rows depend on, with a `repr` that is the same in every process.

    Returns:
        `datasets.Dataset`: As [`to_dataset`] makes it.

    Raises:
        [`TrlR1Error`]: What making the rows raises.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    for conversational in (False, True):
        name = hashlib.sha256(repr((conversational, _code(), identity)).encode()).hexdigest()[:32]
        try:
            return Dataset.from_generator(
                lambda conversational=conversational: _uniform(rows(), conversational),
                features=_features(conversational),
                fingerprint=name,
            )
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, _SeveralTurns):
                continue
            if isinstance(error.__cause__, TrlR1Error):
                raise error.__cause__ from None
            raise
    raise AssertionError("a conversation holds every prompt")


def files_identity(source: str) -> list[tuple[str, int, int]]:
    """Say which version of a file, or of all files in a folder, is there: names, sizes, times. Empty for anything else."""
    path = Path(source)
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
    facts = ((file, file.stat()) for file in files if file.is_file())
    return [(str(file.resolve()), stat.st_size, stat.st_mtime_ns) for file, stat in facts]


def _uniform(rows: Iterable[dict[str, Any]], conversational: bool) -> Iterator[dict[str, Any]]:
    for row in rows:
        turns = isinstance(row["prompt"], list)
        if turns and not conversational:
            raise _SeveralTurns
        yield {**row, "prompt": [{"role": "user", "content": row["prompt"]}]} if conversational and not turns else row


def _features(conversational: bool) -> Features:
    from datasets import Features, Value

    text = Value("string")
    prompt: Any = [{"role": text, "content": text}] if conversational else text
    return Features({"prompt": prompt, "completion": text} | dict.fromkeys(CARRIED, text))


@cache
def _code() -> str:
    """A hash of what makes rows of examples, so that another version of it finds no rows of this one."""
    files = sorted([*Path(__file__).parent.glob("*.py"), *Path(__file__).parents[1].glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
