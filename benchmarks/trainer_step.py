"""Time of one optimizer step without generation: the same stored completions through stock TRL and through `trl_r1`.

    python benchmarks/trainer_step.py --quick                            # CPU, nano, under a minute
    python benchmarks/trainer_step.py --model 0.5b                       # every variant, one process each
    python benchmarks/trainer_step.py --model 0.5b --variant ours --out rows    # one variant, to combine later
    accelerate launch --num_processes 2 benchmarks/trainer_step.py --model 0.5b --variant ours --out rows
    python benchmarks/trainer_step.py --combine rows --results benchmarks/results/trainer_step.json

Prints one JSON object per row, then a table. A row whose losses or gradient norms differ from stock's gets no speed.
The protocol: medians of at least 5 steps after 2 warm-ups, peak allocated memory, loss-masked
completion tokens per second of wall time. With `--schedule r1` a "step" is a sixteenth of a whole rollout's 16 updates,
old and reference passes included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from rows import STEP_COLUMNS, machine, parallelism
from runner import add_arguments, run

BENCHMARK = "trainer_step"
R1_MINIBATCHES = 16  # of one rollout (arXiv 2501.12948v2 §2.1)
R1_BETA = 0.001


@dataclass(frozen=True)
class Variant:
    """One way to take the step.

    Args:
        trainer (`str`): `"stock"`, `"trimmed"` or `"ours"`.
        settings (`dict`): Fields of the trainer's configuration that differ from the case's.
        dtype (`str`, *optional*): Of the weights; the case's by default.
    """

    trainer: str
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None


_BEST = {
    "packing": "auto",
    "max_tokens_per_microbatch": "auto",
    "gradient_checkpointing": False,
    "compile_layers": True,
}
_PACKED = _BEST | {"max_tokens_per_microbatch": None, "compile_layers": False}

VARIANTS: dict[str, Variant] = {
    "stock": Variant("stock", {"gradient_checkpointing": True}),
    "stock_nockpt": Variant("stock", {"gradient_checkpointing": False}),
    "stock_trimmed": Variant("trimmed", {"gradient_checkpointing": True}),
    "stock_float32": Variant("stock", {"gradient_checkpointing": True}, dtype="float32"),
    # Equal settings: the same micro-batches, the same checkpointing; only packed.
    "ours_ckpt": Variant("ours", _PACKED | {"gradient_checkpointing": True}),
    "ours_nockpt": Variant("ours", _PACKED),
    "ours": Variant("ours", _BEST),
    # Each feature off in turn.
    "ours_no_packing": Variant("ours", _BEST | {"packing": "none", "max_tokens_per_microbatch": None}),
    "ours_no_budget": Variant("ours", _BEST | {"max_tokens_per_microbatch": None}),
    "ours_no_compile": Variant("ours", _BEST | {"compile_layers": False}),
    "ours_no_budget_ckpt": Variant("ours", _BEST | {"max_tokens_per_microbatch": None, "gradient_checkpointing": True}),
    "ours_budget_ckpt": Variant("ours", _BEST | {"gradient_checkpointing": True}),
    "ours_old_pass": Variant("ours", _BEST | {"skip_old_logps": False}),
    # On a CPU packing is only for checking (one call of attention per sequence); here so that --quick checks it.
    "ours_sdpa_bins": Variant("ours", _PACKED | {"packing": "sdpa", "max_tokens_per_microbatch": 160}),
}
_SPECIAL = ("stock_float32", "ours_old_pass", "ours_sdpa_bins")
DEFAULT_VARIANTS = [name for name in VARIANTS if name not in _SPECIAL]
# Compiling takes longer on a CPU than the whole quick run.
QUICK_VARIANTS = ["stock", "stock_trimmed", "ours_ckpt", "ours_no_compile", "ours_sdpa_bins"]
QUICK = {
    "model": "nano", "cap": 96, "prompt_length": 16, "completions": 16, "num_generations": 4, "micro_batch": 4,
    "steps": 2, "warmup": 1, "dtype": "float32",
}  # fmt: skip


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="0.5b", help="0.5b, 1.5b (random weights), nano, or a checkpoint folder")
    parser.add_argument("--variant", nargs="*", choices=list(VARIANTS), help="default: every one that applies")
    parser.add_argument("--schedule", choices=["on_policy", "r1"], default="on_policy")
    parser.add_argument("--lengths", choices=["long_tail", "uniform"], default="long_tail")
    parser.add_argument("--cap", type=int, default=8192, help="longest completion, in tokens")
    parser.add_argument("--prompt_length", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--completions", type=int, help="of one rollout; default 64, with --schedule r1 256")
    parser.add_argument("--num_generations", type=int, default=16, help="completions per prompt")
    parser.add_argument(
        "--micro_batch", type=int, default=4, help="rows of a micro-batch where there is no token budget"
    )
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument(
        "--importance", action="store_true", help="vLLM importance correction on, with stored log-probs"
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the weights")
    parser.add_argument("--steps", type=int, default=5, help="measured steps (with --schedule r1: rollouts of 16)")
    parser.add_argument("--warmup", type=int, default=2, help="steps (or rollouts) before")
    parser.add_argument("--set", dest="settings", default="{}", help="further fields for our trainer, as JSON")
    parser.add_argument("--profile", action="store_true", help="also take one profiled step and write its kernels")
    add_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="a small case on the CPU, in one process")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        vars(arguments).update(QUICK | ({"completions": 64} if arguments.schedule == "r1" else {}))
    if arguments.completions is None:
        arguments.completions = 256 if arguments.schedule == "r1" else 64
    if arguments.variant is None:
        arguments.variant = QUICK_VARIANTS if arguments.quick else DEFAULT_VARIANTS
        if arguments.importance:
            arguments.variant = [*arguments.variant, "ours_old_pass"]
    arguments.num_generations = min(arguments.num_generations, arguments.completions)
    return arguments


def sizes(arguments: argparse.Namespace, processes: int) -> dict[str, int]:
    """Return TRL's sizes for the schedule: micro-batches per update and per rollout.

    Raises:
        `ValueError`: The completions do not split into whole micro-batches.
    """
    minibatches = R1_MINIBATCHES if arguments.schedule == "r1" else 1
    rows = arguments.micro_batch * processes
    if arguments.completions % (rows * minibatches):
        raise ValueError(
            f"--completions {arguments.completions} does not split into {minibatches} updates of micro-batches of "
            f"{arguments.micro_batch} on {processes} process(es): give a multiple of {rows * minibatches}."
        )
    accumulation = arguments.completions // (rows * minibatches)
    return {
        "per_device_train_batch_size": arguments.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": accumulation * minibatches,
    }


def settings(arguments: argparse.Namespace, variant: Variant, processes: int, folder: str) -> dict[str, Any]:
    """Return the fields of the trainer's configuration: the same for every variant, then the variant's own.

    The learning rate is R1's order of magnitude over three, so that bfloat16 weights hardly move and steps stay comparable.
    """
    cuda = not arguments.quick and _cuda()
    minibatches = R1_MINIBATCHES if arguments.schedule == "r1" else 1
    common: dict[str, Any] = sizes(arguments, processes) | {
        "output_dir": folder,
        "num_generations": arguments.num_generations,
        "max_completion_length": arguments.cap,
        "temperature": arguments.temperature,
        "beta": R1_BETA if arguments.schedule == "r1" else 0.0,
        "loss_type": "dapo",
        "epsilon": 0.2,
        "scale_rewards": "group",
        "use_bias_correction_kl": False,
        "sync_ref_model": False,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "max_steps": (arguments.warmup + arguments.steps + int(arguments.profile)) * minibatches,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
        "bf16": arguments.dtype == "bfloat16",
        "use_cpu": not cuda,
        "use_vllm": arguments.importance,
        "model_init_kwargs": {"dtype": variant.dtype or arguments.dtype},
    }
    if arguments.importance:
        # Ratios per token: a sequence's product over thousands of tokens would amplify bfloat16's error beyond comparison.
        common |= {"vllm_mode": "server", "vllm_importance_sampling_mode": "token_truncate"}
    extra = json.loads(arguments.settings) if variant.trainer == "ours" else {}
    return common | variant.settings | extra


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def build_trainer(arguments: argparse.Namespace, variant: Variant, path: str, folder: str) -> Any:
    """Build the real trainer, with stored rollouts instead of generation."""
    from contextlib import nullcontext

    from datasets import Dataset
    from replay import TrimmedGRPOTrainer, replayed, stored_reward, without_engine
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from trl_r1.trainers import R1GRPOConfig, R1GRPOTrainer
    from trl_r1.trainers.grpo_config import launched_world_size

    classes: dict[str, tuple[Any, Any]] = {
        "stock": (GRPOTrainer, GRPOConfig),
        "trimmed": (TrimmedGRPOTrainer, GRPOConfig),
        "ours": (R1GRPOTrainer, R1GRPOConfig),
    }
    base, config = classes[variant.trainer]
    fields = settings(arguments, variant, launched_world_size(), folder)
    unknown = sorted(set(fields) - set(config.__dataclass_fields__))
    if unknown:
        raise ValueError(f"{config.__name__} has no fields {unknown}: this variant needs another version of trl_r1.")
    questions = arguments.completions // arguments.num_generations
    with without_engine() if arguments.importance else nullcontext():
        return replayed(base, sampling_logps=arguments.importance)(
            model=path,
            reward_funcs=[stored_reward],
            args=config(**fields),
            train_dataset=Dataset.from_dict({"prompt": [f"w{index}" for index in range(questions)]}),
            processing_class=AutoTokenizer.from_pretrained(path, padding_side="left"),
        )


def run_variant(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Take the steps of one variant in this process and return its row, complete but for the comparison."""
    import numpy as np
    from replay import StepClock, StoredRollouts, completion_lengths
    from shapes import checkpoint
    from transformers import PrinterCallback

    variant, minibatches = VARIANTS[name], R1_MINIBATCHES if arguments.schedule == "r1" else 1
    path = checkpoint(arguments.model)
    warmup, steps = arguments.warmup * minibatches, arguments.steps * minibatches
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(arguments, variant, path, folder)
        tokenizer = trainer.processing_class
        lengths = completion_lengths(arguments.lengths, arguments.completions, arguments.cap)
        trainer.rollouts = StoredRollouts(
            lengths=lengths,
            cap=arguments.cap if arguments.lengths == "long_tail" else arguments.cap + 1,
            prompt_length=arguments.prompt_length,
            group=arguments.num_generations,
            words=np.setdiff1d(np.arange(trainer.model.config.vocab_size), tokenizer.all_special_ids),
            eos=tokenizer.eos_token_id,
        )
        clock = StepClock(warmup, profile_from=warmup + steps if arguments.profile else None)
        clock.attach(trainer)
        trainer.remove_callback(PrinterCallback)  # rows are printed at the end
        trainer.train()
    rollouts = arguments.warmup + arguments.steps + int(arguments.profile)
    if trainer.replayed != rollouts:
        raise RuntimeError(
            f"{trainer.replayed} rollouts were replayed instead of {rollouts}: the schedule is not as asked."
        )
    return _row(arguments, name, trainer, clock, lengths)


