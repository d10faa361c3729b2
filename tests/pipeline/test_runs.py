"""Report, rescore and compare on a run's folder."""

import json
import os
import shutil
import subprocess
from dataclasses import replace

import pytest

from trl_r1 import cli
from trl_r1.data.rollouts import RolloutLog, read_rollouts
from trl_r1.evaluation import score
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.nano import NanoWorld
from trl_r1.pipeline.compare import run_compare
from trl_r1.pipeline.report import run_report
from trl_r1.pipeline.rescore import rescore, run_rescore, summary
from trl_r1.pipeline.runs import read_evaluation, read_run, read_runs
from trl_r1.rewards import accuracy_reward
from trl_r1.rows import Completion
from trl_r1.verifiers import gold_answer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder as a stage leaves it: real rows, real scores, texts that a policy might write."""
    folder = tmp_path_factory.mktemp("runs") / "zero"
    rows = NanoWorld().rows("test", 12, tasks=["countdown"], language="en", depth=3, seed=0)
    right = [f"<think>wait, let me check</think> <answer>{gold_answer(row)}</answer>" for row in rows]
    wrong = ["<think>no</think> <answer>1+1</answer>"] * len(rows)
    evaluations = []
    for good in (1, 3):  # of four samples
        samples = [
            [Completion(r, (1,) * 9)] * good + [Completion(w, (1,) * 5)] * (4 - good)
            for r, w in zip(right, wrong, strict=True)
        ]
        evaluations.append(score(rows, samples, cons_k=4))
    folder.mkdir()
    for name, one in zip(("heldout_before.json", "heldout_after.json"), evaluations, strict=True):
        (folder / name).write_text(json.dumps(one.asdict()))
    before, after = (one.summary() for one in evaluations)
    report = {
        "stage": "R1-Zero", "model": "nano", "dataset": "nano:countdown", "before": before, "after": after,
        "change": {"pass@1": [0.5, 0.4, 0.6]}, "steps": 2, "seconds": 61.0, "settings": {"seed": 0}, "versions": {},
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "checkpoint-2").mkdir()
    history = [{"step": step, "reward": 0.5 * step, "eval_pass@1": 0.25 * step} for step in (1, 2)]
    (folder / "checkpoint-2" / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    for step in (0, 1):
        texts = [text for pair in zip(right, wrong, strict=True) for text in pair]
        asked = [row for row in rows for _ in range(2)]
        rewards = {"accuracy_reward": [1.0, 0.0] * len(rows), "format_reward": [1.0, 1.0] * len(rows)}
        RolloutLog(folder).write(
            step, [row.asdict() for row in asked], [row.prompt for row in asked], texts, [len(t) for t in texts],
            [False] * len(texts), rewards,
        )  # fmt: skip
    return folder


def test_a_run_is_read_back(run):
    found = read_run(run)
    assert found.report["stage"] == "R1-Zero"
    assert [entry["step"] for entry in found.log] == [1, 2]
    assert len(found.rollouts()) == 48
    assert [one.name for one in read_runs([run, run])] == [str(run), str(run)]
    with pytest.raises(DataError, match="is no run"):
        read_run(run.parent)
    with pytest.raises(DataError, match="holds no scores"):
        read_evaluation(run.parent)


def test_rescoring_by_the_same_reward_changes_nothing(run):
    rollouts = read_rollouts(run)
    found = summary(rescore(rollouts, ["accuracy", "format"]))
    assert found["paid"]["mean"] == found["would"]["mean"] == 1.5
    assert found["correlation"] == pytest.approx(1.0)
    assert found["same_best"] == 1.0


def test_rescoring_shows_what_another_reward_would_have_paid(run, capsys):
    found = run_rescore([str(run), "--rewards", "accuracy", "random", "--weights", "2", "0.5"])
    assert found["parts"]["accuracy_reward"] == 0.5
    assert 1.0 < found["would"]["mean"] < 1.5
    assert found["logged_rewards"] == ["accuracy_reward", "format_reward"]
    assert json.loads((run / "rescore.json").read_text())["questions"] == 24
    assert "correlation within groups" in capsys.readouterr().out
    format_only = summary(rescore(read_rollouts(run), ["format"]))
    assert format_only["would"]["groups_without_spread"] == 1.0
    assert format_only["correlation"] is None


def test_a_row_that_a_reward_cannot_score_is_left_out(run):
    def sometimes(completions, **columns):
        return [None if i else 1.0 for i in range(len(completions))]

    found = summary(rescore(read_rollouts(run), [accuracy_reward, sometimes]))
    assert (found["completions"], found["scored"]) == (48, 24)
    with pytest.raises(ConfigurationError, match="2 weights for 1 rewards"):
        rescore(read_rollouts(run), ["accuracy"], [1, 2])


def test_compare_a_run_with_its_own_start(run, tmp_path, capsys):
    found = run_compare([str(run), "--out", str(tmp_path)])
    assert found["difference"]["pass@1"][0] == pytest.approx(0.5)
    assert (tmp_path / "compare.png").stat().st_size > 5_000
    assert json.loads((tmp_path / "compare.json").read_text())["names"] == ["before", "after"]
    assert "pass@4" in capsys.readouterr().out
    seeds = run_compare(["--first", *[str(run / "heldout_before.json")] * 2, "--second", *[str(run)] * 2])
    assert seeds["seeds"] == 2
    with pytest.raises(ConfigurationError, match="Give one run, two runs"):
        run_compare([])


def test_the_page_holds_everything_and_fetches_nothing(run, tmp_path):
    page = run_report([str(run), "--out", str(tmp_path)]).read_text()
    assert "R1-Zero on nano:countdown" in page
    assert page.count("data:image/png;base64,") == 2  # curves, behaviours
    assert "75.0 %" in page
    assert page.count("<details>") >= 8
    for tag in ("<script", 'src="http', 'href="http', "@import"):
        assert tag not in page
    both = run_report([str(run), str(run), "--out", str(tmp_path / "both")]).read_text()
    assert "Runs compared" in both
    assert "<h2>Stages</h2>" in both


def test_what_a_model_writes_is_text_and_not_markup(run, tmp_path):
    folder = tmp_path / "attack"
    shutil.copytree(run, folder)
    (one, *_) = read_rollouts(run)
    evil = "<script>alert(1)</script>"
    RolloutLog(folder).write(
        1, [replace(one.row, reference=evil).asdict()], [evil], [evil], [3], [False], {"accuracy_reward": [1.0]}
    )
    page = run_report([str(folder)]).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium (Debian: apt-get install chromium)")
def test_the_page_looks_right_in_a_browser(run, tmp_path):
    page = run_report([str(run), "--out", str(tmp_path)])
    shot = tmp_path / "page.png"
    for width in (1150, 380):
        command = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={shot}", f"--window-size={width},2400", "--dump-dom", page.as_uri(),
        ]  # fmt: skip
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env={**os.environ, "HOME": str(tmp_path)}
        )
        assert "What it wrote" in result.stdout, result.stderr[-500:]
    from PIL import Image

    with Image.open(shot) as image:
        colours = image.convert("RGB").getcolors(maxcolors=1 << 20)
    assert len(colours) > 100  # pictures are drawn, not only text


def test_the_commands_are_registered():
    for name in ("report", "rescore", "compare", "probe"):
        assert cli._command(name).help
