"""Bad input of the R1-Zero stage: said before any weight is loaded, with the value, what is allowed and the fix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trl_r1.exceptions import ConfigurationError, DataError, MissingExtraError, TrlR1Error
from trl_r1.pipeline import parse_r1_zero, r1_zero
from trl_r1.pipeline.sft import sft
from trl_r1.pipeline.sft_arguments import parse_sft

SMALL = ["--use_cpu", "true", "--use_vllm", "false", "--max_rows", "64", "--max_test_rows", "16", "--report_to", "none"]
SMALL_SFT = ["--use_cpu", "true", "--traces", "nano:countdown", "--report_to", "none"]


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Fail if a checkpoint is opened or a model built."""
    import transformers

    def loaded(*args: object, **kwargs: object) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", loaded)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", loaded)
    return loaded


def questions(folder: Path, answers: list[str]) -> str:
    path = folder / "questions.jsonl"
    lines = [json.dumps({"question": f"What is {n} + {n}?", "answer": answer}) for n, answer in enumerate(answers)]
    path.write_text("\n".join(lines))
    return str(path)


def run(tmp_path: Path, *options: str) -> None:
    r1_zero(*parse_r1_zero([*SMALL, "--output_dir", str(tmp_path / "run"), *options]))


MAPPED = ("--columns", '{"prompt": "question", "reference": "answer"}')
NANO = ("--config", "nano_cpu")

# Name, options, kind of error, parts of its message. "{data}" and "{bad}" stand for files of questions.
CASES: list[tuple[str, tuple[str, ...], type[TrlR1Error], tuple[str, ...]]] = [
    ("reward", (*NANO, "--rewards", "acuracy", "format"), ConfigurationError, ("acuracy", "'accuracy'", "dotted path")),
    (
        "token budget",
        (*NANO, "--max_tokens_per_microbatch", "8"),
        ConfigurationError,
        ("max_tokens_per_microbatch=8", "longest prompt", "'auto'"),
    ),
    ("token budget's form", (*NANO, "--max_tokens_per_microbatch", "many"), ConfigurationError, ("'many'", "auto")),
    ("packing", (*NANO, "--packing", "dense"), ConfigurationError, ("dense", "'auto'", "'varlen'")),
    ("reward path", (*NANO, "--rewards", "no_such.reward"), ConfigurationError, ("no_such.reward", "'accuracy'")),
    ("domain", (*NANO, "--domain", "algebra"), ConfigurationError, ("algebra", "'math'", "'logic'")),
    ("verifier", (*NANO, "--verifier", "oracle"), ConfigurationError, ("oracle", "'expression'")),
    ("template", (*NANO, "--template", "plain"), ConfigurationError, ("plain", "'base'", "'chat'")),
    ("configuration", ("--config", "nano_tpu"), ConfigurationError, ("nano_tpu", "'nano_cpu'")),
    ("preset", (*NANO, "--preset", "one_gpu_8gb"), ConfigurationError, ("one_gpu_8gb", "r1_paper")),
    ("nano variant", (*NANO, "--model_name_or_path", "nano:tiny"), ConfigurationError, ("tiny", "no_reflection")),
    (
        "column",
        (
            "--model_name_or_path",
            "nano",
            "--dataset",
            "{data}",
            "--columns",
            '{"prompt": "problem", "reference": "answer"}',
        ),
        DataError,
        ("problem", "question"),
    ),
    (
        "field of a mapping",
        ("--model_name_or_path", "nano", "--dataset", "{data}", "--columns", '{"question": "prompt"}'),
        ConfigurationError,
        ("question", "'prompt'", "'reference'"),
    ),
    (
        "mapping",
        ("--model_name_or_path", "nano", "--dataset", "{data}", "--columns", "prompt=question"),
        ConfigurationError,
        ("prompt=question",),
    ),
    (
        "gold answers",
        ("--model_name_or_path", "nano", "--dataset", "{bad}", *MAPPED),
        DataError,
        ("cannot be verified", "Tuesday", "max_unverifiable"),
    ),
    ("file", ("--model_name_or_path", "nano", "--dataset", "nowhere.jsonl"), DataError, ("nowhere.jsonl",)),
    (
        "template and reward",
        (*NANO, "--answer_form", "boxed"),
        ConfigurationError,
        ("gold completion", "format_reward", "think_format"),
    ),
    (
        "batch",
        (*NANO, "--questions_per_step", "5", "--per_device_train_batch_size", "32"),
        ConfigurationError,
        ("5 questions x 16 = 80", "per_device_train_batch_size=32", "Allowed"),
    ),
    ("group", (*NANO, "--num_generations", "1"), ConfigurationError, ("num_generations", "at least 2")),
    (
        "too few questions",
        (*NANO, "--max_rows", "8", "--questions_per_step", "16"),
        DataError,
        ("8 questions", "needs 16", "questions_per_step"),
    ),
    ("votes", (*NANO, "--heldout_cons_k", "64"), ConfigurationError, ("cons@64", "16 samples", "heldout_samples")),
    ("pass@k", (*NANO, "--heldout_pass_k", "32"), ConfigurationError, ("pass@32", "heldout_samples")),
    ("samples", (*NANO, "--heldout_samples", "0"), ConfigurationError, ("heldout_samples=0", "at least 1")),
    ("4-bit without adapter", (*NANO, "--load_in_4bit", "true"), ConfigurationError, ("load_in_4bit", "use_peft")),
    (
        "top-p",
        (*NANO, "--use_vllm", "true", "--top_p", "0.9", "--vllm_importance_sampling_correction", "true"),
        ConfigurationError,
        ("top_p=0.9", "importance", "vllm_importance_sampling_correction: false"),
    ),
    (
        "4-bit and vLLM on a CPU",
        (*NANO, "--use_vllm", "true", "--load_in_4bit", "true", "--use_peft", "true"),
        ConfigurationError,
        ("4-bit", "use_vllm: false"),
    ),
    (
        "engine option",
        (*NANO, "--use_vllm", "true", "--vllm_engine_kwargs", '{"max_sequences": 3}'),
        ConfigurationError,
        ("max_sequences", "'max_num_seqs'"),
    ),
]


