"""Reasoning RL (stage 2): maths, code, choice and logic questions, rule rewards and the language reward.

    accelerate launch recipes/reasoning_rl.py                                   # nano, on this machine
    accelerate launch recipes/reasoning_rl.py --config qwen2.5_1.5b             # a configuration of recipes/configs/reasoning_rl
    accelerate launch recipes/reasoning_rl.py --config nano_cpu --model_name_or_path runs/demo   # from a Zero or SFT checkpoint
    accelerate launch recipes/reasoning_rl.py --config my.yaml --preview        # three rows, scored; no weights loaded

Options are the fields of `ReasoningRLArguments` (data, rewards, evaluation), `R1GRPOConfig` (the algorithm) and TRL's
`ModelConfig` (checkpoint, LoRA, 4-bit). The stage itself is `trl_r1.pipeline.reasoning_rl`.
"""

from __future__ import annotations

import sys

from trl_r1.cli import run

if __name__ == "__main__":
    sys.exit(run("reasoning-rl", sys.argv[1:]))
