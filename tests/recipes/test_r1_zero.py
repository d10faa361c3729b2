"""Every shipped configuration takes two steps with nano in the model's place; runs resume; reports are complete."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from trl_r1.pipeline import parse_r1_zero, r1_zero
from trl_r1.pipeline.configs import config_names

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
CONFIGS = config_names("r1_zero")
# Only what a laptop forces: model, data set, sizes and device.
SWAPPED = {
    "model_name_or_path": "nano", "dataset": "nano:arithmetic", "dataset_config": None, "columns": {}, "patterns": {},
    "domain": None, "max_rows": 64, "max_test_rows": 8, "use_cpu": True, "use_vllm": False,
    "vllm_enable_sleep_mode": False, "vllm_tensor_parallel_size": 1,
    "questions_per_step": 2, "num_generations": 4, "minibatches_per_rollout": 2, "per_device_train_batch_size": 4,
    "max_completion_length": 12, "longer_max_completion_length": 32, "longer_completions_from_step": 8200,
    "max_steps": 2, "heldout_questions": 2, "heldout_samples": 2, "heldout_cons_k": None, "heldout_pass_k": [],
    "heldout_curve_questions": 2, "heldout_curve_samples": 2, "save_steps": 2,
}  # fmt: skip


def swapped(name: str, folder: Path, **changes: object) -> Path:
    """Write a shipped configuration with nano in the model's place."""
    config = yaml.safe_load(CONFIGS[name].read_text(encoding="utf-8"))
    config |= SWAPPED | {"output_dir": str(folder / "run")} | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    return path


def run(config: Path, *options: str) -> dict:
    report = r1_zero(*parse_r1_zero(["--config", str(config), *options]))
    assert report is not None
    return report


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_takes_two_steps(name: str, tmp_path: Path) -> None:
    shipped = yaml.safe_load(CONFIGS[name].read_text(encoding="utf-8"))
    if shipped.get("load_in_4bit"):
        pytest.importorskip("bitsandbytes")
    config = swapped(name, tmp_path)
    report = run(config)
    folder = tmp_path / "run"
    assert report["steps"] == 2
    # What was not overridden is the configuration's own.
    assert report["settings"]["learning_rate"] == pytest.approx(shipped.get("learning_rate", 3e-6))
    assert report["held_out"]["temperature"] == shipped.get("heldout_temperature", 1.0)
    weights = "adapter_model.safetensors" if shipped.get("use_peft") else "model.safetensors"
    for artifact in (weights, "tokenizer.json", "generation_config.json", "report.json", "curves.png", "README.md"):
        assert (folder / artifact).stat().st_size > 0, artifact


def test_report_holds_what_the_issue_names(tmp_path: Path) -> None:
    curve = 2
    sizes = {"heldout_questions": 4, "heldout_samples": 4, "heldout_pass_k": [2], "max_completion_length": 48}
    run(
        swapped(
            "nano_cpu",
            tmp_path,
            dataset="nano:countdown",
            heldout_every_steps=1,
            heldout_curve_questions=curve,
            **sizes,
        )
    )
    folder = tmp_path / "run"
    report = json.loads((folder / "report.json").read_text())
    for side in ("before", "after"):
        for key in ("pass@1", "cons@4", "pass@2", "pass@1_lenient", "well_formed", "truncated"):
            low, high = report[side]["intervals"][key]
            assert 0 <= low <= report[side][key] <= high <= 1, key
        assert "modes" in report[side]
    assert report["seconds"] >= report["train_seconds"] > 0
    assert report["seed"] == 0
    assert report["versions"]["trl"]
    eos = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    base = json.loads((RECIPES.parent / "trl_r1/nano/checkpoints/default/generation_config.json").read_text())
    assert set(base["eos_token_id"]) <= set(eos)
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    points = [entry for entry in log if "eval_pass@1" in entry]
    assert [entry["step"] for entry in points] == [0, 1, 2]
    # The last point is the first questions' share of the evaluation after training, which is sampled once.
    after = json.loads((folder / "heldout_after.json").read_text())["problems"][:curve]
    assert points[-1]["eval_pass@1"] == pytest.approx(sum(one["correct"] / one["n"] for one in after) / len(after))


def test_lr_zero_changes_nothing(tmp_path: Path) -> None:
    report = run(swapped("nano_cpu", tmp_path, learning_rate=0.0, dataset="nano:countdown"))
    assert report["change"]["pass@1"] == [0.0, 0.0, 0.0]


def test_interrupted_run_resumes_from_its_last_whole_checkpoint(tmp_path: Path) -> None:
    # Warm-up by ratio and cosine decay depend on max_steps, so both runs must be told the same.
    config = swapped("nano_cpu", tmp_path, max_steps=4, minibatches_per_rollout=1, save_steps=2, save_total_limit=9)
    run(config)
    whole = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    before = (tmp_path / "run" / "heldout_before.json").read_text()
    # A kill at step 4 leaves checkpoint-2 and a half-written one.
    for name in ("report.json", "curves.png", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "checkpoint-4" / "trainer_state.json").write_text('{"half')
    report = run(config, "--resume_from_checkpoint", "auto")
    assert report["steps"] == 4
    assert (tmp_path / "run" / "heldout_before.json").read_text() == before
    resumed = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]

    def figures(log: list[dict]) -> list[tuple]:
        return [(e["step"], e["reward"], e["completions/mean_length"]) for e in log if "reward" in e]

    assert figures(resumed) == figures(whole)


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    config = swapped("nano_cpu", tmp_path, max_steps=50, save_steps=50)
    seen = tmp_path / "run" / "heldout_before.json"

    def interrupt() -> None:
        while not seen.exists():
            if stop.wait(0.2):
                return
        os.kill(os.getpid(), signal.SIGINT)

    stop = threading.Event()
    watcher = threading.Thread(target=interrupt)
    watcher.start()
    try:
        with pytest.raises(KeyboardInterrupt, match=r"Stopped at step \d+ of 50.*--resume_from_checkpoint auto"):
            run(config)
    finally:
        stop.set()
        watcher.join()
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["global_step"] < 50
    assert state["global_step"] % 2 == 0  # two updates per rollout: stopped where one ends
    assert not (tmp_path / "run" / "report.json").exists()
    assert (tmp_path / "run" / "curves.png").exists()


def test_recipe_is_thin_and_runs_as_a_script(tmp_path: Path) -> None:
    script = RECIPES / "r1_zero.py"
    assert len(script.read_text().splitlines()) <= 150
    shutil.copy(script, tmp_path / "elsewhere.py")
    command = [sys.executable, str(tmp_path / "elsewhere.py"), "--preview", "--use_vllm", "false", "--max_rows", "64"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy_reward 1.0") == 3


@pytest.mark.parametrize("path", sorted((RECIPES / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_processes >= 1


def test_two_processes_share_the_held_out_questions(tmp_path: Path) -> None:
    # Five questions over two ranks: the odd one out must be counted once.
    config = swapped("nano_cpu", tmp_path, heldout_questions=5, heldout_every_steps=1, heldout_curve_questions=3)
    command = [sys.executable, "-m", "trl_r1.cli", "r1-zero", "--num_processes", "2", "--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (done.stdout + done.stderr).count("Forward passes: padded") == 1, "what was chosen is said, once"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["world_size"] == 2
    assert report["after"]["problems"] == 5
    assert report["after"]["samples"] == 10
