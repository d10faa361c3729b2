"""Time of a whole GRPO step, rollout included, with vLLM in the trainer's process: stock TRL against `trl_r1`.

    python benchmarks/end_to_end.py --quick                       # CPU, nano, vLLM's CPU build
    python benchmarks/end_to_end.py                               # 0.5B, 16 prompts x 16 completions, one process each
    python benchmarks/end_to_end.py --variant ours --out rows     # one variant, to combine later
    python benchmarks/end_to_end.py --combine rows --results benchmarks/results/end_to_end.json

Both sample with the same temperature and correct the importance ratio. A random model does not know when to stop, so every
completion is given its length: drawn once with a constant hazard of ending (mean 2,354 of at most 8,192 tokens), set on the
request as it enters vLLM's scheduler, for stock and ours alike, at no cost. Rewards depend on lengths alone, so both
variants have the same loss although they sample other tokens. Prints one JSON object per row, then a table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from rows import machine, number, parallelism
from runner import add_arguments, run

BENCHMARK = "end_to_end"
MEAN_SHARE_OF_CAP = 2354 / 8192
_OURS = {"packing": "auto", "max_tokens_per_microbatch": "auto", "gradient_checkpointing": False}
# name -> whether the trainer is ours, fields of its configuration
VARIANTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "stock": (False, {}),
    "ours": (True, _OURS | {"compile_layers": True}),
    "ours_no_compile": (True, _OURS | {"compile_layers": False}),
}
QUICK = {"model": "nano", "cap": 64, "prompt_length": 16, "prompts": 2, "num_generations": 4, "steps": 2}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="0.5b", help="0.5b, 1.5b (random weights), nano, or a checkpoint folder")
    parser.add_argument("--variant", nargs="*", choices=list(VARIANTS), help="default: stock and ours")
    parser.add_argument("--prompts", type=int, default=16, help="questions of a step")
    parser.add_argument("--num_generations", type=int, default=16, help="completions per prompt")
    parser.add_argument("--prompt_length", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--cap", type=int, default=8192, help="longest completion, in tokens")
    parser.add_argument(
        "--micro_batch", type=int, default=4, help="rows of a micro-batch where there is no token budget"
    )
    parser.add_argument("--gpu_memory_utilization", type=float, default=0.3, help="the engine's share of the device")
    parser.add_argument("--steps", type=int, default=1, help="measured steps")
    parser.add_argument("--warmup", type=int, default=1, help="steps before")
    parser.add_argument("--set", dest="settings", default="{}", help="further fields for our trainer, as JSON")
    add_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="a small case on the CPU")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        vars(arguments).update(QUICK)
    arguments.variant = arguments.variant or ["stock", "ours"]
    arguments.completions = arguments.prompts * arguments.num_generations
    return arguments


def drawn_lengths(count: int, cap: int, rollout: int) -> list[int]:
    """Return the lengths of one rollout's completions, ended at a constant hazard and cut at the cap.

    Quantiles of an exponential, so that every rollout has the same lengths, in another order.
    """

    def lengths(scale: float) -> list[int]:
        return [max(1, min(cap, math.ceil(-scale * math.log1p(-(index + 0.5) / count)))) for index in range(count)]

    low, high = 1.0, float(cap)
    while high - low > 0.25:
        middle = (low + high) / 2
        low, high = (middle, high) if sum(lengths(middle)) < MEAN_SHARE_OF_CAP * cap * count else (low, middle)
    return np.random.default_rng([rollout, count]).permutation(lengths(high)).tolist()


def length_reward(completions: list[Any], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """Score a completion by its length alone, as good as random: the same whatever tokens were sampled."""
    return [(len(ids) * 2_654_435_761 % 2**32) / 2**32 for ids in completion_ids]


class ForcedLengths:
    """Gives each request that enters vLLM's scheduler its own limit, in the order in which they come."""

    def __init__(self) -> None:
        self._left: Iterator[int] = iter(())

    def start(self, lengths: Sequence[int]) -> None:
        """Set the lengths of the next requests."""
        self._left = iter(lengths)

    @contextmanager
    def installed(self) -> Iterator[ForcedLengths]:
        """Wrap the scheduler's `add_request` of engines in this process."""
        from vllm.v1.core.sched import scheduler as module

        owner: Any = module.Scheduler  # also of the asynchronous scheduler, which inherits it
        add_request = owner.add_request

        def add(scheduler: Any, request: Any) -> None:
            request.max_tokens = next(self._left, request.max_tokens)
            add_request(scheduler, request)

        owner.add_request = add
        try:
            yield self
        finally:
            owner.add_request = add_request


