"""The model card: what it says, and that the Hub can read its metadata."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from trl_r1.cards import CardFacts, model_card, write_card
from trl_r1.cards.card import is_hub_id

FACTS = CardFacts(
    name="nano-zero",
    stage="R1-Zero",
    base_model="Qwen/Qwen2.5-1.5B",
    dataset="openai/gsm8k",
    rewards=["accuracy", "format"],
    summary={"pass@1": 0.6123, "cons@16": 0.7, "well_formed": 0.99},
    table="| | before | after |\n|---|---|---|\n| pass@1 (%) | 20.0 | 61.2 |",
    protocol="Measured on 128 held-out questions × 16 samples.",
    settings={"learning_rate": 3e-6, "beta": 0.001},
    versions={"trl": "1.16.0", "python": "3.11.2"},
    steps=40,
    prompt="User: {your question}. Assistant:",
    curves="curves.png",
    languages=["en", "zh"],
)


def metadata(card: Path) -> dict:
    text = card.read_text(encoding="utf-8")
    return yaml.safe_load(text.split("---")[1])


def test_metadata_is_what_the_hub_asks_for(tmp_path: Path) -> None:
    seen = metadata(write_card(FACTS, tmp_path))
    assert seen["base_model"] == "Qwen/Qwen2.5-1.5B"
    assert seen["datasets"] == ["openai/gsm8k"]
    assert seen["library_name"] == "transformers"
    assert seen["pipeline_tag"] == "text-generation"
    assert {"trl-r1", "grpo", "r1-zero"} <= set(seen["tags"])
    results = seen["model-index"][0]["results"][0]
    assert results["dataset"]["type"] == "openai/gsm8k"
    assert {m["type"]: m["value"] for m in results["metrics"]} == {"pass@1": 61.23, "cons@16": 70.0}


def test_card_is_read_back(tmp_path: Path) -> None:
    path = write_card(FACTS, tmp_path)
    card = ModelCard.load(path)
    assert card.data.eval_results[0].metric_value == 61.23
    for part in ("# nano-zero", "| pass@1 (%) | 20.0 | 61.2 |", "![Training curves](curves.png)", "`learning_rate`",
                 "{your question}", "`accuracy`, `format`", "trl 1.16.0"):  # fmt: skip
        assert part in card.text, part
    assert "{{" not in card.text.replace("{{DeepSeek", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md"]


def test_local_model_and_data_stay_out_of_the_metadata(tmp_path: Path) -> None:
    local = replace(FACTS, base_model=str(tmp_path), dataset="nano:countdown", curves=None, peft=True)
    card = model_card(local)
    assert card.data.base_model is None
    assert card.data.datasets is None
    assert card.data.library_name == "peft"
    assert "curves.png" not in str(card)
    assert str(tmp_path) in str(card)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Qwen/Qwen2.5-7B", True), ("gpt2", True), ("nano:countdown", False), ("/tmp/model", False), ("./model", False),
     ("a/b/c", False), ("data.jsonl/../x", False)],
)  # fmt: skip
def test_hub_ids(name: str, expected: bool) -> None:
    assert is_hub_id(name) is expected
