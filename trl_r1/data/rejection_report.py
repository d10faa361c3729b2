"""What a rejection-sampling run made: acceptance by domain and difficulty, the bias toward easy prompts, reasons, speed."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from trl_r1.data.candidates import Candidate, accept_in_order
from trl_r1.data.filters import reason_name

# Difficulty by a row's own pass rate. The bounds are ours. [?]
BANDS = (("never", 0.0), ("hard", 0.25), ("medium", 0.75), ("easy", 1.0))


def pass_rate(candidates: Sequence[Candidate], max_accepted: int | None) -> float | None:
    """Estimate how often a row is answered right, from samples that may have been stopped early.

    Sampling that stops at the a-th success overstates the rate by `a / n`; `(a − 1) / (n − 1)` does not (Haldane 1945).
    Only samples up to the last accepted one are counted: which later ones finished depends on their length.

    Args:
        candidates (`list[Candidate]`): Of one row.
        max_accepted (`int`, *optional*): The cap that sampling stopped at.

    Returns:
        `float` or `None`: In [0, 1]; `None` when no verdict could be given.
    """
    told = [one for one in candidates if one.correct is not None]
    accepted = [one.index for one in accept_in_order(told, max_accepted) if one.accepted]
    reached = max_accepted is not None and len(accepted) == max_accepted
    return share_right(told, accepted[-1] if reached else None)


def share_right(candidates: Sequence[Candidate], stopped_at: int | None) -> float | None:
    """Estimate how often a row is answered right; see [`pass_rate`].

    Args:
        candidates (`list[Candidate]`): Of one row.
        stopped_at (`int`, *optional*): Index of the accepted candidate at which sampling stopped; `None` when it did not.

    Returns:
        `float` or `None`: In [0, 1]; `None` when no verdict could be given.
    """
    told = [one for one in candidates if one.correct is not None]
    if stopped_at is not None:
        told = [one for one in told if one.index <= stopped_at]
        right = sum(one.correct is True for one in told)
        if 1 < right < len(told):
            return (right - 1) / (len(told) - 1)
    return fmean(one.correct is True for one in told) if told else None


@dataclass
class _Group:
    """Counts over the rows of one domain or one band."""

    rows: int = 0
    rows_accepted: int = 0
    samples: int = 0
    correct: int = 0
    accepted: int = 0
    tokens: list[int] = field(default_factory=list)

    def add(self, candidates: Sequence[Candidate]) -> None:
        taken = [one for one in candidates if one.accepted]
        self.rows += 1
        self.rows_accepted += bool(taken)
        self.samples += len(candidates)
        self.correct += sum(one.correct is True for one in candidates)
        self.accepted += len(taken)
        self.tokens += [one.tokens for one in taken if one.tokens is not None]

    def asdict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "rows_with_accepted": self.rows_accepted,
            "samples": self.samples,
            "correct": round(self.correct / self.samples, 4) if self.samples else None,
            "accepted": self.accepted,
            "acceptance": round(self.accepted / self.samples, 4) if self.samples else None,
            "mean_tokens": round(fmean(self.tokens), 1) if self.tokens else None,
        }


class Tally:
    """Sums up rows with candidates as they pass.

    Args:
        max_accepted (`int`, *optional*): Cap per row.
    """

    def __init__(self, max_accepted: int | None) -> None:
        self._max_accepted = max_accepted
        self._total = _Group()
        self._domains: dict[str, _Group] = defaultdict(_Group)
        self._bands: dict[str, _Group] = {name: _Group() for name, _ in BANDS}
        self._rejects: Counter[str] = Counter()
        self._none_accepted: list[str] = []
        self._rates: list[tuple[float, int]] = []

    def passing(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """Yield rows, counted.

        Args:
            rows (`Iterable[dict]`): As [`~trl_r1.data.rejection_store.StoredCandidates.rows`] yields them.
        """
        for row in rows:
            self.add(row)
            yield row

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row and its candidates."""
        candidates = [Candidate.from_columns(one) for one in row["candidates"]]
        rate = pass_rate(candidates, self._max_accepted)
        for group in (self._total, self._domains[row["domain"]]):
            group.add(candidates)
        self._rejects.update(reason_name(one.reason) for one in candidates if one.reason is not None)
        accepted = sum(one.accepted for one in candidates)
        if not accepted:
            self._none_accepted.append(row["id"])
        if rate is not None:
            self._bands[band(rate)].add(candidates)
            self._rates.append((rate, accepted))

    def asdict(self) -> dict[str, Any]:
        """Return the report.

        Returns:
            `dict`: `total`, `by_domain`, `by_difficulty` (bands of the rows' own pass rates), `rejects` (candidates by reason),
            `easy_prompt_bias` and `none_accepted` (ids of the rows without an accepted candidate).
        """
        return {
            "total": self._total.asdict(),
            "by_domain": {name: group.asdict() for name, group in sorted(self._domains.items())},
            "by_difficulty": {name: group.asdict() for name, group in self._bands.items() if group.rows},
            "rejects": dict(self._rejects.most_common()),
            "easy_prompt_bias": easy_prompt_bias(self._rates),
            "none_accepted": {"rows": len(self._none_accepted), "ids": self._none_accepted},
        }


