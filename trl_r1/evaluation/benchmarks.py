"""Which questions a model is measured on: benchmarks by name, reasoning-gym tasks, and any data set by YAML.

A benchmark is a source of rows, how its questions are asked, and what others scored on it (`benchmarks.yaml` beside this
file, whose head explains the fields).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from trl_r1.data.sources import SourceConfig
from trl_r1.data.split import GYM, load_split
from trl_r1.exceptions import ConfigurationError, DataError, unknown
from trl_r1.rows import Row
from trl_r1.verifiers import check_sandbox, readable, verifier_name

logger = logging.getLogger(__name__)

FORMS = ("boxed", "plain")
KINDS = ("accuracy", "rating", "preference")
# Samples per question where neither benchmark nor user says; R1 draws between 4 and 64 (v1 §3).
DEFAULT_K = 16
# Figures that other tables call by these names; anything else in `published` is a typing error.
FIGURES = ("pass@1", "rating", "percentile", "lc_win_rate", "arena_score")


@dataclass(frozen=True)
class Benchmark:
    """A set of questions with the protocol it is measured by.

    Args:
        name (`str`): What the user types.
        title (`str`): What tables call it.
        source ([`~trl_r1.data.sources.SourceConfig`]): Where the rows come from.
        split (`str`, defaults to `"test"`): The split that is measured.
        k (`int`, defaults to 16): Samples per question.
        cons_k (`int`, *optional*): Votes of cons@k; all samples by default.
        form (`str`, defaults to `"boxed"`):
            `"boxed"` ends the prompt in the instruction of R1's model card; `"plain"` leaves it as it is (programs, essays).
        kind (`str`, defaults to `"accuracy"`): `"accuracy"`, `"rating"` or `"preference"`.
        published (`dict[str, dict[str, float]]`): Figures of other models by name, in percent; ratings as they are.
        published_source (`str`, defaults to `""`): Where those stand.

    Raises:
        [`ConfigurationError`]: For a value that is not allowed.
    """

    name: str
    title: str
    source: SourceConfig
    split: str = "test"
    k: int = DEFAULT_K
    cons_k: int | None = None
    form: str = "boxed"
    kind: str = "accuracy"
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    published_source: str = ""

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise unknown(f"form of benchmark {self.name!r}", self.form, FORMS)
        if self.kind not in KINDS:
            raise unknown(f"kind of benchmark {self.name!r}", self.kind, KINDS)
        for what, value in (("k", self.k), ("cons_k", self.cons_k or 1)):
            if value < 1:
                raise ConfigurationError(f"Benchmark {self.name!r}: {what}={value} must be at least 1.")
        for model, figures in self.published.items():
            for figure in figures:
                if figure not in FIGURES and not figure.startswith(("pass@", "cons@")):
                    raise unknown(f"figure of {model} on {self.name!r}", figure, (*FIGURES, "pass@k", "cons@k"))

    def from_file(self, path: str | Path) -> Benchmark:
        """The same benchmark read from a local file of the same columns."""
        return replace(self, source=replace(self.source, dataset=str(path), dataset_config=None))


@cache
def shipped() -> dict[str, Benchmark]:
    """The benchmarks that come with the package, by name."""
    return read_benchmarks(Path(__file__).with_name("benchmarks.yaml"))


def read_benchmarks(path: str | Path) -> dict[str, Benchmark]:
    """Read benchmarks from a YAML file.

    Args:
        path (`str` or `Path`): A mapping from names to the fields of [`Benchmark`], `source` being a mapping itself, or
            just the name of a data set.

    Returns:
        `dict[str, Benchmark]`: In the file's order.

    Raises:
        [`ConfigurationError`]: If the file cannot be read, or names an unknown field.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"Benchmarks cannot be read from {str(path)!r}: {error}.") from error
    if not isinstance(entries, Mapping):
        raise ConfigurationError(
            f"{str(path)!r} holds a {type(entries).__name__}. It must map names of benchmarks to their fields: "
            "my_set: {source: {dataset: my.jsonl, columns: {prompt: question, reference: answer}}}."
        )
    return {str(name): _benchmark(str(name), entry) for name, entry in entries.items()}


def _benchmark(name: str, entry: Any) -> Benchmark:
    fields = dict(entry) if isinstance(entry, Mapping) else {"source": entry}
    allowed = [key for key in Benchmark.__dataclass_fields__ if key not in ("name", "published_source")]
    for key in fields:
        if key not in allowed:
            raise unknown(f"field of benchmark {name!r}", key, allowed)
    if "source" not in fields:
        raise ConfigurationError(f"Benchmark {name!r} has no source. Give a data set: source: {{dataset: …}}.")
    source = fields.pop("source")
    source = dict(source) if isinstance(source, Mapping) else {"dataset": source}
    for key in source:
        if key not in SourceConfig.__dataclass_fields__:
            raise unknown(f"field of the source of benchmark {name!r}", key, SourceConfig.__dataclass_fields__)
    published = dict(fields.pop("published", None) or {})
    cited = str(published.pop("source", ""))
    title = fields.pop("title", name)
    return Benchmark(name, title, SourceConfig(**source), published=published, published_source=cited, **fields)


