"""Two real processes: rows are shared out anew, and the gradient stays stock TRL's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("losses", "port"),
    [
        # One of each kind: a mean over rows, a sum over the step's tokens, a mean over TRL's micro-batch.
        (["grpo", "dapo", "bnpo"], 29571),
        pytest.param(["dr_grpo", "cispo", "sapo", "luspo", "vespo"], 29572, marks=pytest.mark.full),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_two_ranks_give_the_stock_gradient(tiny_model, losses, port):
    script = Path(__file__).with_name("run_packed.py")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launcher, "--main_process_port", str(port), str(script), tiny_model, *losses]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, check=False)
    parts = done.stdout.split("RESULT ")[1:]  # both ranks may write to one line
    results = [json.JSONDecoder().raw_decode(part)[0] for part in parts]
    assert len(results) == 2 * len(losses), done.stderr[-3000:]
    for result in results:
        ours, stock = result["ours"], result["stock"]
        assert ours["processes"] == stock["processes"] == 2
        assert result["same_names"]
        assert result["error"] < 1e-5, result
        assert abs(ours["loss"][0] - stock["loss"][0]) < 1e-6
        assert ours["bins"][0] > 4  # TRL's micro-batches per rank
    for loss_type in losses:
        counts = {tuple(r["ours"]["bins"]) for r in results if r["loss_type"] == loss_type}
        assert len(counts) == 1, counts
