"""The cold-start stage: every shipped configuration, a kill in the middle, and what is refused before a weight loads."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trl_r1.data.cold_start_rows import read_rows, write_rows
from trl_r1.data.sources import SourceConfig, load_rows
from trl_r1.data.traces import licenses, load_traces
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.generation.config import SamplerConfig
from trl_r1.generation.shards import SampleStore
from trl_r1.pipeline.cold_start import cold_start, parse_cold_start
from trl_r1.pipeline.configs import config_names
from trl_r1.pipeline.sft_arguments import parse_sft
from trl_r1.responses import parse

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
# Only what a laptop forces: nano's base answers arithmetic right now and then, in few tokens.
SMALL = (
    "--model_name_or_path", "nano", "--backend", "transformers", "--dataset", "nano:arithmetic", "--max_rows", "12",
    "--max_test_rows", "4", "--samples", "4", "--max_tokens", "24", "--max_num_seqs", "64", "--filter_settings", "{}",
)  # fmt: skip


def run(*options: object) -> dict[str, Any]:
    return cold_start(*parse_cold_start([str(option) for option in options]))


def licences(name: str, rows: Path) -> dict[str, int]:
    """What the SFT configuration of the same name reports of the rows that this one writes."""
    script, *_ = parse_sft(["--config", name, "--use_cpu", "true"])
    output_dir = parse_cold_start(["--config", name])[0].output_dir
    assert script.traces == f"{output_dir}/cold_start.jsonl"
    return licenses(load_traces(replace(script, traces=str(rows)), script.answer_form))


def test_nano_writes_its_own_cold_start(tmp_path: Path) -> None:
    report = run("--config", "nano_cpu", *SMALL, "--depth", 2, "--output_dir", tmp_path)
    rows = read_rows(tmp_path / "cold_start.jsonl")
    assert report["rows"] == len(rows) > 0
    assert json.loads((tmp_path / "cold_start_report.json").read_text()) == report
    assert report["by_source"]["r1_zero"]["traces"] == 48
    for row in rows:
        response = parse(row["completion"])
        assert response.well_formed
        assert row["verdict"]["correct"] is True
        assert response.answer == row["answer"]
        assert not row["completion"].startswith(" ")


def test_reasoning_gym_rows_are_made_by_one_command(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym", reason="pip install 'trl-r1[reasoning-gym]'")
    sizes = ("--max_traces", 60, "--max_kept", 50, "--held_out", 10)
    report = run("--config", "smollm2_135m_gsm_symbolic", *sizes, "--output_dir", tmp_path)
    assert report["rows"] == 50
    assert report["questions"] == 60
    rows, unseen = (read_rows(tmp_path / name) for name in ("cold_start.jsonl", "heldout_unseen.jsonl"))
    assert len(unseen) == len(read_rows(tmp_path / "heldout_seen.jsonl")) == 10
    assert not {row["group"] for row in rows} & {row["group"] for row in unseen}
    # What was written is a source of rows for training and for evaluation.
    files = {"train": str(tmp_path / "cold_start.jsonl"), "test": str(tmp_path / "heldout_unseen.jsonl")}
    splits = load_rows(SourceConfig(dataset=files))
    assert (len(splits["train"]), len(splits["test"])) == (50, 10)
    assert set(splits["test"]["verifier"]) == {"gym"}
    assert licences("smollm2_135m_gsm_symbolic", tmp_path / "cold_start.jsonl") == {"apache-2.0": 50}


def test_gsm8k_rows_are_made_by_one_command(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl"
    solved = [
        ("How many?", "1+1 = <<1+1=2>>2\n#### 2"),
        ("And now?", "2*3 = <<2*3=7>>7\n#### 7"),
        ("More?", "5-1 = 4\n#### 4"),
    ]
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in solved))
    report = run("--config", "smollm2_135m_gsm8k", "--traces", path, "--output_dir", tmp_path / "run")
    assert report["dropped"] == {"equation": 1}
    first = read_rows(tmp_path / "run" / "cold_start.jsonl")[0]
    assert first["completion"] == "<think> 1+1 = 2 </think> <answer> 2 </answer>"
    assert licences("smollm2_135m_gsm8k", tmp_path / "run" / "cold_start.jsonl") == {"mit": 2}


def test_the_large_configuration_is_complete(tmp_path: Path) -> None:
    script_args, sampler = parse_cold_start(["--config", "qwen2.5_7b"])
    assert script_args.sources == ["few_shot", "direct"]
    assert sampler.temperature == 1.0
    assert SamplerConfig.parse(script_args.rewriter or "").max_tokens == 4096
    # With nano in the model's place it runs to the end; nano has never seen such a request.
    options = ("--answer_form", "answer", "--check_equations", "false", "--engine_options", "{}", "--max_rows", 2)
    with pytest.raises(DataError, match=r"None of 4 traces of 2 questions"):
        run("--config", "qwen2.5_7b", *SMALL, *options, "--sources", "direct", "--columns", "{}", "--patterns", "{}",
            "--samples", 2, "--rewriter", "nano", "--output_dir", tmp_path)  # fmt: skip


def test_every_configuration_is_tested() -> None:
    assert set(config_names("cold_start")) == {
        "nano_cpu",
        "smollm2_135m_gsm8k",
        "smollm2_135m_gsm_symbolic",
        "qwen2.5_7b",
    }
    assert len((RECIPES / "cold_start.py").read_text().splitlines()) <= 150


class _Adder(BaseHTTPRequestHandler):
    """A server that adds two numbers: most of the time right, always in 10 ms."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "adder"}]})

    def do_POST(self) -> None:
        type(self).asked += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        a, b = map(int, re.findall(r"What is (\d+) \+ (\d+)", body["prompt"])[0])
        total = a + b + (body["seed"] % 4 == 0)
        text = f" <think>I add {a} and {b}, which makes {total}.</think> <answer>{total}</answer>"
        time.sleep(0.01)
        self._answer({"choices": [{"text": text, "finish_reason": "stop"}]})

    def _answer(self, data: Any) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Keep the tests quiet."""


@pytest.fixture
def adder() -> Iterator[str]:
    _Adder.asked = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), _Adder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, adder: str) -> None:
    questions = tmp_path / "questions.jsonl"
    rows = ({"prompt": f"What is {number} + 5?", "reference": str(number + 5)} for number in range(120))
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [
        "--sources", "r1_zero", "--dataset", str(questions), "--max_rows", "100", "--samples", "4", "--server_urls", adder,
        "--server_concurrency", "4", "--template", "base", "--target_form", "answer", "--seed", "0", "--max_per_question",
        "4", "--output_dir", str(tmp_path / "run"),
    ]  # fmt: skip
    program = "import sys; from trl_r1.pipeline.cold_start import run; run(sys.argv[1:])"
    folder = tmp_path / "run" / "samples" / "r1_zero"
    with subprocess.Popen([sys.executable, "-c", program, *options], stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 100
        while not list(folder.glob("shard-*")):
            assert process.poll() is None, "ended before a shard was written"
            assert time.monotonic() < end, "no shard within 100 s"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "cold_start.jsonl").exists()
    before = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    done = len(SampleStore(folder))
    assert 256 <= done < 400
    _Adder.asked = 0
    report = run(*options)
    assert _Adder.asked == 400 - done
    assert report["by_source"]["r1_zero"]["traces"] == 400
    assert 240 < report["by_source"]["r1_zero"]["right"] < 360
    assert all((folder / name).read_bytes() == text for name, text in before.items())
    # A third start samples nothing, and comes to the same rows.
    written = (tmp_path / "run" / "cold_start.jsonl").read_bytes()
    assert run(*options) == report
    assert (tmp_path / "run" / "cold_start.jsonl").read_bytes() == written
    assert _Adder.asked == 400 - done


def test_starting_anew_puts_reviewed_rows_aside(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": "1 + 1?", "reference": "2", "reasoning": "1 + 1 = 2", "answer": "2"}) + "\n")
    options = ("--traces", path, "--output_dir", tmp_path / "run")
    run(*options)
    rows = read_rows(tmp_path / "run" / "cold_start.jsonl")
    rows[0]["review"] = {"status": "drop", "edited": False, "note": ""}
    write_rows(tmp_path / "run" / "cold_start.jsonl", rows)
    run(*options, "--overwrite", "true")
    assert read_rows(tmp_path / "run" / "cold_start.jsonl")[0]["review"]["status"] == "pending"
    assert read_rows(tmp_path / "run" / "cold_start.reviewed.jsonl") == rows
    # A later review does not take the place of an earlier one.
    for number in (2, 3):
        rows[0]["review"]["note"] = f"review {number}"
        write_rows(tmp_path / "run" / "cold_start.jsonl", rows)
        run(*options, "--overwrite", "true")
        assert read_rows(tmp_path / "run" / f"cold_start.reviewed-{number}.jsonl") == rows
    assert read_rows(tmp_path / "run" / "cold_start.reviewed.jsonl")[0]["review"]["note"] == ""


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--sources", "zero"], ConfigurationError, "Allowed: 'few_shot', 'direct', 'r1_zero'"),
        (["--sources", "direct"], ConfigurationError, "need a `dataset` of questions"),
        (["--traces", "gym:chain_sum"], ConfigurationError, "has no end: set max_traces"),
        (["--traces", "a.jsonl", "--held_out", "3"], ConfigurationError, "needs traces of reasoning-gym"),
        (["--traces", "a.jsonl", "--target_form", "tags"], ConfigurationError, "Unknown target_form 'tags'"),
        (["--traces", "a.jsonl", "--filters", "length"], DataError, "No such file: a.jsonl"),
        (["--traces", "a.jsonl", "--filters", "beauty"], ConfigurationError, "Unknown filter 'beauty'"),
        (
            ["--traces", "a.jsonl", "--rewriter", '{"model": "x"}'],
            ConfigurationError,
            "Unknown sampler setting 'model'",
        ),
        (["--traces", "FILE", "--rewriter", "./nobody"], ConfigurationError, r"Model './nobody' cannot be read"),
        (["--config", "nano_tpu"], ConfigurationError, "Unknown configuration 'nano_tpu'"),
        (["--sources", "direct", "--dataset", "missing.jsonl"], DataError, "No such file"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    options: list[str], error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text('{"prompt": "1 + 1?", "reference": "2", "reasoning": "two", "answer": "2"}\n')
    options = ["mine.jsonl" if option == "FILE" else option for option in options]
    with pytest.raises(error, match=message):
        run(*options, "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_to_build_from_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "empty.yaml"
    config.write_text("output_dir: x\n")
    with pytest.raises(ConfigurationError, match="Nothing to build from"):
        run("--config", config)


def test_recipe_runs_as_a_script(tmp_path: Path) -> None:
    shutil.copy(RECIPES / "cold_start.py", tmp_path / "elsewhere.py")
    done = subprocess.run(
        [sys.executable, "elsewhere.py", "--sources", "zero"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Allowed: 'few_shot', 'direct', 'r1_zero'" in done.stderr
