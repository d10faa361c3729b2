"""Any data set becomes rows: from the Hub, a local file, reasoning-gym or the embedded `nano`, by columns named in YAML.

Everything that can be wrong with the data is found here, before any weight is loaded.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trl_r1.data.files import BUILDERS, JsonLines, open_file, why
from trl_r1.data.mapping import FIELDS, row_from_example
from trl_r1.exceptions import ConfigurationError, DataError, unknown
from trl_r1.rows import DOMAINS, Prompt, Row
from trl_r1.verifiers import NAMES, check_references

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

NANO = "nano"
# How many rows `nano` draws when the configuration does not say.
NANO_TRAIN_ROWS, NANO_TEST_ROWS = 4096, 512
GYM = "gym"
# Entry i of a reasoning-gym task is drawn from seed + i: splits and seeds lie too far apart to meet.
_GYM_TEST_SEED, _GYM_SEED = 500_000_003, 1_000_000_007


@dataclass
class SourceConfig:
    """Where the questions come from, and which column is what.

    Args:
        dataset (`str` or `dict`, defaults to `"nano:countdown"`):
            A Hub id; a local `.jsonl`, `.json`, `.parquet` or `.csv` file, or a folder; a mapping of splits to files;
            `nano:<task>[,<task>…]` for the embedded world (`nano` alone: all of its tasks); or `gym:<task>[,<task>…]` for
            tasks of reasoning-gym, verified by their own scorers.
        dataset_config (`str`, *optional*): Configuration name of a Hub data set.
        train_split (`str`, defaults to `"train"`): Split to train on.
        test_split (`str`, *optional*):
            Split held out. By default `"test"` where there is one, else a part of the training split.
        columns (`dict`, *optional*):
            Row field → column: `prompt`, `reference`, `domain`, `language`, `id`, `verifier`, and `options` (a list
            of choices, written into the prompt) or `tests` (of a program). Fields not named are read from the column
            of their own name, where it exists.
        patterns (`dict`, *optional*):
            Row field → regular expression, whose first group (or whole match) is taken: `reference: '#### (.*)'`.
        domain (`str`, *optional*): Domain of all rows; by default `stem` with options, `code` with tests, else `math`.
        verifier (`str`, *optional*): Verifier of all rows, where it is not the domain's own.
        language (`str`, *optional*): Language of all rows (ISO 639-1); for `nano`, the only one drawn.
        row_function (`str`, *optional*):
            Dotted path of a function from a row of the data set (a dict) to a `Row`, its columns, or `None` to leave
            it out. Replaces `columns` and `patterns`.
        test_fraction (`float`, defaults to 0.05): Share of the questions held out when there is no test split.
        split_seed (`int`, defaults to 0): Seed of that choice, and of what `nano` and `gym` draw.
        max_rows (`int`, *optional*): Most training rows.
        max_test_rows (`int`, *optional*): Most held-out rows.
        max_unverifiable (`float`, defaults to 0.01): Largest share of gold answers that no verifier can read.
        depth (`int`, *optional*): Depth of the questions of `nano`.
        gym_settings (`dict`, *optional*): Settings of the `gym` tasks, such as `{min_terms: 2, max_terms: 2}`.
    """

    dataset: dict[str, Any] | str | None = field(
        default="nano:countdown",
        metadata={
            "help": "Hub id, local file or folder, {split: file} as JSON, nano:<task>[,<task>], gym:<task>[,<task>]."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration name of a Hub data set."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    test_split: str | None = field(
        default=None, metadata={"help": "Split held out; by default 'test' if it exists, else made from the other."}
    )
    columns: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Row field to column, e.g. {prompt: question, reference: answer}."}
    )
    patterns: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Row field to regular expression, e.g. {reference: '#### (.*)'}."}
    )
    domain: str | None = field(default=None, metadata={"help": f"Domain of all rows: {', '.join(DOMAINS)}."})
    verifier: str | None = field(default=None, metadata={"help": f"Verifier of all rows: {', '.join(NAMES)}."})
    language: str | None = field(default=None, metadata={"help": "Language of all rows (ISO 639-1)."})
    row_function: str | None = field(
        default=None, metadata={"help": "Dotted path of a function from a row of the data set to a Row or its columns."}
    )
    test_fraction: float = field(default=0.05, metadata={"help": "Share held out when there is no test split."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the held-out split and of what nano and gym draw."})
    max_rows: int | None = field(default=None, metadata={"help": "Most training rows."})
    max_test_rows: int | None = field(default=None, metadata={"help": "Most held-out rows."})
    max_unverifiable: float = field(
        default=0.01, metadata={"help": "Largest share of gold answers that no verifier can read."}
    )
    depth: int | None = field(default=None, metadata={"help": "Depth of nano's questions."})
    gym_settings: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Settings of the gym tasks, e.g. {min_terms: 2}."}
    )

    def __post_init__(self) -> None:
        self.columns = as_mapping("columns", self.columns)
        self.patterns = as_mapping("patterns", self.patterns)
        self.gym_settings = as_mapping("gym_settings", self.gym_settings)
        if isinstance(self.dataset, str) and self.dataset.lstrip().startswith("{"):
            self.dataset = as_mapping("dataset", self.dataset)
        for name, mapped in (("columns", self.columns), ("patterns", self.patterns)):
            for key in mapped:
                if key not in FIELDS:
                    raise unknown(f"row field in `{name}`", key, FIELDS)
        for key, pattern in self.patterns.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigurationError(f"Pattern {pattern!r} of {key!r} is no regular expression: {error}.") from None
        if self.domain is not None and self.domain not in DOMAINS:
            raise unknown("domain", self.domain, DOMAINS)
        if self.verifier is not None and self.verifier not in NAMES:
            raise unknown("verifier", self.verifier, NAMES, "Leave it out to use the domain's own.")
        if not 0 < self.test_fraction < 1:
            raise ConfigurationError(f"test_fraction is {self.test_fraction}. It must lie between 0 and 1.")
        for name, value in (("max_rows", self.max_rows), ("max_test_rows", self.max_test_rows)):
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} is {value}. It must be at least 1; leave it out for all rows.")

    @property
    def nano_tasks(self) -> list[str] | None:
        """Tasks of the embedded world; an empty list means all of them, `None` that this is another source."""
        return self._tasks(NANO)

    @property
    def gym_tasks(self) -> list[str] | None:
        """Tasks of reasoning-gym; `None` means that this is another source."""
        return self._tasks(GYM)

    def _tasks(self, kind: str) -> list[str] | None:
        if not isinstance(self.dataset, str) or self.dataset.partition(":")[0] != kind:
            return None
        return [task.strip() for task in self.dataset.partition(":")[2].split(",") if task.strip()]


def as_mapping(name: str, value: Any) -> dict[str, Any]:
    """Accept a mapping from YAML as it is, and one from the command line as JSON; none is empty.

    Raises:
        [`ConfigurationError`]: For anything else, naming the setting.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{name} is no JSON object: {value!r} ({error}).") from None
    if value is not None and not isinstance(value, Mapping):
        raise ConfigurationError(f"{name} is a {type(value).__name__}. It must be a mapping.")
    return dict(value or {})


