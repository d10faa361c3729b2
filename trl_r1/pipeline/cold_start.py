"""The cold-start stage: a data set of readable long thinking, for the first supervised fine-tuning (arXiv 2501.12948v1 §2.3.1)."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from trl_r1.data.cold_start import ROWS_FILE, SAMPLES, ColdStartBuilder, SampledSource
from trl_r1.data.cold_start_prompts import SOURCES, examples_from
from trl_r1.data.cold_start_rows import read_rows, was_reviewed, write_rows
from trl_r1.data.filters import FILTERS, Filter, build_filters
from trl_r1.data.reasoning_gym import gym_splits
from trl_r1.data.sources import SourceConfig, as_mapping, load_rows
from trl_r1.data.worked import EquationFilter, WorkedSolution, load_worked
from trl_r1.exceptions import ConfigurationError, DataError, unknown
from trl_r1.generation.config import SamplerConfig, choose_backend, open_sampler
from trl_r1.generation.requests import process_place
from trl_r1.pipeline.configs import parse_options, with_config_path
from trl_r1.pipeline.files import write_json
from trl_r1.prompts import FORMS
from trl_r1.rows import Row

logger = logging.getLogger(__name__)

STAGE = "cold_start"
REPORT_FILE = "cold_start_report.json"
GYM = "gym:"


@dataclass
class ColdStartArguments(SourceConfig):
    """What the cold-start stage needs to know besides its sampler's settings.

    The fields of [`~trl_r1.data.sources.SourceConfig`] (`dataset`, `columns`, `patterns`, `domain` …) say which questions
    are sampled; those held out there stay out. The others:

    Args:
        output_dir (`str`, defaults to `"runs/cold_start"`): Where samples, rows and report go.
        sources (`list[str]`, *optional*): Of `few_shot`, `direct` and `r1_zero`; in this order of preference.
        zero_model (`str`, *optional*): The R1-Zero checkpoint of `r1_zero`; the sampler's model by default.
        samples (`int`, defaults to 4): Samples per question and source.
        examples (`str`, *optional*): File of worked solutions that `few_shot` shows instead of ours.
        traces (`str`, *optional*):
            Worked solutions to take: a file or Hub id, or `gym:<task>` (reasoning-gym, with the solutions of its generator).
        trace_function (`str`, *optional*):
            Dotted path of a function from a row of `traces` to a [`~trl_r1.data.worked.WorkedSolution`].
        trace_config (`str`, *optional*): Configuration name of `traces` on the Hub.
        trace_split (`str`, defaults to `"train"`): Split of `traces` on the Hub.
        max_traces (`int`, *optional*): Most worked solutions; needed for `gym:<task>`, which has no end.
        held_out (`int`, defaults to 0):
            Of `gym:<task>`: questions written beside the rows, as `heldout_seen.jsonl` (templates that are trained on) and
            `heldout_unseen.jsonl` (templates that are not).
        target_form (`str`, defaults to `"boxed"`): Form of the targets: `boxed` (R1's summary) or `answer` (tags).
        filters (`list[str]`, defaults to all): What readable means; names of [`~trl_r1.data.filters.FILTERS`].
        filter_settings (`dict`, *optional*): Filter to its fields that differ, e.g. `{length: {max_tokens: 4096}}`.
        check_equations (`bool`, defaults to `False`): Drop thinking with a false calculation.
        rewriter (`dict` or `str`, *optional*):
            Who makes the traces readable: a model, or settings of [`~trl_r1.generation.config.SamplerConfig`]; its `n` is the
            number of tries.
        max_per_question (`int`, defaults to 1): Most rows of one question.
        max_kept (`int`, *optional*): Most rows in all.
        keep_unverified (`bool`, defaults to `False`): Keep traces that no rule can verify, for a person to judge.
        overwrite (`bool`, defaults to `False`): Start anew; rows that a person reviewed are put aside, not lost.
    """

    dataset: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Questions to sample: Hub id, local file or folder, nano:<task>, gym:<task>."}
    )
    output_dir: str = field(default="runs/cold_start", metadata={"help": "Where samples, rows and report go."})
    sources: list[str] = field(default_factory=list, metadata={"help": f"Of {', '.join(SOURCES)}."})
    zero_model: str | None = field(default=None, metadata={"help": "R1-Zero checkpoint of the source r1_zero."})
    samples: int = field(default=SAMPLES, metadata={"help": "Samples per question and source."})
    examples: str | None = field(default=None, metadata={"help": "Worked solutions that few_shot shows."})
    traces: str | None = field(default=None, metadata={"help": "Worked solutions: file, Hub id or gym:<task>."})
    trace_function: str | None = field(
        default=None, metadata={"help": "Dotted path of a function from a row of `traces` to a WorkedSolution."}
    )
    trace_config: str | None = field(default=None, metadata={"help": "Configuration name of `traces` on the Hub."})
    trace_split: str = field(default="train", metadata={"help": "Split of `traces` on the Hub."})
    max_traces: int | None = field(default=None, metadata={"help": "Most worked solutions."})
    held_out: int = field(default=0, metadata={"help": "Questions held out of gym:<task>, seen and unseen templates."})
    target_form: str = field(default="boxed", metadata={"help": f"Form of the targets: {' or '.join(FORMS)}."})
    filters: list[str] = field(default_factory=lambda: list(FILTERS), metadata={"help": f"Of {', '.join(FILTERS)}."})
    filter_settings: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Filter to its settings, e.g. {length: {max_tokens: 4096}}."}
    )
    check_equations: bool = field(default=False, metadata={"help": "Drop thinking with a false calculation."})
    rewriter: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Model that rewrites readably, or its sampler settings."}
    )
    max_per_question: int = field(default=1, metadata={"help": "Most rows of one question."})
    max_kept: int | None = field(default=None, metadata={"help": "Most rows in all."})
    keep_unverified: bool = field(default=False, metadata={"help": "Keep what no rule can verify."})
    overwrite: bool = field(default=False, metadata={"help": "Start anew in output_dir."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.filter_settings = as_mapping("filter_settings", self.filter_settings)
        for name in self.sources:
            if name not in SOURCES:
                raise unknown("source of cold-start data", name, SOURCES, "A user's own traces go to `traces`.")
        if self.target_form not in FORMS:
            raise unknown("target_form", self.target_form, FORMS)
        if not self.sources and self.traces is None:
            raise ConfigurationError(
                f"Nothing to build from: name `sources` ({', '.join(SOURCES)}) with a `dataset`, or give `traces`."
            )
        if self.sources and self.dataset is None:
            raise ConfigurationError(f"sources={self.sources} need a `dataset` of questions, such as nano:countdown.")
        gym = self.traces is not None and self.traces.startswith(GYM)
        if gym and not self.max_traces:
            raise ConfigurationError(f"traces={self.traces!r} has no end: set max_traces, such as 1000.")
        if self.held_out and not gym:
            raise ConfigurationError(f"held_out={self.held_out} needs traces of reasoning-gym (gym:<task>).")
        if self.samples < 1:
            raise ConfigurationError(f"samples={self.samples} must be at least 1.")


def parse_cold_start(args: list[str]) -> tuple[ColdStartArguments, SamplerConfig]:
    """Read the stage's settings: a YAML configuration (a file, or a name such as `nano_cpu`), then options over it.

    Args:
        args (`list[str]`): Command-line arguments. Without `--config`, `--sources` and `--traces` the configuration is
            `nano_cpu`.

    Returns:
        `tuple`: Settings of the stage and of its sampler, for [`cold_start`].
    """
    resolved = with_config_path(STAGE, args, "nano_cpu", unless=("--sources", "--traces"))
    parsed: Any = parse_options("cold-start", (ColdStartArguments, SamplerConfig), resolved)
    return parsed


def run(args: list[str]) -> int:
    """Run the stage from command-line arguments, for `trl-r1 cold-start`."""
    package = logging.getLogger("trl_r1")
    if not package.hasHandlers():
        package.addHandler(logging.StreamHandler())
        package.setLevel(logging.INFO)
    script_args, sampler_config = parse_cold_start(args)
    try:
        cold_start(script_args, sampler_config)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Stopped. What was sampled is in {script_args.output_dir}; the same command again goes on."
        ) from None
    return 0


def cold_start(script_args: ColdStartArguments, sampler_config: SamplerConfig) -> dict[str, Any]:
    """Build a cold-start data set: sample, verify, filter, perhaps rewrite (arXiv 2501.12948v1 §2.3.1, v2 B.3.2).

    Every process of a launch calls it; each samples its share. It leaves in `output_dir`: `cold_start.jsonl` for
    [`~trl_r1.trainers.R1SFTTrainer`] and `trl-r1 review`, `cold_start_report.json`, and all samples. The same command
    again goes on where it was stopped.

    Args:
        script_args ([`ColdStartArguments`]): Questions, sources, filters.
        sampler_config ([`~trl_r1.generation.config.SamplerConfig`]): Who samples.

    Returns:
        `dict`: The report.

    Raises:
        [`ConfigurationError`] or [`DataError`]: For input that cannot work, before any weight is loaded; and when no trace
            is right and readable.
    """
    folder = Path(script_args.output_dir)
    rewriter = _rewriter(script_args)
    filters: list[Filter] = list(build_filters(script_args.filters, script_args.filter_settings))  # type: ignore[arg-type]
    if script_args.check_equations:
        filters.append(EquationFilter())
    rows = _questions(script_args) if script_args.sources else []
    examples = examples_from(list(load_worked(script_args.examples))) if script_args.examples else None
    worked, held_out = _worked(script_args)
    models = _models(script_args, sampler_config)
    for config in (*(config for config, _ in models), *([rewriter] if rewriter is not None else [])):
        _check_model(config)
    _prepare(folder, script_args.overwrite)
    builder = ColdStartBuilder(
        folder,
        form=script_args.target_form,
        filters=filters,
        max_per_question=script_args.max_per_question,
        max_rows=script_args.max_kept,
        keep_unverified=script_args.keep_unverified,
    )
    for config, names in models:
        with closing(open_sampler(config)) as sampler:
            for name in names:
                builder.sample(SampledSource(name, sampler, config.settings(), script_args.samples, examples), rows)
    builder.add_worked(worked)
    if rewriter is not None:
        builder.check()
        with closing(open_sampler(rewriter)) as sampler:
            builder.rewrite(sampler, rewriter.settings(), rewriter.n)
    report = builder.write()
    if process_place()[0] == 0:
        for name, solutions in held_out.items():
            write_rows(folder / f"heldout_{name}.jsonl", [{**s.row.asdict(), "group": s.group} for s in solutions])
        write_json(folder / REPORT_FILE, report)
        print_report(report, folder)
    return report


def _questions(script_args: ColdStartArguments) -> list[Row]:
    return [Row.from_columns(columns) for columns in load_rows(script_args)["train"]]


def _models(script_args: ColdStartArguments, sampler_config: SamplerConfig) -> list[tuple[SamplerConfig, list[str]]]:
    """Who writes for which sources: each model is opened once."""
    by_model: dict[str | None, list[str]] = {}
    for name in script_args.sources:
        zero = script_args.zero_model if name == "r1_zero" else None
        by_model.setdefault(zero or sampler_config.model_name_or_path, []).append(name)
    return [(_resolved(replace(sampler_config, model_name_or_path=m)), names) for m, names in by_model.items()]


def _rewriter(script_args: ColdStartArguments) -> SamplerConfig | None:
    if script_args.rewriter is None:
        return None
    config = SamplerConfig.parse(script_args.rewriter)
    # The request says its form itself: a chat's usual sentence about thinking and answer tags would contradict it.
    return _resolved(config if config.instruction is not None else replace(config, instruction=""))


def _check_model(config: SamplerConfig) -> None:
    """Read what a model is before another one has sampled for hours. No weight is loaded."""
    if choose_backend(config) == "server":
        return
    from trl_r1.generation.checkpoint import Checkpoint

    Checkpoint.of(config)


def _resolved(config: SamplerConfig) -> SamplerConfig:
    """Put the embedded checkpoint's folder in the place of `nano`, which servers and Hub ids pass by."""
    name = config.model_name_or_path
    if name is None:
        return config
    from trl_r1.pipeline.preflight import resolve_model

    return replace(config, model_name_or_path=resolve_model(name))


def _worked(script_args: ColdStartArguments) -> tuple[list[WorkedSolution], dict[str, list[WorkedSolution]]]:
    """Read the worked solutions, and the questions held out beside them."""
    if script_args.traces is None:
        return [], {}
    if script_args.traces.startswith(GYM):
        task, settings = script_args.traces.removeprefix(GYM), dict(script_args.gym_settings or {})  # type: ignore[arg-type]
        splits = gym_splits(
            task, int(script_args.max_traces or 0), script_args.held_out, script_args.split_seed, **settings
        )
        held_out = {"seen": splits.seen, "unseen": splits.unseen} if script_args.held_out else {}
        return splits.train, held_out
    found: Iterator[WorkedSolution] = load_worked(
        script_args.traces, script_args.trace_function, config=script_args.trace_config, split=script_args.trace_split
    )
    solutions = list(islice(found, script_args.max_traces))
    if not solutions:
        raise DataError(f"traces={script_args.traces!r} holds no worked solution.")
    return solutions, {}


def _prepare(folder: Path, overwrite: bool) -> None:
    """Make the folder; to start anew, put reviewed rows aside and remove the rest."""
    if process_place()[0] > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not overwrite:
        return
    rows = folder / ROWS_FILE
    if any(map(was_reviewed, read_rows(rows))):
        aside = _free_name(folder / f"{rows.stem}.reviewed{rows.suffix}")
        rows.replace(aside)
        logger.warning("Rows that were reviewed are kept in %s.", aside)
    rows.unlink(missing_ok=True)
    (folder / REPORT_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder / "samples", ignore_errors=True)


def _free_name(path: Path) -> Path:
    """Return the path, or the first of `….reviewed-2.jsonl`, `….reviewed-3.jsonl` … that no earlier review lies under."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
    return next(one for one in chain([path], numbered) if not one.exists())


def print_report(report: dict[str, Any], folder: Path) -> None:
    """Print how many traces each source gave and kept, and why the others were dropped."""
    from rich.console import Console
    from rich.table import Table

    table = Table("source", "traces", "right", "right and readable", "rows", title="Cold start")
    for name, counts in report["by_source"].items():
        table.add_row(name, *(f"{counts[key]:,}" for key in ("traces", "right", "right and readable", "rows")))
    console = Console()
    console.print()
    console.print(table)
    dropped = ", ".join(f"{name} {count:,}" for name, count in report["dropped"].items()) or "none"
    without = report["questions_without_a_row"]["count"]
    console.print(f"Dropped: {dropped}. Questions without a row: {without:,} of {report['questions']:,}.")
    console.print(f"{report['rows']:,} rows in {folder / ROWS_FILE}. Read them: trl-r1 review {folder / ROWS_FILE}")
