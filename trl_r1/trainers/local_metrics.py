"""Metrics of an optimizer step, reduced over ranks once instead of once per metric and micro-batch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator
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

    Means over tokens are weighted by the scored tokens of their bin and means over sequences by its rows, so that neither
    depends on the grouping; names that end in `min` or `max` are reduced as such.

    Args:
        trainer ([`PackedGRPOTrainer`]): Whose metrics.
        over_rows (`Collection[str]`, defaults to none): Names of the means over sequences ([`means_over_rows`]).
    """

    def __init__(self, trainer: PackedGRPOTrainer, over_rows: Collection[str] = ()) -> None:
        self.trainer = trainer
        self.over_rows = over_rows
        self._kept: list[tuple[float, float, dict[str, list[float]]]] = []

    def __enter__(self) -> LocalMetrics:
        self._accelerator = self.trainer.accelerator
        self._metrics = self.trainer._metrics["train"]
        self.trainer.accelerator = _LocalAccelerator(self._accelerator)
        return self

    @contextmanager
    def of(self, tokens: int, rows: int = 0) -> Iterator[None]:
        """Keep what is logged inside as that of a bin with so many scored tokens and rows."""
        own: defaultdict[str, list[float]] = defaultdict(list)
        self.trainer._metrics["train"] = own
        try:
            yield
        finally:
            self.trainer._metrics["train"] = self._metrics
        self._kept.append((float(tokens), float(rows), own))

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        self.trainer.accelerator = self._accelerator
        if kind is None:
            for name, reduced in self._reduced().items():
                self._metrics[name].append(reduced)

    def _reduced(self) -> dict[str, float]:
        names = list(dict.fromkeys(name for *_, own in self._kept for name in own))
        sums, extremes = [], []
        for name in names:
            weighted = [(rows if name in self.over_rows else tokens, own) for tokens, rows, own in self._kept]
            pairs = [(w, v) for w, own in weighted for v in own.get(name, ()) if not math.isnan(v)]
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


def means_over_rows(loss_type: str, importance_sampling_level: str, sampling_mode: str) -> frozenset[str]:
    """Names of the metrics that TRL and [`~trl_r1.trainers.R1GRPOTrainer`] average over sequences, not over tokens.

    Args:
        loss_type (`str`): TRL's, or `"r1"`.
        importance_sampling_level (`str`): `"token"` or `"sequence"`.
        sampling_mode (`str`): TRL's `vllm_importance_sampling_mode`.

    Returns:
        `frozenset[str]`: As they are in the log.
    """
    names = {"vespo/phi_seq_mean"}
    if loss_type == "r1":
        names |= {"kl", "ratio/sequence_mean"}
    if importance_sampling_level == "sequence":
        names |= {"cispo_clip_ratio", *(f"clip_ratio/{part}_mean" for part in ("low", "high", "region"))}
    if sampling_mode.startswith("sequence"):
        names.add("sampling/importance_sampling_ratio/mean")
    return frozenset(names)


def _is_minimum(name: str) -> bool:
    return name.endswith(("/min", "_min"))


def _is_maximum(name: str) -> bool:
    return name.endswith(("/max", "_max"))
