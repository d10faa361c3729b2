"""Dynamic sampling and the metrics of a step in two processes; started by `test_lockstep.py`.

Prints one line of JSON per process and case.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, cast

from datasets import Dataset
from transformers import AutoTokenizer

from trl_r1.trainers import R1GRPOConfig, R1GRPOTrainer
from trl_r1.trainers.local_metrics import LocalMetrics


class Watched(R1GRPOTrainer):
    """Keeps what this rank generated, call by call, and how its rewards came out."""

    def generate_group_batch(self, prompts: list[Any]) -> tuple[Any, ...]:
        output = super().generate_group_batch(prompts)
        self.__dict__.setdefault("calls", []).append({"prompts": list(prompts), "completions": list(output[3])})
        return output


def dynamic_sampling(folder: str, hopeless: bool) -> dict[str, Any]:
    """Groups of rank 0 have no spread in their first answers (or in all, if hopeless); those of rank 1 always have."""
    paid: list[list[float]] = []

    def spread_reward(completions: list[str], **kwargs: object) -> list[float]:
        flat = trainer.accelerator.process_index == 0 and (hopeless or not paid)
        paid.append([0.0 if flat else 1000.0 * len(paid) + index for index in range(len(completions))])
        return paid[-1]

    args = R1GRPOConfig(
        tempfile.mkdtemp(), use_vllm=False, use_cpu=True, bf16=False, questions_per_step=4, minibatches_per_rollout=1,
        num_generations=4, per_device_train_batch_size=4, max_completion_length=6, max_steps=1, save_strategy="no",
        dynamic_sampling=True, dynamic_sampling_max_rounds=2, logging_steps=1, report_to="none", disable_tqdm=True,
        gradient_checkpointing=False, seed=1,
    )  # fmt: skip
    trainer = Watched(
        model=folder,
        reward_funcs=[spread_reward],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [f"question {i}" for i in range(64)]}),
        processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
    )
    trainer.train()
    assert trainer._resampler is not None
    logged = next(log for log in trainer.state.log_history if "loss" in log)
    return {
        "case": "hopeless" if hopeless else "resampled",
        "calls": trainer.__dict__["calls"],
        "paid": paid,
        "replaced": trainer._resampler.replaced_groups,
        "table": {name: list(trainer._logs[name]) for name in ("prompt", "completion")},
        "rewards": list(trainer._logs["rewards"]["spread_reward"]),
        "without_spread": logged["groups/without_spread"],
        "gradient": logged["grad_norm"],
        "rank": trainer.accelerator.process_index,
        "processes": trainer.accelerator.num_processes,
    }


# Scored tokens of each rank's bins, and what a loss logs in them. The second bin of rank 0 holds nothing.
LOGGED: list[list[tuple[int, dict[str, float]]]] = [
    [
        (3, {"kl": 1.0, "ratio/min": 0.5, "ratio/max": 2.0, "entropy_min": 4.0, "nowhere": math.nan, "partly": 8.0}),
        (0, {"kl": 99.0, "ratio/min": 0.0, "ratio/max": 99.0, "entropy_min": 0.0, "nowhere": math.nan, "partly": 0.0,
             "step_time": 2.0}),
    ],
    [
        (1, {"kl": 5.0, "ratio/min": 0.7, "ratio/max": 1.5, "entropy_min": 3.0, "nowhere": math.nan,
             "partly": math.nan}),
        (4, {"kl": 2.0, "ratio/min": 0.9, "ratio/max": 3.0, "entropy_min": 6.0, "nowhere": math.nan,
             "partly": math.nan, "step_time": 4.0}),
    ],
]  # fmt: skip


def metrics() -> dict[str, Any]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    host: Any = SimpleNamespace(accelerator=accelerator, _metrics={"train": defaultdict(list)})
    with LocalMetrics(cast(Any, host)) as local:
        for tokens, values in LOGGED[accelerator.process_index]:
            with local.of(tokens):
                for name, value in values.items():
                    host._metrics["train"][name].append(value)
    return {
        "case": "metrics",
        "reduced": dict(host._metrics["train"]),
        "rank": accelerator.process_index,
        "processes": accelerator.num_processes,
    }


if __name__ == "__main__":
    for result in (
        dynamic_sampling(sys.argv[1], hopeless=False),
        dynamic_sampling(sys.argv[1], hopeless=True),
        metrics(),
    ):
        print("RESULT " + json.dumps(result), flush=True)
