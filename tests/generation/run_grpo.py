"""Plain TRL with the colocated engine, as a user would run it; started by `test_trainer.py`, also in two processes.

Prints one line of JSON per process: world size, the gaps TRL itself measured at each step, what the trainer restored.
"""

from __future__ import annotations

import json
import sys

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import grpo_trainer

from trl_r1.generation.engine import ColocatedEngine, colocated_engine


def distinct_words(completions: list[str], **kwargs: object) -> list[float]:
    return [float(len(set(text.split())) + len(text) % 5) for text in completions]


def main(checkpoint: str, output_dir: str, correction: str = "correction") -> None:
    corrects = correction == "correction"
    dataset = Dataset.from_dict({"prompt": [f"w{i} w6 w7" for i in range(5, 69)]})
    args = GRPOConfig(
        output_dir=output_dir,
        use_vllm=True,
        vllm_max_model_length=64,
        use_cpu=True,
        bf16=False,
        max_steps=5 if corrects else 2,
        vllm_importance_sampling_correction=corrects,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=12,
        temperature=0.8,
        learning_rate=3e-2,
        lr_scheduler_type="constant",
        beta=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        gradient_checkpointing=False,
    )
    with colocated_engine({"max_num_seqs": 16}, need_logprobs=corrects):
        trainer = GRPOTrainer(checkpoint, reward_funcs=distinct_words, args=args, train_dataset=dataset)
    trainer.train()
    history = trainer.state.log_history
    result = {
        "rank": trainer.accelerator.process_index,
        "processes": trainer.accelerator.num_processes,
        "engine": type(trainer.vllm_generation) is ColocatedEngine,
        "restored": grpo_trainer.VLLMGeneration is not ColocatedEngine,
        "gaps": [log[key] for log in history for key in log if key == "sampling/sampling_logp_difference/mean"],
        "losses": [log["loss"] for log in history if "loss" in log],
        "gradients": [log["grad_norm"] for log in history if "grad_norm" in log],
        "finish_reasons": len(trainer.vllm_generation.finish_reasons),
        "first": trainer.vllm_generation.sample([[5, 6, 7]], seed=1, max_tokens=4)[0][0].token_ids,
        "sampled": trainer.vllm_generation.sample([[5, 6, 7]], max_tokens=8)[0][0].token_ids,
    }
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
