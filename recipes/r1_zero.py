"""R1-Zero: reinforcement learning by rule rewards alone, from a base model.

    accelerate launch recipes/r1_zero.py                                  # the embedded nano model, on this machine
    accelerate launch recipes/r1_zero.py --config qwen2.5_1.5b            # a configuration of recipes/configs/r1_zero
    accelerate launch recipes/r1_zero.py --config my.yaml --max_steps 50  # your own, with an option over it
    accelerate launch recipes/r1_zero.py --config my.yaml --preview       # three rows, scored; no weights loaded

Options are the fields of `R1ZeroArguments` (data, rewards, evaluation), `R1GRPOConfig` (the algorithm) and TRL's
`ModelConfig` (checkpoint, LoRA, 4-bit). The stage itself is `trl_r1.pipeline.r1_zero`.
"""

from __future__ import annotations

import sys

from trl_r1.cli import run

if __name__ == "__main__":
    sys.exit(run("r1-zero", sys.argv[1:]))
