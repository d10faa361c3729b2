"""Accuracy against thinking budget: the thinking is ended after so many tokens, and the model has to answer.

Budget forcing (arXiv 2501.19393 §3.1): a thinking longer than the budget is cut there, `</think>` is written, and the model
goes on with its answer; a shorter one stays as it is. One set of samples gives all points of the curve, which therefore are
paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trl_r1.evaluation.benchmarks import Benchmark
from trl_r1.evaluation.protocol import EvaluationTemplate, ask
from trl_r1.evaluation.run import Counts, Group, sample_key, score_groups
from trl_r1.exceptions import ConfigurationError
from trl_r1.generation.base import Sampler, SampleRequest, SamplingSettings
from trl_r1.generation.codec import PromptCodec
from trl_r1.generation.shards import SampleStore, store_settings
from trl_r1.responses import THINK_CLOSE
from trl_r1.rows import Completion, Prompt, Row
from trl_r1.statistics import bootstrap_mean, bootstrap_ratio
from trl_r1.workers import WorkerPool

# What ends the thinking, by the form of the answer that the template asks for.
CLOSINGS = {"answer": f" {THINK_CLOSE} <answer>", "boxed": f"\n{THINK_CLOSE}\n\n"}
# [?] Room for the answer after a forced end; R1 never forces one.
ANSWER_TOKENS = 512


@dataclass(frozen=True)
class BudgetCurve:
    """Measures a benchmark again under thinking budgets.

    Args:
        budgets (`tuple[int, ...]`): Tokens of thinking.
        answer_tokens (`int`, defaults to 512): Cap of the answer after a forced end.

    Raises:
        [`ConfigurationError`]: For a budget below 1, or none.
    """

    budgets: tuple[int, ...]
    answer_tokens: int = ANSWER_TOKENS

    def __post_init__(self) -> None:
        if not self.budgets or min(*self.budgets, self.answer_tokens) < 1:
            raise ConfigurationError(
                f"Thinking budgets {list(self.budgets)} and answer_tokens={self.answer_tokens} must be at least 1 token."
            )

    def measure(
        self,
        benchmark: Benchmark,
        groups: Sequence[Group],
        sampler: Sampler,
        settings: SamplingSettings,
        counts: Counts,
        folder: Path,
        pool: WorkerPool,
    ) -> dict[int, list[tuple[Any, float]]]:
        """Force every budget on samples that were drawn without one.

        Args:
            benchmark ([`Benchmark`]): What was asked.
            groups (`Sequence[tuple[Row, list[Completion]]]`): Questions with their free samples, this process' share.
            sampler ([`~trl_r1.generation.base.Sampler`]): Who goes on; with an [`EvaluationTemplate`] and a tokenizer.
            settings ([`~trl_r1.generation.base.SamplingSettings`]): How it samples.
            counts ([`Counts`]): Samples per question.
            folder (`Path`): Where the continuations are kept, a sub-folder per budget.
            pool ([`~trl_r1.workers.WorkerPool`]): The workers that verify.

        Returns:
            `dict[int, list[tuple[ProblemScore, float]]]`: By budget, the scores of the questions and the share of each one's
            samples whose thinking was ended.

        Raises:
            [`ConfigurationError`]: For a sampler that cannot go on from a text of ours.
        """
        if not isinstance(sampler.template, EvaluationTemplate) or sampler.tokenizer is None:
            raise ConfigurationError(
                "Thinking budgets need a model whose prompts are rendered here, with its tokenizer: vLLM, transformers, or a "
                "server with server_api: completions."
            )
        found = {}
        for budget in sorted(set(self.budgets)):
            forced = self._force(benchmark, groups, budget, sampler, settings, folder / f"budget-{budget}")
            scores = score_groups(f"{benchmark.name} (budget {budget})", [group for group, _ in forced], counts, pool)
            ended = {group[0].id: share for group, share in forced}
            found[budget] = [(score, ended[score.id]) for score in scores]
        return found

    def _force(
        self,
        benchmark: Benchmark,
        groups: Sequence[Group],
        budget: int,
        sampler: Sampler,
        settings: SamplingSettings,
        folder: Path,
    ) -> list[tuple[Group, float]]:
        """Return the groups with every thinking within the budget, and the share of thinkings that were ended."""
        codec = PromptCodec(sampler.template, sampler.tokenizer, getattr(sampler, "eos_token_ids", ()))
        closing_text = CLOSINGS[sampler.template.form]
        begun: dict[str, str] = {}
        requests = []
        for row, samples in groups:
            for index, sample in enumerate(samples):
                kept = cut_thinking(sample, budget, codec)
                if kept is not None:
                    key = f"{sample_key(row)}/{index}"
                    begun[key] = kept + closing_text
                    question = ask(row.prompt, benchmark.form, sampler.template)
                    requests.append(SampleRequest(key, continued(question, begun[key])))
        short = replace(settings, max_tokens=self.answer_tokens)
        with closing(SampleStore(folder, store_settings(sampler, short, form=benchmark.form, budget=budget))) as store:
            for answer in sampler.stream(store.remaining(requests), short):
                store.add(answer)
            store.flush()
            answers = {key: stored[0].completion for key, stored in store.groups().items()}
        return [_joined(row, samples, budget, begun, answers) for row, samples in groups]


def _joined(
    row: Row, samples: Sequence[Completion], budget: int, begun: Mapping[str, str], answers: Mapping[str, Completion]
) -> tuple[Group, float]:
    joined, ended = [], 0
    for index, sample in enumerate(samples):
        key = f"{sample_key(row)}/{index}"
        if key not in begun:
            joined.append(sample)
        elif key in answers:
            answer = answers[key]
            ids = (*sample.token_ids[:budget], *answer.token_ids)
            joined.append(Completion(begun[key] + answer.text, ids, answer.finish_reason, sample.prefill))
            ended += 1
    return (row, joined), ended / max(len(samples), 1)


def cut_thinking(sample: Completion, budget: int, codec: PromptCodec) -> str | None:
    """Return the first `budget` tokens of a completion, or `None` where its thinking, or all of it, ends within them.

    Args:
        sample ([`Completion`]): With its token ids.
        budget (`int`): Tokens.
        codec ([`~trl_r1.generation.codec.PromptCodec`]): Of the model.

    Raises:
        [`ConfigurationError`]: For a completion without token ids.
    """
    if sample.text and not sample.token_ids:
        raise ConfigurationError(
            "Thinking budgets count tokens, and these samples come without token ids (a server that does not send them)."
        )
    if len(sample.token_ids) <= budget:
        return None
    kept = codec.decode(sample.token_ids[:budget])
    return None if THINK_CLOSE in kept else kept.rstrip()


def continued(prompt: Prompt, begun: str) -> Prompt:
    """Return a prompt whose completion begins with a given text; for [`EvaluationTemplate`]."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [*messages, {"role": "assistant", "content": begun}]


