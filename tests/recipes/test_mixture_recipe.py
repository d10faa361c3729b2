"""The mixture stage from a configuration: nano offline, and the data set it leaves loads with its card."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trl_r1.data.mixture import R1_COMPOSITION
from trl_r1.exceptions import ConfigurationError
from trl_r1.pipeline.configs import find_config
from trl_r1.pipeline.mixture import STAGE, MixtureArguments, parse_mixture, run


def test_nano_gives_a_data_set_with_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from datasets import load_dataset

    folder = tmp_path / "mixture"
    assert run(["--output_dir", str(folder), "--workers", "1", "--total_rows", "400"]) == 0
    assert "400 rows in 1 files" in capsys.readouterr().out
    rows = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.column_names == ["id", "prompt", "completion", "domain", "language", "license", "source"]
    assert {name: rows["source"][:].count(name) for name in ("reasoning", "general")} == {
        "reasoning": 300,
        "general": 100,
    }
    card = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (card["license"], card["language"]) == ("apache-2.0", ["en", "zh"])
    report = json.loads((folder / "mixture.json").read_text())
    assert report["rows"] == 400
    # Another size is another mixture; asked for, it replaces the first.
    arguments = ["--output_dir", str(folder), "--workers", "1", "--total_rows", "200"]
    with pytest.raises(ConfigurationError, match="overwrite"):
        run(arguments)
    assert run([*arguments, "--overwrite", "true"]) == 0
    assert json.loads((folder / "mixture.json").read_text())["rows"] == 200


def test_trainer_takes_the_rows(tmp_path: Path) -> None:
    """What the mixture writes is what the SFT stage reads as it is."""
    from trl_r1.data.traces import TraceConfig, load_traces

    run(["--output_dir", str(tmp_path), "--workers", "1", "--total_rows", "40"])
    file = next((tmp_path / "data").iterdir())
    traces = load_traces(TraceConfig(traces=str(file), without_thinking="general"))
    assert len(traces) == 40
    assert set(traces["license"]) == {"apache-2.0"}


def test_r1s_composition_is_the_papers() -> None:
    settings = yaml.safe_load(find_config(STAGE, "r1_800k").read_text())
    arguments = MixtureArguments(**settings)
    weights = {source.domain or source.only_domains[0]: source.weight for source in arguments.config.sources}
    assert weights == R1_COMPOSITION
    assert arguments.total_rows == sum(R1_COMPOSITION.values()) == 804_745
    assert (arguments.config.ngram, arguments.config.min_matches) == (10, 1)


def test_entries_come_from_the_command_line_as_json(tmp_path: Path) -> None:
    entry = json.dumps([{"name": "a", "traces": "a.jsonl", "only_domains": ["math", "code"]}])
    parsed = parse_mixture(["--sources", entry, "--near_duplicates", "0"]).config
    assert parsed.sources[0].only_domains == ("math", "code")
    assert parsed.duplicates is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": "[{"}, "no JSON list"),
        ({"sources": ["a.jsonl"]}, "'a.jsonl'.*must map"),
        ({"sources": [{"name": "a", "trace": "b"}]}, "'trace'.*'traces'"),
        ({"sources": [{"name": "a"}]}, "has no traces"),
        ({"sources": [{"name": "a", "traces": "b"}], "benchmarks": [{"name": "m"}]}, "has no dataset"),
        ({}, "at least one source"),
    ],
)
def test_bad_entries(settings: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MixtureArguments(**settings).config  # noqa: B018


@pytest.mark.full
def test_recipe_runs_as_a_script(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "recipes" / "mixture.py"
    subprocess.run([sys.executable, str(script), "--output_dir", str(tmp_path / "out")], check=True)
    assert (tmp_path / "out" / "README.md").is_file()
