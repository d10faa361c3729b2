"""The engine inside plain TRL's `GRPOTrainer`, trained with a large step size, in one process and in two."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("run_grpo.py")
ROOT = SCRIPT.parents[2]


def run(launcher: list[str], *arguments: str) -> list[dict]:
    """Run the script and return the JSON line of each process, by rank."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [*launcher, str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Two processes share the output: a line of one may follow the other's without a break.
    results = [json.JSONDecoder().raw_decode(text)[0] for text in done.stdout.split("RESULT ")[1:]]
    return sorted(results, key=lambda result: result["rank"])


def test_training_with_large_steps_keeps_engine_and_policy_together(checkpoints, tmp_path):
    (result,) = run([sys.executable], str(checkpoints["tied"]), str(tmp_path))
    assert result["engine"]
    assert result["restored"]
    assert result["finish_reasons"] == 8
    assert len(result["gaps"]) == 5
    assert max(result["gaps"]) < 2e-3


def test_training_without_correction_needs_no_log_probabilities(checkpoints, tmp_path):
    (result,) = run([sys.executable], str(checkpoints["tied"]), str(tmp_path), "no_correction")
    assert result["gaps"] == []
    assert len(result["losses"]) == 2
    assert all(math.isfinite(value) for value in result["losses"] + result["gradients"])
    assert min(result["gradients"]) > 0


def test_two_processes_have_an_engine_each_with_the_same_weights(checkpoints, tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    results = run(launcher, str(checkpoints["tied"]), str(tmp_path))
    assert [result["processes"] for result in results] == [2, 2]
    for result in results:
        assert len(result["gaps"]) == 5
        assert max(result["gaps"]) < 2e-3
    assert results[0]["first"] == results[1]["first"]  # same weights, same seed
    assert results[0]["sampled"] != results[1]["sampled"]  # each rank samples on its own
