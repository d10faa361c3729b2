"""TRL's own command line with our rewards: no class of this package trains here."""

import json
import os
import subprocess
import sys
from pathlib import Path

from trl_r1.nano import NanoWorld, checkpoint_path
from trl_r1.prompts import PromptTemplate


def test_trl_grpo_takes_our_rewards_by_name(tmp_path: Path) -> None:
    """`trl grpo --reward_funcs trl_r1.rewards.accuracy_reward …` takes two steps; both rewards stand in its log."""
    rows = NanoWorld().rows("train", 8, tasks=["arithmetic"], language="en")
    data = tmp_path / "data"
    data.mkdir()
    prompts = PromptTemplate("base")
    lines = [json.dumps({"prompt": prompts.render(row.prompt), "solution": row.reference}) + "\n" for row in rows]
    (data / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    command = [
        *(str(Path(sys.executable).with_name("trl")), "grpo", "--model_name_or_path", str(checkpoint_path())),
        *(
            "--dataset_name",
            str(data),
            "--output_dir",
            str(tmp_path / "out"),
            "--use_cpu",
            "true",
            "--dtype",
            "float32",
        ),
        *("--reward_funcs", "trl_r1.rewards.accuracy_reward", "trl_r1.rewards.format_reward"),
        *("--max_steps", "2", "--num_generations", "8", "--per_device_train_batch_size", "16", "--logging_steps", "1"),
        *(
            "--max_completion_length",
            "48",
            "--report_to",
            "none",
            "--gradient_checkpointing",
            "false",
            "--bf16",
            "false",
        ),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (state,) = (tmp_path / "out").glob("checkpoint-*/trainer_state.json")
    logged = [entry for entry in json.loads(state.read_text())["log_history"] if "reward" in entry]
    assert len(logged) == 2
    for name in ("accuracy_reward", "format_reward"):
        assert all(0.0 <= entry[f"rewards/{name}/mean"] <= 1.0 for entry in logged), name
    # The base writes R1-Zero's form in seven answers of ten, and answers arithmetic at least sometimes.
    assert sum(entry["rewards/format_reward/mean"] for entry in logged) > 0.5
    assert sum(entry["rewards/accuracy_reward/mean"] for entry in logged) > 0