class TimedRolloutMixin:
    """Gives stored prompts and forced lengths to a trainer, and times its rollouts. Set the attributes before training."""

    forced: ForcedLengths
    lengths_of: Any  # (rollout) -> lengths of all ranks' completions
    prompt_of: Any  # (rollout, row) -> prompt ids
    excluded_s: float = 0.0
    sync_s: float = 0.0
    _rollout: int = -1

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        rows = self._rows_here(prompts)
        return [self.prompt_of(self._rollout, row) for row in rows], None, {}

    def _rows_here(self, prompts: list[Any]) -> range:
        first = self.accelerator.process_index * len(prompts)  # type: ignore[attr-defined]
        return range(first, first + len(prompts))

    def _generate(self, prompts: list[Any]) -> Any:
        from replay import synchronise

        self._rollout += 1
        lengths = self.lengths_of(self._rollout)
        here = [lengths[row] for row in self._rows_here(prompts)]
        self.forced.start(here)
        synchronise()
        start = time.perf_counter()
        output = super()._generate(prompts)  # type: ignore[misc]
        synchronise()
        self.excluded_s += time.perf_counter() - start
        if [len(ids) for ids in output[1]] != here:
            raise RuntimeError("The engine did not keep the lengths it was given: requests came in another order.")
        return output


def time_syncs(trainer: Any) -> None:
    """Add up the seconds of the weights' hand-over in `trainer.sync_s`; it is part of the rollout."""
    from replay import synchronise

    sync_weights = trainer.vllm_generation.sync_weights

    def timed() -> None:
        synchronise()
        start = time.perf_counter()
        sync_weights()
        synchronise()
        trainer.sync_s += time.perf_counter() - start

    trainer.vllm_generation.sync_weights = timed


@contextmanager
def stock_on_cpu() -> Iterator[None]:
    """Let TRL's own engine run on vLLM's CPU build, for --quick alone.

    It needs options that TRL does not pass, and cannot take TRL's weights one by one, so they stay those it loaded.
    """
    import torch
    from trl.generation import vllm_generation

    module: Any = vllm_generation
    build, sync = module.LLM, module.VLLMGeneration.sync_weights
    options = {"enforce_eager": True, "dtype": "float32", "kv_cache_memory_bytes": 1 << 28}
    module.LLM = lambda **kwargs: build(**(kwargs | options))
    module.VLLMGeneration.sync_weights = lambda self: None
    torch.compiler.set_stance("force_eager")  # compiling vLLM's helpers takes longer than the run
    try:
        yield
    finally:
        torch.compiler.set_stance("default")
        module.LLM = build
        module.VLLMGeneration.sync_weights = sync


def settings(arguments: argparse.Namespace, name: str, processes: int, folder: str) -> dict[str, Any]:
    """Return the fields of the trainer's configuration: the same for both, then the variant's own."""
    import torch

    cuda = torch.cuda.is_available() and not arguments.quick
    accumulation = arguments.completions // (arguments.micro_batch * processes)
    common = {
        "output_dir": folder,
        "per_device_train_batch_size": arguments.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": accumulation,
        "num_generations": arguments.num_generations,
        "max_completion_length": arguments.cap,
        "beta": 0.0,
        "loss_type": "dapo",
        "epsilon": 0.2,
        "sync_ref_model": False,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "max_steps": arguments.warmup + arguments.steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
        "bf16": cuda,
        "use_cpu": not cuda,
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": arguments.gpu_memory_utilization,
        "vllm_max_model_length": arguments.prompt_length + arguments.cap,
        # Per token: a sequence's product over thousands of tokens would amplify the engine's error beyond comparison.
        "vllm_importance_sampling_mode": "token_truncate",
        "generation_kwargs": {"ignore_eos": True},
        "model_init_kwargs": {"dtype": "bfloat16" if cuda else "float32"},
    }
    ours, own = VARIANTS[name]
    if not cuda:
        own = {key: value for key, value in own.items() if key != "compile_layers"}
    return common | own | (json.loads(arguments.settings) if ours else {})


