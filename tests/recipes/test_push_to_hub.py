"""`--push_to_hub` uploads model, report, curves and our card, by the calls that the Hub's own client makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

OPTIONS = [
    "r1-zero",
    "--config",
    "nano_cpu",
    "--use_vllm",
    "false",
    "--max_rows",
    "32",
    "--max_test_rows",
    "4",
    "--max_steps",
    "1",
    "--questions_per_step",
    "2",
    "--num_generations",
    "4",
    "--per_device_train_batch_size",
    "8",
    "--max_completion_length",
    "16",
    "--heldout_questions",
    "2",
    "--heldout_samples",
    "2",
    "--heldout_every_steps",
    "0",
    "--save_strategy",
    "no",
    "--push_to_hub",
    "true",
    "--hub_model_id",
    "tester/nano-zero",
    "--hub_private_repo",
    "true",
]


def test_model_and_card_reach_the_hub(hub: Any, tmp_path: Path) -> None:
    # The endpoint is read when huggingface_hub is imported: hence a process of its own.
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "trl_r1.cli", *OPTIONS, "--output_dir", str(tmp_path / "run")],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    uploaded = hub.repos["tester/nano-zero"]
    for name in (
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
        "report.json",
        "curves.png",
        "README.md",
    ):
        assert uploaded[name] == (tmp_path / "run" / name).read_bytes(), name
    card = uploaded["README.md"].decode()
    header = yaml.safe_load(card.split("---")[1])
    assert {"trl-r1", "r1-zero"} <= set(header["tags"])
    assert header["model-index"][0]["name"] == "nano-zero"
    assert "![Training curves](curves.png)" in card
    assert json.loads(uploaded["report.json"])["steps"] == 1
    assert "Bearer hf_test" in hub.tokens
    kinds = {call.split("/")[-2] for call in hub.calls if call.startswith("POST /api/models")}
    assert kinds == {"preupload", "commit"}
    assert "POST /api/repos/create" in hub.calls
    assert not [call for call in hub.unknown if not call.startswith("HEAD")], hub.unknown
