"""The data-set card: licences, figures, and that `datasets` and the Hub can read it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard

from trl_r1.cards import DatasetFacts, dataset_card, write_dataset_card
from trl_r1.cards.dataset import hub_license, size_category

FACTS = DatasetFacts(
    name="r1-mixture",
    description="Traces of two sources.",
    rows=4,
    sources=[
        {"name": "math", "traces": "open-r1/OpenR1-Math-220k", "license": ["apache-2.0"], "read": 9_000, "usable": 8_000, "rows": 3},
        {"name": "general", "traces": "data/general.jsonl", "license": [], "read": 5, "usable": 2, "rows": 1},
    ],
    domains={"math": 3, "general": 1},
    languages={"en": 3, "zh": 1, "unknown": 0},
    licenses={"apache-2.0": 3, "unknown": 1},
    dropped={"contaminated": 12, "near-duplicate": 34},
    filters=["Near-duplicates: the first is kept."],
    benchmarks=[{"name": "math500", "rows": 500, "contaminated": 12}],
    template="User: {your question}. Assistant:",
    mean_bytes=1234,
    repository="me/r1-mixture",
    versions={"trl-r1": "0.1.0"},
)  # fmt: skip


def test_metadata_is_what_the_hub_asks_for(tmp_path: Path) -> None:
    text = write_dataset_card(FACTS, tmp_path).read_text(encoding="utf-8")
    seen = yaml.safe_load(text.split("---")[1])
    assert seen["license"] == ["apache-2.0", "unknown"]
    assert seen["language"] == ["en", "zh"]
    assert seen["size_categories"] == ["n<1K"]
    assert seen["task_categories"] == ["text-generation"]
    assert seen["source_datasets"] == ["open-r1/OpenR1-Math-220k"]
    assert seen["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.jsonl"}]}
    ]
    assert {"trl-r1", "reasoning", "sft"} <= set(seen["tags"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md"]


def test_card_says_what_went_in_and_what_was_left_out(tmp_path: Path) -> None:
    card = DatasetCard.load(write_dataset_card(FACTS, tmp_path))
    for part in (
        "# r1-mixture", "| math | `open-r1/OpenR1-Math-220k` | apache-2.0 | 9,000 | 8,000 | 3 |",
        "| general | `data/general.jsonl` | not stated | 5 | 2 | 1 |", "| contaminated | 12 |", "| near-duplicate | 34 |",
        "| math500 | 500 | 12 |", "| apache-2.0 | 3 | 75.0 % |", "**1 rows come from sources that state none.**",
        "User: {your question}. Assistant:", 'load_dataset("me/r1-mixture"', "Near-duplicates: the first is kept.",
    ):  # fmt: skip
        assert part in card.text, part
    assert "{{" not in card.text.replace("{{DeepSeek", "")


def test_one_licence_is_one_id_and_nothing_left_out_is_said() -> None:
    one = replace(FACTS, licenses={"MIT License": 4}, dropped={}, benchmarks=[], template=None, repository=None)
    card = dataset_card(one)
    assert card.data.license == "mit"
    assert "Nothing." in card.text
    assert "state none" not in card.text
    assert 'load_dataset("path/to/r1-mixture"' in card.text


@pytest.mark.parametrize(
    ("name", "expected"),
    [("MIT", "mit"), ("CC BY 4.0", "cc-by-4.0"), ("Apache 2", "apache-2.0"), ("cc-by-nc-4.0", "cc-by-nc-4.0"),
     ("public contest", "other"), ("unknown", "unknown")],
)  # fmt: skip
def test_licence_ids(name: str, expected: str) -> None:
    assert hub_license(name) == expected


def test_sizes() -> None:
    assert [size_category(rows) for rows in (999, 1_000, 804_745, 5_000_000)] == [
        "n<1K", "1K<n<10K", "100K<n<1M", "1M<n<10M",
    ]  # fmt: skip


def test_folder_with_the_card_loads(tmp_path: Path) -> None:
    from datasets import load_dataset

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    (tmp_path / "dropped.jsonl").write_text(json.dumps({"reason": "other columns"}) + "\n")
    (tmp_path / "mixture.json").write_text("{}")
    write_dataset_card(FACTS, tmp_path)
    rows = load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows[0] == {"prompt": "a", "completion": "b"}
