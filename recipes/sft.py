"""SFT on traces with thinking: cold start, and the second SFT stage on rejection-sampling data.

    accelerate launch recipes/sft.py                                  # the embedded nano model, on this machine
    accelerate launch recipes/sft.py --config qwen2.5_1.5b            # a configuration of recipes/configs/sft
    accelerate launch recipes/sft.py --config my.yaml --traces runs/cold_start/cold_start.jsonl
    accelerate launch recipes/sft.py --config my.yaml --preview       # three rows, prompt and target; no weights loaded

Options are the fields of `SFTArguments` (traces, template, evaluation), `R1SFTConfig` (the training) and TRL's
`ModelConfig` (checkpoint, LoRA, 4-bit). The stage itself is `trl_r1.pipeline.sft.sft`.
"""

from __future__ import annotations

import sys

from trl_r1.cli import run

if __name__ == "__main__":
    sys.exit(run("sft", sys.argv[1:]))
