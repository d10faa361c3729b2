"""A sampler that decodes stored completions as an engine does: some at once, a token of each per step, short ones end first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from trl_r1.generation.base import Sample, SampleRequest, SamplingSettings
from trl_r1.prompts import PromptTemplate
from trl_r1.rows import Completion, Row


class ReplaySampler:
    """Gives each request the completion that is stored under its key; `tokens` counts what was decoded, cancelled or not."""

    tokenizer = None

    def __init__(self, completions: Mapping[str, Completion], width: int = 8, name: str = "replay") -> None:
        self.completions, self.width, self.name = completions, width, name
        self.template = PromptTemplate("base")
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.tokens = 0
        self._running: dict[str, int] = {}

    def stream(self, requests: Iterable[SampleRequest], settings: SamplingSettings) -> Iterator[Sample]:
        requests, self._running = iter(requests), {}
        while True:
            while len(self._running) < self.width and (request := next(requests, None)) is not None:
                self.asked.append(request.key)
                self._running[request.key] = len(self.completions[request.key].token_ids)
            if not self._running:
                return
            key = min(self._running, key=lambda name: self._running[name])
            steps = self._running.pop(key)
            self.tokens += steps * (1 + len(self._running))
            self._running = {name: left - steps for name, left in self._running.items()}
            yield Sample(key, 0, self.completions[key])

    def cancel(self, key: str) -> None:
        self._running.pop(key, None)
        self.cancelled.append(key)

    def close(self) -> None:
        self._running = {}


@lru_cache(maxsize=1)
def _stored() -> dict:
    return json.loads(Path(__file__).with_name("nano_completions.json").read_text(encoding="utf-8"))


def nano_rows() -> list[Row]:
    """Twelve questions of three domains that nano's base answers right now and then."""
    return [Row.from_columns(columns) for columns in _stored()["rows"]]


def nano_completions() -> dict[str, Completion]:
    """Eight completions of each that nano's base wrote at temperature 1, by the keys of rejection sampling's requests."""
    return {
        key: Completion(one["text"], tuple(one["token_ids"]), one["finish_reason"])
        for key, one in _stored()["completions"].items()
    }
