"""Samples on disk: whole shards only, resumed starts, refused mixtures, real kills."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.generation.base import Sample, SampleRequest
from trl_r1.generation.requests import PartialRequest, process_share, sample_seed, wanted_indices
from trl_r1.generation.shards import SETTINGS_FILE, SampleStore
from trl_r1.rows import Completion

SETTINGS = {"model": "m", "sampling": {"temperature": 1.0}}


def a_sample(key: str = "q", index: int = 0, text: str = "answer") -> Sample:
    return Sample(key, index, Completion(text, (5, 6), "length", "<think>\n"))


def test_what_is_stored_comes_back(tmp_path):
    with SampleStore(tmp_path, SETTINGS) as store:
        store.add(a_sample("b", 1, "line\nbreak 中 \u2028"), correct=True, detail="x")
        store.add(a_sample("a", 0, ""), correct=None)
    found = list(SampleStore(tmp_path).samples())
    assert [(one.key, one.index, one.completion) for one in found] == [
        ("b", 1, Completion("line\nbreak 中 \u2028", (5, 6), "length", "<think>\n")),
        ("a", 0, Completion("", (5, 6), "length", "<think>\n")),
    ]
    assert found[0].facts == {"correct": True, "detail": "x"}


def test_a_second_start_asks_only_for_what_is_missing(tmp_path):
    requests = [SampleRequest(key, f"question {key}", 4) for key in "abcd"]
    with SampleStore(tmp_path, SETTINGS) as store:
        assert list(store.remaining(requests)) == requests
        for index in range(4):
            store.add(a_sample("a", index))
        store.add(a_sample("b", 2))
        store.add(a_sample("c", 0))
        store.close_key("c")
    with SampleStore(tmp_path, SETTINGS) as store:
        left = list(store.remaining(requests))
        assert left == [PartialRequest("b", "question b", 4, frozenset({2})), requests[3]]
        assert wanted_indices(left[0]) == [0, 1, 3]
        assert len(store) == 6
        assert len(store.groups()["a"]) == 4


def test_the_same_completion_is_not_stored_twice(tmp_path):
    with SampleStore(tmp_path, SETTINGS) as store:
        store.add(a_sample())
        with pytest.raises(DataError, match="stored already"):
            store.add(a_sample())
        with pytest.raises(DataError, match="unique"):
            list(store.remaining([SampleRequest("x", "p"), SampleRequest("x", "p")]))


def test_changed_settings_are_refused_and_named(tmp_path):
    SampleStore(tmp_path, SETTINGS).close()
    with pytest.raises(ConfigurationError, match=r"sampling.temperature was 1.0 and is 0.6.*give another folder"):
        SampleStore(tmp_path, {"model": "m", "sampling": {"temperature": 0.6}})
    SampleStore(tmp_path, SETTINGS).close()


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    first = SampleStore(tmp_path, SETTINGS)
    with pytest.raises(ConfigurationError, match="Another process"):
        SampleStore(tmp_path, SETTINGS)
    SampleStore(tmp_path, SETTINGS, rank=1).close()  # another rank of the launch
    first.close()
    first.close()
    SampleStore(tmp_path, SETTINGS).close()


def test_half_a_shard_is_no_shard_and_a_damaged_one_is_named(tmp_path):
    with SampleStore(tmp_path, SETTINGS) as store:
        store.add(a_sample("a"))
    whole = (tmp_path / "shard-00000-000000.jsonl").read_text()
    (tmp_path / ".shard-00000-000001.jsonl.77.tmp").write_text(whole[:20])  # what a kill while writing leaves
    with SampleStore(tmp_path, SETTINGS) as store:
        assert store.done == {"a": {0}}
    (tmp_path / "shard-00000-000001.jsonl").write_text(whole[:20])
    with pytest.raises(DataError, match=r"Line 1 of .*shard-00000-000001.jsonl.*Delete that shard"):
        SampleStore(tmp_path, SETTINGS)


def test_ranks_write_beside_each_other_and_read_everything(tmp_path):
    requests = [SampleRequest(str(i), "p", 1) for i in range(5)]
    for rank in range(2):
        with SampleStore(tmp_path, SETTINGS, rank=rank) as store:
            for request in process_share(requests, rank, 2):
                store.add(a_sample(request.key))
    with SampleStore(tmp_path, SETTINGS, rank=0) as store:
        assert list(store.remaining(requests)) == []
        assert len(list(tmp_path.glob("shard-*"))) == 2


def test_seeds_depend_on_key_and_index_alone():
    seeds = {sample_seed(3, key, index) for key in "abc" for index in range(100)}
    assert len(seeds) == 300
    assert sample_seed(3, "a", 7) == sample_seed(3, "a", 7) != sample_seed(4, "a", 7)
    assert sample_seed(None, "a", 7) is None


WRITER = """
import sys, time
from trl_r1.generation.base import Sample, SampleRequest
from trl_r1.generation.requests import wanted_indices
from trl_r1.generation.shards import SampleStore
from trl_r1.rows import Completion

store = SampleStore(sys.argv[1], {"a": 1}, shard_samples=16)
for request in store.remaining([SampleRequest(str(i), "p", 4) for i in range(500)]):
    for index in wanted_indices(request):
        store.add(Sample(request.key, index, Completion(f"{request.key}/{index} " + "x" * 2000)))
        print(request.key, index, flush=True)
store.close()
"""


@pytest.mark.parametrize("lines", [40, 173, 506])
def test_kill_9_loses_at_most_one_shard(tmp_path, lines):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    told = [writer.stdout.readline().split() for _ in range(lines)]
    writer.send_signal(signal.SIGKILL)
    told += [line.split() for line in writer.stdout if line.endswith("\n")]
    writer.wait()
    assert writer.returncode == -signal.SIGKILL
    with SampleStore(tmp_path, {"a": 1}) as store:  # the lock died with its owner
        stored = {(one.key, str(one.index)): one.completion.text for one in store.samples()}
        lost = [place for place in told if tuple(place) not in stored]
        assert len(lost) <= 16
        assert all(text == f"{key}/{index} " + "x" * 2000 for (key, index), text in stored.items())
        asked = [
            (r.key, i)
            for r in store.remaining(SampleRequest(str(i), "p", 4) for i in range(500))
            for i in wanted_indices(r)
        ]
        assert len(asked) + len(stored) == 2000
        assert not {(key, str(index)) for key, index in asked} & set(stored)


def test_what_is_collected_is_written_after_a_while(tmp_path):
    with SampleStore(tmp_path, SETTINGS, shard_seconds=0.05) as store:
        store.add(a_sample("a"))
        assert not list(tmp_path.glob("shard-*"))
        time.sleep(0.06)
        store.add(a_sample("b"))
        assert len(list(tmp_path.glob("shard-*"))) == 1
    assert json.loads((tmp_path / SETTINGS_FILE).read_text()) == SETTINGS
