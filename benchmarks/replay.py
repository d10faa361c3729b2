"""Stored rollouts in place of generation: the real trainers, fed the same completions, so that only training is measured.

[`replayed`] makes a subclass of any GRPO trainer of TRL in which two hooks give stored ids: the one that tokenises prompts
and the one that generates. Old and reference passes, loss, backward and optimizer are the trainer's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import TrainerCallback, TrainerControl, TrainerState
from trl import GRPOTrainer

# R1-like lengths: the long tail has this deviation of the logarithm and, with a cap of 8,192, a mean of 2,154.
SIGMA = 0.9
MEAN_SHARE_OF_CAP = 2154 / 8192
# How far a stored sampling log-probability lies from the policy's: an engine in bfloat16 differs by about as much.
SAMPLING_NOISE = 0.02


def completion_lengths(kind: str, count: int, cap: int, seed: int = 0) -> list[int]:
    """Return the lengths of one rollout's completions.

    Args:
        kind (`str`): `"long_tail"`: quantiles of a log-normal, clipped at the cap, the longest at the cap, with a mean of
            26 % of it; `"uniform"`: a quarter of the cap each.
        count (`int`): Number of completions.
        cap (`int`): Longest completion, in tokens.
        seed (`int`, defaults to 0): Of the order.
    """
    if kind == "uniform":
        return [cap // 4] * count
    if kind != "long_tail":
        raise ValueError(f"lengths={kind!r}: allowed are 'long_tail' and 'uniform'.")
    scores = [NormalDist().inv_cdf((index + 0.5) / count) for index in range(count)]

    def lengths(median: float) -> list[int]:
        clipped = [max(1, min(cap, round(median * math.exp(SIGMA * score)))) for score in scores]
        return [*clipped[:-1], cap]

    low, high = 1.0, float(cap)
    while high - low > 0.25:
        middle = (low + high) / 2
        low, high = (middle, high) if sum(lengths(middle)) < MEAN_SHARE_OF_CAP * cap * count else (low, middle)
    return np.random.default_rng(seed).permutation(lengths(high)).tolist()


@dataclass(frozen=True)
class StoredRollouts:
    """Random token ids of given lengths: the same for every trainer, different for every rollout.

    Args:
        lengths (`list[int]`): Of one rollout's completions, over all ranks. The longest are cut off, without EOS.
        cap (`int`): Length from which a completion has no EOS.
        prompt_length (`int`): Tokens of each prompt.
        group (`int`): Completions that share a prompt.
        words (`np.ndarray`): Ids to draw from.
        eos (`int`): Id that ends a completion.
        seed (`int`, defaults to 0): Of the ids.
    """

    lengths: Sequence[int]
    cap: int
    prompt_length: int
    group: int
    words: np.ndarray
    eos: int
    seed: int = 0

    def _draw(self, *key: int, size: int) -> list[int]:
        return np.random.default_rng([self.seed, *key]).choice(self.words, size).tolist()

    def prompt(self, rollout: int, row: int) -> list[int]:
        """Return the prompt ids of a row; the rows of a group share them."""
        return self._draw(rollout, row // self.group, 0, size=self.prompt_length)

    def completion(self, rollout: int, row: int) -> list[int]:
        """Return the completion ids of a row, EOS last unless it was cut off."""
        ids = self._draw(rollout, row, 1, size=self.lengths[row])
        return ids if len(ids) >= self.cap else [*ids[:-1], self.eos]


def stored_reward(completions: list[Any], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """Score a completion by its ids alone: as good as random, different within a group, the same for every trainer."""
    return [(sum(ids) * 2_654_435_761 % 2**32) / 2**32 for ids in completion_ids]


def synchronise() -> None:
    """Wait for the device, so that the clock reads what was computed and not what was queued."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class ReplayMixin:
    """The hooks of a trainer that gives stored rollouts. Set `rollouts` before training."""

    rollouts: StoredRollouts
    excluded_s: float = 0.0
    replayed: int = 0
    _rollout: int = -1
    _sampling_logps: bool = False

    @contextmanager
    def _excluded(self) -> Iterator[None]:
        """Leave generation and rewards out of the step's time."""
        synchronise()
        start = time.perf_counter()
        try:
            yield
        finally:
            synchronise()
            self.excluded_s += time.perf_counter() - start

    def _generate(self, prompts: list[Any]) -> Any:
        with self._excluded():
            return super()._generate(prompts)  # type: ignore[misc]

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self._excluded():
            return super()._calculate_rewards(*args, **kwargs)  # type: ignore[misc]

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        self._rollout += 1
        return [self.rollouts.prompt(self._rollout, row) for row in self._rows_here(prompts)], None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        rows = self._rows_here(prompt_ids)
        completions = [self.rollouts.completion(self._rollout, row) for row in rows]
        self.replayed += 1
        if not self._sampling_logps:
            return completions, None
        logps = [
            self._logps(row, *ids) for row, ids in zip(rows, zip(prompt_ids, completions, strict=True), strict=True)
        ]
        return completions, logps

    def _rows_here(self, prompts: list[Any]) -> range:
        first = self.accelerator.process_index * len(prompts)  # type: ignore[attr-defined]
        return range(first, first + len(prompts))

    @torch.no_grad()
    def _logps(self, row: int, prompt: list[int], completion: list[int]) -> list[float]:
        """Return what an engine would have reported: the policy's own log-probabilities, a little off."""
        ids = torch.tensor([[*prompt, *completion]], device=self.accelerator.device)  # type: ignore[attr-defined]
        stock: Any = GRPOTrainer._get_per_token_logps_and_entropies  # one path for every variant
        logps, _, _ = stock(self, self.model, ids, torch.ones_like(ids), len(completion))  # type: ignore[attr-defined]
        noise = np.random.default_rng([self.rollouts.seed, self._rollout, row, 2]).normal(
            0, SAMPLING_NOISE, len(completion)
        )
        return (logps[0].float().cpu() + torch.tensor(noise, dtype=torch.float32)).tolist()


