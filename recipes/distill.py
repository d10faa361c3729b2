"""Distillation: a student learns from a reasoning model's traces by SFT alone.

    accelerate launch recipes/distill.py                                       # nano teaches a smaller nano, on this machine
    accelerate launch recipes/distill.py --config r1_distill_qwen_1.5b --traces my_org/my_traces
    accelerate launch recipes/distill.py --config my.yaml --teacher '{"model_name_or_path": "…", "n": 4}' --dataset openai/gsm8k

Options are the fields of `DistillArguments` (teacher or traces, template, evaluation), `R1DistillConfig` (the training) and
TRL's `ModelConfig` (the student, LoRA, 4-bit). The stage itself is `trl_r1.pipeline.distill.distill`.
"""

from __future__ import annotations

import sys

from trl_r1.cli import run

if __name__ == "__main__":
    sys.exit(run("distill", sys.argv[1:]))
