"""`trl-r1 rescore`: what another reward would have paid for what a run's policy wrote.

No model is loaded. A reward can thus be tried on thousands of real completions in seconds, before a run is spent on it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from types import SimpleNamespace
from typing import Any

import numpy as np

from trl_r1.data.rollouts import Rollout, groups, read_rollouts, reward_names
from trl_r1.exceptions import ConfigurationError
from trl_r1.pipeline.files import write_json
from trl_r1.rewards import RewardFunction, get_reward
from trl_r1.statistics import bootstrap_mean

# Spread below which a group teaches nothing, as in training.
_TOLERANCE = 1e-6
_STEPS = 6


@dataclass(frozen=True)
class Rescored:
    """Completions with what they were paid and what they would have been paid.

    Args:
        rollouts (`list[Rollout]`): The completions.
        paid (`list[float | None]`): Sum of the logged rewards; `None` where one did not apply.
        would (`list[float | None]`): Weighted sum of the other rewards.
        parts (`dict[str, list[float | None]]`): The other rewards by name.
    """

    rollouts: list[Rollout]
    paid: list[float | None]
    would: list[float | None]
    parts: dict[str, list[float | None]]


def rescore(
    rollouts: Sequence[Rollout], rewards: Sequence[str | RewardFunction], weights: Sequence[float] = ()
) -> Rescored:
    """Score logged completions with other rewards.

    Args:
        rollouts (`Sequence[Rollout]`): The completions, in the order of training.
        rewards (`Sequence[str | RewardFunction]`): Names, dotted paths or functions.
        weights (`Sequence[float]`, *optional*): One per reward; 1 by default.

    Returns:
        [`Rescored`]

    Raises:
        [`ConfigurationError`]: For an unknown reward, or as many weights as there are not rewards.
    """
    functions = [get_reward(one) for one in rewards]
    if weights and len(weights) != len(functions):
        raise ConfigurationError(f"{len(weights)} weights for {len(functions)} rewards. Give one each, or none.")
    factors = list(weights) or [1.0] * len(functions)
    names = [getattr(function, "__name__", type(function).__name__) for function in functions]
    parts: dict[str, list[float | None]] = {name: [] for name in names}
    for members in groups(rollouts).values():
        columns = _columns(members)
        for name, function in zip(names, functions, strict=True):
            parts[name] += function(**columns)
    # Groups come in the order of training, but their members may have been interleaved.
    ordered = [one for members in groups(rollouts).values() for one in members]
    would = [
        None if None in values else sum(f * float(v or 0) for f, v in zip(factors, values, strict=True))
        for values in zip(*parts.values(), strict=True)
    ]
    return Rescored(ordered, [_paid(one) for one in ordered], would, parts)


def _columns(members: Sequence[Rollout]) -> dict[str, Any]:
    """What a trainer would pass for one group."""
    messages = isinstance(members[0].row.prompt, list)
    columns: dict[str, Any] = {
        "prompts": [one.row.prompt for one in members],
        "completions": [
            [{"role": "assistant", "content": one.completion}] if messages else one.completion for one in members
        ],
        # Rewards read lengths in tokens off the ids; the ids themselves are not kept.
        "completion_ids": [range(one.tokens) for one in members],
        "prefill": [one.prefill for one in members],
        "trainer_state": SimpleNamespace(global_step=members[0].step),
    }
    rows = [one.row.asdict() for one in members]
    return columns | {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}


def _paid(rollout: Rollout) -> float | None:
    values = list(rollout.rewards.values())
    return None if not values or None in values else sum(float(value or 0) for value in values)


def summary(scored: Rescored) -> dict[str, Any]:
    """Compare the two rewards, for a table and `rescore.json`.

    Returns:
        `dict`: `completions`, `questions`; `paid` and `would`: mean with a 95 % interval over groups, and share of groups
        without spread; `correlation` of the two within groups; `same_best`: share of groups whose best answers would be
        the same; `parts`: mean by reward; `by_step`: the means over training.
    """
    both = [
        (one, paid, would)
        for one, paid, would in zip(scored.rollouts, scored.paid, scored.would, strict=True)
        if paid is not None and would is not None
    ]
    by_group: dict[Any, list[tuple[float, float]]] = {}
    for one, paid, would in both:
        by_group.setdefault(one.group, []).append((paid, would))
    pairs = list(by_group.values())
    steps = sorted({one.step for one, _, _ in both})
    edges = [steps[len(steps) * i // min(_STEPS, len(steps))] for i in range(min(_STEPS, len(steps)))] if steps else []
    return {
        "completions": len(scored.rollouts),
        "scored": len(both),
        "questions": len(pairs),
        "paid": _side([[first for first, _ in group] for group in pairs]),
        "would": _side([[second for _, second in group] for group in pairs]),
        "correlation": _correlation(pairs),
        "same_best": fmean(_same_best(group) for group in pairs) if pairs else None,
        "parts": {name: _mean(values) for name, values in scored.parts.items()},
        "by_step": [
            {"step": low, **_means([(p, w) for one, p, w in both if low <= one.step < high])}
            for low, high in zip(edges, [*edges[1:], float("inf")], strict=True)
        ],
    }


def _side(values: Sequence[Sequence[float]]) -> dict[str, Any]:
    estimate = bootstrap_mean([fmean(group) for group in values]) if values else None
    return {
        "mean": estimate.value if estimate else None,
        "interval": [estimate.low, estimate.high] if estimate else None,
        "groups_without_spread": fmean(pstdev(group) <= _TOLERANCE for group in values) if values else None,
    }


def _correlation(pairs: Sequence[Sequence[tuple[float, float]]]) -> float | None:
    """Correlation of what is learnt from: the deviations from the group's mean."""
    deviations = [np.array(group) - np.mean(group, axis=0) for group in pairs]
    if not deviations:
        return None
    stacked = np.concatenate(deviations)
    if np.ptp(stacked[:, 0]) <= _TOLERANCE or np.ptp(stacked[:, 1]) <= _TOLERANCE:
        return None
    return float(np.corrcoef(stacked.T)[0, 1])