def run_variant(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Take the steps of one variant in this process and return its row."""
    import torch
    from datasets import Dataset
    from replay import StepClock, StoredRollouts
    from shapes import checkpoint
    from transformers import AutoTokenizer, PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from trl_r1.trainers import R1GRPOConfig, R1GRPOTrainer
    from trl_r1.trainers.grpo_config import launched_world_size

    base, config = (R1GRPOTrainer, R1GRPOConfig) if VARIANTS[name][0] else (GRPOTrainer, GRPOConfig)
    path = checkpoint(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        forced = stack.enter_context(ForcedLengths().installed())
        fields = settings(arguments, name, launched_world_size(), folder)
        if fields["use_cpu"] and not VARIANTS[name][0]:
            stack.enter_context(stock_on_cpu())
        trainer: Any = type(f"Timed{base.__name__}", (TimedRolloutMixin, base), {})(
            model=path,
            reward_funcs=[length_reward],
            args=config(**fields),
            train_dataset=Dataset.from_dict({"prompt": [f"w{index}" for index in range(arguments.prompts)]}),
            processing_class=tokenizer,
        )
        trainer.forced = forced
        trainer.lengths_of = lambda rollout: drawn_lengths(arguments.completions, arguments.cap, rollout)
        trainer.prompt_of = StoredRollouts(
            lengths=[],
            cap=arguments.cap,
            prompt_length=arguments.prompt_length,
            group=arguments.num_generations,
            words=np.setdiff1d(np.arange(trainer.model.config.vocab_size), tokenizer.all_special_ids),
            eos=tokenizer.eos_token_id,
        ).prompt
        time_syncs(trainer)
        clock = StepClock(arguments.warmup)
        clock.attach(trainer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        row = _row(arguments, name, trainer, clock)
        if torch.distributed.is_initialized() and launched_world_size() == 1:
            torch.distributed.destroy_process_group()  # vLLM's, for one process
    return row


def _row(arguments: argparse.Namespace, name: str, trainer: Any, clock: Any) -> dict[str, Any]:
    """Gather what was measured into a row."""
    from limits import Cost, device_speed

    accelerator, facts = trainer.accelerator, machine()
    processes, measured = accelerator.num_processes, slice(arguments.warmup, None)
    train_s = statistics.median(clock.seconds[measured])
    rollout_s = statistics.median(clock.excluded[measured])
    step_s = statistics.median([sum(both) for both in zip(clock.seconds, clock.excluded, strict=True)][measured])
    lengths = drawn_lengths(arguments.completions, arguments.cap, 0)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    speed, limits = device_speed(facts["hardware"], arguments.peak_tflops), {}
    if speed is not None:
        cost, flops = Cost.of(trainer.model.config), speed[0] * processes
        training = cost.training_seconds(arguments.prompt_length, lengths, extra_forwards=0, flops_per_s=flops)
        limits = {"train_limit_share": round(training / train_s, 4)}
        if speed[1] and processes == 1:
            decoding = cost.decoding_seconds(arguments.prompt_length, lengths, flops_per_s=flops, bytes_per_s=speed[1])
            limits |= {
                "rollout_limit_share": round(decoding / rollout_s, 4),
                "limit_share": round((training + decoding) / step_s, 4),
            }
    return {
        "benchmark": BENCHMARK,
        "variant": arguments.label or name,
        "rollout_s": round(rollout_s, 4),
        "sync_s": round(trainer.sync_s / len(clock.seconds), 4),
        "train_s": round(train_s, 4),
        "step_s": round(step_s, 4),
        "rollout_share": round(rollout_s / (rollout_s + train_s), 4),
        "tokens_per_s": round(sum(lengths) / step_s, 1),
        "peak_gib": round(clock.peak_bytes / 2**30, 3) if clock.peak_bytes else None,
        "losses": [round(entry["loss"], 8) for entry in history],
        "logprob_gap": history[-1].get("sampling/sampling_logp_difference/mean"),
        **limits,
        "checkpointing": bool(trainer.args.gradient_checkpointing),
        "mean_length": round(sum(lengths) / len(lengths), 1),
        "settings": {key: getattr(trainer.args, key) for key in VARIANTS[name][1]},
        "case": {
            "model": arguments.model,
            "dtype": trainer.args.model_init_kwargs["dtype"],
            "cap": arguments.cap,
            "lengths": "constant_hazard",
            "prompt_length": arguments.prompt_length,
            "completions": arguments.completions,
            "micro_batch": arguments.micro_batch,
            "tokens": "sampled",
            "schedule": "on_policy",
            "importance": True,
            "gpu_memory_utilization": arguments.gpu_memory_utilization,
            **parallelism(accelerator),
            "hardware": facts["hardware"],
        },
        "warmup": arguments.warmup,
        **facts,
    }


COLUMNS = [
    ("variant", lambda row: row["variant"]),
    ("rollout (s)", number("rollout_s")),
    ("of it sync (s)", number("sync_s", ".3f")),
    ("training (s)", number("train_s")),
    ("step (s)", number("step_s")),
    ("rollout's share", number("rollout_share", ".0%")),
    ("tokens/s", number("tokens_per_s", ",.0f")),
    ("× stock", number("ratio_to_stock")),
    ("log-prob gap", number("logprob_gap", ".4f")),
    ("losses", lambda row: ", ".join(f"{loss:.4f}" for loss in row.get("losses", [])[:3]) or "–"),
]


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for."""
    argv = sys.argv[1:] if argv is None else argv
    return run(__file__, BENCHMARK, run_variant, COLUMNS, parse(argv), argv, here=False)


if __name__ == "__main__":
    sys.exit(main())
