"""Cold start: readable long thinking for the first supervised fine-tuning, sampled, verified, filtered, rewritten.

    python recipes/cold_start.py                                             # an R1-Zero checkpoint of nano, on this machine
    python recipes/cold_start.py --config smollm2_135m_gsm_symbolic          # a configuration of recipes/configs/cold_start
    python recipes/cold_start.py --config qwen2.5_7b --max_rows 2000         # with an option over it
    accelerate launch --num_processes 8 recipes/cold_start.py --config qwen2.5_7b   # one engine per GPU
    trl-r1 review runs/cold_start/cold_start.jsonl                           # then read what came out

Options are the fields of `ColdStartArguments` (questions, sources, filters) and `SamplerConfig` (who samples). The stage
itself is `trl_r1.pipeline.cold_start`. A second start goes on where the first was stopped.
"""

from __future__ import annotations

import sys

from trl_r1.cli import run

if __name__ == "__main__":
    sys.exit(run("cold-start", sys.argv[1:]))