def _same_best(group: Sequence[tuple[float, float]]) -> bool:
    tops = [max(values) for values in zip(*group, strict=True)]
    first, second = (
        [abs(v - top) <= _TOLERANCE for v in side] for side, top in zip(zip(*group, strict=True), tops, strict=True)
    )
    return first == second


def _means(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    return {"paid": fmean(p for p, _ in pairs), "would": fmean(w for _, w in pairs)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def table(found: Mapping[str, Any], before: Sequence[str], after: Sequence[str]) -> str:
    """The summary as text."""

    def number(value: Any) -> str:
        return "–" if value is None else f"{value:.3f}"

    lines = [
        f"{found['scored']} of {found['completions']} completions, {found['questions']} groups",
        f"{'':24}{'paid: ' + ' + '.join(before):>40}{'would: ' + ' + '.join(after):>40}",
        f"{'mean':24}{number(found['paid']['mean']):>40}{number(found['would']['mean']):>40}",
        f"{'groups without spread':24}{number(found['paid']['groups_without_spread']):>40}"
        f"{number(found['would']['groups_without_spread']):>40}",
    ]
    lines += [
        f"{'from step ' + str(one['step']):24}{one['paid']:>40.3f}{one['would']:>40.3f}" for one in found["by_step"]
    ]
    lines += [f"  {name}: mean {number(value)}" for name, value in found["parts"].items()]
    lines.append(
        f"correlation within groups {number(found['correlation'])}; same best answers in {number(found['same_best'])} of groups"
    )
    return "\n".join(lines)


def run_rescore(args: list[str]) -> dict[str, Any]:
    """Run `trl-r1 rescore RUN --rewards …`.

    Args:
        args (`list[str]`): Command-line arguments.

    Returns:
        `dict`: [`summary`], which is also written to `rescore.json` in the run's folder.
    """
    parser = argparse.ArgumentParser(prog="trl-r1 rescore", description=__doc__)
    parser.add_argument("run", help="output_dir of a training run")
    parser.add_argument("--rewards", nargs="+", required=True, help="rewards by name, or dotted paths of functions")
    parser.add_argument("--weights", nargs="*", type=float, default=[], help="one per reward; 1 by default")
    parser.add_argument("--out", help="file to write; by default rescore.json in the run's folder")
    options = parser.parse_args(args)
    functions = [get_reward(name) for name in options.rewards]
    rollouts = read_rollouts(options.run)
    scored = rescore(rollouts, functions, options.weights)
    found = summary(scored)
    found |= {"rewards": options.rewards, "weights": options.weights or None, "logged_rewards": reward_names(rollouts)}
    target = write_json(options.out or Path(options.run) / "rescore.json", found)
    print(table(found, reward_names(rollouts), list(scored.parts)))
    print(f"\nWritten to {target}")
    return found
