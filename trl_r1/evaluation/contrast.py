"""Two models on the same questions: is one better, and did training sharpen or discover?

Reinforcement learning can raise pass@1 by sampling more often what the base model could already find ("sharpening"): then the
base model overtakes the tuned one at large k. Where the tuned model stays ahead at every k that was measured, it solves
questions that the base model did not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trl_r1.evaluation.metrics import Evaluation
from trl_r1.exceptions import DataError
from trl_r1.statistics import Estimate, bootstrap_mean, paired_difference, pass_at_k

METRICS = ("pass@1", "cons", "well_formed", "truncated")


@dataclass(frozen=True)
class Contrast:
    """A paired contrast of two models, over seeds and questions.

    Args:
        questions (`int`): Questions that both answered.
        seeds (`int`): Runs of each side.
        first (`dict[str, Estimate]`): The first model's figures.
        second (`dict[str, Estimate]`): The second's.
        difference (`dict[str, Estimate]`): Second minus first, paired, with 95 % intervals.
        curves (`list[dict]`): For each k: `k`, `first`, `second` and `difference` as estimates of pass@k.
        crossing (`int`, *optional*): The smallest k from which on the first model leads; `None` if it never does.
        only_first (`float`): Share of questions that only the first ever solves.
        only_second (`float`): Share that only the second ever solves.
    """

    questions: int
    seeds: int
    first: dict[str, Estimate]
    second: dict[str, Estimate]
    difference: dict[str, Estimate]
    curves: list[dict[str, Any]] = field(default_factory=list)
    crossing: int | None = None
    only_first: float = 0.0
    only_second: float = 0.0

    def verdict(self) -> str:
        """Say in a sentence what the figures show; `undecided` where the intervals do not tell."""
        gain, last = self.difference["pass@1"], self.curves[-1]
        if not gain.excludes_zero:
            return f"undecided: pass@1 differs by {_points(gain)} points"
        ahead = "second" if gain.value > 0 else "first"
        wide = last["difference"]
        if wide.excludes_zero and (wide.value > 0) == (gain.value > 0):
            return (
                f"discovery: the {ahead} model leads at pass@1 ({_points(gain)}) and still at pass@{last['k']} "
                f"({_points(wide)}): it solves questions that the other does not find in {last['k']} tries"
            )
        if wide.excludes_zero:
            return (
                f"sharpening: the {ahead} model leads at pass@1 ({_points(gain)}), the other at pass@{last['k']} "
                f"({_points(wide)}); the curves cross at k = {self.crossing}"
            )
        return (
            f"sharpening as far as measured: the {ahead} model leads at pass@1 ({_points(gain)}), and at pass@{last['k']} "
            f"the two cannot be told apart ({_points(wide)})"
        )

    def asdict(self) -> dict[str, Any]:
        """The contrast as JSON: estimates become `[value, low, high]`."""

        def plain(estimates: dict[str, Estimate]) -> dict[str, list[float]]:
            return {name: [one.value, one.low, one.high] for name, one in estimates.items()}

        return {
            "questions": self.questions,
            "seeds": self.seeds,
            "first": plain(self.first),
            "second": plain(self.second),
            "difference": plain(self.difference),
            "pass_at_k": [
                {"k": point["k"]} | plain({name: point[name] for name in ("first", "second", "difference")})
                for point in self.curves
            ],
            "crossing": self.crossing,
            "only_first": self.only_first,
            "only_second": self.only_second,
            "verdict": self.verdict(),
        }


def contrast(first: Sequence[Evaluation], second: Sequence[Evaluation]) -> Contrast:
    """Contrast two models on the questions that all of their runs answered.

    Args:
        first (`Sequence[Evaluation]`): One evaluation per seed of the first model (the base, say).
        second (`Sequence[Evaluation]`): As many of the second; one seed of each is paired with one of the other.

    Returns:
        [`Contrast`]: Intervals resample seeds and questions ([`trl_r1.statistics`]).

    Raises:
        [`DataError`]: Without common questions, with a question twice in one evaluation, or with unequal numbers of seeds.
    """
    if not first or len(first) != len(second):
        raise DataError(
            f"{len(first)} evaluations of the first model and {len(second)} of the second: a paired contrast over seeds needs "
            "equally many, at least one each."
        )
    keys = _common([*first, *second])
    sides = [[_ordered(one, keys) for one in side] for side in (first, second)]
    values = [{metric: np.array([one.per_problem(metric) for one in side]) for metric in METRICS} for side in sides]
    ks = _powers(min(p.samples for side in sides for one in side for p in one.problems))
    curves = [_point(sides, k) for k in ks]
    solved = [np.array([[p.correct > 0 for p in one.problems] for one in side]).any(axis=0) for side in sides]
    return Contrast(
        questions=len(keys),
        seeds=len(first),
        first={metric: bootstrap_mean(values[0][metric]) for metric in METRICS},
        second={metric: bootstrap_mean(values[1][metric]) for metric in METRICS},
        difference={metric: paired_difference(values[0][metric], values[1][metric]) for metric in METRICS},
        curves=curves,
        crossing=_crossing(curves),
        only_first=float((solved[0] & ~solved[1]).mean()),
        only_second=float((solved[1] & ~solved[0]).mean()),
    )


def _common(evaluations: Sequence[Evaluation]) -> list[str]:
    """The questions of all evaluations, in the order of the first."""
    ids = [[problem.id for problem in one.problems] for one in evaluations]
    for one in ids:
        if len(set(one)) < len(one):
            twice = next(key for key in one if one.count(key) > 1)
            raise DataError(
                f"Question {twice!r} occurs twice in one evaluation. Drop the duplicate and evaluate again."
            )
    shared = set(ids[0]).intersection(*ids[1:])
    if not shared:
        raise DataError(
            f"The evaluations share no question (the first has {len(ids[0])}, such as {ids[0][0]!r}; the last {len(ids[-1])}, such "
            f"as {ids[-1][0]!r}). Evaluate both models on the same benchmark."
        )
    return [key for key in ids[0] if key in shared]


def _ordered(evaluation: Evaluation, keys: Sequence[str]) -> Evaluation:
    by_id = {problem.id: problem for problem in evaluation.problems}
    return Evaluation([by_id[key] for key in keys], evaluation.cons_k)


def _powers(most: int) -> list[int]:
    """1, 2, 4 … and the number of samples itself."""
    ks = [2**power for power in range(most.bit_length()) if 2**power <= most]
    return sorted({*ks, most})


def _pass(side: Sequence[Evaluation], k: int) -> NDArray[np.float64]:
    return np.array(
        [pass_at_k([p.samples for p in one.problems], [p.correct for p in one.problems], k) for one in side]
    )


def _point(sides: Sequence[Sequence[Evaluation]], k: int) -> dict[str, Any]:
    one, other = (_pass(side, k) for side in sides)
    return {
        "k": k,
        "first": bootstrap_mean(one),
        "second": bootstrap_mean(other),
        "difference": paired_difference(one, other),
    }


def _crossing(curves: Sequence[dict[str, Any]]) -> int | None:
    """The smallest k from which on the first model leads, if it trails before."""
    leads = [point["difference"].value < 0 for point in curves]
    if leads[0] or not leads[-1]:
        return None
    return next(int(curves[i]["k"]) for i in range(len(curves)) if all(leads[i:]))


def _points(estimate: Estimate) -> str:
    return f"{100 * estimate.value:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"


def contrast_table(found: Contrast, names: tuple[str, str]) -> str:
    """The contrast as Markdown, shares in per cent."""
    lines = [f"| | {names[0]} | {names[1]} | difference |", "|---|---|---|---|"]

    def line(label: str, *estimates: Estimate) -> str:
        plain = [f"{100 * one.value:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]" for one in estimates[:2]]
        return f"| {label} | {plain[0]} | {plain[1]} | {_points(estimates[2])} |"

    lines += [line(name, found.first[name], found.second[name], found.difference[name]) for name in METRICS]
    lines += [line(f"pass@{p['k']}", p["first"], p["second"], p["difference"]) for p in found.curves if p["k"] > 1]
    seeds = f", {found.seeds} seeds" if found.seeds > 1 else ""
    lines.append(
        f"\n{found.questions} questions{seeds}; in per cent, 95 % intervals over questions{' and seeds' if seeds else ''}. Solved only "
        f"by {names[0]}: {100 * found.only_first:.1f} %, only by {names[1]}: {100 * found.only_second:.1f} %.\n\n{found.verdict()}."
    )
    return "\n".join(lines)
