"""The SFT recipes as scripts: thin, and a kill -9 at any moment costs at most what no checkpoint holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from trl_r1.pipeline.configs import config_names
from trl_r1.pipeline.distill import distill, parse_distill
from trl_r1.pipeline.sft import sft
from trl_r1.pipeline.sft_arguments import parse_sft

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
STEPS = 6
OPTIONS = [
    "--config", "nano_cpu", "--max_traces", "24", "--max_steps", str(STEPS), "--rows_per_step", "2",
    "--per_device_train_batch_size", "2", "--max_test_rows", "8", "--heldout_questions", "2", "--heldout_samples", "2",
    "--heldout_max_tokens", "12", "--save_steps", "1", "--save_total_limit", "20", "--max_length", "160",
    "--disable_tqdm", "true",
]  # fmt: skip


def losses(folder: Path) -> list[float]:
    state = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_killed_run_resumes_where_it_was(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    sft(*parse_sft([*OPTIONS, "--output_dir", str(whole)]))
    command = [sys.executable, str(RECIPES / "sft.py"), *OPTIONS, "--output_dir", str(killed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.time() + 120
        # A checkpoint is begun: the kill may leave it half-written.
        while not (killed / "checkpoint-2").exists() and process.poll() is None and time.time() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (killed / "report.json").exists()
    before = (killed / "heldout_before.json").read_text()
    report = sft(*parse_sft([*OPTIONS, "--output_dir", str(killed), "--resume_from_checkpoint", "auto"]))
    assert report is not None
    assert report["steps"] == STEPS
    assert (killed / "heldout_before.json").read_text() == before
    assert losses(killed) == losses(whole)
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["sft", "distill"])
def test_recipes_are_thin(name: str) -> None:
    assert len((RECIPES / f"{name}.py").read_text().splitlines()) <= 40


# Only what a laptop forces: model, data, sizes and device.
SWAPPED = {
    "model_name_or_path": "nano", "traces": "nano:countdown", "traces_config": None, "traces_columns": None, "teacher": None,
    "max_traces": 16, "dataset": None, "dataset_config": None, "columns": None, "patterns": None, "domain": None,
    "heldout_sampler": None, "answer_form": "answer", "template": "base", "max_length": 256, "rows_per_step": 2,
    "per_device_train_batch_size": 1, "max_steps": 2, "use_cpu": True, "bf16": False, "dtype": "float32",
    "save_strategy": "no", "disable_tqdm": True, "max_rows": None, "model_init_kwargs": None,
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize(
    ("stage", "name"), [(stage, name) for stage in ("sft", "distill") for name in config_names(stage)]
)
def test_configuration_takes_two_steps(stage: str, name: str, tmp_path: Path) -> None:
    config = yaml.safe_load(config_names(stage)[name].read_text(encoding="utf-8"))
    if config.get("load_in_4bit"):
        pytest.importorskip("bitsandbytes")
    config |= SWAPPED | {"output_dir": str(tmp_path / "run")}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    run, parse = (sft, parse_sft) if stage == "sft" else (distill, parse_distill)
    report = run(*parse(["--config", str(path)]))  # type: ignore[operator]
    assert report["steps"] == 2
    weights = "adapter_model.safetensors" if config.get("use_peft") else "model.safetensors"
    assert (tmp_path / "run" / weights).stat().st_size > 0
    assert "before" not in report
    assert "## Before and after" not in (tmp_path / "run" / "README.md").read_text()


# The recipe, with a note of what each process collates: epoch and candidates.
NOTING = """
import json, os, re, sys
from trl_r1.data.rejection_collator import RejectionSamplingCollator
from trl_r1.pipeline.sft import run_sft

collate = RejectionSamplingCollator.torch_call

def noting(self, examples):
    batch = collate(self, examples)
    drawn = re.findall(r"<think>([0-9]+)[+]([0-9]+)</think>", self.tokenizer.decode(batch["input_ids"][0]))
    with open(os.path.join(sys.argv[1], f"drawn-{os.environ.get('RANK', '0')}.jsonl"), "a") as file:
        file.write(json.dumps([self.epoch, drawn]) + "\\n")
    return batch

RejectionSamplingCollator.torch_call = noting
run_sft(sys.argv[2:])
"""


def drawn_by(folder: Path) -> list[set[tuple[int, int, int]]]:
    """Epoch, row and candidate of all that each process trained on; none of them twice."""
    found = []
    for path in sorted(folder.glob("drawn-*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found.append([(epoch, int(row), int(k)) for epoch, drawn in lines for k, row in drawn])
    assert sum(map(len, found)) == len({one for process in found for one in process})
    return [set(process) for process in found]


@pytest.mark.full
def test_two_processes_draw_every_row_once(tmp_path: Path) -> None:
    """Rejection-sampling records on two processes: together each row once an epoch, the very candidates of one process."""
    script = tmp_path / "noting.py"
    script.write_text(NOTING)
    records = [
        {
            "prompt": f"Make {i} from 1, 2", "id": f"q{i}", "candidates": [
                {"index": k, "text": f" <think>{k}+{i}</think> <answer>{k}</answer>", "prefill": "", "finish_reason": "stop",
                 "tokens": None, "correct": True, "reason": None, "accepted": True} for k in range(2)
            ],
        }
        for i in range(12)
    ]  # fmt: skip
    traces = tmp_path / "candidates.jsonl"
    traces.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = [
        "--config", "nano_cpu", "--traces", str(traces), "--draw", "uniform", "--max_length", "128", "--rows_per_step", "2",
        "--per_device_train_batch_size", "1", "--num_train_epochs", "2", "--save_strategy", "no", "--heldout_questions", "2",
        "--heldout_samples", "2", "--heldout_max_tokens", "8", "--max_test_rows", "4",
    ]  # fmt: skip
    found = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        command = [
            sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes),
            *(["--multi_gpu"] if processes > 1 else []), str(script), str(folder), *options, "--output_dir", str(folder),
        ]  # fmt: skip
        folder.mkdir()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        found[processes] = json.loads((folder / "report.json").read_text())
    assert found[2]["world_size"] == 2
    assert found[2]["steps"] == found[1]["steps"]
    (alone,), (first, second) = (drawn_by(tmp_path / str(processes)) for processes in (1, 2))
    assert first
    assert second
    assert first | second == alone
    assert sorted((epoch, row) for epoch, row, _ in alone) == [(epoch, row) for epoch in range(2) for row in range(12)]
    assert {(row, k) for _, row, k in alone} == {(row, k) for row in range(12) for k in range(2)}
