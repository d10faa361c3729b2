"""The log of training completions."""

import json

import pytest

from trl_r1.data.rollouts import RolloutLog, groups, read_rollouts, reward_names
from trl_r1.exceptions import DataError

ROW = {"prompt": "1 + 1?", "reference": "2", "domain": "math", "language": None, "id": "q1", "verifier": None}


def write(log, step, texts, rows=ROW, rewards=None):
    return log.write(
        step, [rows] * len(texts), ["1 + 1?"] * len(texts), texts, [len(text) for text in texts],
        [False] * len(texts), rewards or {"accuracy_reward": [1.0] * len(texts)},
    )  # fmt: skip


def test_what_was_written_is_read_in_the_order_of_training(tmp_path):
    first, second = RolloutLog(tmp_path, 0), RolloutLog(tmp_path, 1)
    write(first, 10, ["e"])
    write(second, 2, ["c", "d"], rewards={"accuracy_reward": [0.0, float("nan")]})
    write(first, 2, ["a", "b"])
    found = read_rollouts(tmp_path)
    assert [one.completion for one in found] == ["a", "b", "c", "d", "e"]
    assert [one.rewards["accuracy_reward"] for one in found] == [1.0, 1.0, 0.0, None, 1.0]
    assert found[0].row.reference == "2"
    assert [len(members) for members in groups(found).values()] == [4, 1]  # both processes answered q1 at step 2
    assert reward_names(found) == ["accuracy_reward"]
    assert [one.step for one in read_rollouts(tmp_path, last_step=2)] == [2, 2, 2, 2]


def test_a_step_taken_again_replaces_what_was_written(tmp_path):
    log = RolloutLog(tmp_path)
    write(log, 3, ["old", "old"])
    write(log, 3, ["new"])
    assert [one.completion for one in read_rollouts(tmp_path)] == ["new"]


def test_messages_and_missing_columns(tmp_path):
    prompt = [{"role": "user", "content": "你好"}]
    answer = [{"role": "assistant", "content": "<think>x</think> y"}]
    RolloutLog(tmp_path).write(
        0, [{"prompt": prompt, "prefill": "<think>\n", "tests": {"a": 1}}], [prompt], [answer], [7], [True], {}
    )
    (found,) = read_rollouts(tmp_path)
    assert found.row.prompt == prompt
    assert found.row.reference == ""
    assert (found.completion, found.prefill, found.tokens, found.truncated) == (
        "<think>x</think> y",
        "<think>\n",
        7,
        True,
    )


def test_a_file_that_a_kill_left_half_written_is_not_read(tmp_path):
    write(RolloutLog(tmp_path), 0, ["a"])
    (tmp_path / "_rollouts" / ".step_000001_rank_0.parquet.tmp").write_bytes(b"PAR1 half")
    assert len(read_rollouts(tmp_path)) == 1


def test_errors_name_the_folder_and_the_file(tmp_path):
    with pytest.raises(DataError, match="log_rollouts"):
        read_rollouts(tmp_path)
    write(RolloutLog(tmp_path), 0, ["a"])
    damaged = tmp_path / "_rollouts" / "step_000001_rank_0.parquet"
    damaged.write_text(json.dumps("not parquet"))
    with pytest.raises(DataError, match="step_000001_rank_0"):
        read_rollouts(tmp_path)
