"""Which completion is asked for next: as few as will do, in an order that leaves the engine nothing to wait for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from trl_r1.generation.base import SampleRequest
from trl_r1.rows import Row


@dataclass
class RowState:
    """What is known of one row while it is sampled.

    Args:
        key (`str`): The row's key.
        row ([`Row`]): The row.
        samples (`int`): Most completions to ask for.
        max_accepted (`int`, *optional*): Usable completions wanted; `None` for all.
        found (`dict[int, bool]`): By index, whether a completion is usable; filled from what is stored already.
    """

    key: str
    row: Row
    samples: int
    max_accepted: int | None
    found: dict[int, bool] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.todo = deque(index for index in range(self.samples) if index not in self.found)
        self.usable = sum(self.found.values())
        self.done = False

    def cutoff(self) -> int | None:
        """Index of the last completion that counts, as far as is known; later ones cannot matter any more.

        An earlier one that turns out usable moves it forward, never back.
        """
        if self.max_accepted is None or self.usable < self.max_accepted:
            return None
        return sorted(index for index, usable in self.found.items() if usable)[self.max_accepted - 1]

    def wants(self, spread: float) -> bool:
        """Whether another completion should be asked for now.

        Args:
            spread (`float`): How many times the completions that are expected to be needed may be under way.
        """
        if self.done or not self.todo:
            return False
        if self.max_accepted is None:
            return True
        cutoff = self.cutoff()
        if cutoff is not None:
            return self.todo[0] < cutoff  # a gap that an earlier start left
        # Laplace's estimate of the row's own rate of usable completions; optimistic before anything is known.
        rate = (self.usable + 1) / (len(self.found) + 1)
        return len(self.running) < spread * (self.max_accepted - self.usable) / rate

    def ask(self) -> int:
        """Take the next index."""
        index = self.todo.popleft()
        self.running.add(index)
        return index

    def settle(self, index: int, usable: bool) -> None:
        """Note a verdict."""
        self.running.discard(index)
        if index not in self.found:
            self.found[index] = usable
            self.usable += usable

    def superfluous(self) -> list[int]:
        """Return what is under way and cannot count any more."""
        cutoff = self.cutoff()
        return [] if cutoff is None else [index for index in self.running if index > cutoff]

    def finished(self) -> bool:
        """Whether the first usable completions in sample order are settled, or all of them are used up."""
        cutoff = self.cutoff()
        if cutoff is None:
            return not self.todo and not self.running
        return not any(index < cutoff for index in (*self.running, *self.todo))


class Schedule:
    """Hands out requests for the rows of a run, one completion each.

    Rows that need more come before rows that were not begun, so few rows are open at a time. A request asks for one
    completion, so that its key names its index: whatever else is asked, its seed and thus its text are the same.

    Args:
        rows (`Iterable[RowState]`): Rows to sample.
        spread (`float`, defaults to 2.0):
            At the end of a run, when no new rows are left to fill the engine with: how many times the expected need of
            a row may be under way.
        stop_early (`bool`, defaults to `True`): `False` asks for every completion of every row.
    """

    def __init__(self, rows: Iterable[RowState], spread: float = 2.0, stop_early: bool = True) -> None:
        self.open: dict[str, RowState] = {}
        self.asked = 0
        self._new: Iterator[RowState] | None = iter(rows)
        self._hungry: deque[RowState] = deque()
        self._spread, self._stop_early = spread, stop_early
        self._running: dict[str, tuple[RowState, int]] = {}

    def requests(self) -> Iterator[SampleRequest]:
        """Yield requests until none can be named at the moment; call again once more verdicts are known."""
        while (found := self._next()) is not None:
            state, index = found
            key = f"{state.key}#{index}"
            self._running[key] = state, index
            self.asked += 1
            yield SampleRequest(key, state.row.prompt)

    def take(self, request_key: str) -> tuple[RowState, int] | None:
        """Return the row and index of a finished request, `None` when it was cancelled."""
        return self._running.pop(request_key, None)

    def settle(self, state: RowState, index: int, usable: bool) -> list[str]:
        """Note a verdict.

        Returns:
            `list[str]`: Keys of requests to cancel.
        """
        state.settle(index, usable)
        cancelled = []
        if self._stop_early:
            for other in state.superfluous():
                state.running.discard(other)
                if self._running.pop(f"{state.key}#{other}", None) is not None:
                    cancelled.append(f"{state.key}#{other}")
        if self._wants(state, 1.0) and state not in self._hungry:
            self._hungry.append(state)
        return cancelled

    def close(self, state: RowState) -> None:
        """Ask nothing more of a row."""
        state.done = True
        self.open.pop(state.key, None)

    def finished(self, state: RowState) -> bool:
        """Whether a row needs nothing more."""
        return state.finished() if self._stop_early else not state.todo and not state.running

    def unanswered(self) -> Mapping[str, tuple[RowState, int]]:
        """Requests that were neither answered nor cancelled."""
        return self._running

    def _wants(self, state: RowState, spread: float) -> bool:
        if not self._stop_early:
            return bool(state.todo) and not state.done
        return state.wants(spread)

    def _next(self) -> tuple[RowState, int] | None:
        while self._hungry:
            state = self._hungry[0]
            if self._wants(state, 1.0):
                return state, state.ask()
            self._hungry.popleft()
        while self._new is not None:
            fresh = next(self._new, None)
            if fresh is None:
                self._new = None
                break
            self.open[fresh.key] = fresh
            if self._wants(fresh, 1.0):
                self._hungry.append(fresh)
                return fresh, fresh.ask()
        for state in self.open.values():
            if self._wants(state, self._spread):
                return state, state.ask()
        return None
