"""An evaluation with a sampler whose completions are known: figures, resuming, budgets, tables."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
from scripted import ScriptedSampler
from transformers import AutoTokenizer

from trl_r1.data.sources import SourceConfig
from trl_r1.evaluation import budget as budgets
from trl_r1.evaluation.benchmarks import Benchmark, Problems, shipped
from trl_r1.evaluation.exchange import Scores, collect
from trl_r1.evaluation.protocol import ask, choose_protocol, template_for
from trl_r1.evaluation.run import (
    Counts,
    describe,
    evaluation_of,
    sample_benchmark,
    score_groups,
    share,
    verification_pool,
)
from trl_r1.evaluation.scoreboard import caveats, compared, markdown, measured, rich_tables
from trl_r1.evaluation.special import preference_entry, rating_entry
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.generation.base import SamplingSettings
from trl_r1.nano import checkpoint_path
from trl_r1.prompts import BOXED_INSTRUCTION
from trl_r1.responses import parse
from trl_r1.rows import Row

SETTINGS = SamplingSettings(temperature=0.6, top_p=0.95, max_tokens=200)
ROWS = [Row(f"{n} + 1?", str(n + 1), id=str(n)) for n in range(6)]
SET = Benchmark("sums", "Sums", SourceConfig(dataset="sums.jsonl"), k=4, published=shipped()["math500"].published)


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(checkpoint_path())


def sums(prompt: str, index: int) -> str:
    """Right for the first n samples of question n; question 5 never closes its thinking."""
    n = int(re.findall(r"(\d) \+ 1\?", prompt)[-1])
    if n == 5:
        return "so " * 300
    return f"{n} + 1 </think> so \\boxed{{{n + 1 if index < n else 0}}}"


@pytest.fixture(scope="module")
def pool():
    with verification_pool(8, workers=1) as pool:
        yield pool.start(wait=False)


@pytest.fixture
def run(pool):
    """A function that samples and scores; the workers stay."""

    def evaluate(sampler: ScriptedSampler, folder: Path, rows=ROWS, k: int = 4):
        counts = Counts(k, k, (2,))
        groups = sample_benchmark(SET, rows, sampler, SETTINGS, k, folder)
        return counts, groups, score_groups("sums", groups, counts, pool)

    return evaluate


def test_prompts_follow_r1s_protocol(tokenizer) -> None:
    assert choose_protocol(tokenizer) == "zero"
    zero = template_for(tokenizer)
    assert zero.render(ask("1 + 1?", "boxed", zero)).endswith("User: 1 + 1?. Assistant:")
    template = template_for(tokenizer, "r1")
    text = template.render(ask("1 + 1?", "boxed", template), tokenizer)
    assert BOXED_INSTRUCTION in text
    assert text.endswith("<think>\n")
    assert text.count("<think>") == 1
    assert "system" not in text.lower()
    assert BOXED_INSTRUCTION not in template.render(ask("1 + 1?", "plain", template), tokenizer)
    begun = budgets.continued(ask("1 + 1?", "boxed", template), "two </think>")
    assert template.render(begun, tokenizer) == text + "two </think>"
    # A chat template that knows no `prefill_think` is forced all the same; `own` is left alone.
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    forced, own = template_for(tokenizer, "r1"), template_for(tokenizer, "own")
    assert forced.render(ask("1 + 1?", "boxed", forced), tokenizer).endswith("<assistant><think>\n")
    assert forced.prefill == "<think>\n"
    assert own.render(ask("1 + 1?", "boxed", own), tokenizer).endswith(f"{BOXED_INSTRUCTION}<assistant>")
    assert choose_protocol(tokenizer) == "r1"
    tokenizer.chat_template = None
    with pytest.raises(ConfigurationError, match="has none"):
        choose_protocol(tokenizer, "own")
    with pytest.raises(ConfigurationError, match="'r2'"):
        choose_protocol(tokenizer, "r2")


def test_figures_of_known_samples(run, tokenizer, tmp_path: Path) -> None:
    counts, groups, scores = run(ScriptedSampler(tokenizer, sums), tmp_path)
    assert [score.correct for score in scores] == [0, 1, 2, 3, 4, 0]
    assert groups[0][1][0].prefill == "<think>\n"
    entry = describe(SET, Problems(ROWS, 0, []), counts, evaluation_of("sums", scores, counts))
    assert entry["pass@1"] == pytest.approx(10 / 24)
    # Unbiased pass@2 of c right out of 4.
    assert entry["pass@2"] == pytest.approx((0 + 1 / 2 + 5 / 6 + 1 + 1 + 0) / 6)
    assert entry["cons@4"] == pytest.approx((0 + 0 + 1 / 2 + 1 + 1 + 0) / 6)
    assert entry["truncated"] == pytest.approx(1 / 6)
    assert entry["no_answer"] == 0
    low, high = entry["intervals"]["pass@1"]
    assert low < entry["pass@1"] < high


def test_reply_without_thinking_is_all_answer_where_none_was_asked_for(tokenizer, tmp_path: Path) -> None:
    """A baseline under its own template writes a program or an essay, and no tags at all."""
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    plain = Benchmark("plain", "Plain", SourceConfig(dataset="x.jsonl"), form="plain")
    row = Row("Print 3.", json.dumps({"rules": []}), "general", id="a")

    def answer(protocol: str, text: str, benchmark: Benchmark = plain) -> str | None:
        sampler = ScriptedSampler(tokenizer, lambda prompt, index: text, protocol)
        folder = tmp_path / f"{protocol}-{len(list(tmp_path.iterdir()))}"
        ((_, (completion,)),) = sample_benchmark(benchmark, [row], sampler, SETTINGS, 1, folder)
        return parse(completion.text, prefill=completion.prefill).answer

    assert answer("own", "print(3)") == "print(3)"
    assert answer("own", "<think> hm </think> print(3)") == "print(3)"
    assert answer("own", "<think> hm print(3)") is None
    assert answer("r1", "print(3)") is None
    assert answer("own", "3", SET) is None


def test_second_start_asks_only_for_what_is_missing(run, tokenizer, tmp_path: Path, caplog) -> None:
    broken = ScriptedSampler(tokenizer, sums, fail_after=9)
    with pytest.raises(KeyboardInterrupt):
        run(broken, tmp_path)
    again = ScriptedSampler(tokenizer, sums)
    with caplog.at_level(logging.INFO):
        _, _, scores = run(again, tmp_path)
    assert len(again.prompts) == 24 - 9
    assert "9 of 24 samples are there already" in caplog.text
    fresh = run(ScriptedSampler(tokenizer, sums), tmp_path / "fresh")[2]
    assert scores == fresh
    # More samples, more questions: only these are drawn. A question whose text changed is asked anew.
    more = ScriptedSampler(tokenizer, sums)
    run(more, tmp_path, [*ROWS[:2], Row("7 + 1?", "8", id="2")], k=5)
    assert len(more.prompts) == 2 + 5
    with pytest.raises(ConfigurationError, match="made with other settings"):
        sample_benchmark(SET, ROWS, more, SamplingSettings(max_tokens=50), 4, tmp_path)


def test_fewer_samples_than_k_are_left_out_and_said(run, pool, tokenizer, tmp_path: Path, caplog) -> None:
    counts, groups, _ = run(ScriptedSampler(tokenizer, sums), tmp_path)
    groups[0][1].pop()
    kept = score_groups("sums", groups, counts, pool)
    assert len(kept) == 5
    assert "1 of 6 questions have fewer than 4 samples" in caplog.text
    with pytest.raises(DataError, match="no question has 4 samples"):
        evaluation_of("sums", [], counts)
    with pytest.raises(ConfigurationError, match=r"pass@8 cannot be measured with 4 samples"):
        Counts(4, 4, (8,))
    assert Counts.of(shipped()["aime24"], None, None, ()) == Counts(64, 64)
    assert Counts.of(shipped()["aime24"], 8, None, ()) == Counts(8, 8)


def test_processes_put_their_scores_together_in_order(run, tokenizer, tmp_path: Path) -> None:
    counts, groups, scores = run(ScriptedSampler(tokenizer, sums), tmp_path / "samples")
    assert [row.id for row in share(ROWS, 1, 2)] == ["1", "3", "5"]
    parts = [Scores(scores[rank::2], {64: [(score, 0.5) for score in scores[rank::2]]}) for rank in range(2)]
    assert collect(parts[1], ROWS, counts, tmp_path / "scores", 1, 2) is None
    whole = collect(parts[0], ROWS, counts, tmp_path / "scores", 0, 2)
    assert whole is not None
    assert whole.problems == scores
    assert [score for score, _ in whole.budgets[64]] == scores
    assert not list((tmp_path / "scores").iterdir())
    assert len(groups) == 6


def thinks(prompt: str, index: int) -> str:
    """Thinks for 10 · n words; forced to answer, it is right from three words on."""
    begun = prompt.rpartition("<think>\n")[2]
    if "</think>" in begun:
        return f"\\boxed{{{'1' if begun.count('so') >= 3 else '0'}}}"
    return "so " * 10 * (index + 1) + "</think> \\boxed{1}"


def test_budget_forcing_ends_long_thinking_only(run, pool, tokenizer, tmp_path: Path) -> None:
    rows = [Row("0 + 1?", "1", id="a")]
    sampler = ScriptedSampler(tokenizer, thinks)
    counts, groups, scores = run(sampler, tmp_path / "free", rows)
    per_word = len(tokenizer("so " * 10, add_special_tokens=False)["input_ids"]) / 10
    tight, wide = round(2 * per_word), round(15 * per_word)
    curve = budgets.BudgetCurve((wide, tight), answer_tokens=20)
    points = curve.measure(SET, groups, sampler, SETTINGS, counts, tmp_path, pool)
    assert list(points) == [tight, wide]
    assert [(score.correct, ended) for score, ended in points[tight]] == [(0, 1.0)]
    # At 15 words the first sample (10) ends by itself, the others are ended, and all are right.
    assert [(score.correct, ended) for score, ended in points[wide]] == [(4, 0.75)]
    free = evaluation_of("sums", scores, counts).summary()
    summary = budgets.summarise(points, free)
    assert [point["budget"] for point in summary] == [tight, wide, None]
    assert [point["pass@1"] for point in summary] == [0, 1, 1]
    assert summary[0]["mean_tokens"] < summary[1]["mean_tokens"] < summary[2]["mean_tokens"]
    picture = budgets.draw({"Sums": summary}, tmp_path / "curve.png", "scripted")
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigurationError, match="at least 1 token"):
        budgets.BudgetCurve((0,))


def test_tables_put_published_figures_beside_and_say_what_differs(run, tokenizer, tmp_path: Path) -> None:
    counts, _, scores = run(ScriptedSampler(tokenizer, sums), tmp_path)
    entry = describe(SET, Problems(ROWS, 1, []), counts, evaluation_of("sums", scores, counts))
    report = {
        "model": "mine",
        "protocol": {"name": "own", "temperature": 0.6, "top_p": 0.95, "max_tokens": 200},
        "benchmarks": {"sums": {**entry, "subset": True, "published_source": "[v1] Table 4"}},
        "failed": {"aime25": "cannot be reached | offline"},
    }
    head, line, failed = measured(report)
    cells = dict(zip(head, line, strict=True))
    assert cells["questions × k"] == "6 × 4"
    assert re.fullmatch(r"41\.7 \[\d+\.\d, \d+\.\d\]", cells["pass@1"])
    assert cells["cut off"] == "16.7"
    assert "pass@2 55.6" in cells["also"]
    assert "1 duplicates" in cells["also"]
    assert failed[-1].startswith("failed: cannot be reached")
    table = compared(report)
    assert table[0] == ["model", "Sums pass@1"]
    assert table[1][0] == "mine (measured)"
    assert table[2] == ["DeepSeek-R1", "97.3"]
    text = markdown(report)
    assert "offline" in text
    assert "\\|" in text
    assert any("max_tokens 200 (R1: 32,768)" in said for said in caveats(report))
    assert any("Not all questions" in said for said in caveats(report))
    assert len(rich_tables(report)) == 2


def test_ratings_and_preferences_become_entries(run, tokenizer, tmp_path: Path) -> None:
    rated = [Row(row.prompt, json.dumps({"rating": 1000}), "code", id=row.id) for row in ROWS]
    counts, _, scores = run(ScriptedSampler(tokenizer, sums), tmp_path / "sums")
    entry = describe(SET, Problems(ROWS, 0, []), counts, evaluation_of("sums", scores, counts))
    added = rating_entry(rated, scores, None, entry)
    assert 800 < added["rating"] < 1000
    assert set(added["intervals"]) >= {"pass@1", "rating", "percentile"}
    chats = [Row(f"{n} + 1?", "a baseline", "general", id=str(n)) for n in range(4)]
    sample_benchmark(shipped()["alpaca_eval"], chats, ScriptedSampler(tokenizer, sums), SETTINGS, 1, tmp_path / "chats")
    judged = preference_entry(
        shipped()["alpaca_eval"], Problems(chats, 0, []), tmp_path / "chats",
        lambda pairs: ["A>B" if "boxed" in first else "B>A" for _, first, _ in pairs],
    )  # fmt: skip
    assert judged["win_rate"] == 1.0
    report = {"model": "m", "benchmarks": {"alpaca_eval": judged}, "failed": {}}
    assert compared(report)[1][1].startswith("9")
