"""The rejection-sampling stage: several answers per question, verified, filtered, a few of each kept (arXiv 2501.12948v1 §2.3.3)."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trl_r1.data.filters import FILTERS, build_filters
from trl_r1.data.question_mixture import load_mixture, read_sources
from trl_r1.data.rejection import MAX_ACCEPTED, REPORT_FILE, SAMPLES, SHARDS_FOLDER, RejectionSampler, check_sizes
from trl_r1.data.rejection_checks import AnswerJudge, choose_judge
from trl_r1.data.rejection_report import render
from trl_r1.data.rejection_store import DATASET_FILE
from trl_r1.data.sources import SourceConfig, as_mapping, load_rows
from trl_r1.exceptions import ConfigurationError, unknown
from trl_r1.generation.base import Sampler
from trl_r1.generation.config import SamplerConfig, choose_backend, open_sampler
from trl_r1.generation.requests import process_place, wait_for_everyone
from trl_r1.pipeline.configs import parse_options, with_config_path
from trl_r1.pipeline.files import write_json
from trl_r1.pipeline.lineage import lineage
from trl_r1.pipeline.preflight import resolve_model
from trl_r1.rows import Row
from trl_r1.verifiers.judge import PROMPTS, Judge, JudgeServer
from trl_r1.workers import Limits

logger = logging.getLogger(__name__)

STAGE = "rejection_sampling"
# The judge is the model that samples.
SELF = "self"


@dataclass
class RejectionSamplingArguments(SourceConfig):
    """What the rejection-sampling stage needs to know besides its sampler's settings.

    The fields of [`~trl_r1.data.sources.SourceConfig`] (`dataset`, `columns`, `patterns`, `domain` …) say which questions
    are sampled; those held out there stay out. The others:

    Args:
        output_dir (`str`, defaults to `"runs/rejection_sampling"`): Where shards, data set and report go.
        datasets (`list[dict]`, *optional*): Several sources instead of one `dataset`, each with the fields of `SourceConfig`.
        samples (`int`, defaults to 16): k, most completions per question. [?]
        max_accepted (`int`, defaults to 4): Most accepted ones per question; 0 for all. [?]
        filters (`list[str]`, defaults to all): R1's; names of [`~trl_r1.data.filters.FILTERS`].
        filter_settings (`dict`, *optional*): Filter to its fields that differ, e.g. `{length: {max_tokens: 4096}}`.
        judge (`dict` or `str`, *optional*):
            Who judges answers without a rule: a model, settings of [`~trl_r1.generation.config.SamplerConfig`], or
            `"self"`, the model that samples.
        judge_prompt (`str`, defaults to `"judge"`): `"judge"`, or `"judge_brief"` for a judge of nano's size.
        early_stop (`bool`, defaults to `True`): Stop a question once its accepted answers are settled.
        workers (`int`, *optional*): Verifying processes; one per core by default.
        verify_seconds (`float`, defaults to 3.0): CPU seconds of one verdict, the tests of a program aside.
        shard_samples (`int`, defaults to 256): Completions in a shard: what a kill may lose.
        shard_seconds (`float`, defaults to 20.0): Seconds after which a smaller shard is written.
        overwrite (`bool`, defaults to `False`): Start anew in an `output_dir` that holds another run.
    """

    output_dir: str = field(default="runs/rejection_sampling", metadata={"help": "Where data set and report go."})
    datasets: list[Any] | str | None = field(
        default=None, metadata={"help": "Several sources, as JSON: a list of {dataset: …, …}."}
    )
    samples: int = field(default=SAMPLES, metadata={"help": "Most completions per question."})
    max_accepted: int = field(default=MAX_ACCEPTED, metadata={"help": "Most accepted per question; 0 for all."})
    filters: list[str] = field(default_factory=lambda: list(FILTERS), metadata={"help": f"Of {', '.join(FILTERS)}."})
    filter_settings: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Filter to its settings, e.g. {length: {max_tokens: 4096}}."}
    )
    judge: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Judge of answers without a rule: a model, its sampler settings, or self."}
    )
    judge_prompt: str = field(default="judge", metadata={"help": f"One of {', '.join(PROMPTS)}."})
    early_stop: bool = field(default=True, metadata={"help": "Stop a question once its answers are settled."})
    workers: int | None = field(default=None, metadata={"help": "Verifying processes; one per core by default."})
    verify_seconds: float = field(default=3.0, metadata={"help": "CPU seconds of one verdict."})
    shard_samples: int = field(default=256, metadata={"help": "Completions in a shard: what a kill may lose."})
    shard_seconds: float = field(default=20.0, metadata={"help": "Seconds until a smaller shard is written."})
    overwrite: bool = field(default=False, metadata={"help": "Start anew in output_dir."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.filter_settings = as_mapping("filter_settings", self.filter_settings)
        check_sizes(self.samples, self.max_accepted or None)
        if self.judge_prompt not in PROMPTS:
            raise unknown("judge_prompt", self.judge_prompt, PROMPTS)


def parse_rejection_sampling(args: list[str]) -> tuple[RejectionSamplingArguments, SamplerConfig]:
    """Read the stage's settings: a YAML configuration (a file, or a name such as `nano_cpu`), then options over it.

    Args:
        args (`list[str]`): Command-line arguments. Without `--config`, `--dataset` and `--model_name_or_path` the
            configuration is `nano_cpu`.

    Returns:
        `tuple`: Settings of the stage and of its sampler, for [`rejection_sampling`].
    """
    resolved = with_config_path(STAGE, args, "nano_cpu", unless=("--dataset", "--model_name_or_path"))
    parsed: Any = parse_options("rejection-sampling", (RejectionSamplingArguments, SamplerConfig), resolved)
    return parsed


def run(args: list[str]) -> int:
    """Run the stage from command-line arguments, for `trl-r1 rejection-sampling`."""
    package = logging.getLogger("trl_r1")
    if not package.hasHandlers():
        package.addHandler(logging.StreamHandler())
        package.setLevel(logging.INFO)
    rejection_sampling(*parse_rejection_sampling(args))
    return 0


def rejection_sampling(script_args: RejectionSamplingArguments, sampler_config: SamplerConfig) -> dict[str, Any] | None:
    """Sample answers, verify and filter them, and keep a few per question (arXiv 2501.12948v1 §2.3.3, v2 B.3.3).

    Every process of a launch calls it; each samples its share. It leaves in `output_dir`: `candidates.parquet`, the
    questions with all of their candidates and verdicts, for
    [`~trl_r1.data.rejection_collator.RejectionSamplingCollator`]; `report.json`; and the shards. The same command again
    goes on where it was stopped.

    Args:
        script_args ([`RejectionSamplingArguments`]): Questions, numbers, filters, judge.
        sampler_config ([`~trl_r1.generation.config.SamplerConfig`]): Who samples.

    Returns:
        `dict` or `None`: The report; `None` in all processes but the first.

    Raises:
        [`ConfigurationError`] or [`DataError`]: For input that cannot work, before any weight is loaded; and when no answer
            is accepted.
        [`EngineError`]: When the sampler fails, such as a server that dies.
        `KeyboardInterrupt`: When the run was stopped; the message says how to go on.
    """
    folder = Path(script_args.output_dir)
    config = _resolved(sampler_config)
    if config.n != 1:
        raise ConfigurationError(f"n={config.n}: the completions per question are `samples` here. Leave n out.")
    filters = build_filters(script_args.filters, script_args.filter_settings)  # type: ignore[arg-type]
    limits = Limits(item_seconds=script_args.verify_seconds)
    rows = _questions(script_args)
    choose_backend(config)
    if script_args.judge is None:
        choose_judge(None, rows)  # refused here, before any weight is loaded
    if script_args.overwrite and process_place()[0] == 0:
        clear_samples(folder)
    wait_for_everyone()
    with closing(open_sampler(config)) as sampler:
        judge, opened = _judge(script_args, sampler)
        rejection = RejectionSampler(
            sampler,
            samples=script_args.samples,
            max_accepted=script_args.max_accepted or None,
            settings=config.settings(),
            filters=filters,
            judge=judge,
            early_stop=script_args.early_stop,
            workers=script_args.workers,
            limits=limits,
            shard_samples=script_args.shard_samples,
            shard_seconds=script_args.shard_seconds,
            max_unverifiable=script_args.max_unverifiable,
        )
        try:
            rejection.sample(rows, folder)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"Stopped. The same command goes on from {folder / SHARDS_FOLDER}.") from None
        finally:
            if opened is not None:
                opened.close()
        wait_for_everyone()
        if process_place()[0] > 0:
            return None
        result = rejection.gather(rows, folder)
        report = _describe(script_args, config, sampler, result.report)
    write_json(folder / REPORT_FILE, report)
    print(f"{render(report)}\n\nWritten to {folder}: {DATASET_FILE}, {REPORT_FILE}")
    return report


def _questions(script_args: RejectionSamplingArguments) -> list[Row]:
    if script_args.datasets is None:
        splits = load_rows(script_args)
    else:
        sources = read_sources(script_args.datasets, script_args)
        if any(source.weight is not None for source in sources):
            raise ConfigurationError(
                "Weights in `datasets` would repeat questions, which are sampled once. Set max_rows of each source instead."
            )
        splits = load_mixture(sources)
    return [Row.from_columns(columns) for columns in splits["train"]]


def _resolved(config: SamplerConfig) -> SamplerConfig:
    """Put the embedded checkpoint's folder in the place of `nano`."""
    if config.model_name_or_path is None and config.server_urls:
        return config
    return replace(config, model_name_or_path=resolve_model(config.model_name_or_path))


