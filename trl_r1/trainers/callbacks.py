"""Callbacks of [`~trl_r1.trainers.R1GRPOTrainer`]: reference resets under PEFT, a graceful stop, alarms."""

from __future__ import annotations

import logging
import math
import signal
import statistics
from types import FrameType
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from trl_r1.trainers.checkpoints import snapshot_adapter

logger = logging.getLogger(__name__)


class AdapterReferenceReset(TrainerCallback):
    """R1's hard reset of the reference under PEFT, where TRL refuses `sync_ref_model`."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the reference's adapter to the policy's every `ref_model_sync_steps` steps, by `ref_model_mixup_alpha`."""
        if state.global_step % args.ref_model_sync_steps == 0:
            model = kwargs["model"]
            snapshot_adapter(getattr(model, "module", model), alpha=args.ref_model_mixup_alpha)


class StopAtRolloutBoundary(TrainerCallback):
    """Turn the first Ctrl-C (or SIGTERM) into a checkpoint at the end of the rollout; a second one aborts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Install the handlers; off the main thread Python allows none, and Ctrl-C keeps its usual meaning."""
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:
                return

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self.give_back()
            raise KeyboardInterrupt
        self.asked = True
        logger.warning("Stopping: a checkpoint is written when this rollout ends. Press Ctrl-C again to abort at once.")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop once a rollout's last update is done and any rank was asked to."""
        asked = self.asked
        if args.world_size > 1:  # ranks may get the signal at different steps: they must stop at the same one
            flag = torch.tensor(float(asked), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            asked = bool(flag.item())
        if asked and state.global_step % args.steps_per_rollout == 0:
            control.should_save = control.should_training_stop = True

    def give_back(self) -> None:
        """Put the handlers back that were there before; also after a training that failed (see [`GivesSignalsBack`])."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


class GivesSignalsBack(Trainer):
    """A trainer after whose `train()`, however it ends, Ctrl-C is what it was: a notebook goes on after an error."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers."""
        try:
            return super().train(*args, **kwargs)
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, StopAtRolloutBoundary):
                    callback.give_back()


class TrainingAlarms(TrainerCallback):
    """Warn when a run goes wrong in one of the ways R1 reproductions report.

    Args:
        truncated_share (`float`, defaults to 0.2): Share of completions cut off at the length cap.
        kl_factor (`float`, defaults to 10.0): KL above this many times its recent median, and above 0.1.
        entropy_share (`float`, defaults to 0.05): Entropy below this share of the first logged value.
        unscorable_share (`float`, defaults to 0.05): Share of completions that no reward could score.
    """

    def __init__(
        self,
        truncated_share: float = 0.2,
        kl_factor: float = 10.0,
        entropy_share: float = 0.05,
        unscorable_share: float = 0.05,
    ) -> None:
        self.truncated_share = truncated_share
        self.kl_factor = kl_factor
        self.entropy_share = entropy_share
        self.unscorable_share = unscorable_share
        self._kl: list[float] = []
        self._first_entropy: float | None = None
        self.raised: set[str] = set()

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at the latest log and warn once per kind of trouble."""
        logs = logs or {}
        if (logs.get("completions/truncated") or 0.0) > self.truncated_share:
            self._warn(
                "truncated",
                f"{logs['completions/truncated']:.0%} of completions are cut off at the length cap: raise "
                "max_completion_length, or they teach the model that long thinking fails.",
                state,
            )
        if (logs.get("completions/unscorable") or 0.0) > self.unscorable_share:
            self._warn(
                "unscorable",
                f"{logs['completions/unscorable']:.0%} of completions have no verdict and teach nothing: look for gold answers "
                "that cannot be read (`--preview`), a judge or executor that is not reached, or a batch deadline that is too short.",
                state,
            )
        kl = logs.get("kl")
        if kl is not None and math.isfinite(kl):
            if len(self._kl) >= 5 and kl > max(0.1, self.kl_factor * statistics.median(self._kl[-20:])):
                self._warn("kl", f"KL to the reference jumped to {kl:.3g}: lower the learning rate.", state)
            self._kl.append(kl)
        entropy = logs.get("entropy")
        if entropy is not None and math.isfinite(entropy):
            if self._first_entropy is None:
                self._first_entropy = entropy
            elif entropy < self.entropy_share * self._first_entropy:
                self._warn(
                    "entropy",
                    f"Entropy fell from {self._first_entropy:.3g} to {entropy:.3g}: the policy has stopped exploring.",
                    state,
                )

    def _warn(self, kind: str, message: str, state: TrainerState) -> None:
        if kind not in self.raised and state.is_world_process_zero:
            logger.warning("Step %d: %s", state.global_step, message)
        self.raised.add(kind)
