"""Several sources of questions in one run, each with its share, its held-out questions its own and all of them disjoint."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from trl_r1.data.sources import SourceConfig, load_rows, question_key
from trl_r1.exceptions import ConfigurationError, DataError, unknown

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

_FIELDS = tuple(field.name for field in fields(SourceConfig))


@dataclass(frozen=True)
class WeightedSource:
    """One source of a mixture.

    Args:
        config ([`~trl_r1.data.sources.SourceConfig`]): Where its questions come from.
        weight (`float`, *optional*): Its share of the training questions, relative to the others'.
    """

    config: SourceConfig
    weight: float | None = None


def read_sources(entries: Any, common: SourceConfig) -> list[WeightedSource]:
    """Read the `datasets:` list of a configuration.

    Args:
        entries (`list[dict]` or `str`):
            Sources, as a list or as JSON: the fields of [`SourceConfig`], `dataset` at least, and `weight`. With weights
            every source has one.
        common ([`SourceConfig`]): Values of the fields that an entry leaves out, except `dataset`.

    Returns:
        `list[WeightedSource]`: In order.

    Raises:
        [`ConfigurationError`]: For entries of another form, unknown fields, weights that are no positive numbers.
    """
    if isinstance(entries, str):
        try:
            entries = json.loads(entries)
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"datasets is no JSON list: {entries!r} ({error}).") from None
    if not isinstance(entries, list | tuple) or not entries:
        raise ConfigurationError(
            f"datasets is {entries!r}. It must be a list of sources, e.g. datasets: [{{dataset: nano:arithmetic, weight: 1}}]."
        )
    sources = []
    for entry in entries:
        if not isinstance(entry, Mapping) or "dataset" not in entry:
            raise ConfigurationError(f"A source in datasets is {entry!r}. It must be a mapping that names its dataset.")
        for name in entry:
            if name not in (*_FIELDS, "weight"):
                raise unknown("field of a source in datasets", name, (*_FIELDS, "weight"))
        values = {name: getattr(common, name) for name in _FIELDS} | {k: v for k, v in entry.items() if k != "weight"}
        sources.append(WeightedSource(SourceConfig(**values), _weight(entry)))
    if len({source.weight is None for source in sources}) > 1:
        raise ConfigurationError("Some sources in datasets have a weight and others none. Give all one, or none.")
    return sources


def _weight(entry: Mapping[str, Any]) -> float | None:
    weight = entry.get("weight")
    if weight is None:
        return None
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ConfigurationError(f"The weight of source {entry['dataset']!r} is {weight!r}. It must be above 0.")
    return float(weight)


def load_mixture(sources: Sequence[WeightedSource]) -> DatasetDict:
    """Load all sources into one data set.

    Without weights the training split is all of them together, one after the other. With weights each has its share, and the
    source that is largest for its share is used whole: those too small for theirs are repeated, so that nothing is lost.
    [?] No paper says how R1's prompts were mixed.

    Held out is every source's own test split, or its part. They take turns, so that the first n held-out questions hold as
    many of each source. A question held out by one source trains in none, and one that several sources ask trains once.

    Args:
        sources (`Sequence[WeightedSource]`): At least one.

    Returns:
        `datasets.DatasetDict`: Splits `train` and `test` with the columns of [`~trl_r1.rows.Row`].

    Raises:
        [`DataError`]: As [`load_rows`], when nothing is left of a source, or when sources mix prompts as text and as
            messages.
    """
    from datasets import DatasetDict, concatenate_datasets

    loaded = [load_rows(source.config) for source in sources]
    if len(loaded) == 1:
        return loaded[0]
    names = [str(source.config.dataset) for source in sources]
    _check_prompts(names, loaded)
    tests = _without_repeats([splits["test"] for splits in loaded], set())
    held_out = {question_key(prompt) for test in tests for prompt in test["prompt"]}
    trains = _without_repeats([splits["train"] for splits in loaded], held_out)
    for name, splits, train, test in zip(names, loaded, trains, tests, strict=True):
        if not len(train) or not len(test):
            raise DataError(
                f"Source {name!r} has {len(splits['train'])} training and {len(splits['test'])} held-out questions; "
                f"{len(train)} and {len(test)} are left without those that other sources ask. Leave it out."
            )
    amounts = [len(train) for train in trains]
    weights = [source.weight for source in sources if source.weight is not None]
    if weights:
        amounts = shares(amounts, weights)
        trains = [train.select(_cycle(len(train), n)) for train, n in zip(trains, amounts, strict=True)]
    for name, amount, test in zip(names, amounts, tests, strict=True):
        logger.info("%s: %.0f %% of the training questions, %d held out.", name, 100 * amount / sum(amounts), len(test))
    joined = concatenate_datasets(tests)
    return DatasetDict({"train": concatenate_datasets(trains), "test": joined.select(_in_turn(map(len, tests)))})


def shares(available: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return how many rows of each source make up the shares, the largest for its share used whole.

    Args:
        available (`Sequence[int]`): Rows of each source.
        weights (`Sequence[float]`): Their shares, relative to each other.

    Returns:
        `list[int]`: Rows of each, at least 1; more than available means that the source is repeated.

    Example:

    ```python
    >>> from trl_r1.data.question_mixture import shares
    >>> shares([100, 20], [1, 1]), shares([100, 20], [3, 1])
    ([100, 100], [100, 33])
    ```
    """
    unit = max(rows / weight for rows, weight in zip(available, weights, strict=True))
    return [max(1, round(unit * weight)) for weight in weights]


def _cycle(rows: int, amount: int) -> list[int]:
    return [index % rows for index in range(amount)]


def _in_turn(lengths: Iterable[int]) -> list[int]:
    """Indices of concatenated parts, one of each part in turn."""
    parts, start = [], 0
    for length in lengths:
        parts.append(range(start, start + length))
        start += length
    return [index for turn in zip_longest(*parts) for index in turn if index is not None]


def _without_repeats(parts: Sequence[Dataset], seen: set[str]) -> list[Dataset]:
    """Drop questions that an earlier part asks, or that are in `seen`."""
    kept = []
    for part in parts:
        indices = []
        for index, prompt in enumerate(part["prompt"]):
            key = question_key(prompt)
            if key not in seen:
                seen.add(key)
                indices.append(index)
        kept.append(part if len(indices) == len(part) else part.select(indices))
    if (dropped := sum(map(len, parts)) - sum(map(len, kept))) > 0:
        logger.warning("%d questions are asked by several sources, or held out, and are dropped.", dropped)
    return kept


def _check_prompts(names: Sequence[str], loaded: Sequence[DatasetDict]) -> None:
    kinds = {name: isinstance(splits["train"][0]["prompt"], list) for name, splits in zip(names, loaded, strict=True)}
    if len(set(kinds.values())) > 1:
        messages = ", ".join(name for name, conversational in kinds.items() if conversational)
        raise DataError(
            f"Sources mix prompts as text and as messages ({messages}). Use one of the two: columns: {{prompt: …}} naming the "
            "question's text, or a row_function."
        )
