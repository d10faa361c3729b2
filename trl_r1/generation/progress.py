"""A stream of samples into a store, with a bar that says how fast and how well it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from trl_r1.generation.base import Sample, Sampler, SampleRequest, SamplingSettings
from trl_r1.generation.requests import process_place
from trl_r1.generation.shards import SampleStore


class SampleProgress:
    """A progress bar over completions: count, tokens per second, share accepted so far.

    Args:
        total (`int`, *optional*): Completions wanted, those of earlier starts included.
        done (`int`, defaults to 0): Completions of earlier starts.
        title (`str`, defaults to `"Sampling"`): Said before the bar.
        enabled (`bool`, *optional*): By default on the launch's first process only.

    Attributes:
        tokens (`int`): Completion tokens since the start, where the backend knows token ids.
        accepted (`int`): Completions accepted.
        judged (`int`): Completions of which it is known whether they are accepted.
    """

    def __init__(
        self, total: int | None = None, done: int = 0, title: str = "Sampling", enabled: bool | None = None
    ) -> None:
        enabled = process_place()[0] == 0 if enabled is None else enabled
        self.tokens = self.accepted = self.judged = 0
        self._started = time.monotonic()
        self._bar = tqdm(total=total, initial=done, desc=title, unit="sample", disable=not enabled, smoothing=0.05)

    def __enter__(self) -> SampleProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens per second since the start."""
        return self.tokens / max(1e-9, time.monotonic() - self._started)

    @property
    def acceptance(self) -> float | None:
        """Share of the judged completions that were accepted; `None` before the first."""
        return self.accepted / self.judged if self.judged else None

    def sampled(self, sample: Sample) -> None:
        """Count a completion."""
        self.tokens += len(sample.completion.token_ids)
        self._say()
        self._bar.update()

    def verdict(self, accepted: bool | None) -> None:
        """Count a verdict; `None` is none."""
        if accepted is not None:
            self.judged += 1
            self.accepted += accepted
            self._say()

    def _say(self) -> None:
        parts = [f"{self.tokens_per_second:.0f} tok/s"] if self.tokens else []
        if self.acceptance is not None:
            parts.append(f"accepted {self.acceptance:.1%}")
        self._bar.set_postfix_str(", ".join(parts), refresh=False)


def sample_into_store(
    sampler: Sampler,
    requests: Iterable[SampleRequest],
    settings: SamplingSettings,
    store: SampleStore,
    *,
    facts: Callable[[Sample], Mapping[str, Any]] | None = None,
    progress: SampleProgress | None = None,
) -> None:
    """Sample what a store does not hold yet. Whatever ends it, what has arrived is on disk.

    Args:
        sampler ([`~trl_r1.generation.base.Sampler`]): Who writes.
        requests (`Iterable[SampleRequest]`): All requests, also those that are done.
        settings ([`~trl_r1.generation.base.SamplingSettings`]): How.
        store ([`SampleStore`]): Where to.
        facts (`Callable`, *optional*): What to store beside a sample (JSON). `correct`, a bool, is counted as acceptance.
        progress ([`SampleProgress`], *optional*): Told of each completion.
    """
    try:
        for sample in sampler.stream(store.remaining(requests), settings):
            known = dict(facts(sample)) if facts is not None else {}
            store.add(sample, **known)
            if progress is not None:
                progress.sampled(sample)
                progress.verdict(known.get("correct"))
    finally:
        store.flush()
