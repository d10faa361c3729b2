"""Rejection sampling: several answers per question, verified, filtered, a few of each kept for supervised fine-tuning.

    python recipes/rejection_sampling.py                                       # nano on this machine
    python recipes/rejection_sampling.py --config qwen2.5_1.5b                 # a configuration of configs/rejection_sampling
    python recipes/rejection_sampling.py --config qwen2.5_7b --samples 32      # with an option over it
    accelerate launch --num_processes 8 recipes/rejection_sampling.py --config qwen2.5_7b   # one engine per GPU
    python recipes/rejection_sampling.py --config qwen2.5_7b --server_urls http://host1:8000/v1 http://host2:8000/v1

Options are the fields of `RejectionSamplingArguments` (questions, numbers, filters, judge) and `SamplerConfig` (who
samples). The stage itself is `trl_r1.pipeline.rejection_sampling`. A second start goes on where the first was stopped.
"""

from __future__ import annotations

import sys

from trl_r1.cli import run

if __name__ == "__main__":
    sys.exit(run("rejection-sampling", sys.argv[1:]))
