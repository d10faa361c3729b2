"""Check on this machine that the colocated engine computes with the policy's weights, in every way they can be held.

    python benchmarks/check_engine.py Qwen/Qwen2.5-0.5B            # all configurations this machine can run
    python benchmarks/check_engine.py ./model --only lora_adapter --tokens 64 --results check_engine.json

Each configuration runs in its own process: three large updates, each followed by a hand-over, a rollout, and a comparison
of the engine's log-probabilities with the policy's own forward pass, both in float32 unless `--dtype bfloat16`: there the two round
differently, which can be more than a small update changes. vLLM's own LoRA knows no float32: there the engine computes in float16.
Prints one JSON object for each; ends with 1 if a gap exceeds the limit (2e-3 in float32, 5e-3 in float16, 2e-2 in bfloat16,
0.2 with an FP8 engine), if the engine did not notice an update, or if a frozen base changed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rows import machine

UPDATES = 3
LIMITS = {torch.float32: 2e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
MARKER = "CONFIGURATION "
# name -> adapter and what is handed over of it, 4-bit, sleep mode, how the trainer computes, engine options
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "full_sleep": {"sleep": True},
    "full_autocast": {"autocast": True},
    "full_fp8": {"options": {"quantization": "fp8"}, "limit": 0.2},
    "full_fp8_kv": {"options": {"kv_cache_dtype": "fp8"}, "limit": 0.2},
    "lora_merged": {"lora": "merged"},
    "lora_merged_sleep": {"lora": "merged", "sleep": True},
    "lora_adapter": {"lora": "adapter"},
    "lora_adapter_sleep": {"lora": "adapter", "sleep": True},
    "qlora_merged": {"lora": "merged", "four_bit": True},
    "qlora_adapter": {"lora": "adapter", "four_bit": True},
    "qlora_adapter_sleep": {"lora": "adapter", "four_bit": True, "sleep": True},
    "qlora_adapter_4bit_engine": {"lora": "adapter", "four_bit": True, "options": {"quantization": "bitsandbytes"}},
}
# Entries that need a GPU.
GPU_ONLY = {"sleep", "four_bit", "autocast", "options"}
PROMPTS = [
    "The capital of France is",
    "Natalia sold clips to 48 of her friends in April, and then half as many in May. Altogether she sold",
    "def fibonacci(n):",
    "To solve 3x + 5 = 20, first",
    "法国的首都是",
    "Once upon a time",
    "The derivative of x squared is",
    "Water boils at",
]


def load_policy(path: str, device: str, dtype: torch.dtype, lora: bool = False, four_bit: bool = False) -> Any:
    """Load the policy as the trainer would hold it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantisation = None
    if four_bit:
        quantisation = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
        )
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, quantization_config=quantisation, device_map={"": device}
    )
    return get_peft_model(model, LoraConfig(r=16, target_modules="all-linear")) if lora else model


