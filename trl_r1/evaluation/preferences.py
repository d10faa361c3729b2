r"""Win rates against a baseline by a judge: AlpacaEval style, length-controlled, and ArenaHard style.

Judges like what stands first and what is long. So every pair is judged in both orders, and the length-controlled win rate
is what a logistic model says for answers as long as the baseline's: P(win) = σ(θ + φ · tanh(Δlength / std)), reported as σ(θ)
(arXiv 2404.04475, without its term for the difficulty of an instruction, which needs the votes on many models). ArenaHard
counts a clear win three times (arXiv 2406.11939).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.generation.base import Sampler, SamplingSettings, sample_all
from trl_r1.statistics import Estimate, bootstrap_mean, bootstrap_ratio
from trl_r1.verifiers.judge import JudgeServer, visible

logger = logging.getLogger(__name__)

# What the first answer of a pair earns by each verdict, and how often the verdict counts in ArenaHard's score.
VERDICTS = {"A>>B": (1.0, 3), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, 3)}
# A judge of pairs: (question, first answer, second answer) for each, and a verdict for each, `None` where there is none.
PairJudge = Callable[[Sequence[tuple[str, str, str]]], Sequence[str | None]]
# Keeps the two coefficients finite when one side always wins; worth a hundredth of a vote.
_PRIOR = 0.01
_RESAMPLES = 1000
_VERDICT = re.compile(r"\[\[\s*([AB](?:>>|>|=|<|<<)[AB])\s*\]\]")
_PROMPT = """\
Compare two assistants' answers to a user's request. Judge how helpful, correct and to the point each is; neither the \
order in which they stand nor their length counts. First work out your own answer, then compare. End with exactly one \
verdict: [[A>>B]] (A is clearly better), [[A>B]] (A is somewhat better), [[A=B]] (equal), [[B>A]] or [[B>>A]].

<|request|>
{question}

<|answer of A|>
{first}

<|answer of B|>
{second}
"""


@dataclass(frozen=True)
class Preference:
    """What the judge thinks of an answer beside the baseline's.

    Args:
        won (`float`): Mean over both orders, in [0, 1]; NaN when neither could be judged.
        points (`float`): ArenaHard's wins over both orders, a clear one counting three times.
        games (`float`): What `points` is out of.
        length (`int`): Characters of the answer.
        baseline_length (`int`): Characters of the baseline's.
    """

    won: float
    points: float
    games: float
    length: int
    baseline_length: int


class ModelPairJudge:
    """A pair judge that asks a model: a server, or any sampler.

    Args:
        model ([`JudgeServer`] or [`~trl_r1.generation.base.Sampler`]): Who replies.
        max_tokens (`int`, defaults to 4096): Cap of a sampler's reply.
    """

    def __init__(self, model: JudgeServer | Sampler, max_tokens: int = 4096) -> None:
        self.model = model
        self.max_tokens = max_tokens

    def __call__(self, pairs: Sequence[tuple[str, str, str]]) -> list[str | None]:
        """Judge pairs greedily; a reply without exactly one verdict at its end gives `None`."""
        prompts = [_PROMPT.format(question=q, first=first, second=second) for q, first, second in pairs]
        replies: Sequence[Any]
        if isinstance(self.model, JudgeServer):
            replies = self.model.ask_all(prompts, 0.0)
        else:
            settings = SamplingSettings(temperature=0.0, max_tokens=self.max_tokens)
            replies = [group[0].prefill + group[0].text for group in sample_all(self.model, prompts, 1, settings)]
        return [read_verdict(reply) if isinstance(reply, str) else None for reply in replies]


def read_verdict(reply: str) -> str | None:
    """Read the verdict of a judge's reply: the last one after its thinking; `A<B` is read as `B>A`.

    Example:

    ```python
    >>> from trl_r1.evaluation.preferences import read_verdict
    >>> read_verdict("I prefer the second. [[A<<B]]")
    'B>>A'
    ```
    """
    found = _VERDICT.findall(reply.rpartition("</think>")[2])
    if not found:
        return None
    verdict = found[-1]
    if "<" in verdict:
        verdict = f"{verdict[-1]}{'>' * verdict.count('<')}{verdict[0]}"
    return "A=B" if verdict == "B=A" else verdict if verdict in VERDICTS else None


def compare_answers(
    questions: Sequence[str], answers: Sequence[str], baselines: Sequence[str], judge: PairJudge
) -> list[Preference]:
    """Have every answer compared with the baseline's, in both orders.

    Args:
        questions (`Sequence[str]`): The requests.
        answers (`Sequence[str]`): Completions, prefill included; the judge sees what follows the thinking.
        baselines (`Sequence[str]`): The baseline's answers.
        judge (`PairJudge`): Who compares, such as [`ModelPairJudge`].

    Returns:
        `list[Preference]`: One per question. An answer that shows nothing (thinking that never ends) loses unasked.

    Raises:
        [`DataError`]: If the lists differ in length, or no pair could be judged.
    """
    if not len(questions) == len(answers) == len(baselines):
        raise DataError(
            f"{len(questions)} questions, {len(answers)} answers and {len(baselines)} baselines: not pairs."
        )
    shown, others = [visible(answer) for answer in answers], [visible(baseline) for baseline in baselines]
    asked = [index for index, answer in enumerate(shown) if answer]
    pairs = [(questions[i], shown[i], others[i]) for i in asked] + [(questions[i], others[i], shown[i]) for i in asked]
    said = list(judge(pairs)) if pairs else []
    if len(said) != len(pairs):
        raise DataError(f"The judge gave {len(said)} verdicts on {len(pairs)} pairs; one for each is needed.")
    for verdict in said:
        if verdict is not None and verdict not in VERDICTS:
            raise ConfigurationError(f"The judge said {verdict!r}. Allowed: {', '.join(VERDICTS)}, or None.")
    games: dict[int, list[tuple[float, int]]] = {index: [] for index in range(len(shown))}
    for place, (index, verdict) in enumerate(zip(asked * 2, said, strict=True)):
        if verdict is not None:
            score, weight = VERDICTS[verdict]
            games[index].append((score if place < len(asked) else 1 - score, weight))
    unjudged = [index for index in asked if not games[index]]
    if unjudged:
        logger.warning("%d of %d pairs could not be judged and count nowhere.", len(unjudged), len(asked))
    if asked and len(unjudged) == len(asked):
        raise DataError(
            "The judge gave no verdict that can be read, on any pair. Look at its replies, or take another."
        )
    return [
        _preference([(0.0, 1), (0.0, 1)] if not shown[i] else games[i], len(shown[i]), len(others[i]))
        for i in range(len(shown))
    ]


def _preference(games: Sequence[tuple[float, int]], length: int, baseline_length: int) -> Preference:
    won = sum(score for score, _ in games) / len(games) if games else float("nan")
    points = sum(score * weight for score, weight in games)
    return Preference(won, points, float(sum(weight for _, weight in games)), length, baseline_length)


def win_rate(preferences: Sequence[Preference]) -> Estimate:
    """The mean win rate, as a share, with its interval over questions."""
    return bootstrap_mean([one.won for one in preferences])


def arena_score(preferences: Sequence[Preference]) -> Estimate:
    """ArenaHard's score, as a share: wins out of games, a clear verdict counting three times."""
    return bootstrap_ratio([one.points for one in preferences], [one.games for one in preferences])


