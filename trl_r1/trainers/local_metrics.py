"""Metrics of an optimizer step, reduced over ranks once instead of once per metric and micro-batch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from trl_r1.trainers.packed import PackedGRPOTrainer


class _LocalAccelerator:
    """An accelerator whose reductions leave a rank's own value as it is."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather(self, tensor: Any) -> Any:
        return tensor

    def gather_for_metrics(self, tensor: Any) -> Any:
        return tensor

    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor


class LocalMetrics:
    """While open, what a loss logs is kept per bin; on leaving it is averaged over bins and ranks in one reduction.

    Means are weighted by the tokens of their bin, so that they do not depend on the grouping; names that end in `min` or
    `max` are reduced as such.

    Args:
        trainer ([`PackedGRPOTrainer`]): Whose metrics.
    """

    def __init__(self, trainer: PackedGRPOTrainer) -> None:
        self.trainer = trainer
        self._kept: list[tuple[float, dict[str, list[float]]]] = []

    def __enter__(self) -> LocalMetrics:
        self._accelerator = self.trainer.accelerator
        self._metrics = self.trainer._metrics["train"]
        self.trainer.accelerator = _LocalAccelerator(self._accelerator)
        return self

    @contextmanager
    def of(self, tokens: int) -> Iterator[None]:
        """Keep what is logged inside as that of a bin with so many scored tokens."""
        own: defaultdict[str, list[float]] = defaultdict(list)
        self.trainer._metrics["train"] = own
        try:
            yield
        finally:
            self.trainer._metrics["train"] = self._metrics
        self._kept.append((float(tokens), own))

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        self.trainer.accelerator = self._accelerator
        if kind is None:
            for name, reduced in self._reduced().items():
                self._metrics[name].append(reduced)

    def _reduced(self) -> dict[str, float]:
        names = list(dict.fromkeys(name for _, own in self._kept for name in own))
        sums, extremes = [], []
        for name in names:
            pairs = [(w, v) for w, own in self._kept for v in own.get(name, ()) if not math.isnan(v)]
            if name == "step_time":  # counted once, by the last bin, whatever it holds
                sums.append((sum(v for _, v in pairs), float(len(pairs))))
            else:
                sums.append((sum(w * v for w, v in pairs), sum(w for w, _ in pairs)))
            held = [v for w, v in pairs if w > 0]
            sign = -1.0 if _is_minimum(name) else 1.0
            extremes.append(max((sign * v for v in held), default=-math.inf))
        device = self._accelerator.device
        totals = self._accelerator.reduce(torch.tensor(sums, dtype=torch.float64, device=device), reduction="sum")
        highest = self._accelerator.gather(torch.tensor([extremes], dtype=torch.float64, device=device)).amax(dim=0)
        result = {}
        for name, (total, weight), extreme in zip(names, totals.tolist(), highest.tolist(), strict=True):
            if _is_minimum(name) or _is_maximum(name):
                result[name] = math.nan if math.isinf(extreme) else (-extreme if _is_minimum(name) else extreme)
            else:
                result[name] = total / weight if weight else math.nan
        return result


def _is_minimum(name: str) -> bool:
    return name.endswith(("/min", "_min"))


def _is_maximum(name: str) -> bool:
    return name.endswith(("/max", "_max"))
