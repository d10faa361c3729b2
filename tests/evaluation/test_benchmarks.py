"""Benchmarks by name, by file and by YAML: rows, warnings about them, and what is published beside them."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import zlib
from pathlib import Path

import pytest

from trl_r1.data.sources import SourceConfig
from trl_r1.data.split import load_split
from trl_r1.evaluation import benchmark_rows
from trl_r1.evaluation.benchmarks import Benchmark, find_benchmarks, load_problems, read_benchmarks, shipped
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.rows import structured_reference
from trl_r1.verifiers import gold_answer, readable, verify

SHARED = Path(__file__).parents[3] / "shared" / "data"


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_all_that_the_issue_names_is_there_with_r1s_figures() -> None:
    named = "aime24 aime25 math500 gsm8k amc gpqa_diamond mmlu mmlu_pro livecodebench humaneval ifeval codeforces nano"
    assert set(named.split()) | {"alpaca_eval", "arena_hard"} <= set(shipped())
    # Method §9: R1 on the nine benchmarks that the paper names.
    figures = {
        "aime24": ("pass@1", 79.8), "math500": ("pass@1", 97.3), "gpqa_diamond": ("pass@1", 71.5),
        "livecodebench": ("pass@1", 65.9), "codeforces": ("rating", 2029), "mmlu": ("pass@1", 90.8),
        "mmlu_pro": ("pass@1", 84.0), "alpaca_eval": ("lc_win_rate", 87.6), "arena_hard": ("arena_score", 92.3),
    }  # fmt: skip
    for name, (figure, value) in figures.items():
        assert shipped()[name].published["DeepSeek-R1"][figure] == value
        assert "[v1]" in shipped()[name].published_source
    # Method §8: a line of the distillation table.
    small = {name: shipped()[name].published["R1-Distill-Qwen-1.5B"] for name in ("aime24", "math500", "codeforces")}
    assert small == {
        "aime24": {"pass@1": 28.9, "cons@64": 52.7}, "math500": {"pass@1": 83.9}, "codeforces": {"rating": 954},
    }  # fmt: skip


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(
    ("name", "file", "rows"),
    [("gsm8k", "gsm8k_test", 1319), ("math500", "math500", 500), ("aime24", "aime24", 30), ("mmlu", "mmlu_stem", 3018)],
)
def test_shipped_benchmarks_read_local_files(name: str, file: str, rows: int) -> None:
    (benchmark,) = find_benchmarks([name], files=[f"{name}={SHARED / file}.jsonl"])
    found = load_problems(benchmark)
    assert len(found.rows) + found.duplicates == rows
    assert found.duplicates <= 40
    assert not found.unreadable
    assert len({row.id for row in found.rows}) == len(found.rows)
    # Words, and letters of options.
    words = [row for row in found.rows if row.domain == "math" and row.verifier in ("exact", "choice")]
    assert len(words) == (8 if name == "math500" else 0)
    for row in [*found.rows[:30], *words]:
        assert verify(gold_answer(row), row).correct
    if words:
        assert all(verify(f"\\text{{{row.reference}}}", row).correct for row in words)


def test_duplicates_and_missing_references_are_said_and_the_rest_is_kept(tmp_path: Path, caplog) -> None:
    file = write(
        tmp_path / "own.jsonl",
        [
            {"prompt": "1 + 1?", "reference": "2"},
            {"prompt": "1 + 2?", "reference": None},
            {"prompt": "1 + 1 ?", "reference": "2"},
            {"prompt": "1 + 3?", "reference": "4"},
        ],
    )
    with caplog.at_level(logging.WARNING):
        found = load_problems(find_benchmarks([str(file)])[0])
    assert [row.reference for row in found.rows] == ["2", "", "4"]
    assert (found.duplicates, len(found.unreadable)) == (1, 1)
    assert "1 of 4 rows repeat a question" in caplog.text
    assert "1 of 3 gold answers are missing" in caplog.text
    empty = write(tmp_path / "empty.jsonl", [{"prompt": "1 + 1?", "reference": ""}])
    with pytest.raises(DataError, match="1 of 1 gold answers are missing"):
        load_problems(find_benchmarks([str(empty)])[0])


def test_unreachable_benchmark_names_itself_and_the_way_out() -> None:
    with pytest.raises(DataError, match=r"'aime25'.*cannot be loaded.*--benchmark_files aime25=FILE"):
        load_problems(shipped()["aime25"])
    with pytest.raises(DataError, match="arena_hard=FILE"):
        load_problems(shipped()["arena_hard"])


def test_names_files_and_yaml(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(
        "mine: {title: Mine, k: 2, source: {dataset: q.jsonl, columns: {prompt: q, reference: a}},\n"
        "       published: {source: my blog, Ann: {pass@1: 12}}}\nother: 'nano:arithmetic'\n"
    )
    mine, other, gym = find_benchmarks(["mine,other", "gym:leg_counting", "mine"], configs=[config])
    assert (mine.title, mine.k, mine.published, mine.published_source) == (
        "Mine",
        2,
        {"Ann": {"pass@1": 12}},
        "my blog",
    )
    assert other.source.nano_tasks == ["arithmetic"]
    assert gym.source.dataset == "gym:leg_counting"
    for text, message in (
        ("mine: {sauce: x}", "Unknown field of benchmark 'mine' 'sauce'"),
        ("mine: {k: 2}", "has no source"),
        ("mine: {source: {dataset: x, colums: {}}}", "'colums'"),
        ("mine: {source: x, form: round}", "'round'.*'boxed', 'plain'"),
        ("mine: {source: x, k: 0}", "k=0 must be at least 1"),
        ("mine: {source: x, published: {Ann: {accuracy: 3}}}", "'accuracy'"),
        ("- mine", "must map names"),
    ):
        config.write_text(text)
        with pytest.raises(ConfigurationError, match=message):
            read_benchmarks(config)
    with pytest.raises(ConfigurationError, match=r"Unknown benchmark 'gsm9k'.*'gsm8k'"):
        find_benchmarks(["gsm9k"])
    with pytest.raises(ConfigurationError, match="not among the benchmarks"):
        find_benchmarks(["gsm8k"], files=["math500=x.jsonl"])
    with pytest.raises(ConfigurationError, match="must be name=path"):
        find_benchmarks(["gsm8k"], files=["x.jsonl"])
    with pytest.raises(ConfigurationError, match="No benchmark was named"):
        find_benchmarks([" "])


def test_nano_and_gym_rows() -> None:
    pytest.importorskip("reasoning_gym")
    rows = load_split(SourceConfig(dataset="gym:leg_counting", max_test_rows=3))
    assert [row.id for row in rows] == [f"gym/leg_counting/0/{index}" for index in range(3)]
    assert len(load_split(SourceConfig(dataset="nano:countdown", max_test_rows=5))) == 5
    assert (
        load_problems(Benchmark("g", "g", SourceConfig(dataset="gym:leg_counting", max_test_rows=2))).unreadable == []
    )


def test_gpqa_shuffles_by_the_question() -> None:
    example = {"Question": "Which?", "Correct Answer": "yes", **{f"Incorrect Answer {i}": f"no {i}" for i in (1, 2, 3)}}
    row = benchmark_rows.gpqa(example)
    reference = structured_reference(row.reference)
    assert sorted(reference["options"]) == ["no 1", "no 2", "no 3", "yes"]
    assert reference["options"]["ABCD".index(reference["answer"])] == "yes"
    assert benchmark_rows.gpqa(example) == row
    places = {benchmark_rows.gpqa({**example, "Question": f"Which {n}?"}).reference for n in range(30)}
    assert {json.loads(text)["answer"] for text in places} == set("ABCD")
    assert verify("yes", row).correct


def test_live_code_bench_reads_hidden_tests_and_no_code() -> None:
    hidden = [{"input": "3\n", "output": "9\n", "testtype": "stdin"}]
    packed = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(hidden)))).decode()
    example = {
        "question_id": "x1", "question_content": "Square it.", "starter_code": "", "metadata": "{}",
        "public_test_cases": json.dumps([{"input": "2\n", "output": "4\n"}]), "private_test_cases": packed,
    }  # fmt: skip
    row = benchmark_rows.live_code_bench(example)
    assert [test["output"] for test in json.loads(row.reference)["tests"]] == ["4\n", "9\n"]
    assert readable(row) is None
    method = {
        **example, "starter_code": "class Solution:\n    def f(self, n: int) -> int:\n", "metadata": '{"func_name": "f"}',
        "public_test_cases": json.dumps([{"input": "2\n[1]", "output": "4"}]), "private_test_cases": "[]",
    }  # fmt: skip
    reference = json.loads(benchmark_rows.live_code_bench(method).reference)
    assert reference == {"function": "Solution.f", "cases": [[[2, [1]], 4]]}
    harmful = base64.b64encode(zlib.compress(pickle.dumps(Path("x")))).decode()
    with pytest.raises(DataError, match="not text"):
        benchmark_rows.live_code_bench({**example, "private_test_cases": harmful})


def test_human_eval_and_codeforces_rows() -> None:
    example = {
        "task_id": "HumanEval/0", "prompt": "def f(n):\n", "canonical_solution": "    return n * n\n", "entry_point": "f",
        "test": "def check(candidate):\n    assert candidate(3) == 9\n",
    }  # fmt: skip
    row = benchmark_rows.human_eval(example)
    assert readable(row) is None
    assert "return n * n" in (gold_answer(row) or "")
    problem = {
        "id": "1/A", "title": "Squares", "description": "Square it.", "rating": 800, "time_limit": 1.0,
        "official_tests": [{"input": "2", "output": "4"}], "official_tests_complete": True,
    }  # fmt: skip
    row = benchmark_rows.codeforces(problem)
    assert row is not None
    assert readable(row) is None
    assert json.loads(row.reference)["rating"] == 800
    for change in ({"rating": None}, {"generated_checker": "x"}, {"official_tests": []}, {"interaction_format": "x"}):
        assert benchmark_rows.codeforces({**problem, **change}) is None


def test_ifeval_rows_are_verified_by_their_rules() -> None:
    example = {
        "key": 7, "prompt": "Write without commas, in at most 5 words.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{"relation": None, "num_words": None}, {"relation": "less than", "num_words": 6}],
    }  # fmt: skip
    row = benchmark_rows.instructions(example)
    assert readable(row) is None
    assert verify("four words and none", row).correct is True
    assert verify("one, two", row).correct is False
    assert verify("one two three four five six", row).correct is False


def test_preference_rows_name_what_they_need() -> None:
    row = benchmark_rows.preference({"instruction": "Say hi. ", "output": "hi"})
    assert (row.prompt, row.reference, row.domain) == ("Say hi.", "hi", "general")
    with pytest.raises(DataError, match=r"`instruction`.*this row has question, answer"):
        benchmark_rows.preference({"question": "x", "answer": "y"})
