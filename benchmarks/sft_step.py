"""Time of one optimizer step of supervised fine-tuning on long traces: stock TRL's trainer and `R1SFTTrainer`, without flash-attn.

    python benchmarks/sft_step.py --quick                        # CPU, nano, under a minute
    python benchmarks/sft_step.py --model 0.5b                   # 16 traces of up to 32k tokens, one process per variant
    python benchmarks/sft_step.py --combine rows --results benchmarks/results/sft_step.json

Every variant trains on the same traces, random ids of R1-like lengths, the prompt outside of the loss; all of them make one
optimizer step. `stock` gives each trace a forward pass of its own, so that it pads nothing: the best that TRL does without
flash-attn. `stock_packed` is TRL's packing, for which transformers builds a mask of the row's length squared. Prints one
JSON object per row, then a table; a row whose losses or gradient norms differ from stock's gets no speed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from rows import STEP_COLUMNS, machine, parallelism
from runner import add_arguments, run

BENCHMARK = "sft_step"
# name -> whether the trainer is ours, and what differs in its settings
VARIANTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "stock": (False, {"packing": False}),
    "stock_packed": (False, {"packing": True}),
    "ours": (True, {"packing": True}),
    # On a CPU `auto` is one SDPA call per sequence as well, so that --quick checks what packing computes.
    "ours_nockpt": (True, {"packing": True, "gradient_checkpointing": False}),
}
QUICK = {"model": "nano", "cap": 192, "prompt_length": 16, "traces": 12, "steps": 2, "warmup": 1, "dtype": "float32"}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="0.5b", help="0.5b, 1.5b (random weights), nano, or a checkpoint folder")
    parser.add_argument("--variant", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--cap", type=int, default=32768, help="longest trace and packed row, in tokens")
    parser.add_argument("--prompt_length", type=int, default=128, help="tokens of each prompt, in the cap")
    parser.add_argument("--traces", type=int, default=16, help="of one optimizer step")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the weights")
    parser.add_argument("--steps", type=int, default=5, help="measured steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before")
    add_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="a small case on the CPU, in one process")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        vars(arguments).update(QUICK)
    return arguments


def traces(arguments: argparse.Namespace, words: Any, eos: int) -> Any:
    """Return the traces: ids and labels, the prompt's not trained."""
    import numpy as np
    from datasets import Dataset
    from replay import completion_lengths

    rows = []
    lengths = completion_lengths("long_tail", arguments.traces, arguments.cap - arguments.prompt_length)
    for index, length in enumerate(lengths):
        ids = np.random.default_rng([0, index]).choice(words, arguments.prompt_length + length).tolist()
        ids[-1] = eos
        rows.append({"input_ids": ids, "labels": [-100] * arguments.prompt_length + ids[arguments.prompt_length :]})
    return Dataset.from_list(rows), lengths


def build_trainer(arguments: argparse.Namespace, name: str, folder: str) -> tuple[Any, list[int]]:
    """Build the real trainer on the traces. An epoch is one optimizer step, however many rows packing makes of it."""
    import numpy as np
    import torch
    from shapes import checkpoint
    from transformers import AutoConfig, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from trl_r1.trainers import R1SFTConfig, R1SFTTrainer

    ours, own = VARIANTS[name]
    path = checkpoint(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(path)
    words = np.setdiff1d(np.arange(AutoConfig.from_pretrained(path).vocab_size), tokenizer.all_special_ids)
    rows, lengths = traces(arguments, words, tokenizer.eos_token_id)
    fields: dict[str, Any] = {
        "output_dir": folder,
        "max_length": arguments.cap,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": arguments.traces,
        "gradient_checkpointing": True,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "max_steps": arguments.warmup + arguments.steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
        "bf16": arguments.dtype == "bfloat16",
        "use_cpu": arguments.quick or not torch.cuda.is_available(),
        "model_init_kwargs": {"dtype": arguments.dtype},
    } | own  # fmt: skip
    trainer, config = (R1SFTTrainer, R1SFTConfig) if ours else (SFTTrainer, SFTConfig)
    return trainer(model=path, args=config(**fields), train_dataset=rows, processing_class=tokenizer), lengths


def run_variant(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Take the steps of one variant in this process and return its row, complete but for the comparison."""
    import torch
    from limits import Cost, device_speed
    from replay import StepClock
    from transformers import PrinterCallback

    with tempfile.TemporaryDirectory() as folder:
        trainer, lengths = build_trainer(arguments, name, folder)
        trainer.excluded_s = 0.0
        clock = StepClock(arguments.warmup)
        clock.attach(trainer)
        trainer.remove_callback(PrinterCallback)  # rows are printed at the end
        trainer.train()
    measured = clock.seconds[arguments.warmup :]
    step_s = statistics.median(measured)
    accelerator, facts = trainer.accelerator, machine()
    peaks = accelerator.gather(torch.tensor([clock.peak_bytes], device=accelerator.device, dtype=torch.float64))
    speed = device_speed(facts["hardware"], arguments.peak_tflops)
    limit_s = None
    if speed is not None:
        cost = Cost.of(trainer.model.config)
        limit_s = cost.training_seconds(
            arguments.prompt_length, lengths, extra_forwards=0, flops_per_s=speed[0] * accelerator.num_processes
        )
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "benchmark": BENCHMARK,
        "variant": arguments.label or name,
        "model": arguments.model,
        "cap": arguments.cap,
        "lengths": "long_tail",
        "checkpointing": bool(trainer.args.gradient_checkpointing),
        "step_s": round(step_s, 5),
        "steps_s": [round(seconds, 5) for seconds in measured],
        "tokens_per_s": round(sum(lengths) / step_s, 1),
        "peak_gib": round(peaks.max().item() / 2**30, 3) if clock.peak_bytes else None,
        "losses": [round(entry["loss"], 8) for entry in history],
        "grad_norms": [round(entry["grad_norm"], 8) for entry in history],
        "limit_s": None if limit_s is None else round(limit_s, 5),
        "limit_share": None if limit_s is None else round(limit_s / step_s, 4),
        "attention": getattr(getattr(trainer, "attention", None), "kind", trainer.model.config._attn_implementation),
        "forward_passes": len(trainer.get_train_dataloader()),
        "mean_length": round(sum(lengths) / len(lengths), 1),
        "case": {
            "model": arguments.model,
            "dtype": arguments.dtype,
            "cap": arguments.cap,
            "lengths": "long_tail",
            "prompt_length": arguments.prompt_length,
            "completions": arguments.traces,
            "tokens": "stored",
            "schedule": "sft",
            "importance": False,
            **parallelism(accelerator),
            "hardware": facts["hardware"],
        },
        "warmup": arguments.warmup,
        **facts,
    }


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    return run(__file__, BENCHMARK, run_variant, STEP_COLUMNS, arguments, argv, here=arguments.quick)


if __name__ == "__main__":
    sys.exit(main())