def find_benchmarks(
    names: Iterable[str], files: Sequence[str] = (), configs: Sequence[str | Path] = ()
) -> list[Benchmark]:
    """Resolve what the user named.

    Args:
        names (`Iterable[str]`):
            Names of shipped benchmarks or of those in `configs`, `gym:<task>`, `nano:<task>`, or local files with the columns
            `prompt` and `reference`; several may be joined by commas.
        files (`Sequence[str]`, *optional*): `name=path`: read this benchmark from a local file.
        configs (`Sequence[str]`, *optional*): YAML files with further benchmarks; they win over shipped ones.

    Returns:
        `list[Benchmark]`: In the order asked for, each once.

    Raises:
        [`ConfigurationError`]: For an unknown name, or a file given to a benchmark that is not asked for.
    """
    known = dict(shipped())
    for path in configs:
        known |= read_benchmarks(path)
    wanted = [name.strip() for text in names for name in text.split(",") if name.strip()]
    local = dict(_name_and_path(text) for text in files)
    if not wanted:
        raise ConfigurationError(f"No benchmark was named. Known: {', '.join(known)}; gym:<task>; nano:<task>; a file.")
    for name in local:
        if name not in wanted:
            raise ConfigurationError(
                f"--benchmark_files gives a file for {name!r}, which is not among the benchmarks asked for: "
                f"{', '.join(wanted)}."
            )
    found = []
    for name in dict.fromkeys(wanted):
        benchmark = _find(name, known)
        found.append(benchmark.from_file(local[name]) if name in local else benchmark)
    return found


def _name_and_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise ConfigurationError(f"--benchmark_files {text!r} must be name=path, such as gsm8k=gsm8k_test.jsonl.")
    return name.strip(), path.strip()


def _find(name: str, known: Mapping[str, Benchmark]) -> Benchmark:
    if name in known:
        return known[name]
    if name.startswith((GYM, "nano:")):
        return Benchmark(name, name, SourceConfig(dataset=name))
    if Path(name).is_file():
        return Benchmark(Path(name).stem, Path(name).stem, SourceConfig(dataset=name))
    raise unknown("benchmark", name, known, "Or gym:<task>, nano:<task>, a data file, or one of --benchmark_configs.")


@dataclass(frozen=True)
class Problems:
    """The questions of a benchmark as they are measured.

    Args:
        rows (`list[Row]`): One per problem, with distinct keys (`Row.id`).
        duplicates (`int`): Rows left out because they ask a question that is there already.
        unreadable (`list[str]`): Keys of problems whose gold answer no verifier can read; they count nowhere.
    """

    rows: list[Row]
    duplicates: int
    unreadable: list[str]


def load_problems(benchmark: Benchmark, max_problems: int | None = None) -> Problems:
    """Load a benchmark's questions and say what is wrong with them.

    Args:
        benchmark ([`Benchmark`]): Which.
        max_problems (`int`, *optional*): Only the first so many, duplicates left out.

    Returns:
        [`Problems`]: Ready to be asked.

    Raises:
        [`DataError`]: For a source that cannot be reached or read, or in which no gold answer can be read.
        [`ConfigurationError`]: For programs that could not be run in isolation here.
        [`MissingExtraError`]: For `gym:` without reasoning-gym.
    """
    if benchmark.source.dataset is None:
        raise DataError(
            f"Benchmark {benchmark.name!r} cannot be fetched by itself. Give a file: --benchmark_files {benchmark.name}=FILE."
        )
    try:
        rows = load_split(benchmark.source, benchmark.split)
    except DataError as error:
        raise DataError(f"Benchmark {benchmark.name!r}: {error} (--benchmark_files {benchmark.name}=FILE)") from error
    counts = Counter(row.id for row in rows)
    duplicates = len(rows) - len(counts)
    if duplicates:
        twice = [str(key) for key, count in counts.items() if count > 1]
        logger.warning(
            "%s: %d of %d rows repeat a question and are left out, so that each counts once (%s).",
            benchmark.name, duplicates, len(rows), ", ".join(twice[:5]),
        )  # fmt: skip
        first: dict[str | None, Row] = {}
        for row in rows:
            first.setdefault(row.id, row)
        rows = list(first.values())
    rows = rows[:max_problems]
    if benchmark.kind == "preference":
        return Problems(rows, duplicates, [])
    if any(verifier_name(row) == "code" for row in rows):
        check_sandbox()
    problems = {str(row.id): "no rule" if verifier_name(row) is None else readable(row) for row in rows}
    unreadable = {key: reason for key, reason in problems.items() if reason}
    if unreadable:
        key, reason = next(iter(unreadable.items()))
        said = (
            f"{len(unreadable)} of {len(rows)} gold answers are missing or cannot be read; the first, {key}: {reason}"
        )
        if len(unreadable) == len(rows):
            raise DataError(f"Benchmark {benchmark.name!r}: {said}. Name the column of the gold answer, or a pattern.")
        logger.warning("%s: %s. These problems count nowhere.", benchmark.name, said)
    return Problems(rows, duplicates, list(unreadable))
