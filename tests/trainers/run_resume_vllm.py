"""A run with a real vLLM engine, the same one resumed, and resumed without a hand-over; started by `test_resume_vllm.py`.

Prints one line of JSON: per run, the gap between engine and trainer that TRL measured at every rollout, and the gap of
given completions after training.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer

from trl_r1.trainers import R1GRPOConfig, R1GRPOTrainer

RESUMED_FROM = 4


def length_reward(completions: list[str], **kwargs: object) -> list[float]:
    return [float(len(completion.encode()) % 7) for completion in completions]


def build(model: str, folder: Path) -> R1GRPOTrainer:
    # Rates that move the policy far from the checkpoint that the engine starts with.
    args = R1GRPOConfig(
        str(folder), use_cpu=True, bf16=False, use_vllm=True, vllm_max_model_length=64,
        vllm_gpu_memory_utilization=0.2, vllm_engine_kwargs={"max_num_seqs": 16}, vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_correction=True, learning_rate=3e-2, lr_scheduler_type="constant", beta=0.0,
        questions_per_step=4, minibatches_per_rollout=2, num_generations=4, per_device_train_batch_size=4,
        max_completion_length=12, max_steps=8, save_strategy="steps", save_steps=RESUMED_FROM, logging_steps=1,
        report_to="none", disable_tqdm=True, gradient_checkpointing=False, seed=1,
    )  # fmt: skip
    return R1GRPOTrainer(
        model=model,
        reward_funcs=[length_reward],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [f"question {i}" for i in range(24)]}),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
    )


@torch.no_grad()
def gap(trainer: R1GRPOTrainer) -> float:
    """The mean difference between what the engine and the trainer give to the same completions."""
    engine: Any = trainer.engine
    if engine.hand_over:
        engine.sync_weights()
    prompts = [[10 + i, 20, 30] for i in range(8)]
    completions = [[40 + i, 50 + 2 * i, 60, 70 + i] for i in range(8)]
    scored = engine.score(prompts, completions)
    differences = []
    for prompt, completion, engine_logps in zip(prompts, completions, scored, strict=True):
        logits = trainer.model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0].tolist()
        differences += [abs(a - b) for a, b in zip(engine_logps, logps, strict=True)]
    return sum(differences) / len(differences)


def run(model: str, folder: Path, *, resumed: bool = False, hand_over: bool = True) -> dict[str, Any]:
    trainer = build(model, folder)
    assert trainer.engine is not None
    trainer.engine.hand_over = hand_over
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{RESUMED_FROM}") if resumed else None)
    history = trainer.state.log_history
    name = "sampling/sampling_logp_difference/mean"
    return {
        "gaps": {log["step"]: log[name] for log in history if name in log},
        "gap": gap(trainer),
    }


def main(model: str, folder: Path) -> None:
    results = {"whole": run(model, folder / "whole")}
    for name in ("resumed", "not_handed_over"):
        shutil.copytree(folder / "whole" / f"checkpoint-{RESUMED_FROM}", folder / name / f"checkpoint-{RESUMED_FROM}")
        results[name] = run(model, folder / name, resumed=True, hand_over=name == "resumed")
    print("RESULT " + json.dumps(results), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
