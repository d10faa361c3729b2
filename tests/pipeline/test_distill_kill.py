"""Distillation killed -9 twice, while the teacher writes and while the student learns: the same command goes on each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from killing import kill_when

from trl_r1.pipeline.distill import distill, parse_distill

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "distill.py"
STEPS, SAMPLES = 6, 8
TEACHER = {
    "model_name_or_path": "nano", "backend": "transformers", "n": SAMPLES, "max_tokens": 48, "max_num_seqs": 32, "seed": 0,
}  # fmt: skip
OPTIONS = [
    "--config", "nano_cpu", "--teacher", json.dumps(TEACHER), "--max_accepted", "4", "--max_rows", "64", "--max_test_rows",
    "8", "--max_steps", str(STEPS), "--rows_per_step", "2", "--per_device_train_batch_size", "2", "--max_length", "160",
    "--heldout_questions", "2", "--heldout_samples", "2", "--heldout_max_tokens", "12", "--save_steps", "1",
    "--save_total_limit", "20", "--disable_tqdm", "true", "--resume_from_checkpoint", "auto",
]  # fmt: skip


def shards(run: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((run / "teacher" / "shards").glob("shard-*.jsonl"))}


def accepted(run: Path) -> dict[str, list[str]]:
    rows = Dataset.from_parquet(str(run / "teacher" / "candidates.parquet"))
    return {row["id"]: [one["text"] for one in row["candidates"] if one["accepted"]] for row in rows}


def losses(run: Path) -> list[float]:
    state = json.loads((run / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.full
def test_the_same_command_goes_on_after_each_kill(tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "killed"
    options = [*OPTIONS, "--output_dir", str(run)]

    kill_when(lambda: bool(shards(run)), [str(RECIPE), *options])
    kept = shards(run)
    assert not (run / "teacher" / "candidates.parquet").exists()

    kill_when(lambda: (run / "checkpoint-2").exists(), [str(RECIPE), *options])
    assert not (run / "report.json").exists()
    after = shards(run)
    assert {name: after[name] for name in kept} == kept, "a shard was written again"
    records = [json.loads(line) for text in after.values() for line in text.splitlines()]
    asked = [(record["key"], record["index"]) for record in records if not record.get("closed")]
    assert len(asked) == len(set(asked)) <= 64 * SAMPLES, "something was sampled twice"
    speed = json.loads((run / "teacher" / "report.json").read_text())["speed"]
    # The figures are those of the second start: it sampled what no whole shard held.
    stored = sum(not json.loads(line).get("closed") for text in kept.values() for line in text.splitlines())
    assert stored + speed["samples"] >= len(asked) > stored > 0

    report = _distilled(options)
    assert report["steps"] == STEPS
    assert shards(run) == after, "the teacher was asked again"
    expected = _distilled([*OPTIONS, "--output_dir", str(whole)])
    assert accepted(run) == accepted(whole)
    assert losses(run) == losses(whole)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert report["teacher"] == expected["teacher"]


def _distilled(options: list[str]) -> dict[str, Any]:
    report = distill(*parse_distill(options))
    assert report is not None
    return report
