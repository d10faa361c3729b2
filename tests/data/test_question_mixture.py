"""Several sources in one run: shares, disjoint held-out questions, errors."""

import json
from collections import Counter

import pytest

from trl_r1.data.programs import mbpp
from trl_r1.data.question_mixture import load_mixture, read_sources, shares
from trl_r1.data.sources import SourceConfig, load_rows, question_key
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.verifiers import gold_answer, verify

COMMON = SourceConfig(max_rows=60, max_test_rows=9)


def mixture(*entries, common=COMMON):
    return load_mixture(read_sources(list(entries), common))


def keys(split):
    return [question_key(prompt) for prompt in split["prompt"]]


def file_of(path, questions, **more):
    rows = [{"prompt": question, "reference": str(number), **more} for number, question in enumerate(questions)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_shares_follow_the_weights_and_lose_nothing():
    splits = mixture(
        {"dataset": "nano:arithmetic", "weight": 1},
        {"dataset": "nano:choice", "weight": 2, "max_rows": 30},
        {"dataset": "nano:code_output", "weight": 0.5},
    )
    # Sixty questions for a share of 0.5 make 120 for a share of 1.
    assert Counter(splits["train"]["domain"]) == {"math": 120, "stem": 240, "code": 60}
    assert (
        len(
            {
                key
                for key, domain in zip(keys(splits["train"]), splits["train"]["domain"], strict=True)
                if domain == "code"
            }
        )
        == 60
    )


def test_without_weights_all_questions_count_once():
    splits = mixture({"dataset": "nano:arithmetic"}, {"dataset": "nano:choice", "max_rows": 30})
    assert Counter(splits["train"]["domain"]) == {"math": 60, "stem": 30}


def test_held_out_questions_take_turns():
    splits = mixture(
        {"dataset": "nano:arithmetic"}, {"dataset": "nano:choice", "max_test_rows": 3}, {"dataset": "nano:ordering"}
    )
    assert splits["test"]["domain"][:9] == ["math", "stem", "logic"] * 3
    assert len(splits["test"]) == 21


def test_held_out_by_one_source_trains_in_none(tmp_path):
    first = file_of(tmp_path / "a.jsonl", [f"How much is {n}?" for n in range(40)])
    second = file_of(tmp_path / "b.jsonl", [f"how much is {n}" for n in range(60)], domain="logic")
    common = SourceConfig(test_fraction=0.3)
    alone = load_rows(SourceConfig(dataset=first, test_fraction=0.3))
    splits = mixture({"dataset": first}, {"dataset": second, "split_seed": 5}, common=common)
    train, test = keys(splits["train"]), keys(splits["test"])
    assert not set(train) & set(test)
    assert len(test) == len(set(test))
    assert len(train) == len(set(train))
    assert set(keys(alone["test"])) <= set(test)
    # The other seed held out questions that the first source would have trained on.
    assert len(test) > len(keys(alone["test"]))


def test_entries_inherit_what_they_leave_out():
    one, two = read_sources('[{"dataset": "nano:choice"}, {"dataset": "nano", "max_rows": 3}]', COMMON)
    assert (one.config.max_rows, two.config.max_rows, two.config.max_test_rows) == (60, 3, 9)
    assert one.weight is None


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        ([], ["must be a list of sources"]),
        ("[{", ["no JSON list"]),
        ("nano", ["no JSON list"]),
        (["nano:choice"], ["must be a mapping that names its dataset"]),
        ([{"weight": 1}], ["names its dataset"]),
        ([{"dataset": "nano", "wieght": 1}], ["'wieght'", "'weight'", "'columns'"]),
        ([{"dataset": "nano", "weight": 0}], ["weight", "above 0"]),
        ([{"dataset": "nano", "weight": True}], ["weight", "above 0"]),
        ([{"dataset": "nano", "weight": 1}, {"dataset": "nano:choice"}], ["Give all one, or none"]),
        ([{"dataset": "nano", "domain": "maths"}], ["'maths'"]),
    ],
)
def test_refused(entries, parts):
    with pytest.raises(ConfigurationError) as raised:
        read_sources(entries, COMMON)
    for part in parts:
        assert part in str(raised.value)


def test_text_and_messages_do_not_mix(tmp_path):
    text = file_of(tmp_path / "a.jsonl", ["a b", "c d", "e f"])
    rows = [{"prompt": [{"role": "user", "content": f"question {n}"}], "reference": "1"} for n in range(4)]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"text and as messages \(.*b\.jsonl\)"):
        mixture({"dataset": text}, {"dataset": str(tmp_path / "b.jsonl")})


def test_a_source_that_others_hold_out_whole_is_refused(tmp_path):
    path = file_of(tmp_path / "a.jsonl", [f"question {n}" for n in range(10)])
    with pytest.raises(DataError, match="without those that other sources ask"):
        mixture({"dataset": path}, {"dataset": path})


def test_shares_are_at_least_one_row():
    assert shares([10, 5], [100, 0.1]) == [5000, 5]
    assert shares([1000, 1], [1, 1e-6]) == [1_000_000, 1]


def test_reasoning_gym_by_name():
    pytest.importorskip("reasoning_gym")
    config = SourceConfig("gym:leg_counting,chain_sum", max_rows=20, max_test_rows=6, domain="math")
    splits = load_rows(config)
    assert len(splits["train"]) == 20
    assert set(splits["train"]["domain"]) == {"math"}
    assert not set(keys(splits["train"])) & set(keys(splits["test"]))
    tasks = [key.split("/")[1] for key in splits["test"]["id"]]
    assert tasks == ["leg_counting", "chain_sum"] * 3
    with pytest.raises(ConfigurationError, match=r"min_tems.*do not suit chain_sum"):
        load_rows(SourceConfig("gym:chain_sum", gym_settings={"min_tems": 2}))
    with pytest.raises(ConfigurationError, match=r"'leg_count'.*'leg_counting'"):
        load_rows(SourceConfig("gym:leg_count"))
    with pytest.raises(ConfigurationError, match="at least one task"):
        load_rows(SourceConfig("gym:"))


def test_mbpp_shows_one_test_and_runs_all():
    row = mbpp(
        {
            "task_id": 3, "text": "Write a function that doubles. ", "code": "def twice(x):\r\n    return 2 * x",
            "test_list": ["assert twice(2) == 4", "assert twice(3) == 6"], "test_setup_code": "",
        }
    )  # fmt: skip
    assert row.prompt.endswith("assert twice(2) == 4")
    assert verify(gold_answer(row), row).correct
    assert verify("def twice(x):\n    return 4", row).correct is False