def band(rate: float) -> str:
    """Return the difficulty of a pass rate."""
    return next(name for name, most in BANDS if rate <= most)


def easy_prompt_bias(rates: Sequence[tuple[float, int]]) -> dict[str, float | None]:
    """Say how much easier the prompts of the accepted samples are than the prompts that were asked (trap 33).

    Args:
        rates (`list[tuple[float, int]]`): Pass rate and accepted samples of every row.

    Returns:
        `dict`: Mean pass rate over `prompts`, over `accepted` samples, their difference `bias`, and the bias that there
        would be `without_cap`, when every right sample was taken.
    """
    if not rates:
        return {"prompts": None, "accepted": None, "bias": None, "without_cap": None}
    prompts, taken = fmean(rate for rate, _ in rates), sum(count for _, count in rates)
    accepted = sum(rate * count for rate, count in rates) / taken if taken else None
    squared, summed = sum(rate**2 for rate, _ in rates), sum(rate for rate, _ in rates)
    figures = {
        "prompts": prompts,
        "accepted": accepted,
        "bias": None if accepted is None else accepted - prompts,
        "without_cap": squared / summed - prompts if summed else None,
    }
    return {name: None if value is None else round(value, 4) for name, value in figures.items()}


def speed(folder: Path, accepted: int) -> dict[str, Any]:
    """Sum up the figures of all processes and starts; processes run side by side, so the slowest one's time counts.

    Args:
        folder (`Path`): The run's, with a `speed-<rank>.json` of each process.
        accepted (`int`): Accepted samples, of all starts.

    Returns:
        `dict`: `seconds`, `samples`, `tokens`, both per second, and `starts`.
    """
    figures = [read_figures(path) for path in sorted(folder.glob("speed-*.json"))]
    seconds = max((one.get("seconds", 0.0) for one in figures), default=0.0)
    samples, tokens = (sum(one.get(name, 0) for one in figures) for name in ("samples", "tokens"))
    return {
        "seconds": round(seconds, 2),
        "samples": samples,
        "tokens": tokens,
        "tokens_per_s": round(tokens / seconds, 1) if seconds else 0.0,
        "accepted_per_s": round(accepted / seconds, 3) if seconds else 0.0,
        "starts": max((one.get("starts", 0) for one in figures), default=0),
    }


def read_figures(path: Path) -> dict[str, Any]:
    """Read one process's figures; empty when there are none yet."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def render(found: Mapping[str, Any]) -> str:
    """Set a report as text for a terminal."""
    lines = [f"{'':12} {'rows':>7} {'with accepted':>14} {'samples':>8} {'accepted':>9} {'rate':>6} {'tokens':>8}"]
    groups = [("all", found["total"]), *found["by_domain"].items(), *found["by_difficulty"].items()]
    for name, group in groups:
        rate = "–" if group["acceptance"] is None else f"{group['acceptance']:.1%}"
        tokens = "–" if group["mean_tokens"] is None else f"{group['mean_tokens']:.0f}"
        lines.append(
            f"{name:12} {group['rows']:>7} {group['rows_with_accepted']:>14} {group['samples']:>8} "
            f"{group['accepted']:>9} {rate:>6} {tokens:>8}"
        )
    rejects = ", ".join(f"{name} {count}" for name, count in found["rejects"].items()) or "none"
    lines.append(f"not accepted: {rejects}")
    bias = found["easy_prompt_bias"]
    if bias["bias"] is not None:
        lines.append(
            f"easy-prompt bias: mean pass rate {bias['prompts']:.1%} of prompts, {bias['accepted']:.1%} of accepted samples "
            f"({bias['bias']:+.1%}; {bias['without_cap']:+.1%} without a cap)"
        )
    none = found["none_accepted"]
    if none["rows"]:
        named = ", ".join(none["ids"][:5]) + (", …" if none["rows"] > 5 else "")
        lines.append(f"none accepted: {none['rows']} rows ({named})")
    speed = found.get("speed")
    if speed:
        lines.append(
            f"{speed['samples']} samples in {speed['seconds']:.1f} s: {speed['tokens_per_s']:.0f} tokens/s, "
            f"{speed['accepted_per_s']:.2f} accepted/s"
        )
    return "\n".join(lines)
