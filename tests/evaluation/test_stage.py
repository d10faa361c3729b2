"""The evaluation stage as a user starts it: a real process, a real model, a kill in the middle, two processes at once."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trl_r1.evaluation.benchmarks import find_benchmarks
from trl_r1.exceptions import ConfigurationError
from trl_r1.pipeline.configs import config_names
from trl_r1.pipeline.evaluate import run_evaluate
from trl_r1.pipeline.evaluate_arguments import EvaluateArguments, parse_evaluate

RECIPE = Path(__file__).parents[2] / "recipes" / "evaluate.py"
NANO = (
    "nano",
    "--backend",
    "transformers",
    "--workers",
    "1",
    "--temperature",
    "1",
    "--top_p",
    "1",
    "--max_tokens",
    "64",
)


def start(*args: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(RECIPE), *NANO, *args],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def samples(folder: Path) -> list[tuple[str, int]]:
    lines = [line for path in folder.rglob("shard-*.jsonl") for line in path.read_text(encoding="utf-8").splitlines()]
    return [(record["key"], record["index"]) for record in map(json.loads, lines)]


def test_killed_run_goes_on_where_it_stopped_and_failures_do_not_stop_the_others(
    tmp_path: Path, caplog, capsys
) -> None:
    folder = tmp_path / "run"
    asked = ["--benchmarks", "nano:countdown,aime25,nano:arithmetic", "--max_problems", "8", "--k", "4"]
    asked += ["--pass_k", "4", "--max_num_seqs", "8", "--output_dir", str(folder)]
    killed = start(*asked)
    deadline = time.monotonic() + 300
    # The first benchmark's report is there: the second is being sampled, or about to be.
    while not (folder / "report.json").is_file() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    said, _ = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, said
    partial = json.loads((folder / "report.json").read_text())
    assert list(partial["benchmarks"]) == ["nano:countdown"]
    kept = samples(folder)
    assert len(kept) >= 32

    with caplog.at_level(logging.INFO):
        assert run_evaluate([*NANO, *asked]) == 1  # aime25 is on the Hub, which is not there
    assert "32 of 32 samples are there already" in caplog.text
    assert "aime25 failed" in capsys.readouterr().out
    report = json.loads((folder / "report.json").read_text())
    assert list(report["benchmarks"]) == ["nano:countdown", "nano:arithmetic"]
    assert "--benchmark_files aime25=FILE" in report["failed"]["aime25"]
    assert report["benchmarks"]["nano:countdown"] == partial["benchmarks"]["nano:countdown"]
    everything = samples(folder)
    assert len(everything) == len(set(everything)) == 2 * 32
    assert set(kept) <= set(everything)
    for entry in report["benchmarks"].values():
        assert entry["problems"] == 8
        low, high = entry["intervals"]["pass@1"]
        assert 0 <= low <= entry["pass@1"] <= high <= 1
    assert "| nano:countdown | 8 × 4 |" in (folder / "report.md").read_text()
    assert len(json.loads((folder / "scores" / "nano-countdown.json").read_text())["problems"]) == 8


@pytest.mark.full
def test_two_processes_share_the_questions_and_one_reports(tmp_path: Path) -> None:
    asked = ["--benchmarks", "nano", "--max_problems", "5", "--k", "2", "--output_dir", str(tmp_path)]
    both = [start(*asked, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    said = [one.communicate(timeout=400)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["benchmarks"]["nano"]["problems"], report["benchmarks"]["nano"]["samples"]) == (5, 10)
    shards = sorted(path.name.split("-")[1] for path in tmp_path.rglob("shard-*.jsonl"))
    assert set(shards) == {"00000", "00001"}
    assert "Evaluation of nano" in said[0]
    assert "Evaluation of nano" not in said[1]


def test_preview_and_errors_load_no_weights(tmp_path: Path, capsys, monkeypatch) -> None:
    from trl_r1.pipeline import evaluate as stage

    def refuse(*args: object, **settings: object) -> None:
        raise AssertionError("a sampler was opened")

    monkeypatch.setattr(stage, "open_sampler", refuse)
    assert stage.run_evaluate([*NANO, "--benchmarks", "nano", "--preview", "true"]) == 0
    shown = capsys.readouterr().out
    assert "Assistant:" in shown
    assert "·· gold ··" in shown
    for extra, message in (
        (["--benchmarks", "gsm9k"], "Unknown benchmark 'gsm9k'"),
        (["--benchmarks", "aime25"], "No benchmark could be loaded"),
        (["--benchmarks", "alpaca_eval"], "Name one: --judge MODEL"),
        (["--k", "4", "--pass_k", "8"], "pass@8 cannot be measured with 4 samples"),
        (["--thinking_budgets", "0"], "must be at least 1 token"),
        (["--protocol", "own"], "has none. Use 'zero' or 'r1'"),
        (["--human_ratings", str(tmp_path / "none.txt")], "one number per line"),
    ):
        assert stage.run_evaluate([*NANO, "--output_dir", str(tmp_path), *extra]) == 1, extra
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", config_names("evaluate"))
def test_shipped_configurations_can_be_read(name: str) -> None:
    args = parse_evaluate(["some/model", "--config", name])
    assert find_benchmarks(args.benchmarks)
    assert args.model_name_or_path == "some/model"


def test_defaults_are_r1s_and_what_the_protocol_decides_is_refused() -> None:
    args = EvaluateArguments(model_name_or_path="m")
    assert (args.temperature, args.top_p, args.max_tokens) == (0.6, 0.95, 32768)
    parsed = parse_evaluate(["some/model", "--benchmarks", "gsm8k,math500", "--k", "16"])
    assert (parsed.model_name_or_path, parsed.benchmarks, parsed.k) == ("some/model", ["gsm8k,math500"], 16)
    assert str(parsed.folder()) == "runs/evaluate/model"
    assert parse_evaluate([]).model_name_or_path == "nano"
    for setting, message in (
        ({"template": "base"}, "decided by the protocol"),
        ({"n": 4}, "decided by the protocol"),
        ({"protocol": "r2"}, "'r2'"),
        ({"temperature": 0.0, "k": 4}, "same k times"),
        ({"max_problems": 0}, "max_problems=0"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            EvaluateArguments(**setting)