def replayed(base: type, *, sampling_logps: bool = False) -> type:
    """Return a subclass of a trainer that replays stored rollouts.

    Args:
        base (`type`): [`~trl.GRPOTrainer`] or a subclass.
        sampling_logps (`bool`, defaults to `False`): Whether to give log-probabilities as an engine would.
    """
    return type(f"Replayed{base.__name__}", (ReplayMixin, base), {"_sampling_logps": sampling_logps})


class AbsentEngine:
    """Stands where TRL builds its vLLM client while a trainer with `use_vllm` is constructed; it never generates."""

    def __init__(self, **kwargs: Any) -> None:
        self.vllm_client = self
        self.max_completion_length: int | None = None

    def get_server_info(self) -> dict[str, Any]:
        """Return what TRL asks a server for."""
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}


@contextmanager
def without_engine() -> Iterator[None]:
    """Let TRL's trainers be built with `use_vllm=True, vllm_mode="server"` where no server runs."""
    from trl.trainer import grpo_trainer

    before = grpo_trainer.VLLMGeneration
    grpo_trainer.VLLMGeneration = AbsentEngine  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        grpo_trainer.VLLMGeneration = before  # type: ignore[misc]


class TrimmedGRPOTrainer(GRPOTrainer):
    """Stock TRL with the least that one would do about padding: each micro-batch is cut to its own longest row."""

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **multimodal: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        size = batch_size or len(input_ids)
        parts = []
        for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True):
            used = mask.any(dim=0).nonzero()
            start, stop = int(used[0]), int(used[-1]) + 1
            cut = ids.size(1) - stop
            logps, entropies, _ = super()._get_per_token_logps_and_entropies(
                model, ids[:, start:stop], mask[:, start:stop], logits_to_keep - cut, compute_entropy=compute_entropy
            )
            parts.append([None if part is None else functional.pad(part, (0, cut)) for part in (logps, entropies)])
        logps, entropies = zip(*parts, strict=True)
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None


class StepClock(TrainerCallback):
    """Seconds of each optimizer step, without what the trainer excludes, and the peak of the memory after warm-up.

    Args:
        warmup (`int`): Optimizer steps that only warm up.
        profile_from (`int`, *optional*): Optimizer steps after which a profile is taken, not measured.
    """

    def __init__(self, warmup: int, profile_from: int | None = None) -> None:
        self.warmup = warmup
        self.profile_from = profile_from
        self.seconds: list[float] = []
        self.excluded: list[float] = []
        self.peak_bytes = 0
        self.profiler: Any = None
        self.profile_s = 0.0
        self._trainer: Any
        self._last = 0.0

    def attach(self, trainer: Any) -> None:
        """Watch a trainer."""
        self._trainer = trainer
        trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock."""
        self._restart()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Read the clock once the device is done."""
        synchronise()
        seconds = time.perf_counter() - self._last - self._trainer.excluded_s
        if self.profiler is not None:
            self.profile_s += seconds
        else:
            self.seconds.append(seconds)
            self.excluded.append(self._trainer.excluded_s)
        if torch.cuda.is_available():
            if state.global_step <= self.warmup:
                torch.cuda.reset_peak_memory_stats()
            elif self.profiler is None:
                self.peak_bytes = torch.cuda.max_memory_allocated()
        if state.global_step == self.profile_from:
            from profile_step import start_profiler

            self.profiler = start_profiler()
        self._restart()

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close the profile."""
        if self.profiler is not None:
            synchronise()
            self.profiler.stop()

    def _restart(self) -> None:
        synchronise()
        self._trainer.excluded_s = 0.0
        self._last = time.perf_counter()
