"""The whole step with a real vLLM engine: both variants keep the forced lengths and reach the same loss."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "end_to_end.py"


@pytest.mark.full
def test_quick(tmp_path):
    pytest.importorskip("vllm")
    results = tmp_path / "rows.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--results", str(results)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    stock, ours = json.loads(results.read_text())
    assert ours["losses"] == pytest.approx(stock["losses"], abs=2e-3)
    assert ours["logprob_gap"] < 1e-3
    assert 0 < ours["rollout_share"] < 1
