"""Mixtures by weight: reproducible, filtered, resumed after a kill, bounded in memory."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from statistics import fmean

import pytest

from trl_r1.data import chunks
from trl_r1.data.chunks import list_chunks
from trl_r1.data.decontamination import Benchmark
from trl_r1.data.drawing import quotas
from trl_r1.data.duplicates import MinHash
from trl_r1.data.mixture import MixtureConfig, MixtureSource, clear, mix
from trl_r1.data.staging import pass_rate
from trl_r1.exceptions import ConfigurationError, DataError

WORDS = "river stone market window garden letter bridge candle silver winter orange thread copper meadow signal".split()  # noqa: SIM905


def sentence(number, count=14):
    """Words that a number decides: no two are alike."""
    drawn = hashlib.sha256(str(number).encode()).digest()
    return " ".join(f"{WORDS[byte % len(WORDS)]}{byte // len(WORDS)}" for byte in drawn[:count])


def trace(number, **columns):
    return {
        "id": f"t{number}", "prompt": f"What is {sentence(number)}?",
        "completion": f"<think>\n{sentence(-number, 30)}\n</think>\n\n{number}", "domain": "math", "language": "en",
        "license": "mit",
    } | columns  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(folder):
    return [json.loads(line) for path in sorted((folder / "data").iterdir()) for line in path.open()]


def digest(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "data").iterdir()}


@pytest.fixture
def sources(tmp_path):
    """400 maths and 200 general rows."""
    math = write(tmp_path / "math.jsonl", (trace(n) for n in range(400)))
    general = write(tmp_path / "general.jsonl", (trace(10_000 + n, domain="general", license=None) for n in range(200)))
    return (MixtureSource("math", math, weight=3), MixtureSource("general", general, weight=1, license="cc-by-4.0"))


def test_weights_counts_and_columns(sources, tmp_path):
    report = mix(MixtureConfig(sources, total_rows=400, shard_rows=150), tmp_path / "out", workers=1)
    rows = read(tmp_path / "out")
    assert [one["rows"] for one in report["sources"]] == [300, 100]
    assert Counter(row["source"] for row in rows) == {"math": 300, "general": 100}
    assert Counter(row["license"] for row in rows) == report["license"] == {"mit": 300, "cc-by-4.0": 100}
    assert len({row["id"] for row in rows}) == report["rows"] == 400
    assert report["shards"] == [f"data/train-0000{n}-of-00003.jsonl" for n in range(3)]
    assert set(rows[0]) == {"id", "prompt", "completion", "domain", "language", "license", "source"}
    # Shuffled: both sources are in the first shard.
    assert len({row["source"] for row in rows[:50]}) == 2
    assert not (tmp_path / "out" / "work").exists()


def test_same_seed_same_bytes_whatever_the_workers(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 20_000)
    config = MixtureConfig(sources, total_rows=200)
    for name, workers, seed in (("one", 1, 0), ("two", 2, 0), ("other", 1, 1)):
        mix(MixtureConfig(sources, total_rows=200, seed=seed) if seed else config, tmp_path / name, workers)
    assert digest(tmp_path / "one") == digest(tmp_path / "two") != digest(tmp_path / "other")
    again = mix(config, tmp_path / "one")  # finished: nothing is read or written
    assert again["rows"] == 200


def test_as_many_as_the_weights_allow():
    assert quotas([3, 1], [300, 200], None) == [300, 100]
    assert quotas([1, 1, 1], [10, 10, 10], 10) == [4, 3, 3]
    assert quotas([395285, 211129, 10124, 10395, 177812], [0] * 5, 804745) == [395285, 211129, 10124, 10395, 177812]
    shares = quotas([1, 1, 1], [3, 4, 100], None)
    assert shares == [3, 3, 3]


def test_pass_rates_keep_what_is_neither_too_easy_nor_too_hard(tmp_path):
    rows = [trace(n, pass_rate=n / 10) for n in range(11)] + [trace(50)]
    path = write(tmp_path / "rated.jsonl", rows)
    source = MixtureSource("rated", path, min_pass_rate=0.2, max_pass_rate=0.8)
    report = mix(MixtureConfig((source,)), tmp_path / "a", 1)
    assert {row["id"] for row in read(tmp_path / "a")} == {f"t{n}" for n in (2, 3, 4, 5, 6, 7, 8, 50)}
    assert report["dropped"] == {"too easy": 2, "too hard": 2}
    strict = MixtureSource("rated", path, min_pass_rate=0.2, max_pass_rate=0.8, keep_unrated=False)
    assert mix(MixtureConfig((strict,)), tmp_path / "b", 1)["dropped"]["pass rate unknown"] == 1


def test_rejection_records_give_a_row_per_accepted_candidate(tmp_path):
    from trl_r1.data.candidates import Candidate
    from trl_r1.data.rejection_store import write_candidates
    from trl_r1.rows import Row

    def record(number, verdicts, accepted):
        candidates = [
            Candidate(
                n,
                f"<think> {sentence(100 * number + n, 30)} </think> <answer> {n} </answer>",
                correct=right,
                accepted=n in accepted,
            )
            for n, right in enumerate(verdicts)
        ]
        row = Row(f"What is {sentence(number)}?", "1", "math", "en", f"q{number}")
        return {**row.asdict(), "candidates": [one.asdict() for one in candidates]}

    records = [
        record(1, [True, True, False, None], {0, 1}),
        record(2, [False] * 4, set()),
        record(3, [True] * 4, {0, 1, 2, 3}),
    ]
    path = write_candidates(tmp_path / "candidates.parquet", records, conversational=False)
    assert [pass_rate(one) for one in records] == [2 / 3, 0.0, 1.0]
    everything = mix(MixtureConfig((MixtureSource("r", str(path)),)), tmp_path / "a", 1)
    assert {row["id"] for row in read(tmp_path / "a")} == {"q1/0", "q1/1", "q3/0", "q3/1", "q3/2", "q3/3"}
    assert everything["dropped"] == {"no accepted candidate": 1}
    hard = MixtureSource("r", str(path), max_pass_rate=0.9, max_per_prompt=1)
    mix(MixtureConfig((hard,)), tmp_path / "b", 1)
    assert [row["id"] for row in read(tmp_path / "b")] == ["q1/0"]


def test_pass_rates_of_stopped_records_are_not_overstated(tmp_path):
    """Sampling stops at the third right one of at most 60: the plain share would overstate the rate."""
    draw, rate = random.Random(1), 0.2
    records = []
    for _ in range(1500):
        right = []
        while sum(right) < 3 and len(right) < 60:
            right.append(draw.random() < rate)
        records.append({"candidates": [{"index": n, "correct": one, "accepted": one} for n, one in enumerate(right)]})
    assert fmean(pass_rate(one, 60) for one in records) == pytest.approx(rate, abs=0.01)
    assert fmean(pass_rate(one) for one in records) > rate + 0.025, "the test can fail"

    def record(number, *right):
        ones = [
            {
                "index": n,
                "text": f"<think> {sentence(9 * number + n, 30)} </think> {n}",
                "correct": one,
                "accepted": one,
            }
            for n, one in enumerate(right)
        ]
        return {"prompt": f"What is {sentence(number)}?", "id": f"q{number}", "domain": "math", "candidates": ones}

    stopped, whole = record(1, True, False, True), record(2, True, *[False] * 6, True)
    path = write(tmp_path / "records.jsonl", [stopped, whole, record(3, True, True)])
    source = MixtureSource("r", path, min_pass_rate=0.25, max_pass_rate=0.6)
    report = mix(MixtureConfig((source,)), tmp_path / "a", 1)
    # 2 of 3 is an estimated 1/2, 2 of all 8 is a quarter, and 2 of 2 is always.
    assert {row["id"].partition("/")[0] for row in read(tmp_path / "a")} == {"q1", "q2"}
    assert report["dropped"] == {"too easy": 1}


def test_duplicates_and_benchmark_questions_are_left_out_and_named(sources, tmp_path):
    copied = trace(5, id="copy")
    copied["completion"] = copied["completion"].replace("\n</think>", " indeed\n</think>")
    asked = f"How many {sentence(777)} are there?"
    leaked = trace(9_000, id="leaked", prompt=f"Please: {asked.upper()}")
    extra = MixtureSource("extra", write(tmp_path / "extra.jsonl", [copied, leaked, trace(9_001)]))
    test_set = Benchmark(
        "bench", write(tmp_path / "bench.jsonl", [{"question": "?"}, {"question": asked, "answer": "3"}])
    )
    report = mix(MixtureConfig((*sources, extra), benchmarks=(test_set,), total_rows=5), tmp_path / "out", 1)
    assert report["dropped"] == {"contaminated": 1, "near-duplicate": 1}
    assert report["contaminated_by_benchmark"] == {"bench": 1}
    assert report["benchmark_rows"] == {"bench": 2}
    lines = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").open()]
    assert lines[0] | {"text": "", "matches": 0} == {
        "reason": "contaminated", "id": "leaked", "source": "extra", "benchmark": "bench", "row": 1, "field": "question",
        "kind": "10-gram", "text": "", "matches": 0,
    }  # fmt: skip
    assert lines[0]["text"].lower() in leaked["prompt"].lower()
    assert lines[1] == {"reason": "near-duplicate", "id": "copy", "source": "extra", "of": "t5", "of_source": "math"}
    off = MixtureConfig((*sources, extra), duplicates=None, total_rows=5)
    assert mix(off, tmp_path / "off", 1)["dropped"] == {}


SCRIPT = """
import sys, time
from trl_r1.data import chunks, drawing, mixture, staging
chunks.CHUNK_BYTES = 16_000
slow = float(sys.argv[3])
def held(function, seconds):
    def inner(*arguments):
        time.sleep(seconds)
        return function(*arguments)
    return inner