def length_controlled_win_rate(preferences: Sequence[Preference]) -> Estimate:
    """The win rate, as a share, that a logistic model expects at the baseline's length.

    Args:
        preferences (`Sequence[Preference]`): One per question.

    Returns:
        [`~trl_r1.statistics.Estimate`]: With a percentile bootstrap interval over questions.

    Raises:
        [`DataError`]: If no pair was judged.
    """
    known = [one for one in preferences if one.won == one.won]
    if not known:
        raise DataError("No pair was judged: there is no win rate.")
    won = np.array([one.won for one in known])
    longer = np.array([one.length - one.baseline_length for one in known], dtype=np.float64)
    spread = longer.std()
    # The same scale in all resamples: it is the unit of the length term.
    term = np.tanh(longer / spread) if spread > 0 else np.zeros_like(longer)
    value = 1 / (1 + np.exp(-fit_logistic(term, won)[0]))
    n = len(known)
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
    low, high = np.quantile(1 / (1 + np.exp(-fit_logistic(term, won, drawn)[:, 0])), [0.025, 0.975])
    return Estimate(float(value), float(low), float(high), n)


def fit_logistic(term: ArrayLike, won: ArrayLike, counts: ArrayLike | None = None) -> NDArray[np.float64]:
    """Fit P(win) = σ(θ + φ · term) by Newton's method.

    Args:
        term (`ArrayLike` of shape `(n,)`): The regressor.
        won (`ArrayLike` of shape `(n,)`): Shares in [0, 1]; halves are ties.
        counts (`ArrayLike` of shape `(resamples, n)`, *optional*): How often each counts; once by default.

    Returns:
        `ndarray` of shape `(2,)` or `(resamples, 2)`: θ and φ, with a weak prior around 0 that keeps both finite.
    """
    x, target = np.asarray(term, dtype=np.float64), np.asarray(won, dtype=np.float64)
    weight = np.ones_like(x) if counts is None else np.asarray(counts, dtype=np.float64)
    theta = np.zeros(weight.shape[:-1])
    phi = np.zeros(weight.shape[:-1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-(theta[..., None] + phi[..., None] * x)))
        wrong, spread = weight * (target - chance), weight * chance * (1 - chance)
        slope = wrong.sum(-1) - _PRIOR * theta, (wrong * x).sum(-1) - _PRIOR * phi
        # The 2 × 2 curvature, inverted by hand.
        a, b, c = spread.sum(-1) + _PRIOR, (spread * x).sum(-1), (spread * x * x).sum(-1) + _PRIOR
        area = a * c - b * b
        steps = (c * slope[0] - b * slope[1]) / area, (a * slope[1] - b * slope[0]) / area
        # Newton overshoots where one side always wins.
        theta, phi = theta + np.clip(steps[0], -2, 2), phi + np.clip(steps[1], -2, 2)
        if max(np.abs(step).max() for step in steps) < 1e-9:
            break
    return np.stack([theta, phi], axis=-1)