def load_rows(config: SourceConfig) -> DatasetDict:
    """Load the training and the held-out rows of a source.

    Args:
        config ([`SourceConfig`]): The source.

    Returns:
        `datasets.DatasetDict`: Splits `train` and `test` with the columns of [`Row`]; no question is in both.

    Raises:
        [`DataError`]: For missing files, splits or columns, patterns that do not match, gold answers that cannot be
            read (above `max_unverifiable`).
        [`ConfigurationError`]: For an unknown domain, verifier or row function.
    """
    if config.nano_tasks is not None:
        train, test = _nano_rows(config)
    elif config.gym_tasks is not None:
        train, test = _without_test(*_gym_rows(config))
    else:
        splits = _read(config)
        name = _test_name(config, splits)
        train = _rows(splits[config.train_split], config)
        test = _rows(splits[name], config) if name else []
        train, test = _without_test(train, test) if test else hold_out(train, config.test_fraction, config.split_seed)
    train, test = train[: config.max_rows], test[: config.max_test_rows]
    if not train or not test:
        raise DataError(
            f"Source {config.dataset!r} gives {len(train)} training and {len(test)} held-out rows; both are needed."
        )
    for split, rows in (("train", train), ("test", test)):
        try:
            bad = check_references(rows, config.max_unverifiable)
        except DataError as error:
            raise DataError(f"Source {config.dataset!r}, split {split!r}: {error}") from None
        if bad:
            logger.warning("%d of %d %s rows cannot be verified and earn no accuracy.", len(bad), len(rows), split)
    logger.info("%d training and %d held-out rows from %r.", len(train), len(test), config.dataset)
    return rows_to_dataset({"train": train, "test": test})