mixture.stage_chunk = held(staging.stage_chunk, slow)
drawing.write_whole_bytes = held(staging.write_whole_bytes, 3 * slow)
sources = tuple(mixture.MixtureSource(name, f"{sys.argv[1]}/{name}.jsonl", weight, license="mit") for name, weight in (("math", 3), ("general", 1)))
mixture.mix(mixture.MixtureConfig(sources, total_rows=400, shard_rows=100), sys.argv[2], workers=1)
"""


def test_killed_mixture_goes_on_and_equals_an_uninterrupted_one(sources, tmp_path):
    """Killed while reading, then while writing shards, by SIGKILL of a real process."""

    def start(folder, slow):
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path), str(folder), str(slow)])

    def kill_when(process, ready):
        deadline = time.monotonic() + 60
        while not ready():
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, 0).wait() == 0
    work = killed / "work"
    kill_when(start(killed, 0.05), lambda: len(list(work.glob("*.json"))) >= 6)
    staged = {path.name: path.stat().st_mtime_ns for path in work.glob("*.npz")}
    assert staged
    assert not (killed / "data").exists()
    kill_when(start(killed, 0.05), lambda: any(killed.glob("data/train-00000*")))
    assert not (killed / "mixture.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in work.glob("*.npz") if path.name in staged}
    assert sum(kept[name] == staged[name] for name in staged) >= len(staged) - 1  # at most one piece was done again
    first = next(killed.glob("data/train-00000*")).stat().st_mtime_ns
    assert start(killed, 0).wait() == 0
    assert next(killed.glob("data/train-00000*")).stat().st_mtime_ns == first
    assert digest(killed) == digest(whole)
    assert sorted(os.listdir(killed)) == ["data", "dropped.jsonl", "mixture.json"]


def test_another_configuration_or_changed_data_is_refused(sources, tmp_path):
    folder = tmp_path / "out"
    mix(MixtureConfig(sources, total_rows=100), folder, 1)
    with pytest.raises(ConfigurationError, match=r"other settings.*overwrite"):
        mix(MixtureConfig(sources, total_rows=101), folder, 1)
    write(tmp_path / "general.jsonl", (trace(20_000 + n, domain="general") for n in range(200)))
    with pytest.raises(ConfigurationError, match="changed"):
        mix(MixtureConfig(sources, total_rows=100), folder, 1)
    (folder / "notes.txt").write_text("mine")
    clear(folder)
    assert os.listdir(folder) == ["notes.txt"]
    assert mix(MixtureConfig(sources, total_rows=100), folder, 1)["rows"] == 100


def test_too_few_rows_says_how_many_there_are(sources, tmp_path):
    with pytest.raises(DataError, match=r"'math' has 400 of 450.*total_rows to 533 or less"):
        mix(MixtureConfig(sources, total_rows=600), tmp_path / "out", 1)
    # The work is kept: a smaller mixture is another mixture, though.
    assert (tmp_path / "out" / "work").exists()


def test_unreadable_rows_are_named_from_a_worker_too(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text(json.dumps(trace(1)) + "\n" + '{"prompt": "cut o')
    with pytest.raises(DataError, match=r"broken.jsonl, byte \d+ is no JSON"):
        mix(MixtureConfig((MixtureSource("b", str(path)),)), tmp_path / "out", 1)
    other = write(tmp_path / "no_target.jsonl", [{"prompt": "a"}])
    both = (MixtureSource("b", str(path)), MixtureSource("n", other))
    with pytest.raises(DataError, match=r"broken.jsonl, byte \d+ is no JSON"):
        mix(MixtureConfig(both), tmp_path / "out2", 2)
    with pytest.raises(DataError, match=r"no \.jsonl or \.parquet file"):
        mix(MixtureConfig((MixtureSource("x", str(tmp_path / "absent.jsonl")),)), tmp_path / "out3", 1)


def test_traces_without_thinking_only_where_general(tmp_path):
    bare = [trace(1, completion="Hello! How can I help you?", domain="general")]
    assert mix(MixtureConfig((MixtureSource("g", write(tmp_path / "g.jsonl", bare)),)), tmp_path / "g", 1)["rows"] == 1
    wrong = write(tmp_path / "w.jsonl", [trace(1, completion="7")])
    with pytest.raises(DataError, match="t1"):
        mix(MixtureConfig((MixtureSource("w", wrong),)), tmp_path / "w", 1)
    # A file without the column is of its source's domain, before the check as after it.
    plain = write(tmp_path / "p.jsonl", [{**trace(1, completion="Hello!"), "domain": None}])
    mix(MixtureConfig((MixtureSource("p", plain, domain="general"),)), tmp_path / "p", 1)
    assert [row["domain"] for row in read(tmp_path / "p")] == ["general"]
    with pytest.raises(DataError, match="t1"):
        mix(MixtureConfig((MixtureSource("m", plain, domain="math"),)), tmp_path / "m", 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": ()}, "at least one source"),
        ({"total_rows": 0}, "at least one per source"),
        ({"shard_rows": 0}, "at least 1"),
        ({"prompts": "audio"}, "'audio'"),
    ],
)
def test_bad_settings(settings, message):
    sources = {"sources": (MixtureSource("a", "a.jsonl"),)}
    with pytest.raises(ConfigurationError, match=message):
        MixtureConfig(**(sources | settings))


def test_bad_sources():
    with pytest.raises(ConfigurationError, match="Two sources are called 'a'"):
        MixtureConfig((MixtureSource("a", "a.jsonl"), MixtureSource("a", "b.jsonl")))
    with pytest.raises(ConfigurationError, match=r"0\.9 to 0\.1"):
        MixtureSource("a", "a.jsonl", min_pass_rate=0.9, max_pass_rate=0.1)
    with pytest.raises(ConfigurationError, match="'maths'"):
        MixtureSource("a", "a.jsonl", only_domains=("maths",))


def test_pieces_of_any_size_hold_every_line_once(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl", (trace(n) for n in range(60)))
    for size in (1, 7, 300, 1 << 20):
        monkeypatch.setattr(chunks, "CHUNK_BYTES", size)
        pieces = list_chunks(path)[: 40_000 if size > 1 else None]
        assert [row["id"] for piece in pieces for row in piece.read()] == [f"t{n}" for n in range(60)]


def test_parquet_saved_and_foldered_sources(tmp_path):
    from datasets import Dataset

    data = Dataset.from_list([trace(n) for n in range(30)])
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(str(tmp_path / "saved"))
    mixed = tmp_path / "mixed"
    mix(MixtureConfig((MixtureSource("p", str(tmp_path / "rows.parquet")),), duplicates=None), mixed, 1)
    for path in (tmp_path / "rows.parquet", tmp_path / "saved", mixed, f"{mixed}/data/*.jsonl"):
        rows = [row["id"] for piece in list_chunks(str(path)) for row in piece.read()]
        assert sorted(rows) == sorted(f"t{n}" for n in range(30)), path


def test_messages_and_several_turns(tmp_path):
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "7 * 8?"},
    ]
    path = write(tmp_path / "m.jsonl", [trace(1, prompt=turns), trace(2)])
    source = (MixtureSource("m", path),)
    with pytest.raises(DataError, match="prompts: messages"):
        mix(MixtureConfig(source), tmp_path / "text", 1)
    mix(MixtureConfig(source, prompts="messages", duplicates=MinHash()), tmp_path / "out", 1)
    assert {len(row["prompt"]) for row in read(tmp_path / "out")} == {1, 3}
