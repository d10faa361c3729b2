"""One split of a source as it is: what an evaluation reads, where training needs a part held out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from trl_r1.data import sources
from trl_r1.data.files import BUILDERS, JsonLines
from trl_r1.data.sources import NANO_TEST_ROWS, SourceConfig
from trl_r1.exceptions import DataError
from trl_r1.rows import Row
from trl_r1.verifiers.gym import gym_rows

if TYPE_CHECKING:
    from datasets import Dataset

GYM = "gym:"
HUB_FILE = "hf://"
# How many questions of a reasoning-gym task are drawn when the configuration does not say.
GYM_ROWS = 200


def load_split(config: SourceConfig, split: str = "test") -> list[Row]:
    """Load all rows of one split, in their order.

    Args:
        config ([`~trl_r1.data.sources.SourceConfig`]):
            The source. Besides what training takes, `dataset` may be `gym:<task>` (a reasoning-gym task; `split_seed` is its
            seed) or a file on the Hub, `hf://datasets/owner/name/file.jsonl`.
        split (`str`, defaults to `"test"`): The split; of no meaning for `nano` (always held out), `gym:` and single files.

    Returns:
        `list[Row]`: At most `max_test_rows` of them. Gold answers are not checked here.

    Raises:
        [`DataError`]: For a source that cannot be reached or read, or holds no row.
        [`ConfigurationError`]: For an unknown task or row function.
    """
    name = str(config.dataset)
    if config.nano_tasks is not None:
        from trl_r1.nano import NanoWorld

        rows = NanoWorld().rows(
            "test",
            config.max_test_rows or NANO_TEST_ROWS,
            tasks=config.nano_tasks or None,
            language=config.language,
            depth=config.depth,
            seed=config.split_seed,
        )
    elif name.startswith(GYM):
        rows = list(gym_rows(name.removeprefix(GYM), config.max_test_rows or GYM_ROWS, config.split_seed))
    else:
        rows = sources._rows(_read(config, split), config)
    if not rows:
        raise DataError(f"Source {name!r}, split {split!r}, holds no row.")
    return rows[: config.max_test_rows]


def _read(config: SourceConfig, split: str) -> Dataset | JsonLines:
    """Read one split, from the Hub only that one: some carry training splits a hundred times as large."""
    from datasets import load_dataset

    source = config.dataset
    if source is None:
        raise DataError("This source names no data set. Give a Hub id or a file.")
    if not isinstance(source, str) or _is_local(source):
        return sources._read(replace(config, train_split=split))[split]
    try:
        if source.startswith(HUB_FILE):
            kind = BUILDERS.get(PurePosixPath(source).suffix, "json")
            return load_dataset(kind, data_files=source, split="train")
        return load_dataset(source, config.dataset_config, split=split)
    except Exception as error:  # the Hub's client raises a dozen unrelated kinds
        raise DataError(
            f"Data set {source!r} (configuration {config.dataset_config!r}, split {split!r}) cannot be loaded: "
            f"{type(error).__name__}: {str(error)[:300]}. Where the Hub cannot be reached, give a local file ending in "
            f"{', '.join(BUILDERS)}."
        ) from error


def _is_local(source: str) -> bool:
    """Whether a source is a file or a folder here; a missing file is one too, so that it is called missing."""
    if source.startswith(HUB_FILE):
        return False
    return Path(source).suffix in BUILDERS or Path(source).is_dir()