def _row(arguments: argparse.Namespace, name: str, trainer: Any, clock: Any, lengths: list[int]) -> dict[str, Any]:
    """Gather what was measured into a row."""
    import torch
    from limits import Cost, device_speed
    from profile_step import kernel_table

    minibatches = R1_MINIBATCHES if arguments.schedule == "r1" else 1
    accelerator, warmup = trainer.accelerator, arguments.warmup * minibatches
    measured = clock.seconds[warmup:]
    rounds = [sum(measured[i : i + minibatches]) / minibatches for i in range(0, len(measured), minibatches)]
    step_s = statistics.median(rounds)
    peaks = accelerator.gather(torch.tensor([clock.peak_bytes], device=accelerator.device, dtype=torch.float64))
    facts, processes = machine(), accelerator.num_processes
    speed = device_speed(facts["hardware"], arguments.peak_tflops)
    limit_s = None
    if speed is not None:
        # The old pass is stock's own on-policy, so it is no part of the limit there; off-policy nothing can do without.
        limit_s = (
            Cost.of(trainer.model.config).training_seconds(
                arguments.prompt_length,
                lengths,
                extra_forwards=2 if arguments.schedule == "r1" else 0,
                flops_per_s=speed[0] * processes,
            )
            / minibatches
        )
    history = [entry for entry in trainer.state.log_history if "loss" in entry][: len(clock.seconds)]
    row: dict[str, Any] = {
        "benchmark": BENCHMARK,
        "variant": arguments.label or name,
        "model": arguments.model,
        "cap": arguments.cap,
        "lengths": arguments.lengths,
        "schedule": arguments.schedule,
        "checkpointing": bool(trainer.args.gradient_checkpointing),
        "step_s": round(step_s, 5),
        "steps_s": [round(seconds, 5) for seconds in rounds],
        "tokens_per_s": round(sum(lengths) / minibatches / step_s, 1),
        "peak_gib": round(peaks.max().item() / 2**30, 3) if clock.peak_bytes else None,
        "losses": [round(entry["loss"], 8) for entry in history],
        "grad_norms": [round(entry["grad_norm"], 8) for entry in history],
        "limit_s": None if limit_s is None else round(limit_s, 5),
        "limit_share": None if limit_s is None else round(limit_s / step_s, 4),
        "attention": getattr(getattr(trainer, "attention", None), "kind", trainer.model.config._attn_implementation),
        "tokens_per_microbatch": getattr(trainer, "max_tokens_per_microbatch", None),
        "mean_length": round(sum(lengths) / len(lengths), 1),
        "settings": {key: getattr(trainer.args, key) for key in VARIANTS[name].settings},
        "case": {
            "model": arguments.model,
            "dtype": arguments.dtype,
            "cap": arguments.cap,
            "lengths": arguments.lengths,
            "prompt_length": arguments.prompt_length,
            "completions": arguments.completions,
            "micro_batch": arguments.micro_batch,
            "tokens": "replayed",
            "schedule": arguments.schedule,
            "temperature": arguments.temperature,
            "importance": arguments.importance,
            **parallelism(accelerator),
            "hardware": facts["hardware"],
        },
        "warmup": arguments.warmup,
        **facts,
    }
    if clock.profiler is not None and accelerator.is_main_process:
        row["profile"] = kernel_table(clock.profiler, clock.profile_s)
    return row


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    return run(__file__, BENCHMARK, run_variant, STEP_COLUMNS, arguments, argv, here=arguments.quick)


if __name__ == "__main__":
    sys.exit(main())
