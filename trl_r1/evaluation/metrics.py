"""How good is a model: pass@1, pass@k, cons@k and what lies beside them, with intervals over problems.

`score` calls the verifiers that training's rewards call, so that the two cannot disagree. One [`ProblemScore`] per
question holds sums only, so scores made on several ranks are joined by concatenation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from trl_r1 import behaviours
from trl_r1.evaluation.consensus import consensus
from trl_r1.exceptions import ConfigurationError, DataError, MissingExtraError
from trl_r1.language import check_language, detect_language, language_share
from trl_r1.nano import Trace, read_trace
from trl_r1.responses import parse
from trl_r1.rows import Completion, Row, Verdict, structured_reference
from trl_r1.statistics import Estimate, bootstrap_mean, bootstrap_ratio, pass_at_k
from trl_r1.verifiers import verify, verify_lenient


@dataclass(frozen=True)
class ProblemScore:
    """Sums over the samples of one problem.

    Args:
        id (`str`): The row's key; its prompt when it has none.
        domain (`str`): The row's domain.
        n (`int`): Samples with a verdict; 0 when the gold answer cannot be read, and the problem then counts nowhere.
        correct (`int`): Samples whose answer is right.
        lenient (`int`): Samples right by their last number, expression or letter, tags or no tags.
        well_formed (`int`): Samples in the asked form.
        no_answer (`int`): Extraction failures: finished samples in which no answer was found.
        truncated (`int`): Samples cut off by the length limit.
        tokens (`int`): Tokens over all samples.
        tokens_correct (`int`): Tokens over right, finished samples.
        finished_correct (`int`): Right samples that were not cut off.
        reflective (`int`): Reflective words over all samples.
        repetition (`float`): Summed share of repeated four-word sequences.
        tries (`int`): Tries in the thoughts (nano's countdown traces, as are the next four).
        checks_claimed (`int`): Checks that claim to have reached the target.
        checks_true (`int`): Those of them that are true.
        gave_up (`int`): Thoughts that end by giving up.
        modes (`dict[str, list[int]]`): Samples, and right ones among them, by the way of answering.
        samples (`int`): Samples drawn, with or without a verdict.
        consensus (`float`): Share of blocks of `cons_k` samples whose majority answer is right; ties count in part.
        depth (`int`, *optional*): How hard the question is by construction: how many numbers an expression must use.
        language (`str`, *optional*): The question's language: the row's, or the one that most of its words are in.
        worded (`int`): Samples whose thinking has words, maths and code stripped.
        in_language (`float`): Their shares of words in the question's language, summed.
    """

    id: str
    domain: str
    n: int
    correct: int
    lenient: int
    well_formed: int
    no_answer: int
    truncated: int
    tokens: int
    tokens_correct: int
    finished_correct: int
    reflective: int
    repetition: float
    tries: int
    checks_claimed: int
    checks_true: int
    gave_up: int
    samples: int
    consensus: float
    modes: dict[str, list[int]] = field(default_factory=dict)
    depth: int | None = None
    language: str | None = None
    worded: int = 0
    in_language: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """The scores of one model on one set of problems.

    Args:
        problems (`list[ProblemScore]`): One per question.
        cons_k (`int`): Votes per majority.
        pass_k (`tuple[int, ...]`): Further k for which pass@k is reported.
    """

    problems: list[ProblemScore]
    cons_k: int
    pass_k: tuple[int, ...] = ()
    confidence: float = field(default=0.95, kw_only=True)

    def per_problem(self, metric: str) -> list[float]:
        """One figure per problem, for paired contrasts ([`trl_r1.statistics.paired_difference`]).

        Args:
            metric (`str`):
                `"pass@1"`, `"pass@1_lenient"`, `"cons"`, `"well_formed"`, `"truncated"`, or `"language_share"`.

        Returns:
            `list[float]`: NaN where the problem's gold answer cannot be read, or no thinking has words.
        """
        nan = float("nan")
        if metric == "language_share":
            return [problem.in_language / problem.worded if problem.worded else nan for problem in self.problems]
        if metric == "cons":
            return [problem.consensus if problem.n else nan for problem in self.problems]
        name = {"pass@1": "correct", "pass@1_lenient": "lenient"}.get(metric, metric)
        return [getattr(problem, name) / problem.samples if problem.n else nan for problem in self.problems]

    def estimates(self) -> dict[str, Estimate]:
        """Every metric with its interval; metrics without a single observation are left out.

        Returns:
            `dict[str, Estimate]`: `pass@1`, `cons@k`, `pass@k`, `pass@1_lenient`, `well_formed`, `no_answer`,
            `truncated` (shares in [0, 1]); `mean_tokens`, `mean_tokens_correct` (tokens); `reflective_words` (per
            completion), `repetition` (share), `language_share` (of the thinking's words, those in the question's language,
            averaged over the samples that have words); on nano's countdown `tries` (per completion), `gave_up` (share) and
            `check_precision` (share of the checks claiming success that are true).
        """
        columns = {name: np.array([getattr(p, name) for p in self.problems], dtype=float) for name in _SUMS}
        samples, known = columns["samples"], columns["n"]

        def ratio(above: str, below: np.ndarray[Any, np.dtype[np.float64]]) -> Estimate:
            return bootstrap_ratio(columns[above], below, confidence=self.confidence)

        found = {"pass@1": bootstrap_mean(self.per_problem("pass@1"), confidence=self.confidence)}
        found[f"cons@{self.cons_k}"] = bootstrap_mean(self.per_problem("cons"), confidence=self.confidence)
        for k in self.pass_k:
            chances = np.where(known > 0, pass_at_k(samples, columns["correct"], k), np.nan)
            found[f"pass@{k}"] = bootstrap_mean(chances, confidence=self.confidence)
        found["pass@1_lenient"] = bootstrap_mean(self.per_problem("pass@1_lenient"), confidence=self.confidence)
        for name in ("well_formed", "no_answer", "truncated", "repetition"):
            found[name] = ratio(name, samples)
        found["mean_tokens"] = ratio("tokens", samples)
        found["mean_tokens_correct"] = ratio("tokens_correct", columns["finished_correct"])
        found["reflective_words"] = ratio("reflective", samples)
        found["language_share"] = ratio("in_language", columns["worded"])
        if any(problem.modes for problem in self.problems):
            found["tries"] = ratio("tries", samples)
            found["gave_up"] = ratio("gave_up", samples)
            found["check_precision"] = ratio("checks_true", columns["checks_claimed"])
        return {name: estimate for name, estimate in found.items() if estimate.n > 0}

    def summary(self) -> dict[str, Any]:
        """The metrics as plain numbers for `report.json`.

        Returns:
            `dict`: Each metric's value; `intervals` with `[low, high]` by metric; `problems`, `samples` and
            `unverifiable` (problems whose gold answer cannot be read); `modes` (share and accuracy of each way of
            answering) and `by_depth` (accuracy, and length of right, finished answers) where they are known; `by_domain`
            and `by_language` ([`Evaluation.breakdown`]) where there is more than one.
        """
        estimates = self.estimates()
        return {
            **{name: estimate.value for name, estimate in estimates.items()},
            "intervals": {name: [estimate.low, estimate.high] for name, estimate in estimates.items()},
            "problems": len(self.problems),
            "samples": sum(problem.samples for problem in self.problems),
            "unverifiable": sum(problem.n == 0 for problem in self.problems),
            **({"modes": modes} if (modes := self._modes()) else {}),
            **({"by_depth": depths} if (depths := self._by_depth()) else {}),
            **{f"by_{name}": parts for name in GROUPS if len(parts := self.breakdown(name)) > 1},
        }

    def groups(self, name: str) -> dict[str, Evaluation]:
        """The problems by domain or by language, as evaluations of their own.

        Args:
            name (`str`): `"domain"` or `"language"`; problems without a language are left out.
        """
        keys = sorted({key for problem in self.problems if (key := getattr(problem, name)) is not None})
        return {key: replace(self, problems=[p for p in self.problems if getattr(p, name) == key]) for key in keys}

    def breakdown(self, name: str) -> dict[str, dict[str, Any]]:
        """Accuracy and language by domain or by language, for `report.json`.

        Args:
            name (`str`): `"domain"` or `"language"`.

        Returns:
            `dict[str, dict]`: For each one `problems`, `pass@1`, `language_share` (where thinking has words) and their
            `intervals`.
        """
        found: dict[str, dict[str, Any]] = {}
        for key, part in self.groups(name).items():
            sums = [[getattr(problem, field) for problem in part.problems] for field in ("in_language", "worded")]
            estimates = {
                "pass@1": bootstrap_mean(part.per_problem("pass@1"), confidence=self.confidence),
                "language_share": bootstrap_ratio(*sums, confidence=self.confidence),
            }
            known = {metric: estimate for metric, estimate in estimates.items() if estimate.n > 0}
            found[key] = {
                "problems": len(part.problems),
                **{metric: estimate.value for metric, estimate in known.items()},
                "intervals": {metric: [estimate.low, estimate.high] for metric, estimate in known.items()},
            }
        return found

    def _modes(self) -> dict[str, dict[str, float]]:
        counts: dict[str, list[int]] = {}
        for problem in self.problems:
            for mode, (drawn, right) in problem.modes.items():
                total = counts.setdefault(mode, [0, 0])
                total[0] += drawn
                total[1] += right
        samples = sum(drawn for drawn, _ in counts.values())
        return {m: {"share": drawn / samples, "pass@1": right / drawn} for m, (drawn, right) in sorted(counts.items())}

    def _by_depth(self) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for depth in sorted({problem.depth for problem in self.problems if problem.depth is not None}):
            group = [problem for problem in self.problems if problem.depth == depth]
            finished = sum(problem.finished_correct for problem in group)
            found[str(depth)] = {
                "problems": len(group),
                "pass@1": sum(p.correct for p in group) / sum(p.samples for p in group),
                "mean_tokens_correct": sum(p.tokens_correct for p in group) / finished if finished else float("nan"),
            }
        return found

    def asdict(self) -> dict[str, Any]:
        """Return everything as JSON-ready data; [`Evaluation.from_dict`] reads it back."""
        return {"cons_k": self.cons_k, "pass_k": list(self.pass_k), "problems": [asdict(p) for p in self.problems]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evaluation:
        """Read back what [`Evaluation.asdict`] wrote."""
        return cls([ProblemScore(**p) for p in data["problems"]], data["cons_k"], tuple(data["pass_k"]))


# What problems are told apart by.
GROUPS = ("domain", "language")
_SUMS = tuple(
    name for name in ProblemScore.__dataclass_fields__ if name not in ("id", "domain", "modes", "depth", "language")
)
_FLOATS = ("repetition", "consensus", "in_language")


def score(
    rows: Sequence[Row],
    completions: Sequence[Sequence[Completion]],
    *,
    cons_k: int | None = None,
    pass_k: Iterable[int] = (),
) -> Evaluation:
    """Score samples of a model.

    Args:
        rows (`Sequence[Row]` of length `n_problems`): The questions.
        completions (`Sequence[Sequence[Completion]]`): The samples of each question, the same number for all.
        cons_k (`int`, *optional*): Votes per majority; all samples by default.
        pass_k (`Iterable[int]`, *optional*): Further k for which pass@k is reported.

    Returns:
        [`Evaluation`]: Scores per problem, with `summary()` for the figures.

    Raises:
        [`DataError`]: If the two lists do not match or the problems have different numbers of samples.
        [`ConfigurationError`]: If `cons_k` or a `pass_k` exceeds the number of samples.
    """
    if len(rows) != len(completions):
        raise DataError(f"{len(rows)} rows but completions for {len(completions)}: one list per row is needed.")
    counts = {len(samples) for samples in completions}
    if len(counts) > 1 or 0 in counts:
        raise DataError(f"Every problem needs the same number of samples, at least one; got {sorted(counts)}.")
    drawn = counts.pop() if counts else 0
    check_k(drawn or 1, cons_k, pass_k)
    cons_k = cons_k or drawn
    problems = [score_row(row, samples, cons_k) for row, samples in zip(rows, completions, strict=True)]
    return Evaluation(problems, cons_k, tuple(pass_k))


def check_k(drawn: int, cons_k: int | None, pass_k: Iterable[int]) -> None:
    """Refuse a cons@k or pass@k that needs more samples than are drawn.

    Raises:
        [`ConfigurationError`]: Naming the k, and the number of samples it needs.
    """
    for name, k in [("cons", cons_k or drawn), *(("pass", k) for k in pass_k)]:
        if not 1 <= k <= drawn:
            raise ConfigurationError(
                f"{name}@{k} cannot be measured with {drawn} samples per question: k must lie in 1…{drawn}. "
                f"Draw at least {k} samples per question (`heldout_samples` in the recipes) or lower k."
            )


def score_row(row: Row, completions: Sequence[Completion], cons_k: int) -> ProblemScore:
    """Score the samples of one question; see [`ProblemScore`] for what is counted."""
    responses = [parse(c.text, prefill=c.prefill, truncated=c.truncated) for c in completions]
    # Samples repeat answers: each distinct one is verified once.
    verdicts: dict[str | None, Verdict] = {}
    for response in responses:
        if response.answer not in verdicts:
            verdicts[response.answer] = verify(response.answer, row)
    correct = [verdicts[response.answer].correct for response in responses]
    tally: Counter[str] = Counter()
    language = question_language(row)
    repeated = in_language = 0.0
    modes: dict[str, list[int]] = {}
    for completion, response, right in zip(completions, responses, correct, strict=True):
        seen = behaviours.measure(completion.text)
        repeated += seen.repetition
        share = language_share(response.reasoning, language) if language else None
        in_language += share or 0.0
        tally.update(
            n=right is not None,
            correct=bool(right),
            lenient=bool(verify_lenient(completion.prefill + completion.text, row).correct),
            well_formed=response.well_formed,
            no_answer=response.answer is None and not completion.truncated,
            truncated=completion.truncated,
            tokens=len(completion.token_ids),
            tokens_correct=len(completion.token_ids) if right and not completion.truncated else 0,
            finished_correct=bool(right) and not completion.truncated,
            reflective=seen.reflective,
            samples=1,
            worded=share is not None,
        )
        if (trace := _countdown_trace(row, response.reasoning)) is not None:
            reference = structured_reference(row.reference)
            claimed = [one for one in trace.tries if one.claimed]
            tally.update(
                tries=len(trace.tries),
                checks_claimed=len(claimed),
                checks_true=sum(one.reaches(reference["numbers"], reference["target"]) for one in claimed),
                gave_up=trace.gave_up,
            )
            count = modes.setdefault(trace.mode, [0, 0])
            count[0] += 1
            count[1] += bool(right)
    votes = [response.answer for response in responses]
    return ProblemScore(
        id=row.id or str(row.prompt),
        domain=row.domain,
        repetition=repeated,
        consensus=consensus(row, votes, verdicts, cons_k),
        modes=modes,
        depth=len(structured_reference(row.reference)["numbers"]) if row.verifier == "expression" else None,
        language=language,
        in_language=in_language,
        **{name: int(tally[name]) for name in _SUMS if name not in _FLOATS},
    )


def question_language(row: Row) -> str | None:
    """Return the language a row's thinking should be in: the row's own, or else the one most words of its question are in.

    Returns:
        `str` or `None`: An ISO 639-1 code; `None` for a question without words, and for languages that this machine cannot
        tell apart (all but English and Chinese need lingua).
    """
    if row.language is None:
        asked = row.prompt if isinstance(row.prompt, str) else row.prompt[-1]["content"]
        return detect_language(asked)
    try:
        check_language(row.language)
    except MissingExtraError:
        return None
    return row.language


def _countdown_trace(row: Row, thought: str) -> Trace | None:
    """The tries of a thought about nano's countdown; other questions have no such trace."""
    if row.verifier != "expression" or not (row.id or "").startswith("countdown/"):
        return None
    return read_trace(thought)
