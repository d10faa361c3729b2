"""Evaluate a model by R1's protocol: pass@1 over k samples, cons@k, intervals, published figures beside them.

    python recipes/evaluate.py                                                   # the embedded nano model
    python recipes/evaluate.py MODEL --benchmarks gsm8k,math500 --k 16           # any model, from the Hub
    python recipes/evaluate.py MODEL --benchmarks gsm8k --benchmark_files gsm8k=gsm8k_test.jsonl    # without the Hub
    accelerate launch recipes/evaluate.py MODEL --config r1                      # data-parallel; the paper's benchmarks

Options are the fields of `EvaluateArguments`. The same command goes on where it was stopped. The stage itself is
`trl_r1.pipeline.evaluate`.
"""

from __future__ import annotations

import sys

from trl_r1.pipeline.evaluate import run_evaluate

if __name__ == "__main__":
    sys.exit(run_evaluate(sys.argv[1:]))
