"""Names of configurations, wherever the package is installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trl_r1.exceptions import ConfigurationError
from trl_r1.pipeline import configs
from trl_r1.pipeline.configs import config_names, find_config, with_config_path

STAGE = "r1_zero"
OPTIONS = ("--dataset", "--model_name_or_path")


def test_shipped_names() -> None:
    assert {"nano_cpu", "nano_gpu", "r1_paper", "qwen2.5_1.5b"} <= set(config_names(STAGE))
    assert find_config(STAGE, "qwen2.5_1.5b").name == "qwen2.5_1.5b.yaml"
    assert find_config(STAGE, "nano_cpu.yaml") == find_config(STAGE, "nano_cpu")


def test_own_file_goes_before_a_name(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("seed: 1\n")
    assert find_config(STAGE, str(own)) == own


def test_names_are_found_inside_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # hatch copies recipes/configs to trl_r1/configs; the original is not there then.
    shutil.copytree(find_config(STAGE, "nano_cpu").parent, tmp_path / "configs" / STAGE)
    monkeypatch.setattr(configs, "_FOLDERS", (tmp_path / "configs", tmp_path / "absent"))
    assert find_config(STAGE, "nano_cpu") == tmp_path / "configs" / STAGE / "nano_cpu.yaml"


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigurationError, match=r"Unknown configuration 'nano_tpu'.*'nano_cpu'.*path of a YAML file"):
        find_config(STAGE, "nano_tpu")


@pytest.mark.parametrize(
    ("args", "default"),
    [
        ([], True),
        (["--max_steps", "2"], True),
        (["--dataset", "x.jsonl"], False),
        (["--dataset=x.jsonl"], False),
        (["--model-name-or-path", "x"], False),
    ],
)
def test_default_configuration_only_where_nothing_else_is_said(args: list[str], default: bool) -> None:
    resolved = with_config_path(STAGE, args, "nano_cpu", OPTIONS)
    assert ("--config" in resolved) is default
    assert resolved[-len(args) :] == args or not args


@pytest.mark.parametrize("args", [["--config", "nano_gpu", "--seed", "3"], ["--config=nano_gpu", "--seed", "3"]])
def test_name_is_replaced_by_its_file(args: list[str]) -> None:
    resolved = with_config_path(STAGE, args, "nano_cpu", OPTIONS)
    assert resolved == ["--config", str(find_config(STAGE, "nano_gpu")), "--seed", "3"]


def test_option_without_value() -> None:
    with pytest.raises(ConfigurationError, match="needs a name"):
        with_config_path(STAGE, ["--config"], "nano_cpu", OPTIONS)