def rows_to_dataset(splits: Mapping[str, Iterable[Row]]) -> DatasetDict:
    """Build the data set of some rows, all columns typed as text (or messages), also where every value is missing."""
    from datasets import Dataset, DatasetDict, Features, Value

    text = Value("string")
    built = {}
    for name, rows in splits.items():
        rows = list(rows)
        conversational = {isinstance(row.prompt, list) for row in rows}
        if len(conversational) > 1:
            raise DataError(f"Split {name!r} mixes prompts as text and as messages. Use one of the two.")
        prompt = [{"role": text, "content": text}] if conversational == {True} else text
        features = Features({"prompt": prompt} | {key: text for key in Row.__dataclass_fields__ if key != "prompt"})
        built[name] = Dataset.from_list([row.asdict() for row in rows], features=features)
    return DatasetDict(built)


def question_key(prompt: Prompt) -> str:
    """Return a key under which equal questions are equal: letter case, width, spaces and punctuation do not count.

    Mathematical signs do: `3 + 5` and `3 - 5` are two questions.
    """
    text = prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt if m["role"] == "user")
    folded = unicodedata.normalize("NFKC", text).casefold()
    # A point or comma inside a number is part of the number.
    joined = re.sub(r"(?<=[0-9])[.,](?=[0-9])", "\0", folded)
    kept = ("." if ch == "\0" else " " if ch in ",.;:!?\"'`。，、；：！？" else ch for ch in joined)
    return " ".join("".join(kept).split())


def _digest(key: str, seed: int = 0) -> str:
    return hashlib.sha256(f"{seed}\n{key}".encode()).hexdigest()


