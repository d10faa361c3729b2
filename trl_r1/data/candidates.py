"""Sampled completions with their verdicts, which of them count as accepted, and which is drawn for training in an epoch."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trl_r1.behaviours import words
from trl_r1.exceptions import unknown
from trl_r1.rows import Completion

# How a row's candidate of an epoch is chosen.
DRAWS = ("uniform", "shortest", "diverse")
OVER_CAP = "cap"
# Words of the sequences by which two solutions are compared: long enough to tell wordings apart, short enough to recur.
_SHINGLE = 3


@dataclass(frozen=True)
class Candidate:
    """One completion of a question, verified and filtered.

    Args:
        index (`int`): Its place in the order in which completions of the question were asked for.
        text (`str`): The completion, without its prompt and prefill.
        prefill (`str`, defaults to `""`): What the prompt had opened of it.
        finish_reason (`str`, defaults to `"stop"`): `"stop"` or `"length"`.
        tokens (`int`, *optional*): Its length, EOS included, where the sampler knows it.
        correct (`bool`, *optional*): The verdict; `None` when it could not be told.
        reason (`str`, *optional*): Why it is not accepted, such as `"wrong: …"` or a filter's reason.
        accepted (`bool`, defaults to `False`): Whether it is to be trained on; set by [`accept_in_order`].
    """

    index: int
    text: str
    prefill: str = ""
    finish_reason: str = "stop"
    tokens: int | None = None
    correct: bool | None = None
    reason: str | None = None
    accepted: bool = False

    @property
    def full_text(self) -> str:
        """What the model wrote with what the prompt had opened for it."""
        return self.prefill + self.text

    @property
    def completion(self) -> Completion:
        """The completion as verifiers and filters take it, without its token ids."""
        return Completion(self.text, (), self.finish_reason, self.prefill)

    def asdict(self) -> dict[str, Any]:
        """Return the columns of the candidate."""
        return dict(vars(self))

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Candidate:
        """Build a candidate from its columns, ignoring others."""
        return cls(**{name: columns[name] for name in cls.__dataclass_fields__ if columns.get(name) is not None})


def accept_in_order(candidates: Iterable[Candidate], max_accepted: int | None) -> list[Candidate]:
    """Mark the first usable candidates, in sample order, as accepted.

    Taking them in the order in which they finished would favour short ones (trap 33); in the order in which they were asked
    for, every one of them is a fair draw.

    Args:
        candidates (`Iterable[Candidate]`): Of one question; usable are those without a `reason`.
        max_accepted (`int`, *optional*): How many at most; `None` for all.

    Returns:
        `list[Candidate]`: By index; usable ones beyond the cap have the reason `"cap"`.
    """
    marked, count = [], 0
    for candidate in sorted(candidates, key=lambda one: one.index):
        if candidate.reason is not None and candidate.reason != OVER_CAP:
            marked.append(replace(candidate, accepted=False))
            continue
        fits = max_accepted is None or count < max_accepted
        count += fits
        marked.append(replace(candidate, accepted=fits, reason=None if fits else OVER_CAP))
    return marked


def draw_order(key: str, texts: Sequence[str], lengths: Sequence[int], draw: str, seed: int) -> list[int]:
    """Return the order in which a row's candidates are gone through; epoch `e` trains on entry `e % len(order)`.

    It depends on nothing but its arguments. For `"uniform"`, see [`drawn`], which shuffles anew each time round.

    Args:
        key (`str`): The row's key.
        texts (`Sequence[str]`): The accepted candidates.
        lengths (`Sequence[int]`): Their lengths, in any unit.
        draw (`str`): `"shortest"` first; `"diverse"`: each one as unlike those before it as can be; `"uniform"`.
        seed (`int`): Another seed shuffles otherwise.

    Returns:
        `list[int]`: Places in `texts`.
    """
    if draw not in DRAWS:
        raise unknown("draw", draw, DRAWS)
    if draw == "shortest":
        return sorted(range(len(texts)), key=lambda place: (lengths[place], place))
    if draw == "diverse" and len(texts) > 2:
        return _unlike(texts, random.Random(f"{seed}/{key}").randrange(len(texts)))
    return _shuffled(key, len(texts), seed, 0)


def drawn(key: str, order: Sequence[int], epoch: int, draw: str, seed: int) -> int:
    """Return the candidate of an epoch: all of them are gone through before one is repeated.

    Args:
        key (`str`): The row's key.
        order (`Sequence[int]`): From [`draw_order`], not empty.
        epoch (`int`): Counted from 0.
        draw (`str`): As for [`draw_order`].
        seed (`int`): As for [`draw_order`].

    Returns:
        `int`: Place of the candidate.
    """
    turn, place = divmod(epoch, len(order))
    if draw == "uniform" and turn:
        return _shuffled(key, len(order), seed, turn)[place]
    return order[place]


def _shuffled(key: str, count: int, seed: int, turn: int) -> list[int]:
    return random.Random(f"{seed}/{key}/{turn}").sample(range(count), count)


def _unlike(texts: Sequence[str], first: int) -> list[int]:
    """Order by greatest distance (Jaccard, over word sequences) to the nearest one taken before."""
    shingles = [_shingles(text) for text in texts]
    order = [first]
    nearest = {place: 2.0 for place in range(len(texts)) if place != first}
    while nearest:
        last = shingles[order[-1]]
        for place in nearest:
            shared, both = len(shingles[place] & last), len(shingles[place] | last)
            nearest[place] = min(nearest[place], 1 - shared / both if both else 0.0)
        order.append(max(nearest, key=lambda place: (nearest[place], -place)))
        del nearest[order[-1]]
    return order


def _shingles(text: str) -> set[tuple[str, ...]]:
    pieces = words(text)
    return {tuple(pieces[start : start + _SHINGLE]) for start in range(max(1, len(pieces) - _SHINGLE + 1))}
