"""Two real processes: dynamic sampling in lockstep, and the metrics of a step reduced over both."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def results(tiny_model):
    """What both ranks say of each case, by rank."""
    script = Path(__file__).with_name("run_lockstep.py")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launcher, "--main_process_port", "29573", str(script), tiny_model]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    parts = done.stdout.split("RESULT ")[1:]  # both ranks may write to one line
    found = sorted((json.JSONDecoder().raw_decode(part)[0] for part in parts), key=lambda result: result["rank"])
    assert len(found) == 6, done.stderr[-3000:]
    assert all(result["processes"] == 2 for result in found)
    return {case: [r for r in found if r["case"] == case] for case in ("resampled", "hopeless", "metrics")}


def test_a_rank_generates_along_for_the_other_and_keeps_its_own(results):
    first, second = results["resampled"]
    rows = 8  # of each rank: 4 questions of 4 answers in all
    assert [len(call["prompts"]) for call in first["calls"]] == [rows, rows]
    assert [len(call["prompts"]) for call in second["calls"]] == [rows, rows]  # for nothing but the collectives
    assert first["replaced"] == 2
    assert second["replaced"] == 0
    assert first["calls"][1]["prompts"] != second["calls"][1]["prompts"]  # each rank draws its own questions
    # What TRL learns from: the new rows of rank 0 and the old rows of rank 1, prompt, completion and reward together.
    kept = first["calls"][1], second["calls"][0]
    assert first["table"]["prompt"] == kept[0]["prompts"] + kept[1]["prompts"]
    assert first["table"]["completion"] == kept[0]["completions"] + kept[1]["completions"]
    assert first["rewards"] == second["rewards"] == first["paid"][1] + second["paid"][0]
    assert first["without_spread"] == 0.0
    assert first["gradient"] == second["gradient"] > 0


def test_groups_that_never_spread_stop_both_ranks_at_the_cap(results):
    first, second = results["hopeless"]
    assert [len(call["prompts"]) for call in first["calls"]] == [8, 8, 8]
    assert [len(call["prompts"]) for call in second["calls"]] == [8, 8, 8]
    assert first["replaced"] == 4  # 2 groups, twice
    assert second["replaced"] == 0
    assert first["without_spread"] == second["without_spread"] == 0.5
    assert first["rewards"] == first["paid"][2] + second["paid"][0]


def test_metrics_are_means_by_token_and_extremes_over_bins_and_ranks(results):
    for result in results["metrics"]:
        reduced = {name: values for name, values in result["reduced"].items() if name != "nowhere"}
        assert reduced == {
            "kl": [pytest.approx((3 * 1.0 + 1 * 5.0 + 4 * 2.0) / 8)],  # the empty bin counts for nothing
            "ratio/min": [0.5],
            "ratio/max": [3.0],
            "entropy_min": [3.0],
            "partly": [8.0],
            "step_time": [3.0],  # the mean over ranks, though the last bin of one is empty
        }
        assert len(result["reduced"]["nowhere"]) == 1
        assert math.isnan(result["reduced"]["nowhere"][0])
