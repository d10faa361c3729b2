"""The SFT and distillation stages: lineage, what is refused before weights load, held-out questions, reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.nano import NanoWorld, checkpoint_path
from trl_r1.pipeline.configs import config_names
from trl_r1.pipeline.distill import check_student, distill, parse_distill, teach
from trl_r1.pipeline.lineage import lineage, model_hash
from trl_r1.pipeline.sft import sft
from trl_r1.pipeline.sft_arguments import parse_sft
from trl_r1.pipeline.sft_preflight import prepare_sft

SMALL = [
    "--config", "nano_cpu", "--max_traces", "24", "--max_steps", "1", "--rows_per_step", "4", "--max_test_rows", "8",
    "--heldout_questions", "2", "--heldout_samples", "2", "--heldout_max_tokens", "12", "--save_strategy", "no",
    "--disable_tqdm", "true",
]  # fmt: skip
STUDENTS = {
    "qwen_1.5b": ("Qwen/Qwen2.5-Math-1.5B", 1e-4), "qwen_7b": ("Qwen/Qwen2.5-Math-7B", 8e-5),
    "qwen_14b": ("Qwen/Qwen2.5-14B", 7e-5), "qwen_32b": ("Qwen/Qwen2.5-32B", 6e-5),
    "llama_8b": ("meta-llama/Llama-3.1-8B", 5e-5), "llama_70b": ("meta-llama/Llama-3.3-70B-Instruct", 2e-5),
}  # fmt: skip


def run(folder: Path, *options: str) -> dict[str, Any]:
    report = sft(*parse_sft([*SMALL, "--output_dir", str(folder), *options]))
    assert report is not None
    return report


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One run whose artifacts several tests look at."""
    folder = tmp_path_factory.mktemp("sft") / "run"
    return folder, run(folder, "--stage_name", "Cold start")


