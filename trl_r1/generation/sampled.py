"""What is kept of each decoding step: sampled log-probabilities as arrays, and which completions run in circles.

vLLM's engine makes objects of every token's log-probability on its way to the answer (a slice, a tuple, three lists and
six list entries), which costs a step of 256 sequences about 2 ms of Python. An in-process engine hands the scheduler one
array per step: [`StepRecorder`] keeps that array's first column (the sampled token's) and gives each completion its row
when it ends. The same place ends completions that repeat themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from trl_r1.exceptions import ConfigurationError, unknown

# Steps between two looks for loops: 32 tokens more cost less than looking at every token.
_LOOK_EVERY = 32
_FIRST_SLOTS = 64


@dataclass(frozen=True)
class LoopLimit:
    """When a completion counts as running in circles: its end repeats one short pattern often enough.

    Args:
        max_period (`int`, defaults to 64): Longest pattern, in tokens.
        repeats (`int`, defaults to 8): How often the pattern must stand at the end, at least.
        min_tokens (`int`, defaults to 256): Tokens that the repetition must cover, at least. Guards long rows of digits.
    """

    max_period: int = 64
    repeats: int = 8
    min_tokens: int = 256

    def __post_init__(self) -> None:
        if self.max_period < 1 or self.repeats < 2 or self.min_tokens < 2:
            raise ConfigurationError(
                f"stop_loops has max_period={self.max_period}, repeats={self.repeats}, min_tokens={self.min_tokens}. "
                "Allowed: a period of at least 1, at least 2 repeats and 2 tokens."
            )

    @classmethod
    def parse(cls, value: LoopLimit | Mapping[str, int] | bool | None) -> LoopLimit | None:
        """Read the option: `None` or `False` is off, `True` the defaults, a mapping changes some of them."""
        if value is None or value is False:
            return None
        if value is True:
            return cls()
        if isinstance(value, LoopLimit):
            return value
        names = [field.name for field in fields(cls)]
        for name in value:
            if name not in names:
                raise unknown("entry of stop_loops", name, names, "`true` takes the defaults.")
        return cls(**value)

    def covered(self, period: int) -> int:
        """Tokens at the end that must repeat with this period."""
        return period * max(self.repeats, -(-self.min_tokens // period))

    @property
    def window(self) -> int:
        """Tokens that have to be looked at."""
        return max(self.covered(period) for period in range(1, self.max_period + 1))

    def loops(self, tails: np.ndarray) -> np.ndarray:
        """Say which rows end in a loop.

        Args:
            tails (`np.ndarray` of shape `(rows, window)`, integers):
                The last tokens of each completion, right-aligned. What is missing on the left is filled with values
                that occur nowhere else.

        Returns:
            `np.ndarray` of shape `(rows,)`, boolean.
        """
        found = np.zeros(len(tails), dtype=bool)
        for period in range(1, self.max_period + 1):
            short = tails[:, -min(16 + period, self.covered(period)) :]  # most rows fail here
            rows = np.flatnonzero(~found & (short[:, period:] == short[:, :-period]).all(axis=1))
            if len(rows):
                whole = tails[rows, -self.covered(period) :]
                found[rows] = (whole[:, period:] == whole[:, :-period]).all(axis=1)
        return found


class StepRecorder:
    """Sits between vLLM's scheduler and what the scheduler makes of a step's output.

    Installed on one in-process engine. Does nothing until [`start`] is called, so other callers of the engine get vLLM's
    own answers.

    Args:
        llm (`vllm.LLM`): An engine whose core runs in this process and samples one token per step and sequence.

    Attributes:
        looping (`int`): Completions of the last `generate` that were ended because they ran in circles.
    """

    def __init__(self, llm: Any) -> None:
        core = llm.llm_engine.engine_core.engine_core
        self._scheduler = core.scheduler
        self._states: dict[str, Any] = llm.llm_engine.output_processor.request_states
        self._update: Callable[..., Any] = self._scheduler.update_from_output
        self._scheduler.update_from_output = self.update_from_output
        self._length = llm.llm_engine.model_config.max_model_len
        self._limit: LoopLimit | None = None
        self._keeps = False
        self._values = np.empty((0, self._length), dtype=np.float32)
        self.looping = 0
        self.stop()

    def start(self, *, logprobs: bool, limit: LoopLimit | None) -> None:
        """Begin a rollout.

        Args:
            logprobs (`bool`): Keep log-probabilities; every request must have asked vLLM for `logprobs=0`.
            limit (`LoopLimit`, *optional*): End completions that loop.
        """
        self.stop()
        self._keeps, self._limit = logprobs, limit
        self.looping = 0

    def stop(self) -> None:
        """End a rollout, also one that failed."""
        self._keeps, self._limit = False, None
        self._slots: dict[str, int] = {}
        self._free = list(range(len(self._values)))
        self._counts = np.zeros(len(self._values), dtype=np.int64)
        self._order: list[str] = []
        self._rows = np.empty(0, dtype=np.int64)
        self._steps = 0

    def update_from_output(self, scheduler_output: Any, model_output: Any) -> Any:
        """Stand in for `Scheduler.update_from_output`."""
        logprobs = model_output.logprobs if self._keeps else None
        if logprobs is not None:
            model_output.logprobs = None  # so that nothing is sliced out of it per request
        outputs = self._update(scheduler_output, model_output)
        if not (self._keeps or self._limit):
            return outputs
        ones = [one for answer in outputs.values() for one in answer.outputs]
        self._steps += 1
        if self._limit is not None and self._steps % _LOOK_EVERY == 0:
            self._end_loops(ones)
        if self._keeps:
            self._keep(None if logprobs is None else logprobs.logprobs[:, 0], model_output.req_id_to_index, ones)
        return outputs

    def _keep(self, column: np.ndarray | None, index: Mapping[str, int], ones: list[Any]) -> None:
        sampled = [one.request_id for one in ones if one.new_token_ids]
        if sampled:
            assert column is not None
            if sampled != self._order:
                self._order, self._rows = sampled, np.array([self._slot(name) for name in sampled])
            self._values[self._rows, self._counts[self._rows]] = column[[index[name] for name in sampled]]
            self._counts[self._rows] += 1
        for one in ones:
            if one.finish_reason is not None:
                self._give(one.request_id)

    def _slot(self, name: str) -> int:
        slot = self._slots.get(name)
        if slot is None:
            if not self._free:
                before, more = len(self._values), max(_FIRST_SLOTS, len(self._values))
                self._values = np.concatenate([self._values, np.empty((more, self._length), dtype=np.float32)])
                self._counts = np.concatenate([self._counts, np.zeros(more, dtype=np.int64)])
                self._free = list(range(before, before + more))
            slot = self._slots[name] = self._free.pop()
            self._counts[slot] = 0
        return slot

    def _give(self, name: str) -> None:
        """Hang a finished request's log-probabilities where its answer is made from."""
        slot = self._slots.pop(name, None)
        state = self._states.get(name)
        values = np.empty(0, dtype=np.float32) if slot is None else self._values[slot, : self._counts[slot]].copy()
        if state is not None:
            state.logprobs_processor.logprobs = values
        if slot is not None:
            self._free.append(slot)
            self._order = []

    def _end_loops(self, ones: list[Any]) -> None:
        """End what loops as if it had reached its length: no EOS, `"length"`."""
        from vllm.v1.engine import FinishReason
        from vllm.v1.request import RequestStatus

        assert self._limit is not None
        window, shortest = self._limit.window, min(map(self._limit.covered, range(1, self._limit.max_period + 1)))
        requests = self._scheduler.requests
        running = [
            one
            for one in ones
            if one.finish_reason is None
            and one.request_id in requests
            and requests[one.request_id].num_output_tokens >= shortest
        ]
        if not running:
            return
        tails = -1 - np.arange(window) + np.zeros((len(running), 1), dtype=np.int64)  # no token is negative
        for row, one in zip(tails, running, strict=True):
            ids = requests[one.request_id].output_token_ids[-window:]
            row[window - len(ids) :] = ids
        ended = [running[row] for row in np.flatnonzero(self._limit.loops(tails))]
        if not ended:
            return
        self._scheduler.finish_requests([one.request_id for one in ended], RequestStatus.FINISHED_LENGTH_CAPPED)
        for one in ended:
            one.finish_reason = FinishReason.LENGTH
        self.looping += len(ended)
