"""Any data set becomes rows, and whatever is wrong with it is said before a weight is loaded."""

import json
from pathlib import Path

import pytest

from trl_r1.data.sources import SourceConfig, hold_out, load_rows, question_key
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.rows import Row

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the data sets are not at {DATA}")
GSM8K = {"columns": {"prompt": "question", "reference": "answer"}, "patterns": {"reference": "#### (.*)"}}


def skip_odd(example):
    return (
        None if example["n"] % 2 else Row(f"What is {example['n']} + 1?", str(example["n"] + 1), id=f"n{example['n']}")
    )


def as_columns(example):
    return {"prompt": [{"role": "user", "content": f"{example['n']}?"}], "reference": example["n"]}


def broken(example):
    return {"question": "?"}


@pytest.fixture
def numbers(tmp_path):
    path = tmp_path / "numbers.jsonl"
    path.write_text("".join(json.dumps({"n": n, "q": f"What is {n}?", "a": f"It is #{n}"}) + "\n" for n in range(200)))
    return str(path)


@needs_data
def test_gsm8k_by_mapping_and_pattern():
    splits = {"train": str(DATA / "gsm8k_train.jsonl"), "test": str(DATA / "gsm8k_test.jsonl")}
    rows = load_rows(SourceConfig(dataset=splits, max_rows=100, **GSM8K))
    assert {name: len(split) for name, split in rows.items()} == {"train": 100, "test": 1319}
    assert rows["train"][0]["reference"] == "72"
    assert rows["train"].column_names == list(Row.__dataclass_fields__)
    assert Row.from_columns(rows["train"][0]).domain == "math"


@needs_data
def test_options_become_part_of_the_prompt():
    config = SourceConfig(
        dataset=str(DATA / "mmlu_stem.jsonl"),
        columns={"prompt": "question", "options": "choices", "reference": "answer"},
    )
    row = load_rows(config)["train"][0]
    assert row["prompt"].count("\n") >= 4
    assert row["domain"] == "stem"
    assert json.loads(row["reference"])["answer"] == "C"


@needs_data
def test_unreadable_gold_answers_are_refused_above_the_share():
    math500 = {"dataset": str(DATA / "math500.jsonl"), "columns": {"prompt": "problem", "reference": "answer"}}
    with pytest.raises(DataError, match="cannot be verified"):
        load_rows(SourceConfig(**math500))
    assert len(load_rows(SourceConfig(**math500, max_unverifiable=0.03))["train"]) > 400
    with pytest.raises(DataError, match=r"100\.0%.*pattern"):
        load_rows(SourceConfig(dataset=str(DATA / "gsm8k_test.jsonl"), columns=GSM8K["columns"]))


def test_held_out_split_is_made_and_disjoint(numbers):
    config = SourceConfig(dataset=numbers, columns={"prompt": "q", "reference": "n"}, test_fraction=0.2)
    rows = load_rows(config)
    train, test = (set(rows[split]["prompt"]) for split in ("train", "test"))
    assert not train & test
    assert len(train | test) == 200
    assert 20 < len(test) < 60
    assert set(load_rows(config)["test"]["prompt"]) == test
    config.split_seed = 1
    assert set(load_rows(config)["test"]["prompt"]) != test


def test_equal_questions_never_straddle():
    rows = [Row(f"What is  {n} + 1" + mark, str(n + 1)) for n in range(50) for mark in ("?", " ?", ".", "？", "")]
    train, test = hold_out(rows, 0.3)
    assert len(train) + len(test) == 250
    assert not {question_key(r.prompt) for r in train} & {question_key(r.prompt) for r in test}
    assert question_key("3 + 5") != question_key("3 - 5")
    assert question_key("0.5 kg") != question_key("05 kg")


def test_a_tiny_source_still_gets_both_splits():
    train, test = hold_out([Row("a", "1"), Row("b", "2")], 0.01)
    assert len(train) == len(test) == 1
    with pytest.raises(DataError, match="1 different"):
        hold_out([Row("a", "1"), Row("A?", "1")], 0.5)


def test_training_rows_that_ask_a_held_out_question_are_dropped(tmp_path):
    for name, questions in (("train", "abc"), ("test", "cd")):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"prompt": q, "reference": "1"}) + "\n" for q in questions)
        )
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    rows = load_rows(SourceConfig(dataset=json.dumps(files)))
    assert rows["train"]["prompt"][:] == ["a", "b"]
    assert rows["test"]["prompt"][:] == ["c", "d"]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
def test_kinds_of_files(tmp_path, suffix):
    from datasets import Dataset

    path = tmp_path / f"data{suffix}"
    data = Dataset.from_list([{"prompt": f"What is {n}?", "reference": str(n)} for n in range(20)])
    {".parquet": data.to_parquet, ".csv": data.to_csv, ".json": data.to_json}[suffix](str(path))
    rows = load_rows(SourceConfig(dataset=str(path), language="en", domain="math"))
    assert len(rows["train"]) + len(rows["test"]) == 20
    assert rows["train"][0]["language"] == "en"


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_and_files_may_differ_in_columns_and_types(tmp_path):
    train = [{"prompt": f"What is {n}?", "reference": n, "note": None} for n in range(3)]
    train += [{"prompt": "What is 4/7?", "reference": "4/7", "language": "en", "note": {"by": "me"}}]
    test = [{"prompt": "What is 1/2?", "reference": "1/2", "group": "t"}, {"prompt": "What is 9?", "reference": 9}]
    files = {"train": write(tmp_path / "train.jsonl", *train), "test": write(tmp_path / "test.jsonl", *test)}
    rows = load_rows(SourceConfig(dataset=files))
    assert rows["train"]["reference"][:] == ["0", "1", "2", "4/7"]
    assert rows["train"]["language"][:] == [None, None, None, "en"]
    assert rows["test"]["reference"][:] == ["1/2", "9"]
    # A column of some rows is None in the others for a row function, too.
    function = SourceConfig(dataset=files, row_function=f"{__name__}.by_language")
    assert load_rows(function)["train"]["language"][:] == ["zh", "zh", "zh", "en"]