@torch.no_grad()
def update(model: torch.nn.Module) -> None:
    """Change every trained tensor by a tenth of its own size; LoRA's zero factor by a hundredth."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            scale = 0.1 * float(parameter.std()) if parameter.numel() > 1 else 0.0
            parameter.add_(torch.randn_like(parameter) * (scale if scale > 1e-6 else 0.01))


@torch.no_grad()
def policy_logprobs(model: torch.nn.Module, prompt: list[int], ids: list[int], autocast: bool) -> list[float]:
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        logits = model(torch.tensor([[*prompt, *ids]], device=device)).logits
    chosen = torch.tensor(ids, device=device)[:, None]
    return logits[0, len(prompt) - 1 : -1].float().log_softmax(-1).gather(1, chosen)[:, 0].tolist()


def rollout_gap(engine: Any, model: Any, prompts: list[list[int]], n: int, autocast: bool) -> tuple[float, float]:
    """Return the mean absolute difference of log-probabilities over a rollout, and its tokens per second."""
    repeated = [prompt for prompt in prompts for _ in range(n)]
    start = time.perf_counter()
    _, completions, logprobs, _ = engine.generate(repeated, None, n)
    seconds = time.perf_counter() - start
    gaps = [
        abs(row[0] - expected)
        for prompt, ids, sequence in zip(repeated, completions, logprobs, strict=True)
        for row, expected in zip(sequence, policy_logprobs(model, prompt, list(ids), autocast), strict=True)
    ]
    return sum(gaps) / len(gaps), len(gaps) / seconds


def frozen_weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.data.cpu().clone() for name, p in model.named_parameters() if not p.requires_grad}


def check(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Run one configuration in this process."""
    from accelerate import Accelerator
    from transformers import AutoTokenizer

    from trl_r1.generation.engine import ColocatedEngine

    choice = CONFIGURATIONS[name]
    autocast, sleep = choice.get("autocast", False), choice.get("sleep", False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    options = choice.get("options", {})
    # The engine computes in float32 too, but for 8 bits, vLLM's own LoRA, and a trainer under autocast.
    dtype, engine_dtype = torch.float32, "float32"
    if device == "cuda":
        if arguments.dtype == "bfloat16" or autocast or options:
            engine_dtype = "bfloat16"
        elif choice.get("lora") == "adapter":
            engine_dtype = "float16"  # whose rounding is an eighth of bfloat16's
        if arguments.dtype == "bfloat16" and not autocast:
            dtype = torch.bfloat16
    model = load_policy(arguments.model, device, dtype, "lora" in choice, choice.get("four_bit", False)).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    prompts = tokenizer(PROMPTS)["input_ids"]
    start = time.perf_counter()
    engine = ColocatedEngine(
        model=model,
        accelerator=Accelerator(cpu=device == "cpu", mixed_precision="bf16" if autocast else "no"),
        processing_class=tokenizer,
        enable_sleep_mode=sleep,
        max_completion_length=arguments.tokens,
        max_model_length=arguments.tokens + 128,
        max_num_seqs=len(prompts) * arguments.n,
        gpu_memory_utilization=arguments.gpu_memory_utilization,
        engine_options={"dtype": engine_dtype, **options, **json.loads(arguments.options)},
        lora_hand_over=choice.get("lora", "auto"),
    )
    start_s = time.perf_counter() - start
    frozen = frozen_weights(model) if choice.get("lora") else {}
    gaps, sync_s, rates, stale = [], [], [], None
    engine.sync_weights()
    for step in range(UPDATES):
        update(model)
        if step == 0 and not sleep:  # a sleeping engine always takes the weights anew
            stale = rollout_gap(engine, model, prompts, arguments.n, autocast)[0]
        start = time.perf_counter()
        engine.sync_weights()
        if device == "cuda":
            torch.cuda.synchronize()
        sync_s.append(time.perf_counter() - start)
        gap, rate = rollout_gap(engine, model, prompts, arguments.n, autocast)
        gaps.append(gap)
        rates.append(rate)
    limit = choice.get("limit", LIMITS[engine.llm.llm_engine.model_config.dtype])
    after = frozen_weights(model) if frozen else {}
    unchanged = all(torch.equal(tensor, after[key]) for key, tensor in frozen.items())
    return {
        "configuration": name,
        "tied_head": bool(model.config.get_text_config().tie_word_embeddings),
        "handed_over": engine.lora_hand_over if "lora" in choice else "all",
        "engine_dtype": str(engine.llm.llm_engine.model_config.dtype).removeprefix("torch."),
        "gaps": gaps,
        "stale_gap": stale,
        "limit": limit,
        "frozen_base_identical": unchanged if frozen else None,
        "start_s": round(start_s, 2),
        "sync_s": [round(seconds, 4) for seconds in sync_s],
        "tokens_per_s": round(max(rates)),
        "finish_reasons": sorted(set(engine.finish_reasons)),
        "ok": max(gaps) < limit and unchanged and (stale is None or stale > 2 * max(gaps)),
    }


def run_apart(arguments: list[str], name: str) -> dict[str, Any]:
    """Run one configuration in a fresh process, so that each starts with an empty device."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--here", name], capture_output=True, text=True, check=False
    )
    for line in done.stdout.splitlines():
        if line.startswith(MARKER):
            return json.loads(line.removeprefix(MARKER))
    return {"configuration": name, "ok": False, "error": (done.stderr or done.stdout)[-3000:]}


def main() -> int:
    """Parse the command line, run what was asked for, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint folder or Hub id, not quantised")
    parser.add_argument("--only", nargs="*", choices=list(CONFIGURATIONS), help="configurations to run")
    parser.add_argument("--tokens", type=int, default=64, help="completion length")
    parser.add_argument("--n", type=int, default=8, help="completions per prompt (there are 8 prompts)")
    parser.add_argument("--gpu_memory_utilization", type=float, default=0.3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of both, on a GPU")
    parser.add_argument("--options", default="{}", help="further engine options, as JSON")
    parser.add_argument("--results", type=Path, help="JSON file to write the results to, after each configuration")
    parser.add_argument("--here", choices=list(CONFIGURATIONS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(MARKER + json.dumps(check(arguments, arguments.here)), flush=True)
        return 0
    cuda = torch.cuda.is_available()
    names = arguments.only or [name for name, choice in CONFIGURATIONS.items() if cuda or not GPU_ONLY & set(choice)]
    passed_on = [
        arguments.model,
        "--tokens",
        str(arguments.tokens),
        "--n",
        str(arguments.n),
        "--options",
        arguments.options,
    ]
    passed_on += ["--gpu_memory_utilization", str(arguments.gpu_memory_utilization), "--dtype", arguments.dtype]
    found = {"model": arguments.model, "machine": machine()}
    results: list[dict[str, Any]] = []
    for name in names:
        results.append(run_apart(passed_on, name))
        print(json.dumps(results[-1]), flush=True)
        if arguments.results:
            arguments.results.write_text(json.dumps({**found, "results": results}, indent=1) + "\n")
    return 0 if all(result["ok"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
