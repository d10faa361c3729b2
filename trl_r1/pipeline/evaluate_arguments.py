"""The settings of an evaluation, and how they are read from YAML and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_r1.evaluation.budget import ANSWER_TOKENS
from trl_r1.evaluation.protocol import MAX_TOKENS, PROTOCOLS, TEMPERATURE, TOP_P
from trl_r1.exceptions import ConfigurationError, unknown
from trl_r1.generation.config import SamplerConfig
from trl_r1.pipeline.configs import parse_options, with_config_path

STAGE = "evaluate"
# Fields of a sampler that the protocol decides here, with the value that means "not set".
_DECIDED = {"template": "auto", "answer_form": "answer", "prefill_think": False, "instruction": None, "n": 1}


@dataclass
class EvaluateArguments(SamplerConfig):
    """What `trl-r1 evaluate` needs to know.

    The fields of [`~trl_r1.generation.config.SamplerConfig`] say who samples; the defaults of temperature, top-p and length are
    R1's evaluation (v1 §3). The others:

    Args:
        benchmarks (`list[str]`, defaults to `nano`):
            Names of `trl_r1/evaluation/benchmarks.yaml`, `gym:<task>`, `nano:<task>`, data files; commas may join them.
        benchmark_files (`list[str]`, *optional*): `name=path`: read this benchmark from a local file, not from the Hub.
        benchmark_configs (`list[str]`, *optional*): YAML files with further benchmarks.
        k (`int`, *optional*): Samples per question; each benchmark's own by default (R1: 4 to 64).
        cons_k (`int`, *optional*): Votes of cons@k; all samples by default.
        pass_k (`list[int]`, *optional*): Further k for which the unbiased pass@k is reported.
        max_problems (`int`, *optional*): Only the first so many questions of each benchmark.
        protocol (`str`, defaults to `"auto"`):
            `"r1"` (boxed prompt, no system prompt, forced `<think>`), `"zero"` (R1-Zero's template), `"own"` (the model's chat
            template as it is), or `"auto"`: `r1` where the model has a chat template, else `zero`.
        thinking_budgets (`list[int]`, *optional*): Also measure with the thinking ended after so many tokens.
        budget_answer_tokens (`int`, defaults to 512): Cap of the answer after a forced end.
        judge (`dict` or `str`, *optional*): Sampler settings (or just a model) of the judge that win rates need.
        human_ratings (`str`, *optional*): Text file with one rating per line, for the percentile of `codeforces`.
        workers (`int`, *optional*): Processes that verify; one per core by default.
        output_dir (`str`, *optional*): Where samples, scores and the report go; `runs/evaluate/<model>` by default.
        preview (`bool`, defaults to `False`): Show one question of each benchmark as the model would see it; load no weights.
    """

    temperature: float = field(default=TEMPERATURE, metadata={"help": "Sampling temperature (R1: 0.6)."})
    top_p: float = field(default=TOP_P, metadata={"help": "Nucleus (R1: 0.95)."})
    max_tokens: int = field(default=MAX_TOKENS, metadata={"help": "Cap of a completion (R1: 32,768 tokens)."})
    benchmarks: list[str] = field(
        default_factory=lambda: ["nano"],
        metadata={"help": "Names, gym:<task>, nano:<task> or data files; commas may join them."},
    )
    benchmark_files: list[str] = field(
        default_factory=list, metadata={"help": "name=path: read a benchmark from a local file."}
    )
    benchmark_configs: list[str] = field(default_factory=list, metadata={"help": "YAML files with further benchmarks."})
    k: int | None = field(default=None, metadata={"help": "Samples per question; the benchmark's own by default."})
    cons_k: int | None = field(default=None, metadata={"help": "Votes of cons@k; all samples by default."})
    pass_k: list[int] = field(default_factory=list, metadata={"help": "Further k for the unbiased pass@k."})
    max_problems: int | None = field(default=None, metadata={"help": "Only the first so many questions of each."})
    protocol: str = field(default="auto", metadata={"help": f"One of {', '.join(PROTOCOLS)}."})
    thinking_budgets: list[int] = field(
        default_factory=list, metadata={"help": "Also measure with the thinking ended after so many tokens."}
    )
    budget_answer_tokens: int = field(default=ANSWER_TOKENS, metadata={"help": "Cap of the answer after a forced end."})
    judge: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Judge of win rates: a model, or sampler settings as JSON."}
    )
    human_ratings: str | None = field(
        default=None, metadata={"help": "File with one rating per line, for the percentile of codeforces."}
    )
    workers: int | None = field(default=None, metadata={"help": "Processes that verify; one per core by default."})
    output_dir: str | None = field(default=None, metadata={"help": "Where samples, scores and the report go."})
    preview: bool = field(default=False, metadata={"help": "Show a question of each benchmark; load no weights."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol not in PROTOCOLS:
            raise unknown("protocol", self.protocol, PROTOCOLS)
        for name, unset in _DECIDED.items():
            if getattr(self, name) != unset:
                raise ConfigurationError(
                    f"{name}={getattr(self, name)!r} is decided by the protocol ({', '.join(PROTOCOLS)}) and by k here. Leave "
                    "it out."
                )
        for name in ("k", "cons_k", "max_problems", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name}={value} must be at least 1.")
        if self.temperature == 0 and (self.k or 2) > 1:
            raise ConfigurationError(
                "temperature=0 writes the same k times. R1 is never evaluated greedily (v1 §3): keep 0.6, or set k to 1."
            )

    def folder(self) -> Path:
        """Where the evaluation goes."""
        name = str(self.model_name_or_path or "model").rstrip("/").split("/")[-1]
        return Path(self.output_dir or Path("runs", "evaluate", name.replace(":", "-")))

    def people(self) -> list[float] | None:
        """The human ratings that were given, if any.

        Raises:
            [`ConfigurationError`]: If the file cannot be read.
        """
        if self.human_ratings is None:
            return None
        try:
            return [float(line) for line in Path(self.human_ratings).read_text(encoding="utf-8").split()]
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"human_ratings {self.human_ratings!r} must hold one number per line: {error}."
            ) from error


def parse_evaluate(args: Sequence[str]) -> EvaluateArguments:
    """Read the settings: the model first, if it comes without an option, a configuration, then options over it.

    Args:
        args (`Sequence[str]`): E.g. `["my/model", "--benchmarks", "gsm8k,math500", "--k", "16"]`.

    Returns:
        [`EvaluateArguments`]: For [`trl_r1.pipeline.evaluate.evaluate`].
    """
    given = list(args)
    if given and not given[0].startswith("-"):
        given = ["--model_name_or_path", given[0], *given[1:]]
    resolved = with_config_path(STAGE, given, "nano_cpu", unless=("--benchmarks", "--model_name_or_path"))
    arguments: EvaluateArguments = parse_options("evaluate", (EvaluateArguments,), resolved)[0]
    return arguments