def test_run_leaves_model_report_and_card(first: tuple[Path, dict[str, Any]]) -> None:
    folder, report = first
    stored = json.loads((folder / "report.json").read_text())
    assert stored.keys() == report.keys()
    assert report["parent"] == {
        "model": "nano", "hash": model_hash(str(checkpoint_path())), "stage": "base", "parents": [],
    }  # fmt: skip
    assert report["data"]["rows"] == 24
    assert report["data"]["licenses"] == {"apache-2.0": 24}
    assert report["data"]["hash"].startswith("rows-sha256:")
    assert set(report["change"]) >= {"pass@1", "cons@2", "well_formed", "truncated"}
    for name in ("model.safetensors", "tokenizer.json", "generation_config.json", "curves.png", "heldout_after.json"):
        assert (folder / name).stat().st_size > 0
    card = (folder / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert {"sft", "cold-start"} <= set(header["tags"])
    assert "Licences of the traces: apache-2.0 (24 rows)" in card
    assert "1 steps of SFT" in card
    assert "Rewards" not in card
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [0]


def test_second_sft_starts_from_the_base(first: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Trap 34: a model that SFT made is refused as the start of the next SFT; allowed, its whole lineage is recorded."""
    folder, report = first
    with pytest.raises(ConfigurationError, match=r"made by the stage 'Cold start', but parent_stage='base'.*§2.3.3"):
        run(tmp_path / "next", "--model_name_or_path", str(folder))
    found = lineage(str(folder))
    assert found["stage"] == "Cold start"
    assert found["hash"] != report["parent"]["hash"]
    assert found["parents"] == [{key: report["parent"][key] for key in ("model", "hash", "stage")}]
    following = parse_sft([*SMALL, "--model_name_or_path", str(folder), "--parent_stage", "any"])
    assert prepare_sft(*following).parent == found


def test_traces_of_held_out_questions_are_dropped(tmp_path: Path) -> None:
    (row, *_) = NanoWorld().rows("test", 8, tasks=["countdown"], depth=3)
    traces = tmp_path / "traces.jsonl"
    lines = [
        {"prompt": prompt, "completion": "<think>a</think> <answer>b</answer>"} for prompt in (row.prompt, "Make 3")
    ]
    traces.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepared = prepare_sft(*parse_sft([*SMALL, "--traces", str(traces)]))
    assert (len(prepared.traces), prepared.data["dropped_held_out_questions"]) == (1, 1)
    assert prepared.data["hash"].startswith("sha256:")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--traces", "nowhere.jsonl"], DataError, "No such file: nowhere"),
        (["--max_length", "16"], DataError, "longer than max_length=16"),
        (["--draw", "uniform"], DataError, "draws need records"),
        (["--draw", "longest"], ConfigurationError, "Unknown draw 'longest'"),
        (["--heldout_pass_k", "4"], ConfigurationError, "pass@4 cannot be measured with 2 samples"),
        (["--load_in_4bit", "true"], ConfigurationError, "use_peft: true"),
        (["--heldout_every_steps", "1", "--heldout_sampler", "{}"], ConfigurationError, "one of the two"),
    ],
)
def test_refused_before_weights_load(
    options: list[str], error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("trl.trainer.sft_trainer.create_model_from_path", load)
    with pytest.raises(error, match=message):
        run(tmp_path / "run", *options)


def test_preview_shows_prompt_and_target(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("trl.trainer.sft_trainer.create_model_from_path")
    assert sft(*parse_sft([*SMALL, "--preview", "true"])) is None
    shown = capsys.readouterr().out
    assert shown.count("·· target, ") == 3
    assert shown.count("</answer><|endoftext|>") == 3
    assert "24 traces to train on; 2 held out × 2 samples; template 'base'; parent 'nano' (base)" in shown


def test_folder_of_another_run_is_kept(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="already holds checkpoint-1"):
        run(tmp_path)


def test_students_have_the_papers_learning_rates() -> None:
    """Method §8: v2 B.4.3 and Table 6."""
    for name, (model, rate) in STUDENTS.items():
        options = ["--config", f"r1_distill_{name}", "--use_cpu", "true", "--bf16", "false"]
        script, training, student = parse_distill(options)
        assert (student.model_name_or_path, training.learning_rate) == (model, rate), name
        assert (training.rows_per_step, training.max_length, training.num_train_epochs) == (64, 32768, 2)
        assert training.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
        assert script.parent_stage == "base"


@pytest.mark.parametrize("name", config_names("sft"))
def test_configurations_of_sft_are_read(name: str) -> None:
    script, training, _ = parse_sft(["--config", name, "--use_cpu", "true", "--bf16", "false"])
    assert script.traces
    assert training.rows_per_step
    assert training.gradient_accumulation_steps * training.per_device_train_batch_size == training.rows_per_step


def test_teacher_or_traces() -> None:
    student = ["--model_name_or_path", "nano"]
    with pytest.raises(ConfigurationError, match="give one of them"):
        parse_distill(student)
    with pytest.raises(ConfigurationError, match="give one of them"):
        parse_distill([*student, "--teacher", "nano", "--traces", "nano:countdown", "--dataset", "nano:countdown"])
    with pytest.raises(ConfigurationError, match="name a `dataset`"):
        parse_distill([*student, "--teacher", "nano"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            ["--model_name_or_path", "no/such-student"],
            ConfigurationError,
            "Model 'no/such-student' cannot be read",
        ),
        (["--heldout_pass_k", "4"], ConfigurationError, "pass@4 cannot be measured with 2 samples"),
        (["--dataset", "nowhere.jsonl"], DataError, "nowhere"),
        ([], ConfigurationError, "already holds checkpoint-1"),
    ],
)
def test_student_is_looked_at_before_the_teacher_samples(
    options: list[str], error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not options:
        (tmp_path / "run" / "checkpoint-1").mkdir(parents=True)
        (tmp_path / "run" / "checkpoint-1" / "trainer_state.json").write_text("{}")
    monkeypatch.delattr("trl_r1.pipeline.distill.open_sampler")
    given = [
        *SMALL,
        "--teacher",
        "nano",
        "--traces",
        "",
        "--dataset",
        "nano:countdown",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    with pytest.raises(error, match=message):
        distill(*parse_distill([*given, *options]))
    assert not (tmp_path / "run" / "teacher").exists()


def test_distillation_from_a_teacher(tmp_path: Path) -> None:
    """nano teaches nano: its right answers alone, of training questions alone, reach the student; a second start goes on."""
    teacher = json.dumps({"model_name_or_path": "nano", "n": 4, "max_tokens": 48, "seed": 0, "backend": "transformers"})
    options = [
        "--config", "nano_cpu", "--teacher", teacher, "--max_rows", "24", "--max_test_rows", "8", "--heldout_questions", "2",
        "--heldout_samples", "2", "--heldout_max_tokens", "12", "--max_steps", "1", "--rows_per_step", "4",
        "--save_strategy", "no", "--output_dir", str(tmp_path / "run"),
    ]  # fmt: skip
    report = distill(*parse_distill(options))
    assert report is not None
    assert report["stage"] == "Distillation"
    assert report["teacher"]["hash"] == model_hash(str(checkpoint_path()))
    total = json.loads((tmp_path / "run" / "teacher" / "report.json").read_text())["total"]
    assert report["data"]["rows"] == total["accepted"] > 0
    shards = sorted((tmp_path / "run" / "teacher" / "shards").glob("*.jsonl"))
    before = [path.read_text() for path in shards]
    script, *_ = parse_distill(options)
    teach(script, tmp_path / "run" / "teacher")
    assert [path.read_text() for path in shards] == before
    # Another teacher's samples are not mixed in; --overwrite has it begin anew.
    check_student(*parse_distill(options))
    assert [path.read_text() for path in shards] == before
    other, *_ = parse_distill([*options, "--teacher", teacher.replace('"seed": 0', '"seed": 1')])
    with pytest.raises(ConfigurationError, match=r"sampling\.seed was 0 and is 1"):
        teach(other, tmp_path / "run" / "teacher")
    check_student(*parse_distill([*options, "--overwrite", "true"]))
    assert not list((tmp_path / "run" / "teacher").glob("**/*.*"))
