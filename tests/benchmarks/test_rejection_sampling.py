"""The benchmark of rejection sampling: what each variant times, and which ratio is to what."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import plot
import pytest
import rejection_sampling
from rejection_sampling import engine_answers, main, result_rows
from rows import write_results

from trl_r1.generation.base import SamplingSettings, sample_all
from trl_r1.generation.config import SamplerConfig, open_sampler
from trl_r1.nano import NanoWorld, checkpoint_path

SMALL = [
    "--questions",
    "4",
    "--samples",
    "2",
    "--max-accepted",
    "1",
    "--max-tokens",
    "24",
    "--workers",
    "1",
    "--repeats",
    "1",
]
VARIANTS = ["sampler", "then_verify", "streamed", "early_stop"]


def figures(seconds: float, tokens: int, accepted: int) -> dict[str, float]:
    return rejection_sampling._figures(seconds, 8, tokens, accepted)


def test_ratios_are_to_the_engine_and_to_verifying_afterwards(tmp_path: Path) -> None:
    case = {
        "model": "nano", "dataset": "nano:arithmetic", "backend": "VLLMSampler", "questions": 4, "samples": 2,
        "max_accepted": 1, "max_tokens": 24, "max_num_seqs": 8,
    }  # fmt: skip
    found = {
        "bare": figures(1.0, 1000, 0), "sampler": figures(1.0, 980, 0), "then_verify": figures(2.0, 1000, 4),
        "streamed": figures(1.0, 960, 4), "early_stop": figures(0.5, 300, 4),
    }  # fmt: skip
    rows = {row["variant"]: row for row in result_rows(case, found)}
    assert [row["share_of_bare"] for row in rows.values()] == [1.0, 0.98, 0.5, 0.96, 0.6]
    assert [row["ratio_to_then_verify"] for row in rows.values()] == [None, None, 1.0, 2.0, 4.0]
    # Without an engine's own rate nothing is called a share of it; without anything accepted no ratio is made up.
    del found["bare"]
    found["then_verify"] = figures(2.0, 1000, 0)
    assert {(row["share_of_bare"], row["ratio_to_then_verify"]) for row in result_rows(case, found)} == {(None, None)}

    write_results(list(reversed(rows.values())), tmp_path / "rejection_sampling.json")
    text = plot.rejection_table(plot.read(tmp_path, "rejection_sampling"))
    assert "nano on nano:arithmetic" in text
    lines = text.splitlines()[4:]
    assert [line.split("|")[1].strip() for line in lines] == list(plot.REJECTION_NAMES.values())
    assert [cell.strip() for cell in lines[3].split("|")[2:-1]] == ["1.0", "8", "960", "96.0%", "4.00", "2.00"]
    assert [cell.strip() for cell in lines[0].split("|")[-3:-1]] == ["–", "–"]


def test_every_variant_is_run_on_the_same_questions(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    rows = main([*SMALL, "--backend", "transformers", "--seed", "0", "--results", str(path)])
    assert json.loads(path.read_text()) == rows
    assert [row["variant"] for row in rows] == VARIANTS, "transformers has no engine to be asked alone"
    by_name = {row["variant"]: row for row in rows}
    assert [by_name[name]["samples"] for name in VARIANTS[:3]] == [8, 8, 8]
    assert by_name["sampler"]["tokens"] == by_name["streamed"]["tokens"] > 0
    assert by_name["then_verify"]["accepted"] == by_name["streamed"]["accepted"] == by_name["early_stop"]["accepted"]
    assert all(row["share_of_bare"] is None for row in rows)


@pytest.mark.full
def test_bare_is_the_engine_and_not_our_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SamplerConfig(model_name_or_path=str(checkpoint_path()), backend="vllm", max_num_seqs=16, max_tokens=24)
    rows = NanoWorld().rows("train", 6, tasks=["arithmetic"])
    with closing(open_sampler(config)) as sampler:
        greedy = SamplingSettings(temperature=0, max_tokens=24)
        expected = sample_all(sampler, [row.prompt for row in rows], 1, greedy)
        drawn = sample_all(sampler, [row.prompt for row in rows], 3, config.settings())
        prompts = [sampler._codec.encode(row.prompt) for row in rows]  # type: ignore[attr-defined]
        monkeypatch.setattr(sampler, "stream", lambda *_: pytest.fail("our sampler was asked"))
        same = engine_answers(sampler, prompts, greedy, 1)  # type: ignore[arg-type]
        assert [list(answer.outputs[0].token_ids) for answer in same] == [list(one.token_ids) for (one,) in expected]
        answers = engine_answers(sampler, prompts, config.settings(), 3)  # type: ignore[arg-type]
        assert [len(answer.outputs) for answer in answers] == [3] * 6
        assert {len(group) for group in drawn} == {3}
        assert max(len(one.token_ids) for answer in answers for one in answer.outputs) <= 24
        assert sampler.llm.reset_prefix_cache()  # type: ignore[attr-defined]