def _judge(script_args: RejectionSamplingArguments, sampler: Sampler) -> tuple[AnswerJudge | None, Sampler | None]:
    """Open the judge; return also the sampler that was opened for it."""
    if script_args.judge is None:
        return None, None
    if script_args.judge == SELF:
        return Judge(sampler, prompt=script_args.judge_prompt), None
    config = SamplerConfig.parse(script_args.judge)
    if config.server_urls:
        if config.model_name_or_path is None or len(config.server_urls) > 1:
            raise ConfigurationError(
                "A judge behind a server needs one of server_urls and its model_name_or_path, as the server calls it."
            )
        judge = Judge(
            JudgeServer(config.server_urls[0], config.model_name_or_path, api_key_env=config.server_key_env),
            prompt=script_args.judge_prompt,
        )
        judge.check()
        return judge, None
    opened = open_sampler(_resolved(config))
    return Judge(opened, prompt=script_args.judge_prompt, max_tokens=config.max_tokens), opened


def clear_samples(folder: Path) -> None:
    """Remove what an earlier run of rejection sampling left in a folder; one process of the launch calls it."""
    shutil.rmtree(folder / SHARDS_FOLDER, ignore_errors=True)
    for path in (folder / DATASET_FILE, folder / REPORT_FILE, *folder.glob("speed-*.json")):
        path.unlink(missing_ok=True)


def _describe(
    script_args: RejectionSamplingArguments, config: SamplerConfig, sampler: Sampler, found: dict[str, Any]
) -> dict[str, Any]:
    """Put what was asked beside what came out."""
    names: Sequence[str] = ("samples", "max_accepted", "filters", "filter_settings", "early_stop")
    parent = None
    if config.model_name_or_path is not None and not config.server_urls:
        parent = lineage(config.model_name_or_path, sampler.name, config.model_revision)
    return {
        "stage": STAGE,
        "model": sampler.name,
        "parent": parent,
        "dataset": script_args.datasets or script_args.dataset,
        "settings": {name: getattr(script_args, name) for name in names},
        "sampling": {name: getattr(config, name) for name in ("temperature", "top_p", "top_k", "max_tokens", "seed")},
        **found,
    }
