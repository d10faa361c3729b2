"""`trl-r1 sample`: questions of any data set → completions with verdicts, resumable, over any number of processes."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from trl_r1.data.sources import SourceConfig, load_rows
from trl_r1.exceptions import ConfigurationError, unknown
from trl_r1.generation.base import SampleRequest
from trl_r1.generation.config import SamplerConfig, open_sampler
from trl_r1.generation.progress import SampleProgress
from trl_r1.generation.requests import process_place, process_share, wait_for_everyone
from trl_r1.generation.shards import SampleStore, store_settings
from trl_r1.pipeline.configs import parse_options, with_config_path
from trl_r1.pipeline.files import write_json
from trl_r1.pipeline.verdicts import StreamVerifier
from trl_r1.rows import Row

logger = logging.getLogger(__name__)

STAGE = "sample"
SAMPLES_FILE, REPORT_FILE = "samples.jsonl", "report.json"
_SPLITS = ("train", "test")
# What must not change between two starts; more rows may be asked for.
_SAME_QUESTIONS = {one.name for one in fields(SourceConfig)} - {"max_rows", "max_test_rows", "max_unverifiable"}


@dataclass
class SampleArguments(SamplerConfig, SourceConfig):
    """What `trl-r1 sample` needs: who samples ([`SamplerConfig`]) and what is asked ([`SourceConfig`]).

    Args:
        output_dir (`str`, defaults to `"runs/samples"`): Folder of `samples.jsonl`, `report.json` and the shards.
        split (`str`, defaults to `"train"`): `"train"` or `"test"`: which of the source's questions.
        verify_workers (`int`, *optional*): Processes that verify; one per core by default.
    """

    output_dir: str = field(default="runs/samples", metadata={"help": "Where samples and report go."})
    split: str = field(default="train", metadata={"help": "Which of the source's questions: train or test."})
    verify_workers: int | None = field(default=None, metadata={"help": "Processes that verify answers."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in _SPLITS:
            raise unknown("split", self.split, _SPLITS)


def parse_sample(args: list[str]) -> SampleArguments:
    """Read the settings of `trl-r1 sample`: a YAML file by `--config`, then options over it.

    Args:
        args (`list[str]`): Command-line arguments. Without a model, `nano` samples.
    """
    if "--config" in args or any(arg.startswith("--config=") for arg in args):
        args = with_config_path(STAGE, args, "", unless=())
    arguments: SampleArguments = parse_options("sample", (SampleArguments,), args)[0]
    return arguments


def sample(arguments: SampleArguments) -> dict[str, Any]:
    """Sample every question and verify what comes, going on where an earlier start stopped.

    Every process of a launch calls it: each samples its share with an engine of its own.

    Args:
        arguments ([`SampleArguments`]): Model, data, sampling.

    Returns:
        `dict`: The content of `report.json`.

    Raises:
        [`ConfigurationError`] or [`DataError`]: For input that cannot work, before any weight is loaded; for a folder
            that holds samples of other settings.
        [`EngineError`]: Servers failed for good. What they gave is stored.
    """
    from trl_r1.pipeline.preflight import resolve_model

    config = SamplerConfig.parse(arguments.sampler_settings())
    if config.backend != "server" and not config.server_urls:
        config = replace(config, model_name_or_path=resolve_model(config.model_name_or_path))
    rows = _rows(arguments)
    settings = config.settings()
    folder = Path(arguments.output_dir)
    started = time.time()
    wait_for_everyone()
    with ExitStack() as stack:
        sampler = stack.enter_context(closing(open_sampler(config)))
        source = {name: value for name, value in asdict(arguments).items() if name in _SAME_QUESTIONS}
        made_by = store_settings(sampler, settings, source=source, split=arguments.split)
        store = stack.enter_context(SampleStore(folder / "shards", made_by))
        verifier = stack.enter_context(closing(StreamVerifier(rows, arguments.verify_workers)))
        mine = list(process_share(SampleRequest(key, row.prompt, config.n) for key, row in rows.items()))
        done = sum(len(store.done.get(request.key, ())) for request in mine)
        progress = stack.enter_context(SampleProgress(len(mine) * config.n, done))
        if done:
            logger.info("%d of %d completions are stored already.", done, len(mine) * config.n)
        for one in sampler.stream(store.remaining(mine), settings):
            progress.sampled(one)
            for finished, facts in verifier.verified(one):
                progress.verdict(facts["correct"])
                store.add(finished, **facts)
        for finished, facts in verifier.rest():
            progress.verdict(facts["correct"])
            store.add(finished, **facts)
        rate, name = progress.tokens_per_second, sampler.name
    wait_for_everyone()
    if process_place()[0] > 0:
        return {}
    report = _write(folder, rows, config)
    report |= {"model": name, "seconds": round(time.time() - started, 1), "tokens_per_second": round(rate, 1)}
    write_json(folder / REPORT_FILE, report)
    return report


def run_sample(args: list[str]) -> None:
    """Run `trl-r1 sample` in this process and say what came of it.

    Args:
        args (`list[str]`): Its settings, as for `recipes/sample.py`.

    Raises:
        `KeyboardInterrupt`: When it was stopped; the message says how to go on.
    """
    arguments = parse_sample(args)
    try:
        report = sample(arguments)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped. What had arrived is stored: the same command goes on from there.") from None
    if report:
        share = "–" if report["accuracy"] is None else f"{report['accuracy']:.1%}"
        print(
            f"{report['samples']} completions of {report['questions']} questions: {share} correct, "
            f"{report['well_formed_share']:.1%} well-formed, {report['truncated_share']:.1%} cut off. "
            f"Written to {arguments.output_dir}: {SAMPLES_FILE}, {REPORT_FILE}"
        )


def _rows(arguments: SampleArguments) -> dict[str, Row]:
    """Return the questions by key; a question that occurs twice is asked once."""
    splits = load_rows(arguments)
    rows: dict[str, Row] = {}
    columns = [Row.from_columns(columns) for columns in splits[arguments.split]]
    for row in columns:
        assert row.id is not None  # load_rows gives every row its key
        rows.setdefault(row.id, row)
    if len(rows) < len(columns):
        logger.warning("%d rows ask a question of another row and are left out.", len(columns) - len(rows))
    return rows


def _write(folder: Path, rows: dict[str, Row], config: SamplerConfig) -> dict[str, Any]:
    """Write all samples in the order of the questions, and count them."""
    groups = SampleStore(folder / "shards").groups()
    form = "well_formed" if config.answer_form == "answer" else "think_only"
    counts = dict.fromkeys(("samples", "verified", "correct", "well_formed", "truncated", "tokens"), 0)
    path = folder / SAMPLES_FILE
    partial = path.with_name(f".{path.name}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        for line in _lines(rows, groups, counts, form, config.n):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    partial.replace(path)
    if counts["samples"] < len(rows) * config.n:
        raise ConfigurationError(
            f"{str(folder)!r} holds {counts['samples']} of {len(rows) * config.n} completions: a process of the launch did not "
            "finish. Start again to sample the rest."
        )
    total = max(1, counts["samples"])
    return {
        "questions": len(rows),
        **counts,
        "accuracy": counts["correct"] / counts["verified"] if counts["verified"] else None,
        "well_formed_share": counts["well_formed"] / total,
        "truncated_share": counts["truncated"] / total,
    }


def _lines(
    rows: dict[str, Row], groups: dict[str, Any], counts: dict[str, int], form: str, n: int
) -> Iterator[dict[str, Any]]:
    for key, row in rows.items():
        for one in groups.get(key, [])[:n]:
            completion = one.completion
            counts["samples"] += 1
            counts["verified"] += one.facts["correct"] is not None
            counts["correct"] += bool(one.facts["correct"])
            counts["well_formed"] += bool(one.facts.get(form))
            counts["truncated"] += completion.truncated
            counts["tokens"] += len(completion.token_ids)
            yield {
                **row.asdict(),
                "index": one.index,
                "completion": completion.text,
                "prefill": completion.prefill,
                "finish_reason": completion.finish_reason,
                "tokens": len(completion.token_ids),
                **one.facts,
            }
