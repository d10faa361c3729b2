"""`trl-r1 probe MODEL DATA`: in minutes, whether a model can start R1-Zero on a data set, and with which settings."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from typing import Any

from trl_r1.data.sources import SourceConfig, load_rows
from trl_r1.evaluation import score
from trl_r1.evaluation.readiness import Readiness, assess
from trl_r1.exceptions import ConfigurationError
from trl_r1.generation.base import sample_all
from trl_r1.generation.config import SamplerConfig, open_sampler
from trl_r1.pipeline.configs import parse_options
from trl_r1.pipeline.files import write_json
from trl_r1.pipeline.preflight import resolve_model
from trl_r1.rows import Row

NANO = "nano"
_NEXT = {
    "zero": "Start R1-Zero:",
    "filter": "Start R1-Zero with dynamic sampling, or filter the questions by pass rate first:",
    "cold_start": "Make a cold start first:",
    "data": "Change the data before training.",
}


@dataclass
class ProbeArguments(SamplerConfig, SourceConfig):
    """What `trl-r1 probe` needs: the model ([`SamplerConfig`]) and the questions ([`SourceConfig`]).

    Args:
        questions (`int`, defaults to 64): Training questions to ask, evenly spread over the data set.
        n (`int`, defaults to 16): Samples per question: a group of R1's size.
        out (`str`, *optional*): File for everything measured, as JSON.
    """

    questions: int = field(default=64, metadata={"help": "Training questions to ask."})
    n: int = field(default=16, metadata={"help": "Samples per question: a group of R1's size."})
    out: str | None = field(default=None, metadata={"help": "File for everything measured, as JSON."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.questions < 2 or self.n < 2:
            raise ConfigurationError(f"questions={self.questions} and n={self.n} must both be at least 2.")


def probe(arguments: ProbeArguments) -> Readiness:
    """Ask a model some training questions and judge what comes.

    Args:
        arguments ([`ProbeArguments`]): Model and data.

    Returns:
        [`Readiness`]

    Raises:
        [`ConfigurationError`] or [`DataError`]: For input that cannot work, before any weight is loaded.
    """
    config = SamplerConfig.parse(arguments.sampler_settings())
    if config.backend != "server" and not config.server_urls:
        config = replace(config, model_name_or_path=resolve_model(config.model_name_or_path))
    every = load_rows(arguments)["train"]
    stride = max(1, len(every) // arguments.questions)
    rows = [Row.from_columns(row) for row in every.select(range(0, len(every), stride))][: arguments.questions]
    with closing(open_sampler(config)) as sampler:
        started = time.perf_counter()
        samples = sample_all(sampler, [row.prompt for row in rows], config.n, config.settings())
        seconds = time.perf_counter() - started
    evaluation = score(rows, samples, cons_k=config.n, pass_k=(config.n,))
    lengths = [len(one.token_ids) for group in samples for one in group]
    found = assess(evaluation, lengths, config.max_tokens, sum(lengths) / seconds)
    found.measured["seconds"] = seconds
    return found


def render(found: Readiness, arguments: ProbeArguments) -> str:
    """What `trl-r1 probe` prints."""
    measured, model, data = found.measured, arguments.model_name_or_path or NANO, _source(arguments)["dataset"]
    names = ["pass@1", f"pass@{measured['samples']}", "well_formed", "truncated", "groups_with_spread"]
    lines = [
        f"{model} on {data}: {measured['questions']} questions × {measured['samples']} samples, {measured['seconds']:.0f} s"
    ]
    lines += [
        f"  {name.replace('_', ' '):22}{100 * value[0]:6.1f} % [{100 * value[1]:.1f}, {100 * value[2]:.1f}]"
        for name in names
        if (value := measured.get(name))
    ]
    if measured.get("mean_tokens_sampled") is not None:
        lines.append(f"  {'mean tokens':22}{measured['mean_tokens_sampled']:6.0f}")
    lines.append(f"  {'tokens per second':22}{measured['tokens_per_second']:6,.0f}")
    if seconds := measured.get("seconds_per_512_completions"):
        lines.append(f"  {'rollout of 512':22}{seconds:6.0f} s")
    lines += ["", *found.reasons, "", _NEXT[found.start]]
    if found.start in ("zero", "filter"):
        lines.append(f"  {_command('r1-zero', arguments, found.settings)}")
    elif found.start == "cold_start":
        lines.append(f"  {_command('cold-start', arguments, {})}")
    return "\n".join(lines)


def _source(arguments: ProbeArguments) -> dict[str, Any]:
    """The settings of the questions that are not the defaults."""
    given = {one.name: getattr(arguments, one.name) for one in fields(SourceConfig)}
    return {"dataset": given["dataset"]} | {
        one.name: given[one.name] for one in fields(SourceConfig) if given[one.name] not in (one.default, {})
    }


def _command(stage: str, arguments: ProbeArguments, settings: Mapping[str, Any]) -> str:
    """The command that starts a stage with this model and these questions."""
    model = arguments.model_name_or_path or NANO
    # nano learns at rates and lengths of its own.
    options = {"config": "nano_cpu"} if model == NANO else {}
    options |= {"model_name_or_path": model, **_source(arguments), **settings}
    parts = ["trl-r1", stage]
    for name, value in options.items():
        text = value if isinstance(value, str) else json.dumps(value)
        parts += [f"--{name}", shlex.quote(text)]
    return " ".join(parts)


def run_probe(args: list[str]) -> dict[str, Any]:
    """Run `trl-r1 probe MODEL DATA`.

    Args:
        args (`list[str]`): Model and data set, then options of [`ProbeArguments`].

    Returns:
        `dict`: [`Readiness.asdict`].
    """
    named = ["--model_name_or_path", "--dataset"]
    places = []
    while args and not args[0].startswith("-") and named:
        places += [named.pop(0), args[0]]
        args = args[1:]
    arguments: ProbeArguments = parse_options("probe", (ProbeArguments,), [*places, *args], usage="MODEL DATA")[0]
    found = probe(arguments)
    print(render(found, arguments))
    if arguments.out:
        print(f"\nWritten to {write_json(arguments.out, found.asdict())}")
    return found.asdict()
