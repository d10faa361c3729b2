"""The rejection-sampling stage: every shipped configuration with nano in the model's place, a kill, what the report holds."""

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
from datasets import Dataset

from trl_r1.exceptions import ConfigurationError
from trl_r1.pipeline.configs import config_names
from trl_r1.pipeline.rejection_sampling import parse_rejection_sampling, rejection_sampling

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
CONFIGS = config_names("rejection_sampling")
# Only what a laptop forces: model, data set, sizes and backend.
SWAPPED = {
    "model_name_or_path": "nano", "dataset": "nano:arithmetic", "datasets": None, "dataset_config": None, "columns": {},
    "patterns": {}, "domain": None, "depth": None, "max_rows": 6, "max_test_rows": 2, "backend": "transformers",
    "engine_options": None, "max_num_seqs": 32, "max_tokens": 48, "dtype": "float32", "template": "base", "workers": 1,
    "samples": 8, "max_accepted": 2, "language": None,
}  # fmt: skip


def swapped(name: str, folder: Path, **changes: object) -> Path:
    """Write a shipped configuration with nano in the model's place."""
    config = yaml.safe_load(CONFIGS[name].read_text(encoding="utf-8"))
    config |= SWAPPED | {"output_dir": str(folder / "run")} | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    return path


def run(config: Path, *options: str) -> dict:
    report = rejection_sampling(*parse_rejection_sampling(["--config", str(config), *options]))
    assert report is not None
    return report


def accepted(folder: Path) -> dict[str, list[tuple[int, str]]]:
    rows = Dataset.from_parquet(str(folder / "run" / "candidates.parquet"))
    return {row["id"]: [(one["index"], one["text"]) for one in row["candidates"] if one["accepted"]] for row in rows}


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_is_read(name: str) -> None:
    script_args, sampler_config = parse_rejection_sampling(["--config", name])
    assert script_args.output_dir.startswith("runs/rejection_")
    assert sampler_config.settings().temperature == 1.0


@pytest.mark.parametrize(
    "name", [name if name == "nano_cpu" else pytest.param(name, marks=pytest.mark.full) for name in CONFIGS]
)
def test_configuration_samples_nano(name: str, tmp_path: Path) -> None:
    shipped = yaml.safe_load(CONFIGS[name].read_text(encoding="utf-8"))
    # The shipped filters ask for more words than nano's arithmetic needs.
    report = run(swapped(name, tmp_path, filter_settings={"length": {"min_words": 1}}))
    assert report["total"]["rows"] == 6
    assert report["total"]["accepted"] > 0
    assert report["settings"]["filters"] == ["structure", "code", "length", "repetition", "language"]
    assert report["sampling"]["temperature"] == shipped["temperature"]
    assert report["parent"]["hash"].startswith("sha256:")
    assert report["speed"]["tokens_per_s"] > 0
    assert all(len(found) <= 2 for found in accepted(tmp_path).values())


def shards(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((folder / "run" / "shards").glob("shard-*.jsonl"))}


def test_a_killed_run_goes_on_and_comes_to_the_same(tmp_path: Path) -> None:
    """`kill -9` in the middle of a real run: whole shards stay, nothing is sampled twice, the seed gives the same rows."""
    options = {
        "dataset": "nano:countdown,arithmetic", "max_rows": 16, "samples": 6, "max_tokens": 32, "max_num_seqs": 6,
        "shard_samples": 4, "filter_settings": None,
    }  # fmt: skip
    config = swapped("nano_cpu", tmp_path, **options)
    command = [
        sys.executable, "-c", "import sys; from trl_r1.pipeline.rejection_sampling import run; sys.exit(run(sys.argv[1:]))",
        "--config", str(config),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 300
        while len(shards(tmp_path)) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output[-3000:]
    kept = shards(tmp_path)
    assert len(kept) >= 2
    assert not (tmp_path / "run" / "candidates.parquet").exists()
    # The time that the kept samples took is kept with them.
    noted = json.loads((tmp_path / "run" / "speed-00000.json").read_text())
    assert noted["seconds"] > 0
    assert noted["samples"] > 0

    report = run(config)
    speed = report["speed"]
    assert speed["starts"] == 2
    assert speed["seconds"] > noted["seconds"]
    assert speed["samples"] > noted["samples"]
    assert speed["accepted_per_s"] == pytest.approx(report["total"]["accepted"] / speed["seconds"], rel=0.05)
    after = shards(tmp_path)
    assert {name: after[name] for name in kept} == kept
    records = [json.loads(line) for text in after.values() for line in text.splitlines()]
    asked = [(record["key"], record["index"]) for record in records if not record.get("closed")]
    assert len(asked) == len(set(asked)) == report["total"]["samples"]

    whole = tmp_path / "whole"
    whole.mkdir()
    run(swapped("nano_cpu", whole, **options))
    ours, expected = accepted(tmp_path), accepted(whole)
    assert {key: [index for index, _ in found] for key, found in ours.items()} == {
        key: [index for index, _ in found] for key, found in expected.items()
    }
    assert ours == expected


@pytest.mark.full
def test_another_run_in_the_folder_is_refused_until_it_is_overwritten(tmp_path: Path) -> None:
    config = swapped("nano_cpu", tmp_path, dataset="nano:arithmetic", filter_settings=None, max_rows=2)
    run(config)
    with pytest.raises(ConfigurationError, match="other settings"):
        run(config, "--max_accepted", "1")
    assert run(config, "--max_accepted", "1", "--overwrite", "true")["speed"]["starts"] == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--n", "4"), r"n=4.*samples"),
        (("--filters", "lenght"), r"'lenght'.*'length'"),
        (("--max_accepted", "9"), r"max_accepted=9.*8 samples"),
        (("--judge_prompt", "x"), r"judge_prompt 'x'"),
        (("--dataset", "nano:general"), r"rows .*no rule.*judge"),
        (("--datasets", '[{"dataset": "nano:arithmetic", "weight": 1}, {"dataset": "nano:choice", "weight": 1}]'), "Weights"),
        (("--backend", "server"), "server_urls"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_any_weight_is_loaded(
    option: tuple[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = swapped("nano_cpu", tmp_path, max_rows=2, filter_settings=None)
    monkeypatch.setattr("trl_r1.pipeline.rejection_sampling.open_sampler", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigurationError, match=message):
        run(config, *option)