def hold_out(rows: list[Row], fraction: float, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Split rows by a hash of their question, so that equal questions lie on one side and re-runs agree.

    Args:
        rows (`list[Row]`): All rows.
        fraction (`float`): Share of the questions to hold out.
        seed (`int`, defaults to 0): Another seed holds out others.

    Returns:
        `tuple[list[Row], list[Row]]`: Training and held-out rows, in their order.

    Raises:
        [`DataError`]: With fewer than two different questions.
    """
    digests = [_digest(question_key(row.prompt), seed) for row in rows]
    unique = sorted(set(digests))
    if len(unique) < 2:
        raise DataError(f"{len(rows)} rows hold {len(unique)} different questions; a held-out split needs at least 2.")
    held = {digest for digest in unique if int(digest[:12], 16) < fraction * 16**12}
    if not held or len(held) == len(unique):
        # Too few questions for the share: hold out at least one, keep at least one.
        held = set(unique[: min(max(1, round(fraction * len(unique))), len(unique) - 1)])
    train = [row for row, digest in zip(rows, digests, strict=True) if digest not in held]
    return train, [row for row, digest in zip(rows, digests, strict=True) if digest in held]


def _without_test(train: list[Row], test: list[Row]) -> tuple[list[Row], list[Row]]:
    """Drop training rows that ask a held-out question."""
    held = {question_key(row.prompt) for row in test}
    kept = [row for row in train if question_key(row.prompt) not in held]
    if len(kept) < len(train):
        logger.warning("%d training rows ask a held-out question and are dropped.", len(train) - len(kept))
    return kept, test


def _nano_rows(config: SourceConfig) -> tuple[list[Row], list[Row]]:
    """Draw rows of the embedded world, whose splits are disjoint by their canonical keys."""
    from trl_r1.nano import NanoWorld

    world = NanoWorld()
    options: dict[str, Any] = {"language": config.language, "depth": config.depth, "seed": config.split_seed}
    tasks = config.nano_tasks or None
    train = world.rows("train", config.max_rows or NANO_TRAIN_ROWS, tasks=tasks, **options)
    test = world.rows("test", config.max_test_rows or NANO_TEST_ROWS, tasks=tasks, **options)
    return train, test


def _gym_rows(config: SourceConfig) -> tuple[list[Row], list[Row]]:
    """Draw rows of reasoning-gym, as many of each task."""
    from trl_r1.verifiers.gym import gym_rows

    tasks, settings = config.gym_tasks, dict(cast("dict[str, Any]", config.gym_settings or {}))
    if not tasks:
        raise unknown("source", config.dataset, ["gym:<task>[,<task>]"], "Name at least one task of reasoning-gym.")
    splits = []
    for offset, wanted in (
        (0, config.max_rows or NANO_TRAIN_ROWS),
        (_GYM_TEST_SEED, config.max_test_rows or NANO_TEST_ROWS),
    ):
        each, seed = -(-wanted // len(tasks)), config.split_seed * _GYM_SEED + offset
        try:
            drawn = [list(gym_rows(task, each, seed, **settings)) for task in tasks]
        except (TypeError, AssertionError) as error:  # what reasoning-gym's configurations raise
            raise ConfigurationError(f"gym_settings {settings} do not suit {', '.join(tasks)}: {error}.") from error
        rows = [row for turn in zip(*drawn, strict=True) for row in turn]
        splits.append([replace(row, domain=config.domain or row.domain) for row in rows])
    return splits[0], splits[1]


def _read(config: SourceConfig) -> Mapping[str, Dataset | JsonLines]:
    """Read the source's splits."""
    from datasets import Dataset, load_dataset, load_from_disk

    source = config.dataset
    files = dict(source) if isinstance(source, Mapping) else None
    if isinstance(source, str) and Path(source).suffix in BUILDERS:
        files = {config.train_split: source}
    if files is not None:
        missing = [str(path) for path in files.values() if not Path(str(path)).is_file()]
        if missing:
            raise DataError(f"No such file: {', '.join(missing)}. Looked from {Path.cwd()}.")
        kinds = {Path(str(path)).suffix for path in files.values()}
        if len(kinds) != 1 or not kinds <= set(BUILDERS):
            raise unknown("kind of data file", ", ".join(sorted(kinds)), BUILDERS, "All splits must be of one kind.")
        splits: Mapping[str, Dataset | JsonLines] = {name: open_file(str(path)) for name, path in files.items()}
        return _with_train(splits, config)
    if Path(str(source), "dataset_dict.json").is_file() or Path(str(source), "state.json").is_file():
        loaded = load_from_disk(str(source))
    else:
        try:
            loaded = load_dataset(str(source), config.dataset_config)
        except Exception as error:  # the Hub's client raises a dozen unrelated kinds
            raise DataError(
                f"Data set {source!r} (configuration {config.dataset_config!r}) cannot be loaded: "
                f"{why(error)}. Give a Hub id, a file ending in {', '.join(BUILDERS)}, or nano:<task>."
            ) from error
    return _with_train({config.train_split: loaded} if isinstance(loaded, Dataset) else loaded, config)


def _with_train(splits: Mapping[str, Dataset | JsonLines], config: SourceConfig) -> Mapping[str, Dataset | JsonLines]:
    """Refuse splits without the one to train on."""
    if config.train_split not in splits:
        raise DataError(
            f"Data set {config.dataset!r} has no split {config.train_split!r}. Splits: {', '.join(map(str, splits))}. Set "
            "train_split."
        )
    return splits


def _test_name(config: SourceConfig, splits: Mapping[str, Any]) -> str | None:
    """Choose the held-out split: the one named, else `test`, else none."""
    name = config.test_split or ("test" if "test" in splits and config.train_split != "test" else None)
    if name is not None and name not in splits:
        raise DataError(
            f"Data set {config.dataset!r} has no split {name!r}. Splits: {', '.join(map(str, splits))}. Leave "
            "test_split out to hold out a part of the training split."
        )
    return None if name == config.train_split else name


def _rows(examples: Dataset | JsonLines, config: SourceConfig) -> list[Row]:
    """Turn the examples of one split into rows."""
    if config.row_function is not None:
        function = _import(config.row_function)
        rows = [_called(function, dict(example), i, config.row_function) for i, example in enumerate(examples)]
    else:
        make = row_from_example(examples.column_names, config)
        rows = [make(example, i) for i, example in enumerate(examples)]
    return [_with_defaults(row, config) for row in rows if row is not None]


def _with_defaults(row: Row, config: SourceConfig) -> Row:
    """Fill what the example left open from the configuration, and give the row its canonical key."""
    columns = row.asdict()
    columns["language"] = row.language or config.language
    columns["verifier"] = row.verifier or config.verifier
    columns["id"] = row.id or f"q-{_digest(question_key(row.prompt))[:16]}"
    return Row(**columns)


def _import(path: str) -> Callable[[dict[str, Any]], Any]:
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"row_function {path!r} cannot be imported: {error}. Give package.module.function."
        ) from error
    if not callable(function):
        raise ConfigurationError(f"row_function {path!r} is a {type(function).__name__}. It must be a function.")
    return function


def _called(function: Callable[[dict[str, Any]], Any], example: dict[str, Any], index: int, path: str) -> Row | None:
    result = function(example)
    if result is None:
        return None
    if isinstance(result, Row):
        return replace(result, reference=str(result.reference))
    if not isinstance(result, Mapping) or result.get("prompt") is None:
        raise DataError(
            f"row_function {path!r} returned {result!r:.200} for row {index}. It must return a Row, a mapping with "
            f"'prompt' and 'reference', or None."
        )
    reference = result.get("reference", "")
    if not isinstance(reference, str):
        reference = json.dumps(reference, ensure_ascii=False)
    return Row.from_columns({**result, "reference": reference})