def summarise(points: Mapping[int, Sequence[tuple[Any, float]]], free: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The curve as plain numbers for `report.json`.

    Args:
        points (`Mapping[int, Sequence[tuple[ProblemScore, float]]]`): As [`BudgetCurve.measure`] gives it, of all processes.
        free (`Mapping`): The summary of the samples without a budget, the curve's last point.

    Returns:
        `list[dict]`: Per point `budget` (`None`: free), `pass@1` and `mean_tokens` with `[low, high]`, `ended` (share).
    """
    curve: list[dict[str, Any]] = []
    for budget, scored in sorted(points.items()):
        scores = [score for score, _ in scored]
        right = bootstrap_mean([score.correct / score.samples if score.n else float("nan") for score in scores])
        tokens = bootstrap_ratio([score.tokens for score in scores], [score.samples for score in scores])
        curve.append(
            {
                "budget": budget,
                "pass@1": right.value,
                "pass@1_interval": [right.low, right.high],
                "mean_tokens": tokens.value,
                "ended": sum(share for _, share in scored) / max(len(scored), 1),
            }
        )
    last = {"budget": None, "pass@1": free["pass@1"], "pass@1_interval": free["intervals"]["pass@1"]}
    return [*curve, {**last, "mean_tokens": free["mean_tokens"], "ended": 0.0}]


def draw(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, title: str) -> Path:
    """Draw accuracy against the tokens spent, a line per benchmark.

    Args:
        curves (`Mapping[str, Sequence]`): [`summarise`] by benchmark.
        path (`Path`): The PNG.
        title (`str`): Of the picture, such as the model's name.

    Returns:
        `Path`: The file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in curves.items():
        tokens, right, low, high = _columns(points)
        (line,) = axes.plot(tokens, right, marker="o", label=name)
        axes.fill_between(tokens, low, high, alpha=0.15, color=line.get_color())
    axes.set(xscale="log", xlabel="tokens per answer (mean)", ylabel="pass@1", ylim=(0, 1), title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    partial = path.with_name(f".{path.name}.tmp")
    figure.savefig(partial, format="png", dpi=120)
    return partial.replace(path)


def _columns(points: Sequence[Mapping[str, Any]]) -> Iterator[list[float]]:
    yield [point["mean_tokens"] for point in points]
    yield [point["pass@1"] for point in points]
    yield [point["pass@1_interval"][0] for point in points]
    yield [point["pass@1_interval"][1] for point in points]
