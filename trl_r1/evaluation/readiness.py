"""What a first look at a model on some questions says about how to train it: R1-Zero, a cold start, or a filter first.

GRPO learns from groups whose rewards differ. A model that never solves a question, never closes its tags, or always does
both, gives none: the run would cost its full price and teach nothing. The thresholds are ours; each is named in the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from trl_r1.evaluation.metrics import Evaluation
from trl_r1.statistics import Estimate, bootstrap_mean

STARTS = ("zero", "cold_start", "filter", "data")
_GROUP_SIZES = (8, 16, 32, 64)
# R1's rollout: 32 questions × 16.
_STEP_COMPLETIONS = 512
_FEW_SPREAD, _ENOUGH_SPREAD = 0.1, 0.4
_MUCH_CUT, _BARELY_FORMED = 0.3, 0.05


@dataclass(frozen=True)
class Readiness:
    """What to do, and why.

    Args:
        start (`str`): `"zero"` (R1-Zero can start), `"cold_start"` (SFT on some traces first), `"filter"` (drop questions
            that are all right or all wrong first), or `"data"` (other questions are needed).
        reasons (`list[str]`): The figures that decided, in words.
        settings (`dict`): Settings to begin with, by their names in YAML.
        measured (`dict`): Everything measured.
    """

    start: str
    reasons: list[str]
    settings: dict[str, Any]
    measured: dict[str, Any] = field(default_factory=dict)

    def asdict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def assess(evaluation: Evaluation, lengths: Sequence[int], max_tokens: int, tokens_per_second: float) -> Readiness:
    """Judge a sample of questions.

    Args:
        evaluation ([`Evaluation`]): Of the model on training questions, k samples each, at training's temperature.
        lengths (`Sequence[int]`): Tokens of every completion.
        max_tokens (`int`): The cap they were sampled under.
        tokens_per_second (`float`): How fast they came.

    Returns:
        [`Readiness`]
    """
    estimates = evaluation.estimates()
    known = [problem for problem in evaluation.problems if problem.n]
    rates = np.array([problem.correct / problem.n for problem in known])
    k = min((problem.samples for problem in evaluation.problems), default=0)
    spread = bootstrap_mean([float(0 < p.correct < p.n) for p in known])
    share: dict[str, float] = {
        name: estimates[name].value for name in ("pass@1", "well_formed", "truncated") if name in estimates
    }
    group = _group_size(rates)
    measured = {
        "questions": len(evaluation.problems),
        "samples": k,
        **{name: _triple(one) for name, one in estimates.items()},
        "groups_with_spread": _triple(spread),
        "all_right": float((rates == 1).mean()) if len(rates) else None,
        "all_wrong": float((rates == 0).mean()) if len(rates) else None,
        "expected_groups_with_spread": {str(size): _expected(rates, size) for size in _GROUP_SIZES},
        "tokens_per_second": tokens_per_second,
        "mean_tokens_sampled": float(np.mean(lengths)) if len(lengths) else None,
        "p99_tokens": float(np.quantile(lengths, 0.99)) if len(lengths) else None,
    }
    if tokens_per_second > 0 and len(lengths):
        measured["seconds_per_512_completions"] = _STEP_COMPLETIONS * float(np.mean(lengths)) / tokens_per_second
    start, reasons = _decide(rates, spread, share, k)
    settings: dict[str, Any] = {"num_generations": group, "max_completion_length": _cap(lengths, max_tokens, share)}
    if start == "filter" or (start == "zero" and spread.value < _ENOUGH_SPREAD):
        settings["dynamic_sampling"] = True
    if share.get("truncated", 0) > _MUCH_CUT:
        reasons.append(
            f"{share['truncated']:.0%} of the completions are cut off at {max_tokens} tokens (more than {_MUCH_CUT:.0%}): raise the "
            "cap before anything else, or right answers are lost to it."
        )
    return Readiness(start, reasons, settings, measured)


def _decide(rates: np.ndarray[Any, Any], spread: Estimate, share: dict[str, float], k: int) -> tuple[str, list[str]]:
    if not len(rates):
        return "data", ["No gold answer of these questions can be read, so nothing can be rewarded by rule."]
    wrong, right = float((rates == 0).mean()), float((rates == 1).mean())
    formed = share.get("well_formed", 0.0)
    if spread.value >= _FEW_SPREAD:
        reasons = [
            f"{spread.value:.0%} of the groups of {k} hold right and wrong answers: there is something to learn from."
        ]
        if formed < _BARELY_FORMED:
            reasons.append(
                f"Only {formed:.0%} of the completions are in R1-Zero's form: the format reward will teach it first, a cold "
                "start or few-shot prompts would save those steps."
            )
        if spread.value < _ENOUGH_SPREAD:
            reasons.append(
                f"{wrong:.0%} of the questions are never solved and {right:.0%} always: keep those in between (a pass-rate "
                "filter), or let dynamic sampling replace them."
            )
            return "filter", reasons
        return "zero", reasons
    if right > 0.5:
        return "data", [f"{right:.0%} of the questions are always solved: take harder ones."]
    reasons = [
        f"Only {spread.value:.0%} of the groups of {k} hold right and wrong answers, and {wrong:.0%} of the questions are never solved."
    ]
    if formed < _BARELY_FORMED:
        reasons.append(f"Only {formed:.0%} of the completions are in the form that answers are read from.")
    reasons.append("A cold start on a few hundred traces comes first; or a larger model, or easier questions.")
    return "cold_start", reasons


def _expected(rates: np.ndarray[Any, Any], size: int) -> float | None:
    """Share of groups of another size that would have a spread, if each question keeps its rate."""
    return float(np.mean(1 - rates**size - (1 - rates) ** size)) if len(rates) else None


def _group_size(rates: np.ndarray[Any, Any]) -> int:
    """The smallest group size from R1's 16 on that gains less than a tenth by doubling."""
    for size in _GROUP_SIZES[1:-1]:
        now, doubled = _expected(rates, size) or 0.0, _expected(rates, 2 * size) or 0.0
        if now > 0 and doubled - now < 0.1 * now:
            return size
    return _GROUP_SIZES[-1] if len(rates) and rates.max() > 0 else 16


def _cap(lengths: Sequence[int], max_tokens: int, share: dict[str, float]) -> int:
    """Twice the longest finished answers, since length grows in training; doubled where much was cut off."""
    if share.get("truncated", 0) > _MUCH_CUT or not len(lengths):
        return 2 * max_tokens
    longest = float(np.quantile(lengths, 0.99))
    return int(min(2 * max_tokens, max(64, -(-2 * longest // 32) * 32)))


def _triple(estimate: Estimate) -> list[float]:
    return [estimate.value, estimate.low, estimate.high]