@pytest.mark.parametrize(("options", "error", "parts"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_refused_before_loading(
    tmp_path: Path, no_weights: object, options: tuple[str, ...], error: type[TrlR1Error], parts: tuple[str, ...]
) -> None:
    if "--use_vllm" in options:
        pytest.importorskip("vllm")
    files = {
        "{data}": questions(tmp_path, [str(2 * n) for n in range(64)]),
        "{bad}": "",
    }
    if "{bad}" in options:
        files["{bad}"] = questions(tmp_path, [r"\text{Tuesday}" if n % 4 == 0 else str(2 * n) for n in range(64)])
    with pytest.raises(error) as raised:
        run(tmp_path, *(files.get(option, option) for option in options))
    for part in parts:
        assert part in str(raised.value), f"{part!r} not in: {raised.value}"
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_vllm_absent(tmp_path: Path, no_weights: object, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl_r1.trainers.grpo_config as grpo_config

    monkeypatch.setattr(grpo_config, "is_vllm_available", lambda: False)
    with pytest.raises(MissingExtraError, match=r"(?i)vllm.*pip install"):
        run(tmp_path, *NANO, "--use_vllm", "true")


def test_a_folder_without_a_model_is_named(tmp_path: Path, no_weights: object) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    with pytest.raises(ConfigurationError, match=r"unfinished' is a folder without a model .*end first"):
        run(tmp_path, "--model_name_or_path", str(unfinished))
    (unfinished / "checkpoint-20").mkdir()
    (unfinished / "checkpoint-20" / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"It holds checkpoint-20: name one of them"):
        run(tmp_path, "--model_name_or_path", str(unfinished))


def test_a_model_that_is_not_there_is_named(tmp_path: Path, no_weights: object) -> None:
    missing = str(tmp_path / "missing")
    said = r"Model '.*missing' cannot be read: (?s:.*)Give a Hub id or a folder with a config.json"
    with pytest.raises(ConfigurationError, match=said):
        run(tmp_path, "--model_name_or_path", missing)
    with pytest.raises(ConfigurationError, match=said):
        sft(*parse_sft([*SMALL_SFT, "--output_dir", str(tmp_path / "sft"), "--model_name_or_path", missing]))


def test_earlier_run_is_not_mixed_with_a_new_one(tmp_path: Path, no_weights: object) -> None:
    checkpoint = tmp_path / "run" / "checkpoint-7"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"checkpoint-7.*--resume_from_checkpoint auto.*--overwrite true"):
        run(tmp_path, *NANO)
    with pytest.raises(ConfigurationError, match=r"heldout_before.json is missing.*--overwrite true"):
        run(tmp_path, *NANO, "--resume_from_checkpoint", "auto")


def test_preview_shows_rows_scored_and_loads_nothing(
    tmp_path: Path, no_weights: object, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, *NANO, "--preview")
    shown = capsys.readouterr().out
    assert shown.count("accuracy_reward 1.0, format_reward 1.0") == 3
    assert shown.count("A conversation between User and Assistant.") == 3
    assert "64 questions to train on; 16 held out" in shown
    assert not (tmp_path / "run").exists()


def test_preview_of_a_data_set_by_columns_and_pattern(
    tmp_path: Path, no_weights: object, capsys: pytest.CaptureFixture[str]
) -> None:
    data = questions(tmp_path, [f"twice {n} is {2 * n}\n#### {2 * n}" for n in range(64)])
    pattern = ("--patterns", '{"reference": "#### (.*)"}')
    run(tmp_path, "--model_name_or_path", "nano", "--dataset", data, *MAPPED, *pattern, "--preview", "true")
    shown = capsys.readouterr().out
    assert shown.count("accuracy_reward 1.0") == 3
    assert "What is " in shown
