"""Reasoning RL takes real steps: from nano, then from its own result; what it reports by domain and by language."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from trl_r1.pipeline import parse_reasoning_rl, reasoning_rl
from trl_r1.pipeline.configs import config_names

ROOT = Path(__file__).resolve().parents[2]
# Only what a test forces: sizes, and generation without an engine start.
SMALL = {
    "use_vllm": False, "max_rows": 16, "max_test_rows": 6, "questions_per_step": 2, "num_generations": 4,
    "per_device_train_batch_size": 4, "max_completion_length": 24, "max_steps": 2, "heldout_questions": 30,
    "heldout_samples": 2, "heldout_every_steps": 1, "heldout_curve_questions": 5, "heldout_curve_samples": 2,
    "save_steps": 2,
}  # fmt: skip


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    config = yaml.safe_load(config_names("reasoning_rl")["nano_cpu"].read_text(encoding="utf-8"))
    path = folder / "config.yaml"
    folder.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(config | SMALL | {"output_dir": str(folder / "run")} | changes))
    report = reasoning_rl(*parse_reasoning_rl(["--config", str(path)]))
    assert report is not None
    return report


def test_from_nano_and_from_its_result(tmp_path: Path) -> None:
    report = run(tmp_path / "first")
    folder = tmp_path / "first" / "run"
    assert report["steps"] == 2
    assert report["stage"] == "Reasoning RL"
    assert report["dataset"].startswith("nano:arithmetic + nano:countdown")
    for side in ("before", "after"):
        domains = report[side]["by_domain"]
        assert {name: part["problems"] for name, part in domains.items()} == {
            "math": 6, "logic": 12, "stem": 6, "code": 6,
        }  # fmt: skip
        assert set(report[side]["by_language"]) == {"en", "zh"}
        low, high = domains["logic"]["intervals"]["pass@1"]
        assert 0 <= low <= domains["logic"]["pass@1"] <= high <= 1
    assert set(report["change_by_domain"]) == {"math", "logic", "stem", "code"}
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    points = [entry for entry in log if "eval_pass@1/math" in entry]
    assert [point["step"] for point in points] == [0, 1, 2]
    assert any("rewards/language_consistency_reward/mean" in entry for entry in log)
    card = (folder / "README.md").read_text()
    assert "| pass@1, stem (%)" in card
    assert "language_consistency" in card

    # The next run starts from that checkpoint, by domain, with the rewards in a process of their own.
    routes = {"logic": {"format": {0: 1.0, 1: 0.0}, "cosine": 1.0}, "default": ["accuracy", "cosine"]}
    again = run(
        tmp_path / "second", model_name_or_path=str(folder), rewards=["language_consistency"], domain_rewards=routes,
        reward_settings={"language_consistency": {"target": "zh"}}, reward_weights=[0.5, 1.0], reward_workers=1,
    )  # fmt: skip
    assert again["model"] == str(folder)
    assert set(again["rewards"]) == {"language_consistency", "accuracy", "format", "cosine"}
    state = tmp_path / "second" / "run" / "checkpoint-2" / "trainer_state.json"
    logged = {key for entry in json.loads(state.read_text())["log_history"] for key in entry}
    assert {"rewards/routed_reward/mean", "rewards/language_consistency_reward/mean"} <= logged
    assert any(key.endswith("/cosine_reward") for key in logged), sorted(logged)


def test_recipe_runs_as_a_script(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "recipes" / "reasoning_rl.py"), "--preview", "--use_vllm", "false"]
    done = subprocess.run(
        [*command, "--max_rows", "64", "--output_dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy_reward 1.0") == 3
