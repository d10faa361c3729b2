"""What training changed besides accuracy: behaviours over training, and thinking length by difficulty.

After the fact, from the rollout log ([`trl_r1.data.rollouts`]); during training the same figures are in the trainer's log
under `behaviours/`. The paper's observations: reflective words grow five- to sevenfold, harder questions get
longer thinking, and without the language reward consistency decays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from trl_r1.behaviours import Behaviours, measure
from trl_r1.data.rollouts import Rollout, groups
from trl_r1.responses import parse
from trl_r1.statistics import Estimate, bootstrap_mean

BEHAVIOURS = tuple(Behaviours.__dataclass_fields__)
# Shares of right answers in a group that part hard, medium and easy questions. Ours.
_HARD, _EASY = 1 / 3, 2 / 3
DIFFICULTIES = ("hard", "medium", "easy")
_ACCURACY = "accuracy_reward"


@dataclass(frozen=True)
class Period:
    """The mean behaviour of the completions of some consecutive rollouts.

    Args:
        first_step (`int`): Step of the first rollout.
        last_step (`int`): Step of the last one.
        completions (`int`): How many were measured.
        accuracy (`float`, *optional*): Mean accuracy reward; `None` where it was not among the rewards.
        tokens (`float`): Mean length.
        truncated (`float`): Share cut off.
        well_formed (`float`): Share in R1-Zero's form or in R1's.
        behaviours (`dict[str, Estimate]`): Mean per completion, with a 95 % interval over the questions.
    """

    first_step: int
    last_step: int
    completions: int
    accuracy: float | None
    tokens: float
    truncated: float
    well_formed: float
    behaviours: dict[str, Estimate]


def over_training(rollouts: Sequence[Rollout], periods: int = 8, most: int = 256) -> list[Period]:
    """Measure behaviours over a run, in periods of about equally many rollouts.

    Args:
        rollouts (`Sequence[Rollout]`): Of one run, in the order of training.
        periods (`int`, defaults to 8): How many periods, at most one per rollout.
        most (`int`, defaults to 256): Completions measured per period, evenly spread.

    Returns:
        `list[Period]`: In the order of training.
    """
    steps = sorted({rollout.step for rollout in rollouts})
    count = min(periods, len(steps))
    bounds = [steps[len(steps) * index // count : len(steps) * (index + 1) // count] for index in range(count)]
    found = []
    for members in bounds:
        inside = [rollout for rollout in rollouts if members[0] <= rollout.step <= members[-1]]
        found.append(_period(inside, most))
    return found


def _period(rollouts: Sequence[Rollout], most: int) -> Period:
    measured = rollouts[:: max(1, -(-len(rollouts) // most))]
    responses = [parse(one.completion, prefill=one.prefill, truncated=one.truncated) for one in measured]
    seen = [measure(one.completion) for one in measured]
    questions = [one.group for one in measured]
    paid = [one.rewards[_ACCURACY] for one in rollouts if one.rewards.get(_ACCURACY) is not None]
    return Period(
        first_step=rollouts[0].step,
        last_step=rollouts[-1].step,
        completions=len(measured),
        accuracy=fmean(float(value or 0) for value in paid) if paid else None,
        tokens=fmean(one.tokens for one in rollouts),
        truncated=fmean(one.truncated for one in rollouts),
        well_formed=fmean(response.well_formed or response.think_only for response in responses),
        behaviours={name: _mean(questions, [float(getattr(one, name)) for one in seen]) for name in BEHAVIOURS},
    )


def _mean(questions: Sequence[Any], values: Sequence[float]) -> Estimate:
    """A mean over questions: answers to one question are not independent of each other."""
    by_question: dict[Any, list[float]] = {}
    for question, value in zip(questions, values, strict=True):
        by_question.setdefault(question, []).append(value)
    return bootstrap_mean([fmean(values) for values in by_question.values()], resamples=1000)


def difficulty(right: float) -> str:
    """Name a question's difficulty by the share of right answers in its group."""
    return "hard" if right < _HARD else "easy" if right > _EASY else "medium"


def length_by_difficulty(rollouts: Sequence[Rollout]) -> dict[str, dict[str, Any]]:
    """Length of the answers to hard, medium and easy questions, right and wrong ones apart.

    Difficulty is measured by the policy itself, group by group. Only answers that came to their end are counted: a cut-off
    one has the length of the cap.

    Args:
        rollouts (`Sequence[Rollout]`): Of one run; those without an accuracy reward are left out.

    Returns:
        `dict[str, dict]`: For each of [`DIFFICULTIES`] that occurs: `questions`, `tokens_right`, `tokens_wrong` (means; `None`
        without any) and `truncated` (share).
    """
    sorted_out: dict[str, list[list[Rollout]]] = {name: [] for name in DIFFICULTIES}
    for members in groups([one for one in rollouts if one.rewards.get(_ACCURACY) is not None]).values():
        sorted_out[difficulty(fmean(_right(one) for one in members))].append(members)
    return {name: _lengths(parts) for name, parts in sorted_out.items() if parts}


def _lengths(parts: Sequence[Sequence[Rollout]]) -> dict[str, Any]:
    every = [one for members in parts for one in members]

    def mean(keep: Callable[[Rollout], bool]) -> float | None:
        lengths = [one.tokens for one in every if not one.truncated and keep(one)]
        return fmean(lengths) if lengths else None

    return {
        "questions": len(parts),
        "tokens_right": mean(_right),
        "tokens_wrong": mean(lambda one: not _right(one)),
        "truncated": fmean(one.truncated for one in every),
    }


def _right(rollout: Rollout) -> bool:
    return float(rollout.rewards[_ACCURACY] or 0) > 0.5
