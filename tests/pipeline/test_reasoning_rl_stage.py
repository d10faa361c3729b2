"""Reasoning RL before any weight is loaded: R1's settings, shipped configurations, what is refused, the preview."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trl_r1.exceptions import ConfigurationError, DataError, TrlR1Error
from trl_r1.pipeline import parse_r1_zero, parse_reasoning_rl, reasoning_rl
from trl_r1.pipeline.configs import config_names
from trl_r1.pipeline.preflight import some_of_each
from trl_r1.rewards import build_rewards
from trl_r1.rows import Row

SMALL = ["--use_cpu", "true", "--use_vllm", "false", "--max_rows", "64", "--max_test_rows", "16", "--report_to", "none"]
# R1's reasoning RL (arXiv 2501.12948v2 §3.2.1; Nature 2025, Methods).
RL_1 = {
    "epsilon": 10.0, "temperature": 1.0, "beta": 0.001, "num_generations": 16, "ref_model_sync_steps": 400,
    "ref_model_mixup_alpha": 1.0, "sync_ref_model": True, "top_p": 1.0, "scale_rewards": "group",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a checkpoint is opened or a model built."""
    import transformers

    def loaded(*args: object, **kwargs: object) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", loaded)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", loaded)


def run(tmp_path: Path, *options: str) -> None:
    reasoning_rl(*parse_reasoning_rl([*SMALL, "--output_dir", str(tmp_path / "run"), *options]))


def test_defaults_are_those_of_the_paper(tmp_path: Path) -> None:
    options = ["--dataset", "nano:choice", "--use_vllm", "false", "--use_cpu", "true", "--output_dir", str(tmp_path)]
    script, training, _ = parse_reasoning_rl(options)
    assert {name: getattr(training, name) for name in RL_1} == RL_1
    assert training.learning_rate == 3e-6
    assert script.rewards == ["accuracy", "format", "language_consistency"]
    assert parse_r1_zero(options)[0].rewards == ["accuracy", "format"]


@pytest.mark.parametrize("name", config_names("reasoning_rl"))
def test_shipped_configuration(name: str, tmp_path: Path) -> None:
    script, training, _ = parse_reasoning_rl(
        ["--config", name, "--use_vllm", "false", "--use_cpu", "true", "--bf16", "false", "--output_dir", str(tmp_path)]
    )
    assert {key: getattr(training, key) for key in RL_1} == RL_1
    assert "language_consistency" in script.rewards
    rewards = build_rewards(script.rewards, settings=script.reward_settings, max_length=training.max_completion_length)
    assert training.reward_weights is None or len(training.reward_weights) == len(rewards)
    sources = script.sources
    assert len({source.config.dataset for source in sources}) == len(sources) > 1
    assert all(source.weight for source in sources)


@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        (
            ("--reward_weights", "1", "2"),
            ConfigurationError,
            ("2 weights for 3 rewards", "language_consistency_reward"),
        ),
        (("--reward_settings", '{"format": {"strict": true}}'), ConfigurationError, ("'format'", "takes no settings")),
        (("--reward_settings", "{"), ConfigurationError, ("reward_settings is no JSON",)),
        (("--reward_settings", '{"language_consistency": {"target": "xx"}}'), ConfigurationError, ("'xx'", "'zh'")),
        (("--domain_rewards", '{"math": ["accuracy"]}'), ConfigurationError, ("'code'", "'math'", "'default'")),
        (("--rewards", "soft_overlong"), ConfigurationError, ("needs cache",)),
        (("--reward_workers", "-1"), ConfigurationError, ("reward_workers=-1", "0 (none)")),
        (("--datasets", '[{"dataset": "nano:choise"}]'), ConfigurationError, ("'choise'", "'choice'")),
        (("--datasets", '[{"dataset": "nowhere.jsonl"}]'), DataError, ("nowhere.jsonl",)),
        (("--datasets", '[{"dataset": "nano:choice", "weight": -1}]'), ConfigurationError, ("weight", "above 0")),
    ],
)
def test_refused_before_loading(
    tmp_path: Path, options: tuple[str, ...], error: type[TrlR1Error], parts: tuple[str, ...]
) -> None:
    data = (
        ()
        if "--datasets" in options
        else ("--datasets", '[{"dataset": "nano:choice"}, {"dataset": "nano:code_output"}]')
    )
    with pytest.raises(error) as raised:
        run(tmp_path, "--config", "nano_cpu", *data, *options)
    for part in parts:
        assert part in str(raised.value), f"{part!r} not in: {raised.value}"


def test_preview_shows_every_domain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    routes = json.dumps({"logic": {"accuracy": 2.0}, "default": ["accuracy", "format"]})
    settings = json.dumps({"language_consistency": {"target": "zh"}})
    more = ("--rewards", "language_consistency", "--domain_rewards", routes, "--reward_settings", settings)
    run(tmp_path, "--config", "nano_cpu", "--preview", *more)
    shown = capsys.readouterr().out
    assert shown.count("routed_reward 2.0, accuracy_reward 1.0") == 3
    assert shown.count("language_consistency_reward 0.0") == 3, "the gold completion thinks in English"
    assert "320 questions to train on; 80 held out" in shown


def test_gold_of_every_domain_is_checked() -> None:
    rows = [Row("a", "1", "math")] * 30 + [Row("b", "1", "code", verifier="exact")] + [Row("c", "1", "code")] * 2
    assert [row.prompt for row in some_of_each(rows, 2)] == ["a", "a", "b", "c", "c"]