def by_language(example):
    return Row(example["prompt"], str(example["reference"]), language=example.get("language", "absent") or "zh")


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "cut.json").write_text('[{"prompt": "a", "refer')
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    for name in ("cut.json", "cut.parquet"):
        with pytest.raises(DataError, match=rf"{name} cannot be read as .*\.jsonl file, which may mix them"):
            load_rows(SourceConfig(dataset=str(tmp_path / name)))
    with pytest.raises(DataError, match=r"list\.jsonl, line 1 is a list\. Each line must be a JSON object"):
        load_rows(SourceConfig(dataset=write(tmp_path / "list.jsonl", [{"prompt": "a", "reference": "1"}])))
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é?", "reference": "1"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.jsonl, line 1 is no JSON: 'utf-8' codec"):
        load_rows(SourceConfig(dataset=str(tmp_path / "latin.jsonl")))


def test_row_function_may_return_rows_columns_or_nothing(numbers):
    rows = load_rows(SourceConfig(dataset=numbers, row_function=f"{__name__}.skip_odd"))
    assert len(rows["train"]) + len(rows["test"]) == 100
    assert rows["train"][0]["id"].startswith("n")
    chat = load_rows(SourceConfig(dataset=numbers, row_function=f"{__name__}.as_columns"))
    assert chat["train"][0]["prompt"][0]["role"] == "user"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"columns": {"prompt": "question"}}, DataError, "prompt: question.*has: n, q, a"),
        ({}, DataError, "No column for prompt, reference.*has: n, q, a"),
        ({"columns": {"prompt": "q"}}, DataError, "No column for reference"),
        (
            {"columns": {"prompt": "q", "reference": "a"}, "patterns": {"reference": "@(.*)"}},
            DataError,
            r"Row 0: pattern '@\(\.\*\)'.*It is #0",
        ),
        ({"train_split": "training", "dataset": {"train": "x.jsonl"}}, DataError, "No such file"),
        (
            {"test_split": "validation", "columns": {"prompt": "q", "reference": "n"}},
            DataError,
            "no split 'validation'",
        ),
        ({"row_function": "nowhere.function"}, ConfigurationError, "nowhere"),
        ({"row_function": f"{__name__}.broken"}, DataError, "row 0.*'prompt'"),
        ({"row_function": "math.pi"}, ConfigurationError, "must be a function"),
        ({"columns": {"promt": "q"}}, ConfigurationError, "'promt'.*'prompt'"),
        ({"patterns": {"reference": "("}}, ConfigurationError, "no regular expression"),
        ({"columns": "{oops"}, ConfigurationError, "no JSON"),
        ({"domain": "maths"}, ConfigurationError, "'maths'.*'math'"),
        ({"verifier": "sympy"}, ConfigurationError, "'sympy'.*'exact'"),
        ({"test_fraction": 1.5}, ConfigurationError, "test_fraction is 1.5"),
        ({"max_rows": 0}, ConfigurationError, "max_rows is 0"),
        ({"dataset": "missing.jsonl"}, DataError, "No such file: missing.jsonl"),
        ({"dataset": "no-such-user/no-such-data"}, DataError, "cannot be loaded"),
        ({"dataset": "nano:coutdown"}, ConfigurationError, "'coutdown'.*'countdown'"),
    ],
)
def test_bad_input_is_named(numbers, settings, error, message):
    with pytest.raises(error, match=message):
        load_rows(SourceConfig(**{"dataset": numbers, **settings}))


def test_nano_is_drawn_disjoint():
    rows = load_rows(SourceConfig(dataset="nano:countdown,arithmetic", max_rows=64, max_test_rows=16, language="en"))
    assert {name: len(split) for name, split in rows.items()} == {"train": 64, "test": 16}
    assert not set(rows["train"]["id"]) & set(rows["test"]["id"])
    assert set(rows["train"]["language"]) == {"en"}


def test_fields_do_not_collide_with_trls():
    from trl import GRPOConfig, ModelConfig

    ours = set(SourceConfig.__dataclass_fields__)
    assert not ours & (set(GRPOConfig.__dataclass_fields__) | set(ModelConfig.__dataclass_fields__))


def test_yaml_and_command_line(tmp_path):
    from trl import TrlParser

    path = tmp_path / "source.yaml"
    path.write_text("dataset: a.jsonl\ncolumns: {prompt: question}\npatterns: {reference: '#### (.*)'}\nmax_rows: 5\n")
    (config,) = TrlParser([SourceConfig]).parse_args_and_config(["--config", str(path), "--max_rows", "7"])
    assert config.columns == {"prompt": "question"}
    assert config.patterns == {"reference": "#### (.*)"}
    assert config.max_rows == 7
    (config,) = TrlParser([SourceConfig]).parse_args_and_config(["--columns", '{"prompt": "q"}'])
    assert config.columns == {"prompt": "q"}
