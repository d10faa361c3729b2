"""Steps of stock TRL and of our trainer on the same stored rollout; started by `test_packed_ranks.py` in two processes.

Prints one line of JSON per process and loss: the largest difference of any gradient, losses, and how rows were grouped.
With `--plugin fsdp2` the model is sharded.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from stored_rollouts import replayed, stored_rollout
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOTrainer

from trl_r1.trainers import R1GRPOConfig, R1GRPOTrainer


def lengths_reward(completions: list[str], **kwargs: object) -> list[float]:
    return [float(len(text) % 3) for text in completions]


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.first: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.first:
            for name, parameter in model.named_parameters():
                gradient = parameter.grad
                if gradient is not None:
                    full = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
                    self.first[name.replace("_orig_mod.", "").removeprefix("module.")] = full.detach().float().clone()


def take_steps(trainer_class: type, folder: str, loss_type: str, rows: int, **settings: object) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    args = R1GRPOConfig(
        tempfile.mkdtemp(), use_vllm=False, learning_rate=1e-3, questions_per_step=rows // 4, num_generations=4,
        per_device_train_batch_size=4, max_completion_length=16, max_steps=2, beta=0.05, loss_type=loss_type,
        save_strategy="no", logging_steps=1, report_to="none", disable_tqdm=True, gradient_checkpointing=False, seed=1,
        max_grad_norm=0.0, sync_ref_model=False, **settings,
    )  # fmt: skip
    gradients = Gradients()
    trainer = replayed(trainer_class, stored_rollout(rows))(
        model=folder,
        reward_funcs=[lengths_reward],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [f"question {i}" for i in range(24)]}),
        processing_class=tokenizer,
        callbacks=[gradients],
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "gradients": gradients.first,
        "loss": [entry["loss"] for entry in log],
        "kl": [entry["kl"] for entry in log],
        "bins": [entry.get("microbatch/count") for entry in log],
        "rank": trainer.accelerator.process_index,
        "processes": trainer.accelerator.num_processes,
        "kind": str(trainer.accelerator.distributed_type),
        "attention": getattr(getattr(trainer, "attention", None), "kind", None),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("losses", nargs="+")
    parser.add_argument("--packing", default="sdpa")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    settings: dict[str, object] = {
        "use_cpu": not arguments.cuda,
        "bf16": arguments.cuda and arguments.packing != "sdpa",
    }
    for loss_type in arguments.losses:
        stock = take_steps(GRPOTrainer, arguments.folder, loss_type, 32, **settings)
        ours = take_steps(
            R1GRPOTrainer, arguments.folder, loss_type, 32, packing=arguments.packing, max_tokens_per_microbatch=40,
            **settings,
        )  # fmt: skip
        expected, found = stock.pop("gradients"), ours.pop("gradients")
        scale = max(float(g.abs().max()) for g in expected.values())
        error = max(float((found[name] - g).abs().max()) for name, g in expected.items()) / scale
        result = {
            "loss_type": loss_type,
            "error": error,
            "same_names": found.keys() == expected.keys(),
            "stock": stock,
            "ours": ours,
        }
        print("RESULT " + json.dumps(result), flush=True)
        if arguments.out and ours["rank"] == 0:
            arguments.out.mkdir(parents=True, exist_ok=True)
            (arguments.out / f"{ours['kind'].split('.')[-1].lower()}_{loss_type}.json").write_text(
                json.dumps(result, indent=1)
            )


if __name__ == "__main__":
    main()
