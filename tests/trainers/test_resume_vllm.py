"""Traps 27 and 29: after a resume the engine samples from the checkpoint's weights, not from those it was started with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.full
def test_a_resumed_engine_has_the_trainers_weights(tiny_model, tmp_path):
    pytest.importorskip("vllm")
    script = Path(__file__).with_name("run_resume_vllm.py")
    environment = os.environ | {"PYTHONPATH": str(script.parents[2]), "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [sys.executable, str(script), tiny_model, str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.split("RESULT ")[1].splitlines()[0])
    whole, resumed, stale = results["whole"], results["resumed"], results["not_handed_over"]
    after = {step for step in whole["gaps"] if int(step) > 4}
    assert after
    assert set(resumed["gaps"]) >= after
    for result in (whole, resumed):
        assert max(result["gaps"].values()) < 2e-3
        assert result["gap"] < 2e-3
    # The policy had moved: an engine that keeps the weights it was started with is told apart at once.
    assert stale["gaps"][min(after, key=int)] > 2e-2
    assert stale["gap"] > 2e-2
