"""The mixture stage: reasoning and general traces become one data set with a card (arXiv 2501.12948v1 §2.3.3)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from trl_r1.cards import DatasetFacts, write_dataset_card
from trl_r1.data.decontamination import NGRAM, Benchmark
from trl_r1.data.duplicates import MinHash
from trl_r1.data.mixture import WORK_FOLDER, MixtureConfig, clear, mix
from trl_r1.data.staging import PROMPTS, MixtureSource
from trl_r1.exceptions import ConfigurationError, unknown
from trl_r1.pipeline.configs import parse_options, with_config_path
from trl_r1.prompts import CHOICES, PromptTemplate

logger = logging.getLogger(__name__)

STAGE = "mixture"
Entry = TypeVar("Entry", MixtureSource, Benchmark)


@dataclass
class MixtureArguments:
    """What the mixture stage needs to know.

    Args:
        output_dir (`str`, defaults to `"runs/mixture"`): Where data, report and card go.
        sources (`list[dict]`): Fields of [`~trl_r1.data.staging.MixtureSource`]: `name`, `traces`, `weight` and others.
        total_rows (`int`, *optional*): Rows of the mixture; as many as the weights allow by default.
        seed (`int`, defaults to 0): Of the draw and the order.
        shard_rows (`int`, defaults to 10,000): Rows of an output file.
        near_duplicates (`float`, defaults to 0.8): Similarity from which rows are duplicates; 0 keeps them all.
        shingle (`int`, defaults to 5): Tokens of what is compared.
        other_numbers (`bool`, defaults to `True`): Keep apart questions with other numbers.
        benchmarks (`list[dict]`, *optional*): Fields of [`~trl_r1.data.decontamination.Benchmark`]: `name`, `dataset` …
        ngram (`int`, defaults to 10): Tokens in a row that make a row contaminated (R1's).
        min_matches (`int`, defaults to 1): Different n-grams of a benchmark row that it takes (R1's).
        search_completions (`bool`, defaults to `True`): Search completions too, or only prompts.
        prompts (`str`, defaults to `"text"`): `"text"`, or `"messages"` for data with several turns.
        template (`str`, *optional*): `"base"` shows R1-Zero's template in the card.
        description (`str`, *optional*): First sentence of the card.
        hub_model_id (`str`, *optional*): Hub id of the data set, for the card's example.
        workers (`int`, *optional*): Processes; one per core by default.
        keep_work (`bool`, defaults to `False`): Keep the staged rows.
        overwrite (`bool`, defaults to `False`): Start anew in an `output_dir` that holds another mixture.
    """

    output_dir: str = field(default="runs/mixture", metadata={"help": "Where data, report and card go."})
    sources: list[Any] | str | None = field(
        default=None, metadata={"help": "Sources, as JSON: a list of {name: …, traces: …, weight: …}."}
    )
    total_rows: int | None = field(default=None, metadata={"help": "Rows of the mixture."})
    seed: int = field(default=0, metadata={"help": "Seed of the draw and the order."})
    shard_rows: int = field(default=10_000, metadata={"help": "Rows of an output file."})
    near_duplicates: float = field(default=0.8, metadata={"help": "Similarity of duplicates; 0 keeps them all."})
    shingle: int = field(default=5, metadata={"help": "Tokens of what is compared."})
    other_numbers: bool = field(default=True, metadata={"help": "Keep apart questions with other numbers."})
    benchmarks: list[Any] | str | None = field(
        default=None, metadata={"help": "Benchmarks, as JSON: a list of {name: …, dataset: …}."}
    )
    ngram: int = field(default=NGRAM, metadata={"help": "Tokens in a row that make a row contaminated."})
    min_matches: int = field(default=1, metadata={"help": "Different n-grams of a benchmark row that it takes."})
    search_completions: bool = field(default=True, metadata={"help": "Search completions too, or only prompts."})
    prompts: str = field(default="text", metadata={"help": f"What prompts are: {', '.join(PROMPTS)}."})
    template: str | None = field(default=None, metadata={"help": "base: show R1-Zero's template in the card."})
    description: str | None = field(default=None, metadata={"help": "First sentence of the card."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Hub id of the data set, for the card."})
    workers: int | None = field(default=None, metadata={"help": "Processes; one per core by default."})
    keep_work: bool = field(default=False, metadata={"help": "Keep the staged rows."})
    overwrite: bool = field(default=False, metadata={"help": "Start anew over another mixture."})

    def __post_init__(self) -> None:
        if self.template not in (None, "base"):
            raise unknown("template of the card", self.template, [name for name in CHOICES if name == "base"])

    @property
    def config(self) -> MixtureConfig:
        """What is mixed.

        Raises:
            [`ConfigurationError`]: For entries of another form, unknown fields, or values outside their range.
        """
        return MixtureConfig(
            sources=_entries("sources", self.sources, MixtureSource),
            total_rows=self.total_rows,
            seed=self.seed,
            shard_rows=self.shard_rows,
            duplicates=MinHash(self.near_duplicates, self.shingle, other_numbers=self.other_numbers)
            if self.near_duplicates
            else None,
            benchmarks=_entries("benchmarks", self.benchmarks, Benchmark),
            ngram=self.ngram,
            min_matches=self.min_matches,
            search_completions=self.search_completions,
            prompts=self.prompts,
        )


def parse_mixture(args: list[str]) -> MixtureArguments:
    """Read the stage's settings: a YAML configuration (a file, or a name such as `nano_cpu`), then options over it.

    Args:
        args (`list[str]`): Command-line arguments. Without `--config` and `--sources` the configuration is `nano_cpu`.

    Returns:
        [`MixtureArguments`]: For [`mixture`].
    """
    resolved = with_config_path(STAGE, args, "nano_cpu", unless=("--sources",))
    arguments: MixtureArguments = parse_options("mixture", (MixtureArguments,), resolved)[0]
    return arguments


def run(args: list[str]) -> int:
    """Run the stage from command-line arguments, for `trl-r1 mixture`."""
    package = logging.getLogger("trl_r1")
    if not package.hasHandlers():
        package.addHandler(logging.StreamHandler())
        package.setLevel(logging.INFO)
    report = mixture(parse_mixture(args))
    print(summary(report))
    return 0


def mixture(arguments: MixtureArguments) -> dict[str, Any]:
    """Mix reasoning and general traces into a data set with a card (arXiv 2501.12948v1 §2.3.3, v2 Table 5).

    It leaves in `output_dir`: `data/train-*.jsonl`, `mixture.json` (the report), `dropped.jsonl` (what was left out against
    which row) and `README.md` (the card). The same command again goes on where it was stopped.

    Args:
        arguments ([`MixtureArguments`]): What is mixed, and how.

    Returns:
        `dict`: The report, see [`trl_r1.data.mixture.mix`].

    Raises:
        [`ConfigurationError`] or [`DataError`]: For settings or data that cannot work.
    """
    config = arguments.config
    folder = Path(arguments.output_dir)
    if arguments.overwrite:
        clear(folder)
    try:
        report = mix(config, folder, arguments.workers, keep_work=arguments.keep_work)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Stopped. The same command goes on from the pieces in {folder / WORK_FOLDER}."
        ) from None
    write_dataset_card(card_facts(arguments, config, report), folder)
    logger.info("%d rows, their report and card are in %s.", report["rows"], folder)
    return report


def card_facts(arguments: MixtureArguments, config: MixtureConfig, report: Mapping[str, Any]) -> DatasetFacts:
    """Collect what the data-set card states, see [`~trl_r1.cards.DatasetFacts`]."""
    shares = ", ".join(f"{one['name']} {one['rows']:,}" for one in report["sources"])
    return DatasetFacts(
        name=(arguments.hub_model_id or folder_name(arguments.output_dir)).split("/")[-1],
        description=arguments.description or f"Traces for supervised fine-tuning of a reasoning model, mixed by weight: {shares}.",
        rows=report["rows"],
        sources=report["sources"],
        domains=report["domain"],
        languages=report["language"],
        licenses=report["license"],
        dropped=report["dropped"],
        filters=_filters(config),
        benchmarks=[
            {"name": one.name, "rows": report["benchmark_rows"].get(one.name, 0),
             "contaminated": report["contaminated_by_benchmark"].get(one.name, 0)}
            for one in config.benchmarks
        ],
        template=PromptTemplate("base").render("{your question}") if arguments.template == "base" else None,
        conversational=config.prompts == "messages",
        mean_bytes=round(report["bytes"] / report["rows"]),
        repository=arguments.hub_model_id,
        notes=[] if config.benchmarks else ["It was not decontaminated: scores on public benchmarks may be inflated."],
        versions=_versions(),
    )  # fmt: skip


def folder_name(folder: str) -> str:
    """Name of a folder, also of `.`."""
    return Path(folder).resolve().name


def summary(report: Mapping[str, Any]) -> str:
    """Set a report as text: rows by source, what was left out."""
    lines = [f"{report['rows']:,} rows in {len(report['shards'])} files"]
    for one in report["sources"]:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in one["dropped"].items()) or "nothing"
        lines.append(
            f"  {one['name']}: {one['rows']:,} of {one['usable']:,} usable ({one['read']:,} read; left out: {dropped})"
        )
    for name in ("domain", "language", "license"):
        lines.append(f"  by {name}: " + ", ".join(f"{key} {count:,}" for key, count in report[name].items()))
    return "\n".join(lines)


def _filters(config: MixtureConfig) -> list[str]:
    found = []
    for source in config.sources:
        if source.min_pass_rate > 0 or source.max_pass_rate < 1:
            unrated = "kept" if source.keep_unrated else "left out"
            found.append(
                f"`{source.name}`: questions solved in {100 * source.min_pass_rate:g} to {100 * source.max_pass_rate:g} % of "
                f"their samples; questions whose rate is unknown are {unrated}."
            )
    if config.duplicates is not None:
        numbers = " and the same numbers and operators in the question" if config.duplicates.other_numbers else ""
        found.append(
            f"Near-duplicates: estimated Jaccard similarity of {config.duplicates.threshold:g} or more between "
            f"{config.duplicates.shingle}-token shingles (MinHash, {config.duplicates.hashes} hashes){numbers}; the first is kept."
        )
    if config.benchmarks:
        where = "prompts and completions" if config.search_completions else "prompts"
        found.append(
            f"Decontamination: {where} that share {config.min_matches} or more {config.ngram}-grams with a question or a solution "
            "below; questions too short for one are compared as a whole. `dropped.jsonl` names the row for each."
        )
    return found


def _entries(name: str, value: Any, kind: type[Entry]) -> tuple[Entry, ...]:
    """Read a list of entries from YAML, or from the command line as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{name} is no JSON list: {value!r} ({error}).") from None
    known = {one.name: one for one in fields(kind)}
    build: Any = kind
    read = []
    for entry in value or []:
        if not isinstance(entry, Mapping):
            raise ConfigurationError(
                f"{name} holds {entry!r}. Each entry must map fields to values: {', '.join(known)}."
            )
        for key in entry:
            if key not in known:
                raise unknown(f"field in `{name}`", key, known)
        missing = {"name", "traces" if kind is MixtureSource else "dataset"} - set(entry)
        if missing:
            raise ConfigurationError(f"An entry of {name} has no {', '.join(sorted(missing))}: {dict(entry)!r}.")
        lists = {key: tuple(item) if isinstance(item, list) else item for key, item in entry.items()}
        read.append(build(**lists))
    return tuple(read)


def _versions() -> dict[str, str]:
    found = {}
    for name in ("trl-r1", "datasets", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
